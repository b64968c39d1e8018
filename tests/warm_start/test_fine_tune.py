"""Fine-tuning: a file's dialogues laid out token for token, learned by all weights or adapters."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from pretrained import write_checkpoint

from tarl_jax.config import ConfigError, InputError, RunConfig, from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.models.tensor_files import open_tensors
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs.metrics import read_metrics
from tarl_jax.training.parts import Parts
from tarl_jax.training.policy import export, make_updater, starting_policy
from tarl_jax.training.train import train
from tarl_jax.types import Call
from tarl_jax.warm_start.dialogues import read_dialogues
from tarl_jax.warm_start.fine_tune import fine_tune

pytest.importorskip("torch", reason="the checkpoint is made with torch (the test extra)")
SHAPE = dict(
    vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    rms_norm_eps=1e-6, max_position_embeddings=4096,
)
CALL = {"function": {"name": "get_order", "arguments": '{"order_id": "#W1"}'}}
DIALOGUE = [
    {"role": "system", "content": "Be the order's clerk."},
    {"role": "user", "content": "Where is the order?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": '{"status": "sent"}'},
    {"role": "assistant", "content": "It is sent."},
]
nothing = lambda *how_far: None  # noqa: E731


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    write_checkpoint(folder, **SHAPE)
    return folder


def config_of(checkpoint, **changes) -> RunConfig:
    from tarl_jax.models.hf_config import completed

    config = sized("tiny")
    config.update_from_flattened_dict({
        "model.pretrained": str(checkpoint), "model.scan_layers": True,
        "rollout.max_episode_tokens": 512, "rl.micro_batch_tokens": 1024, "rl.steps": 0,
        "rollout.max_turns": 2, "rollout.max_turn_tokens": 8, "rollout.slots": 2,
        "eval.final_tasks": 1, "eval.trials": 1, "log.live": False,
        "sft.steps": 12, "sft.batch_tokens": 1024, "sft.learning_rate": 3e-3, **changes,
    })
    return completed(from_config_dict(config))


def write(path, *dialogues):
    path.write_text("".join(json.dumps(d) + "\n" for d in dialogues))
    return str(path)


def test_a_file_s_dialogue_is_laid_out_as_the_run_s(checkpoint, tmp_path):
    env = Environment.from_config(config_of(checkpoint))
    file = write(tmp_path / "d.jsonl", {"messages": DIALOGUE}, {"messages": DIALOGUE[1:]})
    whole, bare = read_dialogues(file, env)
    chat = env.chat
    turns = [chat.agent(Call("get_order", {"order_id": "#W1"})), chat.agent("It is sent.")]
    parts = [chat.system("Be the order's clerk."), chat.user("Where is the order?"), turns[0],
             chat.tool('{"status": "sent"}'), turns[1]]
    assert whole.tokens.tolist() == [token for part in parts for token in part]
    # What the assistant wrote is learned, its end tokens included, and nothing else.
    learned = whole.tokens[whole.agent].tolist()
    assert learned == turns[0] + turns[1] and learned[-1] == chat.stop_id
    assert not whole.sample(0.0).advantages[~whole.agent].any()
    assert bare.tokens.tolist()[: len(env.system[1])] == env.system[1]


def test_what_a_turn_begins_with_is_not_learned(checkpoint, tmp_path, monkeypatch):
    """As without thoughts, where the template begins turns with an empty one."""
    env = Environment.from_config(config_of(checkpoint))
    file = write(tmp_path / "d.jsonl", {"messages": DIALOGUE})
    (plain,) = read_dialogues(file, env)
    monkeypatch.setattr(env.chat, "begin", [7, 8])
    (begun,) = read_dialogues(file, env)
    assert begun.tokens[begun.agent].tolist() == plain.tokens[plain.agent].tolist()
    first = int(begun.agent.argmax())
    assert begun.tokens[first - 2 : first].tolist() == [7, 8]
    assert len(begun.tokens) == len(plain.tokens) + 4


@pytest.mark.parametrize("change, words", [
    ({"messages": []}, 'needs a list "messages"'),
    ({"messages": DIALOGUE[:2]}, "the assistant says nothing"),
    ({"messages": [DIALOGUE[4]]}, "message 1: the assistant answers a user"),
    ({"messages": [DIALOGUE[1], DIALOGUE[3]]}, "message 2: role 'tool' after 'user'"),
    ({"messages": [DIALOGUE[1], DIALOGUE[1]]}, "message 2: a user speaks first"),
    ({"messages": [{"role": "user", "content": [1]}]}, "message 1: its content is list"),
    ({"messages": [DIALOGUE[1], {**DIALOGUE[2], "tool_calls": [CALL, CALL]}]}, "2 tool calls"),
    ({"messages": [DIALOGUE[1], {**DIALOGUE[2], "content": "Wait."}]}, "beside its call"),
    ({"messages": [DIALOGUE[1], {"role": "assistant", "tool_calls": [
        {"function": {"name": "f", "arguments": "{"}}]}]}, "a call has a name and arguments"),
    ({"messages": ["hello"]}, "a message is an object with a role"),
])
def test_what_is_no_dialogue_is_named_by_its_line(checkpoint, tmp_path, change, words):
    env = Environment.from_config(config_of(checkpoint))
    file = write(tmp_path / "d.jsonl", {"messages": DIALOGUE}, change)
    with pytest.raises(InputError, match=rf"d.jsonl:2: .*{words}"):
        read_dialogues(file, env)
    (tmp_path / "d.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no dialogue"):
        read_dialogues(file, env)


@pytest.mark.parametrize("rank", [0, 4])
def test_dialogues_are_learned_by_what_trains(checkpoint, tmp_path, rank):
    file = write(tmp_path / "d.jsonl", *[{"messages": DIALOGUE}] * 4)
    config = config_of(checkpoint, **{"sft.file": file, "model.lora.rank": rank,
                                      "sft.learning_rate": 3e-2 if rank else 1e-2})
    env = Environment.from_config(config)
    params = starting_policy(config, env, make_updater(config, env))
    before = jax.device_get(params)
    told = []
    state, said = fine_tune(config, env, make_mesh(), params, lambda *how: told.append(how))
    losses = [loss for what, _, _, loss in told if what == "fine-tuning"]
    # A fresh model of 512 pieces knows nothing; then it knows this one dialogue better. Adapters
    # cannot change its table of tokens.
    assert losses[0] == pytest.approx(np.log(512), abs=0.5)
    assert losses[-1] < (0.98 if rank else 0.7) * losses[0]
    assert f"loss {losses[0]:.3f} ->" in said and "on 4 dialogues" in said
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert bool(state.frozen) == bool(rank)


@pytest.mark.slow
def test_a_fine_tuned_checkpoint_is_a_run_that_is_exported(checkpoint, tmp_path):
    """From a file, with adapters, and a reference for the reinforcement learning that follows."""
    file = write(tmp_path / "d.jsonl", *[{"messages": DIALOGUE}] * 4)
    config = config_of(checkpoint, **{
        "sft.file": file, "model.lora.rank": 2, "rl.kl_coef": 0.1, "sft.steps": 3,
        "sft.learning_rate": 3e-2, "rollout.max_episode_tokens": 256,
        "workdir": str(tmp_path / "run"),
    })
    train(config)
    assert [r["kind"] for r in read_metrics(tmp_path / "run")] == ["base"]
    export(config, tmp_path / "out", 0, Parts())
    before, after = open_tensors(checkpoint), open_tensors(tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(np.float32(before[name]), np.float32(after[name]))


def test_the_clerk_s_dialogues_need_no_file(checkpoint):
    config = config_of(checkpoint, **{"sft.episodes": 8, "sft.steps": 1,
                                      "rollout.max_episode_tokens": 4096,
                                      "rl.micro_batch_tokens": 4096})
    env = Environment.from_config(config)
    params = starting_policy(config, env, make_updater(config, env))
    told = []
    fine_tune(config, env, make_mesh(), params, lambda *how: told.append(how))
    assert [how[0] for how in told] == ["writing dialogues"] * 8 + ["fine-tuning"]
    short = dataclasses.replace(
        config, rollout=dataclasses.replace(config.rollout, max_episode_tokens=8)
    )
    with pytest.raises(InputError, match=r"the clerk: all 8 dialogues have more than .* = 8"):
        fine_tune(short, env, make_mesh(), params, nothing)


def test_a_file_without_steps_is_an_error():
    config = sized("tiny")
    config.sft.file = "d.jsonl"
    with pytest.raises(ConfigError, match=r"sft.file = 'd.jsonl': sft.steps = 0 learns nothing"):
        from_config_dict(config)
