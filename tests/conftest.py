"""Two CPU devices in every test run, compiled programs kept for its length, and a tiny environment.

The variables are set before anything imports JAX; commands that a test starts inherit them. With
JAX_PLATFORMS=cuda or tpu the tests of the kernels run on that device:

    JAX_PLATFORMS=cuda python -m pytest -n 0 tests/models/test_attention.py
"""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

_PROGRAMS = tempfile.TemporaryDirectory(prefix="tarl-jax-tests-")
# Compiling is most of a test's time: without the optimiser it takes half of it, by XLA's older
# emitters a third less again, without LLVM's dear passes a fifth less once more. An XLA that does
# not know a flag ends the process.
os.environ["XLA_FLAGS"] = " ".join((
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=2",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
))
# One program at a time: a worker was once aborted on a busy machine while several programs of two
# devices were under way.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _PROGRAMS.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["PYTHONHASHSEED"] = "random"  # of started commands: no result may depend on it

import dataclasses  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tarl_jax.config import ModelConfig, RunConfig, from_config_dict  # noqa: E402
from tarl_jax.config.presets import sized  # noqa: E402
from tarl_jax.models import decoder  # noqa: E402
from tarl_jax.rollout.environment import Environment  # noqa: E402

# Whole runs and started commands: these files go first, so that no worker ends long after another.
LONG = (
    "training/test_train.py", "training/test_rehearsal.py", "training/test_llm_run.py",
    "config/test_configs.py", "warm_start/test_warm_start.py", "serve/test_server.py",
    "training/test_parts.py", "training/test_formulas.py", "parallel/test_two_processes.py",
    "parallel/test_sharding.py", "rollout/test_engine.py", "test_imports.py", "test_notebooks.py",
    "training/test_user_faults.py", "training/test_policy.py", "training/test_collect.py",
    "rollout/test_any_turns.py", "training/test_memory.py", "rollout/test_slow_dialogues.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONG)}
    folder = Path(__file__).parent
    assert all((folder / name).is_file() for name in LONG), "a file of LONG has another name now"
    items.sort(key=lambda item: place.get(item.path.relative_to(folder).as_posix(), len(LONG)))


def pytest_sessionstart() -> None:
    if jax.default_backend() == "cpu":
        assert jax.device_count() == 2, "JAX was started before conftest.py could set XLA_FLAGS"


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    """The tiny preset, smaller still, with every size that a test relies on written out."""
    config = from_config_dict(sized("tiny"))
    replace = dataclasses.replace
    return replace(
        config,
        model=ModelConfig(d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
                          d_ff=32),
        shop=replace(config.shop, num_users=20),
        tasks=replace(config.tasks, num_train=12, num_held_out=6),
        rollout=replace(config.rollout, tasks_per_step=2, group_size=4, slots=8, max_turns=6,
                        max_turn_tokens=12, max_episode_tokens=256, temperature=1.0),
    )


@pytest.fixture(scope="session")
def tiny_env(tiny_config: RunConfig) -> Environment:
    return Environment.from_config(tiny_config)


@pytest.fixture(scope="session")
def random_params():
    """Makes parameters whose every weight matters: (model, vocab_size, seed, spread) -> Params.

    The ones of `init_params` are so small that attention and feed-forward hardly change a logit.
    """

    def make(model: ModelConfig, vocab_size: int, seed: int, spread: float = 0.2):
        shapes = jax.eval_shape(
            lambda: decoder.init_params(model, vocab_size, jax.random.key(0))
        )
        rng = np.random.default_rng(seed)

        def fill(path: tuple, x: jax.ShapeDtypeStruct) -> np.ndarray:
            centre = np.float32("norm" in jax.tree_util.keystr(path))
            return centre + np.float32(spread) * rng.standard_normal(x.shape, np.float32)

        return jax.tree_util.tree_map_with_path(fill, shapes)

    return make


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory):
    """`warm_start.cache_dir` of every command that a test starts."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def openai_server():
    """A `LocalServer` that speaks OpenAI's protocol, and fails as a test plans it."""
    from openai_server import LocalServer

    server = LocalServer()
    yield server
    server.close()
