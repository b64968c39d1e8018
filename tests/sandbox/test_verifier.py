"""Each test is a slip that would make the reward wrong without anything failing.

The second half is about what the verdict rests on: states, their hash, equality and difference.
"""

import copy

import pytest
import reference

from tarl_jax.sandbox.domain import Domain, State, ToolError, make_tool
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.verifier import fulfilled, verify


def _order(order_id, status="pending"):
    return {
        "order_id": order_id,
        "user_id": "ada_1",
        "address": {"zip": "801"},
        "items": [],
        "fulfillments": [],
        "status": status,
        "payment_history": [
            {"transaction_type": "payment", "amount": 0.5, "payment_method_id": "gift_card_1"}
        ],
    }


DATABASE = {
    "users": {
        "ada_1": {
            "name": {"first_name": "Ada", "last_name": "Ito"},
            "address": {"zip": "801"},
            "email": "ada@mail.com",
            "payment_methods": {
                "gift_card_1": {"source": "gift_card", "balance": 30, "id": "gift_card_1"}
            },
            "orders": ["#W1", "#W2"],
        }
    },
    "orders": {"#W1": _order("#W1"), "#W2": _order("#W2")},
    "products": {},
}


def cancel(order_id, reason="no longer needed"):
    return ("cancel_pending_order", {"order_id": order_id, "reason": reason})


@pytest.fixture
def domain():
    return retail_domain(copy.deepcopy(DATABASE))


def played(domain, *calls):
    state = domain.new_state()
    for name, kwargs in calls:
        domain.call(state, name, kwargs)
    return state


def test_same_writes_in_another_order_with_reads_between_succeed(domain):
    read = ("get_order_details", {"order_id": "#W1"})
    state = played(domain, cancel("#W2"), read, cancel("#W1"))
    verdict = verify(domain, state, [cancel("#W1"), cancel("#W2")])
    assert verdict.success
    assert verdict.diff == ()


def test_goals_are_seen_done_one_by_one_whoever_did_them(domain):
    gold = [cancel("#W1"), cancel("#W2", "ordered by mistake")]
    state = domain.new_state()
    assert fulfilled(domain, state, gold) == ()
    domain.call(state, *cancel("#W2", "ordered by mistake"))
    # The refund of both goes to one gift card: its balance is no sign of either.
    assert fulfilled(domain, state, gold) == (1,)
    domain.call(state, *cancel("#W1"))
    assert fulfilled(domain, state, gold) == (0, 1)


def test_a_goal_is_not_done_by_another_reason_or_by_nothing(domain):
    state = played(domain, cancel("#W1", "ordered by mistake"))
    assert fulfilled(domain, state, [cancel("#W1")]) == ()
    assert fulfilled(domain, state, []) == ()
    refused = ("cancel_pending_order", {"order_id": "#W9", "reason": "no longer needed"})
    assert fulfilled(domain, state, [refused]) == ()  # it changes nothing


def test_what_is_shared_shows_a_goal_that_has_nothing_else():
    def add(db: State, amount: int) -> str:
        """Add to the one account.

        Args:
            amount: How much.
        """
        db.edit("accounts", "a")["sum"] += amount
        return "added"

    bank = Domain("bank", "", {"accounts": {"a": {"sum": 0}}}, [make_tool(add, write=True)])
    gold = [("add", {"amount": 2}), ("add", {"amount": 3})]
    assert fulfilled(bank, played(bank, gold[0]), gold) == ()
    assert fulfilled(bank, played(bank, ("add", {"amount": 5})), gold) == (0, 1)


def test_gold_calls_never_run_through_the_live_state(domain):
    # A replay in the live environment would do the agent's work for it.
    state = domain.new_state()
    for _ in range(2):
        assert not verify(domain, state, [cancel("#W1")]).success
    assert state.changes() == {}


def test_gold_calls_never_run_on_top_of_the_live_state(domain):
    # On the live state the gold cancellation is refused and would seem to change nothing.
    state = played(domain, cancel("#W1", "ordered by mistake"))
    assert not verify(domain, state, [cancel("#W1", "no longer needed")]).success


def test_cached_gold_state_does_not_grow(domain):
    gold = [cancel("#W1")]
    for _ in range(3):
        assert verify(domain, played(domain, cancel("#W1")), gold).success
        assert not verify(domain, played(domain, cancel("#W1"), cancel("#W2")), gold).success


def test_cache_tells_tasks_apart_by_their_arguments(domain):
    state = played(domain, cancel("#W1"))
    assert verify(domain, state, [cancel("#W1")]).success
    assert not verify(domain, state, [cancel("#W2")]).success


def test_cache_reads_a_task_anew_after_its_gold_calls_were_changed_in_place(domain):
    name, kwargs = cancel("#W1")
    assert verify(domain, played(domain, cancel("#W1")), [(name, kwargs)]).success
    kwargs["order_id"] = "#W2"
    assert not verify(domain, played(domain, cancel("#W1")), [(name, kwargs)]).success


def test_cache_tells_domains_apart():
    # The same gold call cancels the order in one shop and is refused in the other.
    database = copy.deepcopy(DATABASE)
    database["orders"]["#W1"]["status"] = "delivered"
    open_shop, closed_shop = retail_domain(copy.deepcopy(DATABASE)), retail_domain(database)
    assert not verify(open_shop, open_shop.new_state(), [cancel("#W1")]).success
    assert verify(closed_shop, closed_shop.new_state(), [cancel("#W1")]).success


def test_doing_nothing_passes_where_nothing_was_asked(domain):
    assert verify(domain, domain.new_state(), []).success


def test_gold_call_that_is_refused_changes_nothing(domain):
    gold = [cancel("#W404"), ("respond", {"content": "hello"})]
    assert verify(domain, domain.new_state(), gold).success


def test_surplus_write_fails_even_if_the_gold_writes_are_there(domain):
    state = played(domain, cancel("#W1"), cancel("#W2"))
    verdict = verify(domain, state, [cancel("#W1")])
    assert not verdict.success
    assert "orders #W2 status: 'pending' -> 'cancelled'" in verdict.diff
    assert not any("#W1" in line for line in verdict.diff)


def test_diff_has_gold_on_the_left_and_live_on_the_right(domain):
    state = played(domain, cancel("#W1", "ordered by mistake"))
    verdict = verify(domain, state, [cancel("#W1", "no longer needed")])
    assert verdict.diff == ("orders #W1 cancel_reason: 'no longer needed' -> 'ordered by mistake'",)


def test_outputs_are_found_across_messages_case_and_commas(domain):
    messages = ["You save $1,234.50.", "The Red one is IN STOCK."]
    verdict = verify(domain, domain.new_state(), [], ["1234.50", "In stock"], messages)
    assert verdict.outputs_found
    assert verdict.missing_outputs == ()


def test_missing_output_is_reported_as_spelt_and_is_not_part_of_success(domain):
    verdict = verify(domain, domain.new_state(), [], ["10", "Blue"], ["It is 10."])
    assert verdict.success
    assert not verdict.outputs_found
    assert verdict.missing_outputs == ("Blue",)


def test_output_split_over_two_messages_is_missing(domain):
    verdict = verify(domain, domain.new_state(), [], ["1234"], ["12", "34"])
    assert verdict.missing_outputs == ("1234",)


def test_outputs_do_not_make_up_for_a_wrong_database(domain):
    verdict = verify(domain, domain.new_state(), [cancel("#W1")], ["done"], ["Done."])
    assert verdict.outputs_found
    assert not verdict.success


def test_agent_messages_may_be_a_generator(domain):
    messages = (text for text in ["one", "two"])
    assert verify(domain, domain.new_state(), [], ["one", "two"], messages).outputs_found


def test_state_of_another_domain_is_an_error(domain):
    stranger = retail_domain(copy.deepcopy(DATABASE))
    with pytest.raises(ValueError, match="another domain"):
        verify(domain, stranger.new_state(), [])


# --- states ---------------------------------------------------------------------------------------


@pytest.fixture
def state(domain):
    return domain.new_state()


def reference_hash(domain, state):
    return reference.state_hash({table: dict(state.table(table)) for table in domain.database})


def test_fork_and_original_do_not_see_each_others_writes(domain, state):
    state.edit("orders", "#W1")["status"] = "before"
    twin = state.fork()
    state.edit("orders", "#W1")["status"] = "original"
    twin.edit("orders", "#W1")["status"] = "twin"
    assert state.get("orders", "#W1")["status"] == "original"
    assert twin.table("orders")["#W1"]["status"] == "twin"
    assert domain.database["orders"]["#W1"]["status"] == "pending"


def test_record_written_back_to_its_old_value_is_no_change(domain, state):
    order = state.edit("orders", "#W1")
    order["status"] = "cancelled"
    assert set(state.changes()) == {("orders", "#W1")}
    order["status"] = "pending"
    assert state.changes() == {}
    assert domain.same(state, domain.new_state())


def test_refusal_halfway_through_a_write_leaves_no_trace():
    def rename(db: State, name: str) -> str:
        """Rename.

        Args:
            name: The name.
        """
        db.edit("users", "a")["name"] = name
        if name == "bad":
            raise ToolError("no such name")
        return "done"

    domain = Domain("toy", "", {"users": {"a": {"name": "x"}}}, [make_tool(rename, write=True)])
    state = domain.new_state()
    assert domain.call(state, "rename", {"name": "good"}) == "done"
    assert domain.call(state, "rename", {"name": "bad"}) == "Error: no such name"
    assert state.get("users", "a") == {"name": "good"}


def test_tool_with_an_undescribed_parameter_is_an_error():
    def rename(db: State, name: str) -> str:
        """Rename."""

    with pytest.raises(ValueError, match="rename: no line 'name'"):
        make_tool(rename, write=True)


def test_hash_follows_the_definition_through_edits_and_additions(domain, state):
    assert domain.state_hash(state) == reference_hash(domain, state)
    state.edit("users", "ada_1")["email"] = "o'hara@mail.com"  # the only record of its table
    state.edit("orders", "#W2")["payment_history"] = []
    state.add("orders", "#W0", {"order_id": "#W0", "items": ["one"]})
    state.add("products", "10", {"name": "Mug"})  # the first of its table
    assert domain.state_hash(state) == reference_hash(domain, state)


@pytest.mark.parametrize("balance", [30.0, "30"])
def test_equality_is_as_strict_as_the_hash(domain, state, balance):
    # 30 == 30.0 in Python, but not in the hash; a gift card gets there by paying 0.5 and back.
    state.edit("users", "ada_1")["payment_methods"]["gift_card_1"]["balance"] = balance
    assert not domain.same(state, domain.new_state())
    assert domain.diff(state) == [
        f"users ada_1 payment_methods.gift_card_1.balance: 30 -> {balance!r}"
    ]


def test_equality_ignores_the_order_of_keys(domain, state):
    user = state.edit("users", "ada_1")
    user["name"] = dict(reversed(user["name"].items()))
    assert domain.same(state, domain.new_state())
    assert domain.state_hash(state) == domain.state_hash(domain.new_state())


def test_diff_names_what_was_added(domain, state):
    state.add("orders", "#W0", {"items": []})
    state.edit("orders", "#W1")["items"].append("mug")
    assert domain.diff(state) == [
        "orders #W0: (absent) -> {'items': []}",
        "orders #W1 items[0]: (absent) -> 'mug'",
    ]
