"""Compile-only: operations counted by hand, errors, and a slice where its compiler is there."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tarl_jax import plan
from tarl_jax.config import (
    ConfigError,
    MeshConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
    from_config_dict,
)
from tarl_jax.config.presets import MODELS, sized
from tarl_jax.models import attention, decoder
from tarl_jax.parallel.mesh import rollout_mesh
from tarl_jax.parallel.topologies import topology_devices
from tarl_jax.plan import Program, Report, show, update_flops
from tarl_jax.rollout.compiled import Compiled

ROOT = Path(__file__).parents[1]


def test_operations_by_hand():
    model = ModelConfig(d_model=4, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=3, d_ff=5)
    layer = 4 * 6 + 4 * 3 + 4 * 3 + 6 * 4 + 3 * 4 * 5  # q, k, v, o, three of the feed-forward
    weights = 2 * layer + 4 * 7
    # Scores and their use: 2 x 2 S^2 N H a layer forward, halved by causality, tripled backward.
    attention = 2 * 3 * (2 * 2 * 10**2 * 2 * 3) / 2
    assert update_flops(model, 7, 3, 10) == 3 * (6 * 10 * weights + attention)


@pytest.mark.parametrize("size, billions", [
    ("qwen3_0_6b", 0.596), ("qwen3_1_7b", 1.72), ("qwen3_4b", 4.02), ("qwen3_8b", 8.19),
    ("qwen2_5_omni_7b", 7.62),
])
def test_presets_have_the_published_number_of_parameters(size, billions):
    model = MODELS[size]
    shapes = jax.eval_shape(
        lambda: decoder.init_params(model, model.vocab_size, jax.random.key(0))
    )
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, rel=5e-3)
    from_config_dict(sized(size))  # passes every check


def test_the_shorter_presets_are_for_fewer_devices():
    whole, short = (from_config_dict(sized(f"qwen3_8b_lora{of}")) for of in ("", "_16k"))
    assert not plan.report(whole, "a100-40gb").fits
    found = plan.report(short, "a100-40gb")
    assert found.fits and found.length == 16_384
    for size in MODELS:
        mesh, rollout = sized(f"{size}_16k").mesh, sized(f"{size}_16k").rollout
        assert 4 % mesh.tensor == 0 and mesh.rollout_tensor == mesh.tensor
        assert rollout.max_episode_tokens == 16_384
        assert sized(size).rollout.max_episode_tokens == 32_768


def test_an_unknown_chip_is_an_error():
    with pytest.raises(ConfigError, match=r"--topology=v9:2x2: known TPUs: v4, v5e.*h100"):
        topology_devices("v9:2x2")


def of_moments(*moments, programs=()):
    return Report("v5e:4x4", 16, {"fsdp": 16}, 12.5, 16, 8192, 3.0, list(programs), list(moments),
                  {})


def test_a_run_fits_by_the_moment_that_holds_most():
    rest = ("optimiser", 3.0)
    found = of_moments(("gradient", (rest, ("gradient's own", 9.0))), ("checkpoint", (rest,)))
    assert found.fits and found.worst == ("gradient", 12.0)
    assert "at most 12.00 of 12.50 GiB: gradient" in show(found)
    over = of_moments(("gradient", (rest, ("gradient's own", 9.0), ("cache", 1.0))))
    assert not over.fits  # each fits alone, not all
    program = Program("gradient", "16 x 8192", float("inf"), 4.0, {"all-gather": 2}, 1.0, 5.0)
    broken = of_moments(("gradient", (("gradient's own", float("inf")),)), programs=[program])
    assert not broken.fits and "peak out of memory" in show(broken)


def test_times_are_added_up():
    programs = [Program("feed", "2 x 64 tokens", 1.0, 1.0, {}, 0.5, 8.0),
                Program("decode", "32 rows", 1.0, 1.0, {}, 0.5, 3.0)]
    lines = plan.show_times(programs).splitlines()
    assert lines[0] == "  feed 2 x 64 tokens: 8.5 s, of which tracing 0.5 s"
    assert lines[2] == "2 programs, compiled in 12 s"
    assert "saves 11 s of them: a second start traces for 1 s and reads" in lines[3]


@pytest.mark.parametrize("room, found", [
    (8 * 1024, (8, 1024)),
    (8 * 3000, (8, 2048)),
    (8 * 65_536 * 5, (32, 65_536)),
    (8 * 65_536 * 9, (64, 65_536)),
    (1000, None),
])
def test_the_search_takes_the_longest_row_then_more_rows(monkeypatch, room, found):
    tried = []

    def fake(config, topology, slices, shape, rollout):
        rows, length = shape
        held = ("gradient", (("gradient's own", rows * length / room),))
        return Report(topology, 8, {}, 1.0, rows, length, 0.0, [], [held], {})

    monkeypatch.setattr(plan, "report", fake)
    monkeypatch.setattr(plan, "devices_of", lambda *_: jax.devices("cpu") * 8)
    monkeypatch.setattr("tarl_jax.parallel.mesh.make_mesh", lambda *_: None)
    monkeypatch.setattr("tarl_jax.parallel.mesh.row_shards", lambda _: 8)
    assert plan.largest(RunConfig(), "v5e:2x4", 1, lambda *args: tried.append(args)) == found
    assert len(tried) <= 5 and all(fits == (r * n <= room) for r, n, fits in tried)


def test_a_small_model_is_compiled_for_a_slice():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("TPU's compiler is not installed (pip install libtpu)")
    done = subprocess.run(
        [
            sys.executable, "-m", "tarl_jax.plan",
            f"--config={ROOT}/configs/grpo_tarl.py:qwen3_0_6b", "--topology=v5e:2x2",
            "--config.model.num_layers=2", "--config.model.vocab_size=1024",
            "--config.rollout.max_episode_tokens=512", "--config.rl.micro_batch_tokens=512",
            "--config.mesh.tensor=2", "--config.mesh.rollout_tensor=2", "--compile_time",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "v5e:2x2: 4 chips" in done.stdout and done.stdout.rstrip().endswith("fits")
    for name in ("gradient", "apply", "measure", "feed", "decode"):
        assert f"  {name} " in done.stdout
    assert "\n5 programs, compiled in " in done.stdout
    gathers = [word for word in done.stdout.split(",") if "all-gather" in word]
    assert gathers, "parameters split over fsdp must be gathered"


def test_decoding_is_compiled_for_the_slice_not_for_this_host(monkeypatch):
    """A CPU's way of attending to one position is none of a TPU's program."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("TPU's compiler is not installed (pip install libtpu)")
    called = []
    plain = attention._one_by_one
    monkeypatch.setattr(attention, "_one_by_one", lambda *a: called.append(1) or plain(*a))
    model = ModelConfig(num_layers=1)
    for devices, expected in ((topology_devices("v5e:2x4", 1), False), (None, True)):
        called.clear()
        mesh = rollout_mesh(MeshConfig(), devices)
        engine = Compiled(model, RolloutConfig(slots=8), 0, mesh)
        for one in engine.model_sized(decoder.placed_shapes(model, 64, mesh), 128).values():
            one.lower()
        assert bool(called) == expected


def test_a_slice_is_counted_where_the_compiler_is_left_out(monkeypatch):
    monkeypatch.setattr(plan, "devices_of", lambda *_: jax.devices()[:2])
    model = ModelConfig(d_model=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, d_ff=64,
                        scan_layers=True, vocab_size=64)
    rollout = RolloutConfig(max_episode_tokens=128, slots=4, cache="pages", page=16)
    config = RunConfig(model=model, rollout=rollout)
    found = plan.report(config, "v5e:1x2", compiled=False)
    assert not found.programs and found.fits and found.chips == 2
    held = {name: dict(of) for name, of in found.moments}
    assert held["update: gradient"]["gradient's own"] == found.estimated["gradient"] > 0
    assert "nothing was compiled; what programs take for themselves, estimated" in show(found)


def test_chips_that_play_alone_are_counted_apart():
    """A GPU that learns and one that plays: neither holds what is the other's."""
    config = from_config_dict(sized("qwen3_8b_lora_16k"))
    mesh = dataclasses.replace(config.mesh, rollout_devices=1)
    both = plan.report(config, "a100-80gb")
    found = plan.report(dataclasses.replace(config, mesh=mesh), "a100-80gb:2")
    assert found.playing == 1 and "mesh of one, 1 of them for rollouts alone" in show(found)
    assert found.tflop == both.tflop and found.host_gib == both.host_gib
    held = {name: dict(of) for name, of in found.moments}
    feeding = dict(dict(both.moments)["rollouts: feed"])
    own = held["on their own devices, rollouts: feed"]
    assert own["cache"] == feeding["cache"] and "frozen weights" not in own
    weights = feeding["frozen weights"] + feeding["copy for rollouts"]
    assert own["copies for rollouts"] == pytest.approx(weights, rel=1e-6)


def test_gpus_are_counted_without_a_compiler():
    """The preset that is made for one of 80 GB, by hand: weights and cache in bfloat16."""
    config = from_config_dict(sized("qwen3_8b_lora"))
    found = plan.report(config, "h100")
    assert found.chips == 1 and found.fits and not found.programs
    held = {name: dict(of) for name, of in found.moments}
    feeding = held["rollouts: feed"]
    assert feeding["frozen weights"] == pytest.approx(8.19e9 * 2 / 2**30, rel=5e-3)
    a_token = 36 * 2 * 8 * 128 * 2  # layers, keys and values, heads, width, bytes
    cache = config.rollout.cache_tokens * a_token / 2**30
    assert feeding["cache"] == pytest.approx(cache, rel=1e-3)
    assert "cache" not in held["update: gradient"]  # the pool goes with the rollout
    adapters = 36 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12_288))
    assert found.host_gib == pytest.approx(3 * 4 * adapters / 2**30, rel=1e-3)  # and Adam's two
    assert f"takes {found.host_gib:.1f} GiB" in show(found)
    kept = 36 * 32_768 * 4096 * 2 / 2**30  # what the backward pass keeps of each layer
    assert kept < held["update: gradient"]["gradient's own"] < 4 * kept
    assert not plan.report(config, "a100-40gb").fits
    with pytest.raises(ConfigError, match="--topology=h100:none: give the GPUs of a node"):
        plan.report(config, "h100:none")
