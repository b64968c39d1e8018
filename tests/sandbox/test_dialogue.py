"""The rules of an episode: when it ends, what the agent sees, and what it cannot do."""

import json

import pytest

from tarl_jax.config import ShopConfig
from tarl_jax.sandbox import phrases, shop
from tarl_jax.sandbox.dialogue import TAU2_ENDS, Dialogue, Ends, Malformed
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.shop_requests import Request
from tarl_jax.sandbox.user import Reply, ScriptedUser
from tarl_jax.types import Call, Task

DOMAIN = retail_domain(shop.make_shop(ShopConfig()))
USER_ID, USER = next(
    (i, u) for i, u in DOMAIN.database["users"].items()
    if any(DOMAIN.database["orders"][o]["status"] == "pending" for o in u["orders"])
)
ORDER_ID = next(o for o in USER["orders"] if DOMAIN.database["orders"][o]["status"] == "pending")
READ = Call("get_order_details", {"order_id": ORDER_ID})
CANCEL = Call("cancel_pending_order", {"order_id": ORDER_ID, "reason": "no longer needed"})
TRANSFER = Call("transfer_to_human_agents", {"summary": "the user needs help"})
REQUEST = Request("cancel", ORDER_ID, reason="no longer needed")
SCRIPT = Script("Ada", "Ito", "a@b", "1", "email", False, (REQUEST, REQUEST))
TASK = Task("t-1", USER_ID, "", (CANCEL,), (), "train", "hand", SCRIPT.to_json(), 5)


def dialogue(**options):
    return Dialogue(TASK, DOMAIN, ScriptedUser(TASK, 0), **options)


def test_a_call_is_answered_by_the_tool():
    d = dialogue()
    observation = d.act(READ)
    assert observation.role == "tool" and observation.stop_reason is None
    assert json.loads(observation.text)["order_id"] == ORDER_ID
    assert observation.info == {"error": False, "wrote": False, "request": 0}


def test_a_message_is_answered_by_the_user():
    observation = dialogue().act("May I have your email?")
    assert (observation.role, observation.stop_reason) == ("user", None)
    assert observation.info == {"intent": "ask_email", "request": 0, "event": "identified"}


def test_the_opening_is_the_users():
    assert ORDER_ID in dialogue().opening


def test_writes_are_marked_and_errors_are_not_writes():
    d = dialogue()
    assert d.act(CANCEL).info == {
        "error": False, "wrote": True, "request": 0, "fulfilled": [0]}
    again = d.act(CANCEL)
    assert again.text.startswith("Error: ")
    assert again.info == {"error": True, "wrote": False, "request": 0}


def test_facts_name_the_request_under_discussion():
    d = dialogue()
    assert d.act("Done. Anything else?").info["request"] == 0
    assert d.act(READ).info["request"] == 1


@pytest.mark.parametrize("action", [READ, "Hello!", Malformed("not JSON")])
def test_the_limit_of_turns_ends_it(action):
    d = dialogue(max_turns=3)
    stops = [d.act(action).stop_reason for _ in range(3)]
    assert stops == [None, None, "max_turns"]
    assert d.turns == 3


def test_an_end_on_the_last_turn_keeps_its_own_reason():
    assert dialogue(max_turns=1).act(TRANSFER).stop_reason == "transfer"
    d = dialogue(max_turns=2)
    d.act("Done.")
    assert d.act("Done.").stop_reason == "user_stop"


def test_a_transfer_ends_it():
    observation = dialogue().act(TRANSFER)
    assert observation.stop_reason == "transfer"
    assert observation.text == "Transfer successful"


def test_a_transfer_that_is_rejected_does_not():
    observation = dialogue().act(Call("transfer_to_human_agents", {}))
    assert observation.stop_reason is None and observation.info["error"]


def test_by_tau2s_rules_a_transfer_ends_nothing_and_ten_refusals_do():
    d = dialogue(ends=TAU2_ENDS, max_turns=200)
    assert d.act(TRANSFER).stop_reason is None
    wrong = Call("get_order_details", {"order_id": "none"})
    stops = [d.act(action).stop_reason for action in [wrong] * 5 + [READ] + [wrong] * 5]
    assert stops == [None] * 10 + ["max_errors"]


def test_two_hundred_messages_are_all_by_tau2s_rules():
    d = dialogue(ends=TAU2_ENDS, max_turns=200)
    stops = [d.act(READ).stop_reason for _ in range(100)]  # the opening, and two a turn
    assert stops == [None] * 99 + ["max_messages"]


def test_the_two_hundredth_message_is_not_answered():
    d = dialogue(ends=Ends(messages=4), max_turns=0)
    assert d.act(READ).stop_reason is None
    observation = d.act("Anything else?")  # the fourth, after the opening, a call and its answer
    assert (observation.stop_reason, observation.text) == ("max_messages", "")


def test_turns_without_a_limit():
    d = dialogue(max_turns=0)
    assert [d.act(READ).stop_reason for _ in range(150)] == [None] * 150


@pytest.mark.parametrize("word", ["###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###"])
def test_each_of_the_users_words_ends_it(word):
    assert Reply(f"Bye. {word}", {}).stop and not Reply("Bye.", {}).stop


def test_the_users_stop_ends_it():
    d = dialogue()
    assert d.act("Done.").stop_reason is None
    observation = d.act("Done.")
    assert observation.stop_reason == "user_stop" and "###STOP###" in observation.text


def test_the_agent_cannot_stop_by_writing_the_users_word():
    assert dialogue().act("###STOP###").stop_reason is None


@pytest.mark.parametrize("last", [TRANSFER, "Done."])
def test_after_the_end_nothing_can_be_done(last):
    d = dialogue()
    d.act("Done.")
    d.act(last)
    for action in (READ, "Hello!", Malformed("x")):
        with pytest.raises(RuntimeError, match="'t-1': the episode has ended"):
            d.act(action)
    assert d.state.changes() == {}


def test_a_malformed_turn_is_told_so_and_costs_a_turn():
    d = dialogue()
    observation = d.act(Malformed("the tool call is not valid JSON"))
    assert observation.role == "tool"
    assert observation.text == "Error: the tool call is not valid JSON"
    assert observation.info["error"] and observation.info["malformed"]
    assert d.turns == 1


def test_malformed_turns_do_not_use_up_the_users_patience():
    d = dialogue()
    for _ in range(6):
        d.act(Malformed("x"))
    assert d.act("Hello!").stop_reason is None


def test_brief_writes_show_the_new_status_only():
    assert json.loads(dialogue(brief_writes=True).act(CANCEL).text) == {"status": "cancelled"}
    whole = json.loads(dialogue(brief_writes=False).act(CANCEL).text)
    assert whole["status"] == "cancelled" and whole["items"]


def test_brief_writes_shorten_neither_reads_nor_errors():
    brief, whole = dialogue(brief_writes=True), dialogue()
    for action in (READ, Call("cancel_pending_order", {"order_id": "#W0", "reason": "x"})):
        assert brief.act(action).text == whole.act(action).text
    assert brief.act(CANCEL).text != whole.act(CANCEL).text
    assert brief.act(CANCEL).text == whole.act(CANCEL).text  # refused now


def test_a_record_without_a_status_is_shown_whole():
    address = {"address1": "Oak Street", "address2": "", "city": "Denver", "state": "CO",
               "country": "USA", "zip": "801"}
    observation = dialogue(brief_writes=True).act(
        Call("modify_user_address", {"user_id": USER_ID, **address}))
    assert json.loads(observation.text)["email"] == USER["email"]


def test_dialogues_share_no_state():
    one, two = dialogue(), dialogue()
    one.act(CANCEL)
    assert json.loads(two.act(READ).text)["status"] == "pending"
    assert DOMAIN.database["orders"][ORDER_ID]["status"] == "pending"


def test_a_user_without_a_script_can_play_too():
    class Talker:
        def opening(self):
            return "Hi."

        def reply(self, message):
            return Reply("That is all. ###STOP###", {})

    d = Dialogue(TASK, DOMAIN, Talker())
    assert "request" not in d.act(READ).info
    assert d.act("Anything else?").stop_reason == "user_stop"


class Leaver:
    """Says one thing, and leaves."""

    def __init__(self, text):
        self.text = f"{text} ###STOP###"

    def opening(self):
        return "Hi."

    def reply(self, message):
        return Reply(self.text, {"calls": 1})


@pytest.mark.parametrize("yes", [
    "Yes, please go ahead.", "Sure, thanks.", "Great, please proceed with it.", "I confirm.", "YES",
    "That works for me, bye.", "Thank you. Please do it.", "OK",
])
def test_a_yes_and_goodbye_in_one_message_waits_for_what_was_agreed_on(yes):
    d = Dialogue(TASK, DOMAIN, Leaver(yes))
    agreed = d.act("I cancel it once you say yes.")
    assert (agreed.text, agreed.stop_reason, agreed.info) == (yes, None, {"calls": 1})
    assert d.act(READ).stop_reason is None
    assert d.act(CANCEL).info["wrote"]
    last = d.act("Done.")
    assert (last.role, last.text, last.stop_reason) == ("user", "###STOP###", "user_stop")
    assert Dialogue(TASK, DOMAIN, Leaver(yes), stop_waits=False).act("?").stop_reason == "user_stop"


@pytest.mark.parametrize("bye", [
    *phrases.USER_BYE, "", "Thanks, bye.", "No, I do not confirm.", "Please do not do it.",
    "No, do it later, never mind.", "Yes, but I don't want it now.", "Eyes proceeded",
])
def test_another_goodbye_ends_at_once(bye):
    assert Dialogue(TASK, DOMAIN, Leaver(bye)).act("Shall I?").stop_reason == "user_stop"


def test_an_episode_that_waits_ends_by_its_turns():
    d = Dialogue(TASK, DOMAIN, Leaver("Yes."), max_turns=2)
    assert d.act("Shall I?").stop_reason is None
    assert d.act(CANCEL).stop_reason == "max_turns"


# ---- several calls in a turn -----------------------------------------------------------------


def test_calls_of_one_turn_are_made_in_order():
    d = dialogue()
    found = d.call([READ, CANCEL, CANCEL])
    assert [o.info["wrote"] for o in found] == [False, True, False]
    assert [o.info["error"] for o in found] == [False, False, True]
    assert d.turns == 1 and all(o.role == "tool" and not o.stop_reason for o in found)


def test_nothing_is_made_behind_a_call_that_ends_the_episode():
    d = dialogue()
    found = d.call([READ, TRANSFER, CANCEL])
    assert [o.stop_reason for o in found] == [None, "transfer"]
    with pytest.raises(RuntimeError, match="ended already"):
        d.call([READ])


def test_a_turn_of_several_calls_is_one_turn_and_as_many_answers():
    d = dialogue(max_turns=2)
    assert d.call([READ, READ])[-1].stop_reason is None
    assert [o.stop_reason for o in d.call([READ, READ])] == [None, "max_turns"]
    # An opening, then a message of three calls and their answers: 1 + 4 messages.
    d = dialogue(ends=Ends(messages=5))
    assert [o.stop_reason for o in d.call([READ] * 3)] == [None, None, "max_messages"]
    d = dialogue(ends=Ends(messages=6))
    assert d.call([READ] * 3)[-1].stop_reason is None
    wrong = Call("get_order_details", {"order_id": "none"})
    d = dialogue(ends=Ends(errors=2))
    assert [o.stop_reason for o in d.call([wrong] * 4)] == [None, "max_errors"]
