"""Faults of users that language models play, by hand: each kind, and what is none."""

import dataclasses

import pytest

from tarl_jax.judge.user_rules import decidable, faults
from tarl_jax.types import Call, Segment, Task, Trajectory

TASK = Task(
    "tau2/retail/1", "ada_1",
    "You are Ada Ito in zip code 19122. You received your order #W2378156 and wish to return the"
    " lamp 4900661478. You do not remember your email address. You are terse.",
    (Call("return_delivered_order_items",
          {"order_id": "#W2378156", "item_ids": ["4900661478"], "payment_method_id": "paypal_1"}),),
    (), "train", "tau2", None, 3,
)
ASK = "May I have your name and zip code?"
PROPOSE = "Return item 4900661478 of order #W2378156 to paypal_1? (yes/no)"
WISH = "I want to return the lamp of order #W2378156."
STOP = "###STOP###"


def episode(*said, success=False, task=TASK, **changes):
    """said: by turns the user's and the agent's words, a Call for a call; the user begins."""
    segments, turn = [], -1
    for what in said:
        if isinstance(what, Call):
            turn += 1
            segments.append(Segment("agent", [], [], [], turn, "", calls=[what]))
            segments.append(Segment.forced("tool", [], turn, '{"status": "delivered"}'))
        elif isinstance(what, dict):
            segments[-1].info |= what
        elif what.startswith("A: "):
            turn += 1
            segments.append(Segment("agent", [], [], [], turn, what[3:], what[3:]))
        else:
            segments.append(Segment.forced("user", [], turn, what))
    stop = "user_stop" if "###" in segments[-1].text else "max_turns"
    return Trajectory(task, 0, segments, changes.pop("stop", stop), success, **changes)


def kinds(*said, **how):
    return [fault.kind for fault in faults(episode(*said, **how))]


@pytest.mark.parametrize("said", [
    [WISH, f"A: {ASK}", "Ada Ito, 19122.", f"A: {PROPOSE}", "Yes, please.", "A: Done.", STOP],
    # It believes a false "done", and a refusal; it gives up on an agent that goes in circles.
    [WISH, "A: It has been returned.", f"Thanks. {STOP}"],
    [WISH, "A: I am sorry, that is not possible.", f"Too bad. {STOP}"],
    [WISH, f"A: {ASK}", "Ada Ito, 19122.", f"A: {ASK}", f"I told you. {STOP}"],
    [WISH, f"A: {ASK}", "19122.", Call("transfer_to_human_agents", {}), "A: Wait?", STOP],
    # It repeats what the agent has said, and computes; dates and prices are no inventions.
    [WISH, "A: Is it order #W555, ticket 778899?", "No, not #W555. 778899 is not mine.",
     "A: It was $1,234.50?", "Yes, $12345, on 2024-05-20 at 10:30.", "A: Sorry, I cannot.", STOP],
])
def test_what_is_no_fault(said):
    assert kinds(*said) == []


@pytest.mark.parametrize(("said", "kind"), [
    ([WISH, f"A: {ASK}", STOP], "early_end"),
    ([WISH, "A: One moment.", f"Thank you! {STOP}"], "early_end"),
    (["Hello.", "A: Is there anything else?", STOP], "early_end"),  # it never asked
    ([WISH, f"A: {PROPOSE}", f"Yes. {STOP}"], "early_end"),
    ([WISH.replace("#W2378156", "#W1111111")], "contradicts"),
    ([WISH, f"A: {ASK}", "My zip code is 90210."], "contradicts"),
    ([WISH, f"A: {ASK}", "ada.ito@example.com"], "contradicts"),
    ([WISH, f"A: {ASK}", "I am Bob Smith, 19122."], "contradicts"),
    ([WISH, f"A: {PROPOSE}", "No, thanks.", "A: Then what?", "Hm."], "contradicts"),
    (["You are Ada Ito in zip code 19122. You received it."], "leaks"),
    ([WISH, f"A: {ASK}", "Well. You are terse."], "leaks"),
    ([WISH, f"A: {ASK}", "My instructions say Ada Ito, 19122."], "leaks"),
    ([WISH, f"A: {ASK}", '{"name": "find_user_id_by_name_zip", "arguments": {}}'], "tool_text"),
    ([WISH, f"A: {ASK}", "<tool_call>x</tool_call>"], "tool_text"),
    ([WISH, f"A: {ASK}", "Please call return_delivered_order_items now."], "tool_text"),
    ([WISH, f"A: {ASK}", "get_user_details(user_id='ada_1')"], "tool_text"),
])
def test_each_kind(said, kind):
    assert kind in kinds(*said)


def test_an_early_end_is_none_where_all_was_done():
    said = [WISH, f"A: {ASK}", STOP]
    assert kinds(*said, success=True) == []
    done = [WISH, Call("return_delivered_order_items", {}), {"fulfilled": [0]}, "A: Wait.", STOP]
    assert kinds(*done) == []  # what failed is something else, which the agent did


def test_what_a_users_own_phone_shows_it_may_say():
    phone = {"user_calls": [{"name": "look", "kwargs": {}, "output": "Code 4711-99812"}]}
    said = ["My phone is slow.", "A: Read me the code.", "It is 4711-99812."]
    assert kinds(*said) == ["contradicts"]
    assert kinds(*said, phone) == []


def test_without_gold_calls_some_kinds_are_left_to_a_judge():
    task = dataclasses.replace(TASK, gold_calls=())
    asked = episode(WISH, f"A: {ASK}", STOP, task=task)
    assert not decidable(asked, None) and faults(asked) == []
    assert decidable(episode(WISH), None)
    assert kinds("<tool_call>", task=task) == ["tool_text"]
