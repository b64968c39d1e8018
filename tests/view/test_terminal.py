"""The viewer shows each fact in its place, and says what exists when asked for what does not."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from tarl_jax.runs.metrics import append_trajectories
from tarl_jax.types import Call, Segment, Task, Trajectory
from tarl_jax.view import terminal
from tarl_jax.view.__main__ import main


def agent(turn, text, call=None, forced_end=False):
    ids, log_probs = [10 + turn, 20 + turn], [-0.125, -5.25]
    sampled = [True, True]
    if forced_end:
        ids, sampled, log_probs = [*ids, 2], [*sampled, False], [*log_probs, 0.0]
    calls, message = ([], text) if call is None else ([call], "")
    return Segment("agent", ids, sampled, log_probs, turn, text, message, calls)


def make(index=0, success=True, scores=(1, 0, -1), reward=2.5):
    long = '{"order_id": "W1", ' + ", ".join(f'"field_{i}": "{i}"' for i in range(40)) + "}"
    task = Task(
        task_id=f"shop-{index}",
        user_id="mia",
        instruction="Cancel W1 [bold]now[/bold].",
        gold_calls=(Call("cancel_order", {"order_id": "W1"}),),
        outputs=(),
        split="held_out",
        source="shop",
        script=None,
        expert_turns=2,
    )
    call = Call("get_order", {"order_id": "W1"})
    markup = '<tool_call>\n{"name": "get_order", "arguments": {"order_id": "W1"}}\n</tool_call>'
    segments = [
        Segment.forced("system", [1] * 9, -1, "Rule of the shop.\n" * 30),
        Segment.forced("user", [1], -1, "Cancel W1 \x1b[31m\x07please", intent="cancel"),
        agent(0, markup, call),
        Segment.forced("tool", [1], 0, long, error=False),
        agent(1, "Sure?", forced_end=True),
        Segment.forced("user", [1], 1, "Yes.", event="confirm"),
        agent(2, "Cancelled."),
        Segment.forced("user", [], 2, "###STOP###"),
    ]
    return Trajectory(
        task,
        seed=41,
        segments=segments,
        stop_reason="user_stop",
        success=success,
        diff=["orders.W1.note: a -> b"],
        gold_diff=[] if success else ["orders.W1.status: cancelled -> pending"],
        turn_scores=None if scores is None else list(scores),
        judge_notes=[] if scores is None else ["looked up", "not needed", "never did it"],
        reward=reward,
        seconds={"episode": 1.5},
    )


@pytest.fixture
def run_dir(tmp_path):
    kinds = [
        make(0, True, (1, 1, 1)),
        make(1, False, (1, 0, -1)),
        make(2, None, None, None),
        make(3, False, (1, 0, 0)),
    ]
    for step in (1, 2, 3, 12):
        append_trajectories(tmp_path, step, kinds)
    append_trajectories(tmp_path, 20, [make(99)], kind="eval")
    return tmp_path


def run(capsys, *args):
    code = main([*map(str, args), "--terminal"])
    out, err = capsys.readouterr()
    return code, out, err


def colored(trajectory, **kwargs):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=120)
    for part in terminal.render(trajectory, **kwargs):
        console.print(part)
    return stream.getvalue()


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from tarl_jax.view.__main__ import parser; parser().format_help();"
        "sys.exit(bool({'jax', 'rich', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_each_fact_of_an_episode_is_shown(run_dir, capsys):
    code, out, _ = run(capsys, run_dir, "--index", 1)
    assert code == 0
    for shown in ("step_000012.jsonl: trajectory 1 (of 0 to 3)", "shop-1  (shop, held_out)", "41",
                  "Cancel W1 [bold]now[/bold].", 'cancel_order(order_id="W1")', "user_stop",
                  'get_order(order_id="W1")', "[intent=cancel]", "[event=confirm]", "###STOP###",
                  "orders.W1.note: a -> b", "orders.W1.status: cancelled -> pending",
                  "failure   reward +2.50"):  # fmt: skip
        assert shown in out, shown
    assert "<tool_call>" not in out  # shown once, as a call
    assert "error" not in out  # a fact that is False is no news


def test_output_of_a_pipe_holds_no_control_characters(run_dir, capsys):
    _, out, _ = run(capsys, run_dir, "--tokens", "--full")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
    assert r"Cancel W1 \x1b[31m\x07please" in out


def test_scores_and_notes_stand_at_their_turns(run_dir, capsys):
    _, out, _ = run(capsys, run_dir, "--index", 1)
    found = re.findall(r"^agent  turn (\d)  ([+-]1| 0)  (.*?) *$", out, re.MULTILINE)
    assert found == [
        ("0", "+1", "looked up"),
        ("1", " 0", "not needed"),
        ("2", "-1", "never did it"),
    ]
    # and what was said follows its own title
    assert out.index("turn 1") < out.index("Sure?") < out.index("turn 2") < out.index("Cancelled.")


def test_scores_follow_the_turn_number_not_the_position():
    trajectory = make()
    del trajectory.segments[2:4]  # an excerpt that begins at turn 1
    text = "\n".join(colored(trajectory).splitlines())
    assert re.search(r"turn 1  .*?\x1b\[1;33m 0", text)
    assert re.search(r"turn 2  .*?\x1b\[1;31m-1", text)


def test_scores_have_their_colours():
    text = colored(make())
    assert "\x1b[1;32m+1" in text and "\x1b[1;33m 0" in text and "\x1b[1;31m-1" in text


@pytest.mark.parametrize("scores", [None, (), (None, None, None)])
def test_abstaining_is_not_zero(scores):
    text = colored(make(scores=scores))
    assert text.count("\x1b[2mabstain") == 3
    assert " 0\x1b" not in text


def test_long_texts_are_shortened_only_without_full(run_dir, capsys):
    _, short, _ = run(capsys, run_dir)
    _, full, _ = run(capsys, run_dir, "--full")
    assert short.count("more characters (--full shows them)") == 2  # the prompt and the result
    assert "field_39" not in short
    assert '"field_39": "39"' in full and full.count("Rule of the shop.") == 30
    assert "--full" not in full


def test_a_minor_issue_is_told_from_a_neutral_turn():
    trajectory = make(scores=(0, 0, -1))
    trajectory.turn_minors = [True, False, False]
    text = colored(trajectory)
    assert text.count("\x1b[33m0 minor") == 1 and text.count("\x1b[1;33m 0") == 1
    assert "m0-" in terminal.list_line(0, trajectory, 120).plain


@pytest.mark.parametrize("width", [80, 100, 200])
def test_lists_and_episodes_fit_the_terminal(width):
    trajectory = make(scores=[1, 0, -1] * 20, index="a-task-with-a-long-name-" + "x" * 40)
    trajectory.segments[4].text = "word " * 60
    line = terminal.list_line(7, trajectory, width).plain
    assert len(line) <= width and "3 turns" in line and "-" in line
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    for part in terminal.render(trajectory, tokens=True):
        console.print(part)
    assert max(map(len, stream.getvalue().splitlines())) <= width


def test_shorten_counts_what_is_missing():
    assert terminal.shorten("ab\ncd", 2, 10) == "ab\ncd"
    assert (
        terminal.shorten("ab\ncd\nef", 2, 10) == "ab\ncd\n… 3 more characters (--full shows them)"
    )
    assert terminal.shorten("abcdef", 2, 4) == "abcd\n… 2 more characters (--full shows them)"


def test_tokens_show_log_probs_and_mark_forced_ones(run_dir, capsys):
    _, without, _ = run(capsys, run_dir)
    assert "-5.250" not in without
    _, out, _ = run(capsys, run_dir, "--tokens")
    assert out.count("2 sampled tokens, log-prob -5.375 in all") == 3
    assert re.search(r"11  -0\.125 +21  -5\.250 +2  forced", out)  # the end token of turn 1
    assert out.count("forced") == 1


def test_list_has_a_line_per_episode(run_dir, capsys):
    _, out, _ = run(capsys, run_dir, "--list")
    lines = out.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["0", "success", "+2.50", "+++"],
        ["1", "failure", "+2.50", "+0-"],
        ["2", "broken", terminal.DASH, "abstain"],
        ["3", "failure", "+2.50", "+00"],
    ]
    assert all("3 turns" in line and line.endswith(f"shop-{i}") for i, line in enumerate(lines))


@pytest.mark.parametrize(
    ("which", "places"),
    [("any", "0123"), ("success", "0"), ("failure", "123"), ("major", "1")],
)
def test_which_filters_and_keeps_the_places_in_the_file(run_dir, capsys, which, places):
    _, out, _ = run(capsys, run_dir, "--list", "--which", which)
    assert "".join(line.split()[0] for line in out.splitlines()) == places


def test_which_searches_from_the_index_on(run_dir, capsys):
    _, out, _ = run(capsys, run_dir, "--which", "failure")
    assert "trajectory 1 " in out
    _, out, _ = run(capsys, run_dir, "--which", "failure", "--index", 3)
    assert "trajectory 3 " in out


def test_steps_evaluations_and_files_are_found(run_dir, capsys):
    assert "step_000002" in run(capsys, run_dir, "--step", 2)[1]
    assert "step_000012" in run(capsys, run_dir, "--step", "last")[1]
    assert "shop-99" in run(capsys, run_dir, "--eval")[1]
    assert "shop-99" in run(capsys, run_dir / "trajectories" / "eval_000020.jsonl")[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--step", "5"], r"no training trajectories of step 5; there are steps 1-3, 12$"),
        (["--step", "3", "--eval"], r"no evaluation trajectories of step 3; .* 20$"),
        (["--step", "five"], r"--step five: give a number or 'last'"),
        (["--index", "4"], r"index 4 is out of range: the file holds 0 to 3"),
        (["--index", "-1"], r"index -1 is out of range: the file holds 0 to 3"),
        (["--which", "success", "--index", "1"], r"no 'success' among .* 1 to 3; .* it: 0$"),
        (["--which", "major", "--index", "2", "--list"], r"no 'major' among .* 2 to 3; .* it: 1$"),
        (["--eval", "--which", "failure"], r"no 'failure' among trajectories 0 to 0; nor before"),
    ],
)
def test_what_is_absent_is_named_with_what_exists(run_dir, capsys, args, message):
    code, out, err = run(capsys, run_dir, *args)
    assert (code, out) == (2, "")
    assert re.search(message, err.strip()), err


def test_missing_runs_and_broken_files_are_named(tmp_path, capsys):
    assert "no such run: " in run(capsys, tmp_path / "absent")[2]
    assert "no step yet?" in run(capsys, tmp_path)[2]
    append_trajectories(tmp_path, 20, [make()], kind="eval")
    assert "no training trajectories" in run(capsys, tmp_path)[2]
    path = append_trajectories(tmp_path, 1, [])
    assert "holds no trajectories" in run(capsys, tmp_path)[2]
    path.write_text(make().to_json_line() + "\n{\n")
    code, _, err = run(capsys, tmp_path)
    assert code == 2 and "step_000001.jsonl:2: not a trajectory" in err
    assert "is a file: --step" in run(capsys, path, "--step", 1)[2]
