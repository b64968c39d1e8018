"""Attention kinds against each other, and packed rows against separate ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tarl_jax.config import MeshConfig, ModelConfig
from tarl_jax.models import attention, decoder
from tarl_jax.parallel.mesh import make_mesh

KINDS = ("splash", "cudnn")


@pytest.fixture(autouse=True)
def exact_products():
    """A GPU multiplies float32 in 19 bits, unless it is told not to."""
    with jax.default_matmul_precision("highest"):
        yield


def inputs(length, width=128, heads=4, kv_heads=2, rows=2, dtype=np.float32):
    rng = np.random.default_rng(length)
    q = rng.normal(size=(rows, length, heads, width))
    k, v = (rng.normal(size=(rows, length, kv_heads, width)) for _ in range(2))
    segments = np.sort(rng.integers(0, 3, (rows, length)), axis=1).astype(np.int32)
    return [x.astype(dtype) for x in (q, k, v)], segments


def plain(q, k, v, segments):
    """One softmax over the whole row, NumPy float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    groups, length = q.shape[2] // k.shape[2], q.shape[1]
    k, v = (np.repeat(x, groups, axis=2) for x in (k, v))
    scores = np.einsum("bqnh,bsnh->bnqs", q, k) / np.sqrt(q.shape[3])
    visible = np.tril(np.ones((length, length), bool))[None]
    if segments is not None:
        visible = visible & (segments[:, :, None] == segments[:, None, :])
    scores = np.where(visible[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnqs,bsnh->bqnh", weights, v)


def runner(kind):
    """The kind's function; what no device here can run is skipped, splash is interpreted."""
    if kind == "splash" and jax.default_backend() != "tpu":
        return functools.partial(attention._splash, interpret=True)
    if kind == "cudnn" and jax.default_backend() != "gpu":
        pytest.skip("cuDNN needs an NVIDIA GPU")
    return functools.partial(attention.causal_attention, kind=kind)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200, 513])
def test_blocks_equal_one_softmax(length, packed):
    arrays, segments = inputs(length, width=16)
    segments = segments if packed else None
    got = jax.jit(functools.partial(attention.causal_attention, kind="xla"))(*arrays, segments)
    np.testing.assert_allclose(got, plain(*arrays, segments), atol=2e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_plain_one_in_values_and_gradients(kind, packed):
    run = runner(kind)
    dtype = jnp.bfloat16 if kind == "cudnn" else np.float32
    arrays, segments = inputs(256, dtype=dtype)
    segments = segments if packed else None

    def loss(q, k, v, function):
        return jnp.sum(jnp.sin(function(q, k, v, segments).astype(jnp.float32)))

    xla = functools.partial(attention.causal_attention, kind="xla")
    tolerance = 3e-2 if dtype == jnp.bfloat16 else 2e-5
    got = np.asarray(jax.jit(run)(*arrays, segments), np.float32)
    np.testing.assert_allclose(got, plain(*arrays, segments), atol=tolerance)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    gradients = [gradient(*arrays, f) for f in (run, xla)]
    for mine, theirs in zip(*gradients, strict=True):
        scale = np.abs(np.asarray(theirs, np.float32)).max()
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), np.asarray(theirs, np.float32), atol=tolerance * scale
        )


@pytest.mark.parametrize("mesh", [MeshConfig(data=2), MeshConfig(data=1, tensor=2)])
def test_the_kernel_on_a_mesh_equals_it_on_one_device(mesh):
    if jax.default_backend() != "cpu":
        pytest.skip("counts on the fake devices of the CPU")
    run = runner("splash")
    arrays, segments = inputs(128)
    with jax.set_mesh(make_mesh(mesh)):
        got = jax.jit(run)(*arrays, segments)
    np.testing.assert_allclose(got, plain(*arrays, segments), atol=2e-5)


def test_auto_is_what_the_platform_has():
    arrays, _ = inputs(128)
    expected = {"cpu": "xla", "tpu": "splash", "gpu": "xla"}[jax.default_backend()]
    assert attention._best(arrays[0]) == expected  # float32: no cuDNN


# ---- packed rows through the whole decoder --------------------------------------------------

MODEL = ModelConfig(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48)


PIECES = [np.random.default_rng(0).integers(0, 50, n) for n in (7, 1, 12, 5)]


def outputs_and_gradient(function, params):
    """What `function` gives, and the gradient of a loss on it."""

    @jax.jit
    def run(params):
        out, back = jax.vjp(function, params)
        return out, back(jnp.cos(out))

    return run(params)


@pytest.fixture(scope="module")
def separate(random_params):
    """(outputs, gradient) of the pieces, each alone in its row."""

    def run(params):
        alone = [decoder.hidden_states(params, MODEL, piece[None])[0] for piece in PIECES]
        return jnp.concatenate(alone)

    return outputs_and_gradient(run, random_params(MODEL, 50, 0))


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("scan", [False, True])
def test_packed_equals_unpacked(random_params, separate, scan, remat):
    model = dataclasses.replace(MODEL, scan_layers=scan, remat=remat)
    row = np.concatenate([*PIECES, np.zeros(3, int)])[None]
    segments = np.repeat([1, 2, 3, 4, 0], [7, 1, 12, 5, 3])[None].astype(np.int32)

    def packed(params):
        return decoder.hidden_states(params, model, row, segments)[0, :25]

    out, gradient = outputs_and_gradient(packed, random_params(MODEL, 50, 0))
    np.testing.assert_allclose(out, separate[0], atol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(separate[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_activations_stay_close(random_params):
    params = random_params(MODEL, 50, 0)
    tokens = np.random.default_rng(1).integers(0, 50, (2, 70))
    run = jax.jit(decoder.hidden_states, static_argnums=1)
    wide = run(params, MODEL, tokens)
    narrow = run(params, dataclasses.replace(MODEL, dtype="bfloat16"), tokens)
    assert narrow.dtype == jnp.bfloat16
    error = np.abs(np.asarray(narrow, np.float32) - wide)
    assert error.mean() < 0.02 * np.abs(wide).mean()
