"""Imitation: what is learned from, that it learns, and that it is done once."""

from __future__ import annotations

import dataclasses
import json
import runpy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from tarl_jax.config import ConfigError, RunConfig, TarlError, from_config_dict
from tarl_jax.config.audio import AudioConfig
from tarl_jax.config.presets import sized
from tarl_jax.maths.answers import final_answer
from tarl_jax.models import decoder
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs.checkpoint import load_params
from tarl_jax.runs.stopping import Interrupted
from tarl_jax.sandbox import shop
from tarl_jax.text.chat import Chat
from tarl_jax.training import ship_base
from tarl_jax.training.policy import make_updater
from tarl_jax.training.train import train
from tarl_jax.types import Call
from tarl_jax.warm_start import shipped
from tarl_jax.warm_start.demonstrations import (
    demonstrate,
    shop_of,
    with_more_errors,
)
from tarl_jax.warm_start.hearing import beginner
from tarl_jax.warm_start.recipe import warm_start, warm_start_digest
from tarl_jax.warm_start.shipped import shipped_policy


def demonstrations_of(config, env):
    settings = config.warm_start
    return demonstrate(config, env, settings.clerk, settings.episodes)


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


def test_the_package_keeps_a_policy_that_hears():
    made = runpy.run_path(str(Path(__file__).parents[2] / "configs/omni_noisy.py"))
    config = from_config_dict(made["get_config"]())
    fits(config, "omni_noisy.npz", 3e6)
    # It began at the audio encoder of one of an earlier commit, which its record names.
    encoder = beginner(config)
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(encoder))


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
    (tmp_path / "note.txt").write_text("not a record")
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


def test_a_policy_of_the_package_has_one_name_and_a_name_one_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    shipped.ship_policy("one", {"a": np.ones(2)}, {"digest": "1"})
    shipped.ship_policy("one", {"a": np.zeros(2)}, {"digest": "1"})  # made anew
    params, path = shipped_policy("1")
    assert path.name == "one.npz" and not params["a"].any()
    with pytest.raises(TarlError, match=r"one\.json: is of another config"):
        shipped.ship_policy("one", {}, {"digest": "2"})
    with pytest.raises(TarlError, match=r"one\.json: is of the same config"):
        shipped.ship_policy("two", {}, {"digest": "1"})
    assert not (tmp_path / "two.npz").exists()
    for broken in ("{", "[]", '{"digest": "3"}'):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(TarlError, match=r"broken\.json: is not a record"):
            shipped_policy("1")


@pytest.mark.slow
def test_the_warm_start_of_a_run_becomes_the_packages(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "package")
    (tmp_path / "package").mkdir()
    config = dataclasses.replace(
        tiny_config, name="mine", workdir=str(tmp_path / "run"),
        rl=dataclasses.replace(tiny_config.rl, steps=0),
        eval=dataclasses.replace(tiny_config.eval, before=True),
        warm_start=dataclasses.replace(
            tiny_config.warm_start, episodes=24, branches=3, steps=2, cache_dir=str(tmp_path)
        ),
    )
    train(config)
    ship_base.ship(tmp_path / "run", "by hand")
    env = Environment.from_config(config)
    found, path = started(config, env)
    assert path == tmp_path / "package/mine.npz"
    (cached,) = tmp_path.glob("warm_start-" + "[0-9a-f]" * 16)
    made = load_params(cached, make_updater(config, env).policy_shapes)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(np.asarray(a).astype(np.float16), np.asarray(b))
    said = json.loads(path.with_suffix(".json").read_text())
    assert said["command"] == "by hand" and 0 <= said["before_rounding"]["pass^1"] <= 1
    record = tmp_path / "run/config.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "sft.steps": 3}))
    with pytest.raises(TarlError, match=r"began at more than a warm start \(config\.sft\.steps\)"):
        ship_base.ship(tmp_path / "run", "by hand")
    record.write_text(json.dumps(values))
    (tmp_path / "run/summary.json").unlink()
    with pytest.raises(TarlError, match=r"eval\.before=True"):
        ship_base.ship(tmp_path / "run", "by hand")



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
