"""Attention through page tables: against JAX's own reference, and what it is lowered to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ref_ragged_paged_attention

from tarl_jax.config import ModelConfig
from tarl_jax.models import decoder, pages
from tarl_jax.models.pages import Flat

HEADS, KV_HEADS, WIDTH, SIZE, DEPTH = 8, 2, 128, 8, 6
COUNT = 3 * DEPTH + 1


def problem(parts, tokens):
    """Queries, keys of the past and the present, and tables; parts: (tokens before, tokens now)."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    tables = rng.permutation(np.arange(1, COUNT))[: len(parts) * DEPTH].reshape(-1, DEPTH)
    begins = np.cumsum([0, *(now for _, now in parts)])
    positions, owners = np.zeros(tokens, np.int32), np.zeros(tokens, np.int32)
    for number, (before, now) in enumerate(parts):
        here = slice(begins[number], begins[number + 1])
        positions[here], owners[here] = np.arange(before, before + now), number
    there = np.arange(tokens) < begins[-1]
    flat = Flat(
        tokens=np.zeros(tokens, np.int32), positions=positions,
        pages=np.where(there, tables[owners, positions // SIZE], 0).astype(np.int32),
        tables=tables.astype(np.int32),
        lengths=np.array([sum(part) for part in parts], np.int32),
        begins=begins.astype(np.int32), count=np.array([len(parts)], np.int32),
    )
    pool = {name: draw(KV_HEADS, 2 * COUNT, SIZE, WIDTH) for name in "kv"}  # of two layers
    new = draw(tokens, HEADS, WIDTH), draw(tokens, KV_HEADS, WIDTH), draw(tokens, KV_HEADS, WIDTH)
    return new, pool, flat


def ragged(pool):
    """The same pool as the kernel for TPUs has it."""
    both = np.stack((pool["k"], pool["v"]), axis=3)  # [K, P, size, 2, H]
    return {"kv": both.transpose(1, 2, 0, 3, 4).reshape(2 * COUNT, SIZE, 2 * KV_HEADS, WIDTH)}


def reference(new, pool, flat):
    """Layer 1's answer by JAX's reference, on a pool into which NumPy has written."""
    (q, k, v), pages_of = new, ragged(pool)["kv"].copy()
    used = int(flat.begins[-1])
    for token in range(used):
        both = np.stack((k[token], v[token]), axis=1).reshape(-1, WIDTH)
        pages_of[COUNT + flat.pages[token], flat.positions[token] % SIZE] = both
    return np.asarray(ref_ragged_paged_attention(
        jnp.array(q[:used]), jnp.array(pages_of), flat.lengths, flat.tables + COUNT, flat.begins,
        flat.count, sm_scale=WIDTH**-0.5,
    )), used


PARTS = [(13, 9), (0, 21), (40, 1)]
ONE_EACH = [(13, 1), (0, 1), (40, 1)]


@pytest.mark.parametrize("block", [1, 4, 128])
@pytest.mark.parametrize("parts, tokens", [(PARTS, 40), (PARTS, 31), (ONE_EACH, 3)], ids=str)
def test_the_plain_version(monkeypatch, parts, tokens, block):
    monkeypatch.setattr(pages, "QUERIES", block)
    new, pool, flat = problem(parts, tokens)
    single = parts is ONE_EACH
    out, after = jax.jit(
        lambda new, pool, flat: pages.write_and_attend(*new, pool, 1, 2, flat, single)
    )(new, pool, flat)
    expected, used = reference(new, pool, flat)
    np.testing.assert_allclose(out[:used], expected, atol=1e-5)
    # The other layer's pages are as they were, and of this one those that were written to.
    np.testing.assert_array_equal(after["k"][:, :COUNT], pool["k"][:, :COUNT])
    changed = {int(page) for page in np.flatnonzero(
        (np.asarray(after["v"]) != pool["v"]).any(axis=(0, 2, 3)))}
    assert changed - {COUNT} == {int(COUNT + page) for page in flat.pages[:used]}


def test_the_kernel_for_gpus():
    (q, _, _), pool, flat = problem(ONE_EACH, 3)
    tables = flat.tables + COUNT
    plain = pages._one_each(q, pool, tables, flat.lengths)
    np.testing.assert_allclose(
        pages._gpu(q, pool, tables, flat.lengths, interpret=True), plain, atol=1e-5
    )


def test_pages_in_int8():
    """By NumPy: each vector's largest number is 127 steps; both ways read what was rounded."""
    new, pool, flat = problem(PARTS, 31)
    steps = {name: np.abs(x).max(axis=-1) / 127 for name, x in pool.items()}
    held = {name: np.rint(x / steps[name][..., None]).astype(np.int8) for name, x in pool.items()}
    held |= {f"{name}_scale": x.astype(np.float32) for name, x in steps.items()}
    near = {name: (held[name] * steps[name][..., None]).astype(np.float32) for name in "kv"}
    rounded = [np.rint(x / (s := np.abs(x).max(axis=-1, keepdims=True) / 127)) * s
               for x in new[1:]]
    expected, used = reference((new[0], *rounded), near, flat)
    out, after = jax.jit(
        lambda new, pool, flat: pages.write_and_attend(*new, pool, 1, 2, flat, False)
    )(new, held, flat)
    np.testing.assert_allclose(out[:used], expected, atol=1e-5)
    whole, _ = reference(new, pool, flat)
    assert 1e-3 < np.abs(expected - whole).max() < 0.05  # the rounding's own
    assert after["k"].dtype == after["v"].dtype == jnp.int8
    page, place = COUNT + flat.pages[5], flat.positions[5] % SIZE
    np.testing.assert_allclose(after["v"][:, page, place] * after["v_scale"][:, page, place, None],
                               rounded[1][5], atol=1e-6)
    (q, _, _), _, flat = problem(ONE_EACH, 3)
    asked = q, held, flat.tables + COUNT, flat.lengths
    np.testing.assert_allclose(pages._gpu(*asked, interpret=True), pages._one_each(*asked),
                               atol=1e-5)


def test_the_kernel_for_tpus_is_asked_as_its_reference_is(monkeypatch):
    """The kernel itself does not run in interpret mode: what it is given is what is tested."""
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention as kernels

    def stand_in(*args, sm_scale, **tuning):
        kernels.static_validate_inputs(*args, sm_scale=sm_scale, **tuning)
        return ref_ragged_paged_attention(*args, sm_scale=sm_scale)

    monkeypatch.setattr(kernels, "ragged_paged_attention", stand_in)
    new, pool, flat = problem(PARTS, 31)
    pool = jax.tree.map(jnp.array, ragged(pool))
    out, _ = pages.write_and_attend(*map(jnp.array, new), pool, 1, 2, flat, False)
    expected, used = reference(new, problem(PARTS, 31)[1], flat)
    np.testing.assert_allclose(out[:used], expected, atol=1e-5)


MODEL = ModelConfig(d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=64)


def test_a_step_equals_the_whole_forward_pass(random_params):
    """Three sequences, fed in pieces of all sizes beside one another."""
    params = random_params(MODEL, 50, 0)
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 50, n) for n in (13, 29, 5)]
    tables = rng.permutation(np.arange(1, 25)).reshape(3, 8).astype(np.int32)
    pool = pages.empty_pool(MODEL, 25, 4, "split")
    step = jax.jit(lambda params, pool, flat: decoder.paged_step(params, MODEL, pool, flat))
    fed = [0, 0, 0]
    whole = [np.asarray(decoder.hidden_states(params, MODEL, jnp.array(s)[None])[0])
             for s in sequences]
    for parts in ([(0, 5), (1, 9)], [(2, 1), (0, 8), (1, 6)], [(1, 14), (2, 4)]):
        flat = Flat(*(np.zeros(20, np.int32) for _ in range(3)), np.zeros((4, 8), np.int32),
                    np.ones(4, np.int32), np.zeros(5, np.int32), np.array([len(parts)], np.int32))
        at = 0
        for number, (row, count) in enumerate(parts):
            here, places = slice(at, at + count), np.arange(fed[row], fed[row] + count)
            flat.tokens[here] = sequences[row][places]
            flat.positions[here], flat.pages[here] = places, tables[row][places // 4]
            flat.tables[number], flat.lengths[number] = tables[row], places[-1] + 1
            at += count
            flat.begins[number + 1 :] = at
        hidden, pool = step(params, pool, flat)
        for number, (row, count) in enumerate(parts):
            got = np.asarray(hidden)[flat.begins[number] : flat.begins[number] + count]
            np.testing.assert_allclose(got, whole[row][fed[row] : fed[row] + count], atol=1e-4)
            fed[row] += count
    assert fed == [13, 29, 5]


def test_it_is_lowered_for_gpus_that_are_not_here(random_params):
    from jax import export

    model = dataclasses.replace(MODEL, head_dim=64)
    shapes = jax.eval_shape(lambda: decoder.init_params(model, 50, jax.random.key(0)))
    pool = jax.eval_shape(lambda: pages.empty_pool(model, 25, 16, "split"))
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    flat = Flat(ints(4), ints(4), ints(4), ints(4, 8), ints(4), ints(5), ints(1))
    kernel = export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    for single in (True, False):
        program = export.export(
            jax.jit(lambda p, pool, flat, single=single: decoder.paged_step(
                p, model, pool, flat, single)),
            platforms=["cuda"], disabled_checks=[kernel],
        )(shapes, pool, flat)
        assert ("paged_attention" in program.mlir_module()) == single
