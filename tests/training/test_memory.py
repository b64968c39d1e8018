"""What a run holds, counted: by hand, and against the arrays that are there in a real run."""

import dataclasses
import gc

import jax
import numpy as np
import pytest

from tarl_jax.config import LoraConfig, MeshConfig, ModelConfig, RLConfig, RolloutConfig, RunConfig
from tarl_jax.parallel.mesh import make_mesh, rollout_mesh, row_shards
from tarl_jax.rl.batching import Sample, fill, packed_layouts
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.paged_compiled import PagedPrograms
from tarl_jax.training.memory import memory
from tarl_jax.training.memory_estimate import estimate

VOCAB = 64
MODEL = ModelConfig(
    d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48, scan_layers=True,
    dtype="bfloat16", vocab_size=VOCAB,
)
ROLLOUT = RolloutConfig(
    slots=4, max_turn_tokens=8, max_episode_tokens=128, cache="pages", page=16, feed_tokens=32,
    share_prefix=0,
)
LORA = dataclasses.replace(MODEL, lora=LoraConfig(rank=2), param_dtype="bfloat16")
# By hand: embedding (tied), per layer q, k, v, o, three of the feed-forward, four norms; last norm.
COUNT = 64 * 32 + 2 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32 + 2 * 8) + 32
OWN = {"gradient": 1e6, "apply": 1e5, "measure": 1e5, "score": 1e5, "feed": 1e4, "decode": 1e3}


def parts(model=MODEL, rollout=ROLLOUT, **rl):
    config = RunConfig(model=model, rollout=rollout, rl=dataclasses.replace(RLConfig(), **rl),
                       mesh=MeshConfig(data=1))
    mesh = make_mesh(devices=jax.devices()[:1])
    updater = Updater(model, VOCAB, config.rl, 1.0, mesh)
    engine = Engine(model, rollout, 3, mesh)
    return config, updater, engine, memory(config, updater, engine.programs)


def held_at(counted, name):
    return next(dict(m.held) for m in counted.moments(OWN) if m.name == name)


def test_all_weights_by_hand():
    counted = parts()[-1]
    assert counted.whole == counted.policy == 4 * COUNT and counted.frozen == 0
    assert counted.optimizer == pytest.approx(8 * COUNT, abs=16)  # and two counters
    pages = (4 // 2) * 128 // 16 + 1  # half the slots' longest dialogues, and nobody's page
    assert counted.cache == 2 * 2 * pages * 16 * 2 * 8 * 2  # layers, k and v, ..., heads, width
    assert counted.copied == 2 * COUNT  # bfloat16 beside float32
    gradient = held_at(counted, "update: gradient")
    assert gradient["gradients"] == 4 * COUNT and "cache" not in gradient
    assert gradient["gradient's own"] == 1e6
    assert counted.arguments("gradient") == 8 * COUNT
    assert counted.saved == pytest.approx(12 * COUNT, abs=16)


def test_adapters_share_their_weights_with_rollouts_and_reference():
    _, _, _, counted = parts(LORA, kl_coef=0.1)
    assert counted.frozen == 2 * COUNT and counted.reference == 0
    adapters = counted.policy
    assert counted.copied == adapters // 2  # the adapters alone, cast
    assert counted.arguments("gradient") == 2 * adapters + 4 * COUNT  # the weights twice over
    assert held_at(counted, "update: gradient")["frozen weights"] == 2 * COUNT


def test_a_reference_and_a_value_model_are_held_throughout():
    _, _, _, plain = parts()
    _, _, _, counted = parts(kl_coef=0.1, advantage="gae")
    assert counted.reference == 4 * COUNT
    assert counted.value == pytest.approx(4 * COUNT, rel=0.02)  # its head in place of none
    assert counted.optimizer == pytest.approx(2 * plain.optimizer, rel=0.02)
    for moment in counted.moments(OWN)[1:]:
        assert {"reference", "value model"} <= dict(moment.held).keys()


def test_playing_ahead_holds_the_cache_during_the_update():
    _, _, _, counted = parts(max_staleness=1)
    gradient = held_at(counted, "update: gradient")
    assert gradient["cache"] == counted.cache and gradient["rollouts' own"] == 1e4
    assert gradient["copies that play ahead"] == 2 * COUNT  # in the dtype of rollouts, once


@pytest.mark.parametrize("staleness", [0, 2])
def test_devices_of_rollouts_hold_copies_and_cache_alone(staleness):
    """And those of updates hold neither."""
    config = RunConfig(model=MODEL, rollout=ROLLOUT, mesh=MeshConfig(rollout_devices=1),
                       rl=dataclasses.replace(RLConfig(), max_staleness=staleness))
    updater = Updater(MODEL, VOCAB, config.rl, 1.0, make_mesh(config.mesh))
    counted = memory(config, updater, Engine(MODEL, ROLLOUT, 3, rollout_mesh(config.mesh)).programs)
    found = {m.name: dict(m.held) for m in counted.moments(OWN)}
    copies = max(staleness, 1)  # each waits for its step
    assert found["on their own devices, rollouts: decode"] == {
        "copies for rollouts": copies * 2 * COUNT, "cache": counted.cache, "decode's own": 1e3
    }
    assert found["parameters are made ready for rollouts"]["on their way"] == 2 * COUNT
    theirs = {"cache", "copy for rollouts", "copies that play ahead", "rollouts' own"}
    for name, held in found.items():
        assert name.startswith("on their own") or not theirs & held.keys()


@pytest.mark.parametrize(
    "model, advantage", [(MODEL, "gae"), (LORA, "grpo")], ids=["all", "adapters"]
)
def test_no_more_is_live_than_is_counted(model, advantage, monkeypatch):
    """At the moments of a step: begun, rollouts, gradient, after it."""
    _, updater, engine, counted = parts(model, advantage=advantage, pack=True)
    base = set(map(id, jax.live_arrays()))

    def live():
        gc.collect()
        return sum(x.nbytes for x in jax.live_arrays() if id(x) not in base)

    small = 10_000  # batches and rows: not counted
    seen = {}
    state = updater.init(updater.random(jax.random.key(0)), give=True)
    seen["the run begins"] = live()
    running = engine.open(state.policy)
    seen["rollouts: feed"] = live()
    del running
    first = updater._gradient

    def gradient(*args):
        seen["update: gradient"] = live()
        return first(*args)

    monkeypatch.setattr(updater, "_gradient", gradient)
    samples = [Sample(np.arange(12), np.ones(12, np.float32), np.zeros(12), np.ones(12))]
    layouts = packed_layouts([12], 128, 128, row_shards(make_mesh(devices=jax.devices()[:1])))
    batches = fill(layouts, samples, packed=True)
    if advantage == "gae":
        batches = [dataclasses.replace(b, values=b.advantages, returns=b.advantages)
                   for b in batches]
    state, _ = updater.update(state, batches, None)
    seen["a checkpoint is written"] = live()
    for name, found in seen.items():
        held = sum(size for what, size in held_at(counted, name).items()
                   if what.removesuffix("'s own") not in OWN)
        assert held - small < found <= held + small, name


@pytest.mark.parametrize("tensor", [1, 2])
def test_what_decoding_takes_is_counted(tensor):
    """Against XLA's own count of the program, here for a CPU, of which heads are few."""
    model = dataclasses.replace(MODEL, dtype="float32", vocab_size=8192)
    rollout = dataclasses.replace(ROLLOUT, slots=16)
    meshes = MeshConfig(data=1, tensor=tensor, rollout_tensor=tensor)
    config = RunConfig(model=model, rollout=rollout, mesh=meshes)
    devices = jax.devices()[:tensor]
    mesh = make_mesh(meshes, devices)
    updater = Updater(model, 8192, config.rl, 1.0, mesh)
    programs = PagedPrograms(model, rollout, 3, rollout_mesh(meshes, devices))
    own = estimate(config, memory(config, updater, programs), mesh, (1, 128), programs.budget)
    decode = programs.model_sized(updater.policy_shapes)["decode"]
    takes = decode.lower().compile().memory_analysis().temp_size_in_bytes
    assert takes > 16 * 8192 * 4  # whole rows of scores at the least
    assert takes < own["decode"] < 4 * takes
