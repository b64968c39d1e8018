"""A language model that judges episodes by the rubric, and abstains where it cannot.

arXiv 2509.14480 has a language model grade every turn of a finished episode, told the hidden task
and the right calls. Here an answer that cannot be used is asked for again with what is wrong with
it, then anew; what is left after that, and every failure of the service, is an abstention that is
counted by its kind, never a score.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tarl_jax.config import JudgeConfig
from tarl_jax.judge.request import Messages, outcomes_request, repair, request, user_request
from tarl_jax.judge.rules import Judgement
from tarl_jax.llm.errors import LLMError
from tarl_jax.llm.service import ChatService
from tarl_jax.types import Trajectory

T = TypeVar("T")
UNUSABLE = "unusable"  # the kind of an abstention after answers that could not be used
_FAULTS = "faults_"


class LLMJudge:
    """One model for a whole run. Safe to share between threads; close it at the end.

    folder: where answers are kept if the config names no cache_dir.
    Raises LLMError("setup") where a package is missing.
    """

    def __init__(self, config: JudgeConfig, folder: Path):
        try:
            from tarl_jax.judge import answer
        except ImportError as error:
            raise LLMError("setup", f"a judge that is a language model needs more packages"
                           f" ({error}): pip install -e '.[llm]'") from None
        self._answer = answer
        self._config = config
        cache_dir = config.llm.cache_dir or str(folder)
        self._service = ChatService(
            dataclasses.replace(config.llm, cache_dir=cache_dir), "judge.llm"
        )
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()
        self._notices: list[str] = []
        self._noticed: set[str] = set()
        self._refusal: LLMError | None = None  # the last that every further request would meet

    def check(self) -> None:
        """Raises LLMError where the model cannot be asked (no key, no package)."""
        self._service.check()

    def judge(self, trajectory: Trajectory, repeat: int = 0) -> Judgement | None:
        """Scores each agent turn; None (abstain) where there is nothing to judge or no answer.

        Equal episodes are asked about once. repeat: asks anew where it differs.
        """
        turns = trajectory.turns
        if trajectory.task.kind != "tool" or trajectory.success is None or not turns:
            return None
        asked, read = request(trajectory, self._config.max_majors), self._answer.read
        form = self._answer.Grades
        try:
            found, problem = self._ask(
                asked, str(repeat), form, lambda text: read(text, len(turns)),
                time.monotonic() + self._config.max_seconds,
            )
        except LLMError as error:
            self._abstain(error.kind, str(error))
            if error.fatal and error.kind != "budget":  # a limit that the user set is no fault
                self._refusal = error
            return None
        self._refusal = None
        if found is None:
            self._abstain(UNUSABLE, problem)
            return None
        judgement, knock_ons = self._answer.without_knock_ons(found, self._config.max_majors)
        with self._lock:
            self._counts["knock_ons"] += knock_ons
        return judgement

    def user_faults(self, trajectory: Trajectory) -> list[str] | None:
        """The faults of the episode's user, as "kind: reason"; None where there is no answer."""
        turns, read = len(trajectory.turns), self._answer.read_faults
        return self._answered(
            user_request(trajectory), "user", self._answer.UserFaults,
            lambda text: read(text, turns), "users_abstained",
        )

    def assertions_met(self, trajectory: Trajectory) -> list[bool] | None:
        """Whether each of the task's assertions holds; None where there is no answer."""
        expected, read = trajectory.task.assertions, self._answer.read_outcomes
        return self._answered(
            outcomes_request(trajectory), "outcomes", self._answer.Outcomes,
            lambda text: read(text, expected), "assertions_abstained",
        )

    def counts(self) -> dict[str, float]:
        """What came of it since the last time, by name.

        Those of `llm.ledger.COUNTS`, the faults of requests as "faults/<kind>"; "repaired"
        (judgements that came only after an answer that could not be used), "knock_ons", and
        "abstained/<kind>": episodes without a judgement, by the kind of `LLMError` or UNUSABLE;
        "users_abstained/<kind>" and "assertions_abstained/<kind>" those without another answer.
        """
        found = {
            name.replace(_FAULTS, "faults/"): count
            for name, count in self._service.ledger.take().items()
        }
        with self._lock:
            own, self._counts = self._counts, collections.Counter()
        return found | {"repaired": 0.0, "knock_ons": 0.0} | own

    def notices(self) -> list[str]:
        """What a user should be told, each kind of abstention once; empty the next time."""
        with self._lock:
            found, self._notices = self._notices, []
        return found

    def require(self) -> None:
        """Raises the last LLMError where the model refused for good, and has not answered since."""
        if self._refusal:
            raise self._refusal

    def close(self) -> None:
        """Ends what is under way."""
        self._service.close()

    def _answered(
        self, asked: Messages, key: str, form: type[Any], read: Callable[[str], T], what: str
    ) -> T | None:
        """What is read in the answer; None where there is none, which is counted as `what`."""
        deadline = time.monotonic() + self._config.max_seconds
        try:
            found, problem = self._ask(asked, key, form, read, deadline)
        except LLMError as error:
            self._abstain(error.kind, str(error), what)
            return None
        if found is None:
            self._abstain(UNUSABLE, problem, what)
        return found

    def _ask(
        self, asked: Messages, key: str, form: type[Any], read: Callable[[str], T], deadline: float
    ) -> tuple[T | None, str]:
        """What is read in the answer to the request, to its repair, or to the request made anew;
        else None, and what was wrong with the last."""
        messages, problem = asked, ""
        for attempt in range(3):
            completion = self._service.complete(
                messages, key=f"{key}/{attempt}", schema=form.model_json_schema(),
                require_fit=False, deadline=deadline,
            )
            try:
                found = read(completion.text)
            except ValueError as error:
                problem = str(error)
                self._service.ledger.add(unusable=1)
                messages = repair(asked, completion.text, problem) if attempt == 0 else asked
                continue
            with self._lock:
                self._counts["repaired"] += attempt > 0
            return found, ""
        return None, f"{self._config.llm.model}: no answer could be used; the last one: {problem}"

    def _abstain(self, kind: str, reason: str, what: str = "abstained") -> None:
        with self._lock:
            self._counts[f"{what}/{kind}"] += 1
            if kind not in self._noticed:
                self._noticed.add(kind)
                self._notices.append(f"the judge abstains ({kind}): {reason}")
