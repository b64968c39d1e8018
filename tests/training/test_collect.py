"""The episodes of a step: whole groups, carried over, cut off, or played ahead."""

import dataclasses
import hashlib
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarl_jax.parallel import hosts, launches
from tarl_jax.parallel.mesh import by_rows, make_mesh, replicated
from tarl_jax.rollout import workers
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.journal import Journals
from tarl_jax.rollout.running import EngineStats
from tarl_jax.speech.sound import Sound
from tarl_jax.training.collect import Collected, Collector
from tarl_jax.training.mixture import Mixture
from tarl_jax.types import CUT_OFF


class Clock:
    """Stands in for the module `time` in the engine's workers: `step` seconds pass at each look."""

    def __init__(self):
        self.step = self.now = 0.0

    def perf_counter(self):
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    return clock


@pytest.fixture(scope="module")
def params(tiny_env, random_params):
    return random_params(tiny_env.config.model, tiny_env.vocab_size, 3)


@pytest.fixture(scope="module")
def engines(tiny_env):
    """By the fields of the rollout's config: an engine per config, made once."""
    made = {}

    def engine(**fields):
        key = tuple(sorted(fields.items()))
        if key not in made:
            rollout = dataclasses.replace(tiny_env.config.rollout, **fields)
            config = dataclasses.replace(tiny_env.config, rollout=rollout)
            env = dataclasses.replace(tiny_env, config=config)
            made[key] = env, env.engine()
        return made[key]

    return engine


def collector(engines, folder, ended=None, supervisor=None, max_staleness=0, journals=None,
              **fields):
    env, engine = engines(**fields)
    rl = dataclasses.replace(env.config.rl, max_staleness=max_staleness, steps=100)
    config = dataclasses.replace(env.config, rl=rl)
    mixture = Mixture(env.train_tasks, [], config.rollout.tasks_per_step, config.maths, 0)
    return Collector(config, engine, env, mixture, folder, ended, supervisor, journals)


def lines(trajectories):
    """The records without what the clock wrote."""
    return [dataclasses.replace(t, seconds={}).to_json_line() for t in trajectories]


def groups(trajectories, size):
    found = [trajectories[i : i + size] for i in range(0, len(trajectories), size)]
    for group in found:
        assert len({t.task.task_id for t in group}) == 1
        assert len({t.seed for t in group}) == size
    return found


def test_a_step_has_the_groups_of_its_tasks(engines, params, tmp_path):
    ended = []
    collect = collector(engines, tmp_path, ended.append)
    first, second = (collect.collect(step, params).trajectories for step in (1, 2))
    config = engines()[0].config.rollout
    for found in (first, second):
        assert len(groups(found, config.group_size)) == config.tasks_per_step
    assert not {t.seed for t in first} & {t.seed for t in second}
    assert len(ended) == len(first) + len(second)


def test_a_tasks_second_copy_in_a_step_is_played_anew(engines, params, tmp_path):
    """A pass over three tasks ends within the second step, and the next begins with the same one.

    The first copy's seeds are what they were: hashes of (run's seed, task, "train", step, trial).
    """
    env, engine = engines()
    config = env.config
    mixture = next(
        mixed for mixed in (
            Mixture(env.train_tasks[:3], [], 2, config.maths, seed) for seed in range(99)
        ) if len({t.task_id for t in mixed.tasks(2)}) == 1
    )
    found = Collector(config, engine, env, mixture, tmp_path).collect(2, params).trajectories
    task = mixture.tasks(2)[0].task_id
    wanted = [
        int.from_bytes(hashlib.sha256(f"{config.seed}/{task}/train/2/{n}".encode()).digest()[:4])
        for n in range(config.rollout.group_size)
    ]
    assert [t.seed for t in found[: len(wanted)]] == wanted
    assert {t.task.task_id for t in found} == {task} and len({t.seed for t in found}) == len(found)
    said = [t.arrays()[0].tolist() for t in found]
    assert said[: len(wanted)] != said[len(wanted) :]


def test_episodes_have_a_supervisor(engines, params, tmp_path):
    seen = []
    found = collector(
        engines, tmp_path, supervisor=lambda t: seen.append(t.turns[-1].text) or "try again",
        interruptions=2,
    ).collect(1, params).trajectories
    counts = [sum("interruption" in s.info for s in t.segments) for t in found]
    assert max(counts) == 2 and len(seen) == sum(counts)
    for trajectory in found:
        shown = engines()[0].tokenizer.decode(trajectory.arrays()[0].tolist())
        assert shown.count("wrong: try again. Correct") <= 2
        assert ("wrong: try again. Correct" in shown) == (len(trajectory.turns) > 1)


def test_groups_that_are_late_come_whole_in_a_later_step(engines, params, tmp_path, clock):
    """Each run ends after one look at the clock: most episodes are carried, some for many steps."""
    plain = collector(engines, tmp_path)
    wanted = [t for step in (1, 2, 3) for t in plain.collect(step, params).trajectories]
    clock.step = 10.0
    late = collector(engines, tmp_path, step_seconds=5.0, max_staleness=100)
    size = engines()[0].config.rollout.group_size
    found, held = {}, 0
    for step in range(1, 40):
        collected = late.collect(step, params)
        assert collected.trajectories
        held += len(collected.stats.unfinished) > 0
        for group in groups(collected.trajectories, size):
            found |= {t.seed: t for t in group}
    assert held > 5
    # The policy never changed, so what was said is the same, up to the rounding of log-probs.
    for one in wanted:
        ids, sampled, log_probs = one.arrays()
        same = found[one.seed]
        assert same.arrays()[0].tolist() == ids.tolist() and same.diff == one.diff
        np.testing.assert_array_equal(same.arrays()[1], sampled)
        np.testing.assert_allclose(same.arrays()[2], log_probs, atol=1e-4)


def test_what_is_cut_off_is_a_failure_of_its_group(engines, params, tmp_path, clock):
    clock.step = 10.0
    ended = []
    collect = collector(engines, tmp_path, ended.append, step_seconds=5.0, unfinished="cut")
    found = collect.collect(1, params).trajectories
    config = engines()[0].config.rollout
    assert len(groups(found, config.group_size)) == config.tasks_per_step
    assert {t.stop_reason for t in found} >= {"max_seconds"} and "max_seconds" in CUT_OFF
    assert all(t.success is False for t in found if t.stop_reason == "max_seconds")
    assert len(ended) == len(found)


def test_what_was_played_ahead_is_what_a_step_learns_from(engines, params, tmp_path):
    """It is that of the policy of before, and a resumed run finds it on disk."""
    collect = collector(engines, tmp_path, max_staleness=1)
    expected = lines(collect.collect(2, params).trajectories)
    other = jax.tree.map(lambda x: x * 0.5, params)
    collect.play_ahead(1, params)
    collect.save(1)
    assert [path.name for path in tmp_path.iterdir()] == ["2.jsonl"]
    assert lines(collect.collect(2, other).trajectories) == expected
    resumed = collector(engines, tmp_path)
    assert lines(resumed.collect(2, other).trajectories) == expected
    resumed.forget(1)
    assert (tmp_path / "2.jsonl").exists()
    resumed.forget(2)
    assert not (tmp_path / "2.jsonl").exists()
    assert lines(resumed.collect(2, other).trajectories) != expected


@pytest.mark.parametrize("cache", [
    pytest.param("contiguous", marks=pytest.mark.slow),  # as a whole run of test_configs.py does
    "pages",
])
def test_devices_of_their_own_sample_the_same(tiny_env, params, tmp_path, cache):
    """The policy is handed over: what it was made of may go."""
    learning, playing = jax.devices()
    rollout = dataclasses.replace(tiny_env.config.rollout, cache=cache, slots=4)

    def collected(folder, devices=0, **rl):
        config = dataclasses.replace(
            tiny_env.config, rollout=rollout, rl=dataclasses.replace(tiny_env.config.rl, **rl),
            mesh=dataclasses.replace(tiny_env.config.mesh, rollout_devices=devices),
        )
        env = dataclasses.replace(tiny_env, config=config)
        mixture = Mixture(env.train_tasks, [], 2, config.maths, 0)
        return env, config, mixture, tmp_path / folder

    env, config, mixture, folder = collected("same")
    alone = Engine(config.model, rollout, env.tokenizer.stop_ids,
                   make_mesh(devices=[learning]), ids=env.tokenizer.vocab_size)
    same = Collector(config, alone, env, mixture, folder)
    wanted = [lines(same.collect(step, params).trajectories) for step in (1, 2)]
    env, config, mixture, folder = collected("own", 1, max_staleness=1)
    engine, placed = env.engine(), jax.device_put(params, learning)
    engine.programs.compile(placed)
    before = engine.programs.compilations
    own = Collector(config, engine, env, mixture, folder)
    found = [lines(own.collect(1, placed).trajectories)]
    for leaf in jax.tree.leaves(engine.ready(placed, {}).params):
        assert leaf.devices() == {playing}
    own.play_ahead(1, placed)
    for leaf in jax.tree.leaves(placed):
        leaf.delete()
    found.append(lines(own.collect(2, placed).trajectories))
    assert found == wanted
    assert engine.programs.compilations == before


def test_what_plays_ahead_and_what_learns_launch_in_turn(engines, params, tmp_path, monkeypatch):
    """Programs of the same two devices, by two threads: both come to each device in one order."""
    busy, launched = threading.Lock(), []

    def alone(who, launch):
        def call(*args, **kwargs):
            assert busy.acquire(blocking=False), "two threads launch at once"
            try:
                launched.append(who)
                return launch(*args, **kwargs)
            finally:
                busy.release()

        return call

    collect = collector(engines, tmp_path, max_staleness=1)
    wanted = lines(collect.collect(2, params).trajectories)
    programs = engines()[1].programs
    for name in ("extend", "decode", "move"):
        monkeypatch.setattr(programs, name, alone("ahead", getattr(programs, name)))
    mesh = make_mesh()
    assert mesh.size == 2
    total = alone("learning", jax.jit(jnp.sum, out_shardings=replicated(mesh)))
    numbers = jax.device_put(np.ones(8, np.float32), by_rows(mesh))
    collect.play_ahead(1, params)
    while not collect._ahead[0][1].done():
        assert launches.fetched(total(numbers)) == 8
    assert lines(collect.collect(2, params).trajectories) == wanted
    turns = "".join(who[0] for who in launched)
    assert "la" in turns and turns.count("al") > 3  # again and again
    collect.close()


def test_each_process_takes_its_share_of_what_was_played_ahead(
    engines, params, tmp_path, monkeypatch
):
    collect = collector(engines, tmp_path, max_staleness=1)
    wanted = lines(collect.collect(2, params).trajectories)
    collect.play_ahead(1, params)
    collect.save(1)
    resumed, found = collector(engines, tmp_path), []
    for rank in range(2):
        monkeypatch.setattr(hosts, "share", lambda groups, rank=rank: groups[rank::2])
        found.append(lines(resumed.collect(2, params).trajectories))
    size = engines()[0].config.rollout.group_size
    assert found == [wanted[:size], wanted[size:]]


def test_each_step_is_played_by_the_policy_of_so_many_updates_before(engines, params, tmp_path):
    """With a bound of 2, by hand: steps 1, 2 and 3 by the first policy, 4 by that after step 1."""
    policies = [jax.tree.map(lambda x, n=n: x * (1 - 0.1 * n), params) for n in range(4)]
    plain = collector(engines, tmp_path / "plain")
    wanted = {(step, n): lines(plain.collect(step, policies[n]).trajectories)
              for step, n in ((1, 0), (2, 0), (3, 0), (4, 1), (4, 0))}
    assert wanted[4, 0] != wanted[4, 1]
    collect, found, behind = collector(engines, tmp_path / "two", max_staleness=2), [], []
    for step in range(1, 5):
        collected = collect.collect(step, policies[step - 1])
        collect.play_ahead(step, policies[step - 1])
        found.append(lines(collected.trajectories))
        behind.append(collected.metrics()["rollout/updates_behind_max"])
        if step == 3:
            collect.save(3)
    assert found == [wanted[1, 0], wanted[2, 0], wanted[3, 0], wanted[4, 1]]
    assert behind == [0, 1, 2, 2]
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {"4.jsonl", "5.jsonl"}
    resumed = collector(engines, tmp_path / "two", max_staleness=2)
    resumed.restore(3)
    assert lines(resumed.collect(4, policies[3]).trajectories) == wanted[4, 1]
    resumed.play_ahead(4, policies[3])
    assert [step for step, _ in resumed._ahead] == [6]  # 5 is on disk
    resumed.settle()


def test_episodes_are_carried_no_longer_than_the_bound(engines, params, tmp_path, clock):
    clock.step = 10.0
    size = engines()[0].config.rollout.group_size
    for bound in (1, 3):
        collect = collector(engines, tmp_path, step_seconds=5.0, max_staleness=bound)
        if bound > 1:
            collect._depth = 0  # nothing is played ahead here
        behind, cut, found = [], 0, []
        for step in range(1, 25):
            collected = collect.collect(step, params)
            behind += collected.behind
            cut += collected.stale
            found += collected.trajectories
            assert len(collect._held) <= bound * engines()[0].config.rollout.tasks_per_step
        assert 1 <= max(behind) <= bound and (cut > 0 or bound > 1)
        assert cut == sum(t.stop_reason == "max_seconds" for t in found)
        assert len(found) == size * len(behind)


def test_carried_groups_are_played_on_by_a_resumed_run(engines, params, tmp_path, clock):
    """Their turns of before keep their tokens and log-probs, whatever the policy is then."""
    clock.step = 10.0
    journals = Journals(tmp_path / "journal")
    how = {"step_seconds": 5.0, "max_staleness": 50}
    collect = collector(engines, tmp_path, journals=journals, **how)
    collect._depth = 0
    first, step = [], 0
    while not collect._held and step < 40:  # now and then a group is late
        step += 1
        first += collect.collect(step, params).trajectories
    held = {e.seed: e for one in collect._held for e in one.episodes}
    collect.save(step)
    journals.close()
    written = [json.loads(line) for path in sorted((tmp_path / "journal").iterdir())
               for line in path.read_text().splitlines()]
    begun = [record for record in written if record["seed"] in held]
    assert len(begun) >= len(held) > 0
    collect.forget(step - 1)
    other = jax.tree.map(lambda x: x * 0.9, params)
    resumed = collector(engines, tmp_path, journals=Journals(tmp_path / "journal"), **how)
    resumed._depth = 0
    resumed.restore(step)
    clock.step = 0.0  # all have time now
    collected = resumed.collect(step + 1, other)
    found = {t.seed: t for t in collected.trajectories}
    assert set(held) < set(found) and not set(found) & {t.seed for t in first}
    assert max(collected.behind) >= 1
    for record in begun:
        turn = found[record["seed"]].turns[record["number"]]
        drawn = [(i, p) for i, s, p in zip(turn.token_ids, turn.sampled, turn.log_probs,
                                           strict=True) if s]
        assert drawn == list(zip(record["ids"], record["log_probs"], strict=True))
    resumed.save(step + 1)
    resumed.forget(step + 1)
    assert not list(tmp_path.glob("*.carried.json"))
    assert not list((tmp_path / "journal").iterdir())


def test_clips_that_were_played_ahead_are_kept_as_long_as_their_episodes(
    engines, params, tmp_path, monkeypatch
):
    collect = collector(engines, tmp_path, max_staleness=1)
    spoken = collect.collect(1, params).trajectories[:1]
    clip = (np.arange(800) / 32768).astype(np.float32)
    spoken[0].segments[1].sound = Sound(2, 1, clip)
    monkeypatch.setattr(collect, "_play", lambda *_: Collected(spoken, EngineStats()))
    collect.play_ahead(1, params)
    collect.save(1)
    resumed = collector(engines, tmp_path)
    (again,) = resumed.collect(2, params).trajectories
    assert again == spoken[0] and next(iter(again.sounds())).clip.tobytes() == clip.tobytes()
    resumed.forget(1)
    assert len(list((tmp_path / "clips").iterdir())) == 1
    resumed.forget(2)
    assert not list((tmp_path / "clips").iterdir())


def test_only_what_can_become_a_call_is_drawn(engines, params, tmp_path):
    """With the constraint each token is one that the grammar allows; without it some are not."""
    from tarl_jax.rollout.grammar import after, build

    env, _ = engines()
    grammar = build(env.tokenizer, env.domain.tools, env.vocab_size)

    flat = jax.tree.map(lambda x: x * 0.3, params)  # any token, so that calls are begun

    def refused(fields):
        count, collect = 0, collector(engines, tmp_path, **fields)
        found = [t for step in range(1, 5) for t in collect.collect(step, flat).trajectories]
        for turn in (turn for t in found for turn in t.turns):
            count += after(grammar, turn.token_ids) < 0
        return count

    hot = {"max_turn_tokens": 40, "max_episode_tokens": 384}
    assert refused(hot) > 0
    assert refused(hot | {"constrain_calls": True}) == 0
