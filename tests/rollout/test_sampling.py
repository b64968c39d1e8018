"""The sampler's draws against the distribution that it draws from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tarl_jax.rollout.sampling import Truncation, sample


def draws(scores, count, temperature=1.0, seed=0, vary="position", **truncation):
    """`count` tokens drawn from one row of scores, and both log-probs said of them."""
    rows = jnp.broadcast_to(jnp.asarray(scores, jnp.float32), (count, len(scores)))
    number, constant = jnp.arange(count, dtype=jnp.uint32), jnp.full(count, seed, jnp.uint32)
    seeds, positions = (constant, number) if vary == "position" else (number, constant)
    keys = jax.vmap(jax.random.key)(seeds)
    out = jax.jit(sample, static_argnums=4)(
        rows, keys, positions, jnp.float32(temperature), Truncation(**truncation)
    )
    return tuple(np.asarray(x) for x in out)


@pytest.mark.parametrize("vocab", [5, 128, 129, 1000])
@pytest.mark.parametrize("temperature, vary", [(0.7, "position"), (1.0, "seed")])
def test_draws_follow_the_distribution(vocab, temperature, vary):
    count = 60_000
    scores = np.random.default_rng(vocab).normal(size=vocab)
    p = np.exp(scores / temperature)
    p /= p.sum()
    tokens, log_probs, _ = draws(scores, count, temperature, vary=vary)
    np.testing.assert_allclose(log_probs, np.log(p)[tokens], rtol=1e-4, atol=1e-5)
    counts = np.bincount(tokens, minlength=vocab)
    assert scipy.stats.chisquare(counts, p * count).pvalue > 1e-3


def test_a_token_without_probability_is_never_drawn():
    scores = np.full(300, -np.inf)
    scores[[0, 127, 128, 200, 299]] = 0.0
    tokens, log_probs, _ = draws(scores, 20_000)
    assert set(tokens.tolist()) == {0, 127, 128, 200, 299}
    np.testing.assert_allclose(log_probs, -np.log(5), rtol=1e-5)


@pytest.mark.parametrize("only", [0, 127, 128, 299])
def test_a_certain_token_is_always_drawn(only):
    scores = np.zeros(300)
    scores[only] = 200.0
    tokens, log_probs, _ = draws(scores, 2000)
    assert (tokens == only).all()
    np.testing.assert_allclose(log_probs, 0.0, atol=1e-6)


def test_draws_depend_on_key_and_position_alone():
    scores = np.random.default_rng(0).normal(size=400)
    tokens, *_ = draws(scores, 50)
    again, *_ = draws(scores, 30)
    np.testing.assert_array_equal(tokens[:30], again)
    other, *_ = draws(scores, 50, seed=1)
    assert (tokens != other).mean() > 0.8


P = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])


@pytest.mark.parametrize("truncation, kept", [
    ({"top_k": 2}, 2),
    ({"top_k": 6}, 6),
    ({"top_k": 1}, 1),
    ({"top_p": 0.5}, 2),  # 0.4 alone is too little
    ({"top_p": 0.64}, 2),
    ({"top_p": 0.7}, 3),
    ({"top_p": 1e-6}, 1),  # one always stays
    ({"min_p": 0.3}, 3),  # at least 0.12
    ({"min_p": 1.0}, 1),
    ({"top_k": 4, "top_p": 0.8}, 3),  # of 0.9: 0.444 + 0.278 = 0.722 is too little
    ({"top_k": 3, "min_p": 0.5}, 2),
], ids=str)
def test_only_what_is_left_is_drawn(truncation, kept):
    order = np.random.default_rng(1).permutation(len(P))
    tokens, log_probs, drawn = draws(np.log(P)[order], 20_000, **truncation)
    p = P[order]
    left = np.isin(np.arange(len(P)), np.argsort(-p)[:kept])
    q = np.where(left, p, 0) / p[left].sum()
    assert set(tokens.tolist()) == set(np.flatnonzero(left).tolist())
    np.testing.assert_allclose(log_probs, np.log(p)[tokens], atol=1e-5)
    np.testing.assert_allclose(drawn, np.log(q[tokens]), atol=1e-5)
    counts = np.bincount(tokens, minlength=len(P))[left]
    assert kept == 1 or scipy.stats.chisquare(counts, q[left] * len(tokens)).pvalue > 1e-3


def test_ties_with_the_last_of_the_likeliest_stay():
    tokens, _, drawn = draws(np.log([0.4, 0.2, 0.2, 0.2]), 5000, top_k=2)
    assert set(tokens.tolist()) == {0, 1, 2, 3}
    assert drawn.max() == pytest.approx(np.log(0.4), abs=1e-5)


def test_without_truncation_both_log_probs_are_the_same():
    _, log_probs, drawn = draws(np.random.default_rng(0).normal(size=300), 100)
    np.testing.assert_array_equal(log_probs, drawn)


def test_a_single_choice_is_drawn_with_certainty():
    """Its log-prob there is 0 exactly, by which the loss knows it, whatever the policy's own."""
    scores = jnp.array(np.random.default_rng(0).normal(0, 30, (6, 300)), jnp.float32)
    keys, positions = jax.random.split(jax.random.key(0), 6), jnp.arange(6)
    allowed = jnp.arange(300) == jnp.arange(6)[:, None] * 7
    for more in ({"allowed": allowed}, {"truncation": Truncation(top_k=1)}):
        token, log_prob, drawn = sample(scores, keys, positions, 0.7, **more)
        np.testing.assert_array_equal(drawn, 0)
    assert not np.any(np.asarray(drawn) < 0) and np.all(np.asarray(log_prob) <= 0)
    token, log_prob, _ = sample(scores, keys, positions, 0.7, allowed=allowed)
    assert token.tolist() == [0, 7, 14, 21, 28, 35] and np.all(np.asarray(log_prob) < -1)


def test_temperature_zero_takes_the_likeliest_of_what_is_allowed():
    scores = jnp.asarray(np.random.default_rng(3).normal(size=(5, 300)), jnp.float32)
    scores = scores.at[0, 7].set(9.0).at[0, 40].set(9.0)  # the first of equals
    keys, positions = jax.random.split(jax.random.key(0), 5), jnp.arange(5)
    token, log_prob, drawn = sample(scores, keys, positions, 0.0)
    assert token.tolist() == np.argmax(scores, axis=1).tolist() and token[0] == 7
    p = np.asarray(scores, np.float64)
    expected = p.max(axis=1) - np.log(np.exp(p).sum(axis=1))  # of temperature 1
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
    np.testing.assert_array_equal(drawn, 0)  # it was certain
    even = (jnp.arange(300) % 2 == 0) & jnp.ones((5, 1), bool)
    token, *_ = sample(scores, keys, positions, 0.0, allowed=even)
    assert token.tolist() == np.argmax(np.where(even, scores, -np.inf), axis=1).tolist()


def test_every_row_has_its_own_temperature_and_truncation():
    """Rows of one call are drawn as each alone is."""
    rng = np.random.default_rng(4)
    scores = jnp.asarray(rng.normal(size=(6, 200)), jnp.float32)
    keys, positions = jax.random.split(jax.random.key(1), 6), jnp.arange(6)
    temperature = np.array([0, 0.5, 1, 1, 1, 2], np.float32)
    cuts = [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.4, 0.0), (0, 1.0, 0.3), (9, 0.9, 0.01), (1, 1, 0)]
    together = sample(
        scores, keys, positions, temperature,
        Truncation(*(jnp.asarray(x) for x in zip(*cuts, strict=True))),
    )
    for row, cut in enumerate(cuts):
        at = slice(row, row + 1)
        alone = sample(scores[at], keys[at], positions[at], float(temperature[row]),
                       Truncation(*cut))
        for x, y in zip(together, alone, strict=True):
            np.testing.assert_allclose(x[row], y[0], rtol=1e-5, atol=1e-6)
