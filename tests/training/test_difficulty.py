"""Problems of medium difficulty: measured once, kept with the run, chosen by the band."""

import dataclasses
import json

import pytest

from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.workers import Turn
from tarl_jax.training.difficulty import FILE, in_band, medium_problems


class Oracle:
    """An engine whose policy solves the n-th problem in n of its trials."""

    def __init__(self, env):
        self.env = env
        self.runs = 0

    def run(self, params, episodes, temperature, progress=None):
        self.runs += 1
        trials = self.env.config.maths.band_trials
        for place, episode in enumerate(episodes):
            problem, trial = divmod(place, trials)
            episode.start()
            answer = episode.task.outputs[0] if trial < problem else "none"
            ids = self.env.chat.agent(f"\\boxed{{{answer}}}")
            episode.turn(Turn(ids, [0.0] * len(ids), [0.0] * len(ids)))
        assert len({e.seed for e in episodes}) == len(episodes)


@pytest.fixture(scope="module")
def make_env(tiny_config):
    def go(**fields):
        fields = {"ratio": (0.5,), "num_train": 9, "num_held_out": 4, "band_problems": 5,
                  "band_trials": 4, "min_pass": 0.25, "max_pass": 0.75, **fields}
        maths = dataclasses.replace(tiny_config.maths, **fields)
        return Environment.from_config(dataclasses.replace(tiny_config, maths=maths))

    return go


def test_the_band_keeps_what_is_solved_sometimes(make_env, tmp_path):
    env = make_env()
    kept = medium_problems(Oracle(env), {}, env, tmp_path)
    assert kept == env.maths.train_tasks[1:4]  # solved 1, 2 and 3 times of 4; not 0 and 4
    rates = json.loads((tmp_path / FILE).read_text())
    assert list(rates.values()) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_resumed_run_measures_nothing(make_env, tmp_path):
    env = make_env()
    engine = Oracle(env)
    first = medium_problems(engine, {}, env, tmp_path)
    assert medium_problems(engine, None, env, tmp_path) == first and engine.runs == 1
    (tmp_path / FILE).unlink()
    with pytest.raises(ValueError, match="start a new run"):
        medium_problems(engine, None, env, tmp_path)


def test_the_whole_band_measures_nothing(make_env, tmp_path):
    env = make_env(min_pass=0.0, max_pass=1.0)
    assert medium_problems(None, None, env, tmp_path) == env.maths.train_tasks
    assert not (tmp_path / FILE).exists()


def test_without_maths_in_the_mix_there_are_no_problems(make_env, tiny_env, tmp_path):
    assert medium_problems(None, None, tiny_env, tmp_path) == []
    only_demonstrated = make_env(ratio=(0.0,), demonstrations=0.5)
    assert medium_problems(None, None, only_demonstrated, tmp_path) == []


def test_an_empty_band_says_how_hard_the_problems_were(make_env):
    env = make_env()
    problems = env.maths.train_tasks[:4]
    rates = dict(zip((p.task_id for p in problems), (0.0, 0.0, 0.0, 1.0), strict=True))
    with pytest.raises(ValueError, match=r"75% of them never and 25% always"):
        in_band(problems, rates, env.config.maths)
