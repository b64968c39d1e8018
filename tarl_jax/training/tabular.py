"""A table in the policy's place: what saved episodes did in which state, and the gradient of that.

A softmax policy with one logit per state and action, fitted to the episodes (their frequencies),
has a gradient in closed form,

    grad log pi(a | s) = e_(s,a) - pi(. | s) on the actions of s,

so that what a way of crediting turns would teach can be computed from the episodes alone. How well
it stands for the policy depends on its states:

- of a task with a script: the kind of the request under discussion, whether the policy forbids
  it, whether the user has changed its mind, the class of the last answer, and how many turns the
  request has had (at most MAX_PLACE);
- of any other task: how many gold calls are fulfilled, the class of the last answer, what the last
  turn was.

The class of an answer is its role, whether it refused, the scripted user's event and the tool that
was called. An action is the tool called, or "ask", "tell", "malformed", with what the judge said
of the turn: its note, every word with a digit in it left out, where the episodes hold at most
MAX_NOTES of those; otherwise (a judge that writes freely) the score.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tarl_jax.rl.calibration import turn_kind
from tarl_jax.training.turn_credit import turn_of_token
from tarl_jax.types import Segment, Trajectory

MAX_PLACE = 4  # turns of a request that are told apart
MAX_NOTES = 64  # a judge with more notes than that writes freely
_IDENTIFIER = re.compile(r"\S*\d\S*")


@dataclasses.dataclass(frozen=True)
class TabularPolicy:
    """A cell is a state and an action that was taken in it.

    Attributes:
      cell: per visited turn its cell.
      state: per cell its state.
      probability: per cell how often its action was taken in its state.
    """

    cell: Int[np.ndarray, " turns"]
    state: Int[np.ndarray, " cells"]
    probability: Float[np.ndarray, " cells"]

    @property
    def states(self) -> int:
        return int(self.state.max(initial=-1)) + 1


def fit(states: Sequence[Hashable], actions: Sequence[Hashable]) -> TabularPolicy:
    """The maximum-likelihood policy of the turns, one state and action each."""
    state_numbers: dict[Hashable, int] = {}
    cell_numbers: dict[tuple[int, Hashable], int] = {}
    cell = np.zeros(len(states), np.int64)
    for i, (state, action) in enumerate(zip(states, actions, strict=True)):
        number = state_numbers.setdefault(state, len(state_numbers))
        cell[i] = cell_numbers.setdefault((number, action), len(cell_numbers))
    state_of = np.array([state for state, _ in cell_numbers], np.int64)
    count = np.bincount(cell, minlength=len(cell_numbers)).astype(np.float64)
    visits = np.bincount(state_of, weights=count)
    return TabularPolicy(cell, state_of, count / visits[state_of])


def gradients(
    policy: TabularPolicy,
    advantages: Float[np.ndarray, " turns"],
    group: Int[np.ndarray, " turns"],
    groups: int,
) -> Float[np.ndarray, "groups cells"]:
    """Per group the sum over its turns of advantage times grad log pi(action | state)."""
    cells, states = len(policy.state), policy.states
    credit = np.bincount(group * cells + policy.cell, advantages, groups * cells)
    of_state = np.bincount(
        group * states + policy.state[policy.cell], advantages, groups * states
    ).reshape(groups, states)
    return credit.reshape(groups, cells) - of_state[:, policy.state] * policy.probability


# ---- from episodes to turns -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Turns:
    """The turns of all episodes that the infrastructure did not break, one after the other.

    Attributes:
      policy: fitted to them.
      group: per turn the number of its group.
      episodes: the numbers of the episodes that have them, in order.
      tokens: per such episode the turn of each token (its place there), -1 for forced ones.
      counts: per such episode and turn its sampled tokens.
    """

    policy: TabularPolicy
    group: Int[np.ndarray, " turns"]
    episodes: list[int]
    tokens: list[np.ndarray]
    counts: list[np.ndarray]

    def mean_over_tokens(self, advantages: Sequence[float | np.ndarray]) -> np.ndarray:
        """Per turn the mean advantage of its sampled tokens; of `Credit.advantages`.

        A turn without a sampled token gets 0.
        """
        found = []
        for episode, tokens, count in zip(self.episodes, self.tokens, self.counts, strict=True):
            given = np.asarray(advantages[episode], np.float64)
            if given.ndim:
                mine = tokens >= 0
                sums = np.bincount(tokens[mine], given[mine], len(count))
                found.append(sums / np.maximum(count, 1))
            else:
                found.append(np.where(count > 0, given, 0.0))
        return np.concatenate(found) if found else np.zeros(0)


def read_turns(groups: Sequence[Sequence[Trajectory]]) -> Turns:
    """The turns of the groups' episodes, in order, and the policy fitted to them."""
    played = [(g, t) for g, group in enumerate(groups) for t in group]
    whole = [i for i, (_, t) in enumerate(played) if t.success is not None]
    remarks = _remarks([played[i][1] for i in whole])
    states: list[Hashable] = []
    actions: list[Hashable] = []
    group: list[int] = []
    tokens, counts = [], []
    for i, said in zip(whole, remarks, strict=True):
        number, trajectory = played[i]
        turns = trajectory.turns
        states += states_of(trajectory)
        actions += [(turn_kind(turn), remark) for turn, remark in zip(turns, said, strict=True)]
        group += [number] * len(turns)
        tokens.append(turn_of_token(trajectory))
        counts.append(np.bincount(tokens[-1][tokens[-1] >= 0], minlength=len(turns)))
    return Turns(fit(states, actions), np.array(group, np.int64), whole, tokens, counts)


def states_of(trajectory: Trajectory) -> list[Hashable]:
    """Per turn the state that it was taken in (the module's docstring says which)."""
    requests = (trajectory.task.script or {}).get("requests")
    if requests and any("request" in s.info for s in trajectory.segments):
        return _by_request(trajectory, requests)
    return _by_goals(trajectory)  # also where a script is not that of the scripted user


def _by_request(trajectory: Trajectory, requests: Sequence[Mapping[str, Any]]) -> list[Hashable]:
    answers = trajectory.answers
    now, place, changed = 0, 0, False
    last: Hashable = "opening"
    found: list[Hashable] = []
    for turn in trajectory.turns:
        answered = answers.get(turn.turn, [])
        info = answered[-1].info if answered else {}
        if (about := info.get("request", now)) != now:
            now, place, changed = about, 0, False
        request = requests[now] if now < len(requests) else {}
        kind, denied = request.get("kind", ""), bool(request.get("denial"))
        found.append((kind, denied, changed, last, min(place, MAX_PLACE)))
        place, last = place + 1, _answer_class(turn, answered)
        changed |= info.get("event") == "changed_mind"
        if info.get("event") == "next_request":
            now, place, changed = now + 1, 0, False
    return found


def _by_goals(trajectory: Trajectory) -> list[Hashable]:
    answers = trajectory.answers
    open_calls, done = list(trajectory.task.gold_calls), 0
    last: Hashable = "opening"
    before = ""
    found: list[Hashable] = []
    for turn in trajectory.turns:
        found.append((done, last, before))
        answered = answers.get(turn.turn, [])
        for call, answer in zip(turn.calls, answered, strict=False):
            if "fulfilled" in answer.info:
                done = len(answer.info["fulfilled"])
            elif answer.info.get("wrote") and call in open_calls:
                open_calls.remove(call)
                done += 1
        last, before = _answer_class(turn, answered), turn_kind(turn)
    return found


def _answer_class(turn: Segment, answered: Sequence[Segment]) -> Hashable:
    if not answered:
        return "none"
    refused = any(answer.info.get("error") for answer in answered)
    last = answered[-1]
    return last.role, refused, last.info.get("event", ""), "+".join(c.name for c in turn.calls)


def _remarks(trajectories: Iterable[Trajectory]) -> list[list[Hashable]]:
    """Per episode and turn what the judge said of it, as part of an action."""
    notes: list[list[Hashable]] = []
    scores: list[list[Hashable]] = []
    for t in trajectories:
        silent = t.turn_scores is None
        count = len(t.turns)
        scores.append([None] * count if silent else list(t.turn_scores or ()))
        said = [" ".join(_IDENTIFIER.sub("", note).split()) for note in t.judge_notes]
        notes.append(list(said) if len(said) == count and not silent else list(scores[-1]))
    return notes if len({note for of in notes for note in of}) <= MAX_NOTES else scores
