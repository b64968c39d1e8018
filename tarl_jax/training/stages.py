"""The stages of an episode: where it stood turn by turn, and which goals ended right.

A stage is the part of an episode between decided goals. For a scripted task that is the request
under discussion; for one with checks, the set of checks that hold; for any other the set of gold
calls that the database shows done. What is compared
inside a group is what reached the same stage, and whether it is reached was decided before it
begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

from tarl_jax.sandbox.desks import desk_of
from tarl_jax.sandbox.script import Script
from tarl_jax.types import Segment, Trajectory


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of one episode.

    Attributes:
      key: what the same stage of another episode has in common with it.
      turns: its agent turns, by number.
      right: whether its goal ended right.
    """

    key: Hashable
    turns: tuple[int, ...]
    right: bool


def stages_of(trajectory: Trajectory) -> tuple[list[Stage], int]:
    """The stages that the episode reached, and how many goals its task has (at least 1).

    For scripted tasks turns after the last request belong to none; for others they are a last
    stage, whose goal is the episode's success.
    """
    if trajectory.task.script is not None:
        return _by_request(trajectory, Script.from_json(trajectory.task.script))
    return _by_goals(trajectory)


def states_of(trajectory: Trajectory) -> list[Hashable]:
    """Per turn what an agent stands before: goals done so far, and the last answer.

    Two turns in the same state may be compared, whatever led there (GiGPO, arXiv 2505.10978).
    """
    answers, last = trajectory.answers, ""
    done = tuple(_held(answers))
    for segment in trajectory.segments:
        if segment.role == "user":
            last = segment.text
            break
    found: list[Hashable] = []
    for turn in trajectory.turns:
        found.append((done, last))
        for answer in answers.get(turn.turn, []):
            done = tuple(answer.info.get("fulfilled", done))
            last = answer.text
    return found


def _by_request(trajectory: Trajectory, script: Script) -> tuple[list[Stage], int]:
    answers, now = trajectory.answers, 0
    turns: dict[int, list[int]] = {}
    decided = set()
    for turn in trajectory.turns:
        answered = answers.get(turn.turn)
        info = answered[-1].info if answered else {}
        now = info.get("request", now)
        turns.setdefault(now, []).append(turn.turn)
        event = info.get("event")
        if event == "next_request":
            decided.add(now)
            now += 1
        elif event == "bye":
            decided.add(now)
    count = len(script.requests)
    wrong = {line.split(" ", 2)[1] for line in trajectory.gold_diff}
    said = _outputs_by_request(trajectory, script)
    return [
        Stage(
            ("request", index), tuple(of),
            index in decided and not wrong & _names(script.requests[index].to_json())
            and _said(trajectory, said.get(index), of),
        )
        for index, of in sorted(turns.items()) if index < count
    ], max(count, 1)


def _names(request: object) -> set[str]:
    """Every text in a request: ids of the records that it is about are among them."""
    if isinstance(request, dict):
        return set().union(*map(_names, request.values()))
    return {request} if isinstance(request, str) else set()


def _outputs_by_request(trajectory: Trajectory, script: Script) -> dict[int, str]:
    """What the requests that only ask should be answered; a task lists it in their order."""
    reads = desk_of(script.desk).reads
    asking = [i for i, request in enumerate(script.requests) if request.kind in reads]
    if len(asking) != len(trajectory.task.outputs):
        return {}
    return dict(zip(asking, trajectory.task.outputs, strict=True))


def _said(trajectory: Trajectory, output: str | None, turns: list[int]) -> bool:
    if output is None:
        return True
    texts = (t.message for t in trajectory.turns if t.turn in turns)
    return any(output.lower() in text.lower().replace(",", "") for text in texts)


def _by_goals(trajectory: Trajectory) -> tuple[list[Stage], int]:
    answers = trajectory.answers
    done = frozenset[int](_held(answers))
    parts: list[tuple[frozenset[int], list[int], bool]] = []
    for turn in trajectory.turns:
        if not parts or parts[-1][0] != done or parts[-1][2]:
            parts.append((done, [], False))
        parts[-1][1].append(turn.turn)
        for answer in answers.get(turn.turn, []):
            now = frozenset(answer.info.get("fulfilled", done))
            if now != done:
                parts[-1] = (done, parts[-1][1], bool(now - done) and now >= done)
                done = now
    goals = len(trajectory.task.checks or trajectory.task.gold_calls)
    found = []
    for place, (before, turns, grew) in enumerate(parts):
        last = place == len(parts) - 1
        right = bool(trajectory.success) if last and len(before) == goals else grew
        found.append(Stage(tuple(sorted(before)), tuple(turns), right))
    return found, max(goals, 1)


def _held(answers: dict[int, list[Segment]]) -> list[int]:
    """The goals that were there from the start, as the opening says."""
    return answers[-1][0].info.get("fulfilled", []) if -1 in answers else []
