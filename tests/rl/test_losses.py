"""Losses against values worked by hand and against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarl_jax.rl.losses import clipped_policy_loss, kl_k3

# (ratio, advantage, loss of the token, held back by the clip) for bounds 1 - 0.2 and 1 + 0.28
CLIP_CASES = [
    (1.0, 2.0, -2.0, False),
    (1.1, 2.0, -2.2, False),
    (1.5, 2.0, -2.56, True),
    (0.9, 2.0, -1.8, False),
    (0.5, 2.0, -1.0, False),  # it may always go back up
    (1.1, -2.0, 2.2, False),
    (1.5, -2.0, 3.0, False),  # it may always go back down
    (0.9, -2.0, 1.8, False),
    (0.5, -2.0, 1.6, True),
]


def one(*values):
    return jnp.array([values], jnp.float32)


def clipped(log_probs, old, advantages, mask):
    return clipped_policy_loss(log_probs, old, advantages, mask, 0.2, 0.28)


@pytest.mark.parametrize("ratio, advantage, loss, held", CLIP_CASES)
def test_clipped_loss_by_hand(ratio, advantage, loss, held):
    old = one(-3.0)
    new = old + np.log(ratio)
    got, count = clipped(new, old, one(advantage), one(1))
    np.testing.assert_allclose(got, loss, rtol=1e-5)
    assert int(count) == held


@pytest.mark.parametrize("ratio, advantage, loss, held", CLIP_CASES)
def test_the_gradient_is_zero_exactly_where_the_clip_holds(ratio, advantage, loss, held):
    old = one(-3.0)
    gradient = jax.grad(lambda x: clipped(x, old, one(advantage), one(1))[0])(old + np.log(ratio))
    np.testing.assert_allclose(gradient[0, 0], 0 if held else -advantage * ratio, rtol=1e-5)


def test_the_loss_is_a_sum_over_masked_tokens():
    ratios, advantages, losses, held = (np.array(c) for c in zip(*CLIP_CASES, strict=True))
    mask = np.array([1, 0, 1, 1, 0, 1, 1, 0, 1], np.float32)
    old = np.linspace(-4, -1, 9, dtype=np.float32)
    got, count = clipped(old + np.log(ratios), old, advantages, mask)
    np.testing.assert_allclose(got, (losses * mask).sum(), rtol=1e-5)
    assert int(count) == (held * mask).sum()


def test_masked_tokens_never_leak_however_large():
    # Forced tokens have log-prob 0 at sampling and any value in the trainer; padding has any.
    mask = one(1, 0, 0, 1)
    new, old = one(-1.0, -1e30, 1e30, -2.0), one(-1.1, 1e30, -1e30, -2.2)
    advantages = one(1.0, 1e30, -1e30, -1.0)
    alone = one(-1.0, -2.0), one(-1.1, -2.2), one(1.0, -1.0), one(1, 1)

    def losses(x, y, a, m):
        return clipped(x, y, a, m)[0] + kl_k3(x, y, m)

    np.testing.assert_allclose(losses(new, old, advantages, mask), losses(*alone), rtol=1e-6)
    gradient = jax.grad(losses)(new, old, advantages, mask)
    np.testing.assert_array_equal(gradient[0, 1:3], 0)
    np.testing.assert_allclose(gradient[0, [0, 3]], jax.grad(losses)(*alone)[0], rtol=1e-6)


def test_k3_by_hand():
    # d = ln 2: 2 - ln 2 - 1;  d = -ln 2: 1/2 + ln 2 - 1. The two differ, so a swap shows.
    ln2 = np.log(2)
    np.testing.assert_allclose(kl_k3(one(-2.0), one(-2.0 + ln2), one(1)), 1 - ln2, rtol=1e-5)
    np.testing.assert_allclose(kl_k3(one(-2.0), one(-2.0 - ln2), one(1)), ln2 - 0.5, rtol=1e-5)
    assert float(kl_k3(one(-2.0), one(-2.0), one(1))) == 0


def test_k3_averages_to_the_divergence():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    pairs = zip(np.log(p), np.log(q), strict=True)
    terms = [float(kl_k3(one(a), one(b), one(1))) for a, b in pairs]
    np.testing.assert_allclose(p @ terms, (p * np.log(p / q)).sum(), rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 0, width=32), st.floats(-20, 0, width=32)),
                min_size=4, max_size=4))
def test_k3_is_never_negative(pairs):
    new, other = (jnp.array([column], jnp.float32) for column in zip(*pairs, strict=True))
    for position in range(4):
        mask = jnp.zeros((1, 4)).at[0, position].set(1)
        assert float(kl_k3(new, other, mask)) >= -1e-6
