"""Every rule of the rule judge on hand-played episodes, and what a policy could get away with.

A score that is too kind is a loophole that training finds; one that is too harsh teaches the
policy to do nothing.
"""

import copy
import dataclasses
import json

import pytest
from judged import grades

from tarl_jax.config import ClerkConfig, InputError, RewardConfig, ShopConfig, TaskConfig
from tarl_jax.judge.rules import Judgement, judge
from tarl_jax.rl.rewards import trajectory_reward
from tarl_jax.sandbox import shop
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import Dialogue, Malformed
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.shop_requests import Request
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.sandbox.verifier import verify
from tarl_jax.text.reading import read_turn
from tarl_jax.training.evaluation import behaviour
from tarl_jax.types import Call, Segment, Task, Trajectory

# --- a shop of two customers ----------------------------------------------------------------------


def _user(first, last, email, orders, **methods):
    return {
        "name": {"first_name": first, "last_name": last},
        "address": {"address1": "Oak Street", "address2": "", "city": "Denver", "country": "USA",
                    "state": "CO", "zip": "801"},
        "email": email,
        "payment_methods": methods,
        "orders": orders,
    }


def _item(name, product_id, item_id, price, **options):
    return {"name": name, "product_id": product_id, "item_id": item_id, "price": price,
            "options": options}


def _order(order_id, status, *items):
    return {
        "order_id": order_id,
        "user_id": "ada_ito_10",
        "address": {},
        "items": list(items),
        "fulfillments": [],
        "status": status,
        "payment_history": [{
            "transaction_type": "payment",
            "amount": sum(i["price"] for i in items),
            "payment_method_id": "credit_card_11",
        }],
    }


def _product(name, product_id, key, *variants):
    return {
        "name": name,
        "product_id": product_id,
        "variants": {
            item_id: {"item_id": item_id, "options": {key: value}, "available": available,
                      "price": price}
            for item_id, value, available, price in variants
        },
    }


MUG = _item("Mug", "10", "101", 30, color="red")
LAMP = _item("Lamp", "20", "202", 50, material="steel")
DATABASE = {
    "users": {
        "ada_ito_10": _user(
            "Ada", "Ito", "ada10@mail.com", ["#W100", "#W200", "#W300", "#W400"],
            credit_card_11={"source": "credit_card", "brand": "visa", "last_four": "1000",
                            "id": "credit_card_11"},
            paypal_13={"source": "paypal", "id": "paypal_13"},
            gift_card_12={"source": "gift_card", "balance": 20, "id": "gift_card_12"},
        ),
        "ben_hill_20": _user("Ben", "Hill", "ben20@mail.com", []),
    },
    "orders": {
        "#W100": _order("#W100", "pending", MUG),
        "#W200": _order("#W200", "delivered", MUG, LAMP),
        "#W300": _order("#W300", "processed", MUG),
        "#W400": _order("#W400", "pending", LAMP),
    },
    "products": {
        "10": _product("Mug", "10", "color", ("101", "red", True, 30), ("102", "blue", True, 32),
                       ("103", "green", True, 28), ("104", "black", False, 31)),
        "20": _product("Lamp", "20", "material", ("201", "wood", True, 50),
                       ("202", "steel", True, 50)),
    },
}

CANCEL = Request("cancel", "#W100", reason="no longer needed")
CANCEL_OTHER = Request("cancel", "#W400", reason="ordered by mistake")
RETURN = Request("return", "#W200", "credit_card_11", item="Mug", item_id="101", product_id="10")
EXCHANGE = Request("exchange", "#W200", "credit_card_11", item="Mug", item_id="101",
                   product_id="10", option="blue", new_item_id="102")
PAYMENT = Request("payment", "#W100", "paypal_13", method="paypal")
DROPPED = dataclasses.replace(CANCEL, change="drop")
SWAPPED = dataclasses.replace(
    EXCHANGE, change="option",
    then=dataclasses.replace(EXCHANGE, option="green", new_item_id="103"),
)
PROCESSED = Request("cancel", "#W300", reason="no longer needed", denial="status")
BAD_REASON = Request("cancel", "#W100", reason="found it cheaper", denial="reason")
SOLD_OUT = dataclasses.replace(EXCHANGE, option="black", new_item_id="104", denial="unavailable")
STATUS, TOTAL = Request("ask_status", "#W300"), Request("ask_total", "#W200")
LOW_BALANCE = Request("payment", "#W100", "gift_card_12", method="gift card", denial="balance")

FIND = Call("find_user_id_by_email", {"email": "ada10@mail.com"})
FIND_BY_NAME = Call("find_user_id_by_name_zip",
                    {"first_name": "Ada", "last_name": "Ito", "zip": "801"})
FIND_OTHER = Call("find_user_id_by_email", {"email": "ben20@mail.com"})
READ_PRODUCT = Call("get_product_details", {"product_id": "10"})
READ_OTHER_PRODUCT = Call("get_product_details", {"product_id": "20"})
READ_USER = Call("get_user_details", {"user_id": "ada_ito_10"})
READ_OTHER_USER = Call("get_user_details", {"user_id": "ben_hill_20"})
TRANSFER = Call("transfer_to_human_agents", {"summary": "the user needs help"})
ASK = "May I have your email?"
ASK_CANCEL = "Cancel #W100, reason: no longer needed? (yes/no)"
ASK_CANCEL_OTHER = "Cancel #W400, reason: ordered by mistake? (yes/no)"
ASK_EXCHANGE = "Exchange the Mug of #W200 for {}? (yes/no)"
DENY = "Sorry, I cannot do that: the order is processed. Anything else?"
DENY_REASON = "Sorry, I cannot do that: the reason is not accepted. Anything else?"
DENY_SOLD_OUT = "Sorry, I cannot do that: black is not available. Anything else?"
DENY_BALANCE = "Sorry, I cannot do that: the balance is too low. Anything else?"
DONE = "Done. Anything else?"
LEAVE = "I leave it as it is. Anything else?"
NONSENSE = "The weather is lovely."


def read(order_id):
    return Call("get_order_details", {"order_id": order_id})


def cancel(order_id="#W100", reason="no longer needed"):
    return Call("cancel_pending_order", {"order_id": order_id, "reason": reason})


def exchange(new_item_id):
    return Call("exchange_delivered_order_items", {
        "order_id": "#W200", "item_ids": ["101"], "new_item_ids": [new_item_id],
        "payment_method_id": "credit_card_11",
    })


@pytest.fixture(scope="module")
def domain():
    return retail_domain(copy.deepcopy(DATABASE))


def make_task(*requests, eager=True, identify="email"):
    script = Script("Ada", "Ito", "ada10@mail.com", "801", identify, eager, requests)
    gold = tuple(r.gold for r in requests if r.gold)
    return Task("hand-0", "ada_ito_10", "", gold, (), "train", "hand", script.to_json(), 5)


def record(domain, dialogue, history):
    """The trajectory of (action, observation) pairs, without tokens."""
    segments = [Segment.forced("user", [], -1, dialogue.opening)]
    for turn, (action, observation) in enumerate(history):
        text, calls, info = "", [], {}
        match action:
            case Call():
                calls = [action]
            case Malformed(reason):
                info = {"malformed": reason}
            case _:
                text = action
        segments.append(Segment("agent", [], [], [], turn, text, text, calls, info=info))
        segments.append(
            Segment.forced(observation.role, [], turn, observation.text, **observation.info)
        )
    gold = [(c.name, dict(c.kwargs)) for c in dialogue.task.gold_calls]
    success = verify(domain, dialogue.state, gold).success
    stop = history[-1][1].stop_reason or "user_stop"  # unfinished, but not for want of room
    return Trajectory(dialogue.task, 0, segments, stop, success)


@pytest.fixture
def episode(domain):
    """episode(task or request, *actions) -> the trajectory of an agent that acts so."""

    def play_actions(task, *actions):
        task = make_task(task) if isinstance(task, Request) else task
        dialogue = Dialogue(task, domain, ScriptedUser(task, seed=0), brief_writes=True)
        return record(domain, dialogue, [(action, dialogue.act(action)) for action in actions])

    return play_actions


@pytest.fixture
def graded(episode):
    """graded(task or request, *actions) -> a letter a turn, as `judged.grades` has them."""
    return lambda task, *actions: grades(judge(episode(task, *actions)))


# --- right work -----------------------------------------------------------------------------------


def test_right_work_is_right_in_every_turn(episode):
    trajectory = episode(
        make_task(CANCEL, eager=False),
        ASK, FIND, read("#W100"), ASK_CANCEL, cancel(), DONE,
    )
    assert trajectory.success and trajectory.stop_reason == "user_stop"
    assert grades(judge(trajectory)) == "...+++"


def test_there_is_a_reason_for_every_turn(episode):
    verdict = judge(episode(CANCEL, FIND, Malformed("x"), read("#W100"), DENY))
    assert len(verdict.notes) == len(verdict.scores) == 4
    assert all(verdict.notes)


def test_a_saved_episode_gets_the_same_scores(episode):
    trajectory = episode(SWAPPED, FIND, read("#W200"), READ_PRODUCT, ASK_EXCHANGE.format("blue"),
                         exchange("102"), DONE)
    again = Trajectory.from_json_line(trajectory.to_json_line())
    assert judge(again) == judge(trajectory)
    assert -1 in judge(again).scores


@pytest.mark.parametrize("request_, reads", [(CANCEL, ()), (EXCHANGE, (READ_PRODUCT,)),
                                             (PAYMENT, (READ_USER,))])
def test_the_reads_that_a_request_needs_are_neutral(graded, request_, reads):
    # Every episode has them, however it ends: they tell nothing of it.
    got = graded(request_, FIND, read(request_.order_id), *reads)
    assert got == ".." + "." * len(reads)


@pytest.mark.parametrize("tasks", [
    TaskConfig(num_train=300),
    TaskConfig(num_train=200, forbidden=0.9, max_idle=1.0),
], ids=["default", "forbidden"])
def test_the_faultless_clerk_is_right_or_neutral_in_every_turn(tasks):
    # If not, the policy is taught away from the very solution that the task was checked with.
    config = ShopConfig()
    domain = retail_domain(shop.make_shop(config))
    for task in make_tasks(domain, config, tasks, "train"):
        dialogue = Dialogue(task, domain, ScriptedUser(task, 7), brief_writes=True)
        trajectory = record(domain, dialogue, play(dialogue, FAULTLESS, 7))
        verdict = judge(trajectory)
        assert set(grades(verdict)) <= {"+", "."}, (task.task_id, verdict)
        assert grades(verdict)[-1] == "+"


@pytest.mark.parametrize("error, major", [
    ("wrong_reason", True), ("wrong_variant", "unless rejected"), ("wrongful_denial", True),
    ("false_done", True), ("transfer", True), ("skip_confirmation", True),
    ("redundant_read", False),
])
def test_each_error_of_the_clerk_is_seen(error, major):
    config = ShopConfig()
    domain = retail_domain(shop.make_shop(config))
    kinds = {"wrong_reason": ("cancel",), "wrong_variant": ("exchange", "modify")}
    tasks = [
        t for t in make_tasks(domain, config, TaskConfig(num_train=200), "train")
        if all(not r["denial"] and not r["change"]
               and r["kind"] in kinds.get(error, (r["kind"],)) for r in t.script["requests"])
    ]
    assert len(tasks) > 10
    for task in tasks:
        dialogue = Dialogue(task, domain, ScriptedUser(task, 3))
        errors = dataclasses.replace(FAULTLESS, **{error: 1.0})
        got = grades(judge(record(domain, dialogue, play(dialogue, errors, 3))))
        if major == "unless rejected":  # some other variants are sold out
            assert "-" in got or "mm" in got, (task.task_id, got)
        else:
            assert ("-" in got) == major and ("m" in got) == (not major), (task.task_id, got)


# --- majors: wrong writes and wrong information ---------------------------------------------------


@pytest.mark.parametrize("write", [
    cancel(reason="ordered by mistake"),
    cancel("#W400"),
    Call("modify_pending_order_payment", {"order_id": "#W100", "payment_method_id": "paypal_13"}),
])
def test_a_wrong_write_is_major(graded, write):
    assert graded(CANCEL, FIND, read("#W100"), ASK_CANCEL, write) == "..+-"


def test_a_wrong_write_is_major_even_where_the_user_said_yes(graded):
    got = graded(EXCHANGE, FIND, read("#W200"), READ_PRODUCT, ASK_EXCHANGE.format("blue"),
                 exchange("103"))
    assert got == "...+-"


def test_a_write_that_the_policy_forbids_is_major(graded):
    # The tool takes it: nothing but the judge stands in the way.
    got = graded(BAD_REASON, FIND, read("#W100"), ASK_CANCEL, cancel())
    assert got == "..m-"


def test_every_wrong_write_is_marked_not_only_the_first(graded):
    got = graded(make_task(CANCEL, CANCEL_OTHER), FIND, cancel(reason="ordered by mistake"),
                 cancel("#W400", "no longer needed"))
    assert got == ".--"


@pytest.mark.parametrize("before", [(), (FIND,), (FIND, read("#W100")),
                                    (FIND, read("#W100"), ASK_CANCEL)])
@pytest.mark.parametrize("denial", [DENY, DENY_REASON, "I am unable to help with that."])
def test_a_wrongful_denial_is_major(graded, before, denial):
    # At 0 it was cheaper than a wrong write, and the policy learned to write nothing.
    assert graded(CANCEL, *before, denial)[-1] == "-"


def test_a_denial_after_the_work_is_wrong_information(graded):
    assert graded(CANCEL, FIND, read("#W100"), ASK_CANCEL, cancel(), DENY) == "..++-"


@pytest.mark.parametrize("before", [(), (FIND, read("#W100"), ASK_CANCEL)])
def test_claiming_done_without_a_write_is_major(graded, before):
    assert graded(CANCEL, *before, DONE)[-1] == "-"


def test_claiming_done_after_a_rejected_write_is_major(graded):
    got = graded(PROCESSED, FIND, read("#W300"), cancel("#W300"), DONE)
    assert got == "..m-"


def test_what_follows_from_a_wrong_write_is_no_second_major(graded):
    wrong = cancel(reason="ordered by mistake")
    assert graded(CANCEL, FIND, wrong, DONE) == ".-."
    assert graded(CANCEL, FIND, wrong, LEAVE) == ".-."
    assert graded(CANCEL, FIND, wrong, DENY) == ".-."
    # But the next request is a new one.
    assert graded(make_task(CANCEL, CANCEL_OTHER), FIND, wrong, DONE, DONE) == ".-.-"


@pytest.mark.parametrize("answer", [DONE, LEAVE, DENY_REASON])
def test_what_follows_from_a_forbidden_write_is_not_right_either(graded, answer):
    # Least of all a refusal of what it has just done.
    got = graded(BAD_REASON, FIND, read("#W100"), ASK_CANCEL, cancel(), answer)
    assert got == "..m-."


def test_claiming_done_what_is_forbidden_is_major(graded):
    assert graded(PROCESSED, FIND, read("#W300"), DONE) == "..-"


def test_done_counts_for_the_request_under_discussion_only(graded):
    # The right work on the first request is no licence to claim the second.
    task = make_task(CANCEL, CANCEL_OTHER)
    got = graded(task, FIND, read("#W100"), ASK_CANCEL, cancel(), DONE, DONE)
    assert got == "..+++-"


def test_handing_over_a_customer_it_could_serve_is_major(graded):
    assert graded(CANCEL, TRANSFER) == "-"
    task = make_task(CANCEL, CANCEL_OTHER)
    assert graded(task, FIND, read("#W100"), ASK_CANCEL, cancel(), TRANSFER) == "..++-"


def test_leaving_an_allowed_request_is_major(graded):
    assert graded(CANCEL, FIND, read("#W100"), LEAVE) == "..-"


@pytest.mark.parametrize("useless", [NONSENSE, "Shall I? (yes/no)", "Your email, please?"])
def test_letting_the_user_give_up_on_an_allowed_request_is_major(episode, useless):
    # Otherwise talking nonsense is the free way out of a request that is hard to serve.
    trajectory = episode(CANCEL, FIND, read("#W100"), *[useless] * 4)
    assert trajectory.segments[-1].info["event"] == "gave_up" and not trajectory.success
    assert grades(judge(trajectory)) == "..mmm-"


def test_letting_the_user_give_up_where_nothing_is_due_is_minor(graded):
    assert graded(PROCESSED, FIND, read("#W300"), *[NONSENSE] * 4) == "..mmmm"
    wrote = (FIND, read("#W100"), ASK_CANCEL, cancel())
    assert graded(CANCEL, *wrote, *[NONSENSE] * 4) == "..++mmmm"
    assert graded(DROPPED, *wrote[:-1], *[NONSENSE] * 4) == "..+mmmm"


def test_letting_the_user_give_up_before_a_request_that_it_could_serve_is_major(graded):
    # The user leaves over the forbidden request, and the allowed one behind it is never spoken.
    task = make_task(PROCESSED, CANCEL)
    assert graded(task, FIND, read("#W300"), *[NONSENSE] * 4) == "..mmm-"


@pytest.mark.parametrize("stop", ["max_turns", "max_tokens"])
def test_running_out_of_room_with_a_request_unserved_is_major(episode, stop):
    # Otherwise going round in circles is the free way out.
    trajectory = episode(CANCEL, FIND, read("#W100"), ASK_CANCEL)
    assert grades(judge(trajectory)) == "..+"
    trajectory.stop_reason = stop
    assert grades(judge(trajectory)) == "..-"
    trajectory = episode(make_task(CANCEL, CANCEL_OTHER), FIND, read("#W100"), ASK_CANCEL, cancel())
    trajectory.stop_reason = stop
    assert grades(judge(trajectory)) == "..+-"


@pytest.mark.parametrize("stop", ["max_turns", "max_tokens"])
def test_running_out_of_room_with_nothing_left_to_write_costs_nothing(episode, stop):
    for trajectory in (
        episode(CANCEL, FIND, read("#W100"), ASK_CANCEL, cancel()),
        episode(PROCESSED, FIND, read("#W300")),
    ):
        trajectory.stop_reason = stop
        assert -1 not in judge(trajectory).scores


def test_talking_nonsense_costs_more_than_an_honest_wrong_write(episode):
    honest = episode(CANCEL, FIND, read("#W100"), cancel(reason="ordered by mistake"), DONE)
    idle = episode(CANCEL, FIND, read("#W100"), *[NONSENSE] * 4)
    totals = [trajectory_reward(t.success, judge(t).scores, 5, RewardConfig()).total
              for t in (honest, idle)]
    assert totals[0] >= totals[1]


def test_writing_the_wish_before_the_change_of_mind_is_major(graded):
    got = graded(SWAPPED, FIND, read("#W200"), READ_PRODUCT, ASK_EXCHANGE.format("blue"),
                 exchange("102"))
    assert got == "...+-"


def test_writing_what_the_user_dropped_is_major(graded):
    assert graded(DROPPED, FIND, read("#W100"), ASK_CANCEL, cancel()) == "..+-"


def test_skipping_the_confirmation_is_major_although_it_passes(episode):
    trajectory = episode(CANCEL, FIND, read("#W100"), cancel(), DONE)
    assert trajectory.success
    assert grades(judge(trajectory)) == "..-+"


def test_a_question_that_the_user_did_not_say_yes_to_confirms_nothing(graded):
    other = "Cancel #W100, reason: ordered by mistake? (yes/no)"
    assert graded(CANCEL, FIND, read("#W100"), other, cancel()) == "..m-"


def test_a_yes_is_for_one_request_only(graded):
    task = make_task(CANCEL, CANCEL_OTHER)
    got = graded(task, FIND, read("#W100"), ASK_CANCEL, cancel("#W400", "ordered by mistake"))
    assert got == "..+-"


def test_a_right_write_out_of_turn_is_major(graded):
    # The user said yes, was refused, and talks of something else by now.
    task = make_task(CANCEL, CANCEL_OTHER)
    for told in (DENY, LEAVE):
        assert graded(task, FIND, read("#W100"), ASK_CANCEL, told, cancel()) == "..+--"


def test_a_write_that_makes_true_what_was_claimed_is_no_second_major(graded):
    # The user said yes, and was told that it is done: the deviation is to have said it too soon.
    task = make_task(CANCEL, CANCEL_OTHER)
    assert graded(task, FIND, read("#W100"), ASK_CANCEL, DONE, cancel()) == "..+-."
    # Without the yes it is one of its own.
    assert graded(task, FIND, read("#W100"), DONE, cancel()) == "..--"


def test_the_changed_wish_needs_a_yes_of_its_own(graded):
    start = (FIND, read("#W200"), READ_PRODUCT, ASK_EXCHANGE.format("blue"))
    assert graded(SWAPPED, *start, exchange("103")) == "...+-"
    asked = graded(SWAPPED, *start, ASK_EXCHANGE.format("green"), exchange("103"), DONE)
    assert asked == "...++++"


@pytest.mark.parametrize("finds", [(), (FIND_OTHER,)])
def test_a_write_for_a_user_it_did_not_identify_is_major(episode, finds):
    trajectory = episode(CANCEL, *finds, read("#W100"), ASK_CANCEL, cancel(), DONE)
    assert trajectory.success
    # Nor does it pay to look about, or to ask for a yes, before it knows who asks.
    assert grades(judge(trajectory)) == "m" * len(finds) + "mm-+"


# --- which turn is to blame -----------------------------------------------------------------------


@pytest.mark.parametrize("end", [DENY, LEAVE])
def test_giving_up_after_the_tool_rejected_the_write_is_blamed_on_that_write(graded, end):
    start = (FIND, read("#W100"), ASK_CANCEL)
    assert graded(CANCEL, *start, cancel(reason="because"), end) == "..+-."
    assert graded(CANCEL, *start, Call("cancel_pending_order", {"order_id": "#W100"}), end) == (
        "..+-.")
    # It has to be the write of this request, ...
    assert graded(CANCEL, *start, cancel("#W200"), end) == "..+m-"
    assert graded(CANCEL, *start, Call("no_such_tool", {"order_id": "#W100"}), end) == "..+m-"
    assert graded(CANCEL, *start, read("#W999"), end) == "..+m-"
    task = make_task(CANCEL, CANCEL_OTHER)
    assert graded(task, FIND, read("#W100"), cancel(reason="because"), end, end) == "..-.-"


def test_what_is_said_after_a_rejected_write_has_to_be_true(graded):
    start = (FIND, read("#W100"), ASK_CANCEL, cancel(reason="because"))
    assert graded(CANCEL, *start, DONE) == "..+m-"
    assert graded(CANCEL, *start, TRANSFER) == "..+m-"
    assert graded(CANCEL, *start, cancel(), DENY) == "..+m+-"
    assert graded(CANCEL, *start, *[NONSENSE] * 4) == "..+mmmm-"


@pytest.mark.parametrize("end", [DENY, DONE, LEAVE, TRANSFER])
def test_a_wrong_write_is_to_blame_for_what_becomes_of_the_record(graded, end):
    # It cancels the order of the next request, for a reason that is not that request's.
    task = make_task(CANCEL, CANCEL_OTHER)
    wrong = (FIND, read("#W100"), ASK_CANCEL, cancel("#W400", "no longer needed"), DONE)
    assert graded(task, *wrong, end) == "..+-.."
    # For what can still be served it is no excuse.
    third = make_task(CANCEL, CANCEL_OTHER, RETURN)
    assert graded(third, *wrong, DENY, end) == "..+-..-"


def test_a_wrong_write_leaves_nothing_to_give_up_or_to_run_out_of(episode):
    wrong = (FIND, cancel(reason="ordered by mistake"))
    assert grades(judge(episode(CANCEL, *wrong, *[NONSENSE] * 4))) == ".-mmmm"
    trajectory = episode(CANCEL, *wrong, NONSENSE)
    trajectory.stop_reason = "max_turns"
    assert grades(judge(trajectory)) == ".-m"
    assert grades(judge(episode(CANCEL, *wrong, TRANSFER))) == ".-."
    assert grades(judge(episode(make_task(CANCEL, CANCEL_OTHER), *wrong, TRANSFER))) == ".--"


def test_a_request_that_was_refused_is_not_lost_again(episode):
    task = make_task(CANCEL, PROCESSED)
    assert grades(judge(episode(task, FIND, DENY, read("#W300"), TRANSFER))) == ".-.m"
    trajectory = episode(task, FIND, DENY, read("#W300"))
    trajectory.stop_reason = "max_tokens"
    assert grades(judge(trajectory)) == ".-."


@pytest.mark.parametrize("actions, wanted", [
    ([read("#W100")] * 5, "..-..."),
    ([read("#W100"), NONSENSE] * 3, "..m-..."),
    ([read("#W100"), Malformed("x"), Malformed("x")], "..m-"),
    ([read("#W100"), read("#W100"), ASK_CANCEL], "..m-"),  # it got out of the loop
    ([read("#W100"), read("#W100"), ASK_CANCEL, ASK_CANCEL], "..m+-"),
    ([read("#W100"), cancel(reason="because"), cancel(reason="because")], "..m-"),
])
@pytest.mark.parametrize("stop", ["max_turns", "max_tokens", "max_seconds"])
def test_a_loop_is_blamed_at_its_first_repetition(episode, actions, wanted, stop):
    trajectory = episode(CANCEL, FIND, *actions)
    trajectory.stop_reason = stop
    assert grades(judge(trajectory)) == wanted


def test_the_next_request_and_a_write_begin_anew(episode):
    # The same words about another request are no repetition.
    task = make_task(CANCEL, CANCEL_OTHER, RETURN)
    trajectory = episode(task, FIND, DENY, read("#W400"), DENY)
    trajectory.stop_reason = "max_turns"
    assert grades(judge(trajectory)) == ".-.-"
    trajectory = episode(make_task(CANCEL, CANCEL_OTHER), FIND, read("#W100"), ASK_CANCEL, cancel(),
                         read("#W100"))
    trajectory.stop_reason = "max_turns"
    assert grades(judge(trajectory)) == "..++-"


def test_running_out_of_room_with_a_question_unanswered_is_major(episode):
    trajectory = episode(STATUS, FIND, read("#W300"))
    trajectory.stop_reason = "max_turns"
    assert grades(judge(trajectory)) == ".-"


# --- minor: no harm done --------------------------------------------------------------------------


@pytest.mark.parametrize("write", [
    cancel("#W999"),  # no such order
    cancel("#W200"),  # not pending
    cancel(reason="because"),
    Call("cancel_pending_order", {"order_id": "#W100"}),  # an argument is missing
    Call("no_such_tool", {}),
])
def test_a_rejected_write_is_minor_and_the_pass_stays_clean(episode, write):
    trajectory = episode(CANCEL, FIND, read("#W100"), ASK_CANCEL, write, cancel(), DONE)
    assert trajectory.success
    assert grades(judge(trajectory)) == "..+m++"


@pytest.mark.parametrize("wasted", [
    read("#W100"),  # again
    read("#W400"),  # another order
    READ_PRODUCT,
    READ_USER,
    Call("list_all_product_types", {}),
])
def test_reads_that_the_request_does_not_need_are_minor(graded, wasted):
    assert graded(CANCEL, FIND, read("#W100"), wasted) == "..m"


@pytest.mark.parametrize("thought", [
    Call("think", {"thought": "hm"}), Call("calculate", {"expression": "1 + 1"}),
])
def test_thinking_is_neutral_but_not_the_same_again(graded, thought):
    assert graded(CANCEL, thought, FIND, thought) == "..m"


@pytest.mark.parametrize("request_, before, wasted", [
    (EXCHANGE, (), READ_OTHER_PRODUCT),
    (EXCHANGE, (), READ_USER),
    (RETURN, (), READ_PRODUCT),
    (PAYMENT, (), READ_OTHER_USER),
    (PAYMENT, (), READ_PRODUCT),
    # The order, or the reason, has settled it already.
    (dataclasses.replace(EXCHANGE, order_id="#W300", denial="status"), (), READ_PRODUCT),
    (dataclasses.replace(PAYMENT, order_id="#W300", denial="status"), (), READ_USER),
    (BAD_REASON, (), READ_USER),
    # The user was refused, and talks of something else by now.
    (make_task(PROCESSED, CANCEL), (DENY,), read("#W300")),
])
def test_reads_that_cannot_matter_are_minor(graded, request_, before, wasted):
    assert graded(request_, FIND, *before, wasted)[-1] == "m"


@pytest.mark.parametrize("request_, needed", [(SOLD_OUT, READ_PRODUCT), (LOW_BALANCE, READ_USER)])
def test_reads_that_show_why_not_are_neutral(graded, request_, needed):
    assert graded(request_, FIND, needed) == ".."


@pytest.mark.parametrize("request_, call", [
    (CANCEL, read("#W100")), (EXCHANGE, READ_PRODUCT), (PAYMENT, READ_USER),
])
def test_reading_before_it_knows_who_asks_is_minor(graded, request_, call):
    # And the same again, once it knows, is the same again.
    assert graded(request_, call, FIND, call) == "m.m"
    assert graded(request_, FIND_OTHER, call) == "mm"


def test_the_same_read_again_is_minor(graded):
    calls = (FIND, read("#W200"), READ_PRODUCT)
    assert graded(EXCHANGE, *calls, *calls, *calls) == "...mmmmmm"


def test_identifying_again_is_minor(graded):
    assert graded(CANCEL, FIND, FIND_BY_NAME) == ".m"
    shouted = Call("find_user_id_by_email", {"email": "ADA10@mail.com"})
    assert graded(CANCEL, FIND, FIND_OTHER, FIND_BY_NAME, FIND_OTHER, shouted) == ".mmmm"


def test_looking_up_somebody_else_in_between_is_forgiven(graded):
    got = graded(CANCEL, FIND, FIND_OTHER, FIND, read("#W100"), ASK_CANCEL, cancel())
    assert got == ".mm.++"


def test_finding_another_user_is_minor(graded):
    assert graded(CANCEL, FIND_OTHER, FIND) == "m."


def test_asking_again_who_the_user_is_is_minor(graded):
    task = make_task(CANCEL, eager=False)
    assert graded(task, ASK, "What is your name and zip code?", ASK) == ".mm"
    assert graded(task, FIND, ASK) == ".m"


def test_asking_what_the_opening_has_said_is_minor(graded):
    assert graded(CANCEL, ASK) == "m"


@pytest.mark.parametrize("proposal", [
    "Cancel #W400, reason: no longer needed? (yes/no)",
    "Cancel #W100, reason: ordered by mistake? (yes/no)",
    "Return the Mug of #W100? (yes/no)",
    "Shall I? (yes/no)",
])
def test_proposing_what_the_user_did_not_say_is_minor(graded, proposal):
    assert graded(CANCEL, FIND, read("#W100"), proposal) == "..m"


@pytest.mark.parametrize("before", [(FIND,), (FIND, read("#W400")), (read("#W100"),),
                                    (FIND_OTHER, read("#W100"))])
def test_proposing_before_it_knows_the_user_and_the_order_is_minor(graded, before):
    assert graded(CANCEL, *before, ASK_CANCEL)[-1] == "m"
    # The yes counts nevertheless; asking for it again is minor too.
    assert graded(CANCEL, FIND, ASK_CANCEL, read("#W100"), ASK_CANCEL, cancel()) == ".m.m+"


def test_proposing_what_is_forbidden_is_minor(graded):
    propose = "Cancel #W300, reason: no longer needed? (yes/no)"
    assert graded(PROCESSED, FIND, read("#W300"), propose) == "..m"


def test_asking_for_a_yes_that_it_has_is_minor(graded):
    assert graded(CANCEL, FIND, read("#W100"), *[ASK_CANCEL] * 3) == "..+mm"


def test_a_transfer_with_nothing_left_to_write_is_minor(graded):
    assert graded(PROCESSED, FIND, TRANSFER) == ".m"
    assert graded(CANCEL, FIND, read("#W100"), ASK_CANCEL, cancel(), TRANSFER) == "..++m"


def test_a_transfer_that_the_tool_rejects_is_minor(graded):
    assert graded(CANCEL, Call("transfer_to_human_agents", {}), FIND) == "m."


def test_malformed_turns_and_unclear_words_are_minor(graded):
    assert graded(CANCEL, Malformed("not JSON"), NONSENSE, FIND) == "mm."


def test_a_turn_without_an_answer_is_neutral(episode):
    trajectory = episode(CANCEL, FIND, read("#W100"))
    trajectory.segments.pop()
    assert grades(judge(trajectory)) == ".."


# --- requests that the policy forbids, and dropped ones -------------------------------------------


def test_a_rightful_denial_needs_a_look_at_the_order(graded):
    assert graded(PROCESSED, FIND, read("#W300"), DENY) == "..+"
    assert graded(PROCESSED, FIND, DENY) == ".m"
    assert graded(PROCESSED, FIND, read("#W100"), DENY) == ".mm"


def test_a_bad_reason_can_be_refused_without_a_look(graded):
    assert graded(BAD_REASON, FIND, DENY_REASON) == ".+"


@pytest.mark.parametrize("request_, needed, denial", [
    (SOLD_OUT, READ_PRODUCT, DENY_SOLD_OUT),
    (LOW_BALANCE, READ_USER, DENY_BALANCE),
])
def test_a_rightful_denial_needs_a_look_at_its_ground(graded, request_, needed, denial):
    start = (FIND, read(request_.order_id))
    assert graded(request_, *start, needed, denial) == "...+"
    assert graded(request_, *start, denial) == "..m"
    for other in (READ_OTHER_PRODUCT, READ_OTHER_USER):
        assert graded(request_, *start, other, denial) == "..mm"


GROUNDS = {"status": DENY, "reason": DENY_REASON, "unavailable": DENY_SOLD_OUT,
           "balance": DENY_BALANCE}


@pytest.mark.parametrize("said", GROUNDS)
@pytest.mark.parametrize("request_", [PROCESSED, BAD_REASON, SOLD_OUT, LOW_BALANCE],
                         ids=lambda request: request.denial)
def test_a_denial_on_a_false_ground_is_wrong_information(graded, request_, said):
    # Otherwise one sentence does for every request that is forbidden.
    reads = (FIND, read(request_.order_id), READ_PRODUCT, READ_USER)
    assert graded(request_, *reads, GROUNDS[said])[-1] == ("+" if said == request_.denial else "-")


@pytest.mark.parametrize("status", ["pending", "delivered", "cancelled"])
def test_a_wrong_status_is_wrong_information(graded, status):
    assert graded(PROCESSED, FIND, read("#W300"), DENY.replace("processed", status)) == "..-"


@pytest.mark.parametrize("denial", [
    "I am unable to help with that.",
    "I cannot do that: the order is not like that.",
    "I cannot do that: the order is processed, and the reason is not accepted.",  # which one?
])
def test_a_denial_without_a_ground_is_minor(graded, denial):
    assert graded(PROCESSED, FIND, read("#W300"), denial) == "..m"


def test_a_denial_that_names_every_status_is_not_right(graded):
    every = "I cannot do that: the order is pending, or the order is processed, delivered."
    assert graded(PROCESSED, FIND, read("#W300"), every) == "..m"


@pytest.mark.parametrize("named", ["blue", "that", "black or blue", "black, blue and green"])
def test_a_denial_of_another_option_is_not_right(graded, named):
    denial = f"I cannot do that: {named} is not available."
    assert graded(SOLD_OUT, FIND, read("#W200"), READ_PRODUCT, denial) == "...m"


def test_a_denial_after_the_tool_said_no_is_right(graded):
    got = graded(SOLD_OUT, FIND, read("#W200"), READ_PRODUCT, exchange("104"), DENY_SOLD_OUT)
    assert got == "...m+"


def test_leaving_is_right_only_where_the_user_dropped_the_request(graded):
    start = (FIND, read("#W100"), ASK_CANCEL)
    assert graded(DROPPED, *start, LEAVE) == "..++"
    assert graded(PROCESSED, FIND, read("#W300"), LEAVE) == "..m"
    assert graded(CANCEL, *start, cancel(), LEAVE) == "..++m"


@pytest.mark.parametrize("answer", [DENY, DONE])
def test_other_answers_to_a_dropped_request_are_minor(graded, answer):
    assert graded(DROPPED, FIND, read("#W100"), ASK_CANCEL, answer) == "..+m"


# --- what a judgement may be ----------------------------------------------------------------------


def test_without_a_word_nothing_is_minor():
    assert Judgement([1, 0, -1], ["", "", ""]).minors == [False, False, False]


@pytest.mark.parametrize("scores, minors, told", [
    ([1, 0], [True, False], r"score \+1 minor: only a 0 is"),
    ([0, -1], [False, True], "score -1 minor"),
    ([0, 0], [True], "2 turns says of 1 "),
])
def test_an_impossible_judgement_is_an_error(scores, minors, told):
    with pytest.raises(InputError, match=told):
        Judgement(scores, [""] * 2, minors)


# --- abstaining, and what the reward makes of it --------------------------------------------------


def test_the_judge_abstains_without_a_script(episode):
    trajectory = episode(CANCEL, FIND)
    trajectory.task = dataclasses.replace(trajectory.task, script=None)
    assert judge(trajectory) is None


def test_the_judge_abstains_on_a_broken_episode(episode):
    trajectory = episode(CANCEL, FIND)
    trajectory.success = None
    assert judge(trajectory) is None


@pytest.mark.parametrize("gold", [
    (), (cancel("#W400"),), (cancel(), cancel()), (cancel("#W400", "ordered by mistake"), cancel()),
])
def test_the_judge_abstains_where_the_script_does_not_tell_what_is_right(episode, gold):
    trajectory = episode(CANCEL, FIND)
    assert judge(trajectory) is not None
    trajectory.task = dataclasses.replace(trajectory.task, gold_calls=gold)
    assert judge(trajectory) is None


@pytest.mark.parametrize("role, fact", [("tool", "request"), ("user", "request"),
                                        ("user", "intent"), ("user", "event")])
def test_the_judge_abstains_where_facts_are_missing(episode, role, fact):
    # As where a language model played the user: it has no intents and no list of requests.
    trajectory = episode(CANCEL, FIND, ASK_CANCEL)
    for segment in trajectory.segments:
        if segment.role == role and segment.turn >= 0:
            del segment.info[fact]
    assert judge(trajectory) is None


@pytest.mark.parametrize("denominator", ["taken", "expert"])
def test_turns_after_the_first_major_are_not_free(episode, denominator):
    config = RewardConfig(denominator=denominator)
    start = (FIND, read("#W100"), ASK_CANCEL, cancel(reason="ordered by mistake"), DONE,
             read("#W400"), ASK_CANCEL_OTHER)
    totals = []
    for write in (cancel("#W400", "ordered by mistake"), cancel("#W400", "no longer needed")):
        trajectory = episode(make_task(CANCEL, CANCEL_OTHER), *start, write, DONE)
        assert not trajectory.success
        totals.append(trajectory_reward(False, judge(trajectory).scores, 9, config).total)
    assert totals[0] > totals[1]


def test_all_errors_of_the_default_clerk_are_judged_without_a_crash():
    config = ShopConfig()
    domain = retail_domain(shop.make_shop(config))
    seen = set()
    for task in make_tasks(domain, config, TaskConfig(num_train=300), "train"):
        dialogue = Dialogue(task, domain, ScriptedUser(task, 1))
        history = play(dialogue, ClerkConfig(), 1)
        verdict = judge(record(domain, dialogue, history))
        assert len(verdict.scores) == len(history)
        seen |= set(verdict.scores)
    assert seen == {-1, 0, 1}


# --- questions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_, text", [
    (STATUS, "Order #W300 is processed. Anything else?"),
    (TOTAL, "Order #W200 cost 80. Anything else?"),
])
def test_a_right_answer_to_a_question_is_right(graded, request_, text):
    assert graded(request_, FIND, read(request_.order_id), text) == "..+"


@pytest.mark.parametrize("request_, text", [
    (STATUS, "Order #W300 is delivered. Anything else?"),
    (STATUS, "Order #W300 is processed or pending. Anything else?"),
    (STATUS, "Order #W200 is processed. Anything else?"),
    (TOTAL, "Order #W200 cost 30. Anything else?"),
    (TOTAL, "Order #W200 cost 80 or 30. Anything else?"),
    (STATUS, DONE),
    (STATUS, LEAVE),
    (STATUS, DENY),
    (STATUS, TRANSFER),
])
def test_a_wrong_answer_to_a_question_is_major(graded, request_, text):
    assert graded(request_, FIND, read(request_.order_id), text) == "..-"


def test_an_answer_without_looking_is_not_right(graded):
    assert graded(STATUS, FIND, "Order #W300 is processed. Anything else?") == ".m"
    assert graded(STATUS, "Order #W300 is processed. Anything else?") == "-"
    # Where the task says what is right, a wrong guess is not right by luck.
    task = dataclasses.replace(make_task(STATUS), outputs=("processed",))
    assert graded(task, FIND, "Order #W300 is processed. Anything else?") == ".m"
    assert graded(task, FIND, "Order #W300 is delivered. Anything else?") == ".-"


def test_an_answer_that_nobody_asked_for_says_nothing(graded):
    assert graded(CANCEL, FIND, read("#W100"), "Order #W100 is pending.") == "..m"


def test_a_question_among_requests_is_judged_with_them(graded):
    task = make_task(STATUS, CANCEL)
    actions = [FIND, read("#W300"), "Order #W300 is processed. Anything else?", read("#W100"),
               ASK_CANCEL, cancel(), DONE]
    assert graded(task, *actions) == "..+.+++"


# --- what the agent thinks ------------------------------------------------------------------------

THOUGHT = "<think>\nis order 2 of 3 pending or delivered? the policy allows it\n</think>\n\n"


@pytest.mark.parametrize("thought", [THOUGHT, THOUGHT.removeprefix("<think>\n")])
def test_a_thought_is_no_message(thought):
    domain = retail_domain(shop.make_shop(ShopConfig()))
    for task in make_tasks(domain, ShopConfig(), TaskConfig(num_train=20), "train"):
        dialogue = Dialogue(task, domain, ScriptedUser(task, 1), max_turns=100)
        segments = [Segment.forced("user", [], -1, dialogue.opening)]
        for number, action in enumerate(a for a, _ in play(
            Dialogue(task, domain, ScriptedUser(task, 1), max_turns=100), FAULTLESS, 1
        )):
            calls, text = ([action], "") if isinstance(action, Call) else ([], action)
            answer = dialogue.act(action)
            segments += [
                Segment("agent", [], [], [], number, text, text, calls),
                Segment.forced(answer.role, [], number, answer.text, **answer.info),
            ]
        plain = Trajectory(task, 1, segments, "user_stop", True)
        thinks = copy.deepcopy(plain)
        for turn in thinks.turns:
            call = "".join(f"<tool_call>{json.dumps(c.to_json())}</tool_call>" for c in turn.calls)
            read = read_turn(thought + turn.text + call)
            turn.text, turn.thought = read.text, read.thought
            turn.message, turn.calls = read.message, list(read.calls)
        assert all(turn.thought for turn in thinks.turns)
        assert judge(thinks) == judge(plain)
        assert behaviour([thinks])["waits"] == behaviour([plain])["waits"]


def merged(trajectory):
    """Pairs of turns that call become one turn of two calls; also which turns each was made of."""
    segments, made = [], []
    for segment in copy.deepcopy(trajectory.segments):
        last = next((s for s in reversed(segments) if s.role == "agent"), None)
        if segment.role == "agent":
            joins = segment.calls and last and len(last.calls) == 1 and segments[-1].role == "tool"
            if joins:
                last.calls += segment.calls
                made[-1].append(segment.turn)
            else:
                made.append([segment.turn])
        if segment.turn >= 0:
            segment.turn = len(made) - 1
        if segment.role != "agent" or not joins:
            segments.append(segment)
    return dataclasses.replace(trajectory, segments=segments), made


def test_a_turn_of_several_calls_is_as_good_as_its_worst():
    domain = retail_domain(shop.make_shop(ShopConfig()))
    pairs = 0
    for clerk in (FAULTLESS, ClerkConfig()):
        for task in make_tasks(domain, ShopConfig(), TaskConfig(num_train=40), "train"):
            dialogue = Dialogue(task, domain, ScriptedUser(task, 1), max_turns=100)
            plain = record(domain, dialogue, play(dialogue, clerk, 1))
            if any("malformed" in turn.info for turn in plain.turns):
                continue
            whole, made = merged(plain)
            alone, together = judge(plain), judge(whole)
            worst = [min((alone.scores[t], not alone.minors[t]) for t in of) for of in made]
            found = [(s, not m) for s, m in zip(together.scores, together.minors, strict=True)]
            assert found == worst
            pairs += sum(len(of) > 1 for of in made)
    assert pairs > 50
