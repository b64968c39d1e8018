"""Imitation: what is learned from, that it learns, and that it is done once."""

from __future__ import annotations

import dataclasses
import re
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
import pytest

from tarl_jax.config import ConfigError, RunConfig, TarlError, from_config_dict
from tarl_jax.config.audio import AudioConfig
from tarl_jax.config.presets import sized
from tarl_jax.config.warm_start import SpeechStageConfig
from tarl_jax.maths.answers import final_answer
from tarl_jax.models import decoder
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs.stopping import Interrupted
from tarl_jax.sandbox import shop
from tarl_jax.speech.service import Speech
from tarl_jax.text.chat import Chat
from tarl_jax.training.policy import make_updater
from tarl_jax.types import Call
from tarl_jax.warm_start import demonstrations, shipped
from tarl_jax.warm_start.demonstrations import (
    demonstrate,
    demonstrate_spaced,
    demonstrate_spoken,
    shop_of,
    with_more_errors,
)
from tarl_jax.warm_start.imitation import make_optimizer
from tarl_jax.warm_start.recipe import warm_start, warm_start_digest
from tarl_jax.warm_start.shipped import shipped_policy


def demonstrations_of(config, env):
    settings = config.warm_start
    return demonstrate(config, env, settings.clerk, settings.episodes)


@pytest.fixture
def config(tiny_config, tmp_path):
    settings = dataclasses.replace(
        tiny_config.warm_start, episodes=24, branches=3, steps=30, batch_tokens=1024,
        cache_dir=str(tmp_path),
    )
    return dataclasses.replace(tiny_config, warm_start=settings)


def test_demonstrations_mark_the_clerks_turns_and_nothing_else(config, tiny_env):
    chat = Chat(tiny_env.tokenizer)
    calls = messages = 0
    for demonstration in demonstrations_of(config, tiny_env):
        starts = np.flatnonzero(np.diff(demonstration.agent.astype(int), prepend=0) == 1)
        ends = np.flatnonzero(np.diff(demonstration.agent.astype(int), append=0) == -1)
        assert not demonstration.agent[:2].any()
        for start, end in zip(starts, ends, strict=True):
            turn = demonstration.tokens[start : end + 1].tolist()
            assert turn.count(chat.stop_id) == 1 and turn[-1] == chat.stop_id
            _, action = chat.read(turn)
            calls += isinstance(action, Call)
            messages += isinstance(action, str)
    assert calls > 20 and messages > 20


def test_demonstrations_are_about_other_users_of_the_same_products(config, tiny_env):
    here = shop.make_shop(config.shop)
    branch = shop.make_shop(shop_of(config), 1)
    assert here["products"] == branch["products"]
    assert not here["users"].keys() & branch["users"].keys()
    said = [tiny_env.tokenizer.decode(d.tokens) for d in demonstrations_of(config, tiny_env)]
    assert not any(user in text for text in said for user in here["users"])
    assert any(user in text for text in said for user in branch["users"])


def with_maths(config, **fields):
    fields = {"num_train": 40, "num_held_out": 20, **fields}
    config = dataclasses.replace(config, maths=dataclasses.replace(config.maths, **fields))
    return config, Environment.from_config(config)


def test_a_share_of_the_demonstrations_are_worked_problems_that_no_run_plays(config, tiny_env):
    plain = demonstrations_of(config, tiny_env)
    config, env = with_maths(config, demonstrations=0.25)
    mixed = demonstrations_of(config, env)
    for one, other in zip(plain, mixed, strict=False):
        np.testing.assert_array_equal(one.tokens, other.tokens)
    worked = mixed[len(plain):]
    assert len(worked) == len(mixed) // 4 == 8
    played = {t.instruction for t in env.maths.train_tasks + env.maths.held_out_tasks}
    for demonstration in worked:
        said = demonstration.tokens[demonstration.agent].tolist()
        _, solution = env.chat.read(said)
        assert said[-1] == env.chat.stop_id and final_answer(solution)
        prompt = env.tokenizer.decode(demonstration.tokens[~demonstration.agent])
        assert prompt.startswith("<|im_start|>system\nSolve the problem.")
        assert not any(f"user\n{text}<|im_end|>" in prompt for text in played)


def test_maths_is_in_the_name_only_where_it_is_demonstrated(config, tiny_env):
    plain = warm_start_digest(config, tiny_env)
    assert warm_start_digest(*with_maths(config, ratio=(0.5,))) == plain
    names = {
        warm_start_digest(*with_maths(config, demonstrations=0.25)),
        warm_start_digest(*with_maths(config, demonstrations=0.5)),
        warm_start_digest(*with_maths(config, demonstrations=0.25, seed=1)),
        warm_start_digest(
            *with_maths(config, demonstrations=0.25, levels=(1.0, 0.0, 0.0, 0.0, 0.0))
        ),
    }
    assert len(names | {plain}) == 5


def started(config, env, progress=lambda *_: None, score=None):
    updater = make_updater(config, env)
    return warm_start(config, env, updater, jax.random.key(0), progress, score)


def test_imitation_lowers_the_loss_and_is_done_once(config, tiny_env):
    losses = []

    def progress(what, step, steps, loss):
        if what == "imitating":
            losses.append(loss)

    params, folder = started(config, tiny_env, progress)
    assert len(losses) == 3 and losses[-1] < losses[0] - 0.5
    again, same = started(config, tiny_env, progress)
    assert same == folder and len(losses) == 3
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_a_warm_start_that_was_stopped_goes_on_where_it_was(config, tiny_env, tmp_path):
    """Twice stopped, it has taken each step once, and comes to the same parameters, bit for bit."""
    whole, _ = started(config, tiny_env)
    settings = dataclasses.replace(config.warm_start, cache_dir=str(tmp_path / "other"))
    other = dataclasses.replace(config, warm_start=settings)
    steps = []

    def stopping_at(limit):
        def progress(what, step, total, loss):
            if what == "imitating":
                steps.append(step)
                if step == limit:
                    raise Interrupted("enough", 2)
        return progress

    for limit in (10, 20):
        with pytest.raises(Interrupted):
            started(other, tiny_env, stopping_at(limit))
        kept = sorted(p.name.rpartition(".")[2] for p in (tmp_path / "other").iterdir())
        assert kept == ["part"], "the lock is given back, and nothing looks like a whole one"
    params, folder = started(other, tiny_env, stopping_at(None))
    assert steps == [10, 20, config.warm_start.steps]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(whole), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert [p.name for p in (tmp_path / "other").iterdir()] == [folder.name]


def test_whoever_comes_second_waits_and_takes_what_the_first_one_made(config, tiny_env):
    """Both begin with an empty cache; imitation happens once."""
    imitated, waited = [], []
    waits, begun = threading.Event(), threading.Event()

    def first(what, step, steps, loss):
        if what == "imitating":
            imitated.append(step)
            begun.set()
            assert waits.wait(60)

    def second(what, step, steps, loss):
        assert what.startswith("waiting for process")
        waited.append(what)
        waits.set()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(started, config, tiny_env, first)
        assert begun.wait(60)
        found, folder = started(config, tiny_env, second)
        made, _ = running.result()
    assert waited and len(imitated) == 3
    jax.tree.map(np.testing.assert_array_equal, made, found)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("target", [0.0, 0.4])
@pytest.mark.parametrize("section, change, scores", [
    ("warm_start", {"score_tasks": 3}, True),
    ("warm_start", {"error_factor": 3.0}, True),
    ("rollout", {"max_turn_tokens": 13}, True),
    ("rollout", {"max_episode_tokens": 999}, False),  # beyond the warm start's own length
    ("rollout", {"max_turns": 99}, False),
    ("eval", {"tasks": 3, "trials": 7}, False),  # of the run, not of the policy
    ("tasks", {"requests": (0.0, 0.0, 1.0)}, False),
    ("shop", {"seed": 3, "num_users": 30}, False),
    ("warm_start", {"make": True, "cache_dir": "elsewhere"}, False),
])
def test_the_name_holds_what_the_policy_depends_on_and_no_more(
    config, tiny_env, target, section, change, scores
):
    def named(**fields):
        settings = dataclasses.replace(config.warm_start, target_pass=target, max_tokens=256)
        run = dataclasses.replace(config, warm_start=settings)
        return warm_start_digest(dataclasses.replace(
            run, **{section: dataclasses.replace(getattr(run, section), **fields)}
        ), tiny_env)

    assert (named() != named(**change)) == (scores and target > 0)


def test_the_package_keeps_the_policy_of_the_embedded_default():
    """The default config finds it, it is the file that its record describes, and it fits."""
    fits(RunConfig(), "default.npz", 3e6)
    assert shipped_policy("another") is None


def fits(config, name, most):
    env = Environment.from_config(config)
    found = shipped_policy(warm_start_digest(config, env))
    assert found is not None, f"{name} is of another config: run tarl_jax.training.ship_base"
    params, path = found
    assert path.name == name and path.stat().st_size < most
    shapes = jax.eval_shape(
        lambda: decoder.init_params(config.model, env.vocab_size, jax.random.key(0))
    )
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_a_kept_policy_is_used_and_a_damaged_one_is_named(config, tiny_env, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    made, _ = started(config, tiny_env)
    shipped.ship_policy("other", {}, {"digest": "another"})
    shipped.ship_policy("default", made, {"digest": warm_start_digest(config, tiny_env)})
    kept, where = started(config, tiny_env)
    assert where == tmp_path / "default.npz"
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(np.asarray(a).astype(np.float16), np.asarray(b))
    anew = dataclasses.replace(
        config, warm_start=dataclasses.replace(config.warm_start, make=True)
    )
    again, where = started(anew, tiny_env)
    assert where != tmp_path / "default.npz"
    jax.tree.map(np.testing.assert_array_equal, made, again)
    with (tmp_path / "default.npz").open("ab") as file:
        file.write(b"!")
    with pytest.raises(TarlError, match=r"is not the file that default\.json describes"):
        started(config, tiny_env)


@pytest.mark.slow
def test_a_policy_that_is_too_good_imitates_a_clerk_with_more_errors(config, tiny_env):
    """Until the score has come down; what the cache keeps is the policy of the last score."""
    settings = dataclasses.replace(config.warm_start, target_pass=0.4, steps=200)
    config = dataclasses.replace(config, warm_start=settings)
    with pytest.raises(ValueError, match="the warm start of this run is gone"):
        started(config, tiny_env)
    scores, seen = iter([0.9, 0.41, 0.4, 0.1]), []

    def score(params):
        seen.append(jax.device_get(params["embed"]))
        return next(scores)

    params, _ = started(config, tiny_env, score=score)
    assert len(seen) == 3 and not np.array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(params["embed"], seen[-1])
    again, _ = started(config, tiny_env)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_a_policy_that_is_no_better_than_wanted_stays_as_it_is(config, tiny_env):
    assert config.warm_start.target_pass == 0.0
    plain, _ = started(config, tiny_env)
    settings = dataclasses.replace(config.warm_start, target_pass=0.4)
    config = dataclasses.replace(config, warm_start=settings)
    other, _ = started(config, tiny_env, score=lambda _: 0.4)
    jax.tree.map(np.testing.assert_array_equal, plain, other)


def test_a_clerk_with_more_errors_errs_no_more_than_always(config):
    clerk = config.warm_start.clerk
    worse = with_more_errors(clerk, 6.0)
    assert worse.false_done == pytest.approx(6 * clerk.false_done)
    assert worse.ignore_rule == 1.0
    assert worse.skip_confirmation == clerk.skip_confirmation  # which only a judge would see
    assert worse.retry == clerk.retry  # which is no error


@pytest.mark.parametrize("section, change", [
    ("warm_start", {"steps": 31}),
    ("warm_start", {"target_pass": 0.4}),
    ("warm_start", {"seed": 1}),
    ("model", {"d_ff": 48}),
    ("warm_start", {"num_users": 30}),
    ("warm_start", {"change_mind": 0.9}),
    ("warm_start", {"max_tokens": 99}),
    ("warm_start", {"max_turns": 9}),
    ("rollout", {"brief_writes": False}),
])
def test_whatever_changes_the_warm_start_changes_its_name(config, tiny_env, section, change):
    other = dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **change)}
    )
    assert warm_start_digest(other, tiny_env) != warm_start_digest(config, tiny_env)


def test_no_branches_is_an_error():
    data = sized("tiny")
    data.warm_start.branches = 0
    with pytest.raises(ConfigError, match=r"config\.warm_start\.branches = 0"):
        from_config_dict(data)


def test_an_audio_encoder_that_is_not_there_changes_no_warm_start(tiny_config, tiny_env):
    name = warm_start_digest(tiny_config, tiny_env)
    deaf = dataclasses.replace(tiny_config.model, audio=AudioConfig(d_model=64))
    assert warm_start_digest(dataclasses.replace(tiny_config, model=deaf), tiny_env) == name
    hearing = dataclasses.replace(tiny_config.model, audio=AudioConfig(encoder_layers=1))
    assert warm_start_digest(dataclasses.replace(tiny_config, model=hearing), tiny_env) != name


# ---- by speech ---------------------------------------------------------------------------------


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
    encoder = AudioConfig(
        num_mel_bins=8, d_model=12, encoder_layers=1, encoder_attention_heads=2,
        encoder_ffn_dim=16, n_window=10, output_dim=config.model.d_model,
    )
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
    assert {1, 2, 3, 4, 5, 6, 7} <= set(gaps)


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
