"""Rollouts with weights and caches in int8: the rounding by NumPy, and tokens those of what was
rounded."""

import dataclasses

import jax
import numpy as np
import pytest
from reference import token_log_probs
from scripted import CONFIG, MODEL, STOP, TEMPERATURE, VOCAB, Scripted, play_plainly

from tarl_jax.config import from_config_dict
from tarl_jax.models import decoder
from tarl_jax.models.hf_config import completed
from tarl_jax.models.quantised import WEIGHTS, quantised
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout.engine import Engine


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(MODEL, VOCAB, 0)


def rounded(params):
    """float64, by hand: each output's largest weight is 127 steps."""
    layers = dict(params["layers"])
    for name in WEIGHTS:
        wide = np.asarray(layers[name], np.float64)
        inputs = (1, 2) if name == "wo" else (1,)
        scale = np.abs(wide).max(axis=inputs, keepdims=True) / 127
        layers[name] = (np.rint(wide / scale) * scale).astype(np.float32)
    return {**params, "layers": layers}


def test_weights_are_the_nearest_of_255_steps(params):
    found, wanted = quantised(params, "float32")["layers"], rounded(params)["layers"]
    for name in WEIGHTS:
        whole, scale = np.asarray(found[name]), np.asarray(found[f"{name}_scale"])
        assert whole.dtype == np.int8 and np.abs(whole.astype(int)).max() == 127
        inputs = (1, 2) if name == "wo" else (1,)
        made = whole * np.expand_dims(scale, inputs)
        np.testing.assert_allclose(made, wanted[name], atol=1e-6)
        error = np.abs(made - np.asarray(params["layers"][name])).max()
        assert 0 < error <= scale.max() * 0.501
    assert set(found) - set(params["layers"]) == {f"{name}_scale" for name in WEIGHTS}
    nothing = quantised(jax.tree.map(np.zeros_like, params), "float32")
    assert not np.any(nothing["layers"]["wq"])  # zeros stay zeros


@pytest.mark.parametrize("cache", ["contiguous", "pages"])
def test_tokens_are_those_of_the_rounded_weights(params, cache):
    config = dataclasses.replace(CONFIG, slots=4, cache=cache, quantise="int8")
    engine = Engine(MODEL, config, STOP, make_mesh(devices=jax.devices()[:1]))
    episodes = [Scripted(seed, 20 + seed, [5, 9]) for seed in range(4)]
    engine.run(params, episodes, TEMPERATURE)
    twin = play_plainly(rounded(params), episodes[0], TEMPERATURE)
    assert episodes[0].sampled_ids == twin.sampled_ids
    off, exact = (gap(weights, episodes) for weights in (params, rounded(params)))
    assert exact < 1e-4 < off < 0.5  # what the rounding makes of the sampler, and nothing else


@pytest.mark.parametrize("cache", ["contiguous", "pages"])
def test_keys_and_values_are_those_that_were_rounded(params, cache, monkeypatch):
    """Against a full forward pass whose keys and values NumPy's formula rounds."""
    config = dataclasses.replace(CONFIG, slots=4, cache=cache, quantise="int8_cache")
    engine = Engine(MODEL, config, STOP, make_mesh(devices=jax.devices()[:1]))
    plain = Engine(MODEL, dataclasses.replace(config, quantise=""), STOP,
                   make_mesh(devices=jax.devices()[:1]))
    of_float32 = 4 * MODEL.head_dim
    ratio = engine.programs.cache_bytes()[0] / plain.programs.cache_bytes()[0]
    assert ratio == (MODEL.head_dim + 4) / of_float32  # a byte a number, and a scale
    episodes = [Scripted(seed, 20 + seed, [5, 9]) for seed in range(4)]
    engine.run(params, episodes, TEMPERATURE)
    off = gap(params, episodes)
    attend = decoder.causal_attention

    def rounding(q, k, v, *rest):
        def near(x):
            step = abs(x).max(axis=-1, keepdims=True) / 127
            return (x / step).round() * step

        return attend(q, near(k), near(v), *rest)

    monkeypatch.setattr(decoder, "causal_attention", rounding)
    exact = gap(params, episodes)
    assert exact < 1e-4 < off < 0.1


def recomputed(params, tokens):
    scores = decoder.logits(params, decoder.hidden_states(params, MODEL, tokens))
    return token_log_probs(scores[:, :-1], tokens[:, 1:], TEMPERATURE)[0]


def gap(params, episodes):
    """The largest difference of a sampled token's log-prob from that of a full forward pass."""
    sequences = [episode.sequence() for episode in episodes]
    tokens = np.zeros((len(episodes), 128), np.int32)
    for row, (ids, _, _) in enumerate(sequences):
        tokens[row, : len(ids)] = ids
    expected, found = np.asarray(jax.jit(lambda *of: recomputed(*of))(params, tokens)), 0.0
    for row, (_, sampled, log_probs) in enumerate(sequences):
        places = np.flatnonzero(sampled)
        given = np.array(log_probs)[places]
        found = max(found, float(np.abs(given - expected[row, places - 1]).max()))
    return found


def test_importance_weights_are_truncated_where_weights_are_rounded():
    def cap(**given):
        return completed(from_config_dict(given)).rl.tis_cap

    assert (cap(), cap(rollout={"quantise": "int8"})) == (-1, 2)
    assert cap(rollout={"quantise": "int8_cache"}) == cap(rollout={"quantise": "int8_both"}) == 2
    assert cap(rollout={"quantise": "int8"}, rl={"tis_cap": 0.0}) == 0
    assert cap(rl={"tis_cap": 3.0}) == 3
