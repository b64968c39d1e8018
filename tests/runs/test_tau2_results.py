"""τ²-bench's results.json: what is written, and what is read of files of others.

That the benchmark's own models take such a file, and that it grades the episodes the same, was
tried with a checkout of it (docs/sandbox.md); here its recorded rules stand in for it.
"""

import itertools
import json
from pathlib import Path

import pytest

from tarl_jax.config import InputError, RunConfig
from tarl_jax.runs.tau2_results import read_results, write_results
from tarl_jax.sandbox import load_benchmark_tasks, load_domain, score
from tarl_jax.sandbox.published import task_records
from tarl_jax.types import Call, Segment, Trajectory

DATA = Path(__file__).parents[2] / "../shared/tau2/retail"
here = pytest.mark.skipif(not DATA.is_dir(), reason="τ²-bench's data are not here")


def played(domain, task, calls, said="Done.", stop="user_stop", seed=7):
    """An episode of these calls: greeting, a wish, the calls, a message, goodbye."""
    state, segments = domain.new_state(), [
        Segment.forced("system", [1], -1, domain.policy),
        Segment.forced("greeting", [2], -1, "Hi!"),
        Segment.forced("user", [3], -1, "I have a wish."),
    ]
    for turn, call in enumerate([*calls, said]):
        text = "" if isinstance(call, Call) else call
        agent = Segment("agent", [4], [True], [-0.5], turn, text, text)
        segments.append(agent)
        if isinstance(call, Call):
            agent.calls = [call]
            answer = domain.call(state, call.name, call.kwargs)
            segments.append(Segment.forced("tool", [5], turn, answer,
                                           error=answer.startswith("Error")))
    by_user = [{"name": "look", "kwargs": {"a": 1}, "output": "5G", "error": False}]
    segments.append(Segment.forced("user", [6], turn, "Bye. ###STOP###", user_calls=by_user))
    gold = [{"name": c.name, "kwargs": c.kwargs} for c in calls]
    right = score(domain, task, gold, [said])
    return Trajectory(task, seed, segments, stop, bool(right.database), bool(right.communicate),
                      seconds={"episode": 2.0})


@pytest.fixture(scope="module")
def episodes():
    domain = load_domain("retail", DATA)
    tasks = load_benchmark_tasks("retail", DATA, domain)[:3]
    found = []
    for task in tasks:
        gold = [Call(a.name, a.kwargs) for a in task.actions]
        found += [
            played(domain, task, gold), played(domain, task, gold[:1], seed=8),
            played(domain, task, [Call("no_such_tool", {})], "No.", "max_errors", seed=9),
        ]
    return domain, found


@pytest.fixture(scope="module")
def written(episodes, tmp_path_factory):
    domain, found = episodes
    path = tmp_path_factory.mktemp("run") / "tau2/results.json"
    rewards = [1.0 if t.success and t.stop_reason == "user_stop" else 0.0 for t in found]
    write_results(path, found, task_records("retail", DATA), rewards, domain, RunConfig())
    return path


@here
def test_messages_are_in_the_order_that_its_replay_asks_for(written):
    data = json.loads(written.read_text())
    assert data["info"]["num_trials"] == 3 and data["info"]["max_steps"] == 200
    assert data["info"]["environment_info"]["domain_name"] == "retail"
    assert len(data["tasks"]) == 3 and len(data["simulations"]) == 9
    assert [s["trial"] for s in data["simulations"]] == [0, 1, 2] * 3
    assert len({s["id"] for s in data["simulations"]}) == 9
    for simulation in data["simulations"]:
        messages = simulation["messages"]
        assert [m["role"] for m in messages[:2]] == ["assistant", "user"]
        # Each call is followed by its answer, and no answer stands without one.
        for before, after in itertools.pairwise(messages):
            assert bool(before.get("tool_calls")) == (after["role"] == "tool")
            if after["role"] == "tool":
                assert after["id"] == before["tool_calls"][0]["id"]
        assert all(m.get("tool_calls") or m["content"] for m in messages)
    ends = [s["termination_reason"] for s in data["simulations"]]
    assert ends == ["user_stop", "user_stop", "too_many_errors"] * 3


@here
def test_what_was_written_reads_back(written, episodes):
    read = read_results(written.parent)
    for mine, theirs in zip(episodes[1], read, strict=True):
        assert theirs.stop_reason == mine.stop_reason and theirs.seed == mine.seed
        assert theirs.success == (mine.success and mine.stop_reason == "user_stop")
        assert theirs.task.task_id == mine.task.task_id
        assert theirs.task.instruction == mine.task.instruction
        assert theirs.task.gold_calls == mine.task.gold_calls
        assert theirs.task.actions == mine.task.actions
        for a, b in zip(mine.segments, theirs.segments, strict=True):
            assert (a.role, a.turn, a.calls, a.text) == (b.role, b.turn, b.calls, b.text)
            for fact in ("error", "user_calls"):
                assert a.info.get(fact, False) == b.info.get(fact, False)
        assert not theirs.num_tokens


def results(**changes):
    task = {
        "id": "7", "user_scenario": {"persona": None, "instructions": "You want a refund."},
        "evaluation_criteria": {"actions": [
            {"action_id": "0", "name": "refund", "arguments": {"user_id": "u1"}}
        ]},
    }
    simulation = {
        "id": "x", "task_id": "7", "termination_reason": "user_stop", "seed": 3, "duration": 1.5,
        "reward_info": {"reward": 1.0, "communicate_checks": [{"info": "5", "met": False}]},
        "messages": [
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": "A refund."},
            {"role": "assistant", "content": "One moment.", "tool_calls": [
                {"id": "", "name": "look", "arguments": {"a": 1}, "requestor": "assistant"},
                {"id": "", "name": "refund", "arguments": {}, "requestor": "assistant"},
            ]},
            {"role": "tool", "tool_messages": [
                {"role": "tool", "id": "", "content": "{}", "requestor": "assistant"},
                {"role": "tool", "id": "", "content": "Error: no", "error": True},
            ]},
            {"role": "user", "tool_calls": [
                {"id": "c", "name": "check_phone", "arguments": {}, "requestor": "user"}]},
            {"role": "tool", "id": "c", "content": "5G", "requestor": "user"},
            {"role": "user", "content": "Thanks ###STOP###"},
        ],
    }
    return {
        "info": {"environment_info": {"domain_name": "bank", "policy": "Be kind."}},
        "tasks": [task], "simulations": [simulation | changes],
    }


def save(path, data):
    path.write_text(json.dumps(data))
    return path


def test_files_of_others_are_read(tmp_path):
    [found] = read_results(save(tmp_path / "results.json", results()))
    assert [(s.role, s.turn, s.text) for s in found.segments] == [
        ("system", -1, "Be kind."), ("greeting", -1, "Hi!"), ("user", -1, "A refund."),
        ("agent", 0, "One moment."), ("tool", 0, "{}"),
        ("agent", 1, "One moment."), ("tool", 1, "Error: no"),
        ("user", 1, "Thanks ###STOP###"),
    ]
    assert found.segments[-1].info == {"user_calls": [
        {"name": "check_phone", "kwargs": {}, "output": "5G", "error": False}
    ]}
    assert found.segments[3].calls == [Call("look", {"a": 1})]
    assert [s.info.get("error") for s in found.segments if s.role == "tool"] == [False, True]
    assert found.success is True and found.outputs_found is False and found.seed == 3
    assert found.task.gold_calls == (Call("refund", {"user_id": "u1"}),)
    assert found.task.user_id == "u1" and found.task.instruction == "You want a refund."


def test_simulations_may_lie_in_a_folder_beside(tmp_path):
    data = results()
    (tmp_path / "simulations").mkdir()
    save(tmp_path / "simulations/x.json", data.pop("simulations")[0])
    save(tmp_path / "results.json", data)
    assert len(read_results(tmp_path)) == 1


@pytest.mark.parametrize(("reason", "ended", "success"), [
    ("max_steps", "max_messages", False), ("infrastructure_error", "infrastructure_error", None),
    ("user_error", "infrastructure_error", None), ("agent_error", "malformed", False),
])
def test_how_simulations_of_others_ended(tmp_path, reason, ended, success):
    data = results(termination_reason=reason, reward_info={"reward": 0.0})
    [found] = read_results(save(tmp_path / "r.json", data))
    assert (found.stop_reason, found.success) == (ended, success)


@pytest.mark.parametrize(("data", "told"), [
    ([], "is no results.json"), ({"info": {}}, "is no results.json"),
    (results(task_id="8"), "simulation 0"), (results(messages=None, ticks=[]), "is spoken"),
    (results(termination_reason=None, messages=[{}]), "simulation 0"),
])
def test_what_is_no_such_file_is_refused(tmp_path, data, told):
    with pytest.raises(InputError, match=told):
        read_results(save(tmp_path / "results.json", data))
