"""Did an episode do what its task asked for? τ-bench's reward, by comparing final states.

Unlike the original, gold calls are replayed on a state of their own and never through the live
environment, and the required outputs are reported beside success instead of being part of it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tarl_jax.sandbox.domain import Domain, State


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    success: the final database equals the one that the gold calls lead to.
    outputs_found: every required output was said to the user; true where none is required.
    missing_outputs: those that were not, as the task spells them.
    diff: readable lines, gold on the left and live on the right; empty exactly on success.
    """

    success: bool
    outputs_found: bool
    missing_outputs: tuple[str, ...]
    diff: tuple[str, ...]


def verify(
    domain: Domain,
    state: State,
    gold_calls: Sequence[tuple[str, dict[str, Any]]],
    required_outputs: Iterable[str] = (),
    agent_messages: Iterable[str] = (),
) -> Verdict:
    """Compares the state an episode ended in with the one its gold calls lead to.

    A gold call that is refused changes nothing, as in the original. A required output is found if,
    lower-cased, it occurs in one of the agent's messages, lower-cased and without commas.
    Raises ValueError if the state is not of this domain. Leaves the state as it is.
    """
    gold = _gold_state(domain, json.dumps(gold_calls))
    success = domain.same(state, gold)
    diff = () if success else tuple(domain.diff(state, against=gold))
    said = [message.lower().replace(",", "") for message in agent_messages]
    missing = tuple(
        output
        for output in required_outputs
        if not any(output.lower() in message for message in said)
    )
    return Verdict(success, not missing, missing, diff)


@lru_cache(maxsize=256)
def _gold_state(domain: Domain, gold_calls: str) -> State:
    # A group of episodes shares its task, so most calls of `verify` find the state here.
    state = domain.new_state()
    for name, kwargs in json.loads(gold_calls):
        domain.call(state, name, kwargs)
    return state
