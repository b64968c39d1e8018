"""The programs of a run with pages, lowered for GPUs that are not here.

The update attends by XLA's products: cuDNN's kernel is traced where cuDNN is alone.
"""

import dataclasses

import jax
import pytest
from jax import export

from tarl_jax.config import ModelConfig, RLConfig, RolloutConfig
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.paged_compiled import PagedPrograms

MODEL = ModelConfig(
    d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64, d_ff=48, scan_layers=True,
    remat="full", dtype="bfloat16", vocab_size=64,
)
ROLLOUT = RolloutConfig(
    slots=4, max_turn_tokens=8, max_episode_tokens=128, cache="pages", page=16, feed_tokens=32,
)
TRITON = "__gpu$xla.gpu.triton"


@pytest.mark.parametrize("quantise", ["", "int8_both"])
def test_every_program_of_the_models_size_is_lowered(quantise):
    """Writing asks JAX's kernel, with the scales where there are some; the cache is given back."""
    mesh = make_mesh(devices=jax.devices()[:1])
    rollout = dataclasses.replace(ROLLOUT, quantise=quantise)
    updater = Updater(MODEL, 64, RLConfig(), 1.0, mesh)
    played = PagedPrograms(MODEL, rollout, 3, mesh).model_sized(updater.policy_shapes)
    programs = played if quantise else played | updater.model_sized((1, 128), True)
    assert len(programs) <= 6
    kernel = export.DisabledSafetyCheck.custom_call(TRITON)
    for name, one in programs.items():
        with jax.set_mesh(one.mesh):
            made = export.export(one.function, platforms=["cuda"], disabled_checks=[kernel])(
                *one.args)
        text = made.mlir_module()
        assert made.platforms == ("cuda",)
        assert (TRITON in text and "paged_attention" in text) == (name == "decode"), name
        if name in ("feed", "decode"):
            leaves = 4 if quantise else 2  # keys and values, and their scales
            assert text.count("tf.aliasing_output") + text.count("jax.buffer_donor") == leaves
