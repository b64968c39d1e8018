"""Telecom against what τ²-bench's own tools answered: outputs, both databases, starts, checks."""

import gzip
import json
from pathlib import Path

import pytest

from tarl_jax.sandbox import load_benchmark_tasks, load_domain, score
from tarl_jax.sandbox.domain import Refusal
from tarl_jax.sandbox.starts import holds, perform, start_of

RECORDED = Path(__file__).parents[3] / "shared" / "tau2" / "telecom"
pytestmark = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="τ²-bench's recorded outputs are not beside this checkout"
)


def recorded(name):
    return json.loads(gzip.decompress((RECORDED / name).read_bytes()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The benchmark's folder as its users have it."""
    folder = tmp_path_factory.mktemp("tau2") / "telecom"
    folder.mkdir()
    for path in (RECORDED / "domain").iterdir():
        data = path.read_bytes()
        packed = path.suffix == ".gz"
        (folder / path.name.removesuffix(".gz")).write_bytes(
            gzip.decompress(data) if packed else data
        )
    return folder


@pytest.fixture
def domain(folder):
    return load_domain("telecom", folder)


@pytest.fixture(scope="module")
def tasks(folder):
    return {t.task_id.removeprefix("tau2/telecom/"): t for t in load_benchmark_tasks(
        "telecom", folder
    )}


def hashes(domain, state):
    return {"db_hash": domain.state_hash(state), "user_db_hash": domain.state_hash(state, "user")}


def play(domain, state, calls, where):
    for call in calls:
        got = domain.call(state, call["name"], call["kwargs"], call["requestor"])
        assert got == call["output"], (where, call)
        assert isinstance(got, Refusal) == call["error"], (where, call)


def test_database_and_policies_are_the_benchmarks(folder, domain):
    known = json.loads((RECORDED / "hashes.json").read_text())
    assert hashes(domain, domain.new_state()) == known
    for name, policy in (("telecom", "policy.md"), ("telecom-workflow", "policy_workflow.md")):
        loaded = load_domain(name, folder)
        assert loaded.name == name and loaded.rules == "tau2"
        assert loaded.policy == (RECORDED / policy).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="rules 'tau': the domain 'telecom' has those of tau2"):
        load_domain("telecom", folder, "tau")


def test_tools_are_those_of_both_sides(domain):
    types = json.loads((RECORDED / "tool_types.json").read_text())
    for side, kit in (("assistant", types["agent"]), ("user", types["user"])):
        tools = domain.tools_of(side)
        assert {n: t.write for n, t in tools.items()} == {
            n: t["mutates_state"] for n, t in kit.items()
        }
    for side, name in (("assistant", "agent_tools.json"), ("user", "user_tools.json")):
        for wire in json.loads((RECORDED / name).read_text()):
            tool = domain.tools_of(side)[wire["function"]["name"]]
            ours, theirs = (t["function"]["parameters"] for t in (tool.schema, wire))
            assert ours["properties"].keys() == theirs["properties"].keys()
            assert ours["required"] == theirs.get("required", [])


def test_calls_answer_as_recorded(domain):
    # In one domain, one after the other: a broken VPN is felt by all that come after.
    for number, episode in enumerate(recorded("random_calls.json.gz")):
        state = domain.new_state()
        for call in episode["init"]:
            perform(domain, state, call["func_name"], call["arguments"], call["env_type"], False)
        domain.user.sync(state)
        assert hashes(domain, state) == episode["start"], number
        play(domain, state, episode["calls"], number)
        assert hashes(domain, state) == {k: episode[k] for k in ("db_hash", "user_db_hash")}, number


@pytest.mark.parametrize("name", ["replay_train.json.gz", "replay_full.json.gz"])
def test_tasks_start_play_and_end_as_recorded(domain, tasks, name):
    for number, replay in enumerate(recorded(name)):
        task = tasks[replay["task"]]
        state = start_of(domain, task.initial_state)
        assert hashes(domain, state) == replay["start"], task.task_id
        assert [holds(domain, state, c) for c in task.checks] == replay["assertions_before"]
        play(domain, state, replay["calls"], task.task_id)
        assert [holds(domain, state, c) for c in task.checks] == replay["assertions_after"]
        end = {key: replay["end"][key] for key in ("db_hash", "user_db_hash")}
        assert hashes(domain, state) == end, task.task_id
        if number % 4:  # `score` plays all of it once more
            continue
        found = score(domain, task, replay["calls"])
        assert found.environment == all(replay["assertions_after"])
        assert found.actions is True and found.reward == float(found.environment)
        assert found.database == (end == replay["unsynced_end"]), task.task_id


def test_nothing_done_is_no_success(domain, tasks, folder):
    train = json.loads((folder / "split_tasks.json").read_text())["train"]
    found = {number: score(domain, tasks[number], []) for number in train}
    assert not any(one.reward for one in found.values())
    assert {tasks[number].split for number in train} == {"train"}
