"""An answer is used as it stands or not at all."""

import json

import pytest

from tarl_jax.judge.answer import (
    Grades,
    UserFaults,
    read,
    read_faults,
    read_outcomes,
    without_knock_ons,
)
from tarl_jax.judge.rules import Judgement


def answer(*scores, **changes):
    turns = [{"turn": i, "reason": f"r{i}", "score": s} for i, s in enumerate(scores)]
    for entry in turns:
        entry.update(changes)
    return json.dumps({"turns": turns})


def test_a_good_answer():
    notes = ["r0", "r1", "r2"]
    assert read(answer(1, 0, -1, minor=False), 3) == Judgement([1, 0, -1], notes, [False] * 3)
    assert read(answer(0, 0, 0, minor=True), 3) == Judgement([0, 0, 0], notes, [True] * 3)


def test_an_answer_from_before_there_were_minor_turns_is_read():
    assert read(answer(1, 0, -1), 3) == Judgement([1, 0, -1], ["r0", "r1", "r2"], [False] * 3)


@pytest.mark.parametrize(("text", "told"), [
    ("Sure! Here is the answer you asked for.", "Invalid JSON"),
    (answer(1, 0)[:-9], "Invalid JSON"),
    ("[]", "there are 0, numbered []"),
    ("7", "valid dictionary"),
    ("{}", "turns: Field required"),
    (answer(1), "from 0 to 1, in order; there are 1, numbered [0]"),
    (answer(1, 1, 1), "there are 3, numbered [0, 1, 2]"),
    (answer(1, 0, turn=1), "numbered [1, 1]"),
    (answer(1, 2), "turns.1.score"),
    (answer(1, -2), "turns.1.score"),
    (answer(1, 0.5), "turns.1.score"),
    (answer(1, "one"), "turns.1.score"),
    (answer(1, "+2"), "turns.1.score"),
    (answer(1, 1e99), "turns.1.score"),
    (answer(1, 0).replace("1,", "NaN,"), "Invalid JSON"),
    (f"Either {answer(1, 0)} or {answer(0, 0)}", "several answers"),
    (f"<think>{answer(1, 0)}", "unfinished <think>"),
    (f"Like {{{answer(1)}", "numbered [0]"),
    ("[" * 100_000, "Invalid JSON"),
    (answer(1, True), "turns.1.score"),
    (answer(1, None), "turns.1.score"),
    (answer(1, 0, reason=None), "turns.0.reason"),
    (answer(0, 1, minor=True), "turns.1: Value error, minor is true with a score of 1: only"),
    (answer(0, -1, minor=True), "minor is true with a score of -1"),
    (answer(0, 0, minor="yes"), "turns.0.minor"),
    (answer(0, 0, minor=1), "turns.0.minor"),
])
def test_another_answer_is_refused_with_what_is_wrong(text, told):
    with pytest.raises(ValueError) as caught:
        read(text, 2)
    assert told in str(caught.value)
    assert "pydantic.dev" not in str(caught.value)


def test_the_schema_is_closed_and_names_the_scores():
    schema = Grades.model_json_schema()
    grade = schema["$defs"]["Grade"]
    assert schema["additionalProperties"] is grade["additionalProperties"] is False
    # A strict schema asks for all that it names, and has no defaults.
    assert grade["required"] == ["turn", "reason", "score", "minor"]
    assert not any("default" in field for field in grade["properties"].values())
    # Several servers refuse a schema with bounds.
    assert not {"minimum", "maximum"} & set(grade["properties"]["score"])


GOOD = answer(1, 0)


@pytest.mark.parametrize("text", [
    f"```json\n{GOOD}\n```", f"```\n{GOOD}\n```", f"~~~JSON\n{GOOD}\n~~~",
    f"\n{GOOD}\n", f"\ufeff{GOOD}",
    f"<think>\nTurn {{0}} is fine: {answer(-1, 0)}.\n</think>\n\n{GOOD}",
    f"Turn {{0}} is fine.\n</think>\n\n{GOOD}",
    f"Turn [0] is {{fine}}.\n\n{GOOD}\n\nThat is all.",
    f"{GOOD}\n{GOOD}", json.dumps(json.loads(GOOD)["turns"]),
    f"Here: {json.dumps(json.loads(GOOD)['turns'])}", json.dumps(json.loads(GOOD), indent=4),
    answer(1, 0, mood="good"), json.dumps(json.loads(GOOD) | {"summary": "ok"}),
    GOOD.replace('"score": 1', '"score": +1'), GOOD.replace('"score": 1', '"score": "+1"'),
    answer("1", "0"), answer(1.0, 0.0), answer("1.0", " 0 "), answer("+1", "-0"),
    answer(1, 0, minor="false"), answer(1, 0, minor=None),
    GOOD.replace('"turn": 0', '"turn": "0"').replace('"turn": 1', '"turn": 1.0'),
])
def test_an_answer_is_read_whatever_stands_around_it(text):
    found = read(text, 2)
    assert (found.scores, found.notes) == ([1, 0], ["r0", "r1"])
    assert [type(score) for score in found.scores] == [int, int]


def test_what_a_reason_says_is_no_grade():
    reason = 'says "score": +1, {"turns": []} and ```'
    text = json.dumps({"turns": [{"turn": 0, "reason": reason, "score": 0}]})
    assert read(f"```json\n{text}\n```", 1) == Judgement([0], [reason], [False])


@pytest.mark.parametrize(("scores", "majors", "kept", "dropped"), [
    ([1, -1, 0, -1, -1], 1, [1, -1, 0, 0, 0], 2),
    ([1, -1, 0, -1, -1], 2, [1, -1, 0, -1, 0], 1),
    ([-1], 1, [-1], 0),
    ([1, 0], 1, [1, 0], 0),
    ([], 1, [], 0),
])
def test_knock_ons(scores, majors, kept, dropped):
    found, count = without_knock_ons(Judgement(scores, ["n"] * len(scores)), majors)
    assert (found.scores, count) == (kept, dropped)
    assert sum("knock-on" in note for note in found.notes) == dropped
    assert found.minors == [False] * len(scores)


def test_a_knock_on_is_not_minor_and_leaves_the_others_as_they_are():
    minors = [True, False, False, False]
    found, _ = without_knock_ons(Judgement([0, -1, -1, 0], ["n"] * 4, minors), 1)
    assert found.scores == [0, -1, 0, 0] and found.minors == minors


LATE = {"turn": 1, "kind": "early_end", "reason": "left"}


@pytest.mark.parametrize("text", [
    json.dumps({"faults": [LATE]}),
    json.dumps([LATE]),
    json.dumps({"faults": [{**LATE, "turn": "1", "kind": "Early end", "sure": True}]}),
    f"<think>early?</think>\n```json\n{json.dumps({'faults': [LATE]})}\n```",
    f"It left: {json.dumps({'faults': [{**LATE, 'turn': 1.0}]})} That is all.",
])
def test_an_answer_about_a_user_is_read_in_any_wrapping(text):
    assert read_faults(text, 2) == ["early_end: left"]


def test_a_user_without_faults():
    assert read_faults('{"faults": []}', 2) == read_faults("[]", 2) == []


@pytest.mark.parametrize(("text", "told"), [
    ("Nothing wrong.", "Invalid JSON"),
    ("{}", "faults: Field required"),
    (json.dumps({"faults": [{**LATE, "kind": "rude"}]}), "faults.0.kind"),
    (json.dumps({"faults": [{**LATE, "turn": 2}]}), "turn 2: there are those from -1 to 1"),
    (json.dumps({"faults": [{**LATE, "turn": -2}]}), "turn -2"),
    (json.dumps({"faults": [{"turn": 0, "reason": "?"}]}), "faults.0.kind"),
    (json.dumps({"faults": None}), "faults: Input should be a valid list"),
])
def test_another_answer_about_a_user_is_refused(text, told):
    with pytest.raises(ValueError) as caught:
        read_faults(text, 2)
    assert told in str(caught.value)


def test_the_form_of_an_answer_about_a_user_is_strict():
    schema = UserFaults.model_json_schema()
    entry = schema["$defs"]["UserFault"]
    assert entry["required"] == ["turn", "kind", "reason"]
    assert entry["properties"]["kind"]["enum"] == ["contradicts", "leaks", "early_end", "tool_text"]
    assert schema["additionalProperties"] is entry["additionalProperties"] is False


def outcomes(*entries):
    return json.dumps({"results": [
        {"expectedOutcome": text, "reasoning": "r", "metExpectation": met} for text, met in entries
    ]})


@pytest.mark.parametrize(("text", "found"), [
    (outcomes(("A.", True), ("B.", False)), [True, False]),
    (outcomes(("B.", False), ("A. ", True)), [True, False]),  # in another order: by their words
    (outcomes(("the first", "true"), ("the second", "False")), [True, False]),
    (f"<think>{{}}</think>```json\n{outcomes(('A.', True), ('B.', True))}\n```", [True, True]),
    (json.dumps(json.loads(outcomes(("A.", False), ("B.", True)))["results"]), [False, True]),
])
def test_outcomes_are_read(text, found):
    assert read_outcomes(text, ("A.", "B.")) == found


@pytest.mark.parametrize(("text", "told"), [
    (outcomes(("A.", True)), "each of the 2 expected outcomes; there are 1"),
    (outcomes(("A.", None), ("B.", True)), "metExpectation"),
    (outcomes(("A.", "perhaps"), ("B.", True)), "metExpectation"),
    ("Both are met.", "Invalid JSON"),
])
def test_outcomes_that_are_not_told_are_not_guessed(text, told):
    with pytest.raises(ValueError, match=told):
        read_outcomes(text, ("A.", "B."))
