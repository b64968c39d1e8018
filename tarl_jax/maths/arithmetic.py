"""Word problems of arithmetic and algebra, made from a seed, with worked solutions.

Their levels:

| level | what it takes |
|---|---|
| 1 | one sum or difference of small numbers |
| 2 | one product or quotient, or two sums |
| 3 | a product and a sum |
| 4 | a linear equation with a whole solution |
| 5 | two unknowns, three steps, or an equation with a fraction as its solution |

People and things are the shop's, which the embedded tokenizer has pieces for. No number has more
than three digits.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction

from tarl_jax.config import InputError
from tarl_jax.sandbox.shop import FIRST_NAMES, PRODUCTS

LEVELS = 5
_THINGS = [name for name in PRODUCTS if not name.endswith(("s", "x"))]


@dataclasses.dataclass(frozen=True)
class Problem:
    """text: what is asked; answer: in LaTeX without dollar signs, or a plain number; solution:
    the steps, ending in the boxed answer, where they are known."""

    text: str
    answer: str
    solution: str = ""


def make_problems(
    count: int, levels: Sequence[float], stream: str, avoid: Collection[str] = ()
) -> list[Problem]:
    """`count` distinct problems, a pure function of the arguments.

    Args:
      levels: share of the problems by level, from level 1 on.
      stream: names the random stream.
      avoid: texts that none of them may have.
    Raises: ValueError if the levels do not admit that many.
    """
    rng = random.Random(stream)
    seen = set(avoid)
    problems: list[Problem] = []
    attempts = 0
    while len(problems) < count:
        attempts += 1
        if attempts > 1_000 + 100 * count:
            raise InputError(
                f"the shares {tuple(levels)} of the levels admit only {len(problems)} of {count}"
                " distinct maths problems; ask for fewer, or for higher levels"
            )
        level = rng.choices(range(1, len(levels) + 1), levels)[0]
        problem = rng.choice(_MAKERS[level])(rng)
        if problem.text not in seen:
            seen.add(problem.text)
            problems.append(problem)
    return problems


def _problem(rng: random.Random, phrasings: Sequence[str], steps: Sequence[str], answer: Fraction,
             **numbers: int) -> Problem:
    thing = rng.choice(_THINGS)
    text = rng.choice(phrasings).format(
        name=rng.choice(FIRST_NAMES), thing=thing, things=f"{thing}s", **numbers
    )
    return Problem(text, str(answer), "\n".join([*steps, f"\\boxed{{{answer}}}"]))


# ---- level 1 --------------------------------------------------------------------------------


def _sum(rng: random.Random) -> Problem:
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    return _problem(rng, (
        "{name} has {a} {things} and buys {b}. How many now?",
        "{a} {things} and {b} more: how many?",
        "What is {a}+{b}?",
        "Add {b} to {a}.",
    ), [f"{a}+{b}={a + b}"], Fraction(a + b), a=a, b=b)


def _difference(rng: random.Random) -> Problem:
    b, rest = rng.randint(2, 20), rng.randint(1, 20)
    a = b + rest
    return _problem(rng, (
        "{name} has {a} {things} and sells {b}. How many are left?",
        "Of {a} {things}, {b} are sold. How many remain?",
        "What is {a}-{b}?",
        "Take {b} from {a}.",
    ), [f"{a}-{b}={rest}"], Fraction(rest), a=a, b=b)


# ---- level 2 --------------------------------------------------------------------------------


def _product(rng: random.Random) -> Problem:
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    return _problem(rng, (
        "{a} boxes hold {b} {things} each. How many in all?",
        "{name} buys {a} {things} at {b} dollars each. What is the price?",
        "What is {a}*{b}?",
        "Multiply {a} by {b}.",
    ), [f"{a}*{b}={a * b}"], Fraction(a * b), a=a, b=b)


def _quotient(rng: random.Random) -> Problem:
    b, each = rng.randint(2, 12), rng.randint(2, 12)
    a = b * each
    return _problem(rng, (
        "{a} {things} go into {b} boxes. How many in each?",
        "{name} pays {a} dollars for {b} {things}. What does one cost?",
        "What is {a}/{b}?",
    ), [f"{a}/{b}={each}"], Fraction(each), a=a, b=b)


def _two_sums(rng: random.Random) -> Problem:
    a, b = rng.randint(5, 40), rng.randint(5, 40)
    c = rng.randint(2, a + b - 1)
    return _problem(rng, (
        "{name} has {a} {things}, gets {b} and sells {c}. How many now?",
        "{a} {things} come in, then {b}; {c} go out. How many remain?",
        "What is {a}+{b}-{c}?",
    ), [f"{a}+{b}={a + b}", f"{a + b}-{c}={a + b - c}"], Fraction(a + b - c), a=a, b=b, c=c)


# ---- level 3 --------------------------------------------------------------------------------


def _change(rng: random.Random) -> Problem:
    a, b = rng.randint(2, 9), rng.randint(2, 12)
    c = a * b + rng.randint(1, 40)
    return _problem(rng, (
        "{name} buys {a} {things} at {b} dollars and pays with {c}. What is the change?",
        "From {c} dollars, {a} {things} at {b} are paid. How much is left?",
        "What is {c}-{a}*{b}?",
    ), [f"{a}*{b}={a * b}", f"{c}-{a * b}={c - a * b}"], Fraction(c - a * b), a=a, b=b, c=c)


def _loose(rng: random.Random) -> Problem:
    a, b, c = rng.randint(2, 12), rng.randint(2, 12), rng.randint(2, 40)
    return _problem(rng, (
        "{a} boxes of {b} {things} and {c} loose ones: how many?",
        "{name} has {c} {things} and gets {a} boxes of {b}. How many now?",
        "What is {a}*{b}+{c}?",
    ), [f"{a}*{b}={a * b}", f"{a * b}+{c}={a * b + c}"], Fraction(a * b + c), a=a, b=b, c=c)


# ---- level 4 --------------------------------------------------------------------------------


def _equation(rng: random.Random) -> Problem:
    a, x, b = rng.randint(2, 9), rng.randint(-9, 12), rng.randint(2, 40)
    c = a * x + b
    return _problem(rng, (
        "Solve {a}x+{b}={c}.",
        "{a} times a number, plus {b}, is {c}. Which number?",
        "What is x if {a}x+{b}={c}?",
    ), [f"{c}-{b}={c - b}", f"{c - b}/{a}={x}"], Fraction(x), a=a, b=b, c=c)


def _shipping(rng: random.Random) -> Problem:
    a, x, b = rng.randint(2, 9), rng.randint(2, 25), rng.randint(2, 20)
    c = a * x + b
    return _problem(rng, (
        "{a} {things} and {b} dollars for shipping cost {c}. What does a {thing} cost?",
        "{name} pays {c} for {a} {things}, {b} of it for shipping. What does one cost?",
    ), [f"{c}-{b}={c - b}", f"{c - b}/{a}={x}"], Fraction(x), a=a, b=b, c=c)


# ---- level 5 --------------------------------------------------------------------------------


def _two_unknowns(rng: random.Random) -> Problem:
    small, more = rng.randint(2, 40), rng.randint(2, 40)
    s, large = 2 * small + more, small + more
    return _problem(rng, (
        "Two numbers add up to {s} and differ by {d}. What is the larger one?",
        "x+y={s} and x-y={d}. What is x?",
        "{name} has {d} more {things} than boxes, {s} in all. How many {things}?",
    ), [f"{s}+{more}={s + more}", f"{s + more}/2={large}"], Fraction(large), s=s, d=more)


def _bill(rng: random.Random) -> Problem:
    a, b, c, d = (rng.randint(2, 12) for _ in range(4))
    return _problem(rng, (
        "{a} {things} cost {b} dollars each and {c} others {d} each. What is the bill?",
        "{name} buys {a} {things} at {b} and {c} at {d}. What is the bill?",
        "What is {a}*{b}+{c}*{d}?",
    ), [f"{a}*{b}={a * b}", f"{c}*{d}={c * d}", f"{a * b}+{c * d}={a * b + c * d}"],
        Fraction(a * b + c * d), a=a, b=b, c=c, d=d)


def _fraction(rng: random.Random) -> Problem:
    a, b, c = rng.randint(2, 9), rng.randint(2, 30), rng.randint(2, 60)
    x = Fraction(c - b, a)
    return _problem(rng, (
        "Solve {a}x+{b}={c}; x may be a fraction.",
        "Write x as a fraction: {a}x+{b}={c}.",
    ), [f"{c}-{b}={c - b}", f"x={c - b}/{a}"], x, a=a, b=b, c=c)


_MAKERS: dict[int, tuple[Callable[[random.Random], Problem], ...]] = {
    1: (_sum, _difference),
    2: (_product, _quotient, _two_sums),
    3: (_change, _loose),
    4: (_equation, _shipping),
    5: (_two_unknowns, _bill, _fraction),
}
