"""The retail tools, where the recordings are silent or a slip would be costly."""

import json

import pytest
from small_databases import ADDRESS, small_retail

from tarl_jax.sandbox.domain import Refusal
from tarl_jax.sandbox.retail import retail_domain


@pytest.fixture
def domain():
    return retail_domain(small_retail())


@pytest.fixture
def state(domain):
    return domain.new_state()


def test_name_and_zip_find_the_user_at_the_modified_address(domain, state):
    find = {"first_name": "ADA", "last_name": "ito"}
    assert domain.call(state, "find_user_id_by_name_zip", find | {"zip": "801"}) == "ada_1"
    domain.call(state, "modify_user_address", {"user_id": "ada_1", **ADDRESS})
    assert domain.call(state, "find_user_id_by_name_zip", find | {"zip": "787"}) == "ada_1"
    old = domain.call(state, "find_user_id_by_name_zip", find | {"zip": "801"})
    assert old == "Error: user not found"


def test_modified_items_take_price_and_options_of_the_new_variant(domain, state):
    change = {"item_ids": ["100", "100"], "new_item_ids": ["102", "101"]}
    kwargs = {"order_id": "#W1", "payment_method_id": "gift_card_1", **change}
    order = json.loads(domain.call(state, "modify_pending_order_items", kwargs))
    assert [i["item_id"] for i in order["items"]] == ["102", "101", "101"]
    assert [i["options"]["color"] for i in order["items"]] == ["black", "blue", "blue"]
    assert order["payment_history"][1]["amount"] == 10  # 40 + 20 - 2 * 25
    assert state.get("users", "ada_1")["payment_methods"]["gift_card_1"]["balance"] == 20
    assert domain.call(state, "modify_pending_order_items", kwargs).startswith("Error: non-pending")


def test_modified_order_does_not_share_options_with_the_catalogue(domain, state):
    change = {"item_ids": ["101"], "new_item_ids": ["102"], "payment_method_id": "paypal_2"}
    domain.call(state, "modify_pending_order_items", {"order_id": "#W3", **change})
    state.edit("orders", "#W3")["items"][0]["options"]["color"] = "pink"
    assert domain.database["products"]["10"]["variants"]["102"]["options"]["color"] == "black"


@pytest.mark.parametrize(
    ("kwargs", "refusal"),
    [
        ({"item_ids": ["100"] * 3, "new_item_ids": ["101"] * 3}, "100 not found"),
        ({"new_item_ids": []}, "the number of items to be exchanged should match"),
        ({"new_item_ids": ["103"]}, "new item 103 not found or available"),
        ({"payment_method_id": "paypal_2"}, "payment method not found"),
        ({"new_item_ids": ["104"]}, "insufficient gift card balance to pay for the new item"),
    ],
)
def test_item_changes_are_refused(domain, state, kwargs, refusal):
    base = {"item_ids": ["100"], "new_item_ids": ["101"], "payment_method_id": "gift_card_1"}
    kwargs = {"order_id": "#W1", **base, **kwargs}
    assert domain.call(state, "modify_pending_order_items", kwargs) == f"Error: {refusal}"
    assert not state.changes()


def test_payment_moves_once_between_methods():
    database = small_retail()
    database["users"]["ada_1"]["payment_methods"]["gift_card_1"]["balance"] = 100
    domain = retail_domain(database)
    state = domain.new_state()
    kwargs = {"order_id": "#W1", "payment_method_id": "gift_card_1"}
    domain.call(state, "modify_pending_order_payment", kwargs)
    assert state.get("users", "ada_1")["payment_methods"]["gift_card_1"]["balance"] == 30
    back = kwargs | {"payment_method_id": "paypal_1"}
    assert "exactly one payment" in domain.call(state, "modify_pending_order_payment", back)


def test_change_of_payment_gives_the_gift_card_its_money_back():
    database = small_retail()
    database["orders"]["#W1"]["payment_history"][0]["payment_method_id"] = "gift_card_1"
    domain = retail_domain(database)
    state = domain.new_state()
    kwargs = {"order_id": "#W1", "payment_method_id": "paypal_1"}
    order = json.loads(domain.call(state, "modify_pending_order_payment", kwargs))
    kinds = [(p["transaction_type"], p["payment_method_id"]) for p in order["payment_history"][1:]]
    assert kinds == [("payment", "paypal_1"), ("refund", "gift_card_1")]
    assert state.get("users", "ada_1")["payment_methods"]["gift_card_1"]["balance"] == 100


def test_cancelling_refunds_a_gift_card():
    database = small_retail()
    database["orders"]["#W1"]["payment_history"][0]["payment_method_id"] = "gift_card_1"
    domain = retail_domain(database)
    state = domain.new_state()
    kwargs = {"order_id": "#W1", "reason": "ordered by mistake"}
    order = json.loads(domain.call(state, "cancel_pending_order", kwargs))
    assert [p["transaction_type"] for p in order["payment_history"]] == ["payment", "refund"]
    assert state.get("users", "ada_1")["payment_methods"]["gift_card_1"]["balance"] == 100


def test_return_goes_to_the_original_method_or_a_gift_card(domain, state):
    kwargs = {"order_id": "#W2", "item_ids": ["101", "100"]}
    refused = domain.call(
        state, "return_delivered_order_items", kwargs | {"payment_method_id": "paypal_1"}
    )
    assert refused.startswith("Error: payment method should be")
    kwargs["payment_method_id"] = "gift_card_1"
    order = json.loads(domain.call(state, "return_delivered_order_items", kwargs))
    assert order["return_items"] == ["100", "101"]
    # The money moves when the items arrive, not now.
    assert set(state.changes()) == {("orders", "#W2")}


@pytest.mark.parametrize(
    ("name", "kwargs", "refusal"),
    [
        ("get_order_details", {}, "missing argument 'order_id'"),
        ("get_order_details", None, "arguments should be a JSON object"),
        ("get_order_details", {"order_id": 1}, "argument 'order_id' should be of type string"),
        ("get_order_details", {"order_id": "#W1", "db": 1}, "unexpected argument 'db'"),
        (
            "return_delivered_order_items",
            {"order_id": "#W2", "item_ids": "100", "payment_method_id": "paypal_1"},
            "argument 'item_ids' should be of type array of string",
        ),
        (
            "return_delivered_order_items",
            {"order_id": "#W2", "item_ids": [100], "payment_method_id": "paypal_1"},
            "argument 'item_ids' should be of type array of string",
        ),
    ],
)
def test_ill_formed_calls_are_refused_by_name(domain, state, name, kwargs, refusal):
    assert domain.call(state, name, kwargs) == f"Error: {refusal}"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("refund_everything", "Unknown action refund_everything"),  # as the benchmark has it
        ("", "Unknown action "),
        (["think"], "Error: the name of a tool should be a string"),
        (None, "Error: the name of a tool should be a string"),
    ],
)
def test_a_tool_that_does_not_exist_is_a_refusal(domain, state, name, answer):
    output = domain.call(state, name, {})
    assert output == answer and isinstance(output, Refusal)


def test_what_a_tool_answers_is_no_refusal_whatever_it_says(domain, state):
    state.edit("users", "ada_1")["email"] = "Error: x"
    assert not isinstance(domain.call(state, "get_user_details", {"user_id": "ada_1"}), Refusal)
    assert isinstance(domain.call(state, "get_user_details", {"user_id": "ben"}), Refusal)
