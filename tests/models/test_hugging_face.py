"""Checkpoints against transformers: what it wrote is read, what is written here it reads."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tarl_jax.config import ModelConfig
from tarl_jax.config.audio import AudioConfig
from tarl_jax.models import audio_encoder, decoder, hugging_face, tensor_files
from tarl_jax.models.audio_encoder import from_hugging_face, init_audio_params
from tarl_jax.models.hugging_face import load_params, read_config, save_params
from tarl_jax.models.omni_files import AudioIds
from tarl_jax.models.tensor_files import INDEX, SINGLE, open_tensors

torch = pytest.importorskip("torch", reason="the comparison needs torch (the test extra)")
transformers = pytest.importorskip("transformers", reason="as does it transformers")
safetensors = pytest.importorskip("safetensors", reason="which brings safetensors")
pytest.importorskip("safetensors.torch")

VOCAB = 50
# Every axis has its own size, so that a mix-up of two cannot pass.
SMALL = ModelConfig(d_model=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=40,
                    rope_theta=1000.0, rms_norm_eps=1e-5, scan_layers=True)  # fmt: skip
CASES = {
    "qwen3_tied": SMALL,
    "qwen3_untied": dataclasses.replace(SMALL, tie_embeddings=False),
    # Qwen2's heads share the width of the model.
    "qwen2": dataclasses.replace(
        SMALL, head_dim=6, qk_norm=False, qkv_bias=True, tie_embeddings=False
    ),
}
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 20))
SEVERAL = 20_000  # bytes of a shard, so that there are several


def randomise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.2)
    return model.eval()


@functools.cache
def their_model(case: str, dtype: str = "float32"):
    """transformers' model, every weight random; do not change it."""
    c = CASES[case]
    settings = dict(
        vocab_size=VOCAB,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        rms_norm_eps=c.rms_norm_eps,
        tie_word_embeddings=c.tie_embeddings,
        max_position_embeddings=128,
    )
    if c.qk_norm:
        config = transformers.Qwen3Config(**settings, head_dim=c.head_dim)
        model = transformers.Qwen3ForCausalLM(config)
    else:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**settings))
    return randomise(model).to(getattr(torch, dtype))


@pytest.fixture
def checkpoint(tmp_path):
    """Makes a checkpoint as transformers writes it: (case, dtype, size of shards) -> folder."""

    def make(case: str, dtype: str = "float32", max_shard_size: int = 10**9):
        folder = tmp_path / f"{case}-{dtype}-{max_shard_size}"
        their_model(case, dtype).save_pretrained(folder, max_shard_size=max_shard_size)
        return folder

    return make


def edit_config(folder, **fields):
    """Sets fields of config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@functools.partial(jax.jit, static_argnums=1)
def our_logits(params, config):
    return decoder.logits(params, decoder.hidden_states(params, config, TOKENS))


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


def relative(a, b) -> float:
    """Largest difference over the largest value."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


def assert_same(a, b):
    """The same tree, every leaf with the same dtype and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


# ---- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_loaded_logits_equal_theirs(case, checkpoint):
    folder = checkpoint(case)

    config, vocab_size = read_config(folder)
    assert (config, vocab_size) == (CASES[case], VOCAB)
    params = load_params(folder, config, vocab_size, None, "float32")

    expected = jax.eval_shape(lambda: decoder.init_params(config, VOCAB, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    assert relative(our_logits(params, config), their_logits(their_model(case))) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_several_files_hold_the_same(case, checkpoint):
    several = checkpoint(case, "float32", SEVERAL)
    assert len(list(several.glob("model-*.safetensors"))) > 2 and not (several / SINGLE).exists()
    one = load_params(checkpoint(case), CASES[case], VOCAB, None, "float32")
    assert_same(one, load_params(several, CASES[case], VOCAB, None, "float32"))


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_read_as_it_is_and_widened(case, checkpoint):
    folder = checkpoint(case, "bfloat16")
    narrow = load_params(folder, CASES[case], VOCAB)
    wide = load_params(folder, CASES[case], VOCAB, None, "float32")
    assert_same(wide, jax.tree.map(lambda x: x.astype("float32"), narrow))
    # What bfloat16 weights give in float32 arithmetic.
    theirs = their_logits(their_model(case, "bfloat16").__class__.from_pretrained(
        folder, dtype=torch.float32))  # fmt: skip
    assert relative(our_logits(wide, CASES[case]), theirs) < 1e-4
    # A float32 file, rounded here, is what torch rounded.
    assert_same(narrow, load_params(checkpoint(case), CASES[case], VOCAB, None, "bfloat16"))


def shardings_of(config, axis):
    """Of each leaf the axis counted from the end, where two devices can share it."""
    mesh = Mesh(np.array(jax.devices()), ("x",))
    shapes = jax.eval_shape(lambda: decoder.init_params(config, VOCAB, jax.random.key(0)))

    def choose(leaf):
        parts = [None] * leaf.ndim
        if axis is not None and leaf.ndim >= -axis and leaf.shape[axis] % 2 == 0:
            parts[axis] = "x"
        return NamedSharding(mesh, PartitionSpec(*parts))

    return jax.tree.map(choose, shapes)


@pytest.fixture
def fetched(monkeypatch):
    """Shapes of what is read from files."""
    shapes = []
    original = hugging_face._fetch

    def fetch(mapped):
        shapes.append(mapped.shape)
        return original(mapped)

    monkeypatch.setattr(hugging_face, "_fetch", fetch)
    return shapes


def elements(shapes) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


# The layers are odd in number; here they are four, so that they can be shared, too.
EVEN = dataclasses.replace(CASES["qwen2"], num_layers=4)


@pytest.mark.parametrize("axis", [-1, -2, -3, -4, None])
def test_shards_are_read_once_and_equal_the_whole(axis, tmp_path, random_params, fetched):
    save_params(tmp_path / "saved", random_params(EVEN, VOCAB, 1), EVEN, VOCAB, "float32", SEVERAL)
    whole = load_params(tmp_path / "saved", EVEN, VOCAB, None, "float32")
    size = sum(x.size for x in jax.tree.leaves(whole))
    assert elements(fetched) == size
    fetched.clear()
    shardings = shardings_of(EVEN, axis)
    split = load_params(tmp_path / "saved", EVEN, VOCAB, shardings, "float32")
    assert_same(split, whole)
    assert jax.tree.map(lambda x: x.sharding, split) == shardings
    assert any(s.is_fully_replicated for s in jax.tree.leaves(shardings)) == (axis != -1)
    assert elements(fetched) == size


def test_a_part_of_a_leaf_reads_that_part_only(tmp_path, random_params, fetched):
    params = random_params(EVEN, VOCAB, 2)
    save_params(tmp_path / "saved", params, EVEN, VOCAB, "float32")
    tensors = open_tensors(tmp_path / "saved")
    leaf = hugging_face.leaves_of(EVEN, VOCAB)["layers"]["wq"]
    index = (slice(1, 3), slice(None), slice(2, 4), slice(0, 3))
    part = hugging_face._read(tensors, leaf, index, np.dtype("float32"))
    np.testing.assert_array_equal(part, params["layers"]["wq"][index])
    assert elements(fetched) == part.size


def test_long_tensors_are_read_in_blocks(tmp_path, random_params, fetched, monkeypatch):
    params = random_params(CASES["qwen2"], VOCAB, 3)
    save_params(tmp_path / "saved", params, CASES["qwen2"], VOCAB, "float32")
    monkeypatch.setattr(hugging_face, "_BLOCK", 300)
    assert_same(load_params(tmp_path / "saved", CASES["qwen2"], VOCAB, None, "float32"), params)
    assert max(elements([shape]) for shape in fetched) <= 300


def test_opening_reads_no_data_and_gives_what_was_saved(checkpoint):
    tensors = open_tensors(checkpoint("qwen2", "bfloat16", SEVERAL))
    state = their_model("qwen2", "bfloat16").state_dict()
    assert tensors.keys() == state.keys()
    for name, value in state.items():
        assert tensors[name].dtype == jnp.bfloat16 and not tensors[name].flags.writeable
        np.testing.assert_array_equal(tensors[name].astype(np.float32), value.float().numpy())
        base = tensors[name]
        while not isinstance(base, np.memmap):  # it is the file, not a copy of it
            base = base.base


def test_what_transformers_leaves_behind_is_tolerated(checkpoint):
    folder = checkpoint("qwen3_tied")
    before = load_params(folder, SMALL, VOCAB)
    state = safetensors.torch.load_file(folder / SINGLE)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    safetensors.torch.save_file(state, folder / SINGLE)
    assert_same(load_params(folder, SMALL, VOCAB), before)


# ---- Omni -----------------------------------------------------------------------------------

OMNI = dataclasses.replace(
    SMALL, head_dim=6, qk_norm=False, qkv_bias=True, tie_embeddings=False, rms_norm_eps=1e-6
)


ENCODER = AudioConfig(
    num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, d_model=8,
    max_source_positions=20, n_window=4, output_dim=24,
)


@functools.cache
def thinker():
    parts = transformers.models.qwen2_5_omni.configuration_qwen2_5_omni
    config = parts.Qwen2_5OmniThinkerConfig(
        audio_config=dict(num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2,
                          encoder_ffn_dim=16, d_model=8, max_source_positions=20, n_window=4,
                          output_dim=24),
        vision_config=dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2,
                           patch_size=2, out_hidden_size=24, fullatt_block_indexes=[0],
                           window_size=8),
        text_config=dict(vocab_size=VOCAB, hidden_size=OMNI.d_model, intermediate_size=OMNI.d_ff,
                         num_hidden_layers=OMNI.num_layers, num_attention_heads=OMNI.num_heads,
                         num_key_value_heads=OMNI.num_kv_heads, max_position_embeddings=128,
                         rope_parameters=dict(rope_type="default", rope_theta=OMNI.rope_theta,
                                              mrope_section=[1, 1, 1])),
    )  # fmt: skip
    return randomise(transformers.Qwen2_5OmniThinkerForConditionalGeneration(config))


@pytest.mark.parametrize("whole", [False, True], ids=["thinker", "whole"])
def test_the_text_decoder_of_omni(whole, tmp_path):
    thinker().save_pretrained(tmp_path)
    if whole:  # as published: the talker beside, and the configuration as transformers 4 had it
        state = safetensors.torch.load_file(tmp_path / SINGLE)
        state = {f"thinker.{name}": value for name, value in state.items()}
        state |= {"talker.a.weight": torch.ones(2), "token2wav.b.weight": torch.ones(2)}
        safetensors.torch.save_file(state, tmp_path / SINGLE)
        config = json.loads((tmp_path / "config.json").read_text())
        text = config["text_config"]
        text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
        text["rope_scaling"] = {"mrope_section": [1, 1, 1], "type": "mrope"}
        config = {"model_type": "qwen2_5_omni", "thinker_config": config, "talker_config": {}}
        (tmp_path / "config.json").write_text(json.dumps(config))

    assert read_config(tmp_path) == (OMNI, VOCAB)
    with pytest.warns(UserWarning, match="vision, talker") as caught:
        params = load_params(tmp_path, OMNI, VOCAB, None, "float32")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert relative(our_logits(params, OMNI), their_logits(thinker())) < 1e-4
    name = ("thinker." if whole else "") + "audio_tower.conv1.weight"
    assert "audio" not in params and open_tensors(tmp_path)[name].shape == (8, 8, 3)


def test_the_audio_encoder_of_omni(tmp_path):
    thinker().save_pretrained(tmp_path)
    tower = {name.rpartition("audio_tower.")[2]: x.detach().numpy()
             for name, x in thinker().named_parameters() if "audio_tower." in name}
    with_audio = dataclasses.replace(OMNI, audio=ENCODER)
    with pytest.warns(UserWarning, match="vision, talker"):
        params = load_params(tmp_path, with_audio, VOCAB, None, "float32")
    encoder = params.pop("audio")
    assert jax.tree.map(np.shape, encoder) == jax.tree.map(
        np.shape, jax.eval_shape(lambda: init_audio_params(ENCODER, jax.random.key(0)))
    )
    for a, b in zip(jax.tree.leaves(encoder),
                    jax.tree.leaves(from_hugging_face(ENCODER, tower.__getitem__)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert relative(our_logits(params, OMNI), their_logits(thinker())) < 1e-4
    deeper = dataclasses.replace(with_audio, audio=dataclasses.replace(ENCODER, encoder_layers=2))
    with (
        pytest.warns(UserWarning, match="vision, talker"),
        pytest.raises(ValueError, match=r"missing audio_tower\.layers\.1.*encoder_layers = 2"),
    ):
        load_params(tmp_path, deeper, VOCAB, None, "float32")


AUDIO_IDS = AudioIds(start=45, token=46, end=47)


def test_a_policy_that_hears_is_written_as_omnis_thinker(tmp_path, random_params):
    """transformers reads it, and says the same of sound between words."""
    model = dataclasses.replace(OMNI, head_dim=8, num_heads=3, num_kv_heads=1, audio=ENCODER)
    params = random_params(model, VOCAB, 12)
    save_params(tmp_path / "saved", params, model, VOCAB, "float32", audio_ids=AUDIO_IDS,
                max_position_embeddings=128)  # fmt: skip
    assert read_config(tmp_path / "saved")[0] == dataclasses.replace(model, audio=AudioConfig())
    assert_same(load_params(tmp_path / "saved", model, VOCAB, None, "float32"), params)

    theirs = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "saved", attn_implementation="eager"
    ).eval()
    frames = 21
    count = audio_encoder.token_count(frames)
    tokens = np.array([[3, 9, 45, *[46] * count, 47, 12, 5]])
    features = np.random.default_rng(0).normal(0.3, 0.6, (1, frames, 8)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(tokens), attention_mask=torch.ones(tokens.shape, dtype=int),
            input_features=torch.tensor(features.swapaxes(1, 2)),
            feature_attention_mask=torch.ones((1, frames), dtype=int),
        ).logits.numpy()

    @jax.jit
    def scores(params):
        sound, counts = audio_encoder.audio_embeddings(
            params["audio"], ENCODER, features, np.array([frames])
        )
        inputs = audio_encoder.merge(params["embed"][tokens], tokens, 46, sound, counts)
        hidden = decoder.hidden_states(params, model, jnp.array(tokens), embeddings=inputs)
        return decoder.logits(params, hidden)

    assert relative(scores(params), expected) < 1e-3


@pytest.mark.parametrize("whole", [False, True], ids=["thinker", "whole"])
def test_what_an_omni_checkpoint_has_besides_stays(whole, tmp_path, random_params):
    source = tmp_path / "source"
    thinker().save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    if whole:
        state = safetensors.torch.load_file(source / SINGLE)
        state = {f"thinker.{name}": value for name, value in state.items()}
        safetensors.torch.save_file(state | {"talker.a.weight": torch.ones(2)}, source / SINGLE)
        config = json.loads((source / "config.json").read_text())
        config = {"model_type": "qwen2_5_omni", "thinker_config": config, "talker_config": {}}
        (source / "config.json").write_text(json.dumps(config))
    with_audio = dataclasses.replace(OMNI, audio=ENCODER)
    params = random_params(with_audio, VOCAB, 13)
    save_params(tmp_path / "saved", params, with_audio, VOCAB, "float32", audio_ids=AUDIO_IDS,
                tokenizer_files=source)  # fmt: skip
    before, after = open_tensors(source), open_tensors(tmp_path / "saved")
    assert before.keys() == after.keys()
    assert any("talker" in name for name in after) == whole
    for name, value in before.items():
        kept = "visual" in name or "talker" in name or "audio_bos_eos" in name
        assert np.array_equal(value, after[name]) == kept, name
    with pytest.warns(UserWarning, match="vision, talker"):
        assert_same(load_params(tmp_path / "saved", with_audio, VOCAB, None, "float32"), params)


def test_an_audio_encoder_on_another_decoder_is_no_model_of_theirs(tmp_path, random_params):
    model = dataclasses.replace(SMALL, audio=ENCODER)
    params = random_params(model, VOCAB, 14)
    with pytest.raises(ValueError, match="qk_norm = True: a policy that hears"):
        save_params(tmp_path / "saved", params, model, VOCAB, audio_ids=AUDIO_IDS)
    assert not (tmp_path / "saved").exists()


# ---- writing --------------------------------------------------------------------------------


@pytest.mark.parametrize("max_shard_bytes", [10**9, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_back_every_bit(case, dtype, max_shard_bytes, checkpoint, tmp_path):
    original = checkpoint(case, dtype)
    params = load_params(original, CASES[case], VOCAB, None, dtype)

    saved = tmp_path / "saved"
    save_params(saved, params, CASES[case], VOCAB, dtype, max_shard_bytes,
                max_position_embeddings=128)  # fmt: skip

    assert (saved / INDEX).exists() == (max_shard_bytes == SEVERAL)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        saved, output_loading_info=True
    )
    assert not any(report.values()), report
    theirs, expected = model.state_dict(), their_model(case, dtype).state_dict()
    assert theirs.keys() == expected.keys()
    for name, value in expected.items():
        assert theirs[name].dtype == value.dtype and torch.equal(theirs[name], value), name
    wanted, found = their_model(case, dtype).config.to_dict(), model.config.to_dict()
    own = {"architectures", "_name_or_path", "max_window_layers", "head_dim"}
    assert {k: v for k, v in found.items() if k not in own} == {
        k: v for k, v in wanted.items() if k not in own
    }
    assert read_config(saved) == (CASES[case], VOCAB)
    assert_same(load_params(saved, CASES[case], VOCAB, None, dtype), params)


@pytest.mark.parametrize("max_shard_bytes", [10**9, SEVERAL, 0])
def test_files_are_proper_safetensors(max_shard_bytes, tmp_path, random_params):
    save_params(tmp_path / "saved", random_params(SMALL, VOCAB, 4), SMALL, VOCAB, "bfloat16",
                max_shard_bytes)  # fmt: skip
    files = sorted((tmp_path / "saved").glob("*.safetensors"))
    names = {}
    for path in files:
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            names |= dict.fromkeys(file.keys(), path.name)
            size = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
            assert size <= max_shard_bytes or len(file.keys()) == 1
    assert names.keys() == open_tensors(tmp_path / "saved").keys()
    if len(files) > 1:
        index = json.loads((tmp_path / "saved" / INDEX).read_text())
        assert index["weight_map"] == names
        total = sum(x.nbytes for x in open_tensors(tmp_path / "saved").values())
        assert index["metadata"]["total_size"] == total


def test_rounding_to_bfloat16_is_to_the_nearest(tmp_path, random_params):
    params = random_params(SMALL, VOCAB, 5)
    save_params(tmp_path / "saved", params, SMALL, VOCAB)
    saved = open_tensors(tmp_path / "saved")["model.embed_tokens.weight"].astype(np.float32)
    expected = torch.tensor(params["embed"]).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(saved, expected)


@pytest.mark.parametrize("axis", [-1, -2, -4])
def test_sharded_parameters_are_saved_alike(axis, tmp_path, random_params):
    params = random_params(EVEN, VOCAB, 6)
    save_params(tmp_path / "whole", params, EVEN, VOCAB)
    split = jax.tree.map(jax.device_put, params, shardings_of(EVEN, axis))
    save_params(tmp_path / "split", split, EVEN, VOCAB)
    whole, parts = ((tmp_path / name / SINGLE).read_bytes() for name in ("whole", "split"))
    assert whole == parts
    assert not any(x._npy_value is not None for x in jax.tree.leaves(split))  # no copy is kept


def test_tokenizer_files_come_along(tmp_path, random_params):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md"):
        (source / name).write_text(name)
    save_params(tmp_path / "saved", random_params(SMALL, VOCAB, 7), SMALL, VOCAB,
                tokenizer_files=source)  # fmt: skip
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "config.json", SINGLE, "tokenizer.json", "chat_template.jinja", "generation_config.json"
    }  # fmt: skip
    assert (tmp_path / "saved" / "tokenizer.json").read_text() == "tokenizer.json"
    with pytest.raises(ValueError, match=r"empty.*none of tokenizer\.json"):
        (tmp_path / "empty").mkdir()
        save_params(tmp_path / "again", {}, SMALL, VOCAB, tokenizer_files=tmp_path / "empty")


# ---- errors ---------------------------------------------------------------------------------


def test_all_wrong_tensors_are_in_one_message(checkpoint, fetched):
    folder = checkpoint("qwen3_untied")
    state = safetensors.torch.load_file(folder / SINGLE)
    del state["model.layers.1.self_attn.q_norm.weight"], state["lm_head.weight"]
    state["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    state["model.layers.3.input_layernorm.weight"] = torch.zeros(24)
    state["model.layers.2.mlp.down_proj.weight"] = torch.zeros(40, 24)
    state["model.layers.0.mlp.down_proj.weight"] = torch.zeros(24, 40, dtype=torch.int8)
    safetensors.torch.save_file(state, folder / SINGLE)
    with pytest.raises(ValueError) as error:
        load_params(folder, CASES["qwen3_untied"], VOCAB)
    head, *lines = str(error.value).splitlines()
    assert str(folder) in head and "read_config" in head
    assert [line.strip() for line in lines] == [
        "missing lm_head.weight: expected (50, 24), found none",
        "quantised model.layers.0.mlp.down_proj.weight: expected float64/float32/float16/bfloat16,"
        " found int8",
        "surplus model.layers.0.self_attn.q_proj.bias: expected none, found (32,)",
        "missing model.layers.1.self_attn.q_norm.weight: expected (8,), found none",
        "mis-shaped model.layers.2.mlp.down_proj.weight: expected (24, 40), found (40, 24)",
        "surplus model.layers.3.input_layernorm.weight: expected none, found (24,)",
    ]
    assert fetched == []


def test_a_config_that_only_seems_to_fit_is_refused(checkpoint):
    # The tensors have the same shapes with heads and head_dim swapped, and with any theta.
    config = dataclasses.replace(
        SMALL, num_heads=2, num_kv_heads=1, head_dim=16, rope_theta=1e4, scan_layers=False
    )
    with pytest.raises(ValueError) as error:
        load_params(checkpoint("qwen3_tied"), config, VOCAB)
    assert "num_heads = 2, but the checkpoint's config.json says 4" in str(error.value)
    assert "rope_theta = 10000.0" in str(error.value)
    assert "scan_layers" not in str(error.value)


def test_damaged_files_are_named(checkpoint, tmp_path):
    folder = checkpoint("qwen3_tied", "float32", SEVERAL)
    path = sorted(folder.glob("model-*"))[1]
    data = path.read_bytes()
    for cut, words in ((data[:-1], "bytes, but by its header"), (data[:40], "cut short"),
                       (b"", "cut short"), (data + b"x", "bytes, but by its header"),
                       (b"version https://git-lfs.github.com/spec/v1\n", "no safetensors file"),
                       (data[:8] + b"]" + data[9:], "damaged header")):  # fmt: skip
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=f"{path.name}.*{words}.*download it again"):
            load_params(folder, SMALL, VOCAB)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name}, not there: download"):
        load_params(folder, SMALL, VOCAB)
    for path in folder.glob("model*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor .*safetensors format"):
        load_params(folder, SMALL, VOCAB)


def test_a_folder_without_a_config_is_named(tmp_path):
    for act in (read_config, lambda folder: load_params(folder, SMALL, VOCAB)):
        with pytest.raises(ValueError, match=r"no config\.json: give the folder"):
            act(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json:1: not valid JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "case, fields, message",
    [
        ("qwen3_tied", {"model_type": "llama"}, "model_type = 'llama'.*qwen3, qwen2"),
        ("qwen3_tied", {"model_type": "qwen3_moe"}, "model_type = 'qwen3_moe'"),
        ("qwen3_tied", {"num_experts": 8}, "num_experts = 8"),
        ("qwen3_tied", {"attention_bias": True}, "attention_bias = True"),
        ("qwen3_tied", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (
            "qwen2",
            {
                "layer_types": None, "use_sliding_window": True, "sliding_window": 64,
                "max_window_layers": 2,
            },
            "use_sliding_window = True",
        ),
        ("qwen3_tied", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "'yarn'"),
        ("qwen3_tied", {"rope_scaling": {"type": "linear", "factor": 2.0},
                        "rope_parameters": None, "rope_theta": 1e6}, "rope_type = 'linear'"),
        ("qwen2", {"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e6}}, "'mrope'"),
        ("qwen3_tied", {"rope_parameters": None}, "rope_theta = None: must be given"),
        ("qwen3_tied", {"intermediate_size": None}, "intermediate_size = None: must be given"),
        ("qwen3_tied", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)  # fmt: skip
def test_what_the_decoder_does_not_compute_is_refused(case, fields, message, tmp_path):
    their_model(case).config.save_pretrained(tmp_path)
    edit_config(tmp_path, **fields)
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        read_config(tmp_path)


def test_configs_of_older_transformers(tmp_path):
    their_model("qwen2").config.save_pretrained(tmp_path)
    edit_config(tmp_path, rope_parameters=None, rope_theta=1000, layer_types=None,
                sliding_window=64, use_sliding_window=False, max_window_layers=2)  # fmt: skip
    assert "head_dim" not in json.loads((tmp_path / "config.json").read_text())
    assert read_config(tmp_path) == (CASES["qwen2"], VOCAB)


def test_a_destination_that_holds_something_is_left_alone(tmp_path, random_params):
    params = random_params(SMALL, VOCAB, 8)
    folder = tmp_path / "saved"
    folder.mkdir()
    save_params(folder, params, SMALL, VOCAB)  # an empty one is fine
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="saved: exists already; remove it or choose another"):
        save_params(folder, random_params(SMALL, VOCAB, 9), SMALL, VOCAB)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_nothing_half_written_stays(tmp_path, random_params, monkeypatch):
    params = random_params(SMALL, VOCAB, 10)
    written = []

    def fail(path, tensors, dtype):
        if written:
            raise OSError("No space left on device")
        written.append(path)
        path.write_bytes(b"x")

    (tmp_path / ".saved.partial").mkdir()  # left by a kill
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(tensor_files, "_write_file", fail)
        save_params(tmp_path / "saved", params, SMALL, VOCAB, max_shard_bytes=SEVERAL)
    assert written and list(tmp_path.iterdir()) == []
    save_params(tmp_path / "saved", params, SMALL, VOCAB)
    shutil.rmtree(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_parameters_that_do_not_fit_are_listed(tmp_path, random_params):
    params = random_params(SMALL, VOCAB, 11)
    del params["final_norm"]
    params["layers"]["wq_a"] = np.zeros((3, 24, 4), np.float32)
    with pytest.raises(ValueError) as error:
        save_params(tmp_path / "saved", params, SMALL, VOCAB + 1)
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "['embed']: expected (51, 24), found (50, 24)",
        "['final_norm']: expected (24,), found none",
        "['layers']['wq_a']: expected none, found (3, 24, 4)",
    ]
    config = dataclasses.replace(SMALL, qkv_bias=True)
    with pytest.raises(ValueError, match="qk_norm = True, qkv_bias = True: no Hugging Face model"):
        save_params(tmp_path / "saved", params, config, VOCAB)
    with pytest.raises(ValueError, match="dtype = int8: choose one of float32"):
        save_params(tmp_path / "saved", params, SMALL, VOCAB, "int8")
    assert list(tmp_path.iterdir()) == []
