"""The sampler's draws against the distribution that it draws from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tarl_jax.rollout.sampling import sample


def draws(scores, count, temperature=1.0, seed=0, vary="position"):
    """`count` tokens drawn from one row of scores, and the log-probs said of them."""
    rows = jnp.broadcast_to(jnp.asarray(scores, jnp.float32), (count, len(scores)))
    number, constant = jnp.arange(count, dtype=jnp.uint32), jnp.full(count, seed, jnp.uint32)
    seeds, positions = (constant, number) if vary == "position" else (number, constant)
    keys = jax.vmap(jax.random.key)(seeds)
    out = jax.jit(sample)(rows, keys, positions, jnp.float32(temperature))
    return tuple(np.asarray(x) for x in out)


@pytest.mark.parametrize("vocab", [5, 128, 129, 1000])
@pytest.mark.parametrize("temperature, vary", [(0.7, "position"), (1.0, "seed")])
def test_draws_follow_the_distribution(vocab, temperature, vary):
    count = 60_000
    scores = np.random.default_rng(vocab).normal(size=vocab)
    p = np.exp(scores / temperature)
    p /= p.sum()
    tokens, log_probs = draws(scores, count, temperature, vary=vary)
    np.testing.assert_allclose(log_probs, np.log(p)[tokens], rtol=1e-4, atol=1e-5)
    counts = np.bincount(tokens, minlength=vocab)
    assert scipy.stats.chisquare(counts, p * count).pvalue > 1e-3


def test_a_token_without_probability_is_never_drawn():
    scores = np.full(300, -np.inf)
    scores[[0, 127, 128, 200, 299]] = 0.0
    tokens, log_probs = draws(scores, 20_000)
    assert set(tokens.tolist()) == {0, 127, 128, 200, 299}
    np.testing.assert_allclose(log_probs, -np.log(5), rtol=1e-5)


@pytest.mark.parametrize("only", [0, 127, 128, 299])
def test_a_certain_token_is_always_drawn(only):
    scores = np.zeros(300)
    scores[only] = 200.0
    tokens, log_probs = draws(scores, 2000)
    assert (tokens == only).all()
    np.testing.assert_allclose(log_probs, 0.0, atol=1e-6)


def test_draws_depend_on_key_and_position_alone():
    scores = np.random.default_rng(0).normal(size=400)
    tokens, _ = draws(scores, 50)
    again, _ = draws(scores, 30)
    np.testing.assert_array_equal(tokens[:30], again)
    other, _ = draws(scores, 50, seed=1)
    assert (tokens != other).mean() > 0.8
