"""Both domains against what τ-bench's own tools answered: every output, every state hash."""

import json
from pathlib import Path

import pytest

from tarl_jax.sandbox import load_domain
from tarl_jax.sandbox.domain import Refusal

RECORDED = Path(__file__).parents[3] / "shared" / "tau_bench"
pytestmark = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="τ-bench's recorded outputs are not beside this checkout"
)


def recorded(domain, name):
    return json.loads((RECORDED / domain.name / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module", params=["retail", "airline"])
def domain(request):
    return load_domain(request.param, RECORDED / request.param)


def test_gold_calls_answer_as_recorded(domain):
    splits = {"retail": ("train", "dev"), "airline": ("dev",)}[domain.name]
    for split in splits:
        tasks = recorded(domain, f"tasks_{split}")
        for episode in recorded(domain, f"replay_{split}"):
            state = domain.new_state()
            actions = tasks[episode["task"]]["actions"]
            for action, output in zip(actions, episode["outputs"], strict=True):
                got = domain.call(state, action["name"], action["kwargs"])
                assert output in (None, got), (split, episode["task"], action)
            assert domain.state_hash(state) == episode["db_hash"], (split, episode["task"])


def test_random_calls_answer_as_recorded(domain):
    counts = {"equal": 0, "missing": 0, "unknown": 0}
    for number, episode in enumerate(recorded(domain, "random_calls")):
        state = domain.new_state()
        for call in episode["calls"]:
            got = domain.call(state, call["name"], call["kwargs"])
            refused = call["output"].startswith(("Error: ", "Unknown action "))
            assert isinstance(got, Refusal) == refused, (number, call)
            if "missing 1 required positional argument" in call["output"]:
                # Python's own words, with the name of the benchmark's class.
                name = call["output"].rsplit(" ", 1)[1]
                assert got == f"Error: missing argument {name}", (number, call)
                counts["missing"] += 1
            else:
                assert got == call["output"], (number, call)
                counts["unknown" if got.startswith("Unknown") else "equal"] += 1
        assert domain.state_hash(state) == episode["db_hash"], number
    expected = {
        "retail": {"equal": 1447, "missing": 37, "unknown": 16},
        "airline": {"equal": 1442, "missing": 44, "unknown": 14},
    }
    assert counts == expected[domain.name]


def test_schemas_ask_for_the_recorded_arguments(domain):
    def shape(value):
        """Without the descriptions, at any depth; an argument may be called so."""
        if isinstance(value, dict):
            return {k: shape(v) for k, v in value.items()
                    if k != "description" or isinstance(v, dict)}
        return value

    ours = [shape(tool.schema) for tool in domain.tools.values()]
    assert ours == [shape(schema) for schema in recorded(domain, "tools")]
