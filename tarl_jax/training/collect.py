"""The episodes of a training step: begun, played, carried over or played ahead.

Groups are whole: where a step's time is up before all episodes of a group have ended, the group
waits for the next step. A task that a step has twice is played twice, by episodes of other seeds.
With `rl.ahead` the next step's episodes are played while this one's are
learned from, by the policy of before; their log-probs, taken as the old ones, keep the loss right.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import jax
import jax.numpy as jnp

from tarl_jax.config import RunConfig
from tarl_jax.models.decoder import Params
from tarl_jax.models.lora import join
from tarl_jax.parallel import hosts
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.episode import Episode, Supervisor
from tarl_jax.rollout.journal import Journals, KeptEpisode
from tarl_jax.rollout.maths_episode import MathsEpisode
from tarl_jax.rollout.running import EngineStats, Unfinished
from tarl_jax.rollout.workers import Dialogue
from tarl_jax.runs.metrics import CLIP_DIR, read_trajectories, write_trajectories
from tarl_jax.training.mixture import Mixture, Planned
from tarl_jax.types import Trajectory

Group = list[Episode | MathsEpisode | KeptEpisode]
Ended = Callable[[Dialogue], None]
_PATIENCE = 20.0  # seconds for answers that are under way when a step is left


class Left(Exception):
    """The step was left in the middle; its episodes are in the journal."""


@dataclasses.dataclass
class Collected:
    """Of one step: this process's trajectories, the episodes of a task side by side; how they were
    played.
    """

    trajectories: list[Trajectory]
    stats: EngineStats


class Collector:
    """Plays the episodes of one step after the other.

    Args:
      folder: where what was played ahead is kept, so that a run that is resumed learns from it.
      ended: called with each episode when it has ended, from the thread that plays.
      supervisor: of all episodes that are not maths problems.
      journals: of steps under way; None: without.
      leave: whether a step is to be left as it is, for a later start; asked where there are
        journals.
    """

    def __init__(
        self, config: RunConfig, engine: Engine, env: Environment, mixture: Mixture, folder: Path,
        ended: Ended | None = None, supervisor: Supervisor | None = None,
        journals: Journals | None = None, leave: Callable[[], bool] = lambda: False,
    ):
        self._config = config
        self._engine = engine
        self._env = env
        self._mixture = mixture
        self._folder = folder
        self._ended = ended
        self._supervisor = supervisor
        self._journals = journals
        self._leave = leave
        self._held: list[Group] = []  # groups with an episode that has not ended
        self._left: list[Unfinished] = []
        self._pool = ThreadPoolExecutor(1, "ahead")
        self._ahead: tuple[int, Future[Collected]] | None = None

    def collect(self, step: int, params: Params) -> Collected:
        """The episodes of a step, by `params` or by those that played ahead."""
        if self._ahead is not None:
            planned, future = self._ahead
            self._ahead = None
            assert planned == step
            return future.result()
        kept = self._folder / f"{step}.jsonl"
        if kept.exists():
            return Collected(read_trajectories(kept), EngineStats())
        return self._play(step, params)

    def play_ahead(self, step: int, trained: Params, frozen: Params | None = None) -> None:
        """Begins to play the episodes of a later step; the caller may give up `trained` then.

        trained, frozen: the parts of a policy; the former is copied, in the dtype of rollouts.
        """
        dtype = self._config.model.dtype

        def copied(x: jax.Array) -> jax.Array:
            return jnp.copy(x) if x.dtype == dtype else x.astype(dtype)

        copy = jax.block_until_ready(jax.tree.map(copied, trained))
        self._ahead = (step, self._pool.submit(self._play, step, join(frozen or {}, copy)))

    def refill(
        self, step: int, number: int, params: Params, planned: Sequence[Planned]
    ) -> list[Trajectory]:
        """This process's episodes of further tasks of a step, in the given round of refilling."""
        groups = self._groups(planned, step, f"refill {number}")
        episodes: list[Dialogue] = [episode for group in groups for episode in group]
        stats = self._engine.run(
            params, episodes, self._config.rollout.temperature, ended=self._ended,
            leave=self._leave if _are_kept(groups) else None,
        )
        self._honour_leave(stats)
        return [episode.trajectory() for group in groups for episode in group]

    def settle(self) -> None:
        """Waits for what is played ahead: the engine is free then."""
        if self._ahead is not None:
            with contextlib.suppress(Left):  # `collect` says so
                self._ahead[1].result()

    def save(self) -> None:
        """Keeps what was played ahead, for a run that is resumed from now."""
        if self._ahead is None:
            return
        step, future = self._ahead
        with contextlib.suppress(Left):  # they are in the journal
            write_trajectories(self._folder / f"{step}.jsonl", future.result().trajectories)

    def forget(self, oldest: int) -> None:
        """Deletes what was kept for steps that no checkpoint is before."""
        if self._journals:
            self._journals.forget(oldest)
        kept = ""
        for path in self._folder.glob("*.jsonl"):
            if int(path.stem) <= oldest:
                path.unlink()
            else:
                kept += path.read_text("utf-8")
        for clip in (self._folder / CLIP_DIR).glob("*"):
            if clip.name not in kept:
                clip.unlink()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _play(self, step: int, params: Params) -> Collected:
        config = self._config.rollout
        groups = self._groups(self._mixture.plan(step), step)
        self._held += groups
        new: Sequence[Dialogue] = [episode for group in groups for episode in group]
        while True:  # until a group has ended: a step needs something to learn from
            stats = self._engine.run(
                params, new, config.temperature, ended=self._ended, seconds=config.step_seconds,
                unfinished=self._left, leave=self._leave if _are_kept(self._held) else None,
            )
            self._honour_leave(stats)
            new, self._left = [], stats.unfinished
            if config.unfinished == "cut":
                self._cut()
            going = {id(left.episode) for left in self._left}
            done = [group for group in self._held if not going & set(map(id, group))]
            if any(hosts.gathered(bool(done))):
                break
        self._held = [group for group in self._held if going & set(map(id, group))]
        return Collected([episode.trajectory() for group in done for episode in group], stats)

    def _honour_leave(self, stats: EngineStats) -> None:
        """Raises Left where a step was left; what language models are answering now is kept."""
        if stats.left and stats.unfinished:
            answers = [left.answer for left in stats.unfinished if left.answer]
            wait(answers, _PATIENCE)
            raise Left

    def _groups(self, planned: Sequence[Planned], *stream: str | int) -> list[Group]:
        """This process's share; the seeds of a task's second copy are not those of its first."""
        copies: Counter[tuple[str, str]] = Counter()
        named: list[tuple[Planned, tuple[str | int, ...]]] = []
        for one in planned:
            key = one.task.kind, one.task.task_id
            copies[key] += 1
            named.append((one, stream if copies[key] == 1 else (*stream, f"copy {copies[key]}")))
        return [
            [
                self._env.speaking(one.spoken, clean=one.clean).episode(
                    one.task, "train", *name, trial, supervisor=self._supervisor,
                    journal=self._journals.of(stream[0]) if self._journals else None,
                )
                for trial in range(self._config.rollout.group_size)
            ]
            for one, name in hosts.share(named)
        ]

    def _cut(self) -> None:
        for left in self._left:
            left.episode.cut()
            if self._ended:
                self._ended(left.episode)
        self._left = []


def _are_kept(groups: Sequence[Group]) -> bool:
    """Whether a step may be left: what it has cost so far is in the journal."""
    return any(isinstance(episode, KeptEpisode) for group in groups for episode in group)
