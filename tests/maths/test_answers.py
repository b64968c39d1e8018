"""Reading a solution's final answer, and plain numbers by hand."""

from fractions import Fraction

import pytest

from tarl_jax.maths.answers import final_answer, number, same_number


@pytest.mark.parametrize("solution, answer", [
    (r"3*4=12" "\n" r"\boxed{12}", "12"),
    (r"\boxed{1} no, \boxed{2}", "2"),
    (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"\boxed {7}", "7"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{x\right\}}", r"\left\{x\right\}"),
    ("The answer is 42.", "42"),
    ("The final answer is: 3.5", "3.5"),
    ("Answer: 7\nThank you.", "7"),
    ("the answer is 1. Wait, the answer is 2.", "1. Wait, the answer is 2"),
    ("the answer is 1.\nWait, the answer is 2.", "2"),
    (r"the answer is 5, \boxed{6}", "6"),
    (r"\boxed{12", None),
    (r"\boxed{}", None),
    ("12", None),
    ("3+4=7", None),
    ("", None),
])
def test_the_final_answer(solution, answer):
    assert final_answer(solution) == answer


@pytest.mark.parametrize("text, value", [
    ("12", Fraction(12)), ("-3", Fraction(-3)), ("0.25", Fraction(1, 4)), (".5", Fraction(1, 2)),
    ("3/4", Fraction(3, 4)), ("-3/4", Fraction(-3, 4)), (r"\frac{3}{4}", Fraction(3, 4)),
    (r"-\dfrac{6}{8}", Fraction(-3, 4)), (r"\frac{-3}{4}", Fraction(-3, 4)),
    ("1,234", Fraction(1234)), ("1,234,567.5", Fraction(2469135, 2)), ("$12$", Fraction(12)),
    (r"\$5", Fraction(5)), ("x = 5", Fraction(5)), (" 7 ", Fraction(7)),
    ("1,2", None), ("1,2,3", None), ("12,34", None), ("3/0", None), ("12 or 13", None),
    ("1e3", None), ("\u0663", None), ("--3", None), ("", None), ("x", None), (r"\pi", None),
    ("9" * 5000, None),
])
def test_plain_numbers_are_exact(text, value):
    assert number(text) == value


def test_numbers_are_compared_by_value():
    assert same_number("0.50", "1/2") and same_number(r"\frac{2}{4}", "0.5")
    assert not same_number("0.333", "1/3")
    assert not same_number("x+1", "x+1")  # no plain number: another check's work
