"""Databases small enough to work out by hand what a tool should answer."""

import copy

# --- retail ---------------------------------------------------------------------------------------

FIELDS = ("address1", "address2", "city", "state", "country", "zip")
ADDRESS = dict(zip(FIELDS, ("1 Elm St", "", "Austin", "TX", "USA", "787"), strict=True))


def small_retail():
    """Two users, three orders, one product in five colours; whole dollars and short ids."""

    def variant(item_id, colour, price):
        record = {"item_id": item_id, "options": {"color": colour}}
        return record | {"available": item_id != "103", "price": price}

    def item(item_id):
        mug = mugs[item_id]
        copied = {key: copy.deepcopy(mug[key]) for key in ("item_id", "price", "options")}
        return {"name": "Mug", "product_id": "10", **copied}

    def order(order_id, user_id, status, item_ids, method_id):
        items = [item(item_id) for item_id in item_ids]
        amount = sum(i["price"] for i in items)
        payment = {"transaction_type": "payment", "amount": amount, "payment_method_id": method_id}
        record = {"order_id": order_id, "user_id": user_id, "address": ADDRESS | {"zip": "801"}}
        record |= {"items": items, "fulfillments": [], "status": status}
        return record | {"payment_history": [payment]}

    def user(first, methods, orders):
        record = {"name": {"first_name": first, "last_name": "Ito"}}
        record |= {"address": ADDRESS | {"zip": "801"}, "email": f"{first}@mail.com"}
        return record | {"payment_methods": {m["id"]: m for m in methods}, "orders": orders}

    prices = {"100": ("red", 25), "101": ("blue", 20), "102": ("black", 40)}
    prices |= {"103": ("white", 22), "104": ("gold", 90)}
    mugs = {item_id: variant(item_id, *mug) for item_id, mug in prices.items()}
    card = {"source": "gift_card", "balance": 30, "id": "gift_card_1"}
    paypals = [{"source": "paypal", "id": f"paypal_{n}"} for n in (1, 2)]
    three = ["100", "100", "101"]
    return {
        "users": {
            "ada_1": user("Ada", [card, paypals[0]], ["#W1", "#W2"]),
            "ben_2": user("Ben", [paypals[1]], ["#W3"]),
        },
        "orders": {
            "#W1": order("#W1", "ada_1", "pending", three, "paypal_1"),
            "#W2": order("#W2", "ada_1", "delivered", three, "gift_card_1"),
            "#W3": order("#W3", "ben_2", "pending", ["101"], "paypal_2"),
        },
        "products": {"10": {"name": "Mug", "product_id": "10", "variants": mugs}},
    }


# --- airline --------------------------------------------------------------------------------------

CABINS = ("basic_economy", "economy", "business")
MAY_16, MAY_17, MAY_18 = "2024-05-16", "2024-05-17", "2024-05-18"
BEN = {"first_name": "Ben", "last_name": "Ito", "dob": "1990-01-01"}
CAL = {"first_name": "Cal", "last_name": "Roy", "dob": "1980-12-31"}


def small_airline():
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
