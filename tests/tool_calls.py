"""Random calls of a domain's tools: mostly what an agent might say, sometimes anything at all."""

import copy
import json

from tarl_jax.sandbox.airline import BAGGAGE_PRICE, INSURANCE_PRICE

_WORDS = ("", "x", "Ada", "ada@mail.com", "801", "2*3", "Grüße 漢字 🙂", "no longer needed")


def episode(rng, domain, state, length):
    """Yields (name, arguments), made from what the state is when asked for; writes come often.

    About one user, so that calls meet on the same records.
    """
    arguments = {"retail": _retail, "airline": _airline}[domain.name]
    writes = [name for name, tool in domain.tools.items() if tool.write]
    names = [*domain.tools, *writes, *writes]
    user_id = rng.choice(list(domain.database["users"]))
    for _ in range(length):
        name = rng.choice(names)
        chosen = arguments(rng, domain, state, user_id)
        kwargs = {}
        properties = domain.tools[name].schema["function"]["parameters"]["properties"]
        for argument, schema in properties.items():
            words = (*schema.get("enum", ()), *_WORDS[: 2 if "enum" in schema else None])
            kwargs[argument] = chosen.get(argument, rng.choice(words))
        yield _spoilt(rng, name, kwargs)


def junk(rng, depth=3):
    """A value that JSON can say, or that Python's reader of it lets through."""
    kind = rng.randrange(6 if depth else 4)
    if kind == 0:
        return rng.choice([None, True, False, 0, -1, 10**400, -(2**63)])
    if kind == 1:
        return rng.choice([0.1, -0.0, 1e308, float("nan"), float("inf"), float("-inf")])
    if kind < 4:
        return rng.choice([*_WORDS, "\ud800", "\x00", "'\"\\\n", "#W" * 50_000, "__class__"])
    if kind == 4:
        return [junk(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(_WORDS): junk(rng, depth - 1) for _ in range(rng.randrange(4))}


def _spoilt(rng, name, kwargs):
    way = rng.randrange(30)
    if way == 0:
        return junk(rng), kwargs
    if way == 1:
        return name, junk(rng)
    if way == 2:
        return name, kwargs | {"extra": junk(rng)}
    if way == 3 and kwargs:
        kwargs[rng.choice(list(kwargs))] = json.loads("[" * 200 + "]" * 200)
    elif way == 4 and kwargs:
        del kwargs[rng.choice(list(kwargs))]
    elif way < 8 and kwargs:
        kwargs[rng.choice(list(kwargs))] = junk(rng)
    return name, kwargs


# --- retail ---------------------------------------------------------------------------------------


def _retail(rng, domain, state, user_id):
    orders = state.get("users", user_id)["orders"] or list(domain.database["orders"])[:3]
    open_ones = [o for o in orders if state.get("orders", o)["status"] == "pending"]
    order = state.get("orders", rng.choice(rng.choice([orders, open_ones]) or orders))
    owner = state.get("users", order["user_id"])
    items = rng.choices(order["items"], k=rng.randrange(1, 3))
    variants = [state.get("products", item["product_id"])["variants"] for item in items]
    return {
        "user_id": order["user_id"],
        "order_id": order["order_id"],
        "product_id": items[0]["product_id"],
        "item_id": items[0]["item_id"],
        "item_ids": [item["item_id"] for item in items],
        "new_item_ids": [rng.choice(list(v)) for v in variants[: rng.choice((1, 2, 2, 2))]],
        "payment_method_id": rng.choice([*owner["payment_methods"], "none"]),
        "reason": rng.choice(["no longer needed", "ordered by mistake", "x"]),
        "email": rng.choice([owner["email"], owner["email"].upper(), "x"]),
        **owner["name"],
        "zip": rng.choice([owner["address"]["zip"], "10001"]),
    }


# --- airline --------------------------------------------------------------------------------------


def _airline(rng, domain, state, user_id):
    user = state.get("users", user_id)
    ids = user["reservations"] or list(domain.database["reservations"])[:3]
    reservation = state.get("reservations", rng.choice(ids))
    methods = state.get("users", reservation["user_id"])["payment_methods"]
    booked = [{k: f[k] for k in ("flight_number", "date")} for f in reservation["flights"]]
    flight = state.get("flights", rng.choice(list(domain.database["flights"])))
    day = rng.choice([*flight["dates"]][-20:])
    flights = rng.choice([booked, [{"flight_number": flight["flight_number"], "date": day}]])
    passengers = rng.choice([reservation["passengers"], [{**user["name"], "dob": "1990-01-01"}]])
    chosen = {
        "user_id": reservation["user_id"],
        "reservation_id": rng.choice([reservation["reservation_id"]] * 9 + ["none"]),
        "payment_id": rng.choice([*methods, "none"]),
        "cabin": rng.choice([reservation["cabin"], "basic_economy", "economy", "business", "x"]),
        "insurance": rng.choice(["yes", "no", "no"]),
        "flight_type": rng.choice(["one_way", "round_trip"]),
        "flights": flights,
        "passengers": copy.deepcopy(passengers),  # τ² keeps what is none
        "total_baggages": rng.randrange(4),
        "nonfree_baggages": rng.randrange(-1, 4),
        "amount": rng.choice([50, 100, 33.33, 0, -5]),
        "flight_number": flight["flight_number"],
        "origin": flight["origin"],
        "destination": flight["destination"],
        "date": rng.choice([day, day, "soon"]),
    }
    return chosen | {"payment_methods": _payments(rng, state, chosen, methods)}


def _payments(rng, state, chosen, methods):
    """One or two methods that pay what the booking costs, or nearly."""
    total = BAGGAGE_PRICE * chosen["nonfree_baggages"]
    for flight in chosen["flights"]:
        day = state.get("flights", flight["flight_number"])["dates"][flight["date"]]
        price = day.get("prices", {}).get(str(chosen["cabin"]), 0)
        total += price * len(chosen["passengers"])
    if chosen["insurance"] == "yes":
        total += INSURANCE_PRICE * len(chosen["passengers"])
    total += rng.choice([0, 0, 0, 1])
    ids = rng.sample(list(methods), min(len(methods), rng.randrange(1, 3)))
    first = total if len(ids) == 1 else min(total, rng.choice([20, 100, 33.5]))
    amounts = [first, total - first]
    return [{"payment_id": i, "amount": a} for i, a in zip(ids, amounts, strict=False)]
