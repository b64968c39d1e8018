"""The embedded shop: a synthetic retail database made from a seed.

Tables, fields and key order follow tau-bench's retail domain; ids are short, each product has one
option, and prices are whole dollars, so that an episode is a few hundred tokens.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError, ShopConfig

POLICY = Path(__file__).with_name("shop_policy.md")  # the rules that the agent must follow
FIRST_NAMES = tuple(
    "Ada Ben Cleo Dan Eva Finn Gina Hugo Iris Jack Kira Liam Mia Noah Olga Paul Rosa Sam Tara "
    "Umar Vera Will Yara Zoe".split()
)
LAST_NAMES = tuple(
    "Adler Brown Costa Diaz Evans Ford Garcia Hill Ito Jones Khan Lopez Moore Nowak Olsen Patel "
    "Ross Silva Tran Usman Vogel Weber Young Zhou".split()
)
# (street, city, state, zip)
ADDRESSES = (
    ("Oak Street", "Denver", "CO", "801"),
    ("Elm Avenue", "Austin", "TX", "787"),
    ("Park Lane", "Boston", "MA", "210"),
    ("Lake Drive", "Chicago", "IL", "606"),
    ("Hill Road", "Seattle", "WA", "981"),
    ("River Way", "Portland", "OR", "972"),
    ("Main Street", "Phoenix", "AZ", "850"),
    ("Cedar Court", "Atlanta", "GA", "303"),
    ("Maple Street", "Miami", "FL", "331"),
    ("Sunset Road", "Dallas", "TX", "752"),
    ("Bay Avenue", "Oakland", "CA", "946"),
    ("High Street", "Newark", "NJ", "071"),
)
COLORS = ("red", "blue", "green", "black", "white")
SIZES = ("small", "medium", "large")
MATERIALS = ("wood", "steel", "glass", "plastic")
# product -> (option key, values)
PRODUCTS = {
    "Mug": ("color", COLORS),
    "Lamp": ("material", MATERIALS),
    "Chair": ("material", MATERIALS),
    "Desk": ("size", SIZES),
    "Shirt": ("size", SIZES),
    "Jacket": ("color", COLORS),
    "Kettle": ("material", MATERIALS),
    "Camera": ("color", COLORS),
    "Backpack": ("size", SIZES),
    "Bottle": ("color", COLORS),
    "Puzzle": ("size", SIZES),
    "Blender": ("color", COLORS),
    "Tablet": ("size", SIZES),
    "Mouse": ("color", COLORS),
    "Keyboard": ("color", COLORS),
    "Vase": ("material", MATERIALS),
    "Bike": ("size", SIZES),
    "Tent": ("color", COLORS),
    "Skates": ("size", SIZES),
    "Speaker": ("color", COLORS),
}
VARIANTS = 3  # of each product
STATUS_WEIGHTS = {"pending": 0.42, "delivered": 0.42, "processed": 0.1, "cancelled": 0.06}


def named_in(text: str) -> set[str]:
    """The products and option values that a sentence names."""
    return {*PRODUCTS, *COLORS, *SIZES, *MATERIALS} & set(re.findall(r"\w+", text))


def make_shop(config: ShopConfig, branch: int = 0) -> dict[str, dict[str, Any]]:
    """The database {"users", "orders", "products"}, a pure function of the arguments.

    branch: shops of one seed sell the same products; each branch has its own users and orders.
    Raises ValueError where the short ids cannot hold that many users or orders.
    """
    limit = len(FIRST_NAMES) * len(LAST_NAMES)
    if not 2 <= config.num_users <= limit:
        raise InputError(f"shop.num_users = {config.num_users}: must be between 2 and {limit}")
    if config.num_users * config.orders_per_user > 900:
        raise InputError(
            f"shop.num_users x shop.orders_per_user = {config.num_users * config.orders_per_user}:"
            " order ids have three digits, so at most 900 orders"
        )
    products = _make_products(random.Random(f"products-{config.seed}"))
    rng = random.Random(f"users-{config.seed}-{branch}")
    names = rng.sample([(f, n) for f in FIRST_NAMES for n in LAST_NAMES], config.num_users)
    order_ids = iter(rng.sample(range(100, 1000), config.num_users * config.orders_per_user))
    users: dict[str, Any] = {}
    orders: dict[str, Any] = {}
    for first, last in names:
        user = _make_user(rng, first, last)
        user_id = f"{first.lower()}_{last.lower()}_{rng.randrange(10, 100)}"
        for _ in range(config.orders_per_user):
            order = _make_order(rng, f"#W{next(order_ids)}", user_id, user, products)
            orders[order["order_id"]] = order
            user["orders"].append(order["order_id"])
        users[user_id] = user
    return {"users": users, "orders": orders, "products": products}


def held_out_users(
    database: dict[str, dict[str, Any]], config: ShopConfig, table: str = "users"
) -> set[str]:
    """The users (and with them the orders) that only held-out tasks are about."""
    ids = list(database[table])
    random.Random(f"split-{config.seed}").shuffle(ids)
    return set(ids[: max(1, round(config.held_out_fraction * len(ids)))])


def _make_products(rng: random.Random) -> dict[str, Any]:
    product_ids = rng.sample(range(10, 100), len(PRODUCTS))
    item_ids = iter(rng.sample(range(100, 1000), VARIANTS * len(PRODUCTS)))
    products = {}
    for product_id, (name, (key, values)) in zip(product_ids, PRODUCTS.items(), strict=True):
        price = rng.randrange(15, 90)
        variants = {}
        for position, value in enumerate(rng.sample(values, VARIANTS)):
            item_id = str(next(item_ids))
            variants[item_id] = {
                "item_id": item_id,
                "options": {key: value},
                "available": position < 2 or rng.random() < 0.6,
                "price": price + rng.randrange(-5, 6),
            }
        products[str(product_id)] = {
            "name": name,
            "product_id": str(product_id),
            "variants": dict(sorted(variants.items())),
        }
    return products


def _make_user(rng: random.Random, first: str, last: str) -> dict[str, Any]:
    street, city, state, zip_code = rng.choice(ADDRESSES)
    methods = {}
    for source in rng.sample(("credit_card", "paypal"), rng.choice((1, 2))):
        method: dict[str, Any] = {"source": source, "id": f"{source}_{rng.randrange(10, 100)}"}
        if source == "credit_card":
            method = {"source": source, "brand": "visa", "last_four": f"{rng.randrange(10)}000",
                      "id": method["id"]}
        methods[method["id"]] = method
    if rng.random() < 0.6:
        card = f"gift_card_{rng.randrange(10, 100)}"
        methods[card] = {"source": "gift_card", "balance": rng.choice((20, 90, 400)), "id": card}
    return {
        "name": {"first_name": first, "last_name": last},
        "address": {"address1": street, "address2": "", "city": city, "country": "USA",
                    "state": state, "zip": zip_code},
        "email": f"{first.lower()}.{last.lower()}@mail.com",
        "payment_methods": methods,
        "orders": [],
    }


def _make_order(
    rng: random.Random, order_id: str, user_id: str, user: dict[str, Any], products: dict[str, Any]
) -> dict[str, Any]:
    count = rng.choices((1, 2, 3), (0.5, 0.4, 0.1))[0]
    chosen = rng.sample(list(products.values()), count)
    if count > 1 and rng.random() < 0.15:
        chosen[1] = chosen[0]  # two variants of one product: they must be told apart
    items, taken = [], set()
    for product in chosen:
        free = [i for i in product["variants"] if i not in taken]
        item_id = rng.choice(free)
        taken.add(item_id)
        variant = product["variants"][item_id]
        items.append({
            "name": product["name"],
            "product_id": product["product_id"],
            "item_id": item_id,
            "price": variant["price"],
            "options": dict(variant["options"]),
        })
    payers = [m for m in user["payment_methods"] if not m.startswith("gift_card")]
    return {
        "order_id": order_id,
        "user_id": user_id,
        "address": dict(user["address"]),
        "items": items,
        "fulfillments": [],
        "status": rng.choices(list(STATUS_WEIGHTS), list(STATUS_WEIGHTS.values()))[0],
        "payment_history": [{
            "transaction_type": "payment",
            "amount": sum(i["price"] for i in items),
            "payment_method_id": rng.choice(payers),
        }],
    }
