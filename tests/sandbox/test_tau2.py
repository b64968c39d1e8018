"""τ²-bench's rule book: its quirks one by one, and the words of pydantic."""

import json

import pytest

from tarl_jax.sandbox import load_domain
from tarl_jax.sandbox.airline_tau2 import PASSENGER, PAYMENT
from tarl_jax.sandbox.domain import Refusal, ToolError
from tarl_jax.sandbox.retail_tau2 import ADDRESS
from tarl_jax.sandbox.starts import start_of


@pytest.fixture(scope="module")
def retail():
    return load_domain("retail", rules="tau2")


@pytest.fixture(scope="module")
def airline():
    return load_domain("airline", rules="tau2")


def test_rules_are_told_or_refused():
    assert load_domain("retail").rules == "tau"
    with pytest.raises(ValueError, match="rules 'tau3': choose one of tau, tau2"):
        load_domain("retail", rules="tau3")


@pytest.mark.parametrize(("name", "kwargs", "answer"), [
    ("think", {"thought": ""}, "Error: Tool 'think' not found."),
    ("get_order_details", {}, "Error: RetailTools.get_order_details() missing 1 required positional"
     " argument: 'order_id'"),
    ("get_order_details", {"order_id": 7}, "Error: Order not found"),
    ("get_order_details", {"order_id": []}, "Error: unhashable type: 'list'"),
    ("calculate", {"expression": "a"}, "Error: Invalid characters in expression"),
])
def test_refusals(retail, name, kwargs, answer):
    got = retail.call(retail.new_state(), name, kwargs)
    assert got == answer and isinstance(got, Refusal)


def starting(**tables):
    return {"initialization_data": {"agent_data": tables}}


def test_records_of_a_start_have_the_rules_types(retail):
    # τ² holds them in typed models: a price that a task writes as 7 is 7.0, in answers and hash.
    key, product = next(iter(retail.database["products"].items()))
    item, variant = next(iter(product["variants"].items()))
    changed = {"variants": {item: {"price": 7, "luck": 1}}}
    state = start_of(retail, starting(products={key: changed}))
    found = state.get("products", key)["variants"][item]
    assert found == {**variant, "price": 7.0} and isinstance(found["price"], float)
    same = start_of(retail, starting(products={key: {"variants": {item: {
        "price": float(variant["price"])}}}}))
    assert retail.state_hash(same) == retail.state_hash(retail.new_state())
    assert retail.state_hash(state) != retail.state_hash(retail.new_state())
    new = start_of(retail, starting(products={"new": {**product, "product_id": "new"}}))
    assert new.get("products", "new")["variants"] == product["variants"]


@pytest.mark.parametrize(("initial", "told"), [
    (starting(products={"new": {"name": "Mug"}}), "initialization_data: products: .*variants"),
    (starting(products=[1]), "products must be an object of records"),
    (starting(products={"x": 7}), "products must be an object of records"),
    (starting(luck={}), "there is no table 'luck'"),
    ({"initialization_data": {"agent_data": [1]}}, "agent_data must be an object"),
    ({"initialization_data": {"user_data": {"x": {}}}}, "user_data cannot be set"),
    ({"initialization_data": [1]}, "must be an object"),
    ({"initialization_actions": {"func_name": "x"}}, "initialization_actions a list"),
    ({"initialization_actions": ["x"]}, "must have a func_name"),
    ({"initialization_actions": [{"func_name": 7}]}, "must have a func_name"),
    ({"initialization_actions": [{"func_name": "x", "arguments": [1]}]}, "must have a func_name"),
    ({"initialization_actions": [{"func_name": "x", "env_type": None}]}, "must have a func_name"),
])
def test_a_start_that_cannot_be_made_is_refused_by_name(retail, initial, told):
    with pytest.raises(ValueError, match=f"(?s)here: initial_state: .*{told}"):
        start_of(retail, initial, "here")


def pending(retail, items):
    """An order that is pending, of several items, each with another variant that may be bought."""
    for order_id, order in retail.database["orders"].items():
        swaps = {}
        for item in order["items"]:
            variants = retail.database["products"][item["product_id"]]["variants"]
            free = [v for k, v in variants.items() if v["available"] and k != item["item_id"]]
            if free:
                swaps.setdefault(item["item_id"], free[0])
        if order["status"] == "pending" and len(swaps) >= items:
            user = retail.database["users"][order["user_id"]]
            for method_id, method in user["payment_methods"].items():
                if method["source"] != "gift_card":
                    return order_id, dict(list(swaps.items())[:items]), method_id
    raise AssertionError("no such order")


def test_all_changed_items_take_the_last_ones_price_and_options(retail):
    order_id, swaps, method_id = pending(retail, 2)
    state = retail.new_state()
    wanted = list(swaps.values())
    kwargs = {"order_id": order_id, "item_ids": list(swaps), "payment_method_id": method_id,
              "new_item_ids": [variant["item_id"] for variant in wanted]}
    order = json.loads(retail.call(state, "modify_pending_order_items", kwargs))
    changed = [i for i in order["items"] if i["item_id"] in kwargs["new_item_ids"]]
    assert len(changed) >= 2
    assert {i["price"] for i in changed} == {wanted[-1]["price"]}
    assert all(i["options"] == wanted[-1]["options"] for i in changed)
    # The address may still change, the items may not.
    address = retail.database["users"][order["user_id"]]["address"]
    moved = retail.call(state, "modify_pending_order_address", {"order_id": order_id, **address})
    assert json.loads(moved)["address"] == address
    assert retail.call(state, "modify_pending_order_items", kwargs) == (
        "Error: Non-pending order cannot be modified"
    )


def test_an_item_is_not_changed_for_itself(retail):
    order_id, swaps, method_id = pending(retail, 1)
    same = list(swaps)
    kwargs = {"order_id": order_id, "item_ids": same, "new_item_ids": same,
              "payment_method_id": method_id}
    assert retail.call(retail.new_state(), "modify_pending_order_items", kwargs) == (
        "Error: The new item id should be different from the old item id"
    )


def flight_of(airline):
    for number, flight in airline.database["flights"].items():
        for date, day in flight["dates"].items():
            if day["status"] == "available" and day["available_seats"]["economy"] >= 2:
                return number, date, day
    raise AssertionError("no free flight")


def booking(airline, method_id, amounts):
    number, date, _ = flight_of(airline)
    user_id = next(iter(airline.database["users"]))
    return {
        "user_id": user_id, "origin": "A", "destination": "B", "flight_type": "one_way",
        "cabin": "economy", "flights": [{"flight_number": number, "date": date}],
        "passengers": [{"first_name": "A", "last_name": "B", "dob": "1990-01-01"}],
        "payment_methods": [{"payment_id": method_id, "amount": a} for a in amounts],
        "total_baggages": 0, "nonfree_baggages": 0, "insurance": "no",
    }


def with_method(airline, source, amount):
    state = airline.new_state()
    user_id = next(iter(airline.database["users"]))
    method = {"source": source, "id": "m", "amount": amount}
    state.edit("users", user_id)["payment_methods"]["m"] = method
    return state


def test_a_booking_takes_seats_and_three_are_all(airline):
    number, date, day = flight_of(airline)
    price, seats = day["prices"]["economy"], day["available_seats"]["economy"]
    state = with_method(airline, "gift_card", 10.0 * price)
    kwargs = booking(airline, "m", [price])
    for left in (seats - 1, seats - 2):
        assert not isinstance(airline.call(state, "book_reservation", kwargs), Refusal)
        now = state.get("flights", number)["dates"][date]["available_seats"]["economy"]
        assert now == left
    state.add("reservations", "HATHAV", state.get("reservations", "HATHAT"))
    assert airline.call(state, "book_reservation", kwargs) == "Error: Too many reservations"


def test_a_certificate_that_pays_twice_is_lost(airline):
    _, _, day = flight_of(airline)
    price = day["prices"]["economy"]
    state = with_method(airline, "certificate", 1000.0)
    answer = airline.call(state, "book_reservation", booking(airline, "m", [1, price - 1]))
    assert answer == "Error: 'm'" and isinstance(answer, Refusal)
    assert "m" not in state.get("users", next(iter(airline.database["users"])))["payment_methods"]
    assert state.get("reservations", "HATHAT") is None


def test_a_part_of_a_dollar_is_taken_and_refused(airline):
    reservation_id, reservation = next(
        (k, r) for k, r in airline.database["reservations"].items()
        if r["user_id"] == next(iter(airline.database["users"]))
    )
    state = with_method(airline, "gift_card", 100.0)
    kwargs = {"reservation_id": reservation_id, "total_baggages": 9, "payment_id": "m",
              "nonfree_baggages": reservation["nonfree_baggages"] + 0.25}
    answer = airline.call(state, "update_reservation_baggages", kwargs)
    assert answer.startswith("Error: 1 validation error for Payment\namount\n  Input should be")
    assert state.get("users", reservation["user_id"])["payment_methods"]["m"]["amount"] == 87.5
    assert state.get("reservations", reservation_id) == reservation


def test_a_number_is_equal_in_a_verdict_and_not_in_the_hash(airline):
    reservation_id = next(iter(airline.database["reservations"]))
    states = airline.new_state(), airline.new_state()
    for state, bags in zip(states, (2, 2.0), strict=True):
        state.edit("reservations", reservation_id)["total_baggages"] = bags
    assert airline.same(*states)
    assert airline.state_hash(states[0]) != airline.state_hash(states[1])


# ---- as pydantic 2.14 says it ----------------------------------------------------------------


def test_fields_are_read_in_their_order_and_type():
    assert PAYMENT.read({"amount": " 7.0 ", "more": 1, "payment_id": "p"}) == {
        "payment_id": "p", "amount": 7
    }
    assert list(PASSENGER.read({"dob": "d", "last_name": "l", "first_name": "f"})) == [
        "first_name", "last_name", "dob"
    ]


@pytest.mark.parametrize(("model", "values", "text"), [
    (PAYMENT, {"payment_id": "p", "amount": 2.5},
     "1 validation error for Payment\namount\n  Input should be a valid integer, got a number with"
     " a fractional part [type=int_from_float, input_value=2.5, input_type=float]\n"
     "    For further information visit https://errors.pydantic.dev/2.14/v/int_from_float"),
    (ADDRESS, {"address1": 7},
     "6 validation errors for UserAddress\naddress1\n  Input should be a valid string"
     " [type=string_type, input_value=7, input_type=int]\n"),
    (PASSENGER, {"first_name": "é" * 60, "last_name": "b"},
     "1 validation error for Passenger\ndob\n  Field required [type=missing,"
     " input_value={'first_name': 'éééé...éé', 'last_name': 'b'}, input_type=dict]\n"),
])
def test_the_words_are_pydantics(model, values, text):
    with pytest.raises(ToolError) as caught:
        model.read(values)
    assert str(caught.value).startswith(text)
