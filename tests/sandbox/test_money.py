"""Money is conserved, to the cent, whatever is called; and where the benchmark itself loses some.

The tools reproduce τ-bench's to the letter, so its leaks are ours. Each is asserted for what it is
(`LEAK` below) instead of being left out:

- retail: to cancel an order refunds every entry of its history. Once its payment was changed, that
  is the old payment, the new one and the refund of the old one: twice the price too much.
- airline: to cancel a reservation notes refunds, but no gift card gets its money back;
- airline: to have fewer bags that are paid for brings no refund, and having them again costs again;
- airline: what a certificate has left is lost (the policy says so too).
"""

import copy
import json
import random
from pathlib import Path

import pytest
from small_databases import small_retail
from tool_calls import episode

from tarl_jax.sandbox import load_domain
from tarl_jax.sandbox.airline import BAGGAGE_PRICE, INSURANCE_PRICE
from tarl_jax.sandbox.domain import Refusal
from tarl_jax.sandbox.retail import retail_domain

SHARED = Path(__file__).parents[3] / "shared" / "tau_bench"


@pytest.fixture(scope="module", params=["embedded", "published"])
def data(request):
    if request.param == "published" and not SHARED.is_dir():
        pytest.skip(f"no benchmark data at {SHARED}")
    return request.param


def cents(dollars):
    assert abs(100 * dollars - round(100 * dollars)) < 1e-3, f"{dollars} is no whole cent"
    return round(100 * dollars)


def steps(name, data, episodes, length):
    """(domain, tool, arguments, records before, records after) of every call that succeeded.

    Records are by (table, key), those that the episode has written, else as in the database.
    """
    domain = load_domain(name, None if data == "embedded" else SHARED / name)
    for number in range(episodes):
        state = domain.new_state()
        rng = random.Random(f"money {number}")
        before = {}
        for tool, kwargs in episode(rng, domain, state, length):
            if isinstance(domain.call(state, tool, kwargs), Refusal):
                continue
            after = copy.deepcopy(state.changes())
            where = before.keys() | after.keys()
            base = domain.database
            yield domain, tool, kwargs, *(
                {at: some.get(at) or base[at[0]].get(at[1]) for at in where}
                for some in (before, after)
            )
            before = after


def table(records, name):
    return {key: record for (where, key), record in records.items() if where == name}


def cards(records, field):
    """(user, gift card) -> its balance in cents."""
    return {
        (user_id, method["id"]): cents(method[field])
        for user_id, user in table(records, "users").items()
        for method in user["payment_methods"].values()
        if method["source"] == "gift_card"
    }


def changes(before, after):
    return {key: after.get(key, 0) - before.get(key, 0) for key in before.keys() | after.keys()
            if after.get(key, 0) != before.get(key, 0)}


# --- retail ---------------------------------------------------------------------------------------


def entries(order):
    """(payment method, cents; negative where refunded) of each entry in an order's history."""
    for entry in order["payment_history"]:
        sign = 1 if entry["transaction_type"] == "payment" else -1
        yield entry["payment_method_id"], sign * cents(entry["amount"])


def net(order):
    return sum(amount for _, amount in entries(order))


def cost(order):
    return sum(cents(item["price"]) for item in order["items"])


def paid_by_cards(records, of_card):
    paid = {}
    for order in table(records, "orders").values():
        for method, amount in entries(order):
            if of_card(order["user_id"], method):
                key = order["user_id"], method
                paid[key] = paid.get(key, 0) + amount
    return paid


def test_retail_money_is_conserved(data):
    seen = set()
    for domain, tool, kwargs, before, after in steps("retail", data, 60, 16):
        seen.add(tool)
        at = tool, kwargs

        def of_card(user_id, method, users=domain.database["users"]):
            return users[user_id]["payment_methods"][method]["source"] == "gift_card"

        # Gift cards move by what the histories of orders say, and never below zero.
        moved = changes(cards(before, "balance"), cards(after, "balance"))
        paid = changes(paid_by_cards(before, of_card), paid_by_cards(after, of_card))
        assert moved == {key: -amount for key, amount in paid.items()}, at
        assert all(balance >= 0 for balance in cards(after, "balance").values()), at
        for key, order in table(after, "orders").items():
            old = table(before, "orders")[key]
            if order["status"] != "cancelled":
                assert net(order) == cost(order), at  # what was paid is what the items cost
            elif old["status"] == "cancelled":
                assert order == old, at
            else:
                refunded = -sum(amount for _, amount in entries(old) if amount < 0)
                assert net(order) == -2 * refunded, at  # 0, or the LEAK
                seen.add("leak" if refunded else "no leak")
    writes = {name for name, tool in load_domain("retail").tools.items() if tool.write}
    assert seen >= writes


def test_a_retail_order_is_refunded_too_much_after_its_payment_changed():
    database = small_retail()
    database["users"]["ada_1"]["payment_methods"]["gift_card_1"]["balance"] = 100
    domain = retail_domain(database)
    state = domain.new_state()
    order = {"order_id": "#W1"}
    gift_card = {"payment_method_id": "gift_card_1"}
    domain.call(state, "modify_pending_order_payment", order | gift_card)
    reason = {"reason": "no longer needed"}
    order = json.loads(domain.call(state, "cancel_pending_order", order | reason))
    assert [amount for _, amount in entries(order)] == [7000, 7000, -7000, -7000, -7000, -7000]
    assert net(order) == -2 * 7000  # LEAK
    card = state.get("users", "ada_1")["payment_methods"]["gift_card_1"]
    assert card["balance"] == 100  # its own 70 came back; the 140 are paypal's


# --- airline --------------------------------------------------------------------------------------


def history(reservation):
    return [(entry["payment_id"], cents(entry["amount"])) for entry in
            reservation["payment_history"]]


def total(reservation):
    return sum(amount for _, amount in history(reservation))


def fare(reservation):
    flights = sum(cents(flight["price"]) for flight in reservation["flights"])
    return flights * len(reservation["passengers"])


def price(reservation):
    """What it costs in cents as it stands."""
    insured = INSURANCE_PRICE * len(reservation["passengers"]) * (reservation["insurance"] == "yes")
    return fare(reservation) + cents(insured + BAGGAGE_PRICE * reservation["nonfree_baggages"])


def certificates(records):
    return {
        (user_id, method["id"]): cents(method["amount"])
        for user_id, user in table(records, "users").items()
        for method in user["payment_methods"].values()
        if method["source"] == "certificate"
    }


def test_airline_money_is_conserved(data):
    seen = set()
    for _, tool, kwargs, before, after in steps("airline", data, 60, 16):
        seen.add(tool)
        at = tool, kwargs
        noted = {}  # (user, payment method) -> what the histories say that it paid
        for key, new in table(after, "reservations").items():
            old = table(before, "reservations")[key]
            for method, amount in history(new)[len(history(old)) if old else 0 :]:
                noted[new["user_id"], method] = noted.get((new["user_id"], method), 0) + amount
            if old is None:
                assert tool == "book_reservation" and total(new) == price(new), at
            elif new == old:
                continue
            elif tool == "cancel_reservation":
                assert total(new) == 0, at
            elif tool == "update_reservation_baggages":
                more = new["nonfree_baggages"] - old["nonfree_baggages"]
                # LEAK: not `more` alone, so fewer bags bring no refund.
                assert total(new) - total(old) == cents(BAGGAGE_PRICE * max(0, more)), at
                seen.add("fewer bags" if more < 0 else "more bags")
            else:
                assert total(new) - total(old) == fare(new) - fare(old), at
        moved = changes(cards(before, "amount"), cards(after, "amount"))
        by_card = {key: -amount for key, amount in noted.items()
                   if key in cards(after, "amount") and amount}
        if tool == "cancel_reservation":
            assert not moved, at  # LEAK: whatever was noted
            seen.add("card not refunded" if any(by_card.values()) else "")
        else:
            assert moved == by_card, at
        assert all(balance >= 0 for balance in cards(after, "amount").values()), at
        gone = changes(certificates(before), certificates(after))
        if tool == "send_certificate":
            assert sum(gone.values()) == cents(kwargs["amount"]), at
        elif tool == "book_reservation":
            for key, amount in gone.items():
                assert noted[key] <= -amount, at  # used up whole; the rest is a LEAK
        else:
            assert not gone, at
    writes = {name for name, tool in load_domain("airline").tools.items() if tool.write}
    assert seen >= writes | {"fewer bags", "more bags", "card not refunded"}
