"""The knobs of the judge, and what they refuse. docs/judge.md says how to use them.

`tarl_jax.config` holds `JudgeConfig` as its group `judge`.
"""

from __future__ import annotations

import dataclasses

from tarl_jax.config.llm import Choice, LLMConfig, Require, check_llm

# Grades of a long episode take many tokens and should not be a matter of luck.
_LLM = LLMConfig(temperature=0.0, max_tokens=4096, timeout_seconds=120.0)


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """Errors added to the scores that training sees, to study what they cost; evaluations see none.

    Each is a probability, drawn from the episode's seed and the number of the turn alone, so that
    the errors at a lower one are among those at a higher one.

    flip: of a turn's score becoming one of the two others.
    optimism: of a score below +1 (after the flip) becoming +1.
    abstain: of an episode's judgement being lost.
    """

    flip: float = 0.0
    optimism: float = 0.0
    abstain: float = 0.0


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Who scores the turns of an episode.

    kind: "rules" (knows scripts, needs nothing) or "llm" (`llm`, told the task, the right calls and
      the whole dialogue).
    max_majors: -1s that a language model may give an episode; it is told, and later ones become 0.
    max_seconds: for one episode, all attempts together; beyond it the judge abstains.
    required: a judge that is a language model and refuses every request of a step for a reason that
      will not pass (no such key, no such model) stops the run; False: the run goes on by the
      verdicts alone, as it does when what it may spend is spent.
    llm: its cache_dir, where empty, is the folder `judge` of the run, so that a run that continues
      pays for no judgement twice.
    """

    kind: str = "rules"
    max_majors: int = 1
    max_seconds: float = 600.0
    required: bool = True
    llm: LLMConfig = _LLM
    noise: NoiseConfig = NoiseConfig()


def check_judge(judge: JudgeConfig, require: Require, choice: Choice) -> None:
    """Asks `require` and `choice` of `config.checks` about the group `judge`."""
    choice("judge.kind", judge.kind, ("rules", "llm"))
    require(judge.max_majors > 0, "judge.max_majors", judge.max_majors, "must be at least 1")
    require(judge.max_seconds > 0, "judge.max_seconds", judge.max_seconds, "must be above 0")
    for name, value in dataclasses.asdict(judge.noise).items():
        require(0 <= value <= 1, f"judge.noise.{name}", value, "must be between 0 and 1")
    check_llm("judge.llm", judge.llm, require, choice)
