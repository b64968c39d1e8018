"""The chunked head against plain log-probabilities, in values, gradients and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import token_log_probs

from tarl_jax.config import ModelConfig
from tarl_jax.models import decoder
from tarl_jax.models.head import init_value_params, sampled_log_probs, values

ROWS, LENGTH, WIDTH, VOCAB = 3, 14, 4, 37


def inputs(share, seed=0, tied=True):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH))
    mask = (rng.random((ROWS, LENGTH)) < share).astype(np.float32)
    embed = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    params = {"embed": embed} if tied else {"embed": embed[:1], "head": embed.T.copy()}
    return params, hidden, tokens, mask


def plain(params, hidden, tokens, mask, temperature):
    scores = decoder.logits(params, hidden)[:, :-1]
    return tuple(
        jnp.pad(mask[:, 1:] * x, ((0, 0), (1, 0)))
        for x in token_log_probs(scores, tokens[:, 1:], temperature)
    )


def in_float64(params, hidden, tokens, temperature):
    """Log-probs and entropies of all positions but the first, NumPy."""
    scores = hidden[:, :-1].astype(np.float64) @ params["embed"].T.astype(np.float64) / temperature
    scores -= scores.max(axis=-1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
    return chosen, -(np.exp(log_p) * log_p).sum(axis=-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("chunk_tokens", [1, 9, 1000])
def test_values_equal_numpys_in_float64(temperature, chunk_tokens):
    params, hidden, tokens, mask = inputs(0.4)
    got = sampled_log_probs(params, hidden, tokens, mask, temperature, chunk_tokens)
    for mine, theirs in zip(got, in_float64(params, hidden, tokens, temperature), strict=True):
        np.testing.assert_allclose(mine[:, 1:], mask[:, 1:] * theirs, rtol=2e-5, atol=2e-6)
        assert not mine[:, 0].any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("chunk_tokens", [3, 12, 1000])
def test_gradients_equal_the_plain_ones(chunk_tokens, share, tied):
    params, hidden, tokens, mask = inputs(share, tied=tied)
    weights = np.random.default_rng(1).normal(size=(2, ROWS, LENGTH))

    def loss(params, hidden, function):
        log_probs, entropy = function(params, hidden, tokens, mask, 0.7)
        return jnp.sum(weights[0] * jnp.exp(log_probs) + weights[1] * entropy**2)

    chunked = functools.partial(sampled_log_probs, chunk_tokens=chunk_tokens)
    mine, theirs = (
        jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)(params, hidden, function)
        for function in (chunked, plain)
    )
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_positions_that_do_not_count_may_hold_anything():
    params, hidden, tokens, mask = inputs(0.4)
    predicts = np.pad(mask[:, 1:], ((0, 0), (0, 1))) > 0
    wild = np.where(predicts[..., None], hidden, 1e30).astype(np.float32)
    for a, b in zip(
        sampled_log_probs(params, hidden, tokens, mask, 1.0, 6),
        sampled_log_probs(params, wild, tokens, mask, 1.0, 6),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_uniform_scores_have_entropy_log_v():
    params, hidden, tokens, mask = inputs(1.0)
    log_probs, entropy = sampled_log_probs(params, 0 * hidden, tokens, mask, 0.3)
    np.testing.assert_allclose(entropy[:, 1:], np.log(VOCAB), rtol=1e-5)
    np.testing.assert_allclose(log_probs[:, 1:], -np.log(VOCAB), rtol=1e-5)


def test_large_scores_stay_finite():
    params = {"embed": np.array([[1e4], [0.0], [-1e4]], np.float32)}
    ones = np.ones((1, 2), np.float32)
    log_probs, entropy = sampled_log_probs(params, ones[..., None], np.array([[0, 2]]), ones, 1.0)
    np.testing.assert_allclose(log_probs, [[0, -2e4]])
    np.testing.assert_allclose(entropy, 0, atol=1e-6)


def shapes_in(jaxpr):
    """Shapes of every value in a program, with the programs inside it."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "jaxpr"):
                yield from shapes_in(inner.jaxpr)


@pytest.mark.parametrize("function, built", [(plain, True), (sampled_log_probs, False)])
def test_scores_of_every_position_are_never_built(function, built):
    params, hidden, tokens, mask = inputs(0.4)
    chunked = functools.partial(function, chunk_tokens=6) if not built else function

    def loss(params, hidden):
        return sum(x.sum() for x in chunked(params, hidden, tokens, mask, 1.0))

    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, hidden)
    largest = max(np.prod(s) for s in shapes_in(program.jaxpr) if s and s[-1] == VOCAB)
    assert (largest >= ROWS * (LENGTH - 1) * VOCAB) == built
    if not built:
        assert largest <= 6 * VOCAB


# ---- values ---------------------------------------------------------------------------------


def test_a_value_model_starts_from_the_policys_trunk_at_zero(random_params):
    model = ModelConfig(d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24,
                        tie_embeddings=False)
    policy = random_params(model, VOCAB, 0)
    params = init_value_params(policy)
    assert "head" not in params and set(params) - {"value_head"} == set(policy) - {"head"}
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 9))
    hidden = decoder.hidden_states(params, model, tokens)
    np.testing.assert_array_equal(hidden, decoder.hidden_states(policy, model, tokens))
    assert not np.any(values(params, hidden))
    weight = np.random.default_rng(1).normal(size=16).astype(np.float32)
    got = values({**params, "value_head": weight}, hidden)
    np.testing.assert_allclose(got, np.asarray(hidden, np.float64) @ weight, rtol=1e-4, atol=1e-5)
    axes = decoder.logical_axes(params)
    assert axes["value_head"] == ("norm",)
