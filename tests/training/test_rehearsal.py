"""A dress rehearsal of the full-size path on a CPU: everything is real but the weights.

Qwen3's own tokenizer and template, a random checkpoint with its whole vocabulary that transformers
saved, tau-bench's retail data, and a user and a judge that are language models behind a server of
OpenAI's protocol: two steps, evaluations, a stop between them, an export that transformers loads.
"""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tarl_jax.config import from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.runs.metrics import read_metrics, read_trajectories, trajectory_files
from tarl_jax.training.parts import Parts
from tarl_jax.training.policy import export
from tarl_jax.training.train import train

SHARED = Path(__file__).parents[3] / "shared"
TOKENIZER = SHARED / "qwen"
RETAIL = SHARED / "tau_bench/retail"
END, PADDING = 151_645, 151_669  # <|im_end|>; the first row of the embedding that is no token's

pytestmark = pytest.mark.skipif(
    not (TOKENIZER.is_dir() and RETAIL.is_dir()),
    reason="Qwen's tokenizer and tau-bench's data are not beside the checkout (shared/)",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Qwen3's layout and vocabulary, two layers; a turn ends after some twenty random tokens."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=151_936, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, rope_theta=5e6,
        tie_word_embeddings=False, max_position_embeddings=40_960,
    )
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.normal_(0, 0.3)
        embedding[:, 0] = 3.0  # so that the last hidden state's first entry is nearly the same
        head.normal_(0, 0.15)
        head[:, 0] = 0.0
        head[END, 0] = 1.9
        head[PADDING:, 0] = 4.0  # would be drawn all the time
    model.save_pretrained(folder)
    packed = (TOKENIZER / "tokenizer.json.gz").read_bytes()
    (folder / "tokenizer.json").write_bytes(gzip.decompress(packed))
    shutil.copyfile(TOKENIZER / "tokenizer_config.json", folder / "tokenizer_config.json")
    (folder / "generation_config.json").write_text(json.dumps({
        "do_sample": True, "eos_token_id": [END, 151_643], "pad_token_id": 151_643,
        "temperature": 0.6, "top_k": 20, "top_p": 0.95,
    }))
    return folder


@pytest.fixture(scope="module")
def config_of(checkpoint, openai_server, tmp_path_factory):
    """The documented command's config, made small where a CPU needs it; by steps."""
    openai_server.plan()
    workdir = tmp_path_factory.mktemp("rehearsal") / "run"

    def make(steps):
        config = sized("qwen3_0_6b")
        config.reward.update({"placement": "stage", "episode_weight": 1.0})
        config.workdir, config.rl.steps = str(workdir), steps
        config.model.pretrained, config.sandbox.data = str(checkpoint), str(RETAIL)
        for group, name in ((config.user, "react"), (config.judge, "moody")):
            group.kind = "llm"
            group.llm.update({"model": name, "base_url": openai_server.url, "api_key_env": ""})
        config.user.update({"strategy": "react", "leave_out_faults": False})  # it leaves early
        config.mesh.update({"tensor": 1, "rollout_tensor": 1})
        config.rollout.update({
            "tasks_per_step": 2, "group_size": 2, "slots": 4, "max_turns": 3,
            "max_turn_tokens": 48, "max_episode_tokens": 5120, "thinking": "off",
            "cache": "pages", "max_too_long": 1.0,
        })
        config.rl.update({
            "minibatches": 1, "micro_batch_tokens": 5120, "learning_rate": 1e-3,
            "mask_truncated": False,  # three turns cut off many
            "measure_after": False,
        })
        config.eval.update({"tasks": 2, "final_tasks": 2, "trials": 1, "every": 1})
        config.checkpoint.every = 1
        return from_config_dict(config)

    return make


@pytest.fixture(scope="module")
def played(config_of, openai_server):
    """The run's folder: one step, then, started again, another."""
    train(config_of(1))
    asked = openai_server.report()["requests"]
    summary = train(config_of(2))
    assert openai_server.report()["requests"] > asked
    return Path(config_of(2).workdir), summary


def test_it_trains_is_evaluated_and_goes_on(played):
    run, summary = played
    rows = list(read_metrics(run))
    steps = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    updates = [row for row in steps if row.get("rl/loss") is not None]
    assert updates  # a step whose groups all earned the same makes none
    for row in updates:
        assert row["rl/log_prob_gap"] < 0.02  # bfloat16 on both sides
        assert row["rl/grad_norm"] > 0 and np.isfinite(row["rl/loss"])
    for row in steps:
        assert row["judge/abstained"] == 0 and row["user/unusable"] == 0
        assert row["user/at_fault"] > 0
        assert row["compilations"] == 0
    assert {"base", "trained"} <= set(summary) and "eval/pass^1" in summary["trained"]


def test_episodes_begin_with_the_system_turn_of_the_template(played, checkpoint):
    """Tools and policy are there; and no token is drawn that the tokenizer has not."""
    import transformers

    run, _ = played
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    seen = 0
    for file in trajectory_files(run).values():
        for trajectory in read_trajectories(file):
            text = tokenizer.decode(trajectory.segments[0].token_ids)
            assert text.startswith("<|im_start|>system\n") and "\n# Tools\n" in text
            drawn = [t for s in trajectory.segments if s.role == "agent" for t in s.token_ids]
            assert drawn and max(drawn) < PADDING
            seen += 1
    assert seen == 2 * 4


def test_transformers_loads_what_is_exported(played, config_of, tmp_path):
    import torch
    import transformers

    config = config_of(2)
    assert export(config, tmp_path / "out", -1, Parts()) == 2
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.rope_parameters["rope_theta"] == 5e6
    assert not model.config.tie_word_embeddings
    assert model.config.vocab_size == 151_936
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is my order?"}], add_generation_prompt=True,
        return_tensors="pt", return_dict=True,
    )["input_ids"]
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()
    before = transformers.AutoModelForCausalLM.from_pretrained(config.model.pretrained)
    assert not torch.equal(before.lm_head.weight, model.lm_head.weight)
