"""Features, audio encoder and merged thinker against Hugging Face's."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarl_jax.config import ModelConfig
from tarl_jax.models import audio_encoder, decoder

transformers = pytest.importorskip(
    "transformers", reason="the comparison needs transformers (the test extra)"
)
torch = pytest.importorskip("torch", reason="the comparison needs torch (the test extra)")

SMALL = audio_encoder.AudioConfig(
    num_mel_bins=12,
    d_model=16,
    encoder_layers=2,
    encoder_attention_heads=4,
    encoder_ffn_dim=24,
    n_window=6,
    max_source_positions=40,
    output_dim=20,
)
ENCODERS = {
    "small": SMALL,
    # Pairs of the average cross the ends of chunks; one head; heads as wide as the model.
    "odd_window": dataclasses.replace(SMALL, n_window=5, encoder_attention_heads=1),
    "two_seconds": dataclasses.replace(SMALL, n_window=100, max_source_positions=1500),
}

audio_embeddings = jax.jit(audio_encoder.audio_embeddings, static_argnums=1)
log_mel = jax.jit(audio_encoder.log_mel)
merge = jax.jit(audio_encoder.merge, static_argnums=2)


def relative(ours, theirs) -> float:
    """Largest difference over the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# ---- features -------------------------------------------------------------------------------


def speech(samples: int, seed: int) -> np.ndarray:
    """A gliding voice with harmonics and syllables over a little noise, float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / audio_encoder.SAMPLE_RATE
    phase = 2 * np.pi * (rng.uniform(90, 250) * time + rng.uniform(-30, 60) * time**2)
    voice = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 12))
    syllables = np.maximum(np.sin(2 * np.pi * 4 * time + rng.uniform(0, 6)), 0.0)
    wave = 0.15 * voice * syllables + 0.003 * rng.standard_normal(samples)
    return wave.astype(np.float32)


def clip_that_ends_in_a_click() -> np.ndarray:
    """Its largest power lies in the frame centred at its end, which is not returned."""
    wave = 0.001 * speech(160 * 40, 5)
    wave[: 160 * 20] = 0.0
    wave[-12:] = 0.9
    return wave


CLIPS = {
    "1.2 s": speech(19_237, 0),
    "whole hops": speech(160 * 77, 1),
    "0.4 s": speech(6_401, 2),
    "one sample more than a window": speech(401, 3),
    "less than half a window": speech(131, 4),
    "click at the end": clip_that_ends_in_a_click(),
    "silence": np.zeros(1_000, np.float32),
}


@pytest.fixture(scope="module")
def extracted() -> dict[str, np.ndarray]:
    """[frames, bins] of each clip as Qwen2.5-Omni's processor has it: padded, then masked."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=128, chunk_length=3)
    found = extractor(
        list(CLIPS.values()),
        sampling_rate=audio_encoder.SAMPLE_RATE,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="np",
    )
    rows = zip(found["input_features"], found["attention_mask"], strict=True)
    return {
        name: features[:, mask.astype(bool)].T
        for name, (features, mask) in zip(CLIPS, rows, strict=True)
    }


@pytest.mark.parametrize("name", CLIPS)
def test_log_mel_equals_whispers(name, extracted):
    ours = log_mel(CLIPS[name])
    assert ours.shape == extracted[name].shape == (audio_encoder.frame_count(len(CLIPS[name])), 128)
    np.testing.assert_allclose(ours, extracted[name], atol=1e-4, rtol=0)


def test_log_mel_of_rows_padded_with_zeros(extracted):
    # Every row has its own largest value, and none sees what is padded.
    length = max(map(len, CLIPS.values()))
    rows = np.stack([np.pad(clip, (0, length - len(clip))) for clip in CLIPS.values()])
    for name, features in zip(CLIPS, log_mel(rows), strict=True):
        frames = audio_encoder.frame_count(len(CLIPS[name]))
        np.testing.assert_allclose(features[:frames], extracted[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("bins", [80, 128])
def test_mel_filters_equal_transformers(bins):
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    ours = audio_encoder.mel_filters(bins)
    np.testing.assert_allclose(ours, extractor.mel_filters, atol=1e-8, rtol=1e-6)


# ---- the encoder ----------------------------------------------------------------------------


def randomise(model, spread: float = 0.2):
    """Every weight random and in float32, so that each of them matters."""
    torch.manual_seed(0)
    model = model.float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            norm = name.endswith(("norm.weight", "ln_post.weight"))
            weight.normal_(1.0 if norm else 0.0, spread)
    return model


def hugging_face_encoder(config: audio_encoder.AudioConfig):
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    settings = omni.Qwen2_5OmniAudioEncoderConfig(**dataclasses.asdict(config))
    settings._attn_implementation = "eager"
    return randomise(omni.Qwen2_5OmniAudioEncoder(settings))


def ours_of(config: audio_encoder.AudioConfig, encoder) -> decoder.Params:
    weights = {name: weight.detach().numpy() for name, weight in encoder.named_parameters()}
    return audio_encoder.from_hugging_face(config, weights.__getitem__)


def by_hugging_face(encoder, features: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """[tokens, out] of each row."""
    real = np.arange(features.shape[1]) < lengths[:, None]
    lengths = torch.tensor(lengths)
    counts = encoder._get_feat_extract_output_lengths(lengths)
    with torch.no_grad():
        found = encoder(
            torch.tensor(features[real].T), feature_lens=lengths, aftercnn_lens=counts[0]
        )
    return [x.numpy() for x in found.last_hidden_state.split(counts[1].tolist())]


@pytest.fixture(scope="module", params=ENCODERS)
def encoders(request):
    """(config, Hugging Face's encoder, the same weights as our tree)."""
    config = ENCODERS[request.param]
    encoder = hugging_face_encoder(config)
    return config, encoder, ours_of(config, encoder)


def lengths_around(chunk: int) -> np.ndarray:
    """Whole chunks, one frame more and less, odd tails, a single pair, and nearly nothing."""
    return np.array([3 * chunk, 2 * chunk + 3, 2 * chunk + 1, 2 * chunk - 1, chunk, 7, 3, 2, 1])


def random_features(config: audio_encoder.AudioConfig, rows: int, frames: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.normal(0.3, 0.6, (rows, frames, config.num_mel_bins)).astype(np.float32)


def test_encoder_equals_hugging_face(encoders):
    config, encoder, params = encoders
    lengths = lengths_around(2 * config.n_window)
    features = random_features(config, len(lengths), lengths.max())
    theirs = by_hugging_face(encoder, features, lengths)
    ours, counts = audio_embeddings(params, config, features, lengths)
    assert counts.tolist() == [len(x) for x in theirs]
    assert ours.shape == (len(lengths), max(counts), config.output_dim)
    for row, wanted in zip(ours, theirs, strict=True):
        if len(wanted):
            assert relative(row[: len(wanted)], wanted) < 1e-4
        assert not np.any(row[len(wanted) :])


def test_padding_and_other_rows_change_nothing(encoders):
    config, _, params = encoders
    lengths = lengths_around(2 * config.n_window)[1:]
    features = random_features(config, len(lengths), lengths.max())
    together, counts = audio_embeddings(params, config, features, lengths)
    rng = np.random.default_rng(2)
    for more in (3, 2 * config.n_window):
        padded = 50 * rng.standard_normal((len(lengths), lengths.max() + more, SMALL.num_mel_bins))
        for row, length in enumerate(lengths):
            padded[row, :length] = features[row, :length]
        longer, same = audio_embeddings(params, config, padded[::-1], lengths[::-1])
        assert same.tolist() == counts.tolist()[::-1]
        np.testing.assert_allclose(
            longer[::-1, : together.shape[1]], together, rtol=1e-5, atol=1e-5
        )
        assert not np.any(longer[:, together.shape[1] :])


def test_bfloat16_stays_bfloat16_and_close():
    params = ours_of(SMALL, hugging_face_encoder(SMALL))
    lengths = lengths_around(2 * SMALL.n_window)[:3]
    features = random_features(SMALL, 3, lengths.max())
    full, _ = audio_embeddings(params, SMALL, features, lengths)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    ours, _ = audio_embeddings(half, SMALL, features, lengths)
    assert ours.dtype == jnp.bfloat16
    assert 1e-5 < relative(ours, full) < 0.1


def test_counts_equal_hugging_face():
    encoder = hugging_face_encoder(SMALL)
    frames = np.arange(1, 700)
    theirs = encoder._get_feat_extract_output_lengths(torch.tensor(frames))[1].numpy()
    np.testing.assert_array_equal(audio_encoder.token_count(frames), theirs)
    assert [audio_encoder.token_count(int(n)) for n in frames] == theirs.tolist()
    assert audio_encoder.token_count(0) == audio_encoder.frame_count(0) == 0


def test_every_weight_of_the_tower_is_used():
    encoder = hugging_face_encoder(SMALL)
    theirs = {name for name, _ in encoder.named_parameters()}
    names = [name for group in audio_encoder.hugging_face_names(SMALL).values() for name in group]
    assert len(names) == len(set(names))
    assert set(names) == theirs - {"audio_bos_eos_token.weight"}
    tree = ours_of(SMALL, encoder)
    paths = {
        "/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert paths == audio_encoder.hugging_face_names(SMALL).keys()


def test_initial_tree_has_the_shapes_and_the_stated_spread():
    config = dataclasses.replace(SMALL, d_model=64, encoder_ffn_dim=80, encoder_layers=8)
    params = audio_encoder.init_audio_params(config, jax.random.key(0))
    loaded = ours_of(config, hugging_face_encoder(config))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, loaded)
    layers = params["layers"]
    queries, keys = audio_encoder.local_projections(config)
    drawn = {**layers, "wq": layers["wq"] - queries, "wk": layers["wk"] - keys}
    for name in ("wq", "wk", "wv", "w_up"):
        assert np.std(drawn[name]) == pytest.approx(0.02, rel=0.05)
    for name in ("wo", "w_down"):
        assert np.std(layers[name]) == pytest.approx(0.02 / 4, rel=0.05)
    for name, inputs in (("conv1", 3 * config.num_mel_bins), ("conv2", 3 * 64)):
        assert np.std(params[name]) == pytest.approx((2 / inputs) ** 0.5, rel=0.05)
    assert np.all(layers["mlp_norm"] == 1) and not np.any(layers["mlp_norm_bias"])
    assert not np.allclose(drawn["wq"], drawn["wk"])
    # Queries of the decoder are drawn from another stream, also with the same key.
    twin = jax.random.normal(decoder.named_key(jax.random.key(0), "wq"), layers["wq"].shape)
    assert not np.allclose(drawn["wq"], 0.02 * twin)


def test_heads_begin_by_looking_at_one_distance_each():
    """Of the sinusoids alone: where each position's largest score is, and how large."""
    config = dataclasses.replace(
        SMALL, d_model=128, encoder_attention_heads=4, encoder_layers=2, n_window=200
    )
    queries, keys = audio_encoder.local_projections(config)
    places = audio_encoder.sinusoids(200, 128)
    q, k = (np.einsum("cd,ldnh->lnch", places, of) for of in (queries, keys))
    scores = np.einsum("lnch,lnsh->lncs", q, k) / 32**0.5
    at = np.arange(50, 150)
    for layer, distances in enumerate(((-9, -3, 3, 9), (-18, -6, 6, 18))):
        for head, distance in enumerate(distances):
            np.testing.assert_array_equal(scores[layer, head, at].argmax(-1), at + distance)
    np.testing.assert_allclose(scores[:, :, at].max(-1), audio_encoder.PEAK, rtol=1e-4)
    single = dataclasses.replace(config, d_model=4, encoder_attention_heads=4)
    assert not np.any(audio_encoder.local_projections(single))  # too narrow for a sine and a cosine
    far = np.abs(at[:, None] - np.arange(200)) > 40
    assert scores[:, :, at][..., far].max() < audio_encoder.PEAK - 3


def test_a_wrong_config_is_named():
    encoder = hugging_face_encoder(SMALL)
    with pytest.raises(ValueError, match=r"fc1\.weight has shape \(24, 16\).*config\.json"):
        ours_of(dataclasses.replace(SMALL, encoder_ffn_dim=25), encoder)


# ---- the merge with text --------------------------------------------------------------------

AUDIO, PAD = 47, 0
VOCAB = 50


def test_merge_puts_embeddings_in_order():
    tokens = np.array([[1, AUDIO, AUDIO, 2, AUDIO, 3], [AUDIO, 4, 5, PAD, PAD, PAD], [6] * 6])
    text = -np.arange(1.0, 19.0, dtype=np.float32).reshape(3, 6, 1).repeat(2, axis=2)
    clips = np.arange(10.0, 22.0, dtype=np.float32).reshape(3, 4, 1).repeat(2, axis=2)
    merged = merge(text, tokens, AUDIO, clips, np.array([3, 1, 0]))
    np.testing.assert_array_equal(merged[..., 0], merged[..., 1])
    np.testing.assert_array_equal(
        merged[..., 0],
        [[-1, 10, 11, -4, 12, -6], [14, -8, -9, -10, -11, -12], [-13, -14, -15, -16, -17, -18]],
    )


def test_merge_marks_rows_whose_placeholders_do_not_match():
    tokens = np.array([[1, AUDIO, AUDIO], [1, AUDIO, AUDIO], [1, AUDIO, AUDIO], [1, 2, 3]])
    text, clips = np.ones((4, 3, 2), np.float32), np.ones((4, 4, 2), np.float32)
    merged = np.array(merge(text, tokens, AUDIO, clips, np.array([2, 1, 3, 1])))
    assert np.isfinite(merged).all(axis=(1, 2)).tolist() == [True, False, False, False]


def test_clips_are_joined_in_order():
    clips = np.arange(1.0, 13.0, dtype=np.float32).reshape(2, 3, 2, 1)
    joined, counts = jax.jit(audio_encoder.join_clips)(clips, np.array([[1, 2, 0], [0, 0, 1]]))
    assert counts.tolist() == [3, 1]
    np.testing.assert_array_equal(joined[..., 0], [[1, 3, 4, 0, 0, 0], [11, 0, 0, 0, 0, 0]])


def hugging_face_thinker(config: ModelConfig, encoder: audio_encoder.AudioConfig):
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    half = config.head_dim // 2
    settings = omni.Qwen2_5OmniThinkerConfig(
        audio_config=dataclasses.asdict(encoder),
        vision_config=dict(
            depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=config.d_model
        ),
        text_config=dict(
            vocab_size=VOCAB,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=128,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "mrope_section": [half // 4, half - 2 * (half // 4), half // 4],
            },
            tie_word_embeddings=False,
        ),
        audio_token_index=AUDIO,
        vision_start_token_id=44,
        image_token_index=48,
        video_token_index=49,
        audio_start_token_id=45,
        audio_end_token_id=46,
        pad_token_id=PAD,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return randomise(omni.Qwen2_5OmniThinkerForConditionalGeneration(settings))


def decoder_params(config: ModelConfig, weights: dict[str, np.ndarray]) -> decoder.Params:
    def stack(name: str, *shape: int) -> np.ndarray:
        layers = (weights[f"layers.{i}.{name}"] for i in range(config.num_layers))
        return np.stack([x.T.reshape(shape) for x in layers])

    c = config
    layers = {
        "attn_norm": stack("input_layernorm.weight", c.d_model),
        "mlp_norm": stack("post_attention_layernorm.weight", c.d_model),
        "wo": stack("self_attn.o_proj.weight", c.num_heads, c.head_dim, c.d_model),
        "w_gate": stack("mlp.gate_proj.weight", c.d_model, c.d_ff),
        "w_up": stack("mlp.up_proj.weight", c.d_model, c.d_ff),
        "w_down": stack("mlp.down_proj.weight", c.d_ff, c.d_model),
    }
    for x, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
        layers[f"w{x}"] = stack(f"self_attn.{x}_proj.weight", c.d_model, heads, c.head_dim)
        layers[f"b{x}"] = stack(f"self_attn.{x}_proj.bias", heads, c.head_dim)
    return {
        "embed": weights["embed_tokens.weight"],
        "layers": layers,
        "final_norm": weights["norm.weight"],
        "head": weights["lm_head.weight"].T,
    }


def test_thinker_equals_hugging_face():
    """Rows with two clips, one and none, right-padded: from features to logits."""
    config = ModelConfig(d_model=20, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=10,
                         d_ff=24, rope_theta=1e4, rms_norm_eps=1e-6, qk_norm=False, qkv_bias=True,
                         tie_embeddings=False)  # fmt: skip
    model = hugging_face_thinker(config, SMALL)
    weights, tower = {}, {}
    for name, weight in model.named_parameters():
        name = name.removeprefix("model.")
        if name.startswith("audio_tower."):
            tower[name.removeprefix("audio_tower.")] = weight.detach().numpy()
        else:
            weights[name.removeprefix("language_model.")] = weight.detach().numpy()

    lengths = np.array([[31, 13], [24, 0], [0, 0]])  # mel frames of each row's clips
    rng = np.random.default_rng(3)
    tokens, real = np.full((3, 40), PAD), np.zeros((3, 40), int)
    for row, clips in enumerate(lengths):
        ids = rng.integers(1, 44, 5).tolist()
        for frames in filter(None, clips):
            ids += [45, *[AUDIO] * audio_encoder.token_count(int(frames)), 46]
            ids += rng.integers(1, 44, 4).tolist()
        tokens[row, : len(ids)], real[row, : len(ids)] = ids, 1
    features = rng.normal(0.3, 0.6, (6, lengths.max(), SMALL.num_mel_bins)).astype(np.float32)

    present = lengths.ravel() > 0
    mask = np.arange(lengths.max()) < lengths.ravel()[:, None]
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(real),
            input_features=torch.tensor(features[present].swapaxes(1, 2)),
            feature_attention_mask=torch.tensor(mask[present].astype(int)),
        ).logits.numpy()

    @jax.jit
    def scores(params, encoder):
        encoded, counts = audio_encoder.audio_embeddings(encoder, SMALL, features, lengths.ravel())
        encoded = encoded.reshape(*lengths.shape, *encoded.shape[1:])
        encoded, counts = audio_encoder.join_clips(encoded, counts.reshape(lengths.shape))
        inputs = audio_encoder.merge(params["embed"][tokens], tokens, AUDIO, encoded, counts)
        hidden = decoder.hidden_states(params, config, jnp.array(tokens), embeddings=inputs)
        return decoder.logits(params, hidden)

    params = jax.tree.map(jnp.array, decoder_params(config, weights))
    ours = np.array(scores(params, audio_encoder.from_hugging_face(SMALL, tower.__getitem__)))
    for row in range(len(tokens)):
        used = real[row] > 0
        assert relative(ours[row, used], theirs[row, used]) < 1e-3
