"""The embedded shop: repeatable, consistent in itself, and of tau-bench's shape."""

import random
import re

import pytest

from tarl_jax.config import ShopConfig
from tarl_jax.sandbox.shop import held_out_users, make_shop

SHOP = make_shop(ShopConfig())
# Fields in tau-bench's own order.
USER = ["name", "address", "email", "payment_methods", "orders"]
ORDER = ["order_id", "user_id", "address", "items", "fulfillments", "status", "payment_history"]
ITEM = ["name", "product_id", "item_id", "price", "options"]
PAYMENT = ["transaction_type", "amount", "payment_method_id"]
PRODUCT = ["name", "product_id", "variants"]
VARIANT = ["item_id", "options", "available", "price"]
METHODS = {
    "credit_card": ["source", "brand", "last_four", "id"],
    "paypal": ["source", "id"],
    "gift_card": ["source", "balance", "id"],
}


def test_the_shop_is_a_function_of_its_config():
    random.seed(1)
    first = make_shop(ShopConfig(seed=3, num_users=20))
    random.seed(2)
    random.random()
    assert make_shop(ShopConfig(seed=3, num_users=20)) == first
    assert make_shop(ShopConfig(seed=4, num_users=20)) != first


def test_two_shops_share_no_record():
    one, two = make_shop(ShopConfig(num_users=3)), make_shop(ShopConfig(num_users=3))
    for order in one["orders"].values():
        order["items"][0]["options"].clear()
        order["address"].clear()
    assert two == make_shop(ShopConfig(num_users=3))


def test_records_inside_a_shop_are_not_shared():
    # A tool that writes one record in place would change another.
    database = make_shop(ShopConfig(num_users=5))
    seen = {}

    def walk(value, path):
        if isinstance(value, dict | list):
            assert id(value) not in seen, f"{path} is {seen[id(value)]}"
            seen[id(value)] = path
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(inner, f"{path}/{key}")

    walk(database, "")


def test_records_have_tau_benchs_fields():
    assert list(SHOP) == ["users", "orders", "products"]
    for user in SHOP["users"].values():
        assert list(user) == USER
        assert list(user["name"]) == ["first_name", "last_name"]
        assert set(user["address"]) == {"address1", "address2", "city", "country", "state", "zip"}
        for key, method in user["payment_methods"].items():
            assert list(method) == METHODS[method["source"]]
            assert method["id"] == key
    for order in SHOP["orders"].values():
        assert list(order) == ORDER
        assert all(list(item) == ITEM for item in order["items"])
        assert [list(payment) for payment in order["payment_history"]] == [PAYMENT]
    for product in SHOP["products"].values():
        assert list(product) == PRODUCT
        assert all(list(variant) == VARIANT for variant in product["variants"].values())


def test_users_and_orders_point_at_each_other():
    owned = [o for user in SHOP["users"].values() for o in user["orders"]]
    assert sorted(owned) == sorted(SHOP["orders"]) and len(set(owned)) == len(owned)
    for order_id, order in SHOP["orders"].items():
        assert order["order_id"] == order_id
        user = SHOP["users"][order["user_id"]]
        assert order_id in user["orders"]
        assert order["address"] == user["address"]
        (payment,) = order["payment_history"]
        assert payment["payment_method_id"] in user["payment_methods"]
        assert payment["amount"] == sum(item["price"] for item in order["items"])


def test_items_are_variants_of_the_products():
    ids = [i for product in SHOP["products"].values() for i in product["variants"]]
    assert len(set(ids)) == len(ids)
    for order in SHOP["orders"].values():
        bought = [item["item_id"] for item in order["items"]]
        assert len(set(bought)) == len(bought)
        for item in order["items"]:
            product = SHOP["products"][item["product_id"]]
            variant = product["variants"][item["item_id"]]
            assert item["name"] == product["name"]
            assert (item["price"], item["options"]) == (variant["price"], variant["options"])


def test_a_user_can_be_found_in_one_way_only():
    users = SHOP["users"].values()
    assert len({user["email"].lower() for user in users}) == len(users)
    assert len({tuple(user["name"].values()) for user in users}) == len(users)


def test_ids_are_short_and_prices_whole():
    for user_id, user in SHOP["users"].items():
        first, last = (user["name"][k].lower() for k in ("first_name", "last_name"))
        assert re.fullmatch(rf"{first}_{last}_\d\d", user_id)
        assert all(re.fullmatch(r"(credit_card|paypal|gift_card)_\d\d", m)
                   for m in user["payment_methods"])
    assert all(re.fullmatch(r"#W\d{3}", order_id) for order_id in SHOP["orders"])
    for key, product in SHOP["products"].items():
        assert re.fullmatch(r"\d\d", key) and product["product_id"] == key
        for item_id, variant in product["variants"].items():
            assert re.fullmatch(r"\d{3}", item_id) and variant["item_id"] == item_id
            assert type(variant["price"]) is int and variant["price"] > 0


def test_there_is_something_to_want_and_something_to_refuse():
    statuses = {order["status"] for order in SHOP["orders"].values()}
    assert statuses == {"pending", "delivered", "processed", "cancelled"}
    for product in SHOP["products"].values():
        available = [v["available"] for v in product["variants"].values()]
        assert sum(available) >= 2
        options = [tuple(v["options"].items()) for v in product["variants"].values()]
        assert len(set(options)) == len(options)
    assert not all(v["available"] for p in SHOP["products"].values()
                   for v in p["variants"].values())
    doubled = [o for o in SHOP["orders"].values()
               if len({i["product_id"] for i in o["items"]}) < len(o["items"])]
    assert doubled  # two variants of one product: the user has to say which


@pytest.mark.parametrize("fields, named", [
    ({"num_users": 1}, "shop.num_users = 1"),
    ({"num_users": 577, "orders_per_user": 1}, "shop.num_users = 577"),
    ({"num_users": 226, "orders_per_user": 4}, "904"),
])
def test_a_shop_that_the_ids_cannot_hold_is_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        make_shop(ShopConfig(**fields))


def test_the_largest_shop_can_be_made():
    assert len(make_shop(ShopConfig(num_users=576, orders_per_user=1))["users"]) == 576
    assert len(make_shop(ShopConfig(num_users=225, orders_per_user=4))["orders"]) == 900


def test_held_out_users():
    config = ShopConfig()
    held_out = held_out_users(SHOP, config)
    assert held_out < set(SHOP["users"])
    assert len(held_out) == 60  # 0.3 of 200
    assert held_out_users(SHOP, config) == held_out
    assert held_out_users(SHOP, ShopConfig(held_out_fraction=0.0)) != set()
