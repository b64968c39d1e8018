"""The shortest faultless dialogue of published tasks: what is looked up, asked and done."""

import json
from pathlib import Path

import numpy as np
import pytest

from tarl_jax.config import ShopConfig
from tarl_jax.sandbox import load_benchmark_tasks, load_domain
from tarl_jax.sandbox.airline import airline_domain
from tarl_jax.sandbox.carrier import make_carrier
from tarl_jax.sandbox.faultless import faultless_dialogue
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.shop import make_shop
from tarl_jax.types import Call, GoldAction, Task

SHARED = Path(__file__).parents[3] / "shared/tau_bench"
SHOP = make_shop(ShopConfig(num_users=20))
RETAIL = retail_domain(SHOP, "Be kind.")


def task(*gold, user_id="", instruction="Do it.", outputs=(), **more):
    return Task("t", user_id, instruction, gold, outputs, "train", "x", None, 1, **more)


def names(turns):
    return [t.action.name if isinstance(t.action, Call) else "says" for t in turns]


def test_a_cancelled_order_takes_six_turns():
    order = next(o for o in SHOP["orders"].values() if o["status"] == "pending")
    user = SHOP["users"][order["user_id"]]
    gold = Call("cancel_pending_order",
                {"order_id": order["order_id"], "reason": "no longer needed"})
    opening, turns = faultless_dialogue(RETAIL, task(gold, user_id=order["user_id"]))
    assert opening == "Do it."
    assert names(turns) == ["find_user_id_by_name_zip", "get_user_details", "get_order_details",
                            "says", "cancel_pending_order", "says"]
    assert turns[0].answer == order["user_id"] and json.loads(turns[2].answer) == order
    assert order["order_id"] in turns[3].action and "no longer needed" in turns[3].action
    assert json.loads(turns[4].answer)["status"] == "cancelled"
    # One who says its email is found by it.
    known = task(gold, user_id=order["user_id"], instruction=f"I am {user['email']}.")
    assert names(faultless_dialogue(RETAIL, known)[1])[0] == "find_user_id_by_email"
    # Its user is nobody: nothing can be looked up but the order.
    assert names(faultless_dialogue(RETAIL, task(gold))[1]) == names(turns)[2:]
    brief = faultless_dialogue(RETAIL, task(gold, user_id=order["user_id"]), True)[1]
    assert json.loads(brief[4].answer) == {"status": "cancelled"} and brief[:4] == turns[:4]


def test_new_items_are_looked_up_in_their_product_once_and_old_ones_are_not():
    order = next(o for o in SHOP["orders"].values()
                 if o["status"] == "delivered" and len(o["items"]) > 1)
    first = order["items"][0]
    other = next(v for v in SHOP["products"][first["product_id"]]["variants"]
                 if v != first["item_id"])
    exchange = Call("exchange_delivered_order_items", {
        "order_id": order["order_id"], "item_ids": [first["item_id"]], "new_item_ids": [other],
        "payment_method_id": order["payment_history"][0]["payment_method_id"],
    })
    assert names(faultless_dialogue(RETAIL, task(exchange))[1]) == [
        "get_order_details", "get_product_details", "says", "exchange_delivered_order_items", "says"
    ]
    returned = Call("return_delivered_order_items", {
        "order_id": order["order_id"], "item_ids": [first["item_id"]],
        "payment_method_id": order["payment_history"][0]["payment_method_id"],
    })
    assert names(faultless_dialogue(RETAIL, task(returned, exchange))[1]) == [
        "get_order_details", "says", "return_delivered_order_items",
        "get_product_details", "says", "exchange_delivered_order_items", "says",
    ]


def test_flights_are_searched_on_the_day_that_they_are_booked_for():
    domain = airline_domain(make_carrier(), "Be kind.")
    number, flight = next(iter(domain.database["flights"].items()))
    date = sorted(flight["dates"])[0]
    reservation = next(iter(domain.database["reservations"]))
    change = Call("update_reservation_flights", {
        "reservation_id": reservation, "cabin": "economy",
        "flights": [{"flight_number": number, "date": date}], "payment_id": "x",
    })
    turns = faultless_dialogue(domain, task(change))[1]
    assert names(turns) == ["get_reservation_details", "search_direct_flight", "says",
                            "update_reservation_flights", "says"]
    assert turns[1].action.kwargs == {
        "origin": flight["origin"], "destination": flight["destination"], "date": date,
    }


def test_what_is_asked_is_told_and_nothing_is_read_twice():
    order = next(o for o in SHOP["orders"].values() if o["status"] == "pending")
    look = {"order_id": order["order_id"]}
    actions = (
        GoldAction("get_order_details", look), GoldAction("get_order_details", look),
        GoldAction("restart", {"what": "phone"}, requestor="user"),
    )
    turns = faultless_dialogue(RETAIL, task(outputs=("54.04",), actions=actions))[1]
    assert names(turns) == ["get_order_details", "says", "says"]
    assert "restart (what: phone)" in turns[1].action and "54.04" in turns[2].action


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_every_training_task_of_tau_bench_is_played():
    """The end is the recorded one: the gold calls do what they did there."""
    domain = load_domain("retail", SHARED / "retail")
    tasks = load_benchmark_tasks("retail", SHARED / "retail", domain)
    train = [t for t in tasks if t.split == "train"]
    turns = [faultless_dialogue(domain, t)[1] for t in train]
    assert [len(t) for t in turns] == [t.expert_turns for t in train]
    assert np.median([len(t) for t in turns]) == 7 and max(map(len, turns)) == 27
    for one, played in zip(train, turns, strict=True):
        made = [t.action for t in played if isinstance(t.action, Call)]
        assert [c for c in made if domain.tools[c.name].write] == list(one.gold_calls)
        assert not any(t.answer.startswith("Error") for t in played[:3])
