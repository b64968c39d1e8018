"""A review takes verdicts, keeps them, and decides what is trained on."""

import dataclasses
import io
import json
import sys

import pytest
from rich.console import Console

from tarl_jax.config import ShopConfig
from tarl_jax.rollout.environment import Environment
from tarl_jax.sandbox import load_domain
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.reviews import read_verdicts, review_file
from tarl_jax.sandbox.shop import make_shop
from tarl_jax.sandbox.synthesis.pipeline import Plan, synthesise
from tarl_jax.sandbox.synthesis.review import edit_text, review
from tarl_jax.sandbox.tasks import load_tasks, save_tasks

DOMAIN = load_domain("retail")
TASKS = synthesise(DOMAIN, Plan(12)).tasks


@pytest.fixture
def path(tmp_path):
    save_tasks(tmp_path / "tasks.jsonl", TASKS)
    return tmp_path / "tasks.jsonl"


def run(path, *answers, edit=None, sample=0):
    """What was printed; the answers must be as many as were asked for."""
    left = list(answers)
    console = Console(file=io.StringIO(), width=120)

    def ask(prompt):
        if not left:
            raise EOFError
        return left.pop(0)

    review(path, DOMAIN, console, sample, ask, edit)
    assert not left
    return console.file.getvalue()


def test_a_rejected_task_is_never_trained_on(path):
    run(path, "r", "", "r", "the user contradicts itself", "a", "q")
    kept = [t.task_id for t in load_tasks(path)]
    assert kept == [t.task_id for t in TASKS[1:]]
    verdicts = read_verdicts(path, TASKS)
    assert verdicts[TASKS[0].task_id].reason == "the user contradicts itself"
    assert verdicts[TASKS[1].task_id].verdict == "accept"


def test_what_has_a_verdict_is_not_asked_again(path):
    first = run(path, "a", "s", "a", "q")
    assert f"{TASKS[0].task_id}  (1 of 12)" in first
    again = run(path)  # the input ends
    assert f"{TASKS[1].task_id}  (1 of 10)" in again  # skipped, so it is there once more
    assert TASKS[0].task_id + " " not in again


def test_each_verdict_is_on_disk_before_the_next_question(path):
    seen = []

    def ask(prompt):
        seen.append(len(read_verdicts(path, TASKS)))
        return "a" if len(seen) < 4 else "q"

    review(path, DOMAIN, Console(file=io.StringIO()), 0, ask)
    assert seen == [0, 1, 2, 3]


def test_the_task_is_shown_whole(path):
    task = next(t for t in TASKS if t.gold_calls)
    save_tasks(path, [task])
    shown = " ".join(run(path, "q").replace("│", " ").split())
    assert task.instruction in shown
    assert task.gold_calls[0].name in shown
    assert f"orders {task.gold_calls[0].kwargs['order_id']} status:" in shown


def test_an_edit_takes_the_tasks_place(path):
    def edit(text):
        return text.replace(TASKS[0].instruction, f"{TASKS[0].instruction} Be brief.")

    run(path, "e", "q", edit=edit)
    loaded = load_tasks(path)
    expected = dataclasses.replace(
        TASKS[0], instruction=f"{TASKS[0].instruction} Be brief.")
    assert loaded == [expected, *TASKS[1:]]


def test_a_broken_edit_is_refused_and_can_be_tried_again(path):
    seen = []
    other_user = next(t.user_id for t in TASKS if t.user_id != TASKS[0].user_id)
    edits = iter([
        "{",
        json.dumps({**TASKS[0].to_json(), "surprise": 1}),
        json.dumps({**TASKS[0].to_json(), "user_id": other_user}),
        json.dumps({**TASKS[0].to_json(), "gold_calls": []}),
        json.dumps({**TASKS[0].to_json(), "instruction": "Mended."}),
    ])

    def editor(text):
        seen.append(text)
        return next(edits)

    printed = run(path, "e", "e", "e", "e", "e", "q", edit=editor)
    assert printed.count("refused:") == 4
    for cause in ("Expecting", "unknown fields ['surprise']", "must stay",
                  "the script means other calls"):
        assert cause in printed
    assert seen[1] == "{"  # the text under work is not lost
    assert load_tasks(path)[0].instruction == "Mended."


def test_the_editor_is_the_one_of_the_environment(monkeypatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{sys.executable} -c \"import sys, pathlib; "
                       "p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'b')\"")
    assert edit_text("a") == "ab"
    monkeypatch.setenv("EDITOR", "no-such-editor")
    with pytest.raises(ValueError, match="no-such-editor"):
        edit_text("a")


def test_a_sample_is_the_same_each_time_and_as_large_as_asked_for(path):
    run(path, "a", "a", "a", sample=3)
    assert len(read_verdicts(path, TASKS)) == 3
    assert "0 verdicts; 0 of the sample are left" in run(path, sample=3)


def test_a_review_of_other_tasks_is_an_error(path):
    run(path, "r", "no", "q")
    save_tasks(path, synthesise(DOMAIN, Plan(4, seed=1)).tasks)
    with pytest.raises(ValueError, match=r"review\.jsonl:1: is about a task .* does not hold"):
        load_tasks(path)


def test_a_line_that_was_cut_off_is_passed_over_and_a_broken_one_is_named(path):
    run(path, "r", "no", "q")
    file = review_file(path)
    whole = file.read_text()
    file.write_text(whole + whole[:40])
    assert len(load_tasks(path)) == 11
    run(path, "a", "q")  # takes the cut line's place
    assert len(file.read_text().splitlines()) == 2
    file.write_text("{}\n" + whole)
    with pytest.raises(ValueError, match=r"review\.jsonl:1: not a verdict"):
        load_tasks(path)


def test_a_review_that_rejects_all_is_an_error(path):
    save_tasks(path, TASKS[:1])
    run(path, "r", "no")
    with pytest.raises(ValueError, match="rejects every task"):
        load_tasks(path)


# --- training -------------------------------------------------------------------------------------


def test_a_run_trains_on_the_file_by_the_splits_of_its_records(path, tiny_config):
    config = dataclasses.replace(
        tiny_config, shop=ShopConfig(),
        tasks=dataclasses.replace(tiny_config.tasks, file=str(path)))
    run(path, "r", "no", "q")
    env = Environment.from_config(config)
    assert env.train_tasks == [t for t in TASKS[1:] if t.split == "train"]
    assert env.held_out_tasks == [t for t in TASKS if t.split == "held_out"]


def test_a_file_of_another_shop_is_an_error(path, tiny_config):
    config = dataclasses.replace(
        tiny_config, tasks=dataclasses.replace(tiny_config.tasks, file=str(path)))
    assert len(retail_domain(make_shop(config.shop)).database["users"]) == 20
    with pytest.raises(ValueError, match="users that this shop lacks"):
        Environment.from_config(config)
