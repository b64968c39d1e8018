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
from tarl_jax.models import attention
from tarl_jax.parallel.mesh import rollout_mesh
from tarl_jax.plan import Program, Report, show, topology_devices, update_flops
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
    from tarl_jax.models import decoder

    model = MODELS[size]
    shapes = jax.eval_shape(
        lambda: decoder.init_params(model, model.vocab_size, jax.random.key(0))
    )
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, rel=5e-3)
    from_config_dict(sized(size))  # passes every check


def test_an_unknown_chip_is_an_error():
    with pytest.raises(ConfigError, match=r"--topology=v9:2x2: known chips: v4, v5e"):
        topology_devices("v9:2x2")


def test_too_much_memory_is_said_plainly():
    program = Program("gradient", 9.0, 4.0, 3.0, {"all-gather": 2}, 5.0)
    report = Report("v5e:4x4", 16, {"fsdp": 16}, 12.5, 1.0, 2.0, 16, 8192, 3.0, [program])
    assert report.fits and show(report).endswith("\nfits")
    over = dataclasses.replace(program, resident_gib=4.0)  # each fits alone, not both
    assert show(dataclasses.replace(report, programs=[over])).endswith("does NOT fit")
    broken = dataclasses.replace(program, peak_gib=float("inf"))
    assert "peak out of memory" in show(dataclasses.replace(report, programs=[broken]))


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
        peak = rows * length / room
        program = Program("gradient", peak, 0.0, 0.0, {}, 0.0)
        return Report(topology, 8, {}, 1.0, 0.0, 0.0, rows, length, 0.0, [program])

    monkeypatch.setattr(plan, "report", fake)
    monkeypatch.setattr(plan, "topology_devices", lambda *_: jax.devices("cpu") * 8)
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
            "--config.mesh.rollout_tensor=2",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "v5e:2x2: 4 chips" in done.stdout and done.stdout.rstrip().endswith("fits")
    for name in ("gradient", "apply", "prefill", "decode"):
        assert f"  {name}" in done.stdout
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
        Compiled(model, RolloutConfig(slots=8), 0, mesh).lower(64, 128)
        assert bool(called) == expected
