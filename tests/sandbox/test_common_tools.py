"""The tools that every domain has, and the look-ups that refuse."""

import random
import time

import pytest

from tarl_jax.sandbox.common_tools import (
    calculate,
    find_payment_method,
    find_record,
    think,
    transfer_to_human_agents,
)
from tarl_jax.sandbox.domain import Domain, ToolError, make_tool


@pytest.fixture
def domain():
    tools = [make_tool(f, write=False) for f in (calculate, think, transfer_to_human_agents)]
    database = {"users": {"ada_1": {"payment_methods": {"card_1": {"source": "credit_card"}}}}}
    return Domain("empty", "", database, tools)


@pytest.fixture
def state(domain):
    return domain.new_state()


def test_thoughts_and_transfers_answer_the_same_whatever_they_say(domain, state):
    assert domain.call(state, "think", {"thought": "hm"}) == ""
    transfer = domain.call(state, "transfer_to_human_agents", {"summary": "no"})
    assert transfer == "Transfer successful"


# --- look-ups -------------------------------------------------------------------------------------


def test_what_is_there_is_found(state):
    assert find_record(state, "users", "ada_1") is state.get("users", "ada_1")
    assert find_payment_method(state, "ada_1", "card_1") == {"source": "credit_card"}


def test_what_is_not_there_is_refused(state):
    with pytest.raises(ToolError, match=r"^user not found$"):
        find_record(state, "users", "ben_2")
    with pytest.raises(ToolError, match=r"^user not found$"):
        find_payment_method(state, "ben_2", "card_1")
    with pytest.raises(ToolError, match=r"^payment method not found$"):
        find_payment_method(state, "ada_1", "card_2")


# --- calculate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1+2*3", "7.0"),
        (" (10.5 - 3) / 2", "3.75"),
        ("3.333*3", "10.0"),
        ("-(4)", "-4.0"),
        ("2**-1", "0.5"),
        ("7//2", "3.0"),
        ("+".join(["1.25"] * 120), "150.0"),
    ],
)
def test_calculate(domain, state, expression, value):
    assert domain.call(state, "calculate", {"expression": expression}) == value


def sane_expression(rng, depth):
    """Money, counts and shares, as an agent computes with them."""
    if depth == 0:
        return rng.choice([str(rng.randrange(1000)), f"{rng.uniform(0, 2000):.2f}", "0.15"])
    left, right = (sane_expression(rng, rng.randrange(depth)) for _ in range(2))
    text = f"{left} {rng.choice('+-*/')} {right}"
    return rng.choice([text, f"({text})", f"-({text})", text.replace(" ", "")])


def test_calculate_answers_as_python_does(domain, state):
    # The benchmark's calculator evaluates the text and rounds; so does this, on what is harmless.
    rng = random.Random(0)
    for _ in range(500):
        expression = sane_expression(rng, 4)
        try:
            expected = str(round(float(eval(expression)), 2))
        except ZeroDivisionError as error:
            expected = f"Error: {error}"
        assert domain.call(state, "calculate", {"expression": expression}) == expected, expression


@pytest.mark.parametrize("expression", ["1 +", "(1", "1)", "1 2", "01 + 1", "1..2", "+"])
def test_calculate_complains_as_python_does(domain, state, expression):
    with pytest.raises(SyntaxError) as error:
        eval(expression)
    output = domain.call(state, "calculate", {"expression": expression})
    assert output == f"Error: {error.value}"


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("9" * 100, "1e+100"),
        ("9" * 102, "Error: number too large or not real"),
        ("9" * 400 + ".0", "Error: number too large or not real"),  # infinite as a float
        ("10**100", "1e+100"),
        ("10**100*10", "Error: number too large or not real"),
        ("10**101", "Error: expression too large"),
        ("-(10**100)-10**99", "Error: number too large or not real"),
        ("2**-9999999", "0.0"),
        ("1**9999999999", "1.0"),
        ("0**-1", "Error: 0.0 cannot be raised to a negative power"),
        ("1/0", "Error: division by zero"),
        ("+".join(["1"] * 200), "200.0"),
        ("+".join(["1"] * 202), "Error: expression nested too deeply"),
        ("1+" * 499 + "11", "Error: expression nested too deeply"),
        ("1+" * 500 + "1", "Error: expression longer than 1000 characters"),
        ("1 2".replace(" ", "\u00a0"), "Error: invalid characters in expression"),
        ("٣+1", "Error: invalid characters in expression"),
        ("1e5", "Error: invalid characters in expression"),
    ],
)
def test_calculate_limits(domain, state, expression, answer):
    assert domain.call(state, "calculate", {"expression": expression}) == answer


def calculated_quickly(domain, expression):
    start = time.thread_time()
    output = domain.call(domain.new_state(), "calculate", {"expression": expression})
    assert time.thread_time() - start < 0.5
    return output


def test_calculate_refuses_a_tower_of_powers(domain):
    assert calculated_quickly(domain, "9**9**9**9") == "Error: expression too large"


def test_calculate_refuses_a_huge_product(domain):
    output = calculated_quickly(domain, "*".join(["9**99"] * 150))
    assert output == "Error: number too large or not real"


def test_calculate_refuses_float_overflow(domain):
    assert calculated_quickly(domain, "0.1**-400") == "Error: expression too large"


def test_calculate_refuses_an_imaginary_result(domain):
    output = calculated_quickly(domain, "(-8)**0.5")
    assert output == "Error: number too large or not real"


def test_calculate_refuses_deep_parentheses(domain):
    assert calculated_quickly(domain, "(" * 400 + "1" + ")" * 400).startswith("Error: ")


def test_calculate_refuses_deep_signs(domain):
    assert calculated_quickly(domain, "-" * 900 + "1").startswith("Error: expression")


def test_calculate_refuses_a_long_expression(domain):
    output = calculated_quickly(domain, "1+" * 1_000_000 + "1")
    assert output == "Error: expression longer than 1000 characters"


def test_calculate_refuses_names(domain):
    output = calculated_quickly(domain, "__import__('os').getpid()")
    assert output == "Error: invalid characters in expression"


def test_calculate_refuses_a_call_of_a_number(domain):
    assert calculated_quickly(domain, "2(3)") == "Error: expression is not arithmetic on numbers"


def test_calculate_refuses_an_ellipsis(domain):
    assert calculated_quickly(domain, "...") == "Error: expression is not arithmetic on numbers"


def test_calculate_refuses_nothing_at_all(domain):
    assert calculated_quickly(domain, "  ").startswith("Error: invalid syntax")
