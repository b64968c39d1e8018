"""Whether episodes can hold what the tasks ask for, measured before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tarl_jax.config import ConfigError
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.episode import greets, max_turns
from tarl_jax.sandbox.faultless import faultless_dialogue
from tarl_jax.sandbox.llm_user import GREETING
from tarl_jax.sandbox.tasks import LONGEST, expert_plays
from tarl_jax.sandbox.users import playable, scripted_user
from tarl_jax.types import Call, Task

MEASURED = 256  # tasks at most, evenly spaced
THOUGHT = 300  # tokens that a turn's thought has, where thoughts are counted


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of faultless dialogues of training tasks, with the run's tokenizer and system turn.

    Attributes:
      system: tokens of the system turn.
      tokens: of each dialogue, the system turn included; what a policy thinks is not.
      fits: whether each dialogue could be played within the limits of an episode.
      fits_thinking: the same where each turn of the agent has a thought of THOUGHT tokens, all of
        which stay in the context; None where the policy does not think, or not so long.
      tasks: how many training tasks there are; as many as were measured, or more.
      limit: `rollout.max_episode_tokens`.
    """

    system: int
    tokens: np.ndarray
    fits: np.ndarray
    fits_thinking: np.ndarray | None
    tasks: int
    limit: int

    @property
    def too_long(self) -> float:
        """Share of the dialogues that do not fit."""
        return float(np.mean(~self.fits))

    def __str__(self) -> str:
        of = f"{len(self.tokens)} of {self.tasks}" if len(self.tokens) < self.tasks else self.tasks
        median, high = np.percentile(self.tokens, (50, 90))
        thinking = "" if self.fits_thinking is None else (
            f", and {np.mean(~self.fits_thinking):.1%} where each turn has a thought of {THOUGHT}"
        )
        return (
            f"lengths: the system turn has {self.system:,} tokens, a faultless dialogue of"
            f" {of} training tasks {median:,.0f} in the median, {high:,.0f} at the 90th percentile"
            f" and {self.tokens.max():,} at most, thoughts not counted;"
            f" {self.too_long:.1%} cannot fit rollout.max_episode_tokens = {self.limit:,}"
            f"{thinking}"
        )


def measured(env: Environment, tasks: Sequence[Task] = (), most: int = MEASURED) -> Lengths:
    """Plays tasks without a fault, in writing, and counts their tokens.

    tasks: none: those to train on. most: of which so many at most are played, evenly spaced.
    """
    tasks = tasks or env.train_tasks
    count = min(len(tasks), most)
    config, system = env.config.rollout, len(env.system[1])
    thinks = config.thinking == "on" and config.max_turn_tokens > THOUGHT
    tokens, fits, thinking = [], [], []
    for task in (tasks[i * len(tasks) // count] for i in range(count)):
        turns = _tokens(env, task)
        # Each turn must have room for the longest one.
        before = system + sum(turns[0]) + sum(map(sum, turns[1:-1]))
        tokens.append(before + sum(turns[-1]))
        most_turns, number = max_turns(task, config), len(turns) - 1
        in_time = not most_turns or number <= most_turns
        room = config.max_episode_tokens - config.max_turn_tokens - before
        fits.append(in_time and room >= 0)
        thinking.append(in_time and room >= THOUGHT * (number - 1))
    return Lengths(system, np.array(tokens), np.array(fits), np.array(thinking) if thinks else None,
                   len(tasks), config.max_episode_tokens)


def require_room(env: Environment) -> Lengths:
    """`measured`; raises ConfigError where more than `rollout.max_too_long` of them do not fit."""
    found, config = measured(env), env.config.rollout
    if found.too_long > config.max_too_long:
        needed = found.tokens[~found.fits]
        raise ConfigError(
            f"config.rollout.max_episode_tokens = {config.max_episode_tokens}: {found.too_long:.0%}"
            f" of the training tasks cannot be solved within it, and within"
            f" rollout.max_turns = {config.max_turns}: a faultless dialogue of theirs has"
            f" {np.median(needed):,.0f} tokens in the median and {needed.max():,} at most, of which"
            f" the system turn {found.system:,}, and before its last turn there must be room for"
            f" rollout.max_turn_tokens = {config.max_turn_tokens}. Raise max_episode_tokens, or let"
            f" these tasks fail (rollout.max_too_long = {config.max_too_long})"
        )
    return found


def faultless(env: Environment, task: Task) -> tuple[str, list[tuple[Call | str, str]]]:
    """The user's opening, and the turns of a faultless agent, each with its answer.

    Of a task that a scripted user can play the faultless clerk serves it; of another one see
    `sandbox/faultless.py`.
    """
    brief = env.config.rollout.brief_writes
    if not playable(env.domain, task):
        opening, played = faultless_dialogue(env.domain, task, brief)
        return opening, [(turn.action, turn.answer) for turn in played]
    found, _ = expert_plays(env.domain, task, LONGEST, brief)
    turns = [(action, observation.text) for action, observation in found]
    return scripted_user(env.domain, task, seed=0).opening(), turns


def _tokens(env: Environment, task: Task) -> list[tuple[int, int]]:
    """Tokens of (nothing, the opening), then of (what the agent writes, the answer) per turn."""
    chat, (opening, turns) = env.chat, faultless(env, task)
    greeting = len(chat.greeting(GREETING)) if greets(task, env.config.rollout) else 0
    tokens = [(0, greeting + len(chat.user(opening)))]
    for action, answer in turns:
        shown = chat.tool(answer) if isinstance(action, Call) else chat.user(answer)
        tokens.append((len(chat.begin) + len(chat.agent(action)), len(shown)))
    return tokens
