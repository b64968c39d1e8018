"""Differences of two evaluations on the same tasks, against values by hand."""

import numpy as np
import pytest

from tarl_jax.training.differences import difference, keep, per_task
from tarl_jax.types import Task, Trajectory


def played(task_id, *verdicts, scores=(1,)):
    task = Task(task_id, "", "", (), (), "held_out", "shop", None, 1)
    return [
        Trajectory(task, i, [], "user_stop", ok, turn_scores=None if scores is None else
                   [*scores, *([] if ok else [-1])])
        for i, ok in enumerate(verdicts)
    ]


def test_each_task_has_its_own_values():
    found = per_task([*played("a", True, True), *played("b", True, False)], 2)
    assert found["eval/pass^1"] == {"a": 1.0, "b": 0.5}
    assert found["eval/pass^2"] == {"a": 1.0, "b": 0.0}
    assert found["eval/clean_pass"] == {"a": 1.0, "b": 0.5}
    assert found["eval/major_share"] == {"a": 0.0, "b": 0.5}
    unjudged = per_task([*played("a", True, False, scores=None), *played("b", True, True)], 2)
    assert unjudged["eval/major_share"] == {"b": 0.0}  # of a nobody knows
    assert per_task(played("a", True, False, scores=None), 2).keys() == {
        "eval/pass^1", "eval/pass^2"}


def test_the_interval_is_of_paired_differences(tmp_path):
    assert difference(tmp_path, 100, 0) == {}
    values = {f"t{i}": i / 100 for i in range(100)}  # tasks differ far more than they change
    keep(tmp_path, "base", {"eval/pass^1": values})
    assert difference(tmp_path, 100, 0) == {}
    keep(tmp_path, "final", {"eval/pass^1": {k: v + 0.1 for k, v in values.items()} | {"new": 1.0}})
    found = difference(tmp_path, 500, 0)
    assert found["eval/pass^1"] == pytest.approx(0.1)
    assert found["eval/pass^1_low"] == pytest.approx(0.1)  # all changed by the same
    noise = np.random.default_rng(3).normal(0.1, 0.2, 100)
    keep(tmp_path, "final", {"eval/pass^1": {k: v + noise[i] for i, (k, v) in
                                             enumerate(values.items())}})
    found = difference(tmp_path, 4000, 0)
    half = 1.96 * noise.std() / 10  # of a mean of 100
    assert found["eval/pass^1"] == pytest.approx(noise.mean())
    assert found["eval/pass^1_high"] - found["eval/pass^1_low"] == pytest.approx(2 * half, rel=0.1)
