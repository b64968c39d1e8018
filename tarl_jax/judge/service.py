"""The judge of a run, of whatever kind: judging begins when an episode ends, in other threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from tarl_jax.config import InputError, JudgeConfig, UserConfig
from tarl_jax.judge import rules, user_rules
from tarl_jax.judge.llm import LLMJudge
from tarl_jax.judge.noise import disturbed
from tarl_jax.judge.rules import Judgement
from tarl_jax.sandbox.scoring import needs_reader
from tarl_jax.types import Trajectory

JudgeOf = Callable[[Trajectory], Judgement | None]  # None: it abstains


class Judge:
    """Judges finished episodes by the config; close it at the end.

    An episode that it cannot judge has no judgement, and `counts` and `log` say why. It stops a run
    only where nothing at all can be judged, and `JudgeConfig.required` asks for it. `begin` may be
    called from another thread than the rest.

    folder: where the answers of a language model are kept (see `JudgeConfig.llm`).
    log: takes a line for the user.
    own: judges in place of the one that the config names, several episodes at once, in threads.
    users: of language models that play the users, who are checked by it; None: they are not.
    scripts: by task, what a scripted user of it would follow (`Environment.scripts`).
    Raises LLMError where a package is missing.
    """

    def __init__(
        self, config: JudgeConfig, folder: Path, log: Callable[[str], None] = print,
        own: JudgeOf | None = None, users: UserConfig | None = None,
        scripts: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        self._noise = config.noise
        self._required = config.required
        self._log = log
        self._own = own
        self._check = users.check if users and users.kind == "llm" else "off"
        self._scripts = scripts or {}
        self._llm = LLMJudge(config, folder) if config.kind == "llm" and not own else None
        slow = self._llm or own
        workers = config.llm.max_in_flight
        self._pool = ThreadPoolExecutor(workers, "judge") if slow else None
        self._begun: dict[tuple[str, int], Future[Judgement | None]] = {}

    def check(self) -> None:
        """Raises LLMError where a language model cannot be asked (no key, no package)."""
        if self._llm:
            self._llm.check()

    def begin(self, episode: Any) -> None:
        """Begins to judge an episode that has ended, if that takes long: `Engine.run(ended=…)`.

        episode: has a method `trajectory`; `judge_all` of that trajectory takes what comes of it.
        """
        if self._pool:
            trajectory = episode.trajectory()
            self._begun[_name(trajectory)] = self._submit(trajectory, 0)

    def judge_all(
        self, trajectories: Sequence[Trajectory], *, exact: bool = False, repeat: int = 0
    ) -> list[Judgement | None]:
        """The judgements in order; None where the judge abstains.

        exact: without the config's noise. repeat: another number asks a language model anew.
        Raises LLMError where a language model that is required refuses everything.
        """
        # Others may have ended too: groups that are held back, episodes that are played ahead.
        begun = [None if repeat else self._begun.pop(_name(t), None) for t in trajectories]
        futures = [
            future or self._submit(t, repeat) for t, future in zip(trajectories, begun, strict=True)
        ]
        found = [future.result() for future in futures]
        for line in self._llm.notices() if self._llm else ():
            self._log(line)
        if self._llm and self._required and not any(found):
            self._llm.require()
        if exact:
            return found
        return [
            disturbed(judgement, t.seed, self._noise) if judgement else None
            for judgement, t in zip(found, trajectories, strict=True)
        ]

    def check_users(self, trajectories: Sequence[Trajectory]) -> None:
        """Sets `user_faults` of each episode with a user that a language model plays.

        By rule; and by the judge, if it is a language model, where rules know too little of the
        task, or the config asks for it everywhere. Where neither can tell they stay None.
        """
        if self._check == "off":
            return
        asked: list[tuple[Trajectory, Future[list[str] | None]]] = []
        for t in trajectories:
            if t.task.kind != "tool" or t.success is None:
                continue
            script = self._scripts.get(t.task.task_id)
            known = user_rules.decidable(t, script)
            found = [str(fault) for fault in user_rules.faults(t, script)]
            if found or known:
                t.user_faults = found
            if self._llm and self._pool and not found and (self._check == "judge" or not known):
                asked.append((t, self._pool.submit(self._llm.user_faults, t)))
        for t, future in asked:
            answer = future.result()
            t.user_faults = t.user_faults if answer is None else answer

    def check_assertions(self, trajectories: Sequence[Trajectory]) -> None:
        """Sets `assertions_met` of each episode whose reward hangs on nothing but assertions, and
        its success to False where one does not hold; asks the judge, if it is a language model."""
        if not (self._llm and self._pool):
            return
        asked = [(t, self._pool.submit(self._llm.assertions_met, t)) for t in trajectories
                 if t.success and needs_reader(t.task)]
        for t, future in asked:
            t.assertions_met = future.result() or []
            missed = [text for text, met in
                      zip(t.task.assertions, t.assertions_met, strict=False) if not met]
            if missed:
                t.success = False
                t.gold_diff += [f"not met: {text}" for text in missed]

    def objection(self, trajectory: Trajectory) -> str | None:
        """What is wrong with the last turn of an episode that goes on; None if it is not -1.

        Waits for the answer of a language model. Without the config's noise.
        """
        judgement = self._submit(trajectory, 0).result()
        return judgement.notes[-1] if judgement and judgement.scores[-1] < 0 else None

    def counts(self) -> dict[str, float]:
        """What a language model was asked since the last time, as metrics named "judge/…"."""
        counts = self._llm.counts() if self._llm else {}
        return {f"judge/{name}": count for name, count in counts.items()}

    def close(self) -> None:
        """Ends what is asked of a language model."""
        if self._llm:
            self._llm.close()  # first: it ends what the pool waits for
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, trajectory: Trajectory, repeat: int) -> Future[Judgement | None]:
        if self._llm and self._pool:
            return self._pool.submit(self._llm.judge, trajectory, repeat)
        if self._own and self._pool:
            return self._pool.submit(_judged_by, self._own, trajectory)
        done: Future[Judgement | None] = Future()
        done.set_result(rules.judge(trajectory))
        return done


def _judged_by(own: JudgeOf, trajectory: Trajectory) -> Judgement | None:
    """What it says. Raises InputError where that is no judgement of this episode."""
    judgement = own(trajectory)
    if judgement is None:
        return None
    turns = len(trajectory.turns)
    if not isinstance(judgement, Judgement):
        raise InputError(f"Parts(judge=…) returned {judgement!r:.60}: return a Judgement(scores,"
                         " notes), or None to abstain")
    if len(judgement.scores) != turns or len(judgement.notes) != turns:
        raise InputError(
            f"Parts(judge=…) gave {len(judgement.scores)} scores and {len(judgement.notes)} notes"
            f" for the {turns} turns of task {trajectory.task.task_id!r}: give one of each per turn"
        )
    if set(judgement.scores) - {-1, 0, 1}:
        raise InputError(f"Parts(judge=…) gave the scores {judgement.scores}: each must be -1, 0 or"
                         " +1")
    return Judgement(  # plain numbers, as they go to disk
        [int(s) for s in judgement.scores], [str(n) for n in judgement.notes],
        [bool(m) for m in judgement.minors],
    )


def _name(trajectory: Trajectory) -> tuple[str, int]:
    return trajectory.task.task_id, trajectory.seed
