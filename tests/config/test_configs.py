"""Every config passes the checks in every size; those with more state train and resume exactly."""

import dataclasses
import functools
import importlib.util
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import free_port, outputs, start

from tarl_jax.config import RunConfig, from_config_dict
from tarl_jax.config.plain import read_json
from tarl_jax.config.presets import AUDIO_ENCODERS, SIZES
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs.checkpoint import Checkpoints
from tarl_jax.runs.metrics import read_metrics, read_trajectories
from tarl_jax.training.calibrate_turns import main as calibrate
from tarl_jax.training.learn import Learner
from tarl_jax.training.policy import make_updater
from tarl_jax.training.train import train

FOLDER = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
# Their states hold more, one of them an audio encoder. (Some policies fail in one way alone: the
# entropy has every token learn.)
MORE = {"ppo_turn_end": {}, "single_stream": {},
        "grpo": {"max_staleness": 1, "playing": 1, "entropy_coef": 0.01},
        "omni_tarl": {"entropy_coef": 0.01},
        "rloo": {"refills": 2, "epochs": 2, "kl_coef": 0.01}}


def config_of(name: str, size: str = "") -> RunConfig:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config_dict(module.get_config(size))


@pytest.mark.parametrize("name", NAMES)
def test_every_size_passes_the_checks(name):
    for size in AUDIO_ENCODERS if name.startswith("omni") else ("", "tiny", *SIZES):
        config = config_of(name, size)
        assert config.name == name
        episodes = config.rollout.tasks_per_step * config.rollout.group_size
        assert episodes == {"": 128, "tiny": 16}.get(size, 256)


def small(
    name: str, cache_dir, run: Path, steps: int, refills: int = 0, playing: int = 0, **rl
) -> RunConfig:
    """The tiny size, smaller still; what fails at once still differs in its turns.

    playing: devices that rollouts have to themselves.
    """
    config = config_of(name, "tiny")
    replace = dataclasses.replace
    hears = bool(config.model.audio)  # sound has more tokens than text, and numbers have more
    longest, warm_steps = (320, 250) if hears else (192, 60)
    return replace(
        config,
        workdir=str(run),
        model=replace(config.model, num_layers=1),
        mesh=replace(config.mesh, rollout_devices=playing),
        warm_start=replace(config.warm_start, cache_dir=str(cache_dir), steps=warm_steps),
        rollout=replace(config.rollout, max_episode_tokens=longest, max_turns=4, slots=4,
                        refills=refills),
        speech=replace(config.speech, cache_dir=str(cache_dir / "speech")),
        reward=replace(config.reward, max_majors=8),
        rl=replace(config.rl, **rl, steps=steps, learning_rate=1e-3, micro_batch_tokens=256,
                   value=replace(config.rl.value, warmup_steps=1)),
        eval=replace(config.eval, every=0, tasks=1, final_tasks=1, trials=1),
        log=replace(config.log, live=False),
    )


def state_of(config: RunConfig, step: int):
    checkpoints = Checkpoints(Path(config.workdir), config.checkpoint)
    updater = make_updater(config, Environment.from_config(config))
    state, meta = checkpoints.restore(step, updater.shapes())
    checkpoints.close()
    return jax.device_get(state), meta


SLOW = ("omni_tarl", "ppo_turn_end", "rloo", "single_stream")  # -m slow runs them


@pytest.fixture(scope="module")
def trained(cache_dir, tmp_path_factory):
    """The config of a small run of two steps that has ended, by name."""

    @functools.cache
    def run(name: str) -> RunConfig:
        config = small(name, cache_dir, tmp_path_factory.mktemp(name) / "run", 2, **MORE[name])
        train(config)
        return config

    return run


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MORE
])
def test_a_small_run_trains_and_resumes_bit_for_bit(name, trained, tmp_path):
    """Two steps, then again from the first one's checkpoint.

    The policy with an audio encoder is resumed in test_policy.py, in less time.
    """
    config = trained(name)
    assert (Path(config.workdir) / "ahead/2.jsonl").exists() == bool(config.rl.max_staleness)
    steps = [r for r in read_metrics(config.workdir) if r["kind"] == "train"]
    assert len(steps) == 2 and not any(r["compilations"] for r in steps)
    assert not config.rl.entropy_coef or any("rl/loss" in r for r in steps)
    state, meta = state_of(config, 2)
    earlier, _ = state_of(config, 1)
    valued = config.rl.advantage == "gae"
    assert bool(state.value) == valued == all("rl/value_loss" in r for r in steps)
    if config.rollout.refills:
        assert any(r["rollout/refilled_groups"] > 0 for r in steps)
    assert bool(meta["baselines"]) == (config.rl.advantage == "single_stream")
    if config.model.audio:
        assert meta["curriculum"]["spoken"] == 0.5  # the warm-up of two steps is over
        assert [r.get("train/spoken", 0) > 0 for r in steps] == [True, True]
        return
    if valued:
        changed = [
            not np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(state.value), jax.tree.leaves(earlier.value),
                            strict=True)
        ]
        assert any(changed)

    again = dataclasses.replace(config, workdir=str(tmp_path / "again"))
    shutil.copytree(config.workdir, again.workdir)
    shutil.rmtree(Path(again.workdir) / "checkpoints" / "2")
    train(again)
    resumed, resumed_meta = state_of(again, 2)
    assert resumed_meta == meta
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("name, playing", [
    ("ppo_turn_end", 0), ("rloo", 0), ("grpo", 0), ("grpo", 2),
])
def test_two_processes_train_as_one_does(name, playing, trained, tmp_path):
    """The second of them writes nothing, and the pair goes on from its own checkpoint.

    The second config has refills: both decide by the groups of both. The third plays ahead, in one
    start, on the devices that learn or on others.
    """
    one = trained(name)
    script, pair = Path(__file__).parents[1] / "two_trainers.py", tmp_path / "pair"
    ahead = bool(one.rl.max_staleness)
    for steps in (2,) if ahead else (1, 2):
        where = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
        config = dataclasses.replace(
            one, workdir=str(pair), rl=dataclasses.replace(one.rl, steps=steps),
            mesh=dataclasses.replace(one.mesh, rollout_devices=playing),
        )
        given = tmp_path / "config.pickle"
        given.write_bytes(pickle.dumps(config))
        said = outputs([
            start([script, given], devices=2 if playing else 1, JAX_PROCESS_ID=str(rank), **where)
            for rank in range(2)
        ])
        assert "pass^1" in said[0] and not said[1].strip()
    assert ("resuming" in said[0]) == (not ahead)
    assert (pair / "ahead" / "2.jsonl").exists() == ahead
    alone, together = (
        [r for r in read_metrics(path) if r["kind"] in ("base", "train")]
        for path in (one.workdir, pair)
    )
    assert [r["kind"] for r in alone] == [r["kind"] for r in together] == ["base", "train", "train"]
    prefixes = ("train/", "reward/", "judge/", "rl/", "rollout/refilled")
    same = [k for k in alone[-1] if k.startswith(prefixes)]
    assert len(same) >= (19 if ahead else 20) and "rl/loss" in same
    for a, b in zip(alone[1:], together[1:], strict=True):
        for key in same:
            assert b[key] == pytest.approx(a[key], rel=2e-3, abs=2e-4), key
        assert b["compilations"] == 0
    assert alone[0]["eval/episode_tokens"] == together[0]["eval/episode_tokens"]


@pytest.mark.slow
def test_two_processes_carry_episodes_over_and_go_on_with_them(trained, tmp_path):
    """A step has no time, so it ends with its first group. By threads: test_carried.py."""
    one, pair = trained("grpo"), tmp_path / "pair"
    replace = dataclasses.replace
    script, given = Path(__file__).parents[1] / "two_trainers.py", tmp_path / "config.pickle"
    for steps in (2, 4):
        where = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
        given.write_bytes(pickle.dumps(replace(
            one, workdir=str(pair), rl=replace(one.rl, steps=steps, max_staleness=2),
            rollout=replace(one.rollout, step_seconds=1e-9), log=replace(one.log, trajectories=99),
            mesh=replace(one.mesh, rollout_devices=0),
        )))
        said = outputs([
            start([script, given], devices=1, JAX_PROCESS_ID=str(rank), **where)
            for rank in range(2)
        ])
        assert read_json(pair / f"ahead/{steps}.carried.json")
    assert "resuming" in said[0]
    records = [r for r in read_metrics(pair) if r["kind"] == "train"]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert not any(r["compilations"] for r in records)
    assert any(r["rollout/unfinished"] > 0 for r in records)
    assert max(r.get("rollout/updates_behind_max", 0) for r in records) == 2
    learned = [t.seed for step in range(1, 5)
               for t in read_trajectories(pair / f"trajectories/step_{step:06d}.jsonl")]
    groups = 4 * one.rollout.tasks_per_step - len(read_json(pair / "ahead/4.carried.json"))
    assert len(learned) == len(set(learned)) == groups * one.rollout.group_size


def test_a_run_calibrates_the_next_one(cache_dir, tmp_path, tiny_config, capsys):
    config = small("grpo_tarl", cache_dir, tmp_path / "run", steps=1)
    train(config)
    table = tmp_path / "table.json"
    assert calibrate([config.workdir, f"--out={table}"]) == 0
    assert "episodes" in capsys.readouterr().out
    reward = dataclasses.replace(tiny_config.reward, calibration=str(table))
    calibrated = dataclasses.replace(tiny_config, reward=reward)
    updater = make_updater(tiny_config, Environment.from_config(tiny_config))
    run = tmp_path / "next"
    run.mkdir()
    first = Learner(calibrated, updater, make_mesh().size, run).table
    assert first
    table.write_text("changed since")
    assert Learner(calibrated, updater, make_mesh().size, run).table == first
    assert calibrate([str(tmp_path / "none"), f"--out={table}"]) == 2
    assert "no judged training episode" in capsys.readouterr().err
