"""One update, one load and one rollout on eight devices give what they give on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MESHES = ["(8, 1, 1)", "(2, 2, 2)", "(1, 2, 4)"]
ALL = ["(2, 2, 2)", "(1, 2, 4)"]  # of sharded_update.py


@pytest.fixture(scope="module")
def found():
    flags = " ".join(
        f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f
    ) + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, TESTS / "sharded_update.py"], capture_output=True, text=True, timeout=600,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(TESTS.parent)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_gradients_and_parameters_agree(found, mesh):
    assert found[mesh]["loss"] < 1e-5
    assert found[mesh]["gradient"] < 1e-4
    assert found[mesh]["params"] < 1e-4


@pytest.mark.parametrize("mesh", MESHES)
def test_parameters_and_optimiser_are_split(found, mesh):
    """Norms are whole on each device; all else is split over fsdp and tensor."""
    _, fsdp, tensor = json.loads(mesh.replace("(", "[").replace(")", "]"))
    assert 1 / (fsdp * tensor) <= found[mesh]["share"] < 1 / (fsdp * tensor) + 0.03


@pytest.mark.parametrize("mesh", MESHES)
def test_a_checkpoint_is_loaded_into_its_place(found, mesh):
    assert found[mesh]["loaded"] == 0.0
    assert found[mesh]["placed"]


@pytest.mark.parametrize("mesh", ALL)
def test_rollouts_say_the_same(found, mesh):
    assert found[mesh]["words"]


@pytest.mark.parametrize("mesh", ALL)
def test_a_value_model_is_trained_and_split_alike(found, mesh):
    assert found[mesh]["ppo_gradient"] < 1e-4
    assert found[mesh]["ppo_values"] < 1e-3
    assert found[mesh]["ppo_params"] < 1e-4
    _, fsdp, tensor = json.loads(mesh.replace("(", "[").replace(")", "]"))
    assert 1 / (fsdp * tensor) <= found[mesh]["ppo_share"] < 1 / (fsdp * tensor) + 0.03
