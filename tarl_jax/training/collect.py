"""The episodes of a training step: begun, played, carried over or played ahead.

Groups are whole: where a step's time is up before all episodes of a group have ended, the group
waits for the next step; a step lasts until one has ended in any process. A task that a step has
twice is played twice, by episodes of other seeds.

`rl.max_staleness` bounds how many updates may lie between the policy that began an episode and the
one that learns from it. Later steps' episodes are played while this one's are learned from, by the
policy of before; their log-probs, taken as the old ones, keep the loss right. Where episodes are
carried over, the last step of the bound is left to them; what would come too late is cut off.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from tarl_jax.config import RunConfig
from tarl_jax.config.plain import read_json
from tarl_jax.config.rollout import carries
from tarl_jax.models.decoder import Params
from tarl_jax.parallel import hosts, launches
from tarl_jax.rollout.environment import AnyEngine, Environment
from tarl_jax.rollout.episode import Episode, Supervisor
from tarl_jax.rollout.journal import Journals, KeptEpisode
from tarl_jax.rollout.maths_episode import MathsEpisode
from tarl_jax.rollout.prepared import Ready
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.workers import Dialogue, Unfinished
from tarl_jax.runs.directory import write_json
from tarl_jax.runs.metrics import CLIP_DIR, read_trajectories, write_trajectories
from tarl_jax.training.mixture import Mixture, Planned
from tarl_jax.types import Trajectory

Group = list[Episode | MathsEpisode | KeptEpisode]


@dataclasses.dataclass(frozen=True)
class Begun:
    """A group of this process under way: the step that it was planned for, which of the step's it
    is, those of all processes counted, and after how many updates it was begun."""

    step: int
    index: int
    updates: int
    episodes: Group


Ended = Callable[[Dialogue], None]
_PATIENCE = 20.0  # seconds for answers that are under way when a step is left


class Left(Exception):
    """The step was left in the middle; its episodes are in the journal."""


@dataclasses.dataclass
class Collected:
    """Of one step: this process's trajectories, the episodes of a task side by side; how they were
    played. What follows is of all processes.

    behind: of each group, how many updates the policy that began it was behind; empty: not known.
    unfinished: episodes that the step's time was too short for.
    stale: those that were cut off, since they would have come too late.
    """

    trajectories: list[Trajectory]
    stats: EngineStats
    behind: list[int] = dataclasses.field(default_factory=list)
    unfinished: int = 0
    stale: int = 0

    def metrics(self) -> dict[str, float]:
        found = self.stats.metrics() | {"rollout/unfinished": float(self.unfinished)}
        if self.behind:
            found |= {
                "rollout/updates_behind": sum(self.behind) / len(self.behind),
                "rollout/updates_behind_max": float(max(self.behind)),
                "rollout/too_stale": float(self.stale),
            }
        return found


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
        self, config: RunConfig, engine: AnyEngine, env: Environment, mixture: Mixture,
        folder: Path, ended: Ended | None = None, supervisor: Supervisor | None = None,
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
        self._held: list[Begun] = []  # groups with an episode that has not ended
        self._left: list[Unfinished] = []
        self._played = 0  # the last step whose episodes were played
        self._pool = ThreadPoolExecutor(1, "ahead")
        # An outside engine's thread reads weights, and runs nothing that devices do together.
        apart = config.mesh.rollout_devices or config.rollout.outside.base_url
        self._launches = launches.Launches(together=not apart)
        self._ahead: deque[tuple[int, Future[Collected]]] = deque()
        self._bound = config.rl.max_staleness
        self._depth = max(self._bound - carries(config.rollout), 0)  # steps that are played ahead

    def collect(self, step: int, params: Params) -> Collected:
        """The episodes of a step, by `params` or by those that played ahead."""
        if self._ahead and self._ahead[0][0] == step:
            with launches.given():
                return self._ahead.popleft()[1].result()
        if self._is_kept(step):
            found, size = read_trajectories(self._kept(step)), self._config.rollout.group_size
            groups = [found[begin : begin + size] for begin in range(0, len(found), size)]
            return Collected([t for group in hosts.share(groups) for t in group], EngineStats())
        return self._play(step, params)

    def _kept(self, step: int) -> Path:
        """Where the episodes of a step that was played ahead are, those of all processes."""
        return self._folder / f"{step}.jsonl"

    def _is_kept(self, step: int) -> bool:
        return hosts.from_first(self._kept(step).exists)

    def play_ahead(self, step: int, trained: Params, frozen: Params | None = None) -> None:
        """Begins to play what may be of steps behind `step`, the one that was collected last.

        Those that wait already, or are on disk, are left as they are; the caller may give up
        `trained` then, the part of the policy that trains.
        """
        there = {planned for planned, _ in self._ahead}
        wanted = [
            n for n in range(step + 1, min(step + self._depth, self._config.rl.steps) + 1)
            if n not in there and not self._is_kept(n)
        ]
        if not wanted:
            return
        policy = self._engine.ready(trained, frozen or {})
        for n in wanted:
            self._launches.add()
            self._ahead.append((n, self._pool.submit(self._play_ahead, n, policy, step - 1)))

    def _play_ahead(self, step: int, policy: Ready, updates: int) -> Collected:
        with self._launches.task():
            return self._play(step, policy, updates)

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
        for _, future in self._ahead:
            with contextlib.suppress(Left), launches.given():  # `collect` says so
                future.result()

    def save(self, step: int) -> None:
        """Keeps what was played ahead, and which groups are carried, for a run that is resumed
        from behind `step`."""
        self.settle()
        for planned, future in self._ahead:
            with contextlib.suppress(Left):  # they are in the journal
                self._keep(planned, future.result().trajectories)
        carried = hosts.joined(
            [{"step": one.step, "group": one.index, "updates": one.updates} for one in self._held
             if one.step <= self._played]
        )
        hosts.from_first(lambda: self._name(step, carried))

    def _name(self, step: int, carried: Sequence[dict[str, int]]) -> None:
        path = self._carried(step)
        if carried:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, carried)
        else:
            path.unlink(missing_ok=True)

    def _carried(self, step: int) -> Path:
        """Which groups of all processes were carried when a step's checkpoint was saved."""
        return self._folder / f"{step}.carried.json"

    def _keep(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        found = hosts.joined(trajectories, Trajectory)
        hosts.from_first(lambda: write_trajectories(self._kept(step), found))

    def restore(self, step: int) -> None:
        """Takes up this process's part of the groups that were carried when the checkpoint of a
        step was saved, also by another number of processes.

        Their turns are in the journals, and what is left of them is played in the next step;
        without journals they begin anew.
        """
        path = self._carried(step)
        carried = hosts.from_first(lambda: read_json(path) if path.exists() else [])
        self._played = step
        for planned in sorted({one["step"] for one in carried}):
            plan = self._mixture.plan(planned)
            places = self._places(plan)
            mine = [(places.index(one["group"]), one) for one in carried
                    if one["step"] == planned and one["group"] in places]
            groups = self._groups(plan, planned)
            names = {(e.task.task_id, e.seed) for place, _ in mine for e in groups[place]}
            if self._journals and self._journals.adopt(planned, names):
                groups = self._groups(plan, planned)  # from where other processes were with them
            for place, one in mine:
                group = groups[place]
                self._held.append(Begun(planned, one["group"], one["updates"], group))
                self._left += [Unfinished(episode, None, None) for episode in group]

    def forget(self, oldest: int) -> None:
        """Deletes what was kept for steps that no checkpoint is before."""
        first = self._first_carried(oldest)
        if self._journals:
            self._journals.forget(min(oldest, first - 1))
        if not hosts.first():
            return
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
        self._launches.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _first_carried(self, oldest: int) -> int:
        """The first step that a carried group of any checkpoint was planned for, or is now; and
        what was kept for checkpoints before `oldest` goes."""
        steps = [one.step for one in self._held]
        for path in self._folder.glob("*.carried.json"):
            if int(path.name.partition(".")[0]) >= oldest:
                steps += [found["step"] for found in read_json(path)]
            elif hosts.first():
                path.unlink()
        return min(steps, default=oldest + 1)

    def _play(
        self, step: int, params: Params | Ready, updates: int | None = None
    ) -> Collected:
        """updates: that the policy has had; None: all of the steps before."""
        config = self._config.rollout
        plan = self._mixture.plan(step)
        groups = self._groups(plan, step)
        updates = step - 1 if updates is None else updates
        self._held += [
            Begun(step, index, updates, group)
            for index, group in zip(self._places(plan), groups, strict=True)
        ]
        new: list[Dialogue] = [episode for group in groups for episode in group]
        going = {id(episode) for episode in [*new, *(left.episode for left in self._left)]}

        def is_going(one: Begun) -> bool:
            return any(id(episode) in going for episode in one.episodes)

        def ended(episode: Dialogue) -> None:
            going.discard(id(episode))
            if self._ended:
                self._ended(episode)

        # What a later step would be too late for ends with this one.
        last = [one for one in self._held
                if step - one.updates > self._bound or config.unfinished == "cut"]
        kept = _are_kept([one.episodes for one in self._held])
        stats = self._engine.run(
            params, new, config.temperature, ended=ended, seconds=config.step_seconds,
            # A step needs something to learn from.
            enough=lambda: bool(last) or not all(map(is_going, self._held)),
            unfinished=self._left, leave=self._leave if kept else None,
        )
        self._honour_leave(stats)
        self._left = stats.unfinished
        cut = self._cut({id(episode) for one in last for episode in one.episodes}, ended)
        done = [one for one in self._held if not is_going(one)]
        self._held = [one for one in self._held if is_going(one)]
        self._played = step
        facts = hosts.gathered((
            [step - 1 - one.updates for one in done], len(stats.unfinished),
            cut if config.unfinished == "carry" else 0,
        ))
        return Collected(
            [episode.trajectory() for one in done for episode in one.episodes], stats,
            [updates for behind, _, _ in facts for updates in behind],
            sum(unfinished for _, unfinished, _ in facts), sum(stale for *_, stale in facts),
        )

    def _honour_leave(self, stats: EngineStats) -> None:
        """Raises Left where a step was left; what language models are answering now is kept."""
        if stats.left and stats.unfinished:
            answers = [left.answer for left in stats.unfinished if left.answer]
            wait(answers, _PATIENCE)
            raise Left

    @staticmethod
    def _places(planned: Sequence[Planned]) -> list[int]:
        """Which of a step's groups `_groups` makes."""
        return hosts.share(range(len(planned)))

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

    def _cut(self, which: set[int], ended: Ended) -> int:
        """Ends those of the episodes that have not ended which are named by their ids."""
        cut = [left for left in self._left if id(left.episode) in which]
        for left in cut:
            left.episode.cut()
            ended(left.episode)
        self._left = [left for left in self._left if id(left.episode) not in which]
        return len(cut)


def _are_kept(groups: Sequence[Group]) -> bool:
    """Whether a step may be left: what it has cost so far is in the journal."""
    return any(isinstance(episode, KeptEpisode) for group in groups for episode in group)
