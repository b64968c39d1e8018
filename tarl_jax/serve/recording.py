"""Episodes of an agent program that runs its own loop against the server, for training.

Every answer of ours under one episode's name becomes turns with the sampled ids and log-probs; what
the program posts at the end is the reward. Where the program rewrote its history, what it went on
from and what it gave up are trajectories of their own, with the same reward.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

from tarl_jax.config import ConfigError, InputError
from tarl_jax.config.plain import read_lines
from tarl_jax.parallel.files import LineFile, WriteError
from tarl_jax.serve.conversations import Node
from tarl_jax.serve.requests import Refused
from tarl_jax.serve.turns import Answer
from tarl_jax.types import Segment, Task, Trajectory

MAX_OPEN = 10_000  # episodes without a reward


class Recorder:
    """Keeps open episodes, and appends finished ones to a file, a trajectory a line.

    Raises ConfigError where the file cannot be one.
    """

    def __init__(self, path: Path):
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError(f"--record={path}: name a file in a folder that is there")
        self._path = path
        self._file: LineFile | None = None  # made with the first episode
        self._open: dict[str, list[Node]] = {}
        self._lock = threading.Lock()

    def add(self, episode: str, answer: Answer) -> None:
        """An answer that was given under this name."""
        if answer.node is None:
            return
        if episode not in self._open and len(self._open) >= MAX_OPEN:
            raise Refused(429, f"{MAX_OPEN} episodes are open: post their rewards")
        nodes = self._open.setdefault(episode, [])
        before = answer.node.before
        if before in nodes:
            nodes.remove(before)
        nodes.append(answer.node)

    def finish(self, episode: str, reward: float, task: str) -> int:
        """Writes the episode's trajectories; returns how many.

        Raises Refused for none, and where the disk does not take them: the episode stays open.
        """
        nodes = self._open.pop(episode, None)
        if nodes is None:
            raise Refused(404, f"no episode {episode[:80]!r} is open")
        lines = [trajectory(node, episode, reward, task).to_json_line() for node in nodes]
        try:
            with self._lock:
                if self._file is None:
                    self._file = LineFile(self._path)
                self._file.add("\n".join(lines))  # all or none
        except WriteError as error:
            self._open[episode] = nodes
            raise Refused(503, f"{error}; then post the reward again") from None
        return len(lines)

    def close(self) -> None:
        """Closes the file; every episode in it is on the disk."""
        if self._file is not None:
            self._file.close()


def trajectory(node: Node, episode: str, reward: float, task: str) -> Trajectory:
    """A conversation as training takes it; `task` names what is compared with each other."""
    segments: list[Segment] = []
    turn = 0
    for piece in node.chain():
        ids = piece.ids.tolist()
        if piece.log_probs is None:
            segments.append(Segment.forced("user", ids, turn - 1, ""))
            continue
        log_probs = piece.log_probs.tolist()
        sampled = [place >= piece.forced for place in range(len(ids))]
        segments.append(Segment("agent", ids, sampled, log_probs, turn, ""))
        turn += 1
    record = Task(task or episode, "", "", (), (), "train", "recorded", None, 1)
    return Trajectory(record, 0, segments, "user_stop", reward > 0, reward=reward)


def read_recording(path: Path) -> list[list[Trajectory]]:
    """The trajectories of a recording, grouped by task. Raises InputError naming a broken line."""
    groups: dict[str, list[Trajectory]] = {}
    for where, line in read_lines(path):
        try:
            found = Trajectory.from_json_line(line)
        except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(f"{where}: no trajectory: {error}") from None
        groups.setdefault(found.task.task_id, []).append(found)
    return list(groups.values())
