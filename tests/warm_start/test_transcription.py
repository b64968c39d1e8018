"""Transcription: the loss against CTC summed path by path, and what is said of clips."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest
from small_encoder import small_encoder

from tarl_jax.config import ModelConfig
from tarl_jax.models import audio_encoder, decoder
from tarl_jax.warm_start import clips, transcription
from tarl_jax.warm_start.demonstrations import Transcript

ENCODER = small_encoder(16)
MODEL = ModelConfig(
    d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24, audio=ENCODER
)
VOCAB, PLACEHOLDER = 5, 4


def transcript(samples, text, seed=0):
    rng = np.random.default_rng([seed, samples])
    clip = rng.integers(-9000, 9000, samples).astype(np.int16)
    return Transcript(clip, np.array(text, np.int32))


def batch_of(one, longest):
    """Of one clip, in as many pieces of 0.2 s as it has."""
    return clips.batch_of([(one.clip, one.text)], -(-len(one.clip) // 3200), longest, ENCODER)


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(MODEL, VOCAB, 0)


def collapsed(path):
    return [k for k, _ in itertools.groupby(path) if k != PLACEHOLDER]


def test_the_loss_is_minus_the_log_of_all_paths_that_spell_the_text(params):
    one = transcript(3200 + 1900, [1, 2], seed=1)  # two pieces, 8 tokens
    batch = batch_of(one, longest=4)
    assert batch.silent.tolist() == [[0.0] * 8 + [1.0] * 2]
    assert batch.absent.tolist() == [[0.0, 0.0, 1.0, 1.0]]
    run = jax.jit(transcription.gradient, static_argnums=(0, 1))
    _, loss = run(MODEL, PLACEHOLDER, params, batch)

    encoded, _ = jax.jit(audio_encoder.audio_embeddings, static_argnums=1)(
        params["audio"], ENCODER, audio_encoder.log_mel(_clip(1), 8)[None], np.array([32])
    )
    x = np.asarray(encoded[0], np.float64)
    table = np.asarray(params["embed"], np.float64)
    apart = ((x[:, None] - table) ** 2).sum(-1)
    scores = -transcription.SHARP * apart / (table**2).sum(-1).mean()
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    total = sum(
        np.prod(shares[np.arange(8), list(path)])
        for path in itertools.product((1, 2, PLACEHOLDER), repeat=8) if collapsed(path) == [1, 2]
    )
    assert float(loss) == pytest.approx(-np.log(total) / 2, rel=1e-3)


def test_the_encoder_alone_has_the_same_gradient(params):
    batch = batch_of(transcript(5100, [1, 2], seed=1), longest=4)
    whole, loss = jax.jit(transcription.gradient, static_argnums=(0, 1))(
        MODEL, PLACEHOLDER, params, batch
    )
    encoder, same = jax.jit(transcription.gradient_of_encoder, static_argnums=(0, 1))(
        MODEL, PLACEHOLDER, params, params["audio"], batch
    )
    assert float(loss) == pytest.approx(float(same), rel=1e-6)

    largest = max(np.abs(x).max() for x in jax.tree.leaves(encoder))

    def alike(one, other):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=6e-7 * largest)

    jax.tree.map(alike, encoder, whole["audio"])


def _clip(seed):
    rng = np.random.default_rng([seed, 5100])
    return (rng.integers(-9000, 9000, 5100) / 32768).astype(np.float32)


def test_the_best_path_is_collapsed():
    scores = np.eye(5)[[1, 1, 4, 1, 2, 4, 4, 3, 0]]
    assert transcription.transcribed(scores, 8, PLACEHOLDER) == [1, 1, 2, 3]
    assert transcription.transcribed(scores, 0, PLACEHOLDER) == []


def tones(text):
    """Each token a tone of its own, of 0.3 s."""
    time = np.arange(4800) / 16_000
    parts = [0.3 * np.sin(2 * np.pi * 300 * 2**token * time) for token in text]
    clip = np.rint(np.concatenate(parts) * 32768).astype(np.int16)
    return Transcript(clip, np.array(text, np.int32))


def test_encoder_and_head_learn_to_spell():
    """Tones in every order; the decoder's layers have no part in it."""
    texts = [(a, b) for a in range(4) for b in range(4) if a != b]
    start = decoder.init_params(MODEL, VOCAB, jax.random.key(0))
    optimizer = optax.adam(0.01)
    batches = clips.clip_batches([tones(text) for text in texts], 3.0, ENCODER, seed=[0])

    @jax.jit
    def step(params, state, batch):
        slope, _ = transcription.gradient(MODEL, PLACEHOLDER, params, batch)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state

    learned, state = start, optimizer.init(start)
    for _ in range(600):
        learned, state = step(learned, state, next(batches)())
    jax.tree.map(np.testing.assert_array_equal, learned["layers"], start["layers"])
    for text in texts:
        clip = tones(text)
        batch = batch_of(clip, longest=2)
        scores = transcription.spelling(learned, MODEL, batch)
        said = transcription.transcribed(np.asarray(scores)[0], clip.tokens, PLACEHOLDER)
        assert said == list(text)


def test_what_is_unlike_the_table_by_hand():
    rng = np.random.default_rng(0)
    table, outputs = rng.normal(size=(5, 3)), rng.normal(size=(2, 4, 3))
    scores, silent = rng.normal(size=(2, 4, 5)), np.array([[0, 0, 0, 1], [0, 1, 1, 1]])
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    apart = ((outputs - shares @ table) ** 2).sum(-1)[silent == 0]
    nothing = shares[silent == 0][:, PLACEHOLDER]
    means = [np.average(apart, weights=w) * min(w.sum(), 1) for w in (1 - nothing, nothing)]
    expected = sum(means) / (table**2).sum(-1).mean()
    arrays = [*(np.float32(x) for x in (table, outputs, scores, silent)), PLACEHOLDER]
    np.testing.assert_allclose(transcription.unlikeness(*arrays), expected, rtol=1e-5)
    slopes = jax.grad(transcription.unlikeness, argnums=(0, 1, 2))(*arrays)
    assert not slopes[0].any() and not slopes[2].any() and slopes[1].any()


def test_scores_are_of_distances(params):
    table = np.asarray(params["embed"])
    found = np.asarray(transcription.scores(params, table[[3, 1]]))
    assert found.argmax(-1).tolist() == [3, 1]
    squares = ((table[[3, 1]][:, None] - table) ** 2).sum(-1) / (table**2).sum(-1).mean()
    own = found.max(-1, keepdims=True)
    np.testing.assert_allclose(found - own, -transcription.SHARP * squares, rtol=1e-4, atol=1e-3)


def test_outputs_learn_to_be_entries_and_not_to_lie_beyond_them(params):
    """CTC is content with what lies beyond one; the second term is not."""
    batch = batch_of(transcript(3200, [1, 1]), longest=4)
    table = 3 * np.eye(16)[:VOCAB].astype(np.float32)
    beyond = {**params["audio"], "project": 0 * params["audio"]["project"],
              "project_bias": 2 * jax.numpy.asarray(table[1])}
    run = jax.jit(transcription.gradient_of_encoder, static_argnums=(0, 1))
    slope, _ = run(MODEL, PLACEHOLDER, {**params, "embed": table}, beyond, batch)
    assert slope["project_bias"][1] > 0.1  # downhill is shorter


def test_a_frozen_field_does_not_matter_to_what_is_transcribed(params):
    one = transcript(4000, [1, 2])
    frozen = dataclasses.replace(MODEL, audio=dataclasses.replace(ENCODER, frozen=True))
    batch = batch_of(one, longest=2)
    np.testing.assert_array_equal(
        transcription.spelling(params, MODEL, batch), transcription.spelling(params, frozen, batch)
    )
