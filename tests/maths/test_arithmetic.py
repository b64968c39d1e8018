"""The problems that are made: solved again by reading their text, and short enough to train on."""

import re
from fractions import Fraction

import pytest

from tarl_jax.maths import arithmetic
from tarl_jax.maths.answers import final_answer, number, same_number
from tarl_jax.maths.arithmetic import LEVELS, make_problems
from tarl_jax.text.tokenizer import Tokenizer

EVEN = (0.2,) * LEVELS


def only(level):
    return tuple(float(n == level) for n in range(1, LEVELS + 1))


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
def test_problems_are_distinct_short_and_solved(level):
    tokenizer = Tokenizer()
    problems = make_problems(400, only(level), "test")
    assert len({p.text for p in problems}) == 400
    for problem in problems:
        assert same_number(final_answer(problem.solution), problem.answer)
        prompt, solution = tokenizer.encode(problem.text), tokenizer.encode(problem.solution)
        assert len(prompt) <= 80 and len(solution) < 48
        assert tokenizer.decode(prompt) == problem.text  # no unknown piece
        assert tokenizer.decode(solution) == problem.solution
        assert all(len(digits) <= 3 for digits in re.findall(r"\d+", problem.text))


def test_every_step_of_every_solution_holds():
    for problem in make_problems(1000, EVEN, "test"):
        *steps, last = problem.solution.split("\n")
        assert last == f"\\boxed{{{problem.answer}}}"
        for step in steps:
            left, right = step.split("=")
            if left != "x":
                assert re.fullmatch(r"-?\d+[-+*/]\d+", left), step
                assert Fraction(eval(left.replace("/", "//"))) == number(right), step


# Every phrasing whose numbers a pattern can find, solved without the solution's help.
ORACLES = {
    r"What is ([-+*\d]+)\?": lambda term: eval(term),
    r"What is (\d+)/(\d+)\?": lambda a, b: Fraction(int(a), int(b)),
    r"(?:Solve |What is x if |Write x as a fraction: )(\d+)x\+(\d+)=(-?\d+).*":
        lambda a, b, c: Fraction(int(c) - int(b), int(a)),
    r"(\d+) times a number, plus (\d+), is (-?\d+)\..*":
        lambda a, b, c: Fraction(int(c) - int(b), int(a)),
    r"x\+y=(\d+) and x-y=(\d+).*": lambda s, d: Fraction(int(s) + int(d), 2),
    r"Two numbers add up to (\d+) and differ by (\d+).*": lambda s, d: (int(s) + int(d)) // 2,
    r"\w+ has (\d+) more \w+ than boxes, (\d+) in all.*": lambda d, s: (int(s) + int(d)) // 2,
    r"\w+ has (\d+) \w+ and buys (\d+)\..*": lambda a, b: int(a) + int(b),
    r"(\d+) \w+ and (\d+) more: how many\?": lambda a, b: int(a) + int(b),
    r"Add (\d+) to (\d+)\.": lambda a, b: int(a) + int(b),
    r"\w+ has (\d+) \w+ and sells (\d+)\..*": lambda a, b: int(a) - int(b),
    r"Of (\d+) \w+, (\d+) are sold\..*": lambda a, b: int(a) - int(b),
    r"Take (\d+) from (\d+)\.": lambda a, b: int(b) - int(a),
    r"(\d+) boxes hold (\d+) \w+ each\..*": lambda a, b: int(a) * int(b),
    r"\w+ buys (\d+) \w+ at (\d+) dollars each\..*": lambda a, b: int(a) * int(b),
    r"Multiply (\d+) by (\d+)\.": lambda a, b: int(a) * int(b),
    r"(\d+) \w+ go into (\d+) boxes\..*": lambda a, b: Fraction(int(a), int(b)),
    r"\w+ pays (\d+) dollars for (\d+) \w+\..*": lambda a, b: Fraction(int(a), int(b)),
    r"\w+ has (\d+) \w+, gets (\d+) and sells (\d+)\..*":
        lambda a, b, c: int(a) + int(b) - int(c),
    r"(\d+) \w+ come in, then (\d+); (\d+) go out\..*": lambda a, b, c: int(a) + int(b) - int(c),
    r"\w+ buys (\d+) \w+ at (\d+) dollars and pays with (\d+)\..*":
        lambda a, b, c: int(c) - int(a) * int(b),
    r"From (\d+) dollars, (\d+) \w+ at (\d+) are paid\..*":
        lambda c, a, b: int(c) - int(a) * int(b),
    r"(\d+) boxes of (\d+) \w+ and (\d+) loose ones: how many\?":
        lambda a, b, c: int(a) * int(b) + int(c),
    r"\w+ has (\d+) \w+ and gets (\d+) boxes of (\d+)\..*":
        lambda c, a, b: int(a) * int(b) + int(c),
    r"(\d+) \w+ and (\d+) dollars for shipping cost (\d+)\..*":
        lambda a, b, c: Fraction(int(c) - int(b), int(a)),
    r"\w+ pays (\d+) for (\d+) \w+, (\d+) of it for shipping\..*":
        lambda c, a, b: Fraction(int(c) - int(b), int(a)),
    r"(\d+) \w+ cost (\d+) dollars each and (\d+) others (\d+) each\..*":
        lambda a, b, c, d: int(a) * int(b) + int(c) * int(d),
    r"\w+ buys (\d+) \w+ at (\d+) and (\d+) at (\d+)\..*":
        lambda a, b, c, d: int(a) * int(b) + int(c) * int(d),
}


def test_the_answers_are_right_for_what_the_texts_ask():
    used = set()
    for problem in make_problems(2000, EVEN, "test"):
        found = [(p, m) for p in ORACLES if (m := re.fullmatch(p, problem.text))]
        assert len(found) == 1, problem.text
        (pattern, match), = found
        used.add(pattern)
        assert number(problem.answer) == ORACLES[pattern](*match.groups()), problem
    assert used == set(ORACLES)


def test_the_seed_decides_and_nothing_else():
    problems = make_problems(50, EVEN, "a")
    assert make_problems(50, EVEN, "a") == problems
    assert make_problems(80, EVEN, "a")[:50] == problems
    assert make_problems(50, EVEN, "b") != problems


def test_avoided_texts_are_avoided():
    problems = make_problems(200, only(1), "a")
    avoid = {p.text for p in problems[::2]}
    others = make_problems(200, only(1), "a", avoid)
    assert len(others) == 200 and not avoid & {p.text for p in others}


def test_the_levels_have_their_shares_and_differ():
    assert {p.text for p in make_problems(300, (0.0, 0.0, 0.0, 0.5, 0.5), "a")}.isdisjoint(
        p.text for p in make_problems(300, (0.5, 0.5, 0.0, 0.0, 0.0), "a"))


def test_too_many_problems_are_refused(monkeypatch):
    same = {1: (lambda rng: arithmetic.Problem("What is 1?", "1"),)}
    monkeypatch.setattr(arithmetic, "_MAKERS", same)
    with pytest.raises(ValueError, match="ask for fewer, or for higher levels"):
        make_problems(2, only(1), "a")
