"""The airline tools, against what τ-bench's own tools answered and against any call at all."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarl_jax.sandbox.airline import airline_domain

RECORDED = Path(__file__).parents[2] / ".." / "shared" / "tau_bench" / "airline"
needs_recordings = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="τ-bench's recorded outputs are not beside this checkout"
)
CABINS = ("basic_economy", "economy", "business")
MAY_16, MAY_17, MAY_18 = "2024-05-16", "2024-05-17", "2024-05-18"
BEN = {"first_name": "Ben", "last_name": "Ito", "dob": "1990-01-01"}
CAL = {"first_name": "Cal", "last_name": "Roy", "dob": "1980-12-31"}


def small_database():
    """Two users, one reservation each, four flights on three days; whole dollars and short ids."""

    def flight(number, origin, destination, departure, arrival, dates):
        record = {"flight_number": number, "origin": origin, "destination": destination}
        record["scheduled_departure_time_est"] = departure
        record["scheduled_arrival_time_est"] = arrival
        return record | {"dates": dates}

    def day(seats, prices):
        seats, prices = (dict(zip(CABINS, numbers, strict=True)) for numbers in (seats, prices))
        return {"status": "available", "available_seats": seats, "prices": prices}

    def reservation(reservation_id, user_id, cabin, flights, passengers, method_id):
        booked = [
            {"origin": "BOS", "destination": "JFK", "flight_number": f, "date": d, "price": p}
            for f, d, p in flights
        ]
        amount = sum(f["price"] for f in booked) * len(passengers)
        record = {"reservation_id": reservation_id, "user_id": user_id}
        record |= {"origin": "BOS", "destination": "JFK", "flight_type": "one_way", "cabin": cabin}
        record |= {"flights": booked, "passengers": passengers}
        record |= {"payment_history": [{"payment_id": method_id, "amount": amount}]}
        record |= {"created_at": "2024-05-01T00:00:00", "total_baggages": 3, "nonfree_baggages": 1}
        return record | {"insurance": "no"}

    def user(first, methods, reservations):
        record = {"name": {"first_name": first, "last_name": "Ito"}, "email": f"{first}@mail.com"}
        record["payment_methods"] = {method["id"]: method for method in methods}
        return record | {"membership": "regular", "reservations": reservations}

    def method(source, number, **amount):
        return {"source": source, **amount, "id": f"{source}_{number}"}

    landed = {"status": "landed"}
    first = {"2024-05-14": landed, MAY_16: day((2, 5, 0), (50, 100, 300))}
    first |= {MAY_17: day((9, 9, 9), (60, 90, 320)), MAY_18: {"status": "delayed"}}
    night = {MAY_16: day((9, 9, 9), (40, 80, 200)), MAY_17: day((9, 9, 9), (45, 85, 205))}
    late = {MAY_16: day((9, 9, 9), (10, 20, 30)), MAY_17: day((1, 1, 1), (11, 21, 31))}
    methods = [method("gift_card", 1, amount=200), method("certificate", 1, amount=100)]
    methods += [method("gift_card", 2, amount=30), method("credit_card", 1)]
    kept = [("HAT1", "2024-05-14", 70), ("HAT1", MAY_16, 110)]
    return {
        "flights": {
            "HAT1": flight("HAT1", "BOS", "JFK", "10:00:00", "12:00:00", first),
            "HAT2": flight("HAT2", "JFK", "SFO", "12:00:00", "16:00:00", copy.deepcopy(night)),
            "HAT3": flight("HAT3", "BOS", "ORD", "22:00:00", "01:00:00+1", night),
            "HAT4": flight("HAT4", "ORD", "SFO", "01:30:00", "05:00:00", late),
            "HAT5": flight("HAT5", "ORD", "SFO", "01:00:00", "04:30:00", copy.deepcopy(late)),
        },
        "reservations": {
            "R1": reservation("R1", "ada_1", "economy", kept, [BEN, CAL], "gift_card_1"),
            "R2": reservation("R2", "ben_2", "business", kept[:1], [BEN], "credit_card_9"),
        },
        "users": {
            "ada_1": user("Ada", methods, ["R1"]),
            "ben_2": user("Ben", [method("credit_card", 9)], ["R2"]),
        },
    }


def booking(**changes):
    """Two basic economy seats for 50 each, insured for 30 each, and a bag for 50: 210 dollars."""
    kwargs = {"user_id": "ada_1", "origin": "BOS", "destination": "JFK", "flight_type": "one_way"}
    kwargs |= {"cabin": "basic_economy", "flights": [{"flight_number": "HAT1", "date": MAY_16}]}
    kwargs |= {"passengers": [BEN, CAL], "payment_methods": pays(credit_card_1=210)}
    kwargs |= {"total_baggages": 2, "nonfree_baggages": 1, "insurance": "yes"}
    return copy.deepcopy(kwargs | changes)


def pays(**amounts):
    return [{"payment_id": method_id, "amount": amount} for method_id, amount in amounts.items()]


def flight_change(cabin, flights, payment_id="gift_card_1", reservation_id="R1"):
    flights = [{"flight_number": number, "date": date} for number, date in flights]
    kwargs = {"reservation_id": reservation_id, "cabin": cabin, "flights": flights}
    return kwargs | {"payment_id": payment_id}


def balance(state, method_id):
    return state.get("users", "ada_1")["payment_methods"][method_id]["amount"]


def reference_hash(database):
    """The definition, word for word."""

    def frozen(value):
        if isinstance(value, dict):
            return tuple((key, frozen(item)) for key, item in sorted(value.items()))
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return hashlib.sha256(str(frozen(database)).encode()).hexdigest()


@pytest.fixture
def domain():
    return airline_domain(small_database())


@pytest.fixture
def state(domain):
    return domain.new_state()


# --- recorded outputs -----------------------------------------------------------------------------


def recorded(name):
    return json.loads((RECORDED / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def full_domain():
    return airline_domain(recorded("db"))


@needs_recordings
def test_gold_calls_answer_as_recorded(full_domain):
    tasks = recorded("tasks_dev")
    for episode in recorded("replay_dev"):
        state = full_domain.new_state()
        actions = tasks[episode["task"]]["actions"]
        for action, output in zip(actions, episode["outputs"], strict=True):
            got = full_domain.call(state, action["name"], action["kwargs"])
            assert output in (None, got), (episode["task"], action)
        assert full_domain.state_hash(state) == episode["db_hash"], episode["task"]


@needs_recordings
def test_random_calls_answer_as_recorded(full_domain):
    for number, episode in enumerate(recorded("random_calls")):
        state = full_domain.new_state()
        for call in episode["calls"]:
            got = full_domain.call(state, call["name"], call["kwargs"])
            if "missing 1 required positional argument" in call["output"]:
                assert got.startswith("Error: missing argument"), (number, call)
            elif call["output"].startswith("Unknown action"):
                assert got == f"Error: unknown tool {call['name']!r}", (number, call)
            else:
                assert got == call["output"], (number, call)
        assert full_domain.state_hash(state) == episode["db_hash"], number


@needs_recordings
def test_schemas_ask_for_the_recorded_arguments(full_domain):
    def shape(value):
        """Without the descriptions, at any depth."""
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items() if key != "description"}
        return value

    ours = [shape(tool.schema) for tool in full_domain.tools.values()]
    assert ours == [shape(schema) for schema in recorded("tools")]


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


def test_reservation_ids_run_out(domain, state):
    outputs = [domain.call(state, "book_reservation", booking()) for _ in range(8)]
    ids = [json.loads(output)["reservation_id"] for output in outputs[:-1]]
    assert ids == [f"HATHA{letter}" for letter in "TUVWXYZ"]
    assert outputs[-1] == "Error: too many reservations"


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


# --- any calls at all -----------------------------------------------------------------------------

SMALL = airline_domain(small_database())
TOOLS = SMALL.tools
KEYS = {}  # (domain, table) -> the table's keys
NAMES = st.sampled_from([*TOOLS, *(name for name in TOOLS if TOOLS[name].write), "no_such_tool"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@st.composite
def calls(draw, domain):
    """A tool name and arguments: mostly about one reservation, sometimes anything."""

    def key_of(table):  # by number: a published table is too long to be sampled from
        keys = KEYS.setdefault((domain, table), list(domain.database[table]))
        return keys[draw(st.integers(0, len(keys) - 1))]

    name = draw(NAMES)
    if name == "no_such_tool" or draw(st.integers(0, 9)) == 0:
        return name, draw(anything)
    database = domain.database
    reservation_id = draw(st.sampled_from([key_of("reservations"), "HATHAT"]))
    reservation = database["reservations"].get(reservation_id)
    user_id = reservation["user_id"] if reservation else key_of("users")
    method_ids = [*database["users"][user_id]["payment_methods"], "certificate_3221322", "none"]
    method_id = st.sampled_from(method_ids)
    flight = database["flights"][key_of("flights")]
    day = draw(st.sampled_from([*flight["dates"]]))
    flights = [{"flight_number": flight["flight_number"], "date": day}]
    if reservation and draw(st.booleans()):
        flights = [{k: f[k] for k in ("flight_number", "date")} for f in reservation["flights"]]
    prices = sorted(flight["dates"][day].get("prices", {}).values())
    amount = st.sampled_from([*prices, *(2 * price for price in prices), 50, 0, -1, 0.1])
    payments = st.builds(lambda i, a: {"payment_id": i, "amount": a}, method_id, amount)
    choices = {
        "user_id": st.sampled_from([user_id, user_id, user_id, "none"]),
        "reservation_id": st.just(reservation_id),
        "payment_id": method_id,
        "flights": st.just(flights),
        "passengers": st.lists(st.sampled_from([BEN, CAL]), min_size=1, max_size=3),
        "payment_methods": st.lists(payments, max_size=2),
        "amount": amount,
        "origin": st.just(flight["origin"]),
        "destination": st.just(flight["destination"]),
        "date": st.sampled_from([day, MAY_16, "soon"]),
        "total_baggages": st.integers(-1, 3),
        "nonfree_baggages": st.integers(-1, 3) | st.just(0),
    }
    kwargs = {}
    for argument, schema in TOOLS[name].schema["function"]["parameters"]["properties"].items():
        words = st.sampled_from(schema.get("enum", ["2*3", "x"]))
        kwargs[argument] = draw(choices.get(argument, words))
    if name == "book_reservation" and prices and draw(st.booleans()):
        each = flight["dates"][day]["prices"][kwargs["cabin"]]
        each += 30 if kwargs["insurance"] == "yes" else 0
        total = each * len(kwargs["passengers"]) + 50 * kwargs["nonfree_baggages"]
        kwargs["flights"] = [{"flight_number": flight["flight_number"], "date": day}]
        kwargs["payment_methods"] = [{"payment_id": draw(method_id), "amount": total}]
    if kwargs and draw(st.integers(0, 9)) == 0:
        kwargs[draw(st.sampled_from([*kwargs, "extra"]))] = draw(anything)
    return name, copy.deepcopy(kwargs)


def run(domain, sequence):
    """A state after these calls, each of which keeps the promises of `Domain.call`."""
    state = domain.new_state()
    held = domain.state_hash(state)
    for name, kwargs in sequence:
        given = repr(kwargs)
        output = domain.call(state, name, kwargs)
        assert isinstance(output, str)
        assert repr(kwargs) == given
        now = domain.state_hash(state)
        if output.startswith("Error: ") or not TOOLS[name].write:
            assert now == held, (name, kwargs)
        held = now
    return state


@settings(max_examples=150, deadline=None)
@given(st.lists(calls(SMALL), max_size=12), st.lists(calls(SMALL), max_size=3))
def test_any_calls(sequence, others):
    before = repr(SMALL.database)
    state, other = run(SMALL, sequence), run(SMALL, others)
    tables = {table: dict(state.table(table)) for table in SMALL.database}
    assert SMALL.state_hash(state) == reference_hash(tables)
    hashes_agree = SMALL.state_hash(state) == SMALL.state_hash(other)
    assert SMALL.same(state, other) == hashes_agree == (not SMALL.diff(state, against=other))
    assert repr(SMALL.database) == before


@needs_recordings
def test_any_calls_on_the_published_database(full_domain):
    before = repr(full_domain.database)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(calls(full_domain), max_size=8))
    def check(sequence):
        run(full_domain, sequence)

    check()
    assert repr(full_domain.database) == before
