"""Answers that are no plain numbers, and answers that would hang or break whoever reads them."""

import importlib.util
import threading

import pytest

from tarl_jax.maths.symbolic import LONGEST, SymbolicChecker

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None,
    reason="needs math-verify: pip install -e '.[maths]'",
)


@pytest.fixture(scope="module")
def check():
    checker = SymbolicChecker()
    yield checker
    checker.close()


@needs_package
@pytest.mark.parametrize("given, right, same", [
    (r"(x+1)^2", r"x^2+2x+1", True),
    (r"2\sqrt{2}", r"\sqrt{8}", True),
    (r"\{2,1\}", r"\{1,2\}", True),
    (r"50\%", "0.5", True),
    (r"12\text{ cm}", "12", True),
    (r"(x+1)^2", r"x^2+1", False),
    ("1,2,3", "1", False),
    ("4 10", "410", False), ("4 10", "4, 10", True), (r"2\ 3", "23", False), ("2 2/3", "2", False),
    (r"1 1/4\text{ cups}", "1.25", True), (r"1\frac{1}{4}", "5/4", True),
    (r"\begin{pmatrix}1&2\\ 3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", True),
    ("x^2.", "x^2", True), ("73 apples", "73", True),
    ("cat", "act", False), ("Cat", "cat", True), ("(B)", r"\text{B}", True), ("b", "B", False),
    (r"\text{even}", "even", True), ("AB", "BA", False),
    ("[1,2)", "(1,2]", False),
    ("", "1", False),
    ("}{", "1", False),
    ("y" * (LONGEST + 1), "y", False),
])
def test_answers_mean_the_same(check, given, right, same):
    assert check(given, right) is same


@needs_package
def test_it_works_off_the_main_thread(check):
    """The package's own limits use signals, which only a main thread can."""
    verdicts = {}

    def ask(name, given):
        verdicts[name] = check(given, r"\sqrt{8}")

    threads = [threading.Thread(target=ask, args=(g, g)) for g in (r"2\sqrt{2}", r"\sqrt{2}")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {r"2\sqrt{2}": True, r"\sqrt{2}": False}


@needs_package
def test_plain_numbers_need_no_worker():
    checker = SymbolicChecker()
    assert checker("0.5", "1/2") and not checker("3", "4")
    assert checker._worker is None


@needs_package
def test_an_answer_that_takes_too_long_is_wrong_and_the_next_one_is_checked():
    checker = SymbolicChecker(seconds=0)  # nothing is fast enough
    assert checker(r"2\sqrt{2}", r"\sqrt{8}") is False
    assert checker._worker is None  # killed
    checker._seconds = 60
    assert checker(r"2\sqrt{2}", r"\sqrt{8}") is True
    checker.close()


@needs_package
def test_a_worker_that_dies_is_replaced(check):
    assert check("x+1", "x+1")
    check._worker.kill()
    check._worker.wait()
    assert check("x+1", "x+1") is False  # this answer is lost
    assert check("x", "x") is True


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"-e '\.\[maths\]'"):
        SymbolicChecker()
