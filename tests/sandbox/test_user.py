"""The scripted user: what it says yes to, when it changes its mind, and when it goes away."""

import dataclasses

import pytest

from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.shop_phrases import PHRASES
from tarl_jax.sandbox.shop_requests import DENIALS, KINDS, Request
from tarl_jax.sandbox.user import PATIENCE, ScriptedUser
from tarl_jax.types import Task

CANCEL = Request("cancel", "#W100", reason="no longer needed")
RETURN = Request("return", "#W200", "credit_card_11", item="red Mug", item_id="101",
                 product_id="10")
EXCHANGE = Request("exchange", "#W200", "credit_card_11", item="Mug", item_id="101",
                   product_id="10", option="blue", new_item_id="102")
MODIFY = dataclasses.replace(EXCHANGE, kind="modify", order_id="#W100")
PAYMENT = Request("payment", "#W100", "paypal_13", method="paypal")
DROPS = dataclasses.replace(CANCEL, change="drop")
PREFERS = dataclasses.replace(
    EXCHANGE, change="option",
    then=dataclasses.replace(EXCHANGE, option="green", new_item_id="103"))
MEANT = dataclasses.replace(
    RETURN, change="item", then=dataclasses.replace(RETURN, item="Lamp", item_id="202"))
# What the clerk says to propose each.
PROPOSALS = {
    "cancel": "Cancel #W100, reason: no longer needed? (yes/no)",
    "return": "Return the red Mug of #W200? (yes/no)",
    "exchange": "Exchange the Mug of #W200 for blue? (yes/no)",
    "modify": "Change the Mug of #W100 to blue? (yes/no)",
    "payment": "Pay #W100 with paypal_13? (yes/no)",
}
REQUESTS = {r.kind: r for r in (CANCEL, RETURN, EXCHANGE, MODIFY, PAYMENT)}
DENY = "Sorry, I cannot do that: the order is pending. Anything else?"
DONE = "Done. Anything else?"
LEAVE = "I leave it as it is. Anything else?"


def make_user(*requests, seed=0, identify="email", eager=False):
    script = Script("Ada", "Ito", "ada10@mail.com", "801", identify, eager, requests)
    task = Task("t", "ada_ito_10", "", (), (), "train", "hand", script.to_json(), 1)
    return ScriptedUser(task, seed)


def events(user, *messages):
    return [user.reply(message).info["event"] for message in messages]


def test_a_task_without_a_script_is_refused():
    task = Task("t-9", "u", "", (), (), "train", "hand", None, 1)
    with pytest.raises(ValueError, match="'t-9' has no script"):
        ScriptedUser(task, 0)


@pytest.mark.parametrize("seed", range(8))
def test_the_opening_says_what_it_wants_and_only_an_eager_user_who_it_is(seed):
    quiet, eager = make_user(EXCHANGE, seed=seed), make_user(EXCHANGE, seed=seed, eager=True)
    for text in (quiet.opening(), eager.opening()):
        assert all(word in text for word in ("#W200", "Mug", "blue"))
        assert "102" not in text  # ids of variants are for the clerk to find
    assert "ada10" not in make_user(EXCHANGE, seed=seed).opening()
    assert "ada10@mail.com" in make_user(EXCHANGE, seed=seed, eager=True).opening()
    by_name = make_user(EXCHANGE, seed=seed, eager=True, identify="name").opening()
    assert "Ada Ito" in by_name and "801" in by_name and "ada10" not in by_name


def test_the_seed_decides_the_words():
    texts = [make_user(CANCEL, seed=seed).opening() for seed in range(12)]
    assert texts == [make_user(CANCEL, seed=seed).opening() for seed in range(12)]
    assert len(set(texts)) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_yes_to_what_it_wants(kind):
    user = make_user(REQUESTS[kind])
    reply = user.reply(PROPOSALS[kind])
    assert reply.info == {"intent": "propose", "request": 0, "event": "confirmed"}
    assert reply.text in phrases.USER_YES
    assert user.index == 0  # a yes is not the end of it


@pytest.mark.parametrize("kind, proposal", [
    ("cancel", "Cancel #W999, reason: no longer needed? (yes/no)"),
    ("cancel", "Cancel #W100, reason: ordered by mistake? (yes/no)"),
    ("cancel", "Change #W100, reason: no longer needed? (yes/no)"),
    ("cancel", "#W100, no longer needed? (yes/no)"),
    ("cancel", "Cancel or return #W100, no longer needed? (yes/no)"),
    ("return", "Return the blue Mug of #W200? (yes/no)"),
    ("return", "Return the red Mug of #W201? (yes/no)"),
    ("exchange", "Exchange the Mug of #W200 for green? (yes/no)"),
    ("exchange", "Exchange the Lamp of #W200 for blue? (yes/no)"),
    ("exchange", "Return the Mug of #W200 for blue? (yes/no)"),
    ("modify", "Change the Mug of #W100 to red? (yes/no)"),
    # Naming more than it wants, so that the right one is surely among it.
    ("cancel", "Cancel #W100 and #W200, reason: no longer needed? (yes/no)"),
    ("cancel", "Cancel the Mug of #W100, reason: no longer needed? (yes/no)"),
    ("return", "Return the red Mug or the blue Mug of #W200? (yes/no)"),
    ("return", "Return the red Mug, Lamp of #W200? (yes/no)"),
    ("exchange", "Exchange the Mug of #W200 for red, blue, green, black, white? (yes/no)"),
    ("exchange", "Exchange the Mug, Lamp, Chair of #W200 for blue? (yes/no)"),
    ("exchange", "Exchange the Mug of #W200, #W201 for blue? (yes/no)"),
    ("modify", "Change the Mug of #W100 to blue, small or steel? (yes/no)"),
    ("cancel", "Cancel #W100, reason: no longer needed or ordered by mistake? (yes/no)"),
    ("payment", "Pay #W100 with paypal_13 or credit_card_11? (yes/no)"),
    ("payment", "Pay #W100 and #W101 with paypal_13? (yes/no)"),
    ("payment", "Pay #W100 with paypal_14? (yes/no)"),
    ("payment", "Pay #W101 with paypal_13? (yes/no)"),
])
def test_it_corrects_what_it_did_not_say(kind, proposal):
    user = make_user(REQUESTS[kind])
    reply = user.reply(proposal)
    assert reply.info["event"] == "repeated"
    assert REQUESTS[kind].order_id in reply.text  # it says again what it wants
    assert user.reply(PROPOSALS[kind]).info["event"] == "confirmed"


def test_words_that_name_nothing_of_the_shop_are_no_reason_to_say_no():
    user = make_user(EXCHANGE)
    polite = "Shall I exchange the Mug of order #W200 for a blue one, Ada? (yes/no)"
    assert events(user, polite) == ["confirmed"]


def test_a_yes_is_never_heard_without_the_question():
    user = make_user(CANCEL)
    assert events(user, "I will cancel #W100, no longer needed.") == ["repeated"]


def test_it_drops_a_request_when_asked_to_confirm_and_stays_with_that():
    user = make_user(DROPS)
    first = user.reply(PROPOSALS["cancel"])
    assert first.info["event"] == "changed_mind" and first.text in phrases.USER_DROP
    assert user.wish is None
    again = user.reply(PROPOSALS["cancel"])
    assert again.info["event"] == "repeated" and again.text in phrases.USER_DROP
    assert user.reply(LEAVE).info["event"] == "bye"


def test_it_changes_its_mind_once():
    user = make_user(PREFERS)
    green = PROPOSALS["exchange"].replace("blue", "green")
    reply = user.reply(PROPOSALS["exchange"])
    assert reply.info["event"] == "changed_mind"
    assert "green" in reply.text and "103" not in reply.text
    correction = user.reply(PROPOSALS["exchange"])
    assert correction.info["event"] == "repeated" and "green" in correction.text
    assert events(user, green, green) == ["confirmed", "confirmed"]


def test_it_names_the_other_item():
    user = make_user(MEANT)
    assert "Lamp" in user.reply(PROPOSALS["return"]).text
    assert events(user, "Return the Lamp of #W200? (yes/no)") == ["confirmed"]


def test_it_does_not_change_its_mind_before_the_right_proposal():
    user = make_user(PREFERS)
    assert events(user, "Exchange the Mug of #W200 for black? (yes/no)") == ["repeated"]
    assert user.wish.option == "blue"
    assert events(user, PROPOSALS["exchange"]) == ["changed_mind"]


def test_a_change_of_mind_belongs_to_its_request():
    user = make_user(DROPS, DROPS)
    proposal = PROPOSALS["cancel"]
    assert events(user, proposal, LEAVE, proposal) == ["changed_mind", "next_request",
                                                       "changed_mind"]


@pytest.mark.parametrize("answer", [DENY, DONE, LEAVE])
def test_it_believes_an_answer_and_goes_on_to_the_end(answer):
    user = make_user(CANCEL, EXCHANGE)
    reply = user.reply(answer)
    assert reply.info["event"] == "next_request" and reply.info["request"] == 0
    assert "#W200" in reply.text and not reply.stop
    last = user.reply(answer)
    assert last.info["event"] == "bye" and last.info["request"] == 1
    assert last.stop and last.text.endswith("###STOP###")
    assert user.request is None


@pytest.mark.parametrize("useless", ["Hello!", "Shall I? (yes/no)", "Your email, please?"])
def test_it_gives_up_once_its_patience_is_spent(useless):
    user = make_user(CANCEL)
    replies = [user.reply(useless) for _ in range(PATIENCE + 1)]
    assert not any(reply.stop for reply in replies[:PATIENCE])
    assert replies[-1].stop and replies[-1].info["event"] == "gave_up"


def test_patience_is_new_with_each_request():
    user = make_user(CANCEL, EXCHANGE)
    useless = ["Hello!"] * PATIENCE
    assert events(user, *useless, DONE, *useless)[-1] == "repeated"
    assert user.reply("Hello!").info["event"] == "gave_up"


def test_it_does_not_give_up_on_a_clerk_that_gets_on_with_it():
    user = make_user(PREFERS)
    green = PROPOSALS["exchange"].replace("blue", "green")
    got = events(user, "May I have your email?", PROPOSALS["exchange"], green, DONE)
    assert got == ["identified", "changed_mind", "confirmed", "bye"]


@pytest.mark.parametrize("asked", ["May I have your email?", "What is your name and zip code?"])
def test_it_answers_with_what_it_remembers(asked):
    by_email = make_user(CANCEL, identify="email").reply(asked)
    assert "ada10@mail.com" in by_email.text and by_email.info["event"] == "identified"
    by_name = make_user(CANCEL, identify="name").reply(asked)
    assert all(word in by_name.text for word in ("Ada", "Ito", "801"))
    assert "ada10" not in by_name.text


def test_what_the_clerk_says_is_understood():
    # One table of sentences on both sides: a sentence that is misread makes tasks unsolvable.
    def kind(message):
        return PHRASES.read_intent(message).kind

    assert [kind(text) for text in PHRASES.ask] == ["ask_email", "ask_email", "ask_name"]
    for name, template in PHRASES.proposals.items():
        filled = template.format(order="#W100", item="red Mug", option="blue",
                                 reason="no longer needed", method_id="paypal_13")
        assert PHRASES.read_intent(filled) == phrases.Intent("propose", name)
    for template in PHRASES.refusals.values():
        assert kind(template.format(status="pending", option="blue")) == "deny"
    assert {kind(text) for text in phrases.AGENT_DONE} == {"done"}
    assert {kind(text) for text in phrases.AGENT_LEAVE} == {"leave"}
    assert kind("One moment.") == kind("") == "other"


def test_the_ground_of_what_the_clerk_refuses_is_understood():
    assert set(PHRASES.refusals) == set(DENIALS) - {""}
    for ground, template in PHRASES.refusals.items():
        for status in ("pending", "processed", "delivered", "cancelled"):
            text = template.format(status=status, option="blue")
            assert PHRASES.refusal_ground(text) == ground


@pytest.mark.parametrize("message", [
    "",
    "I cannot do that.",
    "I cannot do that: the order is big.",
    "I cannot do that: the order is pending, and blue is not available.",
    "I cannot do that: neither the reason nor the balance will do.",
])
def test_a_refusal_on_no_ground_or_on_several_has_none(message):
    assert PHRASES.refusal_ground(message) == ""


# --- questions, distractors, manners --------------------------------------------------------------


def test_a_question_is_settled_by_an_answer_and_by_nothing_unclear():
    user = make_user(Request("ask_status", "#W100"), CANCEL)
    assert "#W100" in user.opening()
    assert events(user, "The weather is lovely.") == ["repeated"]
    assert events(user, "Order #W100 is pending. Anything else?") == ["next_request"]
    # Of a request that asks for more than words, the same message says nothing.
    assert events(user, "Order #W100 is pending. Anything else?") == ["repeated"]


@pytest.mark.parametrize("seed", range(5))
def test_a_distractor_is_said_once(seed):
    aside = "My order #W999 can stay as it is."
    user = make_user(dataclasses.replace(CANCEL, aside=aside), seed=seed)
    assert user.opening().count(aside) == 1
    assert "#W999" not in user.reply("What?").text


@pytest.mark.parametrize("name", sorted(phrases.PERSONAS))
def test_a_persona_speaks_in_its_manner(name):
    script = make_user(CANCEL).script
    task = Task("t", "ada_ito_10", "", (), (), "train", "hand", script.to_json(), 1, persona=name)
    persona = phrases.PERSONAS[name]
    openings = [ScriptedUser(task, seed).opening() for seed in range(30)]
    for lead in persona.leads:
        assert any(lead in text for text in openings)
    for tail in persona.tails:
        assert any(text.endswith(tail) for text in openings)
    assert all("#W100" in text for text in openings)


def test_an_unknown_persona_is_named():
    script = make_user(CANCEL).script
    task = Task("t", "u", "", (), (), "train", "hand", script.to_json(), 1, persona="grumpy")
    with pytest.raises(ValueError, match="'grumpy': use one of terse"):
        ScriptedUser(task, 0)
