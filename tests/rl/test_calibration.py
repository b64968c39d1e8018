"""A kind of turn is worth what it tells about success, checked by hand and against NumPy."""

import json

import numpy as np
import pytest

from tarl_jax.rl.calibration import (
    MIN_EPISODES,
    calibrate,
    load_table,
    save_table,
    turn_kind,
    worth,
)
from tarl_jax.types import Call, Segment

N = 200


def agent(text="", call=None, **info):
    calls = [] if call is None else [call]
    segment = Segment("agent", [1], [True], [-1.0], 0, f"Why? {text}", text, calls, "Why?")
    segment.info = info
    return segment


def episodes(seed=0):
    """"good" goes with success, "bad" with failure, "noise" with neither; all score +1."""
    rng = np.random.default_rng(seed)
    success = rng.random(N) < 0.5
    has = {
        "good": rng.random(N) < np.where(success, 0.9, 0.2),
        "bad": rng.random(N) < np.where(success, 0.3, 0.7),
        "noise": rng.random(N) < 0.5,
    }
    kinds = [["all", *(k for k, present in has.items() if present[i])] for i in range(N)]
    return kinds, [[1] * len(of) for of in kinds], success, has


def test_kinds_of_turns():
    assert turn_kind(agent(call=Call("find_user", {}))) == "find_user"
    assert turn_kind(agent("Shall I?")) == "ask"
    assert turn_kind(agent("Done.")) == "tell"
    assert turn_kind(agent("Shall I?", malformed="no end")) == "malformed"


def test_the_value_is_the_correlation_over_the_largest():
    kinds, scores, success, has = episodes()
    table = calibrate(kinds, scores, success)
    r = {k: np.corrcoef(x, success)[0, 1] for k, x in has.items()}
    for name, expected in r.items():
        assert table[f"{name}:+1"].correlation == pytest.approx(expected, abs=1e-9)
    assert table["good:+1"].value == 1.0
    assert table["bad:+1"].value == pytest.approx(r["bad"] / r["good"])
    assert table["bad:+1"].value < 0
    good = has["good"]
    assert table["good:+1"].episodes == good.sum()
    assert table["good:+1"].passed == pytest.approx(success[good].mean())
    assert table["good:+1"].passed_without == pytest.approx(success[~good].mean())


def test_what_tells_nothing_is_worth_nothing():
    kinds, scores, success, _ = episodes()
    table = calibrate(kinds, scores, success)
    assert abs(table["noise:+1"].correlation) < 2 / np.sqrt(N)
    assert table["noise:+1"].value == 0
    assert table["all:+1"].value == table["all:+1"].correlation == 0  # every episode has it


def test_the_score_is_part_of_the_kind():
    success = [True, False] * 50
    kinds = [["ask"]] * 100
    scores = [[1] if s else [0] for s in success]
    table = calibrate(kinds, scores, success)
    assert table["ask:+1"].value == pytest.approx(1) and table["ask:+0"].value == pytest.approx(-1)


@pytest.mark.parametrize("count, value", [(MIN_EPISODES - 1, 0.0), (MIN_EPISODES, 1.0)])
def test_few_episodes_prove_nothing(count, value):
    kinds = [["rare"]] * count + [["other"]] * (N - count)
    success = [True] * count + [False] * (N - count)
    got = calibrate(kinds, [[1]] * N, success)["rare:+1"].value
    assert got == pytest.approx(value)


def test_easy_tasks_do_not_vote():
    """A kind that only easy tasks call for, and that changes nothing within a task."""
    tasks = ["easy"] * 100 + ["hard"] * 100
    success = [i % 10 > 0 for i in range(100)] + [i % 10 == 0 for i in range(100)]
    kinds = [["idle"]] * 100 + [["other"]] * 100
    loose, strict = (calibrate(kinds, [[1]] * N, success, t) for t in (None, tasks))
    assert loose["idle:+1"].value > 0.9
    assert strict["idle:+1"].value == strict["idle:+1"].correlation == 0


def test_lists_that_do_not_match_are_an_error():
    with pytest.raises(ValueError, match="1 lists of kinds, 1 of scores and 2 verdicts"):
        calibrate([["a"]], [[1]], [True, False])
    with pytest.raises(ValueError, match="at least one"):
        calibrate([], [], [])


def test_a_table_comes_back_and_is_applied(tmp_path):
    kinds, scores, success, _ = episodes()
    table = calibrate(kinds, scores, success)
    save_table(tmp_path / "table.json", table)
    values = load_table(tmp_path / "table.json")
    assert values == {name: kind.value for name, kind in table.items()}
    turns = [agent("Shall I?"), agent(call=Call("find", {})), agent("Done.")]
    got = worth(turns, [1, 0, -1], {"ask:+1": 0.5, "find:+0": -0.25, "tell:+1": 1.0})
    assert got == [0.5, -0.25, 0.0]  # the table knows "tell" with +1 only


@pytest.mark.parametrize("content, said", [
    ("{", "not a table"), ("[]", "not a table"), ('{"ask:+1": 3}', "not a table"),
    (json.dumps({"ask:+1": {"value": 3.0}}), "between -1 and 1"),
])
def test_a_file_that_is_no_table_is_named(tmp_path, content, said):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said) as raised:
        load_table(path)
    assert str(path) in str(raised.value)


def test_a_missing_table_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tarl_jax\.training\.calibrate_turns RUN --out="):
        load_table(tmp_path / "none.json")
