"""Parts of a user's own: the page's example trains with all of them, and what is wrong is named."""

import dataclasses
import functools
import inspect
import json
import pickle
import re
import traceback
from pathlib import Path

import numpy as np
import pytest
from processes import free_port, outputs, start

import tarl_jax
from tarl_jax.config import ConfigError, InputError, RunConfig, from_config_dict
from tarl_jax.judge.rules import Judgement
from tarl_jax.judge.service import Judge
from tarl_jax.rl.rewards import Reward
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs.command import load_parts
from tarl_jax.runs.directory import open_run_dir
from tarl_jax.runs.metrics import read_metrics, read_trajectories, trajectory_files
from tarl_jax.training.credit import assign, reward
from tarl_jax.training.learn import Learner
from tarl_jax.training.parts import Parts, checked, record
from tarl_jax.training.train import train

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text("utf-8")
(LIBRARY,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The page's config file."""
    path = tmp_path_factory.mktemp("configs") / "library.py"
    path.write_text(LIBRARY)
    return path


@pytest.fixture(scope="module")
def finished(library, tmp_path_factory, cache_dir):
    """(config, parts, run directory) of three steps with them."""
    names: dict = {"__name__": "library"}
    exec(compile(LIBRARY, str(library), "exec"), names)
    tiny = names["get_config"]("tiny")
    tiny.warm_start.cache_dir = str(cache_dir)
    tiny.warm_start.steps, tiny.warm_start.episodes = 60, 100
    tiny.rollout.tasks_per_step, tiny.log.trajectories = 2, 8
    tiny.eval.update({"tasks": 2, "final_tasks": 2, "trials": 2})
    config = dataclasses.replace(
        from_config_dict(tiny), workdir=str(tmp_path_factory.mktemp("runs") / "library")
    )
    parts = load_parts(library)
    train(config, parts)
    return config, parts, Path(config.workdir)


def episodes(run):
    return [t for path in trajectory_files(run).values() for t in read_trajectories(path)]


def test_the_page_is_short():
    assert len(PAGE.splitlines()) <= 100


def test_a_domain_its_tasks_and_users_are_played(finished):
    _, _, run = finished
    found = episodes(run)
    assert len(found) == 3 * 2 * 4
    assert {t.task.source for t in found} == {"library"}
    for t in found:
        assert t.segments[0].text == "You lend books. Find the book, then lend it."
        assert t.segments[1].text == f"Hello. {t.task.instruction}"


def test_an_own_judge_and_reward_are_what_counts(finished):
    _, _, run = finished
    for t in episodes(run):
        assert set(t.judge_notes) <= {"refused", "fine"} and len(t.judge_notes) == len(t.turns)
        wanted = 10.0 * t.success + sum(t.turn_scores) - 0.01 * t.num_tokens
        assert t.reward == pytest.approx(wanted)
        assert t.reward_parts["major"] == pytest.approx(-0.01 * t.num_tokens)
    steps = [r for r in read_metrics(run) if r["kind"] == "train"]
    first = [t.reward for t in episodes(run)[:8]]
    assert steps[0]["reward/mean"] == pytest.approx(np.mean(first))
    assert steps[0]["judge/abstained"] == 0


def test_an_own_advantage_and_loss_are_what_is_learned_from(finished):
    """The first update's loss is REINFORCE's on the distance to the group's median."""
    _, _, run = finished
    for number, step in enumerate(r for r in read_metrics(run) if r["kind"] == "train"):
        groups = np.reshape(np.arange(8), (2, 4)) + 8 * number
        found = episodes(run)
        total = count = 0.0
        for group in groups:
            rewards = np.array([found[i].reward for i in group])
            for i, gap in zip(group, rewards - np.median(rewards), strict=True):
                if not gap:
                    continue  # has nothing to teach: it is left out
                _, sampled, log_probs = found[i].arrays()
                total -= gap * log_probs[sampled].sum()
                count += sampled.sum()
        assert count > 0, "no group differs: the test sees nothing"
        assert step["rl/loss"] == pytest.approx(total / count, rel=1e-3)
        assert step["rl/clip_fraction"] == 0


def test_a_run_goes_on_with_its_parts_alone(finished, library, tmp_path):
    config, parts, run = finished
    kept = json.loads((run / "parts.json").read_text())
    assert kept == record(parts)
    assert kept["reward"]["name"] == "library.py:reward"
    assert kept["domain"]["name"] == "domain library" and kept["tasks"]["name"] == "8 tasks"
    open_run_dir(config, record(load_parts(library)))

    commented = tmp_path / "library.py"
    commented.write_text(LIBRARY.replace("def reward(", "\n# Only a remark.\ndef reward("))
    open_run_dir(config, record(load_parts(commented)))
    changed = tmp_path / "other" / "library.py"
    changed.parent.mkdir()
    changed.write_text(LIBRARY.replace("-0.01 *", "-0.02 *").replace('"no such book"', '"none"'))
    with pytest.raises(ConfigError, match="other parts") as error:
        open_run_dir(config, record(load_parts(changed)))
    said = str(error.value)
    assert "reward: library.py:reward -> library.py:reward (the same name, another source)" in said
    assert "domain: domain library" in said and "judge" not in said
    with pytest.raises(ConfigError, match=r"loss: library\.py:loss -> none"):
        open_run_dir(config, record(dataclasses.replace(parts, loss=None)))
    with pytest.raises(ConfigError, match=r"judge: library\.py:judge -> none"):
        open_run_dir(config)


@pytest.mark.slow
def test_two_processes_play_the_same_parts(finished, library, tmp_path):
    config, parts, run = finished
    where = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    pair = dataclasses.replace(
        config, workdir=str(tmp_path / "pair"), rl=dataclasses.replace(config.rl, steps=1)
    )
    given = tmp_path / "config.pickle"
    given.write_bytes(pickle.dumps(pair))
    script = Path(__file__).parents[1] / "two_trainers.py"
    outputs([start([script, given, library], devices=1, JAX_PROCESS_ID=str(rank), **where)
             for rank in range(2)])
    assert json.loads((tmp_path / "pair/parts.json").read_text()) == record(parts)
    (alone, *_), (together,) = (
        [r for r in read_metrics(path) if r["kind"] == "train"] for path in (run, pair.workdir)
    )
    for key in ("reward/mean", "rollout/turns", "judge/abstained", "rl/loss", "rl/grad_norm"):
        assert together[key] == pytest.approx(alone[key], rel=2e-3, abs=2e-4), key


# ---- what is wrong is named -----------------------------------------------------------------


@pytest.mark.parametrize(("parts", "named"), [
    ({"reward": 1}, "return a tarl_jax.training.parts.Parts"),
    (Parts(reward=3.0), r"Parts\(reward=3.0\): give a function of 2 arguments"),
    (Parts(judge=lambda: None), r"Parts\(judge=.*called with 1 arguments"),
    (Parts(loss=lambda a, b: None), r"Parts\(loss=.*called with 4 arguments"),
    (Parts(domain="library"), r"Parts\(domain='library'\).*Domain\("),
    (Parts(tasks=7), r"Parts\(tasks=7\): give a list"),
    (Parts(tasks=["borrow"]), "element 0 is 'borrow'"),
])
def test_a_part_of_another_kind_is_named_at_the_start(parts, named):
    with pytest.raises(ConfigError, match=named):
        checked(parts, RunConfig())


def test_a_reward_of_episodes_does_not_pay_their_parts(library):
    parts = load_parts(library)
    alone = dataclasses.replace(parts, advantage=None)
    checked(alone, from_config_dict({}))
    for data in ({"reward": {"placement": "stage"}},
                 {"rl": {"advantage": "return_to_go"}},
                 {"rl": {"advantage": "gigpo"}, "reward": {"turn_weight": 1.0}}):
        config = from_config_dict(data)
        with pytest.raises(ConfigError, match=r"Parts\(reward=.*one number for an episode"):
            checked(alone, config)
        checked(parts, config)  # an own advantage says what its parts are worth


def test_a_broken_episode_earns_nothing_and_nobody_is_asked(finished):
    config, parts, run = finished
    broken = dataclasses.replace(episodes(run)[0], success=None, turn_scores=None)
    assert reward(broken, config, None, parts.reward).total == 0
    unjudged = dataclasses.replace(broken, success=True)
    assert reward(unjudged, config, None, parts.reward).terminal == 10


def test_parts_typed_into_a_notebook_have_a_name_and_a_source():
    """Their module has no file."""
    names: dict = {"__name__": "__main__"}
    exec("class User:\n    def opening(self):\n        return 'a'\n", names)
    first = record(Parts(user=names["User"]))["user"]
    assert first["name"].endswith(":User")
    exec("class User:\n    def opening(self):\n        return 'b'\n", names)
    assert record(Parts(user=names["User"]))["user"]["source"] != first["source"]


def test_a_judges_numbers_are_made_plain(finished, tmp_path):
    config, _, run = finished
    episode = episodes(run)[0]
    count = len(episode.turns)

    def own(trajectory):
        return Judgement([np.int64(0)] * count, ["?"] * count, [np.bool_(True)] * count)

    with Judge(config.judge, tmp_path, own=own) as judge:
        (found,) = judge.judge_all([episode])
    assert {type(s) for s in found.scores} == {int} and {type(m) for m in found.minors} == {bool}


def test_parts_and_config_may_not_say_two_things(library):
    parts = load_parts(library)
    valued = from_config_dict({"rl": {"advantage": "gae", "normalise": "batch"}})
    with pytest.raises(ConfigError, match=r"rl\.advantage = 'gae'"):
        checked(parts, valued)
    with pytest.raises(ConfigError, match=r"'airline'.*'library'"):
        checked(parts, from_config_dict({"sandbox": {"domain": "airline"}}))
    assert checked(parts, from_config_dict({"sandbox": {"domain": "library"}})) is parts


def test_tasks_need_both_splits_and_ids_of_their_own(library):
    parts = load_parts(library)
    twice = [*parts.tasks, parts.tasks[0]]
    with pytest.raises(ConfigError, match="several tasks have the id 'Ada-b0'"):
        checked(dataclasses.replace(parts, tasks=twice), RunConfig())
    stray = [dataclasses.replace(parts.tasks[0], split="test")]
    with pytest.raises(ConfigError, match="split 'test'"):
        checked(dataclasses.replace(parts, tasks=stray), RunConfig())
    train_only = [t for t in parts.tasks if t.split == "train"]
    with pytest.raises(InputError, match="none has the split 'held_out'"):
        Environment.from_config(RunConfig(), parts.domain, train_only, parts.user)
    with pytest.raises(InputError, match="no script"):
        Environment.from_config(RunConfig(), parts.domain, parts.tasks)
    with pytest.raises(ConfigError, match=r"'library' has no tasks: give Parts\(tasks"):
        Environment.from_config(RunConfig(), parts.domain)
    with pytest.raises(ConfigError, match="get_parts"):
        Environment.from_config(from_config_dict({"sandbox": {"domain": "library"}}))


@pytest.mark.parametrize(("given", "named"), [
    ([1, 0], "returned .*return a Judgement"),
    (Judgement([1], ["fine"]), r"gave 1 scores and 1 notes for the \d+ turns"),
    (lambda n: Judgement([2] * n, [""] * n), "each must be -1, 0 or"),
])
def test_a_judgement_that_is_none_is_named(finished, tmp_path, given, named):
    config, _, run = finished
    episode = next(t for t in episodes(run) if len(t.turns) > 1)

    def own(trajectory):
        return given(len(trajectory.turns)) if callable(given) else given

    with (
        Judge(config.judge, tmp_path, own=own) as judge,
        pytest.raises(InputError, match=named),
    ):
        judge.judge_all([episode])


@pytest.mark.parametrize("given", [1.0, Reward(float("nan"), 0, 0), None])
def test_a_reward_that_is_none_is_named(finished, given):
    config, _, run = finished
    with pytest.raises(InputError, match=r"Parts\(reward=…\) gave"):
        reward(episodes(run)[0], config, None, lambda episode, c: given)


@pytest.mark.parametrize(("given", "named"), [
    ([[1.0]], r"gave \[1\] for groups of \[4, 4\]"),
    ([[1.0] * 4, [np.zeros(3)] * 4], r"of shape \(3,\)"),
    ([[1.0] * 4, [float("inf")] * 4], "one finite number"),
])
def test_an_advantage_that_is_none_is_named(finished, given, named):
    config, _, run = finished
    with pytest.raises(InputError, match=named):
        assign(episodes(run)[:8], config, {}, None, {}, lambda groups, c: given)


def test_nothing_is_learned_from_what_broke(finished):
    config, _, run = finished
    played = episodes(run)[:8]
    played[2] = dataclasses.replace(played[2], success=None)
    credit = assign(played, config, {}, None, {}, lambda groups, c: [[1.0] * 4] * 2)
    assert credit.used.tolist() == [True, True, False, True] + [True] * 4
    assert credit.advantages[2] == 0.0


def test_a_part_is_known_by_its_text():
    def one(episode, config):
        return Reward(1, 0, 0)

    def two(episode, config):
        return Reward(2, 0, 0)

    class Grader:
        def __call__(self, trajectory):
            return None

    assert record(Parts(reward=one))["reward"]["source"] != record(Parts(reward=two))["reward"][
        "source"]
    assert record(Parts(judge=Grader()))["judge"]["name"].endswith("Grader")
    partial = [functools.partial(one, config=value) for value in (1, 2)]
    sources = {record(Parts(reward=p))["reward"]["source"] for p in partial}
    assert len(sources) == 2
    names: dict = {"Reward": Reward}
    exec("typed = lambda episode, config: Reward(1, 0, 0)", names)  # without a file
    exec("other = lambda episode, config: Reward(3, 0, 0)", names)
    typed, other = (record(Parts(reward=names[n]))["reward"] for n in ("typed", "other"))
    assert typed["source"] != other["source"]


def test_from_train_to_the_loss_it_is_six_calls_in_five_files(
    finished, library, tmp_path, monkeypatch
):
    """A reader follows them: `train`, `update` twice, `_gradient`, `loss_sum`, the loss itself."""
    config, parts, _ = finished
    seen = []

    def loss(log_probs, batch, weights, rl):
        package = str(Path(tarl_jax.__file__).parent)
        seen.append([
            (Path(frame.filename).name, frame.name) for frame in traceback.extract_stack()
            if frame.filename.startswith(package) and "compilations" not in frame.filename
        ])
        return parts.loss(log_probs, batch, weights, rl)

    fresh = dataclasses.replace(
        config, workdir=str(tmp_path / "run"), rl=dataclasses.replace(config.rl, steps=1)
    )
    # So that the programs are traced where they are called.
    monkeypatch.setattr(Updater, "compile", lambda *args, **more: None)
    train(fresh, dataclasses.replace(parts, loss=loss))
    assert seen[0] == [
        ("train.py", "train"), ("learn.py", "update"), ("update.py", "update"),
        ("update.py", "_gradient"), ("objective.py", "loss_sum"),
    ]
    sources = [inspect.getsource(f) for f in (train, Learner.update)]
    assert "run.learner.update(" in sources[0] and "self.updater.update(" in sources[1]
