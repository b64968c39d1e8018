"""The embedded carrier of phones: its database, its tasks, and the clerk that solves them."""

import collections

import pytest

from tarl_jax.config import ClerkConfig, ShopConfig, TaskConfig
from tarl_jax.sandbox import load_domain, score
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import Dialogue, rules_of
from tarl_jax.sandbox.network import POLICY
from tarl_jax.sandbox.network_tasks import FAULTS, HOPELESS
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.scoring import basis_of, verdict_on
from tarl_jax.sandbox.starts import holds, start_of
from tarl_jax.sandbox.tasks import load_tasks, make_tasks, save_tasks
from tarl_jax.sandbox.users import scripted_user
from tarl_jax.types import Call

SHOP = ShopConfig(num_users=60)
CONFIG = TaskConfig(num_train=120, num_held_out=40)
DOMAIN = embedded_domain("telecom", SHOP)
TASKS = {split: make_tasks(DOMAIN, SHOP, CONFIG, split) for split in ("train", "held_out")}


def test_the_database_is_a_function_of_its_seed():
    again = embedded_domain("telecom", SHOP)
    assert again.database == DOMAIN.database and again.policy == POLICY.read_text("utf-8")
    other = embedded_domain("telecom", SHOP, branch=1)
    assert other.database["plans"] == DOMAIN.database["plans"]
    assert other.database["customers"] != DOMAIN.database["customers"]
    assert load_domain("telecom").name == "telecom"
    with pytest.raises(ValueError, match="domain 'telecom-workflow' has no embedded data"):
        embedded_domain("telecom-workflow", SHOP)
    with pytest.raises(ValueError, match="num_users = 900: must be between 2 and"):
        embedded_domain("telecom", ShopConfig(num_users=900))
    numbers = [line["phone_number"] for line in DOMAIN.database["lines"].values()]
    assert len(set(numbers)) == len(numbers)


def test_tasks_are_a_function_of_their_seed_and_splits_share_no_customer():
    assert make_tasks(DOMAIN, SHOP, CONFIG, "held_out") == TASKS["held_out"]
    users = {split: {t.user_id for t in tasks} for split, tasks in TASKS.items()}
    assert not users["train"] & users["held_out"]
    whole = TASKS["train"] + TASKS["held_out"]
    assert len({t.task_id for t in whole}) == len(whole) == 160
    assert {t.split for t in TASKS["train"]} == {"train"}


@pytest.mark.slow
def test_more_tasks_than_there_are_customers_for_are_refused():
    with pytest.raises(ValueError, match=r"raise shop\.num_users"):
        make_tasks(DOMAIN, SHOP, TaskConfig(num_train=100_000), "train")


def test_every_task_begins_broken_and_its_actions_mend_it():
    for task in TASKS["train"]:
        state = start_of(DOMAIN, task.initial_state)
        calls = [{"name": a.name, "kwargs": a.kwargs, "requestor": a.requestor}
                 for a in task.actions]
        assert score(DOMAIN, task, []).reward == 0.0, task.task_id
        found = score(DOMAIN, task, calls)
        assert found.reward == 1.0, task.task_id
        hopeless = "ACTION" in basis_of(task)
        assert all(holds(DOMAIN, state, c) for c in task.checks) == hopeless


def test_tasks_have_every_fault_and_the_share_of_hopeless_ones():
    many = make_tasks(DOMAIN, SHOP, TaskConfig(num_train=400), "train")
    broken = collections.Counter(
        action["func_name"] for t in many for action in t.initial_state["initialization_actions"]
    )
    for fault in (*FAULTS.values(), *HOPELESS.values()):
        assert all(broken[name] for _, name, _ in fault.breaks)
    hopeless = sum("ACTION" in basis_of(t) for t in many) / len(many)
    assert 0.05 < hopeless < 0.3  # there are few customers, and no task twice
    assert make_tasks(DOMAIN, SHOP, TaskConfig(num_train=5, forbidden=0.0), "train")


def test_the_clerk_solves_them_by_what_it_sees():
    for task in TASKS["held_out"]:
        dialogue = Dialogue(task, DOMAIN, scripted_user(DOMAIN, task, 3), ends=rules_of(task))
        turns = play(dialogue, FAULTLESS, 3)
        calls = [action for action, _ in turns if isinstance(action, Call)]
        assert verdict_on(DOMAIN, task, dialogue.state, calls, []).success
        assert not any(o.info.get("error") for _, o in turns)
        assert task.expert_turns > 1 and task.difficulty == task.expert_turns


def test_a_clerk_that_errs_fails_sometimes():
    careless = ClerkConfig(**{**vars(FAULTLESS), "false_done": 0.5, "transfer": 0.1})
    solved = 0
    for task in TASKS["train"]:
        dialogue = Dialogue(task, DOMAIN, scripted_user(DOMAIN, task, 0), ends=rules_of(task))
        calls = [a for a, _ in play(dialogue, careless, 0) if isinstance(a, Call)]
        solved += verdict_on(DOMAIN, task, dialogue.state, calls, []).success
    assert 20 < solved < 110


def test_tasks_are_kept_in_files(tmp_path):
    save_tasks(tmp_path / "tasks.jsonl", TASKS["held_out"])
    assert load_tasks(tmp_path / "tasks.jsonl") == TASKS["held_out"]
