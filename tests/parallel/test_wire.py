"""What processes tell each other comes over as it was, and nothing but data does."""

import json
import pickle
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tarl_jax.parallel.wire import pack, unpack
from tarl_jax.rollout.workers import Answer
from tarl_jax.speech.sound import Sound
from tarl_jax.types import Call, GoldAction, Segment, Task, Trajectory


def test_all_that_is_told_comes_back_as_it_was():
    value = {
        "numbers": [0, -(2**70), 1.5, float("inf"), -0.0, True, None],
        ("a", 1): ("é\ud800 \u2028", b"\x00\xff", Path("a/b"), (), {}),
        3: np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2],
        "half": np.asarray(jnp.array([1.5, float("nan")], jnp.bfloat16)),
        "scalar": np.float32(0.1),
        "empty": np.zeros((0, 4), np.float32),
    }
    found = unpack(pack(value))
    assert list(found) == list(value)
    assert found["numbers"] == value["numbers"] and str(found["numbers"][4]) == "-0.0"
    assert type(found["numbers"][5]) is bool and found["a", 1] == value["a", 1]
    for name in (3, "half", "empty", "scalar"):
        assert found[name].dtype == value[name].dtype and found[name].shape == value[name].shape
        assert found[name].tobytes() == np.ascontiguousarray(value[name]).tobytes()
    found[3][0, 0] = 7  # not a view on what was received


def test_nan_keeps_being_one():
    (found,) = unpack(pack([float("nan")]))
    assert found != found


def trajectory():
    task = Task("t", "u", "do", (Call("f", {"a": [1, {"b": None}]}),), ("x",), "train", "shop",
                {"requests": []}, 3, actions=(GoldAction("g", {}, ("a",)),))
    spoken = Segment.forced("user", [1, 2], -1, "hello", fact=np.int64(3))
    spoken.sound = Sound(0, 2, np.array([0.5, -0.25], np.float32))
    said = Segment("agent", [5], [True], [-0.1], 0, "x", calls=[Call("f", {})],
                   info={"deep": [(1, 2)]})
    return Trajectory(task, 7, [spoken, said], "user_stop", True, turn_scores=[1])


def test_episodes_and_answers_come_back_equal():
    one = trajectory()
    assert unpack(pack([one]), [Trajectory]) == [one]
    answer = (3, Answer([1, 2], 1, (one.segments[0].sound,)))
    assert unpack(pack([(False, [answer, (4, None)])]), [Answer]) == [(False, [answer, (4, None)])]


def test_what_nobody_expects_is_refused():
    with pytest.raises(ValueError, match="a Trajectory came from another process"):
        unpack(pack(trajectory()))
    with pytest.raises(TypeError, match="function cannot be told"):
        pack({"f": [trajectory]})
    with pytest.raises(TypeError, match="ndarray cannot be told"):
        pack(np.array([object()]))
    for data in (pickle.dumps([1]), b"", json.dumps([1]).encode()):
        with pytest.raises(ValueError):
            unpack(data)
