"""What a checkpoint decides, against checkpoints that transformers wrote."""

import dataclasses
import json

import pytest
from pretrained import write_checkpoint, write_tokenizer

from tarl_jax.config import ConfigError, InputError, LoraConfig, RunConfig, from_config_dict
from tarl_jax.config.presets import sized, with_speech
from tarl_jax.models.hf_config import completed, read_config, sampling_defaults
from tarl_jax.training.train import train

torch = pytest.importorskip("torch", reason="the comparison needs torch (the test extra)")
transformers = pytest.importorskip("transformers")
SHAPE = dict(
    vocab_size=512, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5,
    max_position_embeddings=40_960,
)


def with_checkpoint(config, folder, **fields):
    values = {"model.pretrained": str(folder), "mesh.rollout_tensor": 1, **fields}
    data = config.copy_and_resolve_references()
    data.update_from_flattened_dict(values)
    return from_config_dict(data)


def edit(folder, file="config.json", **fields):
    """Changes fields of a file; None takes one out."""
    path = folder / file
    found = json.loads(path.read_text()) if path.is_file() else {}
    kept = {k: v for k, v in {**found, **fields}.items() if v is not None}
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", ["", "tiny", "qwen3_0_6b", "qwen3_8b", "qwen3_8b_lora"])
def test_the_checkpoint_decides_the_shape_whatever_the_size(tmp_path, size, tied):
    """As of the checkpoints of July 2025, whose rotary base is five times that of the first."""
    write_checkpoint(tmp_path, **SHAPE, rope_theta=5e6, tie_word_embeddings=tied)
    before = sized(size)
    config = completed(with_checkpoint(before, tmp_path))
    model = config.model
    assert (model.d_model, model.num_layers, model.d_ff) == (24, 3, 40)
    assert (model.num_heads, model.num_kv_heads, model.head_dim) == (6, 2, 8)
    assert (model.rope_theta, model.rms_norm_eps, model.vocab_size) == (5e6, 1e-5, 512)
    assert (model.tie_embeddings, model.qk_norm, model.qkv_bias) == (tied, True, False)
    # How it is computed and trained is the size's.
    assert (model.dtype, model.remat) == (before.model.dtype, before.model.remat)
    assert model.lora == LoraConfig(**before.model.lora.to_dict())
    assert config.rl.learning_rate == before.rl.learning_rate
    assert completed(config) == config  # and again


def test_qwen2_and_what_is_left_unsaid(tmp_path):
    config = transformers.Qwen2Config(**{**SHAPE, "head_dim": 4}, tie_word_embeddings=True)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    model = completed(with_checkpoint(sized(""), tmp_path)).model
    assert (model.qk_norm, model.qkv_bias, model.head_dim, model.tie_embeddings) == (
        False, True, 4, True
    )
    edit(tmp_path, head_dim=None, tie_word_embeddings=None)
    model = completed(with_checkpoint(sized(""), tmp_path)).model
    assert (model.head_dim, model.tie_embeddings) == (4, True)  # by the tensors
    (tmp_path / "model.safetensors").unlink()
    assert not read_config(tmp_path)[0].tie_embeddings  # as transformers has it


@pytest.mark.parametrize("whole", [False, True])
def test_of_omni_the_thinker_and_its_encoder(tmp_path, whole):
    parts = transformers.models.qwen2_5_omni.configuration_qwen2_5_omni
    encoder = dict(num_mel_bins=16, encoder_layers=2, encoder_attention_heads=3,
                   encoder_ffn_dim=20, d_model=12, max_source_positions=40, n_window=8,
                   output_dim=24)
    text = {k: v for k, v in SHAPE.items() if k != "head_dim"}
    thinker = parts.Qwen2_5OmniThinkerConfig(audio_config=encoder, text_config=text).to_dict()
    thinker["tie_word_embeddings"] = False
    stated = {"model_type": "qwen2_5_omni", "thinker_config": thinker} if whole else thinker
    (tmp_path / "config.json").write_text(json.dumps(stated))
    config = completed(with_checkpoint(with_speech("qwen2_5_omni_7b"), tmp_path,
                                       **{"model.audio.frozen": True}))
    assert {name: getattr(config.model.audio, name) for name in encoder} == encoder
    assert config.model.audio.frozen
    assert (config.model.d_model, config.model.qkv_bias, config.model.vocab_size) == (24, True, 512)
    deaf = completed(with_checkpoint(sized("qwen2_5_omni_7b"), tmp_path)).model
    assert not deaf.audio and deaf.d_model == 24


def test_an_encoder_where_there_is_none(tmp_path):
    write_checkpoint(tmp_path, **SHAPE)
    with pytest.raises(InputError, match=r"audio_config = None: the checkpoint has no audio"):
        completed(with_checkpoint(with_speech("qwen2_5_omni_7b"), tmp_path))


@pytest.mark.parametrize("size", ["qwen3_0_6b", "qwen3_8b_lora", "qwen2_5_omni_7b"])
def test_a_published_size_without_its_checkpoint_is_refused_before_all(tmp_path, size):
    config = dataclasses.replace(from_config_dict(sized(size)), workdir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=rf"model.pretrained = '': {size.removesuffix('_lora')}"):
        train(config)
    assert not (tmp_path / "run").exists()
    assert completed(RunConfig()) == RunConfig()  # the embedded default needs none


def test_a_folder_that_is_not_there_or_holds_nothing(tmp_path):
    for folder, words in ((tmp_path / "none", "is not there"), (tmp_path, "has no config.json")):
        with pytest.raises(InputError, match=rf"{words}: give the folder.*hf download"):
            completed(with_checkpoint(sized("qwen3_8b"), folder))


def test_fields_given_by_hand_must_agree(tmp_path):
    write_checkpoint(tmp_path, **SHAPE)
    config = with_checkpoint(sized("qwen3_8b"), tmp_path,
                             **{"model.d_ff": 64, "model.num_layers": 3})
    assert completed(config, ["model.num_layers", "rl.steps"]).model.d_ff == 40
    with pytest.raises(ConfigError, match=r"config.model.d_ff = 64: .*config.json says 40: leave"):
        completed(config, ["model.num_layers", "model.d_ff"])


def test_episodes_are_no_longer_than_the_positions(tmp_path):
    write_checkpoint(tmp_path, **{**SHAPE, "max_position_embeddings": 2048})
    with pytest.raises(ConfigError, match=r"max_episode_tokens = 2049: .* 2048 positions"):
        completed(with_checkpoint(sized("qwen3_8b"), tmp_path,
                                  **{"rollout.max_episode_tokens": 2049}))
    completed(with_checkpoint(sized("qwen3_8b"), tmp_path, **{"rollout.max_episode_tokens": 2048}))


def test_sampling_defaults_are_those_of_the_checkpoint(tmp_path):
    assert sampling_defaults(tmp_path) == {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0
    }
    write_checkpoint(tmp_path, **SHAPE)
    theirs = transformers.GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    theirs.save_pretrained(tmp_path)
    found = sampling_defaults(tmp_path)
    assert found == {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0}
    asked = {f"rollout.{name}": type(value)(-1) for name, value in found.items()}
    rollout = completed(with_checkpoint(sized("qwen3_8b"), tmp_path, **asked)).rollout
    assert {name: getattr(rollout, name) for name in found} == found
    config = completed(with_checkpoint(sized("qwen3_8b"), tmp_path))
    assert (config.rollout.temperature, config.rollout.top_k) == (1.0, 0)  # as the loss wants it
    assert {name: getattr(config.eval, name) for name in found} == found
    greedy = completed(with_checkpoint(sized("qwen3_8b"), tmp_path, **{"eval.temperature": 0.0}))
    assert (greedy.eval.temperature, greedy.eval.top_k) == (0.0, 20)
    edit(tmp_path, "generation_config.json", do_sample=False)
    assert sampling_defaults(tmp_path)["temperature"] == 0.0
    edit(tmp_path, "generation_config.json", top_p="high")
    with pytest.raises(InputError, match=r"generation_config.json: top_p = 'high': must be"):
        sampling_defaults(tmp_path)


def test_without_a_checkpoint_nothing_is_cut_off():
    config = sized("tiny")
    config.rollout.top_k, config.rollout.top_p, config.rollout.temperature = -1, -1.0, -1.0
    rollout = completed(from_config_dict(config)).rollout
    assert (rollout.temperature, rollout.top_k, rollout.top_p) == (1.0, 0, 1.0)
    config.rollout.top_k = -2
    with pytest.raises(ConfigError, match=r"top_k = -2: must be at least 0, or -1"):
        from_config_dict(config)


def test_end_tokens_are_the_checkpoint_s(tmp_path):
    from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer

    write_tokenizer(tmp_path)
    ids = {name: PretrainedTokenizer(tmp_path).encode_markup(name)[0]
           for name in ("<|im_end|>", "<|endoftext|>")}
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": ids["<|endoftext|>"]}))
    assert set(PretrainedTokenizer(tmp_path).stop_ids) == set(ids.values())  # by config.json
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [ids["<|im_end|>"]]})
    )
    assert PretrainedTokenizer(tmp_path).stop_ids == (ids["<|im_end|>"],)  # which decides
