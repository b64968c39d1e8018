"""The episodes of a step: whole groups, carried over, cut off, or played ahead."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from tarl_jax.rollout import workers
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


def collector(engines, folder, ended=None, supervisor=None, **fields):
    env, engine = engines(**fields)
    config = env.config
    mixture = Mixture(env.train_tasks, [], config.rollout.tasks_per_step, config.maths, 0)
    return Collector(config, engine, env, mixture, folder, ended, supervisor)


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
    late = collector(engines, tmp_path, step_seconds=5.0)
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
    collect = collector(engines, tmp_path)
    expected = lines(collect.collect(2, params).trajectories)
    other = jax.tree.map(lambda x: x * 0.5, params)
    collect.play_ahead(2, params)
    collect.save()
    assert [path.name for path in tmp_path.iterdir()] == ["2.jsonl"]
    assert lines(collect.collect(2, other).trajectories) == expected
    resumed = collector(engines, tmp_path)
    assert lines(resumed.collect(2, other).trajectories) == expected
    resumed.forget(1)
    assert (tmp_path / "2.jsonl").exists()
    resumed.forget(2)
    assert not (tmp_path / "2.jsonl").exists()
    assert lines(resumed.collect(2, other).trajectories) != expected


def test_clips_that_were_played_ahead_are_kept_as_long_as_their_episodes(
    engines, params, tmp_path, monkeypatch
):
    collect = collector(engines, tmp_path)
    spoken = collect.collect(1, params).trajectories[:1]
    clip = (np.arange(800) / 32768).astype(np.float32)
    spoken[0].segments[1].sound = Sound(2, 1, clip)
    monkeypatch.setattr(collect, "_play", lambda *_: Collected(spoken, EngineStats()))
    collect.play_ahead(2, params)
    collect.save()
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
