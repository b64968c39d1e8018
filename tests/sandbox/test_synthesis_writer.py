"""The committee's rules, with a chat model that says what the test tells it to."""

import json

import pytest

from tarl_jax.sandbox import load_domain
from tarl_jax.sandbox.synthesis.__main__ import main
from tarl_jax.sandbox.synthesis.checks import Rejected
from tarl_jax.sandbox.synthesis.pipeline import Plan, synthesise
from tarl_jax.sandbox.synthesis.writer import Writer
from tarl_jax.sandbox.tasks import load_tasks

DOMAIN = load_domain("retail")
TASK = synthesise(DOMAIN, Plan(2)).tasks[0]
YES = '{"accept": true, "reason": ""}'
GOOD = json.dumps({"instruction": f"New words. {TASK.instruction}"})


def no(reason):
    return json.dumps({"accept": False, "reason": reason})


class Fake:
    """Answers in order, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, messages, *, key):
        self.asked.append((key, messages))
        return self.answers.pop(0)


def test_an_accepted_text_replaces_the_instruction_and_nothing_else():
    chat = Fake(f"Here you are:\n```json\n{GOOD}\n```", YES, no("too long"), YES)
    task = Writer(chat)(TASK)
    assert task.instruction == f"New words. {TASK.instruction}"
    assert task.to_json() == {**TASK.to_json(), "instruction": task.instruction}
    assert len({key for key, _ in chat.asked}) == 4  # else two reviews would be one sample
    assert all(key.startswith(f"{TASK.task_id}/0/") for key, _ in chat.asked)
    assert "New words." in chat.asked[1][1][-1]["content"]


def test_reasons_go_back_to_the_writer_for_another_try():
    chat = Fake(GOOD, no("It is rude."), no("It gives the call away."), YES, GOOD, YES, YES, YES)
    assert Writer(chat)(TASK).instruction.startswith("New words.")
    second = chat.asked[4][1]
    assert [m["role"] for m in second] == ["system", "user", "assistant", "user"]
    assert "It is rude." in second[-1]["content"]
    assert "It gives the call away." in second[-1]["content"]


@pytest.mark.parametrize("bad", ["certainly!", "[1]", '{"instruction": 3}', '{"instruction": "',
                                 '{"instruction": " "}'])
def test_malformed_json_is_a_try_that_failed(bad):
    chat = Fake(bad, GOOD, YES, YES, YES)
    assert Writer(chat)(TASK).instruction.startswith("New words.")
    assert "was not a JSON object" in chat.asked[1][1][-1]["content"]
    with pytest.raises(Rejected, match="not the JSON asked for"):
        Writer(Fake(bad, bad), tries=2)(TASK)


def test_a_text_that_lacks_an_order_is_not_even_reviewed():
    order = TASK.gold_calls[0].kwargs["order_id"]
    chat = Fake(json.dumps({"instruction": TASK.instruction.replace(order, "an order")}))
    with pytest.raises(Rejected, match="facts are left out"):
        Writer(chat, tries=1)(TASK)
    assert len(chat.asked) == 1


@pytest.mark.parametrize("votes, accepted", [
    ((YES, YES, "?"), True), ((YES, "?", "?"), False), ((YES, YES, no(""), no("")), False),
    ((YES,), True), (("{}",), False), (('{"accept": "yes"}',), False),
])
def test_more_than_half_must_accept_and_what_cannot_be_read_is_no_vote_for_it(votes, accepted):
    writer = Writer(Fake(GOOD, *votes), reviews=len(votes), tries=1)
    if accepted:
        assert writer(TASK).instruction.startswith("New words.")
    else:
        with pytest.raises(Rejected, match="accepts no text"):
            writer(TASK)


def test_a_task_whose_texts_are_never_accepted_is_rejected_and_counted():
    refused = set()

    def chat(messages, *, key):
        name = key.split("/")[0]
        if key.endswith("/write"):
            facts = messages[1]["content"]
            return json.dumps({"instruction": json.loads(facts)["plain instruction"] + " Well."})
        # The first candidate of this name never pleases; later ones do.
        text = messages[1]["content"]
        if name == "synthesis-train-0" and (not refused or text in refused):
            refused.add(text)
            return no("I do not like it.")
        return YES

    made = synthesise(DOMAIN, Plan(4), Writer(chat, reviews=1, tries=3))
    assert len(made.tasks) == 4
    assert all(task.instruction.endswith(" Well.") for task in made.tasks)
    assert made.rejected["instruction", "the committee accepts no text"] == 1


@pytest.mark.parametrize("name", ["reviews", "tries"])
def test_a_committee_of_none_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} = 0"):
        Writer(Fake(), **{name: 0})


def test_the_command_has_a_model_write_and_asks_it_nothing_twice(
    openai_server, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    flags = ["--num=6", "--llm_model=author", f"--base_url={openai_server.url}", "--reviews=3"]
    openai_server.plan(fractions={"500": 0.1})
    assert main([*flags, f"--out={tmp_path}/one.jsonl"]) == 0
    asked = openai_server.report()["requests"]
    tasks = load_tasks(tmp_path / "one.jsonl")
    assert len(tasks) == 6 and asked >= 6 * 4
    assert all(t.instruction.startswith("Listen. You are") for t in tasks)
    assert main([*flags, f"--out={tmp_path}/two.jsonl"]) == 0
    assert openai_server.report()["requests"] == asked  # all from the cache
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_a_model_that_cannot_be_asked_is_one_message(openai_server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    openai_server.plan(fractions={"401": 1.0})
    flags = ["--num=6", "--llm_model=author", f"--base_url={openai_server.url}"]
    assert main([*flags, f"--out={tmp_path}/tasks.jsonl"]) == 2
    assert "--llm_model=author: " in capsys.readouterr().err
    assert not (tmp_path / "tasks.jsonl").exists()
