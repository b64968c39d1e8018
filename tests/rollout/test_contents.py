"""What a run is held to beyond its config: hashes of contents, and of nothing else."""

import dataclasses
import json

import pytest

from tarl_jax.models.tensor_files import fingerprint
from tarl_jax.rollout.environment import Environment


def test_hashes_are_of_what_the_files_hold(tiny_env, tiny_config):
    before = tiny_env.contents()
    assert before == Environment.from_config(tiny_config).contents()
    assert set(before) == {
        "training tasks", "held-out tasks", "database and policy", "tokenizer"
    }
    task, *others = tiny_env.train_tasks
    other = dataclasses.replace(task, instruction=task.instruction + " Please.")
    after = dataclasses.replace(tiny_env, train_tasks=[other, *others]).contents()
    assert {name for name in before if before[name] != after[name]} == {"training tasks"}
    held_out = dataclasses.replace(tiny_env, held_out_tasks=tiny_env.held_out_tasks[1:]).contents()
    assert {name for name in before if before[name] != held_out[name]} == {"held-out tasks"}


def test_a_checkpoint_is_told_from_one_of_the_same_shapes(tmp_path):
    np = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy", reason="comes with transformers")
    weights = np.arange(2_000_000, dtype=np.float32)  # 8 MB: not all of it is read
    for name, change in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
        safetensors.save_file({"w": weights + change}, tmp_path / name / "model.safetensors")
    a, b, c = (fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c
    (tmp_path / "b" / "config.json").write_text("{}")
    assert fingerprint(tmp_path / "b") != a
