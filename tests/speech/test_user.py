"""A user that speaks: the same words, with their sound beside them."""

import dataclasses
import threading

import numpy as np
import pytest

from tarl_jax.config.speech import SpeechConfig, parse_chain
from tarl_jax.sandbox import phrases
from tarl_jax.sandbox.dialogue import Dialogue
from tarl_jax.sandbox.user import Reply, ScriptedUser
from tarl_jax.speech import acoustics
from tarl_jax.speech.service import BABBLE, Speech
from tarl_jax.speech.synthesis import SpeechError, Voice, draw_voice
from tarl_jax.speech.user import SpokenUser

CONFIG = SpeechConfig(share=1.0, voices=("en-us", "en", "en+f2"))


class Writer:
    """Writes what it is told to, and ends."""

    index = 7

    def __init__(self, replies=("Yes, cancel #W123.", f"Bye. {phrases.STOP}")):
        self.replies = list(replies)

    def opening(self):
        return "Hi, I am ada@mail.com."

    def reply(self, message):
        return Reply(self.replies.pop(0), {"event": message})


class Noise:
    """A synthesiser whose clips depend on text and voice, and are quickly made."""

    def __init__(self):
        self.said = []

    def say(self, text, voice):
        self.said.append((text, voice))
        if "forbidden" in text:
            raise SpeechError("server", "no")
        rng = np.random.default_rng(list(f"{text}{voice}".encode()))
        return (rng.integers(-9000, 9000, 4000) / 32768).astype(np.float32)

    def version(self, voice):
        return "noise"

    def close(self):
        self.said.append("closed")


@pytest.fixture
def noise():
    return Noise()


@pytest.fixture
def speech(noise):
    with Speech(noise, workers=2, voices=("a", "b")) as speech:
        yield speech


def test_the_words_stay_and_their_sound_is_beside_them(speech, noise):
    user = SpokenUser(Writer(), speech, CONFIG, seed=3)
    assert user.opening() == "Hi, I am ada@mail.com."
    reply = user.reply("?")
    assert reply.text == "Yes, cancel #W123." and not reply.stop
    assert reply.info["event"] == "?"
    assert reply.info["spoken"] == {
        "voice": user.voice.name, "speed": user.voice.speed, "pitch": user.voice.pitch,
        "acoustics": "clean",
    }
    said = ["Hi, I am ada at mail dot com.", "Yes, cancel hash W one two three."]
    expected = [Noise().say(text, user.voice) for text in said]
    np.testing.assert_array_equal(user.opening_reply.audio, expected[0])
    np.testing.assert_array_equal(reply.audio, expected[1])
    assert user.index == 7
    assert sorted(noise.said, key=str) == sorted([(t, user.voice) for t in said], key=str)


def test_the_end_is_never_spoken(speech, noise):
    user = SpokenUser(Writer((f"Bye. {phrases.STOP}", phrases.STOP)), speech, CONFIG, seed=0)
    reply = user.reply("?")
    assert reply.stop and reply.audio is not None
    bare = user.reply("?")
    assert bare.stop and bare.clip is None and bare.audio is None and "spoken" not in bare.info
    assert [text for text, _ in noise.said] == ["Bye."]


def test_no_share_leaves_replies_as_they_are(speech, noise):
    user = SpokenUser(Writer(), speech, dataclasses.replace(CONFIG, share=0.0), seed=0)
    user.opening()
    assert user.reply("?") == Reply("Yes, cancel #W123.", {"event": "?"})
    assert user.opening_reply.audio is None and noise.said == []


def modalities(speech, per, share, seed, turns=6):
    config = dataclasses.replace(CONFIG, per=per, share=share)
    user = SpokenUser(Writer(["Yes."] * turns), speech, config, seed)
    user.opening()
    return [user.opening_reply.clip is not None,
            *(user.reply("?").clip is not None for _ in range(turns))]


def test_the_share_is_of_episodes_or_of_turns(speech):
    episodes = [modalities(speech, "episode", 0.3, seed) for seed in range(200)]
    assert all(len(set(spoken)) == 1 for spoken in episodes)
    assert np.mean(episodes) == pytest.approx(0.3, abs=0.1)
    turns = [modalities(speech, "turn", 0.3, seed) for seed in range(200)]
    assert sum(len(set(spoken)) == 2 for spoken in turns) > 100
    assert np.mean(turns) == pytest.approx(0.3, abs=0.04)
    assert turns == [modalities(speech, "turn", 0.3, seed) for seed in range(200)]


def chain(user):
    """The acoustics of what a user says next."""
    user.opening()
    return user.opening_reply.info["spoken"]["acoustics"]


def test_acoustics_are_drawn_by_the_turn_where_asked_and_some_stay_clean(speech):
    config = dataclasses.replace(CONFIG, acoustics=("white:0..30", "telephone"), clean=0.25,
                                 acoustics_per="turn")

    def turns(seed, config):
        user = SpokenUser(Writer(["Yes."] * 5), speech, config, seed)
        user.opening()
        replies = [user.opening_reply, *(user.reply("?") for _ in range(5))]
        return [reply.info["spoken"]["acoustics"] for reply in replies]

    found = [turns(seed, config) for seed in range(100)]
    assert found == [turns(seed, config) for seed in range(100)]
    drawn = [one for episode in found for one in episode]
    assert np.mean([one == "clean" for one in drawn]) == pytest.approx(0.25, abs=0.06)
    ratios = [float(one.partition(":")[2]) for one in drawn if one.startswith("white")]
    assert 0 <= min(ratios) < 3 and 27 < max(ratios) <= 30
    assert np.mean(ratios) == pytest.approx(15, abs=2)
    by_episode = dataclasses.replace(config, acoustics_per="episode")
    assert all(len(set(turns(seed, by_episode))) == 1 for seed in range(20))
    # What is clean does not hang on what else might be drawn, nor the voice on any of it.
    assert {SpokenUser(Writer(), speech, c, 7).voice for c in (CONFIG, config, by_episode)} == {
        SpokenUser(Writer(), speech, CONFIG, 7).voice}


def test_what_is_said_beside_what_is_written_is_kept(speech, noise):
    config = dataclasses.replace(CONFIG, acoustics=("hesitant:0.5",))
    text = "Please cancel my order, and then send me the other one that I asked for."
    reply = SpokenUser(Writer([text]), speech, config, 1).reply("?")
    words = reply.info["spoken"]["words"]
    _ = reply.audio
    assert reply.text == text and words != text and noise.said[0][0] == words
    assert reply.info["spoken"]["acoustics"] == "hesitant:0.5"


def test_voices_and_acoustics_come_from_the_seed(speech):
    config = dataclasses.replace(CONFIG, acoustics=("clean", "telephone", "white:10"))
    users = [SpokenUser(Writer(), speech, config, seed) for seed in range(60)]
    chains = [chain(user) for user in users]
    assert set(chains) == set(config.acoustics)
    assert {u.voice.name for u in users} == set(CONFIG.voices)
    assert len({u.voice for u in users}) > 50
    assert all(0.9 <= u.voice.speed <= 1.15 and 0.35 <= u.voice.pitch <= 0.65 for u in users)
    again = [SpokenUser(Writer(), speech, config, seed) for seed in range(60)]
    assert [u.voice for u in users] == [u.voice for u in again]
    assert chains == [chain(user) for user in again]


def test_effects_change_the_clip_and_repeat(speech):
    config = dataclasses.replace(CONFIG, acoustics=("telephone+white:5",))
    clips = [SpokenUser(Writer(), speech, config, seed).reply("?").audio for seed in (1, 1, 2)]
    np.testing.assert_array_equal(clips[0], clips[1])
    clean = SpokenUser(Writer(), speech, CONFIG, 1).reply("?").audio
    assert not np.array_equal(clips[0], clean)
    assert len(clips[2]) == len(clean)


@pytest.mark.parametrize("engine, speed, pitch", [
    ("espeak", True, True), ("server", True, False), ("recordings", False, False),
])
def test_a_voice_asks_of_an_engine_what_it_can(engine, speed, pitch):
    import random

    config = dataclasses.replace(CONFIG, engine=engine)
    voices = [draw_voice(config, random.Random(seed)) for seed in range(20)]
    assert (len({v.speed for v in voices}) > 1) == speed
    assert (len({v.pitch for v in voices}) > 1) == pitch
    if not pitch:
        assert {v.pitch for v in voices} == {0.5}


def test_a_failure_comes_with_the_sound_not_with_the_reply(speech):
    reply = SpokenUser(Writer(["The forbidden word."]), speech, CONFIG, 0).reply("?")
    with pytest.raises(SpeechError, match="server: no"):
        _ = reply.audio


def test_synthesis_overlaps_with_its_caller(speech, noise, monkeypatch):
    # submit() returns while say() still waits for what only the caller does next.
    go = threading.Event()
    say = noise.say
    monkeypatch.setattr(noise, "say", lambda *args: go.wait(60) and say(*args))
    futures = [speech.submit(f"Text {i}.", Voice("a")) for i in range(5)]
    assert not any(future.done() for future in futures)
    go.set()
    for i, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(60), Noise().say(f"Text {i}.", Voice("a")))


def test_babble_is_made_once_of_the_voices(speech, noise):
    chain = parse_chain("babble:10")
    clip = speech.say("Hello.", Voice("a"), chain, 4)
    speech.say("Hello again.", Voice("a"), chain, 4)
    assert [voice for text, voice in noise.said if text in BABBLE] == [Voice("a"), Voice("b")] * 3
    clean = Noise().say("Hello.", Voice("a"))
    np.testing.assert_array_equal(clip, acoustics.apply(clean, chain, 4, speech.babblers()))


def test_leaving_closes_the_synthesiser(noise):
    with Speech(noise, workers=1, voices=("a",)):
        pass
    assert noise.said == ["closed"]


def test_a_spoken_episode_is_the_written_one(speech, tiny_env):
    # The scripted user, the dialogue and the judge's facts notice nothing.
    task = tiny_env.train_tasks[0]
    written = Dialogue(task, tiny_env.domain, ScriptedUser(task, 5))
    user = SpokenUser(ScriptedUser(task, 5), speech, CONFIG, 5)
    spoken = Dialogue(task, tiny_env.domain, user)
    assert spoken.opening == written.opening
    assert user.opening_reply.audio is not None
    for message in ("Your email, please?", "Hm?", "Sorry, I cannot do that: the reason."):
        one, two = written.act(message), spoken.act(message)
        assert (one.text, one.stop_reason) == (two.text, two.stop_reason)
        assert one.info == {k: v for k, v in two.info.items() if k != "spoken"}


def test_espeak_from_a_config_caches_its_clips(tmp_path):
    config = dataclasses.replace(CONFIG, cache_dir=str(tmp_path), timeout_seconds=120.0)
    with Speech.from_config(config) as speech:
        user = SpokenUser(Writer(), speech, config, 0)
        user.opening()
        first = user.opening_reply.audio
    assert np.abs(first).max() > 0.1
    assert len(list(tmp_path.rglob("*.flac"))) == 1
    with Speech.from_config(config) as speech:
        user = SpokenUser(Writer(), speech, config, 0)
        user.opening()
        assert user.opening_reply.audio.tobytes() == first.tobytes()


def test_who_asks_for_the_same_shares_the_clip(noise):
    """As the episodes of a group do, at once or one behind the other."""
    begun, go = threading.Event(), threading.Event()
    say = noise.say

    def slowly(text, voice):
        begun.set()
        assert go.wait(10)
        return say(text, voice)

    noise.say = slowly
    effects = parse_chain("white:10")
    with Speech(noise, workers=4, voices=("a",)) as speech:
        asked = [speech.submit("Hello.", Voice("a"), effects, 3) for _ in range(8)]
        assert begun.wait(10)
        go.set()
        clips = [one.result() for one in asked]
        again = speech.submit("Hello.", Voice("a"), effects, 3).result()
        others = [
            speech.submit(*what).result() for what in (
                ("Hello.", Voice("a"), effects, 4), ("Hello.", Voice("b"), effects, 3),
                ("Hello!", Voice("a"), effects, 3), ("Hello.", Voice("a"), (), 3),
            )
        ]
    assert len(noise.said) == 6 and all(clip is again for clip in clips)  # one "closed"
    assert not any(np.array_equal(clip, again) for clip in others)
    np.testing.assert_array_equal(again, acoustics.apply(say("Hello.", Voice("a")), effects, 3))
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 1.0


def test_what_failed_is_tried_again_and_old_clips_are_let_go(noise):
    say, tried = noise.say, []

    def failing(text, voice):
        tried.append(text)
        if len(tried) == 1:
            raise SpeechError("server", "no")
        return say(text, voice)

    noise.say = failing
    with Speech(noise, workers=1, voices=("a",)) as speech:
        with pytest.raises(SpeechError):
            speech.submit("Hello.", Voice("a")).result()
        first = speech.submit("Hello.", Voice("a")).result()
        assert len(first) == 4000 and tried == ["Hello."] * 2
        for number in range(128):
            speech.submit(f"{number}", Voice("a")).result()
        np.testing.assert_array_equal(speech.submit("Hello.", Voice("a")).result(), first)
    assert tried[-1] == "Hello." and len(tried) == 131
