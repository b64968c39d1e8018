"""A small run whose users err on purpose: their episodes are counted, shown, and teach nothing."""

import dataclasses

import numpy as np
import pytest
from erring_users import Users, serving

from tarl_jax.config import from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.runs.metrics import read_metrics, read_trajectories, trajectory_files
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.text.chat import Chat
from tarl_jax.text.reading import read_turn
from tarl_jax.training.learn import Learner
from tarl_jax.training.masking import masked
from tarl_jax.training.train import train
from tarl_jax.view.terminal import list_line, render

FAULTS = ("stops", "other_order", "recites", "tool_text", "record")  # possible with any agent


def run_config(folder, cache_dir, url):
    config = sized("tiny")
    config.workdir = str(folder)
    config.log.update(live=False, trajectories=64)
    config.warm_start.update(cache_dir=str(cache_dir), steps=0)
    config.model.num_layers = 1
    config.rollout.update(tasks_per_step=2, group_size=8, slots=2, max_episode_tokens=128,
                          max_turn_tokens=8, max_turns=3)
    # An entropy term: all episodes enter the loss but those that may not teach.
    config.rl.update(steps=2, entropy_coef=0.01)
    config.eval.update(tasks=2, final_tasks=4, trials=2, every=0)
    config.user.kind = "llm"
    config.user.llm.update(model="erring", base_url=url, api_key_env="", backoff_seconds=0.0)
    return from_config_dict(config)


def test_the_loss_sees_no_episode_whose_user_was_at_fault(tmp_path, cache_dir, monkeypatch):
    config = run_config(tmp_path / "run", cache_dir, "http://nowhere/v1")
    domain = embedded_domain("retail", config.shop)
    users = Users([task for split in ("train", "held_out")
                   for task in make_tasks(domain, config.shop, config.tasks, split)],
                  faults=FAULTS)
    learned = []
    samples = Learner._samples

    def seen(self, chosen, trajectories, credit):
        learned.extend(trajectories[i] for i in chosen)
        return samples(self, chosen, trajectories, credit)

    monkeypatch.setattr(Learner, "_samples", seen)
    # A policy that has learned nothing says nothing: whatever it writes means this.
    said = read_turn("One moment, please.")
    monkeypatch.setattr(Chat, "read", lambda self, ids: (said, said.action))
    with serving(users) as url:
        train(run_config(tmp_path / "run", cache_dir, url))
    played = [t for path in trajectory_files(tmp_path / "run").values()
              for t in read_trajectories(path)]
    at_fault = [t for t in played if opening(t) in users.made]
    right = [t for t in played if opening(t) not in users.made]
    assert len(at_fault) >= 4 and len(right) >= 6
    assert sum(bool(t.user_faults) for t in at_fault) >= 0.95 * len(at_fault)
    assert not any(t.user_faults for t in right)
    assert learned and not any(opening(t) in users.made for t in learned)
    assert {opening(t) for t in learned} <= {opening(t) for t in right}
    # Counted, by step and by evaluation.
    lines = read_metrics(tmp_path / "run")
    shares = [line["user/at_fault"] for line in lines if line["kind"] == "train"]
    assert np.mean(shares) == pytest.approx(sum(map(bool, (t.user_faults for t in played)))
                                            / len(played))
    assert all(line["user/checked"] == 1 for line in lines if line["kind"] == "train")
    assert "eval/user/at_fault" in next(line for line in lines if line["kind"] == "base")
    # Shown.
    one = next(t for t in played if t.user_faults)
    assert "user fault" in str(list_line(0, one, 120))
    assert any(one.user_faults[0][:20] in str(part) for part in render(one))


def opening(trajectory):
    return next(s.text for s in trajectory.segments if s.role == "user")


def test_whether_they_teach_is_a_field(tiny_config, tiny_env):
    episode = tiny_env.episode(tiny_env.train_tasks[0], "x")
    episode.start()
    episode.cut()
    whole = dataclasses.replace(episode.trajectory(), stop_reason="user_stop", success=True)
    wrong = dataclasses.replace(whole, user_faults=["leaks: all"])
    kept = dataclasses.replace(tiny_config.user, leave_out_faults=False)
    for t, user, success in [(whole, tiny_config.user, True), (wrong, tiny_config.user, None),
                             (wrong, kept, True)]:
        config = dataclasses.replace(tiny_config, user=user)
        assert masked([t], config)[0].success is success and t.success
