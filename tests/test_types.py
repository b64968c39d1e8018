"""Records survive the way to disk and back."""

import json

import numpy as np
import pytest

from tarl_jax.speech.sound import Sound, clip_name
from tarl_jax.types import STOP_REASONS, Call, Segment, Task, Trajectory

TASK = Task(
    task_id="shop-train-7",
    user_id="ada_ito_10",
    instruction="You are Ada.\nYou want \u201cgreen\u201d.",
    gold_calls=(Call("cancel_pending_order", {"order_id": "#W1", "more": {"a": [1, 2.5, None]}}),),
    outputs=("12.5", "Mug"),
    split="held_out",
    source="shop",
    script={"requests": [{"kind": "cancel", "then": None}], "eager": True},
    expert_turns=6,
    assertions=("The agent stays polite.",),
    persona="terse",
    difficulty=9,
)


def full_trajectory():
    """Every field away from its default."""
    return Trajectory(
        task=TASK,
        seed=2**32 - 1,
        segments=[
            Segment.forced("system", [1, 2], -1, "Be kind."),
            Segment.forced("user", [3], -1, "line\u2028break\r\n\U0001f600"),
            Segment("agent", [4, 5], [True, True], [-0.1, -1.5e-8], 0, "<think>\nx</think>", "Hi",
                    [Call("think", {}), Call("look", {"a": [1]})], "x", "y", {"malformed": "x"},
                    forgotten=1, forgotten_after=1),
            Segment.forced("tool", [5, 6], 0, "Error: no", error=True, wrote=False, request=0),
            Segment("agent", [7], [True], [float(np.float32(-1 / 3))], 1, "Done."),
        ],
        stop_reason="max_turns",
        success=False,
        outputs_found=False,
        diff=["orders #W1 status: 'pending' -> 'cancelled'"],
        gold_diff=["x"],
        turn_scores=[0, -1],
        turn_minors=[True, False],
        judge_notes=["reads", "claims"],
        reward=-2.5,
        reward_parts={"terminal": 0.0, "turns": 2.5, "major": -5.0},
        seconds={"episode": 0.25},
        advantages=[[0.5, -0.5], [1.25]],
    )


def test_trajectory_round_trip_loses_nothing():
    trajectory = full_trajectory()
    line = trajectory.to_json_line()
    again = Trajectory.from_json_line(line)
    assert again == trajectory
    assert again.to_json_line() == line
    for before, after in zip(trajectory.arrays(), again.arrays(), strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype


def test_a_line_is_one_line_of_ascii():
    line = full_trajectory().to_json_line()
    assert len(line.splitlines()) == 1
    assert line.isascii()


@pytest.mark.parametrize("success, scores, reward", [(None, None, None), (True, [], 0.0)])
def test_missing_stays_missing(success, scores, reward):
    # "The judge abstained" must not come back as "no turns", nor "broken" as "failed".
    trajectory = full_trajectory()
    trajectory.success, trajectory.turn_scores, trajectory.reward = success, scores, reward
    again = Trajectory.from_json_line(trajectory.to_json_line())
    assert again.success is success
    assert again.turn_scores == scores and (again.turn_scores is None) == (scores is None)
    assert again.reward == reward and (again.reward is None) == (reward is None)


def test_a_record_from_before_there_were_minor_turns_is_read():
    data = json.loads(full_trajectory().to_json_line())
    del data["turn_minors"]
    again = Trajectory.from_json_line(json.dumps(data))
    assert again.turn_minors is None and again.turn_scores == [0, -1]


def test_minors_count_where_the_scores_do():
    trajectory = full_trajectory()
    assert (trajectory.scores, trajectory.minors) == ([0, -1], [True, False])
    trajectory.counted = False
    assert trajectory.scores is None and trajectory.minors is None


def clip_of(seed):
    rng = np.random.default_rng(seed)
    return (rng.integers(-9000, 9000, 700) / 32768).astype(np.float32)


def spoken_trajectory():
    """The user's first message and its answer are spoken, one placeholder a token 50."""
    trajectory = full_trajectory()
    first, answer = trajectory.segments[1], trajectory.segments[3]
    first.token_ids, first.sampled, first.log_probs = [3, 50, 50, 4], [False] * 4, [0.0] * 4
    first.sound = Sound(1, 2, clip_of(0))
    answer.token_ids, answer.sound = [50, 6], Sound(0, 1, clip_of(1))
    return trajectory


def test_sound_round_trips_by_the_names_of_its_clips():
    trajectory = spoken_trajectory()
    clips = {clip_name(s.clip): s.clip for s in trajectory.sounds()}
    line = trajectory.to_json_line()
    again = Trajectory.from_json_line(line, clips.__getitem__)
    assert again == trajectory and again.to_json_line() == line
    assert len(line) < 3000  # the samples are not in it
    other = dict.fromkeys(clips, clip_of(2))
    assert Trajectory.from_json_line(line, other.__getitem__) != trajectory
    with pytest.raises(ValueError, match=r"has sound, \w{24}\.flac"):
        Trajectory.from_json_line(line)


def test_text_names_no_sound():
    assert "sound" not in full_trajectory().to_json_line()


def test_sounds_are_placed_in_the_whole_sequence():
    trajectory = spoken_trajectory()
    ids = trajectory.arrays()[0]
    assert [(s.first, s.tokens) for s in trajectory.sounds()] == [(3, 2), (8, 1)]
    for sound in trajectory.sounds():
        assert set(ids[sound.first : sound.first + sound.tokens]) == {50}
    trajectory.segments[1].empty()
    assert [(s.first, s.tokens) for s in trajectory.sounds()] == [(4, 1)]


def test_sampled_marks_come_back_as_booleans():
    again = Trajectory.from_json_line(full_trajectory().to_json_line())
    assert all(type(mark) is bool for s in again.segments for mark in s.sampled)


def test_arrays_of_the_whole_sequence():
    ids, sampled, log_probs = full_trajectory().arrays()
    assert ids.tolist() == [1, 2, 3, 4, 5, 5, 6, 7]
    assert sampled.tolist() == [False, False, False, True, True, False, False, True]
    np.testing.assert_allclose(log_probs, [0, 0, 0, -0.1, -1.5e-8, 0, 0, -1 / 3], rtol=1e-6)
    assert (ids.dtype, sampled.dtype, log_probs.dtype) == (np.int32, bool, np.float32)


def test_turns_are_the_agents_segments():
    trajectory = full_trajectory()
    assert [s.turn for s in trajectory.turns] == [0, 1]
    assert trajectory.num_tokens == 8


def test_a_forced_segment_shares_no_list_with_its_maker():
    ids = [1, 2]
    segment = Segment.forced("user", ids, 0, "")
    ids.append(3)
    assert segment.token_ids == [1, 2]
    assert segment.sampled == [False, False] and segment.log_probs == [0.0, 0.0]


def test_task_round_trip_loses_nothing():
    again = Task.from_json(json.loads(json.dumps(TASK.to_json())))
    assert again == TASK
    assert isinstance(again.gold_calls, tuple) and isinstance(again.outputs, tuple)


def test_a_task_from_before_there_were_kinds_is_a_tool_task():
    data = TASK.to_json()
    del data["kind"]
    assert Task.from_json(data) == TASK and TASK.kind == "tool"
    maths = Task.from_json({**data, "kind": "maths"})
    assert maths.kind == "maths" and Task.from_json(maths.to_json()) == maths
    with pytest.raises(ValueError, match="kind 'chess': choose one of"):
        Task.from_json({**data, "kind": "chess"})


def test_a_record_from_before_personas_and_difficulty_is_read():
    data = {k: v for k, v in TASK.to_json().items() if k not in ("persona", "difficulty")}
    task = Task.from_json(data)
    assert (task.persona, task.difficulty) == ("", 0)
    assert task.script == TASK.script


@pytest.mark.parametrize("change, named", [
    ({"surprise": 1}, "unknown fields ['surprise']"),
    ({"split": None}, "missing fields ['split']"),
])
def test_a_task_with_other_fields_names_them(change, named):
    data = TASK.to_json()
    for key, value in change.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    with pytest.raises(ValueError) as caught:
        Task.from_json(data)
    assert named in str(caught.value)


def test_the_stop_reasons_are_those_of_the_contract():
    assert set(STOP_REASONS) == {
        "user_stop", "answered", "transfer", "max_turns", "max_messages", "max_errors",
        "max_tokens", "max_seconds", "malformed", "infrastructure_error",
    }


def test_numbers_that_are_none_are_words_in_the_line_and_numbers_again():
    trajectory = full_trajectory()
    agent = trajectory.segments[2]
    agent.log_probs = [float("-inf"), float("nan")]
    agent.calls = [Call("calculate", {"expression": float("nan")})]
    line = trajectory.to_json_line()
    json.loads(line, parse_constant=pytest.fail)
    again = Trajectory.from_json_line(line)
    assert again.segments[2].log_probs[0] == float("-inf")
    assert np.isnan(again.segments[2].log_probs[1])
    assert again.segments[2].calls[0].kwargs == {"expression": "NaN"}
    assert again.to_json_line() == line
