"""Retail and airline against what τ²-bench's own tools answered: outputs, states, verdicts."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from tarl_jax.sandbox import load_benchmark_tasks, load_domain, score
from tarl_jax.sandbox.domain import Refusal

RECORDED = Path(__file__).parents[3] / "shared" / "tau2"
pytestmark = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="τ²-bench's recorded outputs are not beside this checkout"
)


def unpacked(name, folder):
    """The benchmark's folder of a domain as its users have it."""
    folder.mkdir()
    for path in (RECORDED / name).iterdir():
        if path.name == "airline_db.json.gz":
            (folder / "db.json").write_bytes(gzip.decompress(path.read_bytes()))
        else:
            shutil.copy(path, folder)
    return folder


def recorded(name, kind):
    packed = (RECORDED / "oracle" / f"{name}_{kind}.json.gz").read_bytes()
    return json.loads(gzip.decompress(packed))


@pytest.fixture(scope="module", params=["retail", "airline"])
def folder(request, tmp_path_factory):
    return unpacked(request.param, tmp_path_factory.mktemp("tau2") / request.param)


@pytest.fixture(scope="module")
def domain(folder):
    return load_domain(folder.name, folder)


@pytest.mark.parametrize("kind", ["random_calls", "replay"])
def test_calls_answer_as_recorded(domain, kind):
    answers = recorded(domain.name, kind)
    assert domain.state_hash(domain.new_state()) == answers["start_hash"]
    for number, episode in enumerate(answers["sequences"]):
        state = domain.new_state()
        for call in episode["calls"]:
            got = domain.call(state, call["name"], call["kwargs"])
            assert got == call["output"], (number, call)
            assert isinstance(got, Refusal) == call["error"], (number, call)
        changes = {}
        for (table, key), record in state.changes().items():
            changes.setdefault(table, {})[key] = record
        assert in_order(changes) == in_order(episode["changes"]), number
        assert episode["db_hash"] in (None, domain.state_hash(state)), number


def in_order(value):
    return json.dumps(value, sort_keys=True)  # so that 2 and 2.0 differ


def test_verdicts_are_as_recorded(domain, folder):
    replays = recorded(domain.name, "replay")["sequences"]
    gold = {replay["task"].rsplit("/", 1)[1]: replay["calls"] for replay in replays}
    tasks = load_benchmark_tasks(domain.name, folder, domain)
    by_id = {task.task_id.rsplit("/", 1)[1]: task for task in tasks}
    for row in recorded(domain.name, "verdicts"):
        if task := by_id.get(row["task"]):  # the tasks of some rows are not in the folder
            found = score(domain, task, row["calls"], task.outputs)
            assert found.database == row["db_match"], (row["task"], row["kind"])
            assert found.actions in (True, None) or row["kind"] != "gold", row["task"]
        states = [domain.new_state(), domain.new_state()]
        for state, calls in zip(states, (gold[row["task"]], row["calls"]), strict=True):
            for call in calls:
                domain.call(state, call["name"], call["kwargs"])
        assert domain.same(*states) == row["db_match"], (row["task"], row["kind"])
