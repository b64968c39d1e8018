"""One turn from a sound file: what the policy hears, does, and is refused."""

import dataclasses

import numpy as np
import pytest
from small_encoder import small_encoder

from tarl_jax.config import ConfigError
from tarl_jax.config.speech import SpeechConfig
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.workers import Turn
from tarl_jax.runs.metrics import read_trajectories, write_trajectories
from tarl_jax.speech.clips import save_clip
from tarl_jax.training import recorded_user
from tarl_jax.training.evaluation import evaluate_modalities
from tarl_jax.training.parts import Parts


@pytest.fixture(scope="module")
def env(tiny_config):
    """One that hears, whose users can speak."""
    encoder = small_encoder(tiny_config.model.d_model)
    config = dataclasses.replace(
        tiny_config,
        model=dataclasses.replace(tiny_config.model, audio=encoder),
        rollout=dataclasses.replace(tiny_config.rollout, max_episode_tokens=512),
        speech=SpeechConfig(share=0.5, voices=("en-us",), speed=(1.0, 1.0), cache_dir=""),
        eval=dataclasses.replace(
            tiny_config.eval, spoken=("clean", "white:10"), trials=2, bootstrap=50
        ),
    )
    env = Environment.from_config(config)
    yield env
    env.close()


class Saying:
    """Stands in for the engine: every policy asks the same, and says that it is done."""

    def __init__(self, env):
        self.ids = env.chat.agent("Done. Anything else?")
        self.spoken = []

    def run(self, params, episodes, temperature, progress=None, *, ended=None, truncation=None):
        for episode in episodes:
            prompt = episode.start()
            self.spoken.append(not isinstance(prompt, list))
            n = len(self.ids)
            while episode.turn(Turn(self.ids, [0.0] * n, [0.0] * n)) is not None:
                pass
            if progress:
                progress(len(self.spoken) % 4 or 4, len(episodes))
        return EngineStats(episodes=len(episodes))


def test_every_task_is_written_and_spoken_by_the_same_users(env):
    engine = Saying(env)
    tasks = env.held_out_tasks[:2]
    seen = []
    metrics, trajectories = evaluate_modalities(
        engine, None, env, tasks, "eval", lambda *now: seen.append(now)
    )
    assert seen == [(n, 12) for n in range(1, 13)]  # one count, whatever the condition
    assert engine.spoken == [False] * 4 + [True] * 8
    read, clean, noisy = (trajectories[i : i + 4] for i in (0, 4, 8))
    for one, other, third in zip(read, clean, noisy, strict=True):
        said = [[s.text for s in t.segments if s.role == "user"] for t in (one, other, third)]
        assert said[0] == said[1] == said[2] and one.seed == other.seed == third.seed
        assert not list(one.sounds()) and list(other.sounds()) != list(third.sounds())
        assert other.segments[1].info["spoken"]["acoustics"] == "clean"
        assert third.segments[1].info["spoken"]["acoustics"] == "white:10"
    names = {"eval/pass^1", "eval/spoken/clean/pass^1", "eval/spoken/white:10/pass^1_low"}
    assert names <= metrics.keys()
    assert metrics["eval/spoken/clean/episode_tokens"] > metrics["eval/episode_tokens"]


def test_an_environment_is_as_loud_as_it_is_told(env, tiny_env):
    assert env.speaking(0.0).episode(env.train_tasks[0], "a", 1, 0).outside is False
    assert env.speaking(1.0).episode(env.train_tasks[0], "a", 1, 0).outside is True
    assert env.speaking(1.0, ("telephone",)).config.speech.acoustics == ("telephone",)
    with pytest.raises(ValueError, match="nobody can speak here"):
        tiny_env.speaking(0.5)


def test_a_group_says_the_same_to_the_same(env):
    loud = env.speaking(1.0)
    for task in env.train_tasks[:3]:
        prompts = [loud.episode(task, "train", 2, trial).start() for trial in range(3)]
        assert prompts[0] == prompts[1] == prompts[2]


def hum():
    levels = (3000 * np.sin(np.arange(20_000) / 9)).astype(np.int16)
    return levels.astype(np.float32) / 32768


@pytest.fixture(scope="module")
def params(env, random_params):
    return random_params(env.config.model, env.vocab_size, 0)


def test_a_file_is_one_turn(env, params, tmp_path):
    """The policy acts until it has said something; the record keeps what it heard."""
    clip = hum()
    trajectory = recorded_user.play_clip(env, params, clip, "mine.wav")
    (sound,) = trajectory.sounds()
    np.testing.assert_array_equal(sound.clip, clip)
    assert trajectory.turns and trajectory.segments[1].text == "mine.wav"
    write_trajectories(tmp_path / "one.jsonl", [trajectory])
    (again,) = read_trajectories(tmp_path / "one.jsonl")
    assert list(again.sounds()) == [sound] and again.to_json_line() == trajectory.to_json_line()


def test_a_file_that_is_too_long_is_refused(env, params):
    told = r"no room.*rollout\.max_episode_tokens = 512.*long\.wav; or give a shorter clip"
    with pytest.raises(ConfigError, match=told):
        recorded_user.play_clip(env, params, np.full(16_000 * 25, 0.5, np.float32), "long.wav")


def test_a_run_without_encoder_or_a_file_without_sound_is_named(
    env, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(recorded_user, "require_run", lambda *_: None)
    with pytest.raises(ConfigError, match="has no audio encoder"):
        recorded_user.answer(tiny_config, tmp_path / "x.wav", -1, Parts())
    with pytest.raises(ConfigError, match=r"--audio=.*x\.wav"):
        recorded_user.answer(env.config, tmp_path / "x.wav", -1, Parts())


def test_the_command_prints_the_dialogue(env, params, tmp_path, monkeypatch, capsys):
    class Kept:
        def __init__(self, *_):
            self.steps = [0]

        def close(self): ...

    class State:
        policy = params

    def run(self, params, episodes, *rest, **more):
        return Saying(env).run(params, episodes, *rest, **more)

    monkeypatch.setattr(recorded_user, "require_run", lambda *_: None)
    monkeypatch.setattr(recorded_user, "Checkpoints", Kept)
    monkeypatch.setattr(recorded_user, "restore", lambda *_: State)
    monkeypatch.setattr(recorded_user, "make_updater", lambda *_: None)
    monkeypatch.setattr(Engine, "run", run)
    save_clip(tmp_path / "mine.wav", hum())
    recorded_user.answer(env.config, tmp_path / "mine.wav", -1, Parts())
    printed = capsys.readouterr().out
    user = next(iter(env.domain.database["users"].values()))
    assert user["email"] in printed and user["orders"][0] in printed
    assert "user: mine.wav" in printed and "agent: Done. Anything else?" in printed
