"""Scripts survive the way to disk, and say which calls are right."""

import dataclasses
import json

import pytest

from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.shop_requests import KINDS, Request, right_answer, write_call
from tarl_jax.types import Call

EXCHANGE = Request("exchange", "#W200", "credit_card_11", item="Mug", item_id="101",
                   product_id="10", option="blue", new_item_id="102")
GREEN = dataclasses.replace(EXCHANGE, option="green", new_item_id="103")
CANCEL = Request("cancel", "#W100", reason="no longer needed")
CALLS = {
    "cancel": Call("cancel_pending_order", {"order_id": "#W200", "reason": "ordered by mistake"}),
    "return": Call("return_delivered_order_items", {
        "order_id": "#W200", "item_ids": ["101"], "payment_method_id": "credit_card_11"}),
    "exchange": Call("exchange_delivered_order_items", {
        "order_id": "#W200", "item_ids": ["101"], "new_item_ids": ["102"],
        "payment_method_id": "credit_card_11"}),
    "modify": Call("modify_pending_order_items", {
        "order_id": "#W200", "item_ids": ["101"], "new_item_ids": ["102"],
        "payment_method_id": "credit_card_11"}),
    "payment": Call("modify_pending_order_payment", {
        "order_id": "#W200", "payment_method_id": "credit_card_11"}),
}


def make_script(*requests):
    return Script("Ada", "Ito", "ada10@mail.com", "801", "email", True, requests)


def test_json_of_a_script_is_what_comes_back_from_disk():
    # A saved task must equal the one that was saved; a tuple would come back as a list.
    changed = dataclasses.replace(EXCHANGE, change="option", then=GREEN)
    for script in (make_script(), make_script(CANCEL, changed)):
        data = script.to_json()
        assert json.loads(json.dumps(data)) == data
        assert Script.from_json(json.loads(json.dumps(data))) == script


def test_a_changed_wish_comes_back_as_a_request():
    changed = dataclasses.replace(EXCHANGE, change="option", then=GREEN)
    again = Script.from_json(make_script(changed).to_json())
    assert isinstance(again.requests, tuple)
    assert again.requests[0].then == GREEN and again.requests[0].final == GREEN


@pytest.mark.parametrize("kind", KINDS)
def test_each_wish_has_its_call(kind):
    wish = dataclasses.replace(EXCHANGE, kind=kind, reason="ordered by mistake")
    assert write_call(wish) == CALLS[kind]
    assert wish.gold == CALLS[kind]


def test_the_right_call_is_that_of_the_wish_that_stands():
    changed = dataclasses.replace(EXCHANGE, change="option", then=GREEN)
    assert changed.gold.kwargs["new_item_ids"] == ["103"]
    assert dataclasses.replace(CANCEL, change="drop").gold is None
    assert dataclasses.replace(CANCEL, denial="status").gold is None


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="request kind 'refund': expected one of cancel"):
        write_call(dataclasses.replace(CANCEL, kind="refund"))


def test_a_question_has_no_call_and_an_aside_survives_json():
    asks = Request("ask_total", "#W1", aside="I keep the rest.")
    assert asks.gold is None
    with pytest.raises(ValueError, match="'ask_total': expected one of cancel"):
        write_call(asks)
    assert Request.from_json(asks.to_json()) == asks
    assert "aside" not in dataclasses.replace(asks, aside="").to_json()


def test_the_right_answer_is_the_status_or_the_first_payment():
    order = {"status": "pending", "payment_history": [{"amount": 12.5}, {"amount": 3}]}
    assert right_answer("ask_status", order) == "pending"
    assert right_answer("ask_total", order) == "12.5"
