"""The embedded airline: repeatable, consistent in itself, and of tau-bench's shape."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tarl_jax.sandbox import load_domain
from tarl_jax.sandbox.airline import BAGGAGE_PRICE, INSURANCE_PRICE, NOW
from tarl_jax.sandbox.carrier import FREE_BAGS, PRICES, SERVED, make_carrier

PUBLISHED = Path(__file__).parents[3] / "shared" / "tau_bench" / "airline" / "db.json"
CARRIER = make_carrier()
DAY = "2024-05-20"


def test_the_airline_is_a_function_of_its_arguments():
    random.seed(1)
    first = make_carrier(seed=3, num_users=5)
    random.seed(2)
    assert json.dumps(make_carrier(seed=3, num_users=5)) == json.dumps(first)
    assert make_carrier(seed=4, num_users=5) != first


def test_the_embedded_data_is_small():
    assert len(json.dumps(CARRIER)) < 200_000


@pytest.mark.parametrize("num_users", [0, 577])
def test_more_users_than_names_are_refused(num_users):
    with pytest.raises(ValueError, match=f"num_users = {num_users}: must be between 1 and 576"):
        make_carrier(num_users=num_users)


def test_records_are_not_shared():
    # A tool that writes one record in place would change another.
    seen = {}

    def walk(value, path):
        if isinstance(value, dict | list):
            assert id(value) not in seen, f"{path} is {seen[id(value)]}"
            seen[id(value)] = path
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(inner, f"{path}/{key}")

    walk(CARRIER, "")


def schema(database):
    """(path, type or the names of the fields in order) of every value; ids and days are '*'."""
    found = set()

    def walk(path, value):
        if isinstance(value, list):
            for item in value:
                walk(f"{path}[]", item)
        elif path.endswith(("/dates", "/payment_methods")) or path.count("/") < 1:
            for inner in value.values():
                walk(f"{path}/*", inner)
        elif isinstance(value, dict):
            found.add((path, tuple(value)))
            for key, inner in value.items():
                walk(f"{path}/{key}", inner)
        else:
            found.add((path, type(value).__name__))

    for table, records in database.items():
        walk(table, records)
    return found


def test_the_schema_is_the_published_one():
    if not PUBLISHED.is_file():
        pytest.skip(f"no benchmark data at {PUBLISHED}")
    published = json.loads(PUBLISHED.read_text("utf-8"))
    assert list(CARRIER) == ["flights", "reservations", "users"] == sorted(published)
    assert schema(CARRIER) == schema(published)


def test_records_point_at_each_other():
    users, reservations, flights = (
        CARRIER[table] for table in ("users", "reservations", "flights"))
    owned = [r for user in users.values() for r in user["reservations"]]
    assert sorted(owned) == sorted(reservations)
    for key, record in reservations.items():
        user = users[record["user_id"]]
        assert record["reservation_id"] == key and key in user["reservations"]
        assert record["created_at"] < min(NOW, record["flights"][0]["date"])
        assert record["passengers"][0] == {**user["name"], "dob": user["dob"]}
        for flight in record["flights"]:
            there = flights[flight["flight_number"]]
            assert flight["date"] in there["dates"]
            assert [there[k] for k in ("origin", "destination")] == [
                flight[k] for k in ("origin", "destination")]
        ends = [f["destination"] for f in record["flights"]]
        assert record["flights"][0]["origin"] == record["origin"]
        assert record["destination"] in ends
        assert ends[-1] == record["origin" if record["flight_type"] == "round_trip"
                                  else "destination"]
        for one, two in pairwise(record["flights"]):
            assert one["destination"] == two["origin"]
            one_at, two_at = (flights[f["flight_number"]] for f in (one, two))
            assert (one["date"], one_at["scheduled_arrival_time_est"]) <= (
                two["date"], two_at["scheduled_departure_time_est"])


def test_reservations_are_paid_and_their_bags_counted():
    for record in CARRIER["reservations"].values():
        user, count = CARRIER["users"][record["user_id"]], len(record["passengers"])
        each = sum(f["price"] for f in record["flights"])
        each += INSURANCE_PRICE * (record["insurance"] == "yes")
        (payment,) = record["payment_history"]
        assert payment["amount"] == each * count + BAGGAGE_PRICE * record["nonfree_baggages"]
        assert payment["payment_id"] in user["payment_methods"]
        free = FREE_BAGS[user["membership"]][list(PRICES).index(record["cabin"])] * count
        assert record["nonfree_baggages"] == max(0, record["total_baggages"] - free)


def test_there_is_something_of_everything():
    users, reservations = CARRIER["users"].values(), CARRIER["reservations"].values()
    states = Counter((day["status"], date <= NOW[:10]) for flight in CARRIER["flights"].values()
                     for date, day in flight["dates"].items())
    assert set(states) == {("available", False)} | {
        (s, True) for s in ("landed", "cancelled", "on time", "delayed", "flying")}
    assert {user["membership"] for user in users} == set(FREE_BAGS)
    methods = {m["source"] for user in users for m in user["payment_methods"].values()}
    assert methods == {"credit_card", "gift_card", "certificate"}
    assert {r["cabin"] for r in reservations} == set(PRICES)
    assert {r["flight_type"] for r in reservations} == {"one_way", "round_trip"}
    assert {r["insurance"] for r in reservations} == {"yes", "no"}
    assert {len(r["passengers"]) for r in reservations} >= {1, 2}
    for flight in CARRIER["flights"].values():
        for day in flight["dates"].values():
            if day["status"] == "available":
                assert list(day["prices"].values()) == sorted(day["prices"].values())


def test_every_tool_can_succeed():
    domain = load_domain("airline")
    state = domain.new_state()

    def call(name, **kwargs):
        used.add(name)
        output = domain.call(state, name, kwargs)
        assert not output.startswith("Error"), (name, kwargs, output)
        return output

    used: set[str] = set()
    user_id, user = next(
        (i, u) for i, u in CARRIER["users"].items()
        if {m.split("_")[0] for m in u["payment_methods"]} == {"credit", "gift", "certificate"})
    card = next(m for m in user["payment_methods"] if m.startswith("credit"))
    assert json.loads(call("get_user_details", user_id=user_id)) == user
    assert set(SERVED) <= set(json.loads(call("list_all_airports")))
    there = {"origin": SERVED[0], "destination": SERVED[1], "date": DAY}
    (direct,) = json.loads(call("search_direct_flight", **there))
    assert direct["status"] == "available"
    pairs = json.loads(call("search_onestop_flight", **there | {"destination": SERVED[3]}))
    assert len(pairs) >= 2
    passenger = {**user["name"], "dob": user["dob"]}
    cabin = next(c for c, seats in direct["available_seats"].items() if seats)
    booking = {
        "user_id": user_id, "origin": SERVED[0], "destination": SERVED[1],
        "flight_type": "one_way", "cabin": cabin, "passengers": [passenger], "insurance": "yes",
        "flights": [{"flight_number": direct["flight_number"], "date": DAY}],
        "total_baggages": 0, "nonfree_baggages": 0,
        "payment_methods": [{"payment_id": card,
                             "amount": direct["prices"][cabin] + INSURANCE_PRICE}],
    }
    booked = {"reservation_id": json.loads(call("book_reservation", **booking))["reservation_id"]}
    call("get_reservation_details", **booked)
    call("update_reservation_baggages", **booked, total_baggages=1, nonfree_baggages=1,
         payment_id=card)
    later = next(day for day, seats in CARRIER["flights"][direct["flight_number"]]["dates"].items()
                 if day > DAY and seats["available_seats"][cabin])
    call("update_reservation_flights", **booked, cabin=cabin, payment_id=card,
         flights=[{"flight_number": direct["flight_number"], "date": later}])
    call("update_reservation_passengers", **booked,
         passengers=[passenger | {"first_name": "Zoe"}])
    call("cancel_reservation", **booked)
    call("send_certificate", user_id=user_id, amount=100)
    call("calculate", expression="2 + 2")
    call("think", thought="done")
    call("transfer_to_human_agents", summary="done")
    assert used == set(domain.tools) and len(used) == 14


def test_the_policy_names_what_the_tools_charge():
    policy = load_domain("airline").policy
    assert f"{INSURANCE_PRICE} dollars a passenger" in policy
    assert f"further bag costs {BAGGAGE_PRICE} dollars" in policy
    for member, bags in FREE_BAGS.items():
        assert f"| {member} | {' | '.join(map(str, bags))} |" in policy
