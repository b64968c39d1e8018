"""The view never breaks a run, and says what it was told."""

import io
import math
import re

import pytest

from tarl_jax.runs import live
from tarl_jax.runs.summary import print_summary

VALUES = {
    "train/pass_rate": 0.5,
    "reward/mean": 3.25,
    "reward/terminal": 5.0,
    "reward/turns": 1.25,
    "reward/major": -3.0,
    "rl/kl": 0.0021,
    "rl/entropy": 0.45,
    "rl/clip_fraction": 0.01,
    "rl/log_prob_gap": 1e-6,
    "rl/zero_variance_groups": 0.25,
    "judge/major_share": 0.6,
    "rollout/tokens_per_second": 14312.4,
    "rollout/episode_tokens": 212.0,
    "rollout/turns": 6.1,
    "seconds/rollout": 1.2,
    "seconds/judge": 0.1,
    "seconds/update": 1.0,
    "seconds/step": 2.5,
}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


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


@pytest.fixture
def clock(monkeypatch):
    """Time stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return now


def run_plain(stream, enabled):
    with live.LiveView(80, enabled, "run \x1b[31m") as view:
        view.phase("warm start", 0, 450)
        view.phase("warm start", 200, 450)
        view.update(1, VALUES)
        view.phase("rollout", 3, 128)
        view.log("saved\tcheckpoint \x1b]0;title\x07")
    return stream.getvalue()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_plain_mode_is_one_clean_line_per_step_and_long_phase(monkeypatch, kind):
    stream = kind()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich alone would colour a pipe
    text = run_plain(stream, enabled=kind is io.StringIO)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    title, phase, step, log = text.splitlines()
    assert title == r"run \x1b[31m"
    assert phase == "warm start (450)"
    assert step.startswith("step 1/80  pass 0.500  reward +3.25 (terminal +5.00, turns +1.25, ")
    assert "14,312 tokens/s" in step and "2.5 s (rollout 1.2, judge 0.1, update 1.0)" in step
    assert log == r"saved    checkpoint \x1b]0;title\x07"


def test_dumb_terminals_get_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with live.LiveView(2, True, "run", stream) as view:
        view.update(1, VALUES)
    assert "\x1b" not in stream.getvalue()


def test_absent_values_are_dashes_and_unknown_keys_are_ignored():
    stream = io.StringIO()
    with live.LiveView(2, False, "run", stream) as view:
        view.update(1, {"other/key": 7.0})
    line = stream.getvalue().splitlines()[1]
    assert f"pass {live.DASH}" in line and f"kl {live.DASH}" in line and "7" not in line


def test_values_of_one_step_do_not_leak_into_the_next_but_evaluations_stay():
    stream = Terminal()
    with live.LiveView(80, True, "run", stream) as view:
        view.update(20, {**VALUES, "rl/kl": 0.777})
        view.update(20, {"eval/pass^1": 0.412, "seconds/eval": 12.0})
        view.update(21, {"train/pass_rate": 0.25})
    last = ESCAPE.sub("", stream.getvalue().rsplit("╭", 1)[1])
    assert "0.777" not in last
    assert re.search(r"held-out pass\^1 +0\.412 +after step 20", last)
    assert "21/80" in last and "0.250" in last


def test_an_evaluation_alone_prints_only_the_evaluation():
    stream = io.StringIO()
    with live.LiveView(80, False, "run", stream) as view:
        view.update(20, VALUES)
        view.phase("evaluation", 0, 64)
        view.update(20, {"eval/pass^1": 0.412, "seconds/eval": 12.0})
        view.phase("evaluation", 0, 64)
    lines = stream.getvalue().splitlines()
    assert lines[2:] == [
        "evaluation (64)",
        "step 20/80  eval pass^1 0.412 in 12.0 s",
        "evaluation (64)",
    ]


def test_panel_shows_the_numbers_and_ends_with_the_cursor_back():
    stream = Terminal()
    with live.LiveView(80, True, "my run", stream) as view:
        view.update(12, VALUES)
        view.phase("evaluation", 200, 450)
        view.log("[bold]not markup[/]")
    text = ESCAPE.sub("", stream.getvalue())
    for shown in ("my run", "200/450", "12/80", "0.500", "+3.25", "-3.00", "0.0021", "0.45",
                  "1e-06", "25.0%", "60.0%", "14,312 tokens/s", "212 tokens and 6.1 turns",
                  f"rollout 1.2  judge 0.1  update 1.0  eval {live.DASH}  step 2.5",
                  "[bold]not markup[/]"):  # fmt: skip
        assert shown in text, shown
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_panel_fits_any_width(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with live.LiveView(100, True, "run", stream) as view:
        for step in range(1, 50):
            view.update(step, VALUES)
    panel = ESCAPE.sub("", stream.getvalue().rsplit("╭", 1)[1])
    assert all(len(line) <= columns for line in panel.splitlines())
    if columns >= 80:
        assert "held-out pass^1" in panel


def test_an_exception_leaves_the_terminal_usable():
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), live.LiveView(80, True, "run", stream) as view:
        view.update(1, VALUES)
        raise KeyboardInterrupt
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


def test_time_left_counts_all_wall_clock_time(clock):
    stream = io.StringIO()
    with live.LiveView(10, False, "run", stream) as view:
        clock[0] += 1000.0  # a warm start says nothing about steps
        view.update(1, {"seconds/step": 2.0})
        for step in (2, 3):
            clock[0] += 60.0
            view.update(step, {"seconds/step": 2.0})
        view.update(3, {"eval/pass^1": 0.5})
        clock[0] += 60.0
        view.update(4, {"seconds/step": 2.0})
    left = re.findall(r"left (\S+)", stream.getvalue())
    assert left == ["0:00:18", "0:08:00", "0:07:00", "0:06:00"]


@pytest.mark.parametrize(
    ("key", "value", "warning"),
    [
        ("reward/mean", math.nan, "not finite: reward/mean"),
        ("rl/log_prob_gap", -0.2, "engine and trainer disagree"),
        ("rl/entropy", 0.001, "stopped exploring"),
        ("rl/zero_variance_groups", 0.95, "hardly any group"),
    ],
)
def test_trouble_is_said_once_it_shows(key, value, warning):
    stream = io.StringIO()
    with live.LiveView(80, False, "run", stream) as view:
        view.update(1, VALUES)
        view.update(2, {**VALUES, key: value})
    _, fine, bad = stream.getvalue().splitlines()
    assert "!" not in fine
    assert warning in bad


def test_episodes_played_ahead_are_stale_and_not_at_fault():
    values = {k: v for k, v in VALUES.items() if "gap" not in k} | {"rl/staleness": 0.321}
    for stream, enabled in ((io.StringIO(), False), (Terminal(), True)):
        with live.LiveView(80, enabled, "run", stream) as view:
            view.update(1, values)
        shown = ESCAPE.sub("", stream.getvalue())
        assert "stale" in shown and "0.321" in shown
        assert "gap" not in shown.partition("stale")[2] and "disagree" not in shown


def test_ascii_streams_do_not_end_the_run():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with live.LiveView(80, False, "rün", stream) as view:
        view.update(1, {})
    print_summary({}, {}, stream)
    assert b"r?n" in raw.getvalue()


def test_sparkline_spans_its_range_and_leaves_gaps():
    assert live.sparkline([0.0, math.nan, 0.5, 1.0]) == "▁ ▅█"
    assert live.sparkline([0.50, 0.51]) == "▁▂"  # noise stays small
    assert live.sparkline([]) == ""
    assert live.sparkline([math.nan]) == " "


def test_a_warning_is_said_once_and_then_by_its_number():
    stream = io.StringIO()
    with live.LiveView(80, False, "run", stream) as view:
        view.update(1, {**VALUES, "rl/kl": 0.9})
        view.update(2, {**VALUES, "rl/kl": 0.8, "rl/clip_fraction": 0.5})
        view.update(3, {**VALUES, "rl/kl": 0.001, "rl/clip_fraction": 0.4})
    first, second, third = stream.getvalue().splitlines()[1:]
    assert "!1 rl/kl 0.9: the policy is far" in first
    assert "the policy is far" not in second and "  !1  !2 rl/clip_fraction 0.5: most" in second
    assert third.endswith("  !2")


def test_long_phases_say_how_far_they_are_and_how_long_they_take(clock):
    stream = io.StringIO()
    with live.LiveView(80, False, "run", stream) as view:
        for done in range(0, 101, 5):
            clock[0] += 1
            view.phase("evaluating", done, 100)
    lines = stream.getvalue().splitlines()[1:]
    assert lines[0] == "evaluating (100)"
    assert lines[1] == "evaluating 55/100  left 0:00:09" and len(lines) == 4  # quiet for 10 s


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_the_clocks_stand_on_one_line(monkeypatch, columns, clock):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with live.LiveView(1200, True, "run", stream) as view:
        view.update(1000, VALUES)
        clock[0] += 40_000
        view.phase("evaluating the trained policy", 100, 1024)
        clock[0] += 60
    lines = ESCAPE.sub("", stream.getvalue().rsplit("\u256d", 1)[1]).splitlines()
    assert max(map(len, lines)) <= columns
    if columns >= 80:
        (clocks,) = (line for line in lines if "1000/1200" in line)
        assert "11:07:40 so far, 0:08:20 left" in clocks
        (phase,) = (line for line in lines if "100/1,024" in line)
        assert "evaluating the trained policy" in phase and "0:09:14 left" in phase


def test_the_last_words_come_after_all_but_not_after_an_error():
    for error in (None, ValueError("x")):
        stream = io.StringIO()
        try:
            with live.LiveView(80, False, "run", stream) as view:
                view.at_end(lambda: view.log("go on with this"))
                view.update(1, VALUES)
                if error:
                    raise error
        except ValueError:
            pass
        assert stream.getvalue().endswith("go on with this\n") == (error is None)
