"""Low-rank adapters: no change at first, merged equals unmerged, nothing else trains."""

import dataclasses

import jax
import numpy as np
import pytest

from tarl_jax.config import LoraConfig, ModelConfig, RLConfig
from tarl_jax.models import decoder
from tarl_jax.models.cache import empty_cache
from tarl_jax.models.lora import init_adapters, join, merge
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rl.update import Updater
from tarl_jax.types import Batch

BASE = ModelConfig(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48)
MODEL = dataclasses.replace(BASE, lora=LoraConfig(rank=3, alpha=6.0))
VOCAB = 50
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 20))


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(MODEL, VOCAB, 0)


@pytest.fixture(scope="module")
def adapted(params):
    """All parameters with adapters that do something."""
    adapters = init_adapters(MODEL, params, jax.random.key(1))
    rng = np.random.default_rng(2)
    adapters = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), adapters)
    return join(params, adapters)


def test_fresh_adapters_change_nothing(params):
    both = join(params, init_adapters(MODEL, params, jax.random.key(1)))
    np.testing.assert_array_equal(
        decoder.hidden_states(both, MODEL, TOKENS), decoder.hidden_states(params, BASE, TOKENS)
    )


def test_fresh_adapters_are_those_of_peft(params):
    """Against what torch draws for a layer of as many inputs; the bound hangs on these alone."""
    torch = pytest.importorskip("torch", reason="the comparison needs torch (the test extra)")
    wide = dataclasses.replace(BASE, d_model=64, lora=LoraConfig(rank=16))
    shapes = jax.eval_shape(lambda: decoder.init_params(wide, VOCAB, jax.random.key(0)))
    drawn = init_adapters(wide, shapes, jax.random.key(1))["layers"]
    for name, inputs in (("wq", 64), ("wo", 32), ("w_gate", 64), ("w_down", 48)):
        theirs = torch.empty(256, inputs)
        torch.nn.init.kaiming_uniform_(theirs, a=5**0.5)  # what PEFT calls
        ours = np.asarray(drawn[f"{name}_a"])
        bound = inputs**-0.5
        assert ours.dtype == np.float32 and 0.99 * bound < np.abs(ours).max() <= bound
        assert np.abs(theirs.numpy()).max() == pytest.approx(bound, rel=0.01)
        assert ours.std() == pytest.approx(theirs.std().item(), rel=0.05)
        assert abs(ours.mean()) < 0.1 * bound
        # Flat: each quarter of the range has a quarter of the numbers.
        counts, _ = np.histogram(ours, 4, (-bound, bound))
        np.testing.assert_allclose(counts / ours.size, 0.25, atol=0.04)


def test_each_weight_is_adapted_by_the_formula(params, adapted):
    merged = merge(adapted, MODEL)["layers"]
    for name in MODEL.lora.targets:
        w, a, b = (np.asarray(adapted["layers"][n], np.float64)
                   for n in (name, f"{name}_a", f"{name}_b"))
        for layer in range(2):
            low = a[layer].reshape(-1, 3) @ b[layer].reshape(3, -1)
            wanted = w[layer] + 6.0 / 3 * low.reshape(w[layer].shape)
            np.testing.assert_allclose(merged[name][layer], wanted, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(merge(adapted, MODEL)) == jax.tree.structure(params)


@pytest.mark.parametrize("scan", [False, True])
def test_merged_equals_unmerged(adapted, scan):
    config = dataclasses.replace(MODEL, scan_layers=scan)
    mine = decoder.hidden_states(adapted, config, TOKENS)
    theirs = decoder.hidden_states(merge(adapted, MODEL), BASE, TOKENS)
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    plain = decoder.hidden_states({**adapted, "layers": {
        n: x for n, x in adapted["layers"].items() if not n.endswith(("_a", "_b"))
    }}, BASE, TOKENS)
    assert np.abs(np.asarray(plain) - mine).max() > 0.1


def test_decoding_sees_the_adapters(adapted):
    cache = empty_cache(MODEL, 2, 32)
    starts = np.zeros(2, np.int32)
    stepped, _ = decoder.cached_step(decoder.unstack(adapted), MODEL, cache, TOKENS, starts)
    np.testing.assert_allclose(
        stepped, decoder.hidden_states(adapted, MODEL, TOKENS), rtol=1e-4, atol=1e-5
    )


def test_only_adapters_train_and_are_kept(params):
    updater = Updater(MODEL, VOCAB, RLConfig(learning_rate=1e-2, warmup_steps=0), 1.0, make_mesh())
    state = updater.init(params)
    before = jax.device_get(state.frozen)
    ones = np.ones(TOKENS.shape, np.float32)
    state, values = updater.update(state, [Batch(TOKENS.astype(np.int32), ones, -ones, ones)], None)
    assert values["grad_norm"] > 0
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.frozen), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(name.endswith(("_a", "_b")) for name in state.params["layers"])
    moved = state.params["layers"]["wq_b"]
    assert np.abs(moved).max() > 1e-3
    count = sum(x.size for x in jax.tree.leaves(state.opt_state))
    assert count < 0.5 * sum(x.size for x in jax.tree.leaves(params))


def test_a_parameter_cannot_be_frozen_and_trained(params):
    with pytest.raises(ValueError, match="'embed' is frozen and trained"):
        join(params, {"embed": params["embed"]})
