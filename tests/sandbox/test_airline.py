"""The airline tools, where the recordings are silent or a slip would be costly."""

import json

import pytest
from small_databases import (
    BEN,
    CAL,
    MAY_16,
    MAY_17,
    MAY_18,
    booking,
    flight_change,
    pays,
    small_airline,
)

from tarl_jax.sandbox.airline import airline_domain


def balance(state, method_id):
    return state.get("users", "ada_1")["payment_methods"][method_id]["amount"]


@pytest.fixture
def domain():
    return airline_domain(small_airline())


@pytest.fixture
def state(domain):
    return domain.new_state()


# --- schemas --------------------------------------------------------------------------------------


def test_every_parameter_and_field_is_described(domain):
    def described(schema):
        fields = (schema.get("items") or schema).get("properties", {}).values()
        return all(field.get("description") and described(field) for field in fields)

    for tool in domain.tools.values():
        assert tool.schema["function"]["description"]
        assert described(tool.schema["function"]["parameters"]), tool.name


# --- searching ------------------------------------------------------------------------------------


def test_search_shows_what_can_be_booked(domain, state):
    search = {"origin": "BOS", "destination": "JFK"}
    (found,) = json.loads(domain.call(state, "search_direct_flight", search | {"date": MAY_16}))
    assert found["available_seats"] == {"basic_economy": 2, "economy": 5, "business": 0}
    assert "dates" not in found
    for day in ("2024-05-14", MAY_18, "2030-01-01", "soon", ""):  # landed, delayed, no such day
        assert domain.call(state, "search_direct_flight", search | {"date": day}) == "[]"


def test_one_stop_pairs_meet_and_show_the_first_day(domain, state):
    search = {"origin": "BOS", "destination": "SFO", "date": MAY_16}
    pairs = json.loads(domain.call(state, "search_onestop_flight", search))
    # HAT2 leaves as HAT1 lands. HAT5 leaves at 01:00:00, which as text is before 01:00:00+1.
    assert [[f["flight_number"] for f in pair] for pair in pairs] == [
        ["HAT1", "HAT2"],
        ["HAT3", "HAT4"],
    ]
    assert [[f["date"] for f in pair] for pair in pairs] == [[MAY_16, MAY_16], [MAY_16, MAY_17]]
    assert pairs[1][1]["prices"]["economy"] == 20  # of May 16, though it flies on May 17


def test_one_stop_pairs_need_the_second_day(domain, state):
    search = {"origin": "BOS", "destination": "SFO", "date": MAY_17}
    pairs = json.loads(domain.call(state, "search_onestop_flight", search))
    assert [pair[0]["flight_number"] for pair in pairs] == ["HAT1"]  # HAT4 has no May 18


# --- booking --------------------------------------------------------------------------------------


def test_booking_takes_the_money_and_leaves_the_seats(domain, state):
    payments = pays(certificate_1=60, gift_card_1=120, credit_card_1=30)
    output = domain.call(state, "book_reservation", booking(payment_methods=payments))
    reservation = json.loads(output)
    assert reservation == state.get("reservations", "HATHAT")
    ends = {"origin": "BOS", "destination": "JFK"}
    segment = {"flight_number": "HAT1", "date": MAY_16, "price": 50, **ends}
    assert reservation["flights"] == [segment]
    assert reservation["payment_history"] == payments
    assert reservation["created_at"] == "2024-05-15T15:00:00"
    user = state.get("users", "ada_1")
    assert user["reservations"] == ["R1", "HATHAT"]
    assert list(user["payment_methods"]) == ["gift_card_1", "gift_card_2", "credit_card_1"]
    assert (balance(state, "gift_card_1"), balance(state, "gift_card_2")) == (80, 30)
    # Two of two seats are booked, and can be booked again.
    assert set(state.changes()) == {("reservations", "HATHAT"), ("users", "ada_1")}
    again = json.loads(domain.call(state, "book_reservation", booking()))
    assert again["reservation_id"] == "HATHAU"


def test_price_is_per_passenger_and_flight(domain, state):
    flights = [{"flight_number": n, "date": MAY_16} for n in ("HAT1", "HAT2")]
    kwargs = booking(cabin="economy", flights=flights, insurance="no", nonfree_baggages=0)
    kwargs["payment_methods"] = pays(credit_card_1=2 * (100 + 80))
    assert domain.call(state, "book_reservation", kwargs).startswith("{")


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"user_id": "cal_3"}, "user not found"),
        ({"flights": [{"flight_number": "HAT9", "date": MAY_16}]}, "flight HAT9 not found"),
        (
            {"flights": [{"flight_number": "HAT1", "date": "2024-06-01"}]},
            "flight HAT1 not found on date 2024-06-01",
        ),
        (
            {"flights": [{"flight_number": "HAT1", "date": MAY_18}]},
            f"flight HAT1 not available on date {MAY_18}",
        ),
        ({"passengers": [BEN, CAL, BEN]}, "not enough seats on flight HAT1"),
        ({"cabin": "business"}, "not enough seats on flight HAT1"),
        ({"payment_methods": pays(credit_card_9=210)}, "payment method credit_card_9 not found"),
        (
            {"payment_methods": pays(gift_card_1=170, gift_card_2=40)},
            "not enough balance in payment method gift_card_2",
        ),
        (
            {"payment_methods": pays(certificate_1=101, credit_card_1=109)},
            "not enough balance in payment method certificate_1",
        ),
        (
            {"payment_methods": pays(certificate_1=100, gift_card_1=109)},
            "payment amount does not add up, total price is 210, but paid 209",
        ),
        (
            {"payment_methods": [*pays(certificate_1=50), *pays(certificate_1=50)]},
            "payment method certificate_1 not found",
        ),
        (
            {"payment_methods": [*pays(gift_card_1=105), *pays(gift_card_1=105)]},
            "not enough balance in payment method gift_card_1",
        ),
        ({"cabin": "first"}, "argument 'cabin' should be one of basic_economy, economy, business"),
        ({"flight_type": "x"}, "argument 'flight_type' should be one of one_way, round_trip"),
        ({"insurance": "maybe"}, "argument 'insurance' should be one of yes, no"),
    ],
)
def test_bookings_are_refused_without_a_trace(domain, state, changes, refusal):
    assert domain.call(state, "book_reservation", booking(**changes)) == f"Error: {refusal}"
    assert not state.changes()


def test_a_fourth_booking_takes_the_place_of_the_third(domain, state):
    outputs = [domain.call(state, "book_reservation", booking()) for _ in range(4)]
    ids = [json.loads(output)["reservation_id"] for output in outputs]
    assert ids == ["HATHAT", "HATHAU", "HATHAV", "HATHAV"]
    assert state.get("reservations", "HATHAV") == json.loads(outputs[-1])
    assert state.get("users", booking()["user_id"])["reservations"][-4:] == ids


def test_reservation_does_not_share_the_arguments(domain, state):
    kwargs = booking()
    domain.call(state, "book_reservation", kwargs)
    held = domain.state_hash(state)
    for name in ("flights", "passengers", "payment_methods"):
        kwargs[name][0].clear()
        kwargs[name].clear()
    assert domain.state_hash(state) == held


# --- cancelling, certificates ---------------------------------------------------------------------


def test_cancelling_notes_the_refund_and_pays_no_gift_card(domain, state):
    reservation = json.loads(domain.call(state, "cancel_reservation", {"reservation_id": "R1"}))
    assert reservation["status"] == "cancelled"
    assert reservation["payment_history"] == [*pays(gift_card_1=360), *pays(gift_card_1=-360)]
    assert set(state.changes()) == {("reservations", "R1")}
    unknown = domain.call(state, "cancel_reservation", {"reservation_id": "R3"})
    assert unknown == "Error: reservation not found"


def test_certificates_get_ids_of_their_own(domain, state):
    for number, amount in ((3221322, 50), (3221323, 75.5)):
        output = domain.call(state, "send_certificate", {"user_id": "ada_1", "amount": amount})
        name = f"certificate_{number}"
        assert output == f"Certificate {name} added to user ada_1 with amount {amount}."
        sent = state.get("users", "ada_1")["payment_methods"][name]
        assert sent == {"source": "certificate", "amount": amount, "id": name}
    other = domain.call(state, "send_certificate", {"user_id": "ben_2", "amount": 5})
    assert other == "Certificate certificate_3221322 added to user ben_2 with amount 5."
    assert set(state.changes()) == {("users", "ada_1"), ("users", "ben_2")}


def test_sent_certificate_pays_once(domain, state):
    domain.call(state, "send_certificate", {"user_id": "ada_1", "amount": 300})
    kwargs = booking(payment_methods=pays(certificate_3221322=210))
    assert domain.call(state, "book_reservation", kwargs).startswith("{")
    refused = domain.call(state, "book_reservation", kwargs)
    assert refused == "Error: payment method certificate_3221322 not found"


# --- updating flights -----------------------------------------------------------------------------


def test_kept_flights_keep_their_price_and_need_no_seat(domain, state):
    # HAT1 of May 14 has landed; that of May 16 costs 100 now and was booked for 110.
    kwargs = flight_change("economy", [("HAT1", "2024-05-14"), ("HAT1", MAY_16)])
    reservation = json.loads(domain.call(state, "update_reservation_flights", kwargs))
    assert [f["price"] for f in reservation["flights"]] == [70, 110]
    assert not state.changes()  # no difference to pay, so no payment


def test_dearer_flights_are_charged_for_every_passenger(domain, state):
    kwargs = flight_change("economy", [("HAT1", MAY_16), ("HAT1", MAY_17)])
    reservation = json.loads(domain.call(state, "update_reservation_flights", kwargs))
    assert [f["price"] for f in reservation["flights"]] == [110, 90]
    assert reservation["payment_history"][1:] == pays(gift_card_1=2 * (110 + 90 - 70 - 110))
    assert balance(state, "gift_card_1") == 200 - 40
    assert set(state.changes()) == {("reservations", "R1"), ("users", "ada_1")}


def test_cheaper_flights_are_refunded(domain, state):
    kwargs = flight_change("economy", [("HAT1", MAY_17)], "gift_card_2")
    reservation = json.loads(domain.call(state, "update_reservation_flights", kwargs))
    assert reservation["payment_history"][1:] == pays(gift_card_2=2 * (90 - 70 - 110))
    assert balance(state, "gift_card_2") == 30 + 180
    card = flight_change("economy", [("HAT1", MAY_16)], "credit_card_1")
    reservation = json.loads(domain.call(state, "update_reservation_flights", card))
    assert reservation["payment_history"][2:] == pays(credit_card_1=2 * (100 - 90))


def test_another_cabin_is_priced_anew_and_not_written_down(domain, state):
    kwargs = flight_change("basic_economy", [("HAT1", MAY_16)])
    reservation = json.loads(domain.call(state, "update_reservation_flights", kwargs))
    assert reservation["flights"][0]["price"] == 50
    assert reservation["cabin"] == "economy"


@pytest.mark.parametrize(
    ("kwargs", "refusal"),
    [
        (flight_change("economy", [], reservation_id="R3"), "reservation not found"),
        (
            flight_change("first", [("HAT1", MAY_16)]),
            "argument 'cabin' should be one of basic_economy, economy, business",
        ),
        (flight_change("economy", [("HAT9", MAY_16)]), "flight HAT9 not found"),
        (
            flight_change("business", [("HAT1", "2024-05-14")]),
            "flight HAT1 not available on date 2024-05-14",
        ),
        (flight_change("business", [("HAT1", MAY_16)]), "not enough seats on flight HAT1"),
        (flight_change("economy", [("HAT1", MAY_16)], "x"), "payment method not found"),
        (
            flight_change("economy", [("HAT1", MAY_16)], "certificate_1"),
            "certificate cannot be used to update reservation",
        ),
        (flight_change("business", [("HAT1", MAY_17)]), "gift card balance is not enough"),
    ],
)
def test_flight_changes_are_refused_without_a_trace(domain, state, kwargs, refusal):
    assert domain.call(state, "update_reservation_flights", kwargs) == f"Error: {refusal}"
    assert not state.changes()


# --- updating baggages and passengers -------------------------------------------------------------


def test_further_bags_are_charged(domain, state):
    kwargs = {"reservation_id": "R1", "total_baggages": 5, "nonfree_baggages": 3}
    kwargs["payment_id"] = "gift_card_1"
    reservation = json.loads(domain.call(state, "update_reservation_baggages", kwargs))
    assert (reservation["total_baggages"], reservation["nonfree_baggages"]) == (5, 3)
    assert reservation["payment_history"][1:] == pays(gift_card_1=100)
    assert balance(state, "gift_card_1") == 100


def test_fewer_bags_bring_no_refund(domain, state):
    kwargs = {"reservation_id": "R1", "total_baggages": 0, "nonfree_baggages": 0}
    kwargs["payment_id"] = "gift_card_1"
    reservation = json.loads(domain.call(state, "update_reservation_baggages", kwargs))
    assert (reservation["total_baggages"], reservation["nonfree_baggages"]) == (0, 0)
    assert len(reservation["payment_history"]) == 1
    assert set(state.changes()) == {("reservations", "R1")}


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"reservation_id": "R3"}, "reservation not found"),
        ({"payment_id": "credit_card_9"}, "payment method not found"),
        ({"payment_id": "certificate_1"}, "certificate cannot be used to update reservation"),
        ({"payment_id": "gift_card_2"}, "gift card balance is not enough"),
    ],
)
def test_bags_are_refused_without_a_trace(domain, state, changes, refusal):
    kwargs = {"reservation_id": "R1", "total_baggages": 5, "nonfree_baggages": 2}
    kwargs |= {"payment_id": "gift_card_1", **changes}
    assert domain.call(state, "update_reservation_baggages", kwargs) == f"Error: {refusal}"
    assert not state.changes()


def test_passengers_are_replaced_one_for_one(domain, state):
    kwargs = {"reservation_id": "R1", "passengers": [CAL, CAL | {"first_name": "Dee"}]}
    reservation = json.loads(domain.call(state, "update_reservation_passengers", kwargs))
    assert [p["first_name"] for p in reservation["passengers"]] == ["Cal", "Dee"]
    assert set(state.changes()) == {("reservations", "R1")}
    fewer = domain.call(state, "update_reservation_passengers", kwargs | {"passengers": [CAL]})
    assert fewer == "Error: number of passengers does not match"
    unknown = domain.call(state, "update_reservation_passengers", kwargs | {"reservation_id": "R"})
    assert unknown == "Error: reservation not found"


# --- ill-formed calls -----------------------------------------------------------------------------

FLIGHTS = "array of object (flight_number: string, date: string)"
PAYMENTS = "array of object (payment_id: string, amount: number)"


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"flights": "HAT1"}, f"argument 'flights' should be of type {FLIGHTS}"),
        ({"flights": ["HAT1"]}, f"argument 'flights' should be of type {FLIGHTS}"),
        (
            {"flights": [{"flight_number": "HAT1"}]},
            f"argument 'flights' should be of type {FLIGHTS}",
        ),
        (
            {"flights": [{"flight_number": "HAT1", "date": MAY_16, "via": ["ORD"]}]},
            f"argument 'flights' should be of type {FLIGHTS}",
        ),
        (
            {"payment_methods": pays(credit_card_1="210")},
            f"argument 'payment_methods' should be of type {PAYMENTS}",
        ),
        (
            {"payment_methods": pays(credit_card_1=float("nan"))},
            f"argument 'payment_methods' should be of type {PAYMENTS}",
        ),
        (
            {"payment_methods": pays(credit_card_1=10**400)},
            f"argument 'payment_methods' should be of type {PAYMENTS}",
        ),
        ({"total_baggages": True}, "argument 'total_baggages' should be of type integer"),
        ({"total_baggages": 1.5}, "argument 'total_baggages' should be of type integer"),
        ({"meal": "fish"}, "unexpected argument 'meal'"),
    ],
)
def test_ill_formed_bookings_are_refused_by_name(domain, state, changes, refusal):
    assert domain.call(state, "book_reservation", booking(**changes)) == f"Error: {refusal}"
    assert not state.changes()


def test_missing_arguments_are_named(domain, state):
    assert domain.call(state, "send_certificate", {"amount": 1}) == (
        "Error: missing argument 'user_id'"
    )


def test_plain_fields_that_were_not_asked_for_are_kept(domain, state):
    kwargs = {"reservation_id": "R2", "passengers": [BEN | {"seat": "4A"}]}
    reservation = json.loads(domain.call(state, "update_reservation_passengers", kwargs))
    assert reservation["passengers"] == [BEN | {"seat": "4A"}]
