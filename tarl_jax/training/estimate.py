"""What a run will ask of outside language models, told before it starts.

The first of two figures is of dialogues in which nothing goes wrong, the second of episodes that
all go to their limits; a policy that learns lies between, mostly nearer the first. Tokens are
guessed at four characters each, as budgets do. Attempts that fail are not counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tarl_jax.config import LLMConfig, RunConfig
from tarl_jax.config.plain import dumps
from tarl_jax.judge.request import rubric
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.episode import max_turns
from tarl_jax.rollout.lengths import faultless
from tarl_jax.sandbox.llm_user import GREETING, system_prompt
from tarl_jax.sandbox.scoring import needs_reader
from tarl_jax.training.mixture import Mixture
from tarl_jax.training.parts import Parts
from tarl_jax.types import Call, Task

CHARACTERS_PER_TOKEN = 4
_SAMPLE = 32  # tasks that are played
_MOST_CALLS = {"llm": 1, "react": 1, "verify": 5, "reflection": 5}  # for a message
_LEAST_CALLS = {"llm": 1, "react": 1, "verify": 2, "reflection": 2}
_THOUGHT = 60  # tokens that one takes before a message of `react`
_GRADE = 40  # tokens of a turn's grade
_ATTEMPTS = 3  # at a judgement that can be used
_SHORTEST_TURN = 64  # tokens of a turn and its answer, where the number of turns has no limit
_UNBOUNDED = 4096  # tokens of an answer, where config and server leave them open

Range = np.ndarray  # [2]: at least, at most


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of one model; each a range, over all of the run.

    Attributes:
      who: "user" or "judge". usd: None where the config gives no prices.
    """

    who: str
    llm: LLMConfig
    calls: Range
    prompt_tokens: Range
    completion_tokens: Range

    @property
    def usd(self) -> Range | None:
        into, out = self.llm.usd_per_million_input, self.llm.usd_per_million_output
        if not into and not out:
            return None
        return (self.prompt_tokens * into + self.completion_tokens * out) / 1e6

    def lines(self) -> list[str]:
        """In words, budgets that will not do among them."""
        field = f"{self.who}.llm"
        cost = f"{_between(self.usd)} USD" if self.usd is not None else (
            f"give {field}.usd_per_million_input and _output to see what that costs"
        )
        found = [
            f"cost: the {self.who} ({self.llm.model}) is asked {_between(self.calls)} times:"
            f" {_between(self.prompt_tokens / 1e6)} million tokens in,"
            f" {_between(self.completion_tokens / 1e6)} million out; {cost}"
        ]
        if self.llm.replay:
            return [f"cost: the {self.who} is replayed from {self.llm.replay}: nothing is asked"]
        spent = {"max_calls": self.calls[0], "max_usd": 0 if self.usd is None else self.usd[0]}
        for name, least in spent.items():
            budget = getattr(self.llm, name)
            if 0 < budget < least:
                found.append(f"cost: config.{field}.{name} = {budget:,} is less than that: the run"
                             " will stop there, and go on from its last checkpoint with a larger"
                             " one")
        if not self.llm.max_calls and not self.llm.max_usd:
            found.append(f"cost: no budget: set config.{field}.max_usd or max_calls")
        return found


def estimate(
    config: RunConfig, env: Environment, evaluation: Environment, parts: Parts, done: int = 0
) -> list[Asked]:
    """What the steps after `done` ask, evaluations included; empty where nobody is asked."""
    asked = []
    if env.users is not None and not parts.user:
        asked.append(("user", config.user.llm, _user))
    if config.judge.kind == "llm" and not parts.judge:
        asked.append(("judge", config.judge.llm, _judge))
    if not asked:
        return []
    places = [(env, _some(env.train_tasks), _training_episodes(config, env, done)),
              (evaluation, _some(evaluation.held_out_tasks),
               _evaluation_episodes(config, evaluation, done))]
    found = []
    for who, llm, of_episode in asked:
        total = sum(
            np.mean([of_episode(where, task) for task in tasks], axis=0) * episodes
            for where, tasks, episodes in places
        )
        found.append(Asked(who, llm, *np.ceil(total)))
    return found


def _training_episodes(config: RunConfig, env: Environment, done: int) -> Range:
    problems = env.maths.train_tasks if env.maths else []
    mixture = Mixture(env.train_tasks, problems, config.rollout.tasks_per_step, config.maths,
                      config.seed, config.speech, config.curriculum)
    groups = sum(mixture.counts(step)[0] for step in range(done + 1, config.rl.steps + 1))
    return groups * config.rollout.group_size * np.array([1, 1 + config.rollout.refills])


def _evaluation_episodes(config: RunConfig, where: Environment, done: int) -> Range:
    wanted, steps = config.eval, config.rl.steps
    every = wanted.every or steps + 1
    between = sum(step % every == 0 for step in range(done + 1, steps))
    around = (wanted.before and not done) + (steps > done)
    held_out = len(where.held_out_tasks)
    tasks = between * min(wanted.tasks, held_out) + around * min(wanted.final_tasks, held_out)
    return tasks * wanted.trials * (1 + len(wanted.spoken)) * np.ones(2)


def _user(env: Environment, task: Task) -> np.ndarray:
    """[calls, prompt tokens, completion tokens] x [at least, at most] of one episode's user."""
    config = env.config.user
    system = _tokens(system_prompt(task.instruction, config.strategy))
    opening, turns = faultless(env, task)
    said, messages = [GREETING], [opening]
    for action, answer in turns:
        if isinstance(action, str):
            said.append(action)
            messages.append(answer)
    history, prompts, written = system, 0.0, 0.0
    thought = _THOUGHT if config.strategy == "react" else 0
    for heard, message in zip(said, messages, strict=True):
        history += _tokens(heard)
        prompts += history
        wrote = _tokens(message) + thought
        written += wrote
        history += wrote
    least, most = _LEAST_CALLS[config.strategy], _MOST_CALLS[config.strategy]
    rollout, longest = env.config.rollout, config.llm.max_tokens or _UNBOUNDED
    turns_at_most = _most_turns(env, task)
    calls = min((turns_at_most + 1) * most, config.max_calls)
    dialogue = max(rollout.max_episode_tokens - len(env.system[1]), 0) + thought * turns_at_most
    return np.array([
        [len(said) * least, max(calls, len(said) * least)],
        [prompts * least, max(calls * (system + dialogue), prompts * least)],
        [written * least, max(calls * longest, written * least)],
    ])


def _judge(env: Environment, task: Task) -> np.ndarray:
    """The same of the judge of one episode."""
    opening, turns = faultless(env, task)
    fixed = _tokens(rubric()) + _tokens(task.instruction) + sum(
        _tokens(dumps(call.to_json())) for call in task.gold_calls
    )
    dialogue = _tokens(opening) + sum(
        _tokens(dumps(action.to_json()) if isinstance(action, Call) else action) + _tokens(answer)
        for action, answer in turns
    )
    rollout, longest = env.config.rollout, env.config.judge.llm.max_tokens or _UNBOUNDED
    whole = max(rollout.max_episode_tokens - len(env.system[1]), dialogue)
    written = _GRADE * len(turns)
    # One that may interrupt is asked after every turn; beside scores it may be asked of assertions
    # and of the user.
    user = env.config.user
    more = needs_reader(task) + (user.kind == "llm" and user.check != "off")
    most = _ATTEMPTS * (1 + more + _most_turns(env, task) * bool(rollout.interruptions))
    return np.array([
        [1, most],
        [fixed + dialogue, most * (fixed + 2 * whole)],  # what is escaped is longer
        [written, most * max(longest, written)],
    ])


def _most_turns(env: Environment, task: Task) -> int:
    """Of the agent, in an episode."""
    rollout = env.config.rollout
    return max_turns(task, rollout) or rollout.max_episode_tokens // _SHORTEST_TURN


def _some(tasks: Sequence[Task]) -> list[Task]:
    """At most _SAMPLE of them, evenly spaced."""
    count = min(len(tasks), _SAMPLE)
    return [tasks[i * len(tasks) // count] for i in range(count)]


def _tokens(text: str) -> float:
    return len(text) / CHARACTERS_PER_TOKEN


def _between(of: Range) -> str:
    least, most = (f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in of)
    return least if least == most else f"{least} to {most}"
