"""The retail tools, against what τ-bench's own tools answered and against any call at all."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarl_jax.sandbox.retail import retail_domain

RECORDED = Path(__file__).parents[2] / ".." / "shared" / "tau_bench" / "retail"
needs_recordings = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="τ-bench's recorded outputs are not beside this checkout"
)
FIELDS = ("address1", "address2", "city", "state", "country", "zip")
ADDRESS = dict(zip(FIELDS, ("1 Elm St", "", "Austin", "TX", "USA", "787"), strict=True))


def small_database():
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


def reference_hash(database):
    """The definition, word for word."""

    def frozen(value):
        if isinstance(value, dict):
            return tuple((key, frozen(item)) for key, item in sorted(value.items()))
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return hashlib.sha256(str(frozen(database)).encode()).hexdigest()


def database_of(state, domain):
    return {table: dict(state.table(table)) for table in domain.database}


@pytest.fixture
def domain():
    return retail_domain(small_database())


@pytest.fixture
def state(domain):
    return domain.new_state()


# --- recorded outputs -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    return lambda name: json.loads((RECORDED / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def full_domain(recorded):
    return retail_domain(recorded("db"))


@needs_recordings
@pytest.mark.parametrize("split", ["train", "dev"])
def test_gold_calls_answer_as_recorded(full_domain, recorded, split):
    tasks = recorded(f"tasks_{split}")
    for episode in recorded(f"replay_{split}"):
        state = full_domain.new_state()
        actions = tasks[episode["task"]]["actions"]
        for action, output in zip(actions, episode["outputs"], strict=True):
            got = full_domain.call(state, action["name"], action["kwargs"])
            assert output in (None, got), (episode["task"], action)
        assert full_domain.state_hash(state) == episode["db_hash"], episode["task"]


@needs_recordings
def test_random_calls_answer_as_recorded(full_domain, recorded):
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
def test_schemas_ask_for_the_recorded_arguments(full_domain, recorded):
    def shape(schema):
        function = schema["function"]
        properties = {
            name: {key: value for key, value in prop.items() if key != "description"}
            for name, prop in function["parameters"]["properties"].items()
        }
        return {**function["parameters"], "properties": properties, "name": function["name"]}

    ours = [shape(tool.schema) for tool in full_domain.tools.values()]
    assert ours == [shape(schema) for schema in recorded("tools")]


# --- tools, where the recordings are silent or a slip would be costly -----------------------------


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
    database = small_database()
    database["users"]["ada_1"]["payment_methods"]["gift_card_1"]["balance"] = 100
    domain = retail_domain(database)
    state = domain.new_state()
    kwargs = {"order_id": "#W1", "payment_method_id": "gift_card_1"}
    domain.call(state, "modify_pending_order_payment", kwargs)
    assert state.get("users", "ada_1")["payment_methods"]["gift_card_1"]["balance"] == 30
    back = kwargs | {"payment_method_id": "paypal_1"}
    assert "exactly one payment" in domain.call(state, "modify_pending_order_payment", back)


def test_change_of_payment_gives_the_gift_card_its_money_back():
    database = small_database()
    database["orders"]["#W1"]["payment_history"][0]["payment_method_id"] = "gift_card_1"
    domain = retail_domain(database)
    state = domain.new_state()
    kwargs = {"order_id": "#W1", "payment_method_id": "paypal_1"}
    order = json.loads(domain.call(state, "modify_pending_order_payment", kwargs))
    kinds = [(p["transaction_type"], p["payment_method_id"]) for p in order["payment_history"][1:]]
    assert kinds == [("payment", "paypal_1"), ("refund", "gift_card_1")]
    assert state.get("users", "ada_1")["payment_methods"]["gift_card_1"]["balance"] == 100


def test_cancelling_refunds_a_gift_card():
    database = small_database()
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
        ("refund_everything", {}, "unknown tool 'refund_everything'"),
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


# --- any calls at all -----------------------------------------------------------------------------

TOOLS = retail_domain(small_database()).tools
WORDS = ["#W1", "#W2", "#W3", "ada_1", "10", "801", "paypal_1", "paypal_2", "gift_card_1"]
WORDS += ["no longer needed", "Ada", "Ito", "ada@mail.com", "2*3", ""]
ITEMS = ["100", "101", "102", "103", "104"]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@st.composite
def calls(draw):
    """A tool name and arguments: mostly of the right types, sometimes anything."""
    name = draw(st.sampled_from([*TOOLS, "no_such_tool"]))
    if name == "no_such_tool" or draw(st.integers(0, 9)) == 0:
        return name, draw(anything)
    kwargs = {}
    for argument, schema in TOOLS[name].schema["function"]["parameters"]["properties"].items():
        if schema["type"] == "array":
            kwargs[argument] = draw(st.lists(st.sampled_from(ITEMS), max_size=2))
        else:
            kwargs[argument] = draw(st.sampled_from(WORDS + schema.get("enum", [])))
    if kwargs and draw(st.integers(0, 9)) == 0:
        kwargs[draw(st.sampled_from([*kwargs, "extra"]))] = draw(anything)
    return name, kwargs


@settings(max_examples=150, deadline=None)
@given(st.lists(calls(), max_size=12), st.lists(calls(), max_size=3))
def test_any_calls(sequence, others):
    domain = retail_domain(small_database())
    before = copy.deepcopy(domain.database)
    state = domain.new_state()
    for name, kwargs in sequence:
        held = domain.state_hash(state)
        output = domain.call(state, name, kwargs)
        assert isinstance(output, str)
        if output.startswith("Error: ") or not TOOLS[name].write:
            assert domain.state_hash(state) == held
    assert domain.state_hash(state) == reference_hash(database_of(state, domain))
    other = domain.new_state()
    for name, kwargs in others:
        domain.call(other, name, kwargs)
    hashes_agree = domain.state_hash(state) == domain.state_hash(other)
    assert domain.same(state, other) == hashes_agree == (not domain.diff(state, against=other))
    assert repr(domain.database) == repr(before)
