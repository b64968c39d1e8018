"""The airline's desk: tasks that the policy allows or forbids, its clerk, its user, its errors."""

import dataclasses
import json
from collections import Counter
from datetime import datetime, timedelta

import pytest

from tarl_jax.config import ClerkConfig, ShopConfig, TaskConfig
from tarl_jax.sandbox.airline import NOW
from tarl_jax.sandbox.carrier_desk import CarrierDesk
from tarl_jax.sandbox.carrier_phrases import PHRASES
from tarl_jax.sandbox.carrier_requests import CHANGES, DENIALS, KINDS, READS, Request, write_call
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import Dialogue
from tarl_jax.sandbox.domain import Refusal
from tarl_jax.sandbox.phrases import Intent
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.sandbox.verifier import verify
from tarl_jax.types import Call, Task

SHOP = ShopConfig()
DOMAIN = embedded_domain("airline", SHOP)
RESERVATIONS, USERS = DOMAIN.database["reservations"], DOMAIN.database["users"]
TASKS = {split: make_tasks(DOMAIN, SHOP, TaskConfig(num_train=600, num_held_out=600), split)
         for split in ("train", "held_out")}
BOTH = TASKS["train"] + TASKS["held_out"]
REQUESTS = [(task, Request.from_json(r)) for task in BOTH for r in task.script["requests"]]
FORBIDDEN = make_tasks(
    DOMAIN, SHOP, TaskConfig(num_train=300, forbidden=1.0, max_idle=1.0), "train"
)


def solves(task, calls):
    state = DOMAIN.new_state()
    for call in calls:
        DOMAIN.call(state, call.name, dict(call.kwargs))
    return verify(DOMAIN, state, [(c.name, dict(c.kwargs)) for c in task.gold_calls]).success


def served(task, seed=5, **errors):
    dialogue = Dialogue(task, DOMAIN, ScriptedUser(task, seed), brief_writes=True)
    history = play(dialogue, dataclasses.replace(FAULTLESS, **errors), seed)
    gold = [(c.name, dict(c.kwargs)) for c in task.gold_calls]
    return verify(DOMAIN, dialogue.state, gold).success, history


# --- tasks ----------------------------------------------------------------------------------------


def test_the_splits_share_no_user_and_no_reservation():
    def of(tasks):
        ids = {r["reservation_id"] for t in tasks for r in t.script["requests"]}
        return ids | {t.user_id for t in tasks}

    assert len(TASKS["train"]) == len(TASKS["held_out"]) == 600
    assert not of(TASKS["train"]) & of(TASKS["held_out"])
    assert len({json.dumps(t.script) for t in BOTH}) == 1200


def test_branches_have_other_users_and_the_same_flights():
    other = embedded_domain("airline", SHOP, branch=1).database
    assert not set(other["reservations"]) & set(RESERVATIONS)
    assert other["flights"] == DOMAIN.database["flights"]
    assert embedded_domain("airline", SHOP).database == DOMAIN.database


def test_every_sort_of_request_occurs():
    for tasks in TASKS.values():
        requests = [r for t in tasks for r in t.script["requests"]]
        assert {r["kind"] for r in requests} == {*KINDS, *READS}
        assert {r["denial"] for r in requests} == set(DENIALS)
        assert {r["change"] for r in requests} == set(CHANGES)
    count = Counter(r.kind for _, r in REQUESTS)
    assert min(count[kind] for kind in KINDS if kind != "add") > 0.1 * len(REQUESTS)


def test_a_task_says_which_desk_it_is_for_and_survives_json():
    for task in BOTH:
        again = Task.from_json(json.loads(json.dumps(task.to_json())))
        assert again == task and task.script["desk"] == "airline"
        script = Script.from_json(again.script)
        assert [r.gold for r in script.requests if r.gold] == list(task.gold_calls)
        assert task.user_id in task.instruction and task.source == "carrier"


def test_the_faultless_clerk_solves_every_task_whatever_the_users_words():
    for task in BOTH + FORBIDDEN:
        success, history = served(task, seed=99)
        assert success and history[-1][1].stop_reason == "user_stop", task.task_id
        assert len(history) == task.expert_turns
        assert not any(answer.info.get("error") for _, answer in history)


def test_few_tasks_are_passed_by_doing_nothing():
    assert 0 < sum(solves(task, []) for task in BOTH) / len(BOTH) < 0.05


def wrong_values(task, call, name, value):
    reservation = RESERVATIONS[call.kwargs["reservation_id"]]
    user = USERS[task.user_id]
    match name:
        case "reservation_id":
            return user["reservations"]
        case "payment_id":
            return [m for m in user["payment_methods"] if not m.startswith("certificate")]
        case "total_baggages" | "nonfree_baggages":
            return [value - 1, value + 1]
        case "cabin":
            return ["basic_economy", "economy", "business"]
        case "flights":
            return [[{**f, "date": day} if f is moved else f for f in value]
                    for moved in value for day in ("2024-05-20", "2024-05-27")]
    old = [dict(p) for p in reservation["passengers"]]
    return [old, [{**p, "dob": "1990-01-01"} for p in value],
            [{**p, "last_name": "Nobody"} for p in value]]


def test_no_solution_with_a_wrong_argument_passes():
    tried = Counter()
    for task in BOTH:
        gold = list(task.gold_calls)
        for place, call in enumerate(gold):
            assert not solves(task, gold[:place] + gold[place + 1 :])
            for name, value in call.kwargs.items():
                for other in wrong_values(task, call, name, value):
                    if other != value:
                        wrong = Call(call.name, {**call.kwargs, name: other})
                        calls = [*gold[:place], wrong, *gold[place + 1 :]]
                        assert not solves(task, calls), (task.task_id, wrong)
                        tried[call.name, name] += 1
    assert len(tried) == 11 and min(tried.values()) > 50


@pytest.mark.parametrize("seed", range(3))
def test_no_right_call_is_ever_refused(seed):
    shop = ShopConfig(seed=seed)
    domain = embedded_domain("airline", shop)
    config = TaskConfig(seed=seed, num_train=400, requests=(0.0, 0.0, 0.5, 0.5))
    for task in make_tasks(domain, shop, config, "train"):
        state = domain.new_state()
        for call in task.gold_calls:
            answer = domain.call(state, call.name, dict(call.kwargs))
            assert not isinstance(answer, Refusal), (task.task_id, call, answer)


# --- the policy, written once more ----------------------------------------------------------------

FREE = {("regular", "basic_economy"): 0, ("regular", "economy"): 1, ("regular", "business"): 2,
        ("silver", "basic_economy"): 1, ("silver", "economy"): 2, ("silver", "business"): 3,
        ("gold", "basic_economy"): 2, ("gold", "economy"): 3, ("gold", "business"): 3}


def seats(leg, date, cabin):
    day = DOMAIN.database["flights"][leg["flight_number"]]["dates"][date]
    return day["available_seats"][cabin] if day["status"] == "available" else -1


def states(reservation):
    flights = DOMAIN.database["flights"]
    return {flights[f["flight_number"]]["dates"][f["date"]]["status"]
            for f in reservation["flights"]}


def ground(task, wish):
    """Why the policy forbids a wish; empty if it allows it."""
    reservation = RESERVATIONS[wish.reservation_id]
    user, count = USERS[task.user_id], len(reservation["passengers"])
    free = FREE[user["membership"], reservation["cabin"]] * count
    if wish.kind == "cancel":
        since = datetime.fromisoformat(NOW) - datetime.fromisoformat(reservation["created_at"])
        if (since <= timedelta(hours=24) or reservation["cabin"] == "business"
                or "cancelled" in states(reservation)):
            return ""
        if reservation["insurance"] == "no":
            return "insurance"
        return "" if wish.reason in ("health", "weather") else "reason"
    if wish.kind == "add":
        return "number"
    if wish.payment_id.startswith("certificate"):
        return "method"
    if wish.kind == "bags":
        assert wish.nonfree == max(0, wish.bags - free)
        return "fewer" if wish.bags < reservation["total_baggages"] else ""
    if wish.kind == "flight" and reservation["cabin"] == "basic_economy":
        return "fare"
    if wish.kind in ("flight", "cabin"):
        assert (wish.cabin == reservation["cabin"]) == (wish.kind == "flight")
        moved = {f["flight_number"]: f["date"] for f in wish.flights}
        assert list(moved) == [f["flight_number"] for f in reservation["flights"]]
        lacking = [f for f in reservation["flights"]
                   if (wish.kind == "cabin" or f["flight_number"] == wish.flight)
                   and seats(f, moved[f["flight_number"]], wish.cabin) < count]
        return "unavailable" if lacking else ""
    return ""


def test_requests_are_forbidden_exactly_where_the_policy_forbids_them():
    requests = REQUESTS + [(task, Request.from_json(r)) for task in FORBIDDEN
                           for r in task.script["requests"]]
    for task, request in requests:
        for wish in filter(None, (request, request.then)):
            assert ground(task, wish) == request.denial, (task.task_id, wish)


def test_nothing_is_asked_for_on_flights_that_have_left_but_answers():
    for _, request in REQUESTS:
        reservation = RESERVATIONS[request.reservation_id]
        if request.kind in KINDS and states(reservation) != {"available"}:
            assert request.kind == "cancel" and request.reason == "airline"
            assert states(reservation) <= {"cancelled", "available"}


# --- the clerk ------------------------------------------------------------------------------------


def test_the_clerk_uses_only_what_the_dialogue_has_shown():
    computed = ("nonfree_baggages", "summary")
    for errors in (FAULTLESS, ClerkConfig()):
        for task in TASKS["train"][:200]:
            dialogue = Dialogue(task, DOMAIN, ScriptedUser(task, 5), brief_writes=True)
            shown = dialogue.opening
            for action, observation in play(dialogue, errors, 5):
                if isinstance(action, Call):
                    words = json.dumps({k: v for k, v in action.kwargs.items()
                                        if k not in computed})
                    for part in json.loads(words, parse_int=str).values():
                        texts = [part] if isinstance(part, str) else [
                            v for item in part for v in item.values()]
                        for text in texts:
                            fits = text in shown or text.replace("_", " ") in shown
                            assert fits or text.isdecimal(), (task.task_id, action)
                shown += f"\n{observation.text}"


@pytest.mark.parametrize("error, kinds", [
    ("wrong_variant", ("bags", "cabin", "flight", "passenger")),
    ("wrong_item", ("bags", "cabin", "flight")),
    ("wrong_reason", ("bags",)),
    ("wrongful_denial", KINDS), ("false_done", KINDS), ("transfer", KINDS),
])
def test_each_error_fails_the_tasks_that_admit_it(error, kinds):
    count = 0
    for task, request in REQUESTS:
        single = len(task.script["requests"]) == 1 and not request.denial and not request.change
        cards = [m for m in USERS[task.user_id]["payment_methods"] if "_card_" in m]
        if single and request.kind in kinds and (error != "wrong_item" or len(cards) > 1):
            count += 1
            assert not served(task, **{error: 1.0})[0], (task.task_id, request)
    assert count > 20


def test_a_clerk_that_ignores_the_rules_breaks_those_that_the_tools_do_not_hold():
    broken = Counter()
    for task in FORBIDDEN:
        success, _ = served(task, ignore_rule=1.0)
        if len(task.script["requests"]) == 1:
            broken[task.script["requests"][0]["denial"], success] += 1
    assert {ground for ground, success in broken if not success} == {
        "insurance", "reason", "fare", "fewer"}
    assert {ground for ground, success in broken if success} == {"unavailable", "number", "method"}


# --- the user -------------------------------------------------------------------------------------

CANCEL = Request("cancel", "ABCDE1", reason="health")
BAGS = Request("bags", "ABCDE1", "credit_card_11", "credit card", bags=2, nonfree=1)
CABIN = Request("cabin", "ABCDE1", "gift_card_12", "gift card", cabin="economy")
FLIGHT = Request("flight", "ABCDE1", "credit_card_11", "credit card", cabin="economy",
                 flight="HAT001", date="2024-05-20")
PASSENGER = Request("passenger", "ABCDE1", old="Ada Ito", new="Ben Hill", dob="1990-02-03")
ADD = Request("add", "ABCDE1", new="Ben Hill", dob="1990-02-03", denial="number")
ALL = (CANCEL, BAGS, CABIN, FLIGHT, PASSENGER, ADD)
DESK = CarrierDesk()


def make_user(*requests, eager=True):
    script = Script("Ada", "Ito", "ada@mail.com", "801", "user_id", eager, requests, "airline")
    task = Task("t", "ada_ito_10", "", (), (), "train", "hand", script.to_json(), 1)
    return ScriptedUser(task, 0)


@pytest.mark.parametrize("wish", ALL, ids=lambda wish: wish.kind)
def test_the_user_says_yes_to_what_the_clerk_proposes(wish):
    proposal = DESK.proposal(wish, {}, {})
    assert PHRASES.read_intent(proposal) == Intent("propose", wish.kind)
    assert make_user(wish).reply(proposal).info["event"] == "confirmed"


@pytest.mark.parametrize("wish, proposal", [
    (CANCEL, "Cancel ABCDE2? (yes/no)"),
    (CANCEL, "Cancel ABCDE1 and ABCDE2? (yes/no)"),
    (BAGS, "Make it 3 bags on ABCDE1, 1 of them not free, with credit_card_11? (yes/no)"),
    (BAGS, "Make it 12 bags on ABCDE1, 1 of them not free, with credit_card_11? (yes/no)"),
    (BAGS, "Make it 2 bags or 3 bags on ABCDE1 with credit_card_11? (yes/no)"),
    (BAGS, "Make it 2 bags on ABCDE1, 1 of them not free, with gift_card_12? (yes/no)"),
    (CABIN, "Change the cabin of ABCDE1 to basic economy with gift_card_12? (yes/no)"),
    (CABIN, "Change the cabin of ABCDE1 to economy or business with gift_card_12? (yes/no)"),
    (FLIGHT, "Move HAT001 of ABCDE1 to 2024-05-21 with credit_card_11? (yes/no)"),
    (FLIGHT, "Move HAT001 of ABCDE1 to 2024-05-20 or 2024-05-21 with credit_card_11? (yes/no)"),
    (FLIGHT, "Move HAT002 of ABCDE1 to 2024-05-20 with credit_card_11? (yes/no)"),
    (PASSENGER, "Replace Ada Ito on ABCDE1 by Ben Hill, born 1990-02-04? (yes/no)"),
    (PASSENGER, "Replace Ada Ito on ABCDE1 by Ben Hill or Eva Hill, born 1990-02-03? (yes/no)"),
    (PASSENGER, "Add Ben Hill, born 1990-02-03, to ABCDE1 for Ada Ito? (yes/no)"),
])
def test_the_user_corrects_what_it_did_not_say(wish, proposal):
    assert make_user(wish).reply(proposal).info["event"] == "repeated"


def test_the_user_says_its_id_when_asked_and_an_eager_one_at_once():
    assert "ada_ito_10" in make_user(CANCEL).opening()
    user = make_user(CANCEL, eager=False)
    assert "ada_ito_10" not in user.opening()
    for question in PHRASES.ask:
        reply = user.reply(question)
        assert "ada_ito_10" in reply.text
        assert reply.info == {"intent": "ask_user_id", "request": 0, "event": "identified"}


def test_the_user_prefers_another_option_once():
    then = dataclasses.replace(BAGS, bags=4, nonfree=3)
    user = make_user(dataclasses.replace(BAGS, change="option", then=then))
    assert "4 bags" in user.reply(DESK.proposal(BAGS, {}, {})).text
    assert user.reply(DESK.proposal(BAGS, {}, {})).info["event"] == "repeated"
    assert user.reply(DESK.proposal(then, {}, {})).info["event"] == "confirmed"


def test_what_the_clerk_says_is_understood():
    assert {PHRASES.read_intent(text).kind for text in PHRASES.ask} == {"ask_user_id"}
    assert set(PHRASES.refusals) == set(PHRASES.ground_marks) == set(DENIALS) - {""}
    for denial, template in PHRASES.refusals.items():
        for cabin in ("basic economy", "economy", "business"):
            text = template.format(cabin=cabin, bags=2, option=cabin)
            assert PHRASES.read_intent(text).kind == "deny"
            assert PHRASES.refusal_ground(text) == denial
    for template in PHRASES.answers.values():
        said = template.format(reservation="ABCDE1", answer=3)
        assert PHRASES.read_intent(said).kind == "answer"
    assert set(PHRASES.proposals) == set(PHRASES.proposal_marks) == set(KINDS)


@pytest.mark.parametrize("wish", ALL, ids=lambda wish: wish.kind)
def test_each_wish_has_its_call_and_questions_have_none(wish):
    call = write_call(wish)
    assert call == wish.call and DOMAIN.tools[call.name].write
    assert not DOMAIN.tools[call.name].problem(dict(call.kwargs))
    question = dataclasses.replace(wish, kind="ask_total")
    assert question.call is None
    with pytest.raises(ValueError, match="request kind 'ask_total': expected one of cancel"):
        write_call(question)
