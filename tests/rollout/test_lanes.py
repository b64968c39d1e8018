"""Lanes: parts of a run beside each other, which change nothing of what is drawn."""

import dataclasses
import threading

import jax
import pytest
from scripted import CONFIG, MODEL, STOP, TEMPERATURE, VOCAB, Scripted

from tarl_jax.config import ConfigError
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.lanes import SPLIT, joined, lanes_on
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.workers import Answer

LANES = dataclasses.replace(CONFIG, lanes=2, slots=8)


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(MODEL, VOCAB, 0)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def engine(params, mesh):
    return Engine(MODEL, LANES, STOP, mesh)


@pytest.fixture(scope="module")
def alone(params, mesh):
    """What each dialogue is when nothing plays beside it in another thread."""
    episodes = [Scripted.random(seed) for seed in range(21)]
    Engine(MODEL, dataclasses.replace(LANES, lanes=1), STOP, mesh).run(
        params, episodes, TEMPERATURE
    )
    return [episode.sampled_ids for episode in episodes]


def test_lanes_change_nothing_of_what_is_drawn(params, engine, alone):
    assert engine.programs.slots == 4
    episodes = [Scripted.random(seed) for seed in range(21)]
    ended, shown, threads = [], [], set()

    def end(episode):
        ended.append(episode.seed)
        threads.add(threading.get_ident())

    stats = engine.run(
        params, episodes, TEMPERATURE, lambda done, of: shown.append((done, of)), ended=end
    )
    assert [episode.sampled_ids for episode in episodes] == alone
    assert sorted(ended) == list(range(21)) and len(threads) == 2
    assert shown == sorted(shown) and shown[-1] == (21, 21) and {of for _, of in shown} == {21}
    assert stats.episodes == 21 and not stats.unfinished and not stats.left
    assert stats.sampled_tokens == sum(len(ids) for turns in alone for ids in turns)
    assert 0 < stats.extend_seconds + stats.decode_seconds < stats.seconds
    assert stats.host_seconds > 0


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_fewer_dialogues_than_lanes(params, engine, alone, count):
    episodes = [Scripted.random(seed) for seed in range(count)]
    assert engine.run(params, episodes, TEMPERATURE).episodes == count
    assert [episode.sampled_ids for episode in episodes] == alone[:count]


def test_one_that_is_played_on_beside_a_new_one(params, engine, alone):
    old, new = Scripted.random(3), Scripted.random(5)
    stats = engine.run(params, [old], TEMPERATURE, leave=lambda: True)
    assert len(stats.unfinished) == 1
    shown = []
    engine.run(params, [new], TEMPERATURE, lambda done, of: shown.append((done, of)),
               unfinished=stats.unfinished)
    assert [old.sampled_ids, new.sampled_ids] == [alone[3], alone[5]]
    assert shown[-1] == (2, 2) and {of for _, of in shown} == {2}


@pytest.mark.parametrize("where", [0, 11])  # the first of each lane
def test_what_a_lane_raises_ends_the_others(params, engine, where):
    class Broken(Scripted):
        def turn(self, turn):
            raise RuntimeError(f"dialogue {self.seed} broke")

    class Long(Scripted):
        def turn(self, turn):
            super().turn(turn)
            return None if len(self.turns) == 60 else Answer([1], keep=1)

    episodes = [Long(seed, 3, []) for seed in range(21)]
    episodes[where] = Broken(where, 3, [])
    with pytest.raises(RuntimeError, match=f"dialogue {where} broke"):
        engine.run(params, episodes, TEMPERATURE)
    assert all(len(episode.turns) < 40 for episode in episodes)
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("lane") for name in names)


def test_what_is_left_is_played_on(params, engine, alone):
    episodes = [Scripted.random(seed) for seed in range(21)]
    calls = []

    def leave():
        calls.append(1)
        return len(calls) > 6

    stats = engine.run(params, episodes, TEMPERATURE, leave=leave)
    assert stats.left and 0 < len(stats.unfinished) < 21
    order = [left.episode.seed for left in stats.unfinished]
    assert order == sorted(order)
    after = engine.run(params, [], TEMPERATURE, unfinished=stats.unfinished)
    assert not after.unfinished
    assert [episode.sampled_ids for episode in episodes] == alone


def test_how_many_lanes_there_are(mesh):
    def of(model=MODEL, **fields):
        return lanes_on(mesh, dataclasses.replace(CONFIG, **fields), model)

    assert of(slots=SPLIT) == 2 and of(slots=SPLIT - 1) == 1
    assert of(slots=SPLIT, lanes=1) == 1 and of(slots=3, lanes=3) == 3
    assert of(slots=SPLIT, cache="pages") == 1
    wide = dataclasses.replace(MODEL, d_model=4096, d_ff=4096)  # whose weights weigh more
    assert of(wide, slots=SPLIT) == 1 and of(wide, slots=SPLIT, lanes=2) == 2
    with pytest.raises(ConfigError, match=r"rollout.lanes = 2.*set it to 0"):
        of(slots=SPLIT, cache="pages", lanes=2)
    if len(jax.devices()) > 1:
        assert lanes_on(make_mesh(devices=jax.devices()[:2]), CONFIG, MODEL) == 1


def test_statistics_of_lanes():
    one = EngineStats(episodes=2, ticks=3, extend_seconds=1.0, outside_seconds=4.0)
    other = EngineStats(episodes=5, ticks=1, extend_seconds=3.0, outside_seconds=2.0, left=True)
    whole = joined([one, other])
    assert (whole.episodes, whole.ticks, whole.left) == (7, 4, True)
    assert (whole.extend_seconds, whole.outside_seconds) == (2.0, 6.0)
