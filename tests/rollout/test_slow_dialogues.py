"""Dialogues that wait, share prompts, forget, or run out of time: what they say stays the same."""

import dataclasses
import random
import threading
import time

import jax
import numpy as np
import pytest
from scripted import (
    CONFIG,
    MODEL,
    STOP,
    TEMPERATURE,
    VOCAB,
    Forgetful,
    Scripted,
    Slow,
    play_plainly,
)

from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout import workers
from tarl_jax.rollout.engine import Engine

BUSY = dataclasses.replace(CONFIG, slots=4, in_flight=24, share_prefix=0)


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(MODEL, VOCAB, 0)


@pytest.fixture(scope="module")
def said(params):
    """What the dialogues say when nothing waits, by seed."""
    engine = Engine(MODEL, dataclasses.replace(CONFIG, share_prefix=0), STOP, make_mesh())
    episodes = [Scripted.random(seed) for seed in range(24)]
    engine.run(params, episodes, TEMPERATURE)
    return {e.seed: e.sampled_ids for e in episodes}


def slow(seed, wait):
    plain = Scripted.random(seed)
    episode = Slow(seed, 1, [], wait)
    episode.prompt, episode.answers = plain.prompt, plain.answers
    return episode


def napping(seed):
    """Waits up to ten milliseconds, differently each time."""
    rng = random.Random(seed)
    return lambda: time.sleep(rng.random() * 0.01)


# ---- waiting --------------------------------------------------------------------------------


@pytest.mark.parametrize("parked", [0, 3, 24])
def test_waiting_changes_nothing_that_is_said(params, said, parked):
    """Far more dialogues under way than slots: caches are parked, dropped and made again."""
    engine = Engine(MODEL, dataclasses.replace(BUSY, parked=parked), STOP, make_mesh())
    engine.programs.compile(params)
    compiled = engine.programs.compilations
    episodes = [slow(seed, napping(seed)) for seed in range(24)]
    stats = engine.run(params, episodes, TEMPERATURE)
    assert {e.seed: e.sampled_ids for e in episodes} == said
    assert engine.programs.compilations == compiled
    assert stats.outside_seconds > 0.1
    # With room for every cache nothing is fed twice; without, much is.
    again = stats.fed_tokens - (stats.forced_tokens - len(episodes))
    turns = sum(len(e.turns) for e in episodes)
    assert (again <= turns) if parked == 24 else (again > 500)


def test_others_write_while_one_waits(params):
    """One dialogue waits until all others have ended."""
    others = threading.Event()
    stuck = slow(3, others.wait)
    quick = [slow(seed, lambda: None) for seed in range(4, 12)]
    ended = []

    def on_end(episode):
        ended.append(episode.seed)
        if len(ended) == len(quick):
            others.set()

    engine = Engine(MODEL, dataclasses.replace(BUSY, slots=2, in_flight=3), STOP, make_mesh())
    engine.run(params, [stuck, *quick], TEMPERATURE, ended=on_end)
    assert ended[-1] == 3 and sorted(ended[:-1]) == list(range(4, 12))


def test_no_more_than_allowed_are_under_way(params):
    going, most, lock = 0, 0, threading.Lock()

    class Counted(Slow):
        def start(self):
            nonlocal going, most
            with lock:
                going += 1
                most = max(most, going)
            time.sleep(0.003)
            return Scripted.start(self)

    def on_end(_):
        nonlocal going
        with lock:
            going -= 1

    engine = Engine(MODEL, dataclasses.replace(BUSY, in_flight=6), STOP, make_mesh())
    episodes = [Counted(seed, 5, [3, 3]) for seed in range(20)]
    engine.run(params, episodes, TEMPERATURE, ended=on_end)
    assert most == 6 and going == 0


def test_more_are_begun_while_no_answer_comes(params):
    """Nobody opens before all have been asked: six times as many as there are slots."""
    all_asked = threading.Barrier(24)

    class Reluctant(Slow):
        def start(self):
            all_asked.wait(timeout=60)
            return Scripted.start(self)

    engine = Engine(MODEL, BUSY, STOP, make_mesh())
    episodes = [Reluctant(seed, 5, [3]) for seed in range(24)]
    assert engine.run(params, episodes, TEMPERATURE).episodes == 24
    assert all(len(e.turns) == 2 for e in episodes)


def test_what_a_dialogue_raises_ends_the_run(params):
    def fail():
        raise RuntimeError("the user has left")

    engine = Engine(MODEL, BUSY, STOP, make_mesh())
    with pytest.raises(RuntimeError, match="the user has left"):
        engine.run(params, [slow(1, fail), slow(2, lambda: None)], TEMPERATURE)


# ---- time -----------------------------------------------------------------------------------


class Clock:
    """Stands in for the module `time` in the engine's workers; is late when told to be."""

    def __init__(self):
        self.late = lambda: False
        self.step = self.now = 0.0

    def perf_counter(self):
        self.now += self.step
        return 1e9 if self.late() else self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    return clock


def test_what_is_unfinished_goes_on_in_the_next_run(params, said, clock):
    gate, ended = threading.Event(), []
    stuck = [slow(seed, gate.wait) for seed in (1, 2)]
    quick = [slow(seed, lambda: None) for seed in (5, 6, 7)]
    clock.late = lambda: len(ended) == 3
    engine = Engine(MODEL, dataclasses.replace(BUSY, parked=1), STOP, make_mesh())
    stats = engine.run(params, stuck + quick, TEMPERATURE, seconds=60, ended=ended.append)
    assert [u.episode.seed for u in stats.unfinished] == [1, 2]
    assert all(u.answer is not None for u in stats.unfinished)
    assert all(e.sampled_ids == said[e.seed] for e in quick)
    gate.set()
    more = [slow(8, lambda: None)]
    second = engine.run(params, more, TEMPERATURE, unfinished=stats.unfinished)
    assert second.unfinished == [] and second.episodes == 3
    assert all(e.sampled_ids == said[e.seed] for e in [*stuck, *more])


def test_a_turn_that_was_being_written_goes_on_where_it_was(params, said, clock):
    """Runs of one tick each, which ends when the first row has ended its turn."""
    config = dataclasses.replace(BUSY, slots=4, straggler_fraction=0.9)
    engine = Engine(MODEL, config, STOP, make_mesh())
    episodes = [Scripted.random(seed) for seed in range(4)]
    clock.step = 10.0
    stats = engine.run(params, episodes, TEMPERATURE, seconds=1)
    runs = middle = 0
    while stats.unfinished:
        middle += sum(u.row.written > 0 and not u.row.asking for u in stats.unfinished if u.row)
        stats = engine.run(params, [], TEMPERATURE, seconds=1, unfinished=stats.unfinished)
        runs += 1
    assert runs > 3 and middle > 3
    assert {e.seed: e.sampled_ids for e in episodes} == {e.seed: said[e.seed] for e in episodes}
    ended = []
    stats = engine.run(params, [Scripted.random(seed) for seed in range(4)], TEMPERATURE, seconds=1,
                       ended=ended.append, enough=lambda: bool(ended))
    assert stats.ticks > 1 and ended and stats.unfinished  # it goes on until then, and no longer


# ---- contexts -------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 16])
def test_a_context_that_loses_tokens(params, share):
    engine = Engine(MODEL, dataclasses.replace(CONFIG, slots=4, share_prefix=share), STOP,
                    make_mesh())
    episodes = [Forgetful(seed, 20 + seed, [5, 40, 3]) for seed in range(6)]
    engine.run(params, episodes, TEMPERATURE)
    for episode in episodes:
        twin = play_plainly(params, episode, TEMPERATURE)
        assert twin.sampled_ids == episode.sampled_ids
        assert twin.contexts == episode.contexts
        assert len({tuple(ids) for ids in episode.sampled_ids}) > 1


def grouped(tasks=3, group=6, system=40, seed=0):
    """Dialogues with a common beginning, in groups with a longer one."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, VOCAB, system).tolist()
    episodes = []
    for task in range(tasks):
        prompt = first + rng.integers(0, VOCAB, 30 + task).tolist()
        for _ in range(group):
            episode = Scripted(1000 + len(episodes), 1, [4, 20])
            episode.prompt, episode.shared = prompt, system
            episodes.append(episode)
    return episodes


@pytest.mark.parametrize("slots", [3, 18])
def test_shared_prompts_are_fed_once_and_change_nothing(params, slots):
    alone, shared = (
        Engine(MODEL, dataclasses.replace(CONFIG, slots=slots, share_prefix=n), STOP, make_mesh())
        for n in (0, 16)
    )
    shared.programs.compile(params)
    one, other = grouped(), grouped()
    plain = alone.run(params, one, TEMPERATURE)
    compiled = shared.programs.compilations
    copied = shared.run(params, other, TEMPERATURE)
    assert [e.turns[0][0] for e in one] == [e.turns[0][0] for e in other]
    assert [e.sampled_ids for e in one] == [e.sampled_ids for e in other]
    for a, b in zip(one, other, strict=True):
        for (_, left), (_, right) in zip(a.turns, b.turns, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)
    assert shared.programs.compilations == compiled
    # 18 prompts of about 70 tokens; three are fed, the last block of each of the others too.
    assert plain.fed_tokens - copied.fed_tokens > 0.6 * sum(len(e.prompt) for e in one)


def test_parameters_do_not_outlive_a_run_in_a_shared_prefix(params, random_params):
    config = dataclasses.replace(CONFIG, slots=3, share_prefix=16)
    engine, other = Engine(MODEL, config, STOP, make_mesh()), random_params(MODEL, VOCAB, 9)
    engine.run(params, grouped(), TEMPERATURE)
    episodes, fresh = grouped(), grouped()
    engine.run(other, episodes, TEMPERATURE)
    Engine(MODEL, config, STOP, make_mesh()).run(other, fresh, TEMPERATURE)
    assert [e.sampled_ids for e in episodes] == [e.sampled_ids for e in fresh]


# ---- truncation -----------------------------------------------------------------------------


def test_both_log_probs_of_a_truncated_draw(params):
    config = dataclasses.replace(CONFIG, top_k=3)
    engine = Engine(MODEL, config, STOP, make_mesh())
    seen = []

    class Noting(Scripted):
        def turn(self, turn):
            seen.append(turn)
            return super().turn(turn)

    engine.run(params, [Noting(seed, 20, [5]) for seed in range(20)], TEMPERATURE)
    log_probs = np.concatenate([turn.log_probs for turn in seen])
    drawn = np.concatenate([turn.drawn_log_probs for turn in seen])
    assert (drawn > log_probs).mean() > 0.95 and (drawn >= log_probs - 1e-6).all()
    # Three tokens at most: the likeliest of them has at least a third.
    assert np.exp(drawn).max() >= 1 / 3 and jax.device_count() == 2
