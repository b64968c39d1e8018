"""A whole Qwen2.5-Omni in, trained or not, and out again, read by transformers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained import write_omni

from tarl_jax.config import AudioConfig, RunConfig
from tarl_jax.models import decoder
from tarl_jax.models.hf_config import completed
from tarl_jax.models.hugging_face import load_params, save_params
from tarl_jax.models.omni_files import AudioIds
from tarl_jax.models.tensor_files import open_tensors

torch = pytest.importorskip("torch", reason="the comparison needs torch (the test extra)")
transformers = pytest.importorskip("transformers")
IDS = AudioIds(309, 310, 311)
TOKENS = np.random.default_rng(0).integers(0, 300, (2, 12))


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    """(folder of a whole checkpoint, transformers' model)."""
    folder = tmp_path_factory.mktemp("omni")
    return folder, write_omni(folder)


def loaded(folder, audio: bool):
    """(model config, parameters, a little other than the file's)."""
    config = RunConfig()
    model = dataclasses.replace(
        config.model, pretrained=str(folder),
        audio=AudioConfig(encoder_layers=1) if audio else AudioConfig(),
    )
    model = completed(dataclasses.replace(config, model=model)).model
    with pytest.warns(UserWarning, match="vision, talker"):
        params = load_params(folder, model, model.vocab_size, None, "float32")
    rng = np.random.default_rng(1)
    return model, jax.tree.map(
        lambda x: x + jnp.asarray(0.05 * rng.normal(size=x.shape), x.dtype), params
    )


@pytest.mark.parametrize("audio", [True, False], ids=["hears", "reads"])
def test_transformers_reads_the_whole_model_back(omni, tmp_path, audio):
    source, before = omni
    model, params = loaded(source, audio)
    save_params(tmp_path / "out", params, model, 512, "float32", tokenizer_files=source,
                audio_ids=IDS if audio else None)
    # What the file lacked would come out random, and differ below.
    after = transformers.Qwen2_5OmniForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert open_tensors(tmp_path / "out").keys() == open_tensors(source).keys()
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    for name, value in old.items():
        tower = "audio_tower." in name and "audio_bos_eos" not in name
        decoder_s = not ("audio_tower." in name or "visual." in name)
        ours = name.startswith("thinker.") and (decoder_s or (audio and tower))
        assert torch.equal(new[name], value) != ours, name
    assert list(after.speaker_map) == ["Chelsie"]
    assert torch.equal(after.speaker_map["Chelsie"]["cond"], torch.ones(1, 8))
    with torch.no_grad():
        theirs = after.thinker.eval()(input_ids=torch.tensor(TOKENS)).logits.numpy()
    hidden = decoder.hidden_states(params, model, jnp.array(TOKENS))
    np.testing.assert_allclose(decoder.logits(params, hidden), theirs, rtol=1e-3, atol=1e-4)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in source.iterdir()}
    for name in ("preprocessor_config.json", "spk_dict.pt", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    kept = json.loads((source / "config.json").read_text())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {k: v for k, v in written.items() if "dtype" not in k} == {
        k: v for k, v in kept.items() if "dtype" not in k
    }


def test_what_is_not_trained_keeps_its_own_precision(omni, tmp_path):
    """The published vocoder is float32 beside a thinker of bfloat16."""
    source, _ = omni
    model, params = loaded(source, True)
    save_params(tmp_path / "out", params, model, 512, "bfloat16", tokenizer_files=source,
                audio_ids=IDS)
    before, after = open_tensors(source), open_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.startswith(("talker.", "token2wav.", "thinker.visual.")):
            assert after[name].dtype == value.dtype and np.array_equal(after[name], value), name
    assert after["thinker.lm_head.weight"].dtype == jnp.bfloat16


def test_a_thinker_without_the_rest_stays_one(omni, tmp_path):
    _, whole = omni
    whole.thinker.save_pretrained(tmp_path / "thinker")
    (tmp_path / "thinker" / "tokenizer.json").write_text("{}")
    model, params = loaded(tmp_path / "thinker", True)
    save_params(tmp_path / "out", params, model, 512, "float32",
                tokenizer_files=tmp_path / "thinker", audio_ids=IDS)
    _, report = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
