"""Benchmark data from folders of every layout; the real one where it lies beside the checkout."""

import json
from pathlib import Path

import pytest

from tarl_jax.config import InputError, ShopConfig
from tarl_jax.sandbox import load_benchmark_tasks, load_domain
from tarl_jax.sandbox.shop import make_shop
from tarl_jax.sandbox.verifier import verify
from tarl_jax.types import Call, GoldAction, Task

SHARED = Path(__file__).parents[3] / "shared"
SHOP = make_shop(ShopConfig(num_users=20))
ORDER = next(o for o in SHOP["orders"].values() if o["status"] == "pending")
CANCEL = Call("cancel_pending_order",
              {"order_id": ORDER["order_id"], "reason": "no longer needed"})
TASKS_PY = f'''
from nowhere import Action, Task
open("never", "w").write("parsed, not run")
TASKS_TRAIN = [
    Task(
        annotator="0",
        user_id={ORDER["user_id"]!r},
        instruction="You want to cancel "
                    "your order.",
        actions=[
            Action(name="get_order_details", kwargs={{"order_id": {ORDER["order_id"]!r}}}),
            Action(name="cancel_pending_order", kwargs={dict(CANCEL.kwargs)!r}),
        ],
        outputs=["10", "-3"],
    ),
    Task(annotator="1", user_id="u", instruction="Nothing.", actions=[], outputs=[]),
]
'''
TAU2 = [{
    "id": "7",
    "user_scenario": {"persona": "Terse.", "instructions": {
        "reason_for_call": "Cancel it.", "known_info": "You are Ada.", "unknown_info": None,
        "task_instructions": "Stay calm.",
    }},
    "evaluation_criteria": {
        "actions": [{"name": CANCEL.name, "arguments": dict(CANCEL.kwargs)}],
        "communicate_info": ["42"], "nl_assertions": ["The agent stays polite."],
    },
}]


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture(params=["", "tau_bench/envs/retail/"])
def tau_bench(request, tmp_path):
    """A checkout of tau-bench, or the domain's folder in it."""
    tables = {f"{request.param}data/{name}.json": records for name, records in SHOP.items()}
    return write(tmp_path, {
        **tables, f"{request.param}wiki.md": "Be kind.", f"{request.param}tasks_train.py": TASKS_PY,
        f"{request.param}tasks_test.py": "from x import Task\nTASKS_TEST = []\n",
    })


@pytest.fixture(params=["", "data/tau2/domains/retail/"])
def tau2(request, tmp_path):
    files = {"db.json": SHOP, "policy.md": "Be kind.", "tasks.json": TAU2,
             "split_tasks.json": {"train": ["7"]}}
    return write(tmp_path, {request.param + name: content for name, content in files.items()})


def test_tau_bench_is_read_and_its_python_is_not_run(tau_bench, monkeypatch):
    monkeypatch.chdir(tau_bench)
    domain = load_domain("retail", tau_bench)
    assert domain.policy == "Be kind." and domain.database == SHOP
    first, second = load_benchmark_tasks("retail", tau_bench)
    assert not (tau_bench / "never").exists()
    assert first == Task(
        "tau_bench/retail/train-0", ORDER["user_id"], "You want to cancel your order.", (CANCEL,),
        ("10", "-3"), "train", "tau_bench", None, 6,
    )
    assert (second.user_id, second.gold_calls, second.expert_turns) == ("u", (), 1)


def test_tau2_is_read_with_what_no_rule_can_judge(tau2):
    domain = load_domain("retail", tau2)
    (task,) = load_benchmark_tasks("retail", tau2, domain)
    assert task == Task(
        "tau2/retail/7", ORDER["user_id"], "Terse.\n\nCancel it.\n\nYou are Ada.\n\nStay calm.",
        (CANCEL,), ("42",), "train", "tau2", None, 6, ("The agent stays polite.",),
        actions=(GoldAction(CANCEL.name, CANCEL.kwargs),), reward_basis=("DB", "COMMUNICATE"),
    )
    assert domain.rules == "tau2" and load_domain("retail", tau2, "tau").rules == "tau"
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.parametrize(("field", "value", "named"), [
    ("initial_state", {"initialization_actions": [{"func_name": "f"}]}, "initial_state"),
    ("env_assertions", [{"func_name": "f"}], "env_assertions"),
    ("reward_basis", ["DB", "LUCK"], r'reward_basis \["LUCK"\]'),
    ("actions", [{"name": "get_user_details", "arguments": {}, "requestor": "user"}],
     "actions of the user"),
    ("luck", 1, r'evaluation_criteria \["luck"\]'),
])
def test_what_a_tau2_task_asks_in_vain_is_refused(field, value, named, tmp_path):
    record = json.loads(json.dumps(TAU2[0]))
    (record if field == "initial_state" else record["evaluation_criteria"])[field] = value
    folder = write(tmp_path, {"db.json": SHOP, "policy.md": "", "tasks.json": [record]})
    with pytest.raises(ValueError, match=f"tau2/retail/7: {named}"):
        load_benchmark_tasks("retail", folder)


@pytest.mark.parametrize(("name", "tools", "table"), [
    ("retail", 16, "orders"), ("airline", 14, "reservations"),
])
def test_the_embedded_data_needs_no_folder(name, tools, table):
    domain = load_domain(name)
    assert domain.name == name and len(domain.tools) == tools
    assert domain.policy and domain.database[table]


@pytest.mark.parametrize(("files", "named"), [
    ({}, "holds no data of the domain 'retail'"),
    ({"db.json": SHOP}, "neither policy.md nor wiki.md"),
    ({"db.json": "{\n\n oops", "policy.md": ""}, r"db\.json:3: "),
    ({"db.json": {"users": {}}, "policy.md": ""}, "lacks the tables orders, products"),
    ({"db.json": SHOP, "policy.md": ""}, "has no tasks"),
    ({"db.json": SHOP, "policy.md": "", "tasks_dev.py": "T = [\n  Task(a=1"},
     r"tasks_dev\.py:2: "),
    ({"db.json": SHOP, "policy.md": "", "tasks_dev.py": "T = [\n  Task(user_id=f())]"},
     r"tasks_dev\.py:2: is no literal: f\(\)"),
    ({"db.json": SHOP, "policy.md": "", "tasks_dev.json": [{"actions": []}]},
     "task tau_bench/retail/dev-0 is broken: KeyError\\('user_scenario'\\)"),
    ({"db.json": SHOP, "policy.md": "", "tasks_dev.json": [
        {"user_id": "u", "instruction": "i", "actions": [{"name": "explode", "kwargs": {}}]}]},
     "tau_bench/retail/dev-0: no tool is named 'explode'"),
    ({"db.json": SHOP, "policy.md": "", "tasks.json": [*TAU2, TAU2[0]]},
     "two tasks have the id '7'"),
    ({"db.json": SHOP, "policy.md": "", "tasks.json": "[" * 9_999}, r"tasks\.json: not valid JSON"),
    ({"db.json": SHOP, "policy.md": "", "tasks.json": "[NaN]"},
     r"tasks\.json: not valid JSON: NaN"),
])
def test_what_is_broken_is_named(files, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        load_benchmark_tasks("retail", write(tmp_path, files))


def test_an_unknown_domain_lists_the_known_ones():
    with pytest.raises(ValueError, match="domain 'bank': choose one of retail, airline"):
        load_domain("bank")


# ---- the published data ---------------------------------------------------------------------


def published(name, folder, source, count, split_sizes):
    if not SHARED.is_dir():
        pytest.skip(f"no benchmark data at {SHARED}")
    domain = load_domain(name, SHARED / folder)
    tasks = load_benchmark_tasks(name, SHARED / folder, domain)
    assert len(tasks) == len({t.task_id for t in tasks}) == count
    assert {t.source for t in tasks} == {source}
    splits = [sum(t.split == split for t in tasks) for split in ("train", "held_out")]
    assert splits == split_sizes
    for task in tasks:
        state = domain.new_state()
        outputs = [domain.call(state, c.name, c.kwargs) for c in task.gold_calls]
        gold = [(c.name, dict(c.kwargs)) for c in task.gold_calls]
        assert verify(domain, state, gold).success
        assert task.user_id in domain.database["users"] or not task.gold_calls
        assert task.instruction
        assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
        yield task, outputs


def test_tau_bench_retail():
    found = list(published("retail", "tau_bench/retail", "tau_bench", 520, [500, 20]))
    assert sum(len(task.gold_calls) for task, _ in found) > 768


def test_tau_bench_airline():
    found = list(published("airline", "tau_bench/airline", "tau_bench", 25, [0, 25]))
    assert sum(bool(task.gold_calls) for task, _ in found) > 15


def test_tau2_retail():
    found = list(published("retail", "tau2/retail", "tau2", 74, [74, 0]))
    assert sum(bool(task.assertions) for task, _ in found) == 29
    assert sum(bool(task.outputs) for task, _ in found) == 25


def test_one_split_can_be_held_out_alone(tmp_path):
    """τ-bench's splits are files; τ²'s may share tasks."""
    record = {"user_id": ORDER["user_id"], "instruction": "x", "outputs": [],
              "actions": [{"name": CANCEL.name, "kwargs": dict(CANCEL.kwargs)}]}
    tau = write(tmp_path / "tau", {
        "db.json": SHOP, "policy.md": "Be kind.", "tasks_train.json": [record],
        "tasks_dev.json": [record], "tasks_test.json": [record, record],
    })
    tau2 = write(tmp_path / "tau2", {
        "db.json": SHOP, "policy.md": "Be kind.", "tasks.json": [
            {**TAU2[0], "id": str(number)} for number in range(4)
        ],
        "split_tasks.json": {"train": ["0", "1"], "test": ["2"], "base": ["0", "2", "3"]},
    })

    def splits(folder, **more):
        tasks = load_benchmark_tasks("retail", folder, load_domain("retail", folder, "tau"), **more)
        return [(t.task_id.rpartition("/")[2], t.split) for t in tasks if t.split != "rest"]

    assert splits(tau) == [("dev-0", "held_out"), ("test-0", "held_out"), ("test-1", "held_out"),
                           ("train-0", "train")]
    assert splits(tau, held_out="test") == [
        ("test-0", "held_out"), ("test-1", "held_out"), ("train-0", "train"),
    ]
    assert splits(tau2) == splits(tau2, held_out="test") == [
        ("0", "train"), ("1", "train"), ("2", "held_out"),
    ]
    assert splits(tau2, held_out="base") == [
        ("0", "train"), ("0", "held_out"), ("1", "train"), ("2", "held_out"), ("3", "held_out"),
    ]
    with pytest.raises(InputError, match="no split 'tset'; choose one of dev, test, train"):
        splits(tau, held_out="tset")
    with pytest.raises(InputError, match="choose one of base, test, train"):
        splits(tau2, held_out="dev")
