"""Reading a solution's final answer, and plain numbers by hand."""

import time
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
    ("the answer is 1. Wait, the answer is 2.", "2"),
    ("the answer is 1.\nWait, the answer is 2.", "2"),
    (r"the answer is 5, \boxed{6}", "6"),
    (r"\boxed{73}. The answer stands in \boxed{}.", "73"), (r"\boxed{73} \boxed{ }", "73"),
    (r"The answer is 7. \boxed{}", "7"), (r"So \boxed 73", "73"), (r"So \boxed73.", "73"),
    (r"$\boxed -5$", "-5"), ("The answer is **73**.", "73"), ("**Final Answer**: 73", "73"),
    ("**Answer:** 73", "73"), ("### Final Answer\n73", "73"), ("**Final answer**\n\n**73**", "73"),
    ("The answer is\n\n73", "73"), ("The answer is 73, since 489 - 416 = 73.", "73"),
    ("The answer is 73 because it is.", "73"), ("The answer is 5, as said.", "5"),
    ("The final answer is $73$. I hope it is correct.", "$73$"), ("The answer is 2**3.", "2**3"),
    ("The answer is 3.5.", "3.5"), ("The answer is 7. The answer is", "7"),
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
    ("1 1/4", Fraction(5, 4)), (r"-1\frac{1}{4}", Fraction(-5, 4)), ("2 2/3.", Fraction(8, 3)),
    (r"1\ \tfrac {1} {4}", Fraction(5, 4)), ("1  1 / 4", Fraction(5, 4)), ("3 / 4", Fraction(3, 4)),
    ("73.", Fraction(73)), ("- 3", Fraction(-3)), ("\u22123", Fraction(-3)),
    (r"12\,345", Fraction(12345)), ("1{,}000", Fraction(1000)), (r"1,\!000", Fraction(1000)),
    ("4 10", None), (r"2\ 3", None), ("1 000", None), ("73..", None), ("1 1/0", None),
    ("1 -1/4", None), (r"2\,3", None),
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


@pytest.mark.parametrize("text", [
    "answer is " * 20_000, "the answer is\n" * 20_000, "**a " * 20_000, r"\boxed{" * 20_000,
    r"\boxed{} " * 20_000, "answer" + " " * 100_000, "answer is" + "\n" * 100_000, "### " * 30_000,
    "The answer is 1" + " " * 100_000 + "x", "{" * 100_000,
])
def test_long_texts_are_read_in_no_time(text):
    # Quadratic reading of these would take minutes.
    begun = time.thread_time()
    final_answer(text)
    number(text)
    assert time.thread_time() - begun < 5
