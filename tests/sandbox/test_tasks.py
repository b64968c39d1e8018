"""Made tasks are solvable, distinct and repeatable; task files come back as they were written."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from tarl_jax.config import ClerkConfig, InputError, RunConfig, ShopConfig, TaskConfig
from tarl_jax.rollout.environment import Environment
from tarl_jax.sandbox import shop
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import Dialogue
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.tasks import load_tasks, make_tasks, save_tasks
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.sandbox.verifier import verify
from tarl_jax.types import Call

SHOP = ShopConfig()
DOMAIN = retail_domain(shop.make_shop(SHOP))
CONFIG = TaskConfig(num_train=600, num_held_out=600)
TASKS = {split: make_tasks(DOMAIN, SHOP, CONFIG, split) for split in ("train", "held_out")}
BOTH = TASKS["train"] + TASKS["held_out"]


def gold(task):
    return [(call.name, dict(call.kwargs)) for call in task.gold_calls]


def orders(tasks):
    return {r["order_id"] for t in tasks for r in t.script["requests"]}


def test_the_splits_share_no_user_and_no_order():
    train, held_out = TASKS["train"], TASKS["held_out"]
    assert not {t.user_id for t in train} & {t.user_id for t in held_out}
    assert not orders(train) & orders(held_out)
    assert {t.user_id for t in held_out} <= shop.held_out_users(DOMAIN.database, SHOP)
    assert {t.split for t in train} == {"train"} and {t.split for t in held_out} == {"held_out"}


def test_tasks_are_as_many_as_asked_for_and_distinct():
    for split, tasks in TASKS.items():
        assert len(tasks) == 600
        assert len({json.dumps(t.script) for t in tasks}) == 600, split
    assert len({t.task_id for t in BOTH}) == 1200


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_few_tasks_are_passed_by_doing_nothing(split):
    idle = [verify(DOMAIN, DOMAIN.new_state(), gold(t)).success for t in TASKS[split]]
    assert 0 < sum(idle) / len(idle) < 0.05


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_task_is_solved_by_the_faultless_clerk_whatever_the_users_words(split):
    for task in TASKS[split]:
        dialogue = Dialogue(task, DOMAIN, ScriptedUser(task, seed=12345), brief_writes=True)
        history = play(dialogue, FAULTLESS, seed=54321)
        assert history[-1][1].stop_reason == "user_stop", task.task_id
        assert verify(DOMAIN, dialogue.state, gold(task)).success, task.task_id
        # A constant of the task, on which the reward may rest.
        assert len(history) == task.expert_turns, task.task_id


@pytest.mark.parametrize("seed", range(4))
def test_no_right_call_is_ever_refused(seed):
    # Refused both in the episode and in the verifier's replay, it would pass by doing nothing, and
    # the clerk would have to deny what the policy allows.
    domain = retail_domain(shop.make_shop(ShopConfig(seed=seed)))
    config = TaskConfig(seed=seed, num_train=800, requests=(0.0, 0.0, 0.4, 0.6))
    for task in make_tasks(domain, ShopConfig(seed=seed), config, "train"):
        state = domain.new_state()
        for name, kwargs in gold(task):
            answer = domain.call(state, name, kwargs)
            assert not answer.startswith("Error: "), (task.task_id, name, kwargs, answer)


def test_every_sort_of_request_occurs():
    for tasks in TASKS.values():
        requests = [r for t in tasks for r in t.script["requests"]]
        count = {key: Counter(r[key] for r in requests) for key in ("kind", "denial", "change")}
        assert set(count["kind"]) == {"cancel", "return", "exchange", "modify", "payment"}
        assert set(count["denial"]) == {"", "status", "reason", "unavailable", "balance"}
        assert set(count["change"]) == {"", "drop", "option", "item"}
        assert min(count["kind"].values()) > 0.03 * len(requests)
        changed = len(requests) - count["change"][""]
        assert 0.08 < changed / len(requests) < 0.3
        assert {len(t.script["requests"]) for t in tasks} == {1, 2, 3, 4}
        assert {t.script["identify"] for t in tasks} == {"email", "name"}
        assert {t.script["eager"] for t in tasks} == {True, False}
        assert 0.08 < 1 - count["denial"][""] / len(requests) < 0.25


@pytest.mark.parametrize("forbidden", [0.0, 0.5, 1.0])
def test_as_many_requests_are_forbidden_as_asked_for(forbidden):
    # An order that admits no such denial gives another one, and not an allowed request instead.
    config = TaskConfig(num_train=300, forbidden=forbidden, max_idle=1.0)
    tasks = make_tasks(DOMAIN, SHOP, config, "train")
    denied = [bool(r["denial"]) for t in tasks for r in t.script["requests"]]
    assert sum(denied) / len(denied) == pytest.approx(forbidden, abs=0.1 * (0 < forbidden < 1))


def test_gold_calls_are_those_of_the_wishes_that_stand():
    for task in BOTH:
        standing = [r for r in task.script["requests"]
                    if not r["denial"] and r["change"] != "drop"]
        assert len(task.gold_calls) == len(standing)
        for request, call in zip(standing, task.gold_calls, strict=True):
            assert call.kwargs["order_id"] == request["order_id"]
            wish = request["then"] or request
            if request["kind"] in ("exchange", "modify"):
                assert call.kwargs["new_item_ids"] == [wish["new_item_id"]]
            if request["kind"] == "return":
                assert call.kwargs["item_ids"] == [wish["item_id"]]


def test_each_order_is_about_one_request():
    # Else a request could undo or block another.
    for task in BOTH:
        ids = [r["order_id"] for r in task.script["requests"]]
        assert len(set(ids)) == len(ids)
        assert all(o in DOMAIN.database["users"][task.user_id]["orders"] for o in ids)


def test_an_item_is_named_so_that_it_can_be_told_apart():
    for task in BOTH:
        for request in task.script["requests"]:
            for wish in filter(None, (request, request["then"])):
                if not wish["item_id"]:
                    continue
                items = DOMAIN.database["orders"][wish["order_id"]]["items"]
                fit = [i for i in items
                       if wish["item"] in f"{next(iter(i['options'].values()))} {i['name']}"]
                assert [i["item_id"] for i in fit] == [wish["item_id"]], (task.task_id, wish)


def test_forbidden_requests_are_really_forbidden():
    for task in BOTH:
        for request in task.script["requests"]:
            order = DOMAIN.database["orders"][request["order_id"]]
            needed = "delivered" if request["kind"] in ("return", "exchange") else "pending"
            assert (request["denial"] == "status") == (order["status"] != needed), task.task_id
            if request["new_item_id"] and request["denial"] != "status":
                variant = DOMAIN.database["products"][request["product_id"]]["variants"][
                    request["new_item_id"]]
                assert variant["available"] == (request["denial"] != "unavailable")
            if request["kind"] == "cancel" and request["denial"] != "status":
                known = request["reason"] in ("no longer needed", "ordered by mistake")
                assert known == (request["denial"] != "reason")
            if request["kind"] == "payment" and request["denial"] != "status":
                method = DOMAIN.database["users"][task.user_id]["payment_methods"][
                    request["payment_method_id"]]
                paid = order["payment_history"][0]["amount"]
                low = method["source"] == "gift_card" and method["balance"] < paid
                assert low == (request["denial"] == "balance")


@pytest.mark.parametrize("split", ["test", "held-out", ""])
def test_an_unknown_split_is_named(split):
    # It would otherwise be taken for the training split.
    with pytest.raises(ValueError, match=f"split '{split}': choose 'train' or 'held_out'"):
        make_tasks(DOMAIN, SHOP, CONFIG, split)


@pytest.mark.parametrize("shop_config, config, split, named", [
    # One user has one order, about which not so many different things can be said.
    (ShopConfig(num_users=2, orders_per_user=1), TaskConfig(num_train=500), "train",
     r"of 500 distinct tasks; lower tasks\.num_train, or raise shop\.num_users"),
    (ShopConfig(num_users=2, orders_per_user=1), TaskConfig(num_held_out=400), "held_out",
     r"of 400 distinct tasks; lower tasks\.num_held_out"),
    # All are forbidden, and none may be.
    (SHOP, TaskConfig(num_train=20, forbidden=1.0, max_idle=0.0), "train", "only 0 of 20"),
    # No user is left for this split.
    (ShopConfig(num_users=2, held_out_fraction=1.0), TaskConfig(num_train=5), "train", "0 train"),
])
def test_what_cannot_be_had_is_an_error_and_not_an_endless_search(
    shop_config, config, split, named
):
    domain = retail_domain(shop.make_shop(shop_config))
    with pytest.raises(ValueError, match=named):
        make_tasks(domain, shop_config, config, split)


def test_the_hidden_instruction_holds_the_whole_wish():
    for task in BOTH:
        for request in task.script["requests"]:
            assert request["order_id"] in task.instruction
            if request["then"]:
                wanted = request["then"]["option"] or request["then"]["item"]
                assert wanted in task.instruction
            assert ("drop it" in task.instruction) or request["change"] != "drop"


def test_other_seeds_make_other_tasks():
    few = TaskConfig(num_train=20)
    first = make_tasks(DOMAIN, SHOP, few, "train")
    assert first == make_tasks(DOMAIN, SHOP, few, "train")
    assert first != make_tasks(DOMAIN, SHOP, TaskConfig(num_train=20, seed=1), "train")


def test_shop_and_tasks_do_not_depend_on_the_process():
    # A set of strings iterates in another order in every process.
    code = (
        "import json\n"
        "from tarl_jax.config import ShopConfig, TaskConfig\n"
        "from tarl_jax.sandbox import shop\n"
        "from tarl_jax.sandbox.retail import retail_domain\n"
        "from tarl_jax.sandbox.tasks import make_tasks\n"
        "domain = retail_domain(shop.make_shop(ShopConfig()))\n"
        "tasks = make_tasks(domain, ShopConfig(), TaskConfig(num_held_out=50), 'held_out')\n"
        "print(json.dumps([domain.database, [t.to_json() for t in tasks]]))\n"
    )
    digests = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True,
                              env={**os.environ, "PYTHONHASHSEED": hash_seed})
        digests.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(digests) == 1


def test_the_training_tasks_and_what_is_said_about_them_stay_the_same():
    # Seen on commit 7e81b38, when no clerk tried again what a tool rejected. The tokenizer, and all
    # figures of before, rest on them.
    fields = ("task_id", "user_id", "instruction", "gold_calls", "outputs", "split", "source",
              "script", "expert_turns", "assertions")
    config = TaskConfig(num_train=400, num_held_out=100)
    made, said = hashlib.sha256(), hashlib.sha256()
    for split in ("train", "held_out"):
        for seed, task in enumerate(make_tasks(DOMAIN, SHOP, config, split)):
            record = task.to_json()
            made.update(json.dumps({name: record[name] for name in fields}).encode())
            dialogue = Dialogue(task, DOMAIN, ScriptedUser(task, seed))
            said.update(dialogue.opening.encode())
            for action, answer in play(dialogue, ClerkConfig(retry=0.0), seed):
                text = action if isinstance(action, str) else json.dumps(action.to_json())
                said.update(repr((text, answer.text)).encode())
    assert made.hexdigest()[:16] == "0d89c0ad264fad1a"
    assert said.hexdigest()[:16] == "a89f86efc9095329"


# --- task files -----------------------------------------------------------------------------------


def test_saved_tasks_come_back_as_they_were(tmp_path):
    path = tmp_path / "tasks.jsonl"
    save_tasks(path, BOTH)
    assert load_tasks(path) == BOTH


def test_saving_loaded_tasks_gives_the_same_file(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    save_tasks(one, BOTH[:50])
    save_tasks(two, load_tasks(one))
    assert one.read_bytes() == two.read_bytes()


def test_blank_lines_are_skipped(tmp_path):
    path = tmp_path / "tasks.jsonl"
    save_tasks(path, BOTH[:2])
    path.write_text("\n" + path.read_text().replace("\n", "\n  \n"))
    assert [t.task_id for t in load_tasks(path)] == [t.task_id for t in BOTH[:2]]


@pytest.mark.parametrize("line, cause", [
    ("{not json", "Expecting property name"),
    ("[]", ""),
    ("3", ""),
    ('{"task_id": "x"}', "missing fields"),
    ("null", ""),
])
def test_a_broken_line_is_named_with_file_and_number(tmp_path, line, cause):
    path = tmp_path / "tasks.jsonl"
    save_tasks(path, BOTH[:2])
    path.write_text(path.read_text() + "\n" + line + "\n")  # line 3 is blank
    with pytest.raises(ValueError) as caught:
        load_tasks(path)
    assert f"{path}:4: not a task" in str(caught.value)
    assert cause in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    path = tmp_path / "tasks.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="holds no task"):
        load_tasks(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        load_tasks(tmp_path / "nowhere.jsonl")


def test_tasks_may_take_more_turns_than_an_episode_has_by_default():
    shop_config = ShopConfig(num_users=60, orders_per_user=8)
    config = TaskConfig(num_train=300, requests=(0.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    domain = retail_domain(shop.make_shop(shop_config))
    tasks = make_tasks(domain, shop_config, config, "train")
    assert len(tasks) == 300 and max(task.expert_turns for task in tasks) > 30


def test_an_id_that_comes_twice_is_refused_with_both_lines(tmp_path):
    path = tmp_path / "tasks.jsonl"
    save_tasks(path, [*TASKS["train"][:3], TASKS["train"][1]])
    with pytest.raises(InputError, match=rf"tasks\.jsonl:4: .*{BOTH[1].task_id!r}.*tasks\.jsonl:2"):
        load_tasks(path)


def test_what_editors_leave_in_a_file_does_not_matter(tmp_path):
    path = tmp_path / "tasks.jsonl"
    task = dataclasses.replace(BOTH[0], instruction="a\u2028b\x85c\x0bd")
    lines = [json.dumps(t.to_json(), ensure_ascii=False) for t in (task, BOTH[1])]
    path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert load_tasks(path) == [task, BOTH[1]]


@pytest.mark.parametrize("line", ["[" * 9999, "[]", "1", '{"gold_calls": NaN}', "\ud83d"])
def test_a_line_that_is_no_task_is_named(tmp_path, line):
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(line.encode("utf-8", "replace"))
    with pytest.raises(InputError, match=r"tasks\.jsonl:1: not a task"):
        load_tasks(path)


@pytest.mark.parametrize("call, told", [
    (Call("cancel_it", {}), "has no tool 'cancel_it'"),
    (Call("cancel_pending_order", {"order_id": "#W1"}), "missing argument 'reason'"),
    (Call("cancel_pending_order", {"order_id": 1, "reason": "no longer needed"}), "of type string"),
    (Call("cancel_pending_order", {"order_id": "#W0", "reason": "no longer needed"}), "not found"),
])
def test_gold_calls_of_a_file_fit_the_domain(tmp_path, call, told):
    path = tmp_path / "tasks.jsonl"
    save_tasks(path, [dataclasses.replace(BOTH[0], gold_calls=(call,)), *BOTH[1:]])
    config = RunConfig(shop=SHOP, tasks=TaskConfig(file=str(path)))
    with pytest.raises(InputError, match=told) as caught:
        Environment.from_config(config)
    assert BOTH[0].task_id in str(caught.value) and str(path) in str(caught.value)
