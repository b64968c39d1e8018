"""Started by test_sharding.py with 8 fake devices: one update on several meshes.

Prints a JSON line: per mesh, differences from one device and how large a device's part is.
"""

import dataclasses
import json
import sys
import tempfile

import jax
import numpy as np

from tarl_jax.config import MeshConfig, ModelConfig, RLConfig, RolloutConfig
from tarl_jax.models import decoder, hugging_face
from tarl_jax.parallel import hosts
from tarl_jax.parallel.mesh import by_rows, bytes_on_device, make_mesh, rollout_mesh
from tarl_jax.rl import objective
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.workers import Answer
from tarl_jax.types import Batch

VOCAB, ROWS, LENGTH = 64, 8, 24
MODEL = ModelConfig(
    d_model=32, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=8, d_ff=64, scan_layers=True,
    remat="full", tie_embeddings=False, rope_theta=1e6,
)
CONFIG = RLConfig(learning_rate=1e-3, warmup_steps=0, kl_coef=0.1)
PPO = dataclasses.replace(CONFIG, advantage="gae")
MESHES = [(8, 1, 1), (2, 2, 2), (1, 2, 4)]
ALL = (2, 2, 2), (1, 2, 4)  # on which a value model trains and dialogues are played, too


def batch():
    rng = np.random.default_rng(0)
    sampled = (rng.random((ROWS, LENGTH)) < 0.4).astype(np.float32)
    sampled[:, 0] = 0
    segments = np.sort(rng.integers(1, 4, (ROWS, LENGTH)), axis=1).astype(np.int32)
    return Batch(
        tokens=rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32),
        sampled=sampled,
        log_probs=(-4 + 0.1 * rng.normal(size=(ROWS, LENGTH))).astype(np.float32) * sampled,
        advantages=rng.normal(size=(ROWS, LENGTH)).astype(np.float32) * sampled,
        segments=segments,
    )


def gradient_of(updater, mesh, state, one, reference):
    """The gradient of the loss sum over one batch, as an update makes it, on the host."""
    reference = updater._anchor(reference, objective.in_loss)
    with jax.set_mesh(mesh):
        total, _ = updater._gradient(
            updater._zeros(state.trained), state.trained, state.frozen, reference,
            hosts.put(one, by_rows(mesh)),
        )
    return jax.device_get(total)


def run(mesh):
    updater = Updater(MODEL, VOCAB, CONFIG, 0.8, mesh)
    params = updater.random(jax.random.key(0))
    params = jax.tree.map(lambda x: 5 * x, params)
    reference = jax.tree.map(lambda x: 0.9 * x, params)
    state = updater.init(params)
    parts = bytes_on_device(state)
    gradient = gradient_of(updater, mesh, state, batch(), reference)
    state, values = updater.update(state, [batch(), batch()], reference)
    return gradient, jax.device_get(state.params), values, parts, params


def run_ppo(mesh):
    """Two updates of policy and value model: the first gradient, the scores between them, and both
    models after.
    """
    updater = Updater(MODEL, VOCAB, PPO, 0.8, mesh)
    params = jax.tree.map(lambda x: 5 * x, updater.random(jax.random.key(0)))
    state = updater.init(params)
    share = bytes_on_device(state)
    one = batch()
    one = one.replace(values=one.sampled, returns=3 * one.advantages)
    gradient = gradient_of(updater, mesh, state, one, params)
    state, _ = updater.update(state, [one], params, train_policy=False)
    scores = updater.score(state, [one], params)
    state, _ = updater.update(state, [one], params)
    return gradient, *jax.device_get((scores["values"], state.trained)), share


class Script:
    """A dialogue of one answer."""

    outside, shared = False, 3

    def __init__(self, seed):
        self.seed, self.ids = seed, []

    def start(self):
        return [1, 2, 3, 4 + self.seed]

    def turn(self, turn):
        self.ids += turn.ids
        return Answer([5, 6]) if len(self.ids) < 12 else None


def sampled(params, config, devices=None):
    rollout = RolloutConfig(slots=8, max_turn_tokens=6, max_episode_tokens=64)
    engine = Engine(MODEL, rollout, 0, rollout_mesh(config, devices))
    scripts = [Script(seed) for seed in range(16)]
    engine.run(params, scripts, 1.0)
    return [s.ids for s in scripts]


def clear(gradient):
    """Where it is more than rounding: Adam divides by its size, however small that is."""
    return jax.tree.map(lambda g: np.abs(g) > 1e-4 * np.abs(g).max(), gradient)


def worst(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(x - y).max() / (np.abs(y).max() + 1e-9)) for x, y in pairs)


def main():
    assert jax.device_count() == 8
    alone = run(make_mesh(devices=jax.devices()[:1]))
    words = sampled(alone[4], MeshConfig(), jax.devices()[:1])
    ppo_alone = run_ppo(make_mesh(devices=jax.devices()[:1]))
    seen, ppo_seen = clear(alone[0].params), clear(ppo_alone[0])
    found = {}
    for sizes in MESHES:
        config = MeshConfig(*sizes, rollout_tensor=min(sizes[2] * 2, 4))
        mesh = make_mesh(config)
        gradient, params, values, parts, placed = run(mesh)
        with tempfile.TemporaryDirectory() as folder:
            hugging_face.save_params(f"{folder}/out", alone[4], MODEL, VOCAB, dtype="float32")
            where = jax.tree.map(
                lambda x: x.sharding, decoder.placed_shapes(MODEL, VOCAB, mesh)
            )
            loaded = hugging_face.load_params(f"{folder}/out", MODEL, VOCAB, where, "float32")
        found[str(sizes)] = {
            "gradient": worst(gradient, alone[0]),
            "params": worst(*(jax.tree.map(np.multiply, x, seen) for x in (params, alone[1]))),
            "loss": abs(values["loss"] - alone[2]["loss"]),
            "share": parts / alone[3],
            "loaded": worst(jax.device_get(loaded), jax.device_get(alone[4])),
            "placed": all(jax.tree.leaves(
                jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), loaded, where)
            )),
        }
        if sizes in ALL:
            gradient, values, trained, share = run_ppo(mesh)
            found[str(sizes)] |= {
                "ppo_gradient": worst(gradient, ppo_alone[0]),
                "ppo_values": worst(values, ppo_alone[1]),
                "ppo_params": worst(
                    *(jax.tree.map(np.multiply, x, ppo_seen) for x in (trained, ppo_alone[2]))
                ),
                "ppo_share": share / ppo_alone[3],
                "words": sampled(placed, config) == words,
            }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
