"""Telecom: both halves on one state, the benchmark's quirks that are kept, any calls at all."""

import hashlib
import json
import random

import pytest
from telecom_small import CARRIER, USER, small_telecom
from tool_calls import junk

from tarl_jax.sandbox.domain import Refusal
from tarl_jax.sandbox.starts import holds, perform, start_of
from tarl_jax.sandbox.telecom_records import typed
from tarl_jax.types import Check

LINE = {"customer_id": "C2", "line_id": "L2"}


@pytest.fixture
def domain():
    return small_telecom()


def ask(domain, state, name, **kwargs):
    return domain.call(state, name, kwargs)


def do(domain, state, name, **kwargs):
    return domain.call(state, name, kwargs, "user")


def plain_hash(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def test_hashes_are_of_the_plain_json_lists_in_their_order(domain):
    state = domain.new_state()
    assert domain.state_hash(state) == plain_hash(
        {table: list(state.table(table).values()) for table in CARRIER}
    )
    assert list(state.table("lines")) == ["L2", "L1", "L3"]
    assert domain.state_hash(state, "user") == plain_hash(dict(state.table("user")))
    # A new bill comes last, whatever its id.
    ask(domain, state, "refuel_data", **LINE, gb_amount=1)
    assert list(state.table("bills")) == ["B1", "B00000001"]
    assert domain.state_hash(state) == plain_hash(
        {table: list(state.table(table).values()) for table in CARRIER}
    )


def test_each_side_has_its_tools(domain):
    state = domain.new_state()
    assert domain.call(state, "toggle_data", {}) == "Error: Tool 'toggle_data' not found."
    got = domain.call(state, "enable_roaming", LINE, "user")
    assert got == "Error: Tool 'enable_roaming' not found." and isinstance(got, Refusal)
    assert do(domain, state, "toggle_data") == (
        "Mobile Data is now OFF.\nStatus Bar: 📶⁴ Excellent | 5G | 📵 Data Disabled | 🔋 80%"
    )
    assert do(domain, state, "toggle_data", x=1).startswith("Error: TelecomUserTools.toggle_data()")


def test_what_one_side_does_the_other_feels(domain):
    state = domain.new_state()
    assert do(domain, state, "check_payment_request") == "No payment request has been made."
    ask(domain, state, "send_payment_request", customer_id="C2", bill_id="B1")
    assert "bill B1 of 40.0 USD" in do(domain, state, "check_payment_request")
    assert ask(domain, state, "send_payment_request", customer_id="C2", bill_id="B1") == (
        "Error: A bill is already awaiting payment for this customer"
    )
    assert do(domain, state, "make_payment") == "Payment of 40.0 USD has been made for bill B1."
    assert state.get("bills", "B1")["status"] == "Paid"
    assert do(domain, state, "make_payment") == "You do not have a payment request."
    ask(domain, state, "suspend_line", **LINE, reason="lost")
    assert "📵 No Signal" in do(domain, state, "reboot_device")
    ask(domain, state, "resume_line", **LINE)
    assert "5G" in do(domain, state, "reboot_device")
    perform(domain, state, "set_data_usage", {**LINE, "data_used_gb": 5.0}, "assistant")
    assert do(domain, state, "run_speed_test") == "Speed test failed: No Connection."
    ask(domain, state, "refuel_data", **LINE, gb_amount=0.5)
    assert "275.00 Mbps (Excellent)" in do(domain, state, "run_speed_test")


def test_a_start_is_made_or_refused_with_its_reason(domain):
    def actions(*called):
        return {"initialization_actions": [
            {"env_type": side, "func_name": name, "arguments": kwargs}
            for side, name, kwargs in called
        ]}

    state = start_of(domain, actions(("user", "turn_airplane_mode_on", {}),
                                     ("assistant", "disable_roaming", LINE)))
    assert do(domain, state, "check_status_bar") == "Status Bar: ✈️ Airplane Mode | 🔋 80%"
    for initial, reason in [
        (actions(("user", "fly", {})), "has no 'fly' of 'user'"),
        (actions(("user", "lock_sim_card", {})), "missing a required argument: 'mode'"),
        (actions(("assistant", "set_data_usage", {**LINE, "customer_id": "C1", "data_used_gb": 1})),
         "Line L2 not found for customer C1"),
        ({"message_history": [{"role": "user"}]}, "message_history"),
        ({"initialization_data": {"agent_data": {"lines": {}} | {"x": 1}}}, "cannot be set"),
    ]:
        with pytest.raises(ValueError, match="here: initial_state: ") as caught:
            start_of(domain, initial, "here")
        assert reason in str(caught.value)


def test_checks(domain):
    state = domain.new_state()
    for name, kwargs, side, expected in [
        ("assert_can_send_mms", {"expected_status": True}, "user", True),
        ("assert_can_send_mms", {"expected_status": True}, "user", False),
        ("assert_internet_speed", {"expected_speed": 200, "expected_desc": "EXCELLENT"}, "user",
         True),
        ("assert_internet_speed", {"expected_speed": 300}, "user", False),
        ("assert_overdue_bill_exists", {"customer_id": "C2", "overdue_bill_id": "B9"}, "assistant",
         False),  # it raises, which is no answer
        ("assert_no_overdue_bill", {"overdue_bill_id": "B9"}, "assistant", True),
    ]:
        held = holds(domain, state, Check(name, kwargs, side, expected))
        assert held == (not (name == "assert_overdue_bill_exists" or (
            name == "assert_can_send_mms" and not expected
        ))), (name, expected)
    assert not state.changes()


# ---- quirks ----------------------------------------------------------------------------------


def test_a_broken_vpn_is_felt_by_all_that_connect_later(domain):
    first = domain.new_state()
    do(domain, first, "connect_vpn")
    assert "EXCELLENT" in do(domain, first, "check_vpn_status")
    perform(domain, domain.new_state(), "break_vpn", {}, "user")
    later = domain.new_state()
    do(domain, later, "connect_vpn")
    assert "<PerformanceLevel.POOR: 'poor'>" in do(domain, later, "check_vpn_status")
    assert "22.00 Mbps (Fair)" in do(domain, later, "run_speed_test")


@pytest.mark.parametrize(("name", "kwargs", "answer", "changes"), [
    ("set_network_mode_preference", {"mode": 5}, "Error: 'int' object has no attribute 'value'",
     True),
    ("set_network_mode_preference", {"mode": "5g"}, "Failed to set network mode: '5g' is", False),
    ("set_apn_settings", {"apn_settings": "x"}, "Error: 'str' object has no attribute 'apn_name'",
     True),
    ("set_apn_settings", {"apn_settings": {"apn_name": "x"}},
     "Error: 1 validation error for APNSettings\napn_name\n  Input should be 'internet' or 'broken'"
     " [type=enum, input_value='x', input_type=str]", False),
    ("set_apn_settings", {"apn_settings": {"y": 1, "reset_at_reboot": "maybe"}},
     "Error: 2 validation errors for APNSettings\nreset_at_reboot\n  Input should be a valid"
     " boolean, unable to interpret input [type=bool_parsing, input_value='maybe', input_type=str]",
     False),
])
def test_what_is_stored_as_it_came(domain, name, kwargs, answer, changes):
    state = domain.new_state()
    before = domain.state_hash(state, "user")
    assert do(domain, state, name, **kwargs).startswith(answer)
    assert (domain.state_hash(state, "user") != before) == changes


# ---- any calls -------------------------------------------------------------------------------

STORED = {"set_network_mode_preference", "set_apn_settings"}  # what leaves a trace where it fails


def arguments(rng, tool):
    known = {
        "customer_id": ["C1", "C2"], "line_id": ["L1", "L2", "L3"], "bill_id": ["B1", "B00000001"],
        "id": ["C2", "L1", "B1", "P1", "X", ""], "gb_amount": [1, 0.5, -1, 0], "reason": ["x"],
        "phone_number": ["801-1", "801-3"], "app_name": ["messaging", "browser", "x"],
        "permission": ["sms", "Storage", "x"], "mode": ["2g_only", "4g_5g_preferred", "x"],
        "apn_settings": [{}, {"apn_name": "broken"}, {"mmsc_url": None}],
    }
    properties = tool.schema["function"]["parameters"]["properties"]
    return {name: rng.choice(known.get(name, [1, "x"])) if rng.random() < 0.9 else junk(rng)
            for name in properties if rng.random() < 0.97}


def test_any_calls(domain):
    before = repr(domain.database)
    for number in range(60):
        rng = random.Random(f"telecom {number}")
        state, twin = domain.new_state(), domain.new_state()
        spoilt = False  # by what was stored as it came, whatever follows may fail halfway
        for _ in range(40):
            side = rng.choice(["assistant", "user", "user"])
            name = rng.choice(list(domain.tools_of(side)))
            kwargs = arguments(rng, domain.tools_of(side)[name])
            hashes = [domain.state_hash(state, s) for s in ("assistant", "user")]
            given = repr(kwargs)
            output = domain.call(state, name, kwargs, side)
            assert isinstance(output, str) and repr(kwargs) == given
            now = [domain.state_hash(state, s) for s in ("assistant", "user")]
            spoilt |= name in STORED and isinstance(output, Refusal)
            if isinstance(output, Refusal):
                assert output.startswith("Error: ")
                assert now == hashes or spoilt, (name, kwargs)
            else:
                assert domain.tools_of(side)[name].write or now == hashes, (name, kwargs)
            domain.call(twin, name, kwargs, side)
        assert domain.same(state, twin)
    assert repr(domain.database) == before


def test_tables_that_are_not_telecoms_are_refused():
    with pytest.raises(ValueError, match="two lines have the id 'L2'"):
        typed(CARRIER | {"lines": CARRIER["lines"][:1] * 2}, USER, "here")
    with pytest.raises(ValueError, match="no table 'planes'"):
        typed(CARRIER | {"planes": []}, USER, "here")
    with pytest.raises(ValueError, match=r"here: the user's records .*"):
        typed(CARRIER, {"device": {"colour": "red"}}, "here")
