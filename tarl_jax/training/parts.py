"""A researcher's own parts of a run, as Python objects; docs/extending.md makes one of each.

A config file may define, beside `get_config()`,

    def get_parts():
        return Parts(reward=my_reward, judge=my_judge)

and a notebook gives them by hand: `train(config, Parts(reward=my_reward))`. What is left out is
what the config says. A run keeps each part's name and the hash of its source, and goes on with no
other.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, TypeAlias

import numpy as np

from tarl_jax.config import ConfigError, RewardConfig, RunConfig
from tarl_jax.judge.service import JudgeOf
from tarl_jax.rl.losses import PolicyLoss
from tarl_jax.rl.rewards import Reward
from tarl_jax.sandbox.dialogue import UserOf
from tarl_jax.sandbox.domain import Domain
from tarl_jax.types import Task, Trajectory

RewardOf: TypeAlias = Callable[[Trajectory, RewardConfig], Reward]
AdvantageOf: TypeAlias = Callable[
    [Sequence[Sequence[Trajectory]], RunConfig], Sequence[Sequence["float | np.ndarray"]]
]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Own parts; each is optional.

    Attributes:
      domain: tools over a database, and the rules that the agent is told.
      tasks: what users want there; each has the split "train" or "held_out".
      user: (task, seed of the episode) -> who plays the user: an object with `opening() -> str` and
        `reply(message) -> Reply`. Users are asked in threads, those of several episodes at once.
      judge: (finished episode) -> a score and a note for every turn, or None to abstain. Asked in
        threads as episodes end, several at once.
      reward: (judged episode, config.reward) -> its `Reward`, the sum of three named parts. Not
        asked of episodes that were broken from outside. Where an episode's parts are paid apart
        (by stage or turn), it needs an `advantage` beside it.
      advantage: (groups of rewarded episodes, config) -> for each group, for each episode one
        number for all of its sampled tokens, or an array of one per token [S]. An episode whose
        `success` is None was broken from outside: nothing is learned from it, whatever it gets.
      loss: (log-probs now [B, S], batch, weights [B, S], config.rl) -> (the weighted sum of the
        loss over sampled tokens, how many of them it holds back). Traced by JAX.
    """

    domain: Domain | None = None
    tasks: Sequence[Task] | None = None
    user: UserOf | None = None
    judge: JudgeOf | None = None
    reward: RewardOf | None = None
    advantage: AdvantageOf | None = None
    loss: PolicyLoss | None = None


# How many arguments each function is called with.
_ARGUMENTS = {"user": 2, "judge": 1, "reward": 2, "advantage": 2, "loss": 4}


def checked(parts: Any, config: RunConfig) -> Parts:
    """The parts, `Parts()` for None.

    Raises ConfigError for one that is not what it should be, or that the config has no place for.
    """
    if parts is None:
        return Parts()
    if not isinstance(parts, Parts):
        raise ConfigError(
            f"get_parts() returned {type(parts).__name__}: return a tarl_jax.training.parts.Parts"
        )
    if parts.domain is not None and not isinstance(parts.domain, Domain):
        raise ConfigError(
            f"Parts(domain={_shown(parts.domain)}): make it with tarl_jax.sandbox.domain.Domain("
            "name, policy, database, tools)"
        )
    for name, count in _ARGUMENTS.items():
        _check_function(name, getattr(parts, name), count)
    if parts.tasks is not None:
        _check_tasks(parts.tasks)
    if parts.advantage and (config.rl.advantage == "gae" or config.rl.kl_in == "reward"):
        raise ConfigError(
            f"Parts(advantage={_shown(parts.advantage)}) takes the place of"
            f" config.rl.advantage = {config.rl.advantage!r} and of a KL penalty in the reward: set"
            " rl.advantage to grpo and rl.kl_in to loss"
        )
    if parts.reward and not parts.advantage and (
        config.reward.placement in ("stage", "turn_end")
        or config.rl.advantage in ("return_to_go", "gigpo")
    ):
        raise ConfigError(
            f"Parts(reward={_shown(parts.reward)}) is one number for an episode, and"
            f" config.reward.placement = {config.reward.placement!r} with config.rl.advantage ="
            f" {config.rl.advantage!r} pays its parts by config.reward: set reward.placement to"
            " trajectory and rl.advantage to grpo, or give Parts(advantage=…) too"
        )
    given = config.sandbox.domain
    if parts.domain and given not in ("retail", parts.domain.name):
        raise ConfigError(
            f"config.sandbox.domain = {given!r}, and Parts(domain=…) is {parts.domain.name!r}:"
            " leave one of them out"
        )
    return parts


def record(parts: Parts) -> dict[str, dict[str, str]]:
    """Of each part that is given its qualified name and the hash of its source, by its kind.

    The source of a function or class is its own text, comments and layout apart, and not that of
    what it calls; of a domain its policy, database and tools; of tasks their records.
    """
    found = {}
    for field in dataclasses.fields(Parts):
        part = getattr(parts, field.name)
        if part is not None:
            found[field.name] = {"name": _name(part), "source": _digest(_source(part))}
    return found


def _check_function(name: str, part: Any, count: int) -> None:
    if part is None:
        return
    if not callable(part):
        raise ConfigError(f"Parts({name}={_shown(part)}): give a function of {count} arguments")
    try:
        inspect.signature(part).bind(*range(count))
    except TypeError as error:
        raise ConfigError(
            f"Parts({name}={_shown(part)}): it is called with {count} arguments ({error}); see the"
            " docstring of tarl_jax.training.parts.Parts"
        ) from error
    except ValueError:  # some built-in functions do not tell what they take
        return


def _check_tasks(tasks: Any) -> None:
    if not isinstance(tasks, Sequence):
        raise ConfigError(f"Parts(tasks={_shown(tasks)}): give a list of tarl_jax.types.Task")
    for place, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise ConfigError(f"Parts(tasks=…): element {place} is {_shown(task)}: each must be a"
                              " tarl_jax.types.Task")
        if task.split not in ("train", "held_out"):
            raise ConfigError(f"Parts(tasks=…): task {task.task_id!r} has the split {task.split!r}:"
                              " choose train or held_out")
    ids = [task.task_id for task in tasks]
    twice = sorted({i for i in ids if ids.count(i) > 1})[:3] if len(set(ids)) < len(ids) else []
    if twice:
        raise ConfigError(f"Parts(tasks=…): several tasks have the id {twice[0]!r}: make each of"
                          " its own")


def _name(part: Any) -> str:
    if isinstance(part, Domain):
        return f"domain {part.name}"
    if isinstance(part, Sequence):
        return f"{len(part)} tasks"
    of = part if hasattr(part, "__qualname__") else type(part)
    try:
        file = inspect.getsourcefile(of)
    except (OSError, TypeError):  # typed in by hand, or built in
        file = None
    # The module of a config file has no name of its own.
    return f"{Path(file).name if file else of.__module__}:{of.__qualname__}"


def _source(part: Any) -> str:
    if isinstance(part, Domain):
        tools = [[tool.schema, tool.write, _source(tool.function)] for tool in part.tools.values()]
        return json.dumps([part.name, part.policy, part.state_hash(part.new_state()), tools])
    if isinstance(part, Sequence):
        return "\n".join(json.dumps(task.to_json()) for task in part)
    if isinstance(part, type) or hasattr(part, "__code__"):
        of = part
    elif hasattr(part, "func"):  # functools.partial
        return f"{_source(part.func)} {part.args!r} {part.keywords!r}"
    else:
        of = getattr(part, "__func__", type(part))
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(of))))
    except (OSError, TypeError, SyntaxError):  # typed in by hand, or part of a longer line
        if hasattr(of, "__code__"):
            return _compiled(of.__code__)
        methods = {k: v for k, v in vars(of).items() if hasattr(v, "__code__")}
        return repr(sorted((name, _compiled(f.__code__)) for name, f in methods.items()))


def _compiled(code: CodeType) -> str:
    inner = [_compiled(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    return repr((code.co_code.hex(), code.co_names, inner))


def _constant(value: Any) -> str:
    # The order of a set's elements changes from process to process.
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shown(part: Any) -> str:
    return part.__qualname__ if hasattr(part, "__qualname__") else repr(part)[:60]
