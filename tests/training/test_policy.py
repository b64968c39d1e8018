"""From a pretrained folder through training to an exported folder."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from pretrained import QWEN_TOKENS, write_checkpoint, write_tokenizer

from tarl_jax.config import from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.judge.rules import Judgement
from tarl_jax.models import decoder
from tarl_jax.models.hugging_face import save_params
from tarl_jax.models.omni_files import AudioIds
from tarl_jax.models.tensor_files import open_tensors
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs.metrics import read_metrics
from tarl_jax.training.parts import Parts
from tarl_jax.training.policy import export, make_updater, starting_policy
from tarl_jax.training.train import train

ROOT = Path(__file__).parents[2]
SHAPE = dict(
    vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    rope_theta=1e6, rms_norm_eps=1e-6, max_position_embeddings=4096,
)
OVERRIDES = {
    "model.d_model": 32, "model.d_ff": 48, "model.num_layers": 2, "model.num_heads": 4,
    "model.num_kv_heads": 2, "model.head_dim": 8, "model.rope_theta": 1e6,
    "model.vocab_size": 512, "model.scan_layers": True, "model.remat": "full",
    "warm_start.steps": 0, "rl.steps": 1, "rl.micro_batch_tokens": 384, "rl.learning_rate": 1e-3,
    "reward.max_majors": 8, "rollout.max_episode_tokens": 384, "rollout.max_turns": 2,
    "rollout.slots": 2, "rollout.tasks_per_step": 1, "rollout.group_size": 4,
    "rollout.max_turn_tokens": 8, "eval.final_tasks": 1, "eval.trials": 2, "eval.every": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return folder, write_checkpoint(folder, **SHAPE)


@pytest.fixture
def scores(monkeypatch):
    """A judge for a policy that says nothing: episodes of a group differ, so that it is updated."""

    given = itertools.cycle((0, 1))

    def judge_all(self, trajectories, exact=False):
        counts = [len(t.turns) for t in trajectories]
        return [Judgement([next(given)] * count, [""] * count) for count in counts]

    monkeypatch.setattr("tarl_jax.judge.service.Judge.judge_all", judge_all)


def config_of(run, **changes):
    config = sized("tiny")
    config.update_from_flattened_dict({**OVERRIDES, "workdir": str(run), **changes})
    return from_config_dict(config)


def command(module, run, pretrained, *flags):
    values = {**OVERRIDES, "model.pretrained": pretrained}
    return subprocess.run(
        [
            sys.executable, "-m", module, f"--config={ROOT}/configs/grpo_tarl.py:tiny",
            f"--workdir={run}", *(f"--config.{k}={v}" for k, v in values.items()), *flags,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
    )


def test_train_a_pretrained_policy_and_export_it(checkpoint, tmp_path, scores):
    folder, model = checkpoint
    config = config_of(tmp_path / "run", **{"model.pretrained": str(folder)})
    train(config)
    assert export(config, tmp_path / "out", 0, Parts()) == 0
    assert_same_weights(tmp_path / "out", model)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").decode([1]) != ""
    with pytest.raises(ValueError, match=str(tmp_path / "out")):
        export(config, tmp_path / "out", -1, Parts())  # never written over


@pytest.mark.slow
def test_a_policy_that_hears_is_loaded_trained_resumed_and_exported(tmp_path, scores):
    """From a checkpoint of Omni's kind, whose encoder is frozen: only the decoder changes."""
    folder = tmp_path / "omni"
    encoder = {
        "num_mel_bins": 8, "d_model": 12, "encoder_layers": 1, "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16, "n_window": 100, "output_dim": 32, "frozen": True,
    }
    changes = {
        "model.pretrained": str(folder), "model.qk_norm": False, "model.qkv_bias": True,
        **{f"model.audio.{name}": value for name, value in encoder.items()},
        "speech.share": 1.0, "speech.voices": ("en-us",), "speech.cache_dir": str(tmp_path / "s"),
        "rollout.max_episode_tokens": 512,
    }
    config = config_of(tmp_path / "run", **changes)
    params = decoder.init_params(config.model, 512, jax.random.key(3))
    save_params(folder, params, config.model, 512, "float32", audio_ids=AudioIds(309, 310, 311))
    write_tokenizer(folder, [*QWEN_TOKENS, "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"])

    train(config)
    (step,) = (r for r in read_metrics(tmp_path / "run") if r["kind"] == "train")
    assert step["train/spoken"] == 1.0 and step["rl/log_prob_gap"] < 1e-4
    export(config, tmp_path / "first", 0, Parts())
    train(dataclasses.replace(config, rl=dataclasses.replace(config.rl, steps=2)))
    export(config, tmp_path / "last", 2, Parts())
    before, first, last = map(open_tensors, (folder, tmp_path / "first", tmp_path / "last"))
    assert before.keys() == first.keys() == last.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, first[name])
        if "audio_tower" in name:
            np.testing.assert_array_equal(value, last[name])
    name = "model.embed_tokens.weight"
    assert not np.array_equal(before[name], last[name])


@pytest.mark.slow
def test_adapters_continue_and_hold_on_to_their_reference(checkpoint, tmp_path, scores):
    folder, model = checkpoint
    changes = {"model.pretrained": str(folder), "model.lora.rank": 2, "rl.kl_coef": 0.1,
               "checkpoint.keep": 3}
    train(config_of(tmp_path / "run", **changes))
    config = config_of(tmp_path / "run", **changes, **{"rl.steps": 2})
    train(config)
    steps = [r for r in read_metrics(tmp_path / "run") if r["kind"] == "train"]
    assert [r["compilations"] for r in steps] == [0, 0]
    first, second = (r["rl/kl_reference"] for r in steps)
    assert first == 0.0 and 0 < second < 1  # none before the first update
    export(config, tmp_path / "first", 0, Parts())
    assert_same_weights(tmp_path / "first", model)
    export(config, tmp_path / "last", 2, Parts())
    export(config, tmp_path / "adapters", 2, Parts(), adapters=True)
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors"
    }
    with pytest.raises(AssertionError, match="q_proj"):
        assert_same_weights(tmp_path / "last", model)


def assert_same_weights(folder, model):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).float().state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded[name]), name


def test_a_shape_given_by_hand_that_the_checkpoint_has_not_is_refused(checkpoint, tmp_path):
    wrong = "--config.model.d_ff=64"
    for module in ("tarl_jax.main", "tarl_jax.export"):
        done = command(module, tmp_path / "run", checkpoint[0], wrong)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "config.model.d_ff = 64: " in done.stderr and "says 48" in done.stderr
        assert not (tmp_path / "run").exists()


def test_a_tokenizer_larger_than_the_embedding_is_an_error(tmp_path):
    write_checkpoint(tmp_path, **{**SHAPE, "vocab_size": 100})
    with pytest.raises(ValueError, match=r"config.model.vocab_size = 100: the tokenizer has"):
        train(config_of(tmp_path / "run", **{"model.pretrained": str(tmp_path)}))


def test_no_warm_start_means_random_parameters(tiny_config, tiny_env: Environment):
    config = dataclasses.replace(
        tiny_config, warm_start=dataclasses.replace(tiny_config.warm_start, steps=0)
    )
    updater = make_updater(config, tiny_env)
    params = starting_policy(config, tiny_env, updater)
    expected = jax.eval_shape(
        lambda: decoder.init_params(config.model, tiny_env.vocab_size, jax.random.key(0))
    )
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, expected)
    assert 0.01 < float(np.std(params["embed"])) < 0.03


def test_the_full_prompt_holds_the_rules_and_every_tool(tiny_config):
    config = dataclasses.replace(
        tiny_config, rollout=dataclasses.replace(tiny_config.rollout, system_prompt="full")
    )
    env = Environment.from_config(config)
    text = env.tokenizer.decode(env.system[1])
    assert "# Rules for the clerk" in text and env.domain.policy in text
    for name, tool in env.domain.tools.items():
        assert f'"name": "{name}"' in text and tool.schema["function"]["description"] in text
    assert len(env.domain.tools) == 16
