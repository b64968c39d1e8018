"""The rate of the updates, read off AdamW: a constant gradient moves a parameter by the rate."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tarl_jax.config import RLConfig
from tarl_jax.rl.optimizer import make_optimizer

CONFIG = RLConfig(learning_rate=0.5, warmup_steps=2, minibatches=2, epochs=1, decay_steps=0)


def rates(config: RLConfig, updates: int, **kwargs) -> np.ndarray:
    optimizer = make_optimizer(config, **kwargs)
    params = {"w": jnp.zeros(3)}
    state = optimizer.init(params)
    found = []
    for _ in range(updates):
        step, state = optimizer.update({"w": jnp.full(3, 0.1)}, state, params)
        found.append(-float(step["w"][0]))
    return np.array(found)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        # Two steps are four updates: 1 - 0.8 n / 4 of the peak, then a fifth of it.
        ({"decay_steps": 2, "final_rate": 0.2}, [0.25, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1]),
        ({"decay_steps": 1, "final_rate": 0.0}, [0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ({"decay_steps": 1, "epochs": 3, "final_rate": 1.0}, [0.25] + 6 * [0.5]),
        ({"decay_steps": 1, "epochs": 3, "warmup_steps": 0, "final_rate": 0.4},
         [0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2]),
    ],
)
def test_the_rate_rises_and_falls_as_said(fields, expected):
    config = dataclasses.replace(CONFIG, **fields)
    np.testing.assert_allclose(rates(config, 7), expected, rtol=2e-5, atol=1e-7)
    value = rates(config, 7, learning_rate=1.0)
    np.testing.assert_allclose(value, 2 * np.array(expected), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_an_audio_encoder_takes_smaller_steps(share):
    """Of its own parameters alone, and with the optimiser's state that all have."""
    optimizer = make_optimizer(dataclasses.replace(CONFIG, encoder_rate=share))
    params = {"w": jnp.zeros(3), "audio": {"w": jnp.zeros(3), "layers": {"b": jnp.zeros(2)}}}
    state = optimizer.init(params)
    gradient = {"w": jnp.full(3, 0.1), "audio": {"w": jnp.full(3, 0.1),
                                                 "layers": {"b": jnp.full(2, -0.2)}}}
    for expected in (0.25, 0.5):
        step, state = optimizer.update(gradient, state, params)
        np.testing.assert_allclose(step["w"], -expected, rtol=1e-5)
        np.testing.assert_allclose(step["audio"]["w"], -share * expected, rtol=1e-5)
        np.testing.assert_allclose(step["audio"]["layers"]["b"], share * expected, rtol=1e-5)
