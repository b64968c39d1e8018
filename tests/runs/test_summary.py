"""The table of both evaluations says what changed, and how sure that is."""

import io
import re

import pytest

from tarl_jax.runs.live import DASH
from tarl_jax.runs.summary import print_summary


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


BASE = {
    "eval/pass^1": 0.412,
    "eval/pass^1_low": 0.381,
    "eval/pass^1_high": 0.444,
    "eval/major_share": 0.6,
    "eval/episode_tokens": 2100.0,
    "eval/waits": None,
}
FINAL = {**BASE, "eval/pass^1": 0.512, "eval/major_share": 0.4, "eval/episode_tokens": 1900.0}


def test_summary_sets_both_evaluations_side_by_side():
    stream = io.StringIO()
    print_summary(BASE, FINAL, stream)
    text = stream.getvalue()
    assert "\x1b" not in text
    rows = {line[2:18].strip(): line for line in text.splitlines()}
    assert re.search(r"0\.412 \(0\.381 to 0\.444\) +0\.512 \(.*\) +\+0\.100", rows["pass^1"])
    assert re.search(r"2,100 +1,900 +-200", rows["episode tokens"])
    assert rows["waits"].split() == ["waits", *[DASH] * 3]


def test_summary_colours_what_is_better_not_what_is_higher():
    stream = Terminal()
    print_summary(BASE, FINAL, stream)
    assert "\x1b[32m+0.100" in stream.getvalue()
    assert "\x1b[32m-0.200" in stream.getvalue()  # fewer major deviations
    assert not re.search(r"\x1b\[3[12]m-200", stream.getvalue())  # shorter is neither


def test_a_difference_has_its_interval():
    stream = io.StringIO()
    difference = {"eval/pass^1": 0.1, "eval/pass^1_low": -0.02, "eval/pass^1_high": 0.21}
    print_summary(BASE, FINAL, stream, difference)
    assert "+0.100 (-0.020 to +0.210)" in stream.getvalue()


def test_evaluations_of_other_tasks_say_over_which_the_difference_is():
    difference = {"eval/pass^1": 0.1, "eval/pass^1_low": -0.02, "eval/pass^1_high": 0.21}
    for tasks, said in ((256.0, False), (32.0, True)):
        stream = io.StringIO()
        print_summary({**BASE, "eval/tasks": 256.0}, {**FINAL, "eval/tasks": tasks}, stream,
                      difference)
        text = " ".join(stream.getvalue().split())
        assert ("base on 256 tasks, trained on 32; differences" in text) == said


def test_one_evaluation_alone_has_one_column():
    stream = io.StringIO()
    print_summary({}, FINAL, stream)
    text = stream.getvalue()
    assert "base" not in text and "difference" not in text
    assert re.search(r"pass\^1 +0\.512 \(0\.381 to 0\.444\) *$", text, re.M)
