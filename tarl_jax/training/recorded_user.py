"""A person in the user's place: one message from a sound file, and what the policy does then."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tarl_jax.config import ConfigError, RunConfig
from tarl_jax.config.speech import SpeechConfig
from tarl_jax.models.hf_config import completed
from tarl_jax.parallel import hosts
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.episode import Episode
from tarl_jax.rollout.sampling import Truncation
from tarl_jax.runs.checkpoint import Checkpoints
from tarl_jax.runs.directory import require_run
from tarl_jax.runs.live import printable
from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.user import Reply
from tarl_jax.speech.clips import load_clip
from tarl_jax.speech.service import Speech
from tarl_jax.speech.synthesis import SpeechError, Voice
from tarl_jax.speech.user import SpokenUser
from tarl_jax.training.parts import Parts, record
from tarl_jax.training.policy import make_updater, newest, restore
from tarl_jax.types import Task, Trajectory


class _Caller:
    """Says one thing, and hangs up at the answer."""

    def __init__(self, name: str):
        self._name = name

    def opening(self) -> str:
        return self._name

    def reply(self, message: str) -> Reply:
        return Reply(phrases.STOP, {})


class _Recording:
    """A synthesiser that says the same whatever it is asked for."""

    def __init__(self, clip: np.ndarray):
        self._clip = clip

    def say(self, text: str, voice: Voice) -> np.ndarray:
        return self._clip

    def version(self, voice: Voice) -> str:
        return "file"

    def close(self) -> None: ...


def answer(config: RunConfig, audio: Path, step: int, parts: Parts) -> Trajectory:
    """Plays the clip of a file to the policy of a checkpoint (step -1: the newest); prints it.

    The policy acts until it says something to the user. The episode has no task: no verdict of it
    means anything.
    Raises ConfigError for a run whose policy has no audio encoder, and for a file that is not
    there, holds no sound, is silent or too long.
    """
    config = completed(config)
    run_dir = Path(config.workdir).expanduser()
    require_run(config, run_dir, record(parts))
    clip = heard(config, audio)
    checkpoints = Checkpoints(run_dir, config.checkpoint)
    step = newest(checkpoints, run_dir, step)
    env = Environment.from_config(config, parts.domain, parts.tasks)
    try:
        state = restore(config, env, make_updater(config, env), checkpoints, step)
        print(_someone(env))
        trajectory = play_clip(env, state.policy, clip, audio.name)
    finally:
        env.close()
        checkpoints.close()
    for segment in trajectory.segments[1:]:
        if segment.text != phrases.STOP:
            print(f"{segment.role:>6}: {printable(segment.message or segment.text)}")
    return trajectory


def heard(config: RunConfig, audio: Path) -> np.ndarray:
    """The clip of a file, [samples]. Raises ConfigError, as `answer`."""
    if hosts.several():
        raise ConfigError("--user=human: a job of one process: give --config.mesh.processes=1")
    if not config.model.audio:
        raise ConfigError("--user=human: the policy of this run has no audio encoder; train one"
                          " with configs/omni_tarl.py")
    try:
        return load_clip(audio)
    except SpeechError as error:
        raise ConfigError(f"--audio={error}") from error


def play_clip(env: Environment, params: dict, clip: np.ndarray, name: str) -> Trajectory:
    """The episode that the clip begins. Raises ConfigError for one that is too long."""
    config = SpeechConfig(engine="recordings", recordings=name, share=1.0)
    task = Task("human", "", "", (), (), "held_out", "human", None, 1)
    with Speech(_Recording(clip), workers=1, voices=("",)) as speech:
        user = SpokenUser(_Caller(name), speech, config, 0)
        episode = Episode(
            task, 0, env.domain, env.chat, env.config.rollout, env.system, user
        )
        c = env.config.eval
        cut = Truncation(c.top_k, c.top_p, c.min_p)
        env.engine().run(params, [episode], c.temperature, truncation=cut)
    trajectory = episode.trajectory()
    if not trajectory.turns:
        raise ConfigError(f"--audio: {trajectory.segments[-1].info['failure']}; or give a shorter"
                          " clip")
    return trajectory


def _someone(env: Environment) -> str:
    """A user of the shop that one can claim to be."""
    user = next(iter(env.domain.database["users"].values()))
    name = " ".join((user["name"]["first_name"], user["name"]["last_name"]))
    return f"You may be {name}, {user['email']}, with the orders {', '.join(user['orders'])}."

