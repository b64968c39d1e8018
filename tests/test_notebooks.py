"""The notebooks run from top to bottom from nothing, and show what they promise.

Each is executed in a folder without a checkout: its install cell clones and installs what stands
here, into a folder that the kernel looks into first. All but the quickstart are slow.
"""

import ast
import base64
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pretrained import write_checkpoint

from tarl_jax.runs.metrics import append_trajectories, read_trajectories
from tarl_jax.speech.sound import Sound
from tarl_jax.types import Segment, Task, Trajectory

nbformat = pytest.importorskip("nbformat", reason="needs nbformat (the test extra)")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient (the test extra)")
pytest.importorskip("ipykernel", reason="needs ipykernel (the test extra)")

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "colabs").glob("*.ipynb"))
(REPOSITORY,) = re.findall(r'^REPOSITORY = "(.*)"', (ROOT / "setup.py").read_text("utf-8"), re.M)
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


def notebook(name):
    return nbformat.read(ROOT / "colabs" / f"{name}.ipynb", as_version=4)


def code(cells):
    return [c for c in cells if c.cell_type == "code"]


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A repository of what stands here, committed or not."""
    folder = tmp_path_factory.mktemp("origin")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "tarl_jax", folder / "tarl_jax",
                    ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def execute(origin, tmp_path_factory, cache_dir):
    """Runs a notebook with other parameters in a fresh folder: (notebook with outputs, folder)."""

    def go(name, **parameters):
        folder, site = (tmp_path_factory.mktemp(part) for part in ("empty", "site"))
        found = notebook(name)
        place = next(i for i, cell in enumerate(found.cells)
                     if "parameters" in cell.metadata.get("tags", ()))
        parameters["CHANGES"]["warm_start.cache_dir"] = str(cache_dir)
        text = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
        found.cells.insert(place + 1, nbformat.v4.new_code_cell(text))
        for cell in code(found.cells):
            cell.outputs = []
        env = {
            **os.environ, "TARL_JAX_REPOSITORY": origin.as_uri(), "PYTHONPATH": str(site),
            "PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "false",
            "PIP_NO_INDEX": "1",
        }
        client = nbclient.NotebookClient(found, timeout=900, kernel_name="python3",
                                         resources={"metadata": {"path": str(folder)}})
        done = client.execute(env=env)
        assert (site / "tarl_jax" / "main.py").is_file() and not (folder / "tarl_jax").exists()
        return done, folder

    return go


def outputs(notebook, source: str) -> tuple[str, set[str]]:
    """(text, mime types) that the cell with `source` printed and displayed."""
    (cell,) = [c for c in code(notebook.cells) if source in c.source]
    shown = [o.get("data", {}) for o in cell.outputs]
    printed = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]
    text = "".join(printed + [data.get("text/plain", "") for data in shown])
    return re.sub(r"\x1b\[[\d;]*m", "", text), {kind for data in shown for kind in data}


# ---- all of them, read ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_in_colab_and_installs_from_the_repository(name):
    found = notebook(name)
    nbformat.validate(found)
    place = REPOSITORY.replace("github.com", "colab.research.google.com/github")
    assert f"({place}/blob/main/colabs/{name}.ipynb)" in found.cells[0].source
    install, others = code(found.cells)[0].source, code(notebook("quickstart").cells)[0].source
    assert f'REPOSITORY = "{REPOSITORY}"' in install
    extra = re.compile(r'^EXTRA = ".*"$', re.M)
    assert extra.sub("", install) == extra.sub("", others)
    (parameters,) = [c for c in code(found.cells) if "parameters" in c.metadata.get("tags", ())]
    assert "RUN_DIR" in parameters.source and "CHANGES" in parameters.source
    assert f"colabs/{name}.ipynb" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_its_code_compiles_and_what_it_imports_is_there(name):
    for cell in code(notebook(name).cells):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("tarl_jax"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def test_two_are_committed_with_outputs_and_a_picture_in_them():
    for name in NAMES:
        shown = [o for c in code(notebook(name).cells) for o in c.outputs]
        assert bool(shown) == (name in ("quickstart", "speech"))
        if shown:
            assert "pass^1" in outputs(notebook(name), "print_summary(")[0]
            (picture,) = [o.data["image/png"] for o in shown if "image/png" in o.get("data", {})]
            assert base64.b64decode(picture).startswith(b"\x89PNG")
            assert not any(o.output_type == "error" for o in shown)


def test_speech_is_heard_and_what_an_encoder_gets_is_drawn(tmp_path, monkeypatch, capsys):
    """The cells of that notebook that train nothing."""
    pytest.importorskip("espeakng_loader", reason="needs the speech extra")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    for wanted in ("RUN_DIR", "display(Audio(", "panel.imshow("):
        cell = next(c for c in code(notebook("speech").cells) if wanted in c.source)
        exec(compile(cell.source, wanted, "exec"), names)
    said = capsys.readouterr().out
    assert "order hash W one two three, I ordered it by mistake" in said
    assert re.findall(r"^(\S+) [\d.]+ s$", said, re.M) == list(names["clips"])
    for panel, clip in zip(names["panels"], names["clips"].values(), strict=True):
        (image,) = panel.get_images()
        bins, frames = image.get_array().shape
        assert bins == 40 and abs(frames - len(clip) / 160) <= 2
    user = Segment.forced("user", [3, 3], -1, "Cancel it.")
    user.sound = Sound(0, 2, np.rint(clip * 2**15).astype(np.float32) / 2**15)
    task = Task("shop-7", "", "", (), (), "train", "shop", None, 3)
    append_trajectories(tmp_path, 1, [Trajectory(task, 0, [user], "user_stop", False)])
    (cell,) = [c for c in code(notebook("speech").cells) if "trajectory_files(" in c.source]
    exec(cell.source, {"RUN_DIR": tmp_path})
    assert capsys.readouterr().out == "1 spoken turns are kept\nshop-7 - Cancel it.\n"


def test_a_domain_takes_sixty_lines():
    (cell,) = [c for c in code(notebook("own_domain").cells) if "parts = Parts(" in c.source]
    assert len([line for line in cell.source.splitlines() if line.strip()]) <= 60


def test_a_fork_changes_one_constant(tmp_path):
    for part in ("scripts", "docs", "colabs"):
        shutil.copytree(ROOT / part, tmp_path / part,
                        ignore=shutil.ignore_patterns("images", "*.jsonl"))
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "docs" / "more.md").write_text(f"{REPOSITORY}_else and {REPOSITORY}/issues")

    def command(*arguments):
        return subprocess.run([sys.executable, tmp_path / "scripts" / "repository.py", *arguments],
                              capture_output=True, text=True)

    fork = "https://github.com/some-one/a.fork"
    assert REPOSITORY in command().stdout
    assert command("https://gitlab.com/x/y").returncode == 1
    done = command(f"{fork}.git")
    assert done.returncode == 0 and done.stdout.startswith(fork), done.stderr
    assert (tmp_path / "docs" / "more.md").read_text() == f"{REPOSITORY}_else and {fork}/issues"
    name = REPOSITORY.removeprefix("https://github.com/")
    left = [path for path in tmp_path.rglob("*") if path.suffix in (".md", ".ipynb", ".py")
            and path.name != "more.md" and name in path.read_text("utf-8")]
    assert not left
    for notebook_name in NAMES:
        nbformat.validate(nbformat.read(tmp_path / f"colabs/{notebook_name}.ipynb", as_version=4))
    command(REPOSITORY)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


# ---- each of them, run ---------------------------------------------------------------------------


def test_the_quickstart_trains_and_shows_curves_and_a_dialogue(execute):
    done, folder = execute("quickstart", SIZE="tiny", CHANGES={**CHANGES})
    run = folder / "runs" / "quickstart"
    assert "step 1/1" in outputs(done, "summary = train(")[0]
    assert "pass^1" in outputs(done, "print_summary(")[0]
    assert "image/png" in outputs(done, "curves.png")[1]
    assert (run / "summary.json").is_file()
    text, _ = outputs(done, "terminal.show(")
    first = read_trajectories(run / "trajectories" / "step_000001.jsonl")[0]
    assert first.task.task_id in text
    assert first.segments[1].text[:30] in text


@pytest.mark.slow
def test_tarl_against_the_verdict_shows_both_runs(execute):
    changes = {**CHANGES, "tasks.requests": (0.0, 0.0, 1.0), "rl.steps": 2}
    done, folder = execute("tarl_against_the_verdict", SIZE="tiny", CHANGES=changes)
    assert {path.name for path in (folder / "runs" / "against").iterdir()} == {"verdict", "TARL"}
    assert "pass^1" in outputs(done, "print_summary(")[0]
    assert "image/png" in outputs(done, "plt.subplots(")[1]


@pytest.mark.slow
def test_a_domain_of_ones_own_is_tried_and_trained_on(execute):
    done, folder = execute("own_domain", CHANGES={"rl.steps": 1})
    tried, _ = outputs(done, "verify(")
    assert re.findall(r"success (\w+)", tried) == ["True", "False", "False"]
    text, kinds = outputs(done, "curves.png")
    assert "image/png" in kinds and "lend me" in text
    assert (folder / "runs" / "own_domain" / "summary.json").is_file()


@pytest.mark.slow
def test_speech_is_trained_on_and_transcribed(execute):
    pytest.importorskip("espeakng_loader", reason="needs the speech extra")
    done, _ = execute("speech", CHANGES={
        "rl.steps": 1, "eval.tasks": 2, "eval.final_tasks": 2, "eval.trials": 2,
        "rollout.tasks_per_step": 2, "warm_start.steps": 20, "warm_start.episodes": 40})
    assert "text/html" in outputs(done, "display(Audio(")[1]
    assert "image/png" in outputs(done, "panel.imshow(")[1]
    heard = outputs(done, "transcribe(policy")[0]
    assert [line.split(":")[0] for line in heard.splitlines()] == ["clean", "telephone", "reverb"]
    assert "spoken turns are kept" in outputs(done, "trajectory_files(")[0]


@pytest.mark.slow
def test_qwen3_trains_from_a_folder_and_is_exported(execute, tmp_path):
    pytest.importorskip("torch", reason="needs torch")
    write_checkpoint(tmp_path, vocab_size=320, hidden_size=32, intermediate_size=48,
                     num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    done, folder = execute("qwen3", MODEL=str(tmp_path), CHANGES={
        "rl.steps": 1, "rollout.system_prompt": "brief", "rollout.max_episode_tokens": 1024,
        "rollout.max_turn_tokens": 24, "rollout.max_turns": 3, "rollout.max_too_long": 1.0,
        "rl.micro_batch_tokens": 2048, "rollout.tasks_per_step": 2, "rollout.group_size": 2,
        "rollout.slots": 4, "mesh.tensor": 1, "mesh.rollout_tensor": 1, "eval.every": 0,
        "tasks.num_train": 8, "tasks.num_held_out": 4, "eval.final_tasks": 2, "eval.trials": 2})
    assert "no accelerator was found" in outputs(done, "nvidia-smi")[0]
    assert "pass^1" in outputs(done, "print_summary(")[0]
    assert "Qwen3ForCausalLM" in outputs(done, "AutoConfig.from_pretrained")[0]
    assert list((folder / "qwen3-trained").glob("*.safetensors"))
