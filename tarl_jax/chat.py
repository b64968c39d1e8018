"""A person plays the user of a task, in the terminal.

    python -m tarl_jax.chat RUN [--task=ID]

The agent is the newest checkpoint of the run (`--step` chooses another). Its tool calls, their
answers and what they change in the database are shown as they happen; at the end the verdict, and
the score of each turn where the judge has one. The episode is kept in RUN/chats/, and `python -m
tarl_jax.view FILE` shows it again. `/stop`, or the end of the input, ends the conversation;
`/say FILE` says a sound file to a policy that hears, as by telephone: in as many seconds as it has,
heard as it comes.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarl_jax.config import ConfigError, RunConfig
from tarl_jax.parallel.process import restart_with_tuned_malloc

if TYPE_CHECKING:
    import numpy as np

    from tarl_jax.rollout.environment import Environment
    from tarl_jax.rollout.episode import Episode
    from tarl_jax.rollout.telephone import Telephone
    from tarl_jax.rollout.workers import Answer, Turn
    from tarl_jax.sandbox.user import Reply
    from tarl_jax.types.episodes import Trajectory
    from tarl_jax.types.tasks import Task

Read = Callable[[], str]  # a line of the person; raises EOFError at the end
Show = Callable[[str], None]


def main() -> None:
    from tarl_jax.runs.command import run_with_config

    run_with_config(__doc__ or "", _chat, _options)


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--step", type=int, default=-1, metavar="N", help="the checkpoint's step; -1: the newest")
    add("--task", default="", metavar="ID", help="the task to play; the first held-out one")
    add("--seed", type=int, default=0, metavar="N", help="of what the agent draws (0)")


def _chat(config: RunConfig, parts: Any, given: argparse.Namespace) -> None:
    from tarl_jax.runs.live import printable
    from tarl_jax.serve.policy import load_policy
    from tarl_jax.training.parts import checked

    own = checked(parts, config)
    if given.dry_run:
        from tarl_jax.training.dry_run import show

        def playing(env: Environment) -> Iterator[str]:
            yield f"task: {_task(env, given.task).task_id}"

        return show(config, own, given.step, more=playing)
    name, env, params = load_policy(config, own, given.step)
    try:
        task = _task(env, given.task)
        print(f"{name}, task {task.task_id}. You are the user:\n\n  {printable(task.instruction)}"
              f"\n\n{_example(env, task, given.seed)}/stop ends the conversation.\n", flush=True)
        trajectory = play(env, params, task, given.seed, _line, lambda s: print(printable(s)))
        scored(config, trajectory, own.judge)
    finally:
        env.close()
    for line in verdict(trajectory):
        print(printable(line))
    if config.workdir:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        path = Path(config.workdir).expanduser() / "chats" / f"{stamp}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(trajectory.to_json_line() + "\n", encoding="utf-8")
        print(f"kept in {path}")


def _line() -> str:
    print("you> ", end="", flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def _task(env: Environment, task_id: str) -> Task:
    tasks = [*env.held_out_tasks, *env.train_tasks]
    found = next((t for t in tasks if not task_id or t.task_id == task_id), None)
    if found is None:
        known = ", ".join(t.task_id for t in tasks[:5])
        raise ConfigError(f"--task={task_id}: the run has no such task; it has {known}, …")
    return found


def _example(env: Environment, task: Task, seed: int) -> str:
    """How the users speak that a small policy has learned from; it knows few other words."""
    from tarl_jax.sandbox.users import playable, scripted_user

    if env.own_user is not None or env.config.model.pretrained or not playable(env.domain, task):
        return ""
    opening = scripted_user(env.domain, task, seed).opening()
    return f"The users that it knows begin like this: {opening}\n"


def play(
    env: Environment, params: Any, task: Task, seed: int, read: Read, show: Show
) -> Trajectory:
    """The episode of a person who is asked by `read` and told by `show`."""
    from tarl_jax.rollout.episode import Episode
    from tarl_jax.rollout.sampling import Truncation
    from tarl_jax.rollout.telephone import Telephone

    person = _Person(read, show)
    episode = Episode(task, seed, env.domain, env.chat, env.config.rollout, env.system, person)
    shown = _Shown(episode, show)
    c = env.config.eval
    if not env.config.model.audio:
        cut = Truncation(c.top_k, c.top_p, c.min_p)
        env.engine().run(params, [shown], c.temperature, truncation=cut)
        return episode.trajectory()

    def compiling(done: int, total: int, note: str = "") -> None:
        if note or not done:  # at the beginning, and what took long
            show(f"compiling {done} of {total}  {note}")

    with Telephone(env, params) as person.telephone:
        person.telephone.compile(params, compiling)
        person.telephone.play(shown)
    return episode.trajectory()


def scored(config: RunConfig, trajectory: Trajectory, own: Any = None) -> None:
    """Adds what the run's judge says of the turns; nothing where it abstains."""
    from tarl_jax.judge.service import Judge

    folder = Path(config.workdir or ".").expanduser() / "judge"
    with Judge(config.judge, folder, print, own) as judge:
        judge.check()
        (found,) = judge.judge_all([trajectory], exact=True)
    if found is not None:
        trajectory.turn_scores, trajectory.judge_notes = found.scores, found.notes
        trajectory.turn_minors = found.minors


def verdict(trajectory: Trajectory) -> list[str]:
    """Lines that say how it ended."""
    words = {True: "The database is right.", False: "The database is not as it should be, or the"
             " episode was cut off.", None: "The infrastructure failed; there is no verdict."}
    lines = ["", f"{words[trajectory.success]} (ended by: {trajectory.stop_reason})"]
    lines += [f"  should be -> is: {line}" for line in trajectory.gold_diff]
    if trajectory.turn_scores is None:
        return [*lines, "The judge abstains on the turns."]
    lines.append("Turn scores:")
    for turn, score in enumerate(trajectory.turn_scores):
        notes = trajectory.judge_notes
        lines.append(f"  {turn}: {score:+d}  {notes[turn] if turn < len(notes) else ''}")
    return lines


class _Person:
    """The user at the terminal.

    telephone: by which a policy hears what is said; None for one that reads only.
    """

    telephone: Telephone | None = None

    def __init__(self, read: Read, show: Show):
        self._read = read
        self._show = show
        self._since = 0.0  # when the last word was; 0: that is answered, or nothing was said

    def opening(self) -> str:
        while True:
            try:
                line = self._read()
            except EOFError:
                raise ConfigError("nothing was said: the input has ended") from None
            if line and not line.startswith("/"):
                return line
            self._show("Say what you want first.")

    def reply(self, message: str) -> Reply:
        from tarl_jax.sandbox import phrases
        from tarl_jax.sandbox.user import Reply

        self._show(f"agent: {message}{self._waited()}")
        while True:
            try:
                line = self._read()
            except EOFError:
                return Reply(phrases.STOP, {})
            if line == "/stop":
                return Reply(phrases.STOP, {})
            if line.startswith("/say "):
                clip = self._clip(Path(line.removeprefix("/say ").strip()))
                if clip is not None:
                    return Reply(line.removeprefix("/say "), {}, self._said(clip))
            elif line.startswith("/"):
                self._show("There are /stop and /say FILE.")
            elif line:
                return Reply(line, {})

    def _clip(self, path: Path) -> np.ndarray | None:
        from tarl_jax.speech.clips import load_clip
        from tarl_jax.speech.synthesis import SpeechError

        if self.telephone is None:
            self._show("This policy has no audio encoder: write instead.")
            return None
        try:
            return load_clip(path)
        except SpeechError as error:
            self._show(str(error))
            return None

    def _said(self, clip: np.ndarray) -> Future[Any]:
        assert self.telephone is not None
        self._show(f"… {len(clip) / 16_000:.1f} s")
        self.telephone.say(clip)
        self._since = time.monotonic()
        heard: Future[Any] = Future()
        heard.set_result(clip)
        return heard

    def _waited(self) -> str:
        """How long the agent took to answer what was said last, its tools included."""
        if self.telephone is None or not self._since or self.telephone.wait is None:
            return ""
        seconds, self._since, wait = time.monotonic() - self._since, 0.0, self.telephone.wait
        return (f"   [{seconds:.2f} s after your last word, its first turn {wait.seconds:.2f} s;"
                f" {wait.ahead} of {wait.sound} tokens of sound were read while you spoke]")


class _Shown:
    """An episode whose calls and changes are shown when they have happened."""

    outside = True  # a person is slow

    def __init__(self, episode: Episode, show: Show):
        self._episode = episode
        self._show = show
        self._changes: list[str] = []
        self.seed, self.shared = episode.seed, episode.shared
        self.start, self.cut = episode.start, episode.cut

    def turn(self, turn: Turn) -> Answer | None:
        from tarl_jax.view.terminal import format_call

        answer = self._episode.turn(turn)
        now = self._episode.so_far()
        said, observed = now.segments[-2:] if now.segments[-1].role != "agent" else (None, None)
        if said is not None and observed is not None and observed.role == "tool":
            calls = "\n".join(format_call(call) for call in said.calls)
            self._show(f"agent calls: {calls or said.text.strip()}")
            self._show(f"tool: {observed.text}")
        for line in now.diff:
            if line not in self._changes:
                self._show(f"database: {line}")
        self._changes = list(now.diff)
        return answer


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.chat")
    main()
