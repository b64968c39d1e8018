"""Maths problems as episodes of one turn: the problem is the user's message, the answer the turn.

They run through the same engine as the dialogues of the shop, with a system turn of their own. The
reward is the terminal one: there are no turns for a judge to tell apart.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from tarl_jax.config import ConfigError, InputError, MathsConfig, RunConfig
from tarl_jax.maths.answers import final_answer, same_number
from tarl_jax.maths.problems import maths_tasks
from tarl_jax.maths.symbolic import SymbolicChecker
from tarl_jax.rollout.episode import segment_of
from tarl_jax.rollout.workers import Turn
from tarl_jax.sandbox.dialogue import Malformed
from tarl_jax.text.chat import Chat
from tarl_jax.types import Segment, Task, Trajectory

SYSTEM = "Solve the problem. Put the answer in \\boxed{}."

Check = Callable[[str, str], bool]  # (given answer, right answer)


@dataclasses.dataclass(frozen=True)
class Maths:
    """The maths problems of a run, and what their episodes share.

    system: the system turn's text and tokens.
    too_long: problems that were left out because no turn would fit behind them.
    """

    chat: Chat
    train_tasks: list[Task]
    held_out_tasks: list[Task]
    system: tuple[str, list[int]]
    check: Check
    too_long: int

    @classmethod
    def from_config(cls, config: RunConfig, chat: Chat) -> Maths | None:
        """None for a run without maths.

        Raises: FileNotFoundError or ValueError for a broken file, ConfigError where the package
          that a file's answers need is not there.
        """
        wanted = max(config.maths.ratio) or config.maths.demonstrations or config.eval.maths_tasks
        if not wanted:
            return None
        system = (SYSTEM, chat.system(SYSTEM))
        shared = len(system[1]) + len(chat.begin)
        room = config.rollout.max_episode_tokens - config.rollout.max_turn_tokens - shared
        made = maths_tasks(config.maths)
        train, held_out = (
            [t for t in tasks if len(chat.user(t.instruction)) <= room] for tasks in made
        )
        if not train or not held_out:
            raise InputError(
                f"rollout.max_episode_tokens = {config.rollout.max_episode_tokens}: behind no maths"
                f" problem is there room for a turn of {config.rollout.max_turn_tokens} tokens"
            )
        return cls(
            chat, train, held_out, system, _checker(config.maths),
            sum(map(len, made)) - len(train) - len(held_out),
        )

    def episode(self, task: Task, seed: int) -> MathsEpisode:
        return MathsEpisode(task, seed, self.chat, self.system, self.check)


def _checker(config: MathsConfig) -> Check:
    if not (config.file or config.tfds):
        return same_number
    try:
        return SymbolicChecker()
    except ImportError as error:
        given = f"file = {config.file!r}" if config.file else f"tfds = {config.tfds}"
        raise ConfigError(f"maths.{given}: {error}") from error


class MathsEpisode:
    """One problem, one turn; `rollout.workers.Dialogue`.

    seed: of the sampling.
    """

    outside = False

    def __init__(
        self, task: Task, seed: int, chat: Chat, system: tuple[str, list[int]], check: Check
    ):
        self.task = task
        self.seed = seed
        self._chat = chat
        self._system = system
        self._check = check
        self._segments: list[Segment] = []
        self._stop_reason: str | None = None
        self._success = False
        self._begun = time.perf_counter()
        self.shared = len(system[1])

    def start(self) -> list[int]:
        """The system turn and the problem."""
        text, ids = self._system
        problem = self.task.instruction
        self._segments = [
            Segment.forced("system", ids, -1, text),
            Segment.forced("user", self._chat.user(problem), -1, problem),
        ]
        return [*(t for s in self._segments for t in s.token_ids), *self._chat.begin]

    def turn(self, turn: Turn) -> None:
        """Takes the only turn and checks its final answer."""
        ids = turn.ids
        written, action = self._chat.read(ids)
        info: dict[str, str] = {}
        if isinstance(action, str):
            self._stop_reason = "answered"
            answer = final_answer(action)
            if answer is not None:
                info["answer"] = answer
                self._success = self._check(answer, self.task.outputs[0])
        elif isinstance(action, Malformed):
            cut = ids[-1] not in self._chat.stop_ids
            self._stop_reason = "max_tokens" if cut else "malformed"
            info["malformed"] = action.reason
        else:
            self._stop_reason = "malformed"
            info["malformed"] = "there are no tools here"
        said = segment_of(turn, self._chat.begin, 0, written)
        said.info.update(info)
        self._segments.append(said)

    def cut(self) -> None:
        """Ends the episode where it is."""
        self._stop_reason = self._stop_reason or "max_seconds"

    def trajectory(self) -> Trajectory:
        """The finished record. Raises RuntimeError while the episode still runs."""
        if self._stop_reason is None:
            raise RuntimeError(f"task {self.task.task_id!r}: the episode has not ended")
        return Trajectory(
            task=self.task,
            seed=self.seed,
            segments=self._segments,
            stop_reason=self._stop_reason,
            success=self._success,
            outputs_found=self._success,
            seconds={"episode": time.perf_counter() - self._begun},
        )
