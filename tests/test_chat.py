"""A person at the terminal, scripted."""

import dataclasses
import re

import numpy as np
import pytest

from tarl_jax import chat
from tarl_jax.config import ConfigError
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.telephone import Wait
from tarl_jax.sandbox.users import scripted_user
from tarl_jax.speech.clips import save_clip
from tarl_jax.types.episodes import Trajectory
from tarl_jax.types.tasks import Call


class Acting(Engine):
    """An engine whose policy does what it is told to, turn by turn."""

    def __init__(self, env, actions):
        self._env, self._actions = env, actions

    def run(self, params, episodes, temperature, **more):
        (episode,) = episodes
        assert episode.start() is not None
        for action in self._actions:
            ids = self._env.chat.agent(action)
            from tarl_jax.rollout.workers import Turn

            if episode.turn(Turn(ids, [-1.0] * len(ids), [-1.0] * len(ids))) is None:
                return


@pytest.fixture
def play(tiny_env, monkeypatch):
    """(actions, lines of the person) -> (trajectory, what was shown)."""
    def run(actions, lines):
        env = dataclasses.replace(tiny_env)
        monkeypatch.setattr(type(env), "engine", lambda self: Acting(env, actions))
        left, shown = iter(lines), []

        def read():
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        task = env.held_out_tasks[0]
        return chat.play(env, None, task, 0, read, shown.append), shown, task

    return run


def cancelled(task, env):
    """A write that the sandbox takes, of some order of the shop."""
    orders = env.domain.database["orders"]
    order = next(k for k, v in orders.items() if v["status"] == "pending")
    return Call("cancel_pending_order", {"order_id": order, "reason": "no longer needed"}), order


def test_calls_and_changes_are_shown_as_they_happen(play, tiny_env):
    write, order = cancelled(None, tiny_env)
    trajectory, shown, _ = play(
        ["Who are you?", write, "Done."], ["/x", "", "Hello.", "/say x.wav", "/nix", "Me.", "/stop"]
    )
    text = "\n".join(shown)
    places = [text.index(part) for part in (
        "Say what you want first", "agent: Who are you?", "no audio encoder", "There are /stop",
        "agent calls: cancel_pending_order(order_id=", "tool: ",
        f"database: orders {order} status", "agent: Done.")]
    assert places == sorted(places)
    assert trajectory.stop_reason == "user_stop" and trajectory.diff
    roles = [(s.role, s.text) for s in trajectory.segments[1:]]
    assert roles[0] == ("user", "Hello.") and ("user", "Me.") in roles
    again = Trajectory.from_json_line(trajectory.to_json_line())
    assert again.to_json_line() == trajectory.to_json_line()


def test_the_verdict_is_told(play, tiny_env):
    trajectory, *_ = play(["How can I help?"], ["Hello.", "/stop"])
    lines = "\n".join(chat.verdict(trajectory))
    assert ("is right" in lines) == bool(trajectory.success)
    assert "judge abstains" in lines
    trajectory.turn_scores, trajectory.judge_notes = [-1], ["rude"]
    assert "  0: -1  rude" in "\n".join(chat.verdict(trajectory))


def test_the_end_of_the_input_ends_the_conversation(play):
    trajectory, *_ = play(["How can I help?"], ["Hello."])
    assert trajectory.stop_reason == "user_stop"
    with pytest.raises(ConfigError, match="nothing was said"):
        play([], [])


def test_an_unknown_task_is_refused(tiny_env):
    with pytest.raises(ConfigError, match="--task=nix: the run has no such task; it has"):
        chat._task(tiny_env, "nix")
    assert chat._task(tiny_env, "").split == "held_out"


def test_a_policy_plays_with_a_person(tiny_env, random_params):
    """The real engine; the policy writes anything."""
    params = random_params(tiny_env.config.model, tiny_env.vocab_size, 0)
    lines = iter(["Hello."] + ["go on"] * 50)
    trajectory = chat.play(tiny_env, params, tiny_env.held_out_tasks[0], 1,
                           lambda: next(lines), lambda s: None)
    assert trajectory.turns and np.isfinite(trajectory.arrays()[2]).all()


def test_a_person_is_told_how_its_users_speak(tiny_env):
    task = tiny_env.held_out_tasks[0]
    said = chat._example(tiny_env, task, 0)
    assert scripted_user(tiny_env.domain, task, 0).opening() in said
    assert not chat._example(dataclasses.replace(tiny_env, own_user=scripted_user), task, 0)


class Line:
    """A telephone that keeps what it was told."""

    def __init__(self):
        self.wait, self.said = None, []

    def say(self, clip):
        self.said.append(clip)


def test_a_file_is_said_by_telephone_and_the_answer_told_with_its_wait(tmp_path):
    clip = (np.arange(8000) % 100 / 1024).astype(np.float32)
    save_clip(tmp_path / "me.wav", clip)
    lines, shown = iter([f"/say {tmp_path}/nix.wav", f"/say {tmp_path}/me.wav", "Bye."]), []
    person = chat._Person(lambda: next(lines), shown.append)
    person.telephone = Line()
    reply = person.reply("Your email?")
    assert shown[0] == "agent: Your email?" and "nix.wav: is not there" in shown[1]
    assert shown[2:] == ["… 0.5 s"]
    np.testing.assert_array_equal(reply.clip.result(), clip)
    np.testing.assert_array_equal(person.telephone.said[0], clip)
    person.telephone.wait = Wait(0.254, 20, 92, 80)
    person.reply("Done.")
    assert re.fullmatch(
        r"agent: Done\.   \[\d+\.\d\d s after your last word, its first turn 0\.25 s; 80 of 92"
        r" tokens of sound were read while you spoke\]", shown[-1])
    assert person._waited() == ""  # what was written since is no word
