"""Adapters on disk, against the weights merged here, and loaded by PEFT where it is installed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from pretrained import write_checkpoint, write_omni

from tarl_jax.config import LoraConfig, ModelConfig
from tarl_jax.models import decoder
from tarl_jax.models.hf_config import read_config
from tarl_jax.models.hugging_face import load_params
from tarl_jax.models.lora import init_adapters, join
from tarl_jax.models.peft_files import save_adapters

pytest.importorskip("torch", reason="the comparison needs torch (the test extra)")
VOCAB = 512
SHAPE = dict(
    vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 12))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """(the base's folder, model config, parameters with adapters that do something)."""
    folder = tmp_path_factory.mktemp("base")
    write_checkpoint(folder, **SHAPE)
    read, _ = read_config(folder)
    model = dataclasses.replace(
        read, lora=LoraConfig(rank=3, alpha=6.0), pretrained=str(folder)
    )
    params = load_params(folder, model, VOCAB, None, "float32")
    adapters = init_adapters(model, params, jax.random.key(0))
    rng = np.random.default_rng(1)
    return folder, model, join(params, jax.tree.map(
        lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), adapters
    ))


def test_files_hold_peft_s_names_and_layout(adapted, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="comes with transformers")
    base, model, params = adapted
    save_adapters(tmp_path / "out", params, model)
    settings = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert settings["r"] == 3 and settings["lora_alpha"] == 6.0
    assert settings["base_model_name_or_path"] == str(base)
    assert sorted(settings["target_modules"]) == sorted(
        f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")
    )
    tensors = safetensors.load_file(tmp_path / "out/adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2  # layers, weights, sides
    prefix = "base_model.model.model.layers.1."
    for ours, theirs in (("wo", "self_attn.o_proj"), ("w_up", "mlp.up_proj")):
        a, b = (np.asarray(params["layers"][f"{ours}_{side}"][1]) for side in "ab")
        down = tensors[f"{prefix}{theirs}.lora_A.weight"]
        up = tensors[f"{prefix}{theirs}.lora_B.weight"]
        wanted = a.reshape(-1, 3) @ b.reshape(3, -1)  # [in, out]; torch's product is its transpose
        np.testing.assert_allclose(up @ down, wanted.T, rtol=1e-5, atol=1e-6)


def test_peft_computes_what_the_policy_computes(adapted, tmp_path):
    peft = pytest.importorskip("peft", reason="loading adapters needs PEFT (pip install peft)")
    import torch
    import transformers

    base, model, params = adapted
    save_adapters(tmp_path / "out", params, model)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    before = plain(torch.tensor(TOKENS)).logits.detach().numpy()
    wrapped = peft.PeftModel.from_pretrained(plain, tmp_path / "out").eval()
    theirs = wrapped(torch.tensor(TOKENS)).logits.detach().numpy()
    ours = decoder.logits(params, decoder.hidden_states(params, model, TOKENS))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert np.abs(theirs - before).max() > 0.1


def test_of_omni_the_thinker_s_decoder_alone_is_adapted(tmp_path):
    """Talker, audio and vision have modules of the same names."""
    peft = pytest.importorskip("peft", reason="loading adapters needs PEFT (pip install peft)")
    import torch
    import transformers

    write_omni(tmp_path)
    whole = transformers.Qwen2_5OmniForConditionalGeneration.from_pretrained(tmp_path).eval()
    whole.thinker.save_pretrained(tmp_path / "thinker")
    thinker = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "thinker").eval()
    read, vocab = read_config(tmp_path)
    for folder, base, inner in ((tmp_path, whole, lambda m: m.thinker),
                                (tmp_path / "thinker", thinker, lambda m: m)):
        model = dataclasses.replace(
            read, lora=LoraConfig(rank=3, alpha=6.0), pretrained=str(folder)
        )
        with pytest.warns(UserWarning, match="vision, talker"):
            params = load_params(folder, model, vocab, None, "float32")
        adapters = init_adapters(model, params, jax.random.key(0))
        rng = np.random.default_rng(1)
        adapted = join(params, jax.tree.map(
            lambda x, rng=rng: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), adapters
        ))
        save_adapters(folder / "adapters", adapted, model)
        wrapped = peft.PeftModel.from_pretrained(base, folder / "adapters").eval()
        theirs = inner(wrapped.base_model.model)(
            input_ids=torch.tensor(TOKENS)).logits.detach().numpy()
        ours = decoder.logits(adapted, decoder.hidden_states(adapted, model, TOKENS))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        names = [name for name, _ in wrapped.named_parameters() if "lora_" in name]
        assert len(names) == 2 * 7 * 2 and not any("talker" in name for name in names)


def test_what_has_no_adapters_or_no_base_is_refused(adapted, tmp_path):
    _, model, params = adapted
    plain = dataclasses.replace(model, lora=LoraConfig())
    with pytest.raises(ValueError, match=r"lora.rank = 0: there are no adapters"):
        save_adapters(tmp_path / "out", params, plain)
    homeless: ModelConfig = dataclasses.replace(model, pretrained="")
    with pytest.raises(ValueError, match=r"pretrained = '': adapters belong to a checkpoint"):
        save_adapters(tmp_path / "out", params, homeless)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").write_text("x")
    with pytest.raises(ValueError, match="out: exists already"):
        save_adapters(tmp_path / "out", params, model)
