"""Parameters made ready for rollouts: what is frozen is made ready once."""

import dataclasses

import jax
import numpy as np

from tarl_jax.config import LoraConfig, ModelConfig
from tarl_jax.models import decoder
from tarl_jax.models.lora import init_adapters, join
from tarl_jax.parallel.compilations import compilations
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout.prepared import Prepared

MODEL = ModelConfig(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48)
LORA = dataclasses.replace(MODEL, lora=LoraConfig(rank=2))


def prepared(model):
    return Prepared(model, make_mesh(devices=jax.devices()[:1]))


def test_a_rollout_copies_the_adapters_alone(random_params):
    prepare = prepared(LORA)
    weights = jax.device_put(random_params(MODEL, 40, 0))
    adapters = [init_adapters(LORA, weights, jax.random.key(i)) for i in range(2)]
    first, second = (prepare(join(weights, a)) for a in adapters)
    expected = decoder.unstack(join(weights, adapters[1]))
    jax.tree.map(np.testing.assert_array_equal, second, expected)
    shared = jax.tree.map(lambda x, y: x is y, first, second)
    assert shared["embed"] and shared["final_norm"]
    for layer in shared["layers"]:
        assert layer == {name: not name.endswith(("_a", "_b")) for name in layer}
    other = jax.device_put(random_params(MODEL, 40, 1))  # another policy's weights are not missed
    third = prepare(join(other, adapters[0]))
    np.testing.assert_array_equal(third["layers"][0]["wq"], other["layers"]["wq"][0])
    jax.tree.map(np.testing.assert_array_equal, prepare(weights), decoder.unstack(weights))


def test_it_is_compiled_ahead(random_params):
    prepare = prepared(LORA)
    weights = jax.device_put(random_params(MODEL, 40, 0))
    params = join(weights, init_adapters(LORA, weights, jax.random.key(0)))
    for one in prepare.wanted(params):
        one.compile()
    before = compilations("engine_unstack")
    made = prepare(params)
    assert compilations("engine_unstack") == before > 0
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.shape, y.shape), made,
                 prepare.shapes(params))
