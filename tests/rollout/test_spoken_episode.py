"""Episodes whose user speaks: the policy gets the sound, and nothing of the words."""

import dataclasses

import numpy as np
import pytest

from tarl_jax.config import RolloutConfig
from tarl_jax.config.audio import AudioConfig
from tarl_jax.config.speech import SpeechConfig
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.episode import Episode
from tarl_jax.rollout.workers import Answer, Turn
from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.user import Reply
from tarl_jax.speech.service import Speech
from tarl_jax.speech.synthesis import SpeechError
from tarl_jax.speech.user import SpokenUser

ROOMY = RolloutConfig(max_turns=40, max_turn_tokens=96, max_episode_tokens=4000)
SPEECH = SpeechConfig(share=1.0, voices=("a", "b", "c"), acoustics=("clean", "telephone"))


class Writer:
    """Writes what it is told to."""

    def __init__(self, opening="Hi, I am Ada.", replies=("Yes.", f"Bye. {phrases.STOP}")):
        self._opening, self._replies = opening, list(replies)

    def opening(self):
        return self._opening

    def reply(self, message):
        return Reply(self._replies.pop(0), {"event": message})


class Murmur:
    """A synthesiser whose clips tell nothing of the text; every one is longer than the last."""

    def __init__(self, seed=0, fails=()):
        self.rng, self.fails, self.said = np.random.default_rng(seed), fails, 0

    def say(self, text, voice):
        self.said += 1
        if text in self.fails:
            raise SpeechError("server", "no")
        samples = self.rng.integers(-9000, 9000, 8000 + 1600 * self.said)
        return (samples / 32768).astype(np.float32)

    def version(self, voice):
        return "murmur"

    def close(self):
        pass


@pytest.fixture(scope="module")
def env(tiny_config):
    """A shop whose chat has markup of sound."""
    encoder = AudioConfig(encoder_layers=1, output_dim=tiny_config.model.d_model)
    model = dataclasses.replace(tiny_config.model, audio=encoder)
    return Environment.from_config(dataclasses.replace(tiny_config, model=model, rollout=ROOMY))


def spoken(env, writer, synthesiser=None, rollout=ROOMY):
    speech = Speech(synthesiser or Murmur(), workers=1, voices=("a",))
    user = SpokenUser(writer, speech, dataclasses.replace(SPEECH, acoustics=()), 1)
    task = env.train_tasks[0]
    return Episode(task, 5, env.domain, env.chat, rollout, env.system, user)


def say(env, episode, text):
    ids = env.chat.agent(text)
    return episode.turn(Turn(ids, [-0.5] * len(ids), [-0.5] * len(ids)))


def test_words_that_are_not_said_change_nothing_for_the_policy(env):
    """The hidden texts differ, their sound does not: every token, sound and number is the same."""
    texts = [("Cancel #W1.", ("No.", "Bye")), ("Something much longer, on #W2222.", ("Yes!", "X"))]
    seen, trajectories = [], []
    for opening, replies in texts:
        writer = Writer(opening, (replies[0], f"{replies[1]} {phrases.STOP}"))
        episode = spoken(env, writer)
        seen.append([episode.start(), say(env, episode, "Which?"), say(env, episode, "Done.")])
        trajectories.append(episode.trajectory())
    assert seen[0] == seen[1] and seen[0][2] is None
    one, other = trajectories
    for a, b in zip(one.arrays(), other.arrays(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(one.sounds()) == list(other.sounds())
    said = [[s.text for s in t.segments if s.role == "user"] for t in trajectories]
    assert said[0] == ["Cancel #W1.", "No.", f"Bye {phrases.STOP}"] and said[0] != said[1]
    assert all("spoken" in s.info for s in one.segments if s.role == "user" and s.sound)
    written = {*env.tokenizer.encode("Cancel #W1.")} - {*env.system[1]}
    assert not written & set(one.arrays()[0][: len(seen[0][0].tokens)].tolist())


def test_another_sound_is_another_episode(env):
    one, other = (spoken(env, Writer(), Murmur(seed)) for seed in (0, 1))
    first, second = one.start(), other.start()
    assert first.tokens == second.tokens and first.sounds != second.sounds


def test_every_placeholder_has_its_sound(env):
    episode = spoken(env, Writer())
    prompt = episode.start()
    answer = say(env, episode, "Which?")
    say(env, episode, "Done.")
    (placeholder,) = env.tokenizer.encode_markup("<|AUDIO|>")
    for part in (prompt, answer):
        (sound,) = part.sounds
        places = np.flatnonzero(np.array(part.tokens) == placeholder)
        assert places.tolist() == list(range(sound.first, sound.first + sound.tokens))
        assert sound.tokens == (-(-len(sound.clip) // 160) + 1) // 4  # 25 a second
    trajectory = episode.trajectory()
    ids = trajectory.arrays()[0]
    sounds = list(trajectory.sounds())
    assert len(sounds) == 2 and sum(s.tokens for s in sounds) == np.sum(ids == placeholder)
    for sound in sounds:
        assert set(ids[sound.first : sound.first + sound.tokens]) == {placeholder}
    assert trajectory.num_tokens == len(ids)
    assert trajectory.segments[-1].sound is None  # the goodbye came too late


def test_a_cut_turn_is_closed_before_the_sound(env):
    episode = spoken(env, Writer())
    episode.start()
    ids = env.tokenizer.encode("Which or")
    answer = episode.turn(Turn(ids, [-0.5] * len(ids), [-0.5] * len(ids)))
    assert answer.tokens[0] == env.chat.stop_id and not answer.sounds  # a tool's error


def test_sound_keeps_its_place_where_reasoning_is_dropped(env):
    episode = spoken(
        env, Writer(), rollout=dataclasses.replace(ROOMY, reasoning="dropped")
    )
    prompt = episode.start()
    (think,) = env.tokenizer.encode_markup("<think>\n")
    (act,) = env.tokenizer.encode_markup("\n</think>\n\n")
    said = env.chat.agent("Which?")
    ids = [think, *env.tokenizer.encode("Who is it?"), act, *said]
    answer = episode.turn(Turn(ids, [-0.5] * len(ids), [-0.5] * len(ids)))
    assert answer.keep == len(prompt.tokens) and answer.tokens[: len(said)] == said
    (sound,) = answer.sounds
    (placeholder,) = env.tokenizer.encode_markup("<|AUDIO|>")
    places = np.flatnonzero(np.array(answer.tokens) == placeholder)
    assert places.tolist() == list(range(sound.first, sound.first + sound.tokens))
    say(env, episode, "Done.")
    trajectory = episode.trajectory()
    assert [s.forgotten for s in trajectory.turns] == [len(ids) - len(said), 0]
    whole = trajectory.arrays()[0]
    for sound in trajectory.sounds():
        assert set(whole[sound.first : sound.first + sound.tokens]) == {placeholder}


@pytest.mark.parametrize("fails, turns", [("Hi, I am Ada.", 0), ("Yes.", 1)])
def test_a_voice_that_fails_breaks_the_episode_alone(env, fails, turns):
    episode = spoken(env, Writer(), Murmur(fails=(fails,)))
    prompt = episode.start()
    assert (prompt is None) == (turns == 0)
    if turns:
        assert say(env, episode, "Which?") is None
    trajectory = episode.trajectory()
    assert trajectory.stop_reason == "infrastructure_error" and trajectory.success is None
    assert "server: no" in trajectory.segments[-1].info["failure"]


def test_a_missing_package_ends_the_run(env):
    class Missing(Murmur):
        def say(self, text, voice):
            raise SpeechError("not_installed", "speech needs soxr")

    with pytest.raises(SpeechError, match="soxr"):
        spoken(env, Writer(), Missing()).start()


def test_a_group_hears_one_voice_and_waits_outside(env):
    with Speech(Murmur(), workers=1, voices=("a",)) as speech:
        config = dataclasses.replace(env.config, speech=SPEECH)
        speaking = dataclasses.replace(env, config=config, speech=speech)

        def voice(task, *stream):
            episode = speaking.episode(task, *stream)
            assert episode.outside
            episode._user.opening()
            return episode._user.voice, episode._user.opening_reply.info["spoken"]["acoustics"]

        tasks = speaking.train_tasks
        groups = {
            frozenset(voice(task, "train", step, trial) for trial in range(4))
            for task in tasks[:4] for step in range(3)
        }
        assert all(len(group) == 1 for group in groups) and len(groups) == 12
        seeds = {speaking.episode(tasks[0], "train", 1, trial).seed for trial in range(4)}
        assert seeds == {env.episode(tasks[0], "train", 1, trial).seed for trial in range(4)}
        assert len(seeds) == 4
        first = speaking.episode(tasks[0], "train", 1, 0)
        assert isinstance(first.start(), Answer)
    assert isinstance(env.episode(tasks[0], "train", 1, 0).start(), list)
