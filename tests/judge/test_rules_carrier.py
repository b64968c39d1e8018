"""The rule judge at the airline's desk, on hand-played episodes. `test_rules.py` has the rules that
hold at every desk."""

import dataclasses

import pytest
from judged import grades

from tarl_jax.config import ClerkConfig, ShopConfig, TaskConfig
from tarl_jax.judge.rules import judge
from tarl_jax.sandbox.airline import airline_domain
from tarl_jax.sandbox.carrier_requests import Request
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import Dialogue
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.sandbox.verifier import verify
from tarl_jax.types import Call, Segment, Task, Trajectory

# --- an airline of one traveller ------------------------------------------------------------------

ADA = {"first_name": "Ada", "last_name": "Ito", "dob": "1980-01-02"}
BEN = {"first_name": "Ben", "last_name": "Hill", "dob": "1990-02-03"}


def _reservation(reservation_id, cabin, insurance, bags=0):
    return {
        "reservation_id": reservation_id, "user_id": "ada_ito_10", "origin": "SFO",
        "destination": "JFK", "flight_type": "one_way", "cabin": cabin,
        "flights": [{"origin": "SFO", "destination": "JFK", "flight_number": "HAT001",
                     "date": "2024-05-20", "price": 120}],
        "passengers": [dict(ADA)],
        "payment_history": [{"payment_id": "credit_card_11", "amount": 120}],
        "created_at": "2024-05-01T10:00:00", "total_baggages": bags, "nonfree_baggages": 0,
        "insurance": insurance,
    }  # fmt: skip


def _day(economy, business):
    return {"status": "available",
            "available_seats": {"basic_economy": 3, "economy": economy, "business": business},
            "prices": {"basic_economy": 60, "economy": 150, "business": 300}}


DATABASE = {
    "flights": {"HAT001": {
        "flight_number": "HAT001", "origin": "SFO", "destination": "JFK",
        "scheduled_departure_time_est": "08:00:00", "scheduled_arrival_time_est": "12:00:00",
        "dates": {"2024-05-20": _day(5, 0), "2024-05-21": _day(5, 5), "2024-05-22": _day(0, 5)},
    }},
    "reservations": {
        "AAAAA1": _reservation("AAAAA1", "economy", "yes", bags=1),
        "BBBBB2": _reservation("BBBBB2", "basic_economy", "no"),
    },
    "users": {"ada_ito_10": {
        "name": {"first_name": "Ada", "last_name": "Ito"},
        "address": {"address1": "Oak Street", "address2": "", "city": "Denver", "country": "USA",
                    "state": "CO", "zip": "801"},
        "email": "ada@mail.com", "dob": "1980-01-02",
        "payment_methods": {
            "credit_card_11": {"source": "credit_card", "brand": "visa", "last_four": "1000",
                               "id": "credit_card_11"},
            "gift_card_12": {"source": "gift_card", "amount": 400, "id": "gift_card_12"},
            "certificate_13": {"source": "certificate", "amount": 100, "id": "certificate_13"},
        },
        "saved_passengers": [], "membership": "regular", "reservations": ["AAAAA1", "BBBBB2"],
    }},
}  # fmt: skip
DOMAIN = airline_domain(DATABASE)

FLIGHT_ARGUMENTS = [{"flight_number": "HAT001", "date": "2024-05-20"}]
SEARCH = {"origin": "SFO", "destination": "JFK", "date": "2024-05-20"}
PAID = {"payment_id": "credit_card_11", "method": "credit card"}
CANCEL = Request("cancel", "AAAAA1", reason="health")
BAGS = Request("bags", "AAAAA1", **PAID, bags=3, nonfree=2)
CABIN = Request("cabin", "AAAAA1", **PAID, cabin="basic_economy", flights=FLIGHT_ARGUMENTS,
                searches=[SEARCH])
FLIGHT = Request("flight", "AAAAA1", **PAID, cabin="economy", flight="HAT001", date="2024-05-21",
                 flights=[{"flight_number": "HAT001", "date": "2024-05-21"}],
                 searches=[{**SEARCH, "date": "2024-05-21"}])
PASSENGER = Request("passenger", "AAAAA1", old="Ada Ito", new="Ben Hill", dob="1990-02-03",
                    passengers=[BEN])
TOTAL, COUNT = Request("ask_total", "AAAAA1"), Request("ask_bags", "AAAAA1")
UNINSURED = Request("cancel", "BBBBB2", reason="weather", denial="insurance")
BAD_REASON = Request("cancel", "AAAAA1", reason="price", denial="reason")
FARE = dataclasses.replace(FLIGHT, reservation_id="BBBBB2", cabin="basic_economy", denial="fare")
NO_SEATS = dataclasses.replace(CABIN, cabin="business", denial="unavailable")
NO_SEATS_THAT_DAY = dataclasses.replace(
    FLIGHT, date="2024-05-22", flights=[{"flight_number": "HAT001", "date": "2024-05-22"}],
    searches=[{**SEARCH, "date": "2024-05-22"}], denial="unavailable")
FEWER = dataclasses.replace(BAGS, bags=0, nonfree=0, denial="fewer")
ADD = Request("add", "AAAAA1", new="Ben Hill", dob="1990-02-03", passengers=[ADA, BEN],
              denial="number")
METHOD = dataclasses.replace(BAGS, payment_id="certificate_13", method="certificate",
                             denial="method")

ASK = "May I have your user id?"
PROFILE = Call("get_user_details", {"user_id": "ada_ito_10"})
SEEK = Call("search_direct_flight", SEARCH)
TRANSFER = Call("transfer_to_human_agents", {"summary": "the user needs help"})
DONE, LEAVE = "Done. Anything else?", "I leave it as it is. Anything else?"
ASK_CANCEL = "Cancel AAAAA1? (yes/no)"
ASK_BAGS = "Make it 3 bags on AAAAA1, 2 of them not free, with credit_card_11? (yes/no)"
DENIALS = {
    "insurance": "I cannot do that: the trip is not insured.",
    "reason": "I cannot do that: the reason is not accepted.",
    "fare": "I cannot do that: the cabin is basic economy.",
    "unavailable": "I cannot do that: business is not available.",
    "fewer": "I cannot do that: none of the 1 bags can go.",
    "number": "I cannot do that: the number of passengers stays.",
    "method": "I cannot do that: a certificate does not pay for it.",
}


def read(reservation_id="AAAAA1"):
    return Call("get_reservation_details", {"reservation_id": reservation_id})


def seek(date):
    return Call("search_direct_flight", {**SEARCH, "date": date})


def make_task(*requests, eager=True):
    script = Script("Ada", "Ito", "ada@mail.com", "801", "user_id", eager, requests, "airline")
    gold = tuple(r.gold for r in requests if r.gold)
    return Task("hand-0", "ada_ito_10", "", gold, (), "train", "hand", script.to_json(), 5)


def record(domain, dialogue, history):
    """The trajectory of (action, observation) pairs, without tokens."""
    segments = [Segment.forced("user", [], -1, dialogue.opening)]
    for turn, (action, observation) in enumerate(history):
        calls, text = ([action], "") if isinstance(action, Call) else ([], action)
        segments.append(Segment("agent", [], [], [], turn, text, text, calls))
        segments.append(
            Segment.forced(observation.role, [], turn, observation.text, **observation.info)
        )
    gold = [(c.name, dict(c.kwargs)) for c in dialogue.task.gold_calls]
    success = verify(domain, dialogue.state, gold).success
    return Trajectory(dialogue.task, 0, segments, history[-1][1].stop_reason or "user_stop",
                      success)


def graded(task, *actions):
    task = make_task(task) if isinstance(task, Request) else task
    dialogue = Dialogue(task, DOMAIN, ScriptedUser(task, seed=0), brief_writes=True)
    return grades(judge(record(DOMAIN, dialogue, [(a, dialogue.act(a)) for a in actions])))


# --- right work -----------------------------------------------------------------------------------


@pytest.mark.parametrize("request_, actions", [
    (CANCEL, (ASK_CANCEL, CANCEL.call, DONE)),
    (BAGS, (PROFILE, ASK_BAGS, BAGS.call, DONE)),
    (CABIN, (PROFILE, SEEK,
             "Change the cabin of AAAAA1 to basic economy with credit_card_11? (yes/no)",
             CABIN.call, DONE)),
    (FLIGHT, (PROFILE, seek("2024-05-21"),
              "Move HAT001 of AAAAA1 to 2024-05-21 with credit_card_11? (yes/no)",
              FLIGHT.call, DONE)),
    (PASSENGER, ("Replace Ada Ito on AAAAA1 by Ben Hill, born 1990-02-03? (yes/no)",
                 PASSENGER.call, DONE)),
    (TOTAL, ("Reservation AAAAA1 cost 120. Anything else?",)),
    (COUNT, ("Reservation AAAAA1 has 1 bags. Anything else?",)),
])
def test_right_work_is_right_and_what_it_needs_is_neutral(request_, actions):
    right = "." * sum(isinstance(a, Call) and a != request_.call for a in actions)
    right += "+" * (len(actions) - len(right))
    assert graded(request_, read(), *actions) == "." + right
    assert graded(make_task(request_, eager=False), ASK, read(), *actions) == ".." + right


TASKS = {
    "default": TaskConfig(num_train=400),
    "changes": TaskConfig(num_train=200, change_mind=1.0),
    "forbidden": TaskConfig(num_train=200, forbidden=1.0, max_idle=1.0),
}
SHOP = ShopConfig()
EMBEDDED = embedded_domain("airline", SHOP)


@pytest.mark.parametrize("tasks", TASKS)
def test_the_faultless_clerk_is_right_or_neutral_in_every_turn(tasks):
    for task in make_tasks(EMBEDDED, SHOP, TASKS[tasks], "train"):
        dialogue = Dialogue(task, EMBEDDED, ScriptedUser(task, 7), brief_writes=True)
        verdict = judge(record(EMBEDDED, dialogue, play(dialogue, FAULTLESS, 7)))
        assert set(grades(verdict)) <= {"+", "."}, (task.task_id, verdict)
        assert grades(verdict)[-1] == "+"


@pytest.mark.parametrize("error, kinds, worst", [
    ("wrong_variant", {"bags", "cabin", "flight", "passenger"}, "-"),
    ("wrong_reason", {"bags"}, "-"),
    ("wrongful_denial", {"cancel", "bags", "cabin", "flight", "passenger"}, "-"),
    ("skip_confirmation", {"cancel", "bags", "cabin", "flight", "passenger"}, "-"),
    ("false_done", {"cancel", "bags", "cabin", "flight", "passenger"}, "-"),
    ("transfer", {"cancel", "bags", "ask_total"}, "-"),
    ("redundant_read", {"cancel", "bags", "ask_total"}, "m"),
])
def test_each_error_of_the_clerk_is_seen(error, kinds, worst):
    count = 0
    for task in make_tasks(EMBEDDED, SHOP, TASKS["default"], "train"):
        requests = task.script["requests"]
        if all(r["kind"] in kinds and not r["denial"] and not r["change"] for r in requests):
            count += 1
            dialogue = Dialogue(task, EMBEDDED, ScriptedUser(task, 3))
            history = play(dialogue, dataclasses.replace(FAULTLESS, **{error: 1.0}), 3)
            got = grades(judge(record(EMBEDDED, dialogue, history)))
            assert min(got, key="-m.+".index) == worst, (task.task_id, got)
    assert count > 20


def test_a_clerk_that_ignores_the_rules_is_seen():
    for task in make_tasks(EMBEDDED, SHOP, TASKS["forbidden"], "train"):
        dialogue = Dialogue(task, EMBEDDED, ScriptedUser(task, 3))
        history = play(dialogue, dataclasses.replace(FAULTLESS, ignore_rule=1.0), 3)
        trajectory = record(EMBEDDED, dialogue, history)
        held = {"unavailable", "number", "method"} >= {
            r["denial"] for r in task.script["requests"]}
        assert trajectory.success == held  # the tools hold these rules
        got = grades(judge(trajectory))
        assert min(got, key="-m.+".index) == ("m" if held else "-")


def test_all_errors_of_the_default_clerk_are_judged_without_a_crash():
    seen = set()
    for task in make_tasks(EMBEDDED, SHOP, TASKS["default"], "train"):
        dialogue = Dialogue(task, EMBEDDED, ScriptedUser(task, 1))
        history = play(dialogue, ClerkConfig(), 1)
        verdict = judge(record(EMBEDDED, dialogue, history))
        assert len(verdict.scores) == len(history)
        seen |= set(verdict.scores)
    assert seen == {-1, 0, 1}


# --- majors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [
    {"payment_id": "gift_card_12"}, {"nonfree_baggages": 1}, {"nonfree_baggages": 3},
    {"total_baggages": 4},
])
def test_a_write_with_a_wrong_argument_is_major(changed):
    write = Call(BAGS.call.name, {**BAGS.call.kwargs, **changed})
    assert graded(BAGS, read(), PROFILE, ASK_BAGS, write) == "..+-"


@pytest.mark.parametrize("write", [
    Call(FLIGHT.call.name, {**FLIGHT.call.kwargs, "flights": FLIGHT_ARGUMENTS}),
    Call(FLIGHT.call.name, {**FLIGHT.call.kwargs, "cabin": "business"}),
    CANCEL.call,
])
def test_another_flight_or_cabin_is_major(write):
    assert graded(FLIGHT, read(), write) == ".-"


@pytest.mark.parametrize("request_", [UNINSURED, BAD_REASON, FARE, FEWER],
                         ids=lambda request: request.denial)
def test_a_write_that_the_policy_forbids_is_major(request_):
    assert graded(request_, read(request_.reservation_id), request_.call) == ".-"


def test_a_write_without_a_yes_or_for_a_user_who_did_not_say_its_id_is_major():
    assert graded(CANCEL, read(), CANCEL.call) == ".-"
    task = make_task(CANCEL, eager=False)
    assert graded(task, read(), ASK_CANCEL, CANCEL.call) == "mm-"
    assert graded(task, ASK, read(), ASK_CANCEL, CANCEL.call) == "..++"


@pytest.mark.parametrize("action", [DONE, LEAVE, TRANSFER, *DENIALS.values()])
@pytest.mark.parametrize("request_", [CANCEL, BAGS, TOTAL], ids=lambda request: request.kind)
def test_not_serving_what_is_allowed_is_major(request_, action):
    assert graded(request_, read(), action) == ".-"


@pytest.mark.parametrize("request_, text", [
    (TOTAL, "Reservation AAAAA1 cost 150. Anything else?"),
    (TOTAL, "Reservation AAAAA1 cost 120 or 150. Anything else?"),
    (TOTAL, "Reservation BBBBB2 cost 120. Anything else?"),
    (COUNT, "Reservation AAAAA1 has 2 bags. Anything else?"),
])
def test_a_wrong_answer_is_major(request_, text):
    assert graded(request_, read(), text) == ".-"


def test_the_right_write_comes_too_late_after_a_wrong_one():
    # Both are paid for: the reservation is not what it should be.
    wrong = Call(BAGS.call.name, {**BAGS.call.kwargs, "nonfree_baggages": 1})
    task, start = make_task(BAGS), (read(), PROFILE, ASK_BAGS, wrong, BAGS.call)
    assert graded(task, *start, DONE) == "..+-.."
    assert graded(make_task(BAGS, UNINSURED), *start, DONE, DONE) == "..+-..-"


def test_refusing_what_the_tool_rejected_is_blamed_on_the_rejected_call():
    unpaid = Call(BAGS.call.name, {**BAGS.call.kwargs, "payment_id": "certificate_13"})
    start = (read(), PROFILE, ASK_BAGS, unpaid)
    assert graded(BAGS, *start, DENIALS["method"]) == "..+-."
    assert graded(BAGS, *start, BAGS.call, DONE) == "..+m++"
    assert graded(BAGS, *start, DONE) == "..+m-"


# --- refusals -------------------------------------------------------------------------------------

FORBIDDEN = {
    "insurance": (UNINSURED, ()), "reason": (BAD_REASON, ()), "fare": (FARE, ()),
    "unavailable": (NO_SEATS, (PROFILE, SEEK)), "fewer": (FEWER, ()), "number": (ADD, ()),
    "method": (METHOD, ()),
}


@pytest.mark.parametrize("said", DENIALS)
@pytest.mark.parametrize("denial", FORBIDDEN)
def test_a_refusal_is_right_on_its_ground_alone(denial, said):
    request, further = FORBIDDEN[denial]
    got = graded(request, read(request.reservation_id), *further, DENIALS[said])
    assert got == "." * (1 + len(further)) + ("+" if said == denial else "-")


@pytest.mark.parametrize("denial", ["insurance", "reason", "fare", "fewer"])
def test_a_refusal_needs_a_look_at_the_reservation(denial):
    assert graded(FORBIDDEN[denial][0], DENIALS[denial]) == "m"


def test_a_refusal_for_want_of_seats_needs_the_search():
    assert graded(NO_SEATS, read(), PROFILE, DENIALS["unavailable"]) == "..m"
    assert graded(NO_SEATS, read(), seek("2024-05-21"), DENIALS["unavailable"]) == ".mm"
    denial = "I cannot do that: {} is not available."
    looked = (read(), seek("2024-05-22"))
    assert graded(NO_SEATS_THAT_DAY, *looked, denial.format("2024-05-22")) == "..+"
    for other in ("2024-05-21", "economy", "2024-05-21 and 2024-05-22", "that"):
        assert graded(NO_SEATS_THAT_DAY, *looked, denial.format(other)) == "..m"


@pytest.mark.parametrize("request_, text", [
    (FARE, "I cannot do that: the cabin is economy."),
    (FARE, "I cannot do that: the cabin is basic economy or business."),
    (FEWER, "I cannot do that: none of the 2 bags can go."),
    (FEWER, "I cannot do that: none of the bags can go."),
])
def test_a_wrong_fact_in_a_refusal_is_wrong_information(request_, text):
    assert graded(request_, read(request_.reservation_id), text) == ".-"


# --- minor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_, wasted", [
    (CANCEL, PROFILE), (CANCEL, read("BBBBB2")), (CANCEL, SEEK), (BAGS, SEEK),
    (FLIGHT, SEEK), (PASSENGER, PROFILE), (TOTAL, PROFILE), (FEWER, PROFILE), (ADD, PROFILE),
    (CANCEL, read()), (CANCEL, Call("list_all_airports", {})), (CANCEL, ASK),
])
def test_what_the_request_does_not_need_is_minor(request_, wasted):
    assert graded(request_, read(), wasted) == ".m"


def test_the_day_that_a_user_changed_its_mind_to_may_be_looked_up_then():
    then = dataclasses.replace(FLIGHT, date="2024-05-22", searches=NO_SEATS_THAT_DAY.searches)
    request = dataclasses.replace(FLIGHT, change="option", then=then)
    propose = "Move HAT001 of AAAAA1 to 2024-05-21 with credit_card_11? (yes/no)"
    start = (read(), PROFILE, seek("2024-05-21"))
    assert graded(request, *start, propose, seek("2024-05-22")) == "...+."
    assert graded(request, *start, seek("2024-05-22")) == "...m"


def test_a_write_that_the_tool_rejects_is_minor():
    assert graded(ADD, read(), ADD.call, DENIALS["number"]) == ".m+"
    assert graded(METHOD, read(), METHOD.call, DENIALS["method"]) == ".m+"
