"""How a policy that reads learns to hear: what, in which order, and that it is done once."""

from __future__ import annotations

import dataclasses
import re
import shutil
from concurrent.futures import Future
from pathlib import Path

import jax
import numpy as np
import pytest
from small_encoder import small_encoder

from tarl_jax.config import InputError
from tarl_jax.config.warm_start import SpeechStageConfig
from tarl_jax.models import decoder
from tarl_jax.rollout.environment import Environment
from tarl_jax.speech.service import Speech
from tarl_jax.training.policy import make_updater
from tarl_jax.warm_start import demonstrations, hearing, shipped
from tarl_jax.warm_start.demonstrations import (
    demonstrate,
    demonstrate_spaced,
    demonstrate_spoken,
)
from tarl_jax.warm_start.imitation import Kept, make_optimizer
from tarl_jax.warm_start.recipe import warm_start, warm_start_digest


def started(config, env, progress=lambda *_: None, score=None):
    updater = make_updater(config, env)
    return warm_start(config, env, updater, jax.random.key(0), progress, score)


class Hum:
    """A synthesiser whose clips are as long as their texts."""

    def say(self, text, voice):
        time = np.arange(640 * len(text)) / 16_000
        return (np.sin(2 * np.pi * 300 * time) * 9000).astype(np.int16) / np.float32(32768)

    def version(self, voice):
        return "hum"

    def close(self): ...


@pytest.fixture
def by_speech(config):
    speech_stage = SpeechStageConfig(
        episodes=6, spaced=6, value_steps=2, steps=2, joint_steps=2, batch_seconds=4.0,
        batch_tokens=1024,
    )
    encoder = small_encoder(config.model.d_model)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, audio=encoder),
        warm_start=dataclasses.replace(config.warm_start, steps=2, speech_stage=speech_stage),
        rollout=dataclasses.replace(config.rollout, max_episode_tokens=1024),
    )
    return config, Environment.from_config(config)


def test_spoken_demonstrations_are_the_written_ones_said(by_speech):
    config, env = by_speech
    clerk, episodes = config.warm_start.clerk, 6
    written = demonstrate(config, env, clerk, episodes)
    with Speech(Hum(), workers=1, voices=("a",)) as speech:
        spoken, alone = demonstrate_spoken(config, env, clerk, episodes, speech)
    assert len(spoken) == len(written) == 6
    (placeholder,) = env.tokenizer.encode_markup("<|AUDIO|>")
    for plain, other in zip(written, spoken, strict=True):
        np.testing.assert_array_equal(plain.tokens[plain.agent], other.tokens[other.agent])
        places = other.audio_inputs.places
        assert set(other.tokens[places > 0]) == {placeholder} and placeholder not in plain.tokens
        assert (places > 0).sum() == sum(t.tokens for t in other.said)
        sample = other.sample(0.5)
        assert not sample.advantages[places > 0].any()
        assert sample.audio_inputs is other.audio_inputs
        text, said = env.tokenizer.decode(plain.tokens), other.said
        assert all(env.tokenizer.decode(t.text) in text for t in said)
        assert text.count("<|im_start|>user\n") - text.count("<tool_response>") == len(said)
    values = [env.tokenizer.decode(t.text) for t in alone]
    ids = {v for v in values if v.startswith("#W")}
    assert len(values) >= 18 and len(ids) >= 6
    assert sum("@" in v for v in values) == 6
    assert sum(bool(re.fullmatch(r"\w+ \w+, \d{3}\.", v)) for v in values) == 6
    assert all(re.fullmatch(r"#W\d{3}\.", v) for v in ids)


def test_spaced_demonstrations_are_the_written_ones_with_placeholders_between(by_speech):
    config, env = by_speech
    config = dataclasses.replace(
        config, warm_start=dataclasses.replace(config.warm_start, max_tokens=4096)
    )
    clerk, episodes = config.warm_start.clerk, 6
    written = demonstrate(config, env, clerk, episodes)
    spaced = demonstrate_spaced(config, env, clerk, episodes)
    placeholder, begin, end = (
        env.tokenizer.encode_markup(f"<|{name}|>")[0]
        for name in ("AUDIO", "audio_bos", "audio_eos")
    )
    assert len(written) == len(spaced) == 6
    gaps = []
    for plain, other in zip(written, spaced, strict=True):
        kept = other.tokens[~np.isin(other.tokens, (placeholder, begin, end))]
        np.testing.assert_array_equal(kept, plain.tokens)
        np.testing.assert_array_equal(other.tokens[other.agent], plain.tokens[plain.agent])
        inside = np.cumsum(other.tokens == begin) > np.cumsum(other.tokens == end)
        np.testing.assert_array_equal(other.spoken, inside & (other.tokens != begin))
        assert other.audio_inputs is None and not plain.spoken.any()
        assert not other.sample(0.5).advantages[other.spoken].any()
        gaps += np.diff(np.flatnonzero(other.spoken & (other.tokens != placeholder))).tolist()
    # As between what is said: half of them are at most 8, some much longer.
    assert 6 <= np.median(gaps) <= 9 and 1 in gaps and 12 <= np.percentile(gaps, 75) <= 20


def test_acoustics_of_spoken_demonstrations_are_drawn_by_the_turn(by_speech, monkeypatch):
    config, env = by_speech
    noisy = dataclasses.replace(
        config.speech, acoustics=("hesitant:0.5", "white:5..30", "telephone"), clean=0.2,
        acoustics_per="turn",
    )

    def asked(speech):
        """What is asked of a `Speech`, what is applied behind it, and how much is said alone."""
        said, applied = [], []

        class Asked:
            def submit(self, text, voice, effects, seed):
                said.append(tuple(effects))
                found = Future()
                found.set_result(Hum().say(text, voice))
                return found

        def apply(clip, effects, seed, babblers):
            applied.append(effects)
            return clip / 2 if effects else clip

        monkeypatch.setattr(demonstrations, "apply", apply)
        one = dataclasses.replace(config, speech=speech)
        found, alone = demonstrate_spoken(one, env, config.warm_start.clerk, 6, Asked())
        whole = [np.abs(t.clip).max() for d in found for t in d.said]
        assert min(whole) == max(whole)  # what is to be transcribed is without
        return said, applied, len(alone), sum(len(d.said) for d in found)

    said, applied, alone, turns = asked(noisy)
    assert len(said) == alone + turns and len(applied) == turns
    assert {e[0].name if e else "clean" for e in said} == {"clean", "hesitant"}
    assert {e[0].name if e else "clean" for e in applied} == {"clean", "white", "telephone"}
    assert len({e[0].value for e in applied if e and e[0].name == "white"}) > 3
    assert asked(noisy)[:2] == (said, applied)
    _, by_episode, _, _ = asked(dataclasses.replace(noisy, acoustics_per="episode"))
    assert len(set(by_episode)) < len(set(applied))


def test_hearing_begins_in_silence_and_no_stage_hears_what_another_heard(by_speech, monkeypatch):
    config, env = by_speech
    taken = {}

    def teach(trainer, what, steps, progress, kept):
        taken[what] = [next(trainer._lessons[-1 if what == "acting on speech" else 0].batches)()
                       for _ in range(5)]
        return trainer.params

    monkeypatch.setattr(hearing, "teach", teach)
    monkeypatch.setattr(
        Speech, "from_config", lambda config: Speech(Hum(), workers=1, voices=("a",))
    )

    def heard(clean_steps, **speech):
        stage = dataclasses.replace(config.warm_start.speech_stage, clean_steps=clean_steps)
        one = dataclasses.replace(
            config, warm_start=dataclasses.replace(config.warm_start, speech_stage=stage),
            speech=dataclasses.replace(config.speech, **speech),
        )
        folder = config.warm_start.cache_dir
        material = hearing.Material(one, env, lambda *now: None, Kept(Path(folder) / "none"))
        params = decoder.init_params(one.model, env.vocab_size, jax.random.key(0))
        hearing.act_on_speech(material, hearing.transcribe(material, params))
        name = warm_start_digest(one, env)
        mels = {what: [batch.pieces.mel.tobytes() for batch in found]
                for what, found in taken.items()}
        return name, mels["spelling"], mels["transcribing"], mels["acting on speech"]

    noise = {"acoustics": ("white:0..10",), "clean": 0.0}
    silent, spelled, plain, _ = heard(2)
    name, spelled_too, begun, acted = heard(2, **noise)
    assert spelled == spelled_too and begun[:2] == plain[:2]
    assert not set(begun[2:]) & set(plain)
    assert not set(acted) & {*begun, *plain}
    assert heard(0, **noise)[2][0] == begun[2]  # the same, from the beginning
    assert heard(0, **noise)[0] != name
    assert heard(0)[:3] == (silent, spelled, plain)


def test_hearing_may_begin_at_an_encoder_of_the_package(by_speech, monkeypatch, tmp_path):
    config, env = by_speech
    noisy = dataclasses.replace(config.speech, acoustics=("white:0..10",), clean=0.0)
    monkeypatch.setattr(
        Speech, "from_config", lambda config: Speech(Hum(), workers=1, voices=("a",))
    )
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    params, other = (
        decoder.init_params(config.model, env.vocab_size, jax.random.key(k)) for k in (0, 1)
    )
    kept = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), other["audio"])

    def beginning(name, clean_steps=2):
        stage = dataclasses.replace(
            config.warm_start.speech_stage, encoder=name, clean_steps=clean_steps
        )
        return dataclasses.replace(
            config, speech=noisy,
            warm_start=dataclasses.replace(config.warm_start, speech_stage=stage),
        )

    untaught = warm_start_digest(beginning(""), env)
    shipped.ship_policy("reader", {"embed": other["embed"]}, {"digest": "1"})
    shipped.ship_policy("mine", other, {"digest": "2"})
    one = beginning("mine")
    name = warm_start_digest(one, env)
    assert name != untaught
    assert warm_start_digest(beginning("mine", 7), env) == name  # it knows noise already
    begun = {}

    def teach(trainer, what, steps, progress, kept):
        begun[what] = trainer.params.get("audio", trainer.params), [
            next(trainer._lessons[0].batches)() for _ in range(2)]
        return jax.tree.map(lambda x: x + 1, trainer.params)

    monkeypatch.setattr(hearing, "teach", teach)
    for of, there in ((one, True), (beginning(""), False)):
        material = hearing.Material(of, env, lambda *now: None, Kept(tmp_path / "none"))
        learned = hearing.transcribe(material, params)
        for what in ("spelling", "transcribing"):
            equal = jax.tree.map(np.array_equal, begun[what][0], kept)
            assert all(jax.tree.leaves(equal)) == there
        heard = [batch.pieces.mel.tobytes() for batch in begun["transcribing"][1]]
        first = next(hearing._in_silence(material, material.clips))
        assert (first().pieces.mel.tobytes() in heard) != there
        assert not np.array_equal(learned["embed"], params["embed"])

    shipped.ship_policy("mine", params, {"digest": "2"})
    assert warm_start_digest(one, env) not in (name, untaught)
    for wrong in ("reader", "nobody"):
        with pytest.raises(InputError, match=rf"encoder='{wrong}': .* choose one of mine, or ''"):
            warm_start_digest(beginning(wrong), env)
    narrow = jax.tree.map(lambda x: x[..., :1], params)
    shipped.ship_policy("mine", narrow, {"digest": "2"})
    # Before anything is made.
    monkeypatch.setattr(hearing.Material, "written", None)
    with pytest.raises(InputError, match=r"encoder='mine': has other shapes than config\.model"):
        started(one, env)


@pytest.mark.slow
def test_a_warm_start_with_speech_trains_both_and_is_done_once(by_speech, monkeypatch):
    config, env = by_speech
    stage = dataclasses.replace(config.warm_start.speech_stage, frequency_masks=1, time_masks=1,
                                frequency_mask_bins=3)
    config = dataclasses.replace(
        config, warm_start=dataclasses.replace(config.warm_start, speech_stage=stage),
        speech=dataclasses.replace(config.speech, acoustics=("white:5..30", "loss:5"), clean=0.3,
                                   acoustics_per="turn"),
    )
    env = dataclasses.replace(env, config=config)

    def hum(config):
        return Speech(Hum(), workers=1, voices=("a",))

    monkeypatch.setattr(Speech, "from_config", hum)
    seen = []
    params, folder = started(config, env, lambda *now: seen.append(now[:3]))
    assert [what for what, step, steps in seen if step == steps] == [
        "writing dialogues", "imitating", "speaking", "spelling", "transcribing",
        "acting on speech"]
    deaf = dataclasses.replace(config.warm_start, speech_stage=SpeechStageConfig())
    reader, other = started(dataclasses.replace(config, warm_start=deaf), env)
    start = decoder.init_params(config.model, env.vocab_size, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, reader["audio"], start["audio"])
    assert folder != other and not np.array_equal(params["audio"]["conv1"], start["audio"]["conv1"])
    assert not np.array_equal(params["layers"]["wq"], reader["layers"]["wq"])
    monkeypatch.setattr(Speech, "from_config", None)
    again, same = started(config, env)
    assert same == folder
    jax.tree.map(np.testing.assert_array_equal, params, again)

    # One that was stopped in its last stage has transcribed already, and ends as it would have.
    monkeypatch.setattr(Speech, "from_config", hum)
    shutil.rmtree(folder)
    seen.clear()
    resumed, same = started(config, env, lambda *now: seen.append(now[:3]))
    assert [what for what, step, steps in seen if step == steps] == [
        "speaking", "writing dialogues", "acting on speech"]
    assert same == folder
    jax.tree.map(np.testing.assert_array_equal, params, resumed)


def test_muon_trains_the_matrices_of_an_audio_encoder_and_of_a_policy(by_speech):
    config, env = by_speech
    params = decoder.init_params(config.model, env.vocab_size, jax.random.key(0))

    def with_muon(tree):
        chain = jax.eval_shape(make_optimizer(config.warm_start).init, tree)
        momenta = chain[1].inner_states["muon"].inner_state[0].mu
        found = jax.tree_util.tree_leaves_with_path(momenta)
        return {"/".join(part.key for part in path) for path, _ in found}

    layers = {f"layers/{name}" for name in ("wq", "wk", "wv", "wo", "w_up", "w_down")}
    assert with_muon(params["audio"]) == layers | {"conv1", "conv2", "project"}
    assert with_muon(params) == layers | {"layers/w_gate"}


def test_who_speaks_is_in_the_name_of_a_policy_that_hears(by_speech):
    config, env = by_speech
    names = []
    for change in ({}, {"voices": ("en",)}, {"speed": (1.0, 1.1)}, {"acoustics": ("telephone",)},
                   {"share": 1.0, "cache_dir": "elsewhere", "workers": 7}):  # fmt: skip
        speech = dataclasses.replace(config.speech, **change)
        names.append(warm_start_digest(dataclasses.replace(config, speech=speech), env))
    assert len(set(names[:4])) == 4 and names[4] == names[0]
    voices = ("en", "en-us")
    held_out = dataclasses.replace(config.speech, voices=voices, held_out=("en-us",))
    name = warm_start_digest(dataclasses.replace(config, speech=held_out), env)
    assert name == names[1]  # whoever is held out teaches nothing
    frozen = dataclasses.replace(config.model.audio, frozen=True)
    model = dataclasses.replace(config.model, audio=frozen)
    assert warm_start_digest(dataclasses.replace(config, model=model), env) == names[0]
    for fields, same in (({"frequency_mask_bins": 9}, True), ({"time_masks": 1}, False)):
        stage = dataclasses.replace(config.warm_start.speech_stage, **fields)
        warm = dataclasses.replace(config.warm_start, speech_stage=stage)
        found = warm_start_digest(dataclasses.replace(config, warm_start=warm), env)
        assert (found == names[0]) == same
