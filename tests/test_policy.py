"""From a pretrained folder through training to an exported folder, by the commands."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from pretrained import write_checkpoint

from tarl_jax.models import decoder
from tarl_jax.policy import make_updater, starting_policy
from tarl_jax.rollout.world import World

ROOT = Path(__file__).parents[1]
SHAPE = dict(
    vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    rope_theta=1e6, rms_norm_eps=1e-6, max_position_embeddings=4096,
)
OVERRIDES = {
    "model.d_model": 32, "model.d_ff": 48, "model.num_layers": 2, "model.num_heads": 4,
    "model.num_kv_heads": 2, "model.head_dim": 8, "model.rope_theta": 1e6,
    "model.vocab_size": 512, "model.scan_layers": True, "model.remat": "full",
    "warm_start.steps": 0, "rl.steps": 1, "rl.pack": True, "rl.learning_rate": 1e-3,
    "reward.max_majors": 8, "rollout.max_episode_tokens": 384, "rollout.max_turns": 2,
    "rollout.slots": 2, "rollout.tasks_per_step": 2, "rollout.group_size": 2,
    "rollout.max_turn_tokens": 8, "eval.final_tasks": 1, "eval.trials": 2, "eval.every": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return folder, write_checkpoint(folder, **SHAPE)


def command(module, run, cache, *more, **changes):
    values = {**OVERRIDES, "warm_start.cache_dir": cache, **changes}
    return subprocess.run(
        [
            sys.executable, "-m", module, f"--config={ROOT}/configs/grpo_tarl.py:tiny",
            f"--workdir={run}", *more, *(f"--config.{k}={v}" for k, v in values.items()),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
    )


@pytest.mark.parametrize("rank", [0, 2])
def test_train_a_pretrained_policy_and_export_it(checkpoint, tmp_path, cache_dir, rank):
    import torch
    import transformers

    folder, model = checkpoint
    run, out = tmp_path / "run", tmp_path / "out"
    changes = {"model.pretrained": folder, "model.lora.rank": rank}
    done = command("tarl_jax.main", run, cache_dir, **changes)
    assert done.returncode == 0, done.stderr[-3000:]
    done = command("tarl_jax.export", run, cache_dir, f"--out={out}", "--step=0", **changes)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out).float()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    assert transformers.AutoTokenizer.from_pretrained(out).decode([1]) != ""

    again = command("tarl_jax.export", run, cache_dir, f"--out={out}", **changes)
    assert again.returncode == 2 and str(out) in again.stderr  # never written over


def test_a_tokenizer_larger_than_the_embedding_is_an_error(checkpoint, tmp_path, cache_dir):
    done = command(
        "tarl_jax.main", tmp_path / "run", cache_dir,
        **{"model.pretrained": checkpoint[0], "model.vocab_size": 100},
    )
    assert done.returncode == 2
    assert "config.model.vocab_size = 100: the tokenizer has" in done.stderr


def test_another_shape_than_the_checkpoints_is_an_error(checkpoint, tmp_path, cache_dir):
    done = command(
        "tarl_jax.main", tmp_path / "run", cache_dir,
        **{"model.pretrained": checkpoint[0], "model.d_ff": 64},
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "64" in done.stderr and "48" in done.stderr


def test_no_warm_start_means_random_parameters(tiny_config, tiny_world: World):
    config = dataclasses.replace(
        tiny_config, warm_start=dataclasses.replace(tiny_config.warm_start, steps=0)
    )
    updater = make_updater(config, tiny_world)
    params = starting_policy(config, tiny_world, updater)
    expected = jax.eval_shape(
        lambda: decoder.init_params(config.model, tiny_world.vocab_size, jax.random.key(0))
    )
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, expected)
    assert 0.01 < float(np.std(params["embed"])) < 0.03


def test_the_full_prompt_holds_the_rules_and_every_tool(tiny_config):
    config = dataclasses.replace(
        tiny_config, rollout=dataclasses.replace(tiny_config.rollout, system_prompt="full")
    )
    world = World.from_config(config)
    text = world.tokenizer.decode(world.system[1])
    assert "# Rules for the clerk" in text and world.domain.policy in text
    for name, tool in world.domain.tools.items():
        assert f'"name": "{name}"' in text and tool.schema["function"]["description"] in text
    assert len(world.domain.tools) == 16
