"""The notebook runs from top to bottom, and shows what it promises."""

import os
import re
from pathlib import Path

import pytest

from tarl_jax.runs.metrics import read_trajectories

COLABS = Path(__file__).parents[1] / "colabs"
# Small, and in the shapes that test_train.py has compiled and warm-started already.
CHANGES = {
    "model.num_layers": 1,
    "warm_start.steps": 200,
    "warm_start.episodes": 200,
    "rollout.slots": 4,
    "rollout.max_episode_tokens": 256,
    "rl.steps": 1,
    "eval.tasks": 2,
    "eval.final_tasks": 2,
    "eval.trials": 2,
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory, cache_dir):
    """The notebook with its outputs, run on `tiny` in a fresh folder."""
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat (the test extra)")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient (the test extra)")
    pytest.importorskip("ipykernel", reason="needs ipykernel (the test extra)")
    notebook = nbformat.read(COLABS / "quickstart.ipynb", as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells)
                 if "parameters" in cell.metadata.get("tags", ()))
    changes = {**CHANGES, "warm_start.cache_dir": str(cache_dir)}
    run_dir = tmp_path_factory.mktemp("notebook") / "run"
    injected = f"CHANGES = {changes!r}\nRUN_DIR = {str(run_dir)!r}"
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(injected))
    client = nbclient.NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(COLABS)}}
    )
    # The kernel starts in colabs/: it must find this checkout, whatever is installed.
    env = {**os.environ, "PYTHONPATH": str(COLABS.parent)}
    return client.execute(env=env), run_dir


def outputs(notebook, source: str) -> tuple[str, set[str]]:
    """(text, mime types) that the cell with `source` printed and displayed."""
    (cell,) = [c for c in notebook.cells if c.cell_type == "code" and source in c.source]
    shown = [o.get("data", {}) for o in cell.outputs]
    printed = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]
    text = "".join(printed + [data.get("text/plain", "") for data in shown])
    return re.sub(r"\x1b\[[\d;]*m", "", text), {kind for data in shown for kind in data}


def test_the_notebook_is_committed_without_outputs_and_tiny_by_default():
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat (the test extra)")
    notebook = nbformat.read(COLABS / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
    (parameters,) = [c for c in code if "parameters" in c.metadata.get("tags", ())]
    assert 'SIZE = "tiny"' in parameters.source


def test_the_notebook_trains_and_shows_the_curves(executed):
    notebook, run_dir = executed
    assert "step 1/1" in outputs(notebook, "summary = train(")[0]
    assert "pass^1" in outputs(notebook, "print_summary(")[0]
    assert "image/png" in outputs(notebook, "curves.png")[1]
    assert (run_dir / "summary.json").is_file()


def test_the_notebook_prints_a_dialogue(executed):
    notebook, run_dir = executed
    text, _ = outputs(notebook, "terminal.show(")
    first = read_trajectories(run_dir / "trajectories" / "step_000001.jsonl")[0]
    assert first.task.task_id in text
    assert first.segments[1].text[:30] in text
