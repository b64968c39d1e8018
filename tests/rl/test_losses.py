"""Losses against values worked by hand and against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarl_jax.config import RLConfig
from tarl_jax.rl.losses import (
    bounded_exp,
    clipped_policy_loss,
    kl_k3,
    kl_terms,
    loss_weights,
    sequence_policy_loss,
    sequence_sums,
    simple_policy_loss,
    value_loss,
)
from tarl_jax.types import Batch

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


def apply(loss, log_probs, old, advantages, mask, low, high, weights=None, segments=None):
    """A policy loss of these arrays; by default each sampled token weighs 1."""
    batch = Batch(jnp.zeros_like(old, jnp.int32), mask, old, advantages, segments)
    config = RLConfig(clip_low=low, clip_high=high)
    return loss(log_probs, batch, mask if weights is None else weights, config)


def clipped(log_probs, old, advantages, mask):
    return apply(clipped_policy_loss, log_probs, old, advantages, mask, 0.2, 0.28)


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


@pytest.mark.parametrize("estimator, terms", [
    ("k1", (-np.log(2), np.log(2))),
    ("k2", (np.log(2) ** 2 / 2, np.log(2) ** 2 / 2)),
    ("k3", (1 - np.log(2), np.log(2) - 0.5)),
])
def test_kl_terms_by_hand(estimator, terms):
    # d = ln 2, then -ln 2; the third token does not count.
    other = one(-2.0 + np.log(2), -2.0 - np.log(2), 1e30)
    got = kl_terms(one(-2.0, -2.0, -2.0), other, one(1, 1, 0), estimator)
    np.testing.assert_allclose(got, [[*terms, 0]], rtol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_of_k1_and_k3_is_the_divergence(estimator):
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    terms = kl_terms(one(*np.log(p)), one(*np.log(q)), one(1, 1, 1), estimator)[0]
    np.testing.assert_allclose(p @ terms, (p * np.log(p / q)).sum(), rtol=1e-5)


def test_the_gradient_of_k2_is_the_divergences():
    """Tokens drawn from p: the mean of d/dx k2 over them is the gradient of KL(p || q)."""
    q = np.log([0.3, 0.3, 0.4])

    def expected(logits):
        log_p = jax.nn.log_softmax(logits)
        drawn = jax.lax.stop_gradient(jnp.exp(log_p))
        return jnp.sum(drawn * kl_terms(log_p[None], q[None], jnp.ones((1, 3)), "k2")[0])

    def divergence(logits):
        log_p = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(log_p) * (log_p - q))

    logits = jnp.array([1.0, -0.5, 0.2])
    np.testing.assert_allclose(jax.grad(expected)(logits), jax.grad(divergence)(logits), rtol=1e-4)


@pytest.mark.parametrize("ratio, advantage, loss, held", [
    (2.9, -2.0, 5.8, False),
    (5.0, -2.0, 6.0, True),  # at most 3 times 2
    (0.5, -2.0, 1.6, True),  # by the other clip
    (5.0, 2.0, -2.56, True),
])
def test_dual_clip_by_hand(ratio, advantage, loss, held):
    """Where it holds the gradient is 0."""
    old, new = one(-9.0), one(-9.0) + np.log(ratio)
    batch = Batch(jnp.zeros((1, 1), jnp.int32), one(1), old, one(advantage))
    config = RLConfig(dual_clip=3.0)

    def of(x, policy_loss=clipped_policy_loss):
        return policy_loss(x, batch, one(1), config)

    for policy_loss in (clipped_policy_loss, sequence_policy_loss):
        got, count = of(new, policy_loss)
        np.testing.assert_allclose(got, loss, rtol=1e-5)
        assert int(count) == held
    slope = jax.grad(lambda x: of(x)[0])(new)
    np.testing.assert_allclose(slope, [[0 if held else -advantage * ratio]], rtol=1e-5)


@pytest.mark.parametrize("change", [1000.0, -1000.0])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("loss", [clipped_policy_loss, simple_policy_loss, sequence_policy_loss])
def test_no_ratio_overflows(loss, advantage, change):
    """exp(±20) is the largest and the least; beyond it nothing pulls."""
    def of(x):
        return apply(loss, x, one(-2.0), one(advantage), one(1), 0.2, 0.2)[0]

    got, slope = jax.value_and_grad(of)(one(change - 2))
    ratio = np.exp(np.clip(change, -20, 20))
    if loss is simple_policy_loss:
        wanted = -(ratio * advantage - 2 * (ratio - 1) ** 2 / 0.4)
    else:
        wanted = -min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(slope, 0)


def test_k3_does_not_overflow_and_keeps_its_pull():
    """At d = 1000 it stands still at exp(20) - 21; at -1000 it is linear: -d - 1."""
    for d, wanted, slope in ((1000.0, np.exp(20) - 21, 0), (-1000.0, 999.0, 1.0)):
        got, found = jax.value_and_grad(lambda x, d=d: kl_k3(x, one(-2.0 + d), one(1)))(one(-2.0))
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
        np.testing.assert_allclose(found, [[slope]], atol=1e-6)


def test_the_bound_changes_nothing_within_it():
    """Bit for bit, also in the gradient."""
    x = jnp.linspace(-19.9, 19.9, 4001)
    for bounded, plain in ((bounded_exp, jnp.exp), (
        lambda d: kl_terms(jnp.zeros_like(d), d, jnp.ones_like(d), "k3"),
        lambda d: jnp.exp(d) - d - 1,
    )):
        np.testing.assert_array_equal(bounded(x), plain(x))
        np.testing.assert_array_equal(
            jax.grad(lambda d, f=bounded: f(d).sum())(x), jax.grad(lambda d, f=plain: f(d).sum())(x)
        )


# ---- means ----------------------------------------------------------------------------------

MASK = np.array([[0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0] * 6], np.float32)
# The same three sequences (the last one without a sampled token) in one row, and padding.
PACKED = np.array([[*MASK[0], *MASK[1], *MASK[2], 0, 0]])
SEGMENTS = np.array([[1] * 6 + [2] * 6 + [3] * 6 + [0, 0]])


@pytest.mark.parametrize("mean, weight, count", [
    ("token", (1, 1), 4), ("sequence", (1 / 3, 1), 2), ("constant", (0.1, 0.1), 2),
])
def test_weights_of_the_means_by_hand(mean, weight, count):
    wanted = MASK * np.array([[weight[0]], [weight[1]], [0]])
    for mask, segments, expected in (
        (MASK, None, wanted), (PACKED, SEGMENTS, [[*wanted[0], *wanted[1], *wanted[2], 0, 0]]),
    ):
        weights, found = loss_weights(jnp.array(mask), segments, mean, 10)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
        np.testing.assert_allclose(found, count, rtol=1e-6)


def test_sequence_sums_stay_inside_their_sequence():
    x = jnp.array([[1.0, 2.0, 4.0, 8.0, 16.0]])
    np.testing.assert_allclose(sequence_sums(x, None), [[31] * 5])
    got = sequence_sums(x, np.array([[1, 1, 2, 2, 0]]))
    np.testing.assert_allclose(got, [[3, 3, 12, 12, 16]])


# ---- other losses ---------------------------------------------------------------------------


@pytest.mark.parametrize("ratio, advantage, loss, beyond", [
    (1.0, 2.0, -2.0, False),
    (1.1, 2.0, -(2.2 - 2 * 0.01 / 0.4), False),
    (1.5, 2.0, -(3.0 - 2 * 0.25 / 0.4), True),
    (0.5, 2.0, -(1.0 - 2 * 0.25 / 0.4), False),
    (0.5, -2.0, -(-1.0 - 2 * 0.25 / 0.4), True),
    (1.5, -2.0, -(-3.0 - 2 * 0.25 / 0.4), False),
])
def test_simple_policy_loss_by_hand(ratio, advantage, loss, beyond):
    old = one(-3.0)
    got, count = apply(
        simple_policy_loss, old + np.log(ratio), old, one(advantage), one(1), 0.2, 0.2
    )
    np.testing.assert_allclose(got, loss, rtol=1e-5)
    assert int(count) == beyond


@pytest.mark.parametrize("advantage", [2.0, -0.5])
def test_the_simple_loss_is_least_at_its_bound(advantage):
    """Its gradient vanishes at 1 + sign(A) 0.2, and changes sign there; the clip's only ends."""
    best = 1 + np.sign(advantage) * 0.2

    def slope(ratio):
        def loss(x):
            return apply(simple_policy_loss, x, one(0.0), one(advantage), one(1), 0.2, 0.2)[0]

        return float(jax.grad(loss)(one(np.log(ratio)))[0, 0])

    assert slope(best) == pytest.approx(0, abs=1e-5)
    assert slope(best - 0.1) < 0 < slope(best + 0.1)


def test_sequence_ratio_by_hand():
    # Two sequences in a row; ratios exp(mean of 0.2, 0.4) and exp(-0.1), bounds 0.2 and 0.28.
    old = jnp.full((1, 6), -2.0)
    new = old + jnp.array([[9.0, 0.2, 0.4, -0.1, 9.0, 0.0]])
    mask = one(0, 1, 1, 1, 0, 0)
    segments = np.array([[1, 1, 1, 2, 2, 0]])
    weights, count = loss_weights(mask, segments, "sequence", 1)
    got, held = apply(
        sequence_policy_loss, new, old, one(0, 3.0, 3.0, -1.0, 0, 0), mask, 0.2, 0.28,
        weights, segments,
    )
    np.testing.assert_allclose(got, -1.28 * 3 + np.exp(-0.1), rtol=1e-5)
    np.testing.assert_allclose(count, 2)
    assert int(held) == 2  # tokens of the first sequence


def test_the_sequence_ratio_has_the_gradient_of_its_definition():
    rng = np.random.default_rng(0)
    old = jnp.array(rng.normal(size=(2, 5)), jnp.float32)
    new = old + jnp.array(rng.normal(0, 0.05, (2, 5)), jnp.float32)
    mask = jnp.array([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0]], jnp.float32)
    sizes = np.array([3.0, 2.0])
    advantage = np.array([1.5, -2.0])

    def mine(x):
        weights, _ = loss_weights(mask, None, "sequence", 1)
        rows = jnp.array(advantage[:, None] * np.ones((2, 5)), jnp.float32)
        return apply(sequence_policy_loss, x, old, rows, mask, 0.5, 0.5, weights)[0]

    def defined(x):
        ratio = jnp.exp((mask * (x - old)).sum(axis=1) / sizes)
        return -jnp.sum(ratio * advantage)

    np.testing.assert_allclose(mine(new), defined(new), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(mine)(new), jax.grad(defined)(new), rtol=1e-4, atol=1e-6)


def test_value_loss_by_hand():
    # (V, V at the rollout, R): within the limit; held back, and further off held than free; beyond
    # the limit, but nearer held: the larger error counts; not counted.
    values, old = one(2.0, 3.0, 3.0, 1e30), one(1.5, 1.0, 1.0, 0.0)
    returns, mask = one(5.0, 4.0, 1.0, 0.0), one(1, 1, 1, 0)
    plain = 0.5 * (9 + 1 + 4)
    np.testing.assert_allclose(value_loss(values, old, returns, mask, 0.0), plain, rtol=1e-6)
    limited = 0.5 * (9 + (1 + 1 - 4) ** 2 + 4)
    np.testing.assert_allclose(value_loss(values, old, returns, mask, 1.0), limited, rtol=1e-6)
    halves = value_loss(values, old, returns, mask, 1.0, mask / 2)
    np.testing.assert_allclose(halves, limited / 2, rtol=1e-6)
    slope = jax.grad(lambda v: value_loss(v, old, returns, mask, 1.0))(values)
    # Held back by the limit it is flat, for the held error is the larger one.
    np.testing.assert_allclose(slope, [[-3, 0, 2, 0]], rtol=1e-6)
