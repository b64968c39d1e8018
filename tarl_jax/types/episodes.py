"""Episodes: what was said and sampled, turn by turn, and what came of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tarl_jax.config.plain import dumps
from tarl_jax.speech.sound import Sound
from tarl_jax.types.tasks import Call, Task

STOP_REASONS = (
    "user_stop",
    "answered",
    "transfer",
    "max_turns",
    "max_messages",
    "max_errors",
    "max_tokens",
    "max_seconds",
    "malformed",
    "infrastructure_error",
)


# Ends that are not the dialogue's own.
CUT_OFF = ("max_turns", "max_messages", "max_tokens", "max_seconds")

Clips = Callable[[str], np.ndarray]  # the clip of a name


def _no_clips(name: str) -> np.ndarray:
    raise ValueError(f"the record has sound, {name}: give from_json_line what finds a clip by name")


_LOG_PROBS = ("log_probs", "drawn_log_probs")


@dataclasses.dataclass
class Segment:
    """A run of tokens with one author.

    Attributes:
      role: "system", "greeting" (the agent's, that it has not written), "user", "tool" or "agent".
      token_ids: ids in order.
      sampled: per token, True where the policy drew it. (Where a turn hit its limit, the end token
        appended to it is forced and opens the segment that answers it.)
      log_probs: per token, log-probability at sampling; 0.0 where not sampled.
      turn: index of the agent turn, or of the turn that this segment answers; -1 before the first.
      text: what was said or returned, without chat markup; of an agent's turn all that it wrote.
        Where it was spoken, the policy never saw it.
      message, calls, thought, unheard: an agent's turn as it was read, once (`text.reading`): what
        it told the user, the tools that it called, its reasoning, and what it wrote beside them
        that nobody heard. Who asks what was said reads `message`, not `text`.
      info: facts for judge and viewer that the policy never sees (intent, request index, error);
        but for "interruption", what a supervisor added to the text.
      drawn_log_probs: log-probability in the distribution that the token was drawn from, where a
        truncation or a grammar made that another one than the policy's; empty otherwise.
      forgotten: how many tokens, the first ones, have left the context.
      forgotten_after: the turn after which they left; -1: the segment's own.
      sound: of a segment that was spoken; None: it was written.
    """

    role: str
    token_ids: list[int]
    sampled: list[bool]
    log_probs: list[float]
    turn: int
    text: str
    message: str = ""
    calls: list[Call] = dataclasses.field(default_factory=list)
    thought: str = ""
    unheard: str = ""
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    drawn_log_probs: list[float] = dataclasses.field(default_factory=list)
    forgotten: int = 0
    forgotten_after: int = -1
    sound: Sound | None = None

    @classmethod
    def forced(cls, role: str, token_ids: list[int], turn: int, text: str, **info: Any) -> Segment:
        """A segment that the environment wrote."""
        n = len(token_ids)
        return cls(role, list(token_ids), [False] * n, [0.0] * n, turn, text, info=info)

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["sampled"] = [int(s) for s in self.sampled]
        data["calls"] = [call.to_json() for call in self.calls]
        if self.sound:
            data["sound"] = self.sound.to_json()
        else:
            del data["sound"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], clips: Clips = _no_clips) -> Segment:
        data, sound = _renewed(data), data.get("sound")
        return cls(
            **{
                **data,
                "sampled": [bool(s) for s in data["sampled"]],
                # "NaN" and "Infinity" are how `plain.dumps` writes them.
                **{n: [float(p) for p in data[n]] for n in _LOG_PROBS if n in data},
                "calls": [Call.from_json(call) for call in data["calls"]],
                "sound": Sound(**{**sound, "clip": clips(sound["clip"])}) if sound else None,
            }
        )

    def empty(self) -> None:
        """Takes the tokens away: what was said came too late for the policy."""
        self.token_ids, self.sampled, self.log_probs, self.sound = [], [], [], None


def _renewed(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A segment's record as it is now; at first thought, message and calls were no fields."""
    if "calls" in data:
        return data
    data = dict(data)
    call = data.pop("call", None)
    if data["role"] == "agent" and not call and "malformed" not in data["info"]:
        data["thought"], _, data["message"] = data["text"].rpartition("</think>")
    return {**data, "calls": [call] if call else []}


@dataclasses.dataclass
class Trajectory:
    """One finished episode.

    Attributes:
      task: what was played.
      seed: of the episode (user phrasing and sampling).
      segments: in order; their tokens concatenated are what the policy saw, all of it at once if
        nothing was forgotten (`parts`).
      stop_reason: one of STOP_REASONS.
      success: the verifier's verdict, or where a reader said that an assertion of the task's does
        not hold, that one's; None if the infrastructure broke the episode.
      outputs_found: whether the required outputs were all said (reported beside success).
      diff: readable lines of what the episode changed in the database.
      gold_diff: readable lines of where the final database differs from the right one.
      turn_scores: per agent turn -1, 0 or +1; None if the judge abstained.
      turn_minors: per agent turn whether its 0 is a minor issue, not a neutral turn; None where
        nobody said (the judge abstained, or the record is older).
      judge_notes: per agent turn, the judge's reason.
      counted: whether the scores count in reward and credit; False where the judge abstained on
        another episode of the group, so that all of it is compared by the verdict alone.
      reward: the scalar made of verdict and scores; None before the reward is computed.
      reward_parts: what it is the sum of: "terminal", "turns", "major".
      seconds: host seconds by phase.
      user_faults: what the user did wrong, "kind: what", empty: nothing; None: nobody looked.
      assertions_met: whether each of the task's assertions holds; empty: who was asked could not
        say; None: nobody was asked.
      advantages: per agent turn what its tokens were trained on: one number for all that were
        sampled, or one for each of them; empty where nobody said.
    """

    task: Task
    seed: int
    segments: list[Segment]
    stop_reason: str
    success: bool | None
    outputs_found: bool = True
    diff: list[str] = dataclasses.field(default_factory=list)
    gold_diff: list[str] = dataclasses.field(default_factory=list)
    turn_scores: list[int] | None = None
    turn_minors: list[bool] | None = None
    judge_notes: list[str] = dataclasses.field(default_factory=list)
    counted: bool = True
    reward: float | None = None
    reward_parts: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    advantages: list[list[float]] = dataclasses.field(default_factory=list)
    user_faults: list[str] | None = None
    assertions_met: list[bool] | None = None

    @property
    def turns(self) -> list[Segment]:
        """The agent's segments, one per turn."""
        return [s for s in self.segments if s.role == "agent"]

    @property
    def answers(self) -> dict[int, list[Segment]]:
        """By agent turn, what answered it: the user, or one tool for each call."""
        found: dict[int, list[Segment]] = {}
        for segment in self.segments:
            if segment.role in ("user", "tool"):
                found.setdefault(segment.turn, []).append(segment)
        return found

    @property
    def scores(self) -> list[int] | None:
        """The turn scores that count; None where there are none."""
        return self.turn_scores if self.counted else None

    @property
    def minors(self) -> list[bool] | None:
        """Which of the turn scores that count are minor; None where nobody said."""
        return self.turn_minors if self.counted else None

    @property
    def num_tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.segments)

    def sounds(self) -> Iterable[Sound]:
        """Of what was spoken, in order; `first` counts from the start of the sequence."""
        begin = 0
        for segment in self.segments:
            if segment.sound:
                sound = segment.sound
                yield dataclasses.replace(sound, first=begin + sound.first)
            begin += len(segment.token_ids)

    def arrays(self, drawn: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(token ids, sampled mask, log-probs) of all tokens, each of shape [S].

        drawn: log-probs in the distribution that was drawn from, not in the policy's own.
        """
        ids = np.array([t for s in self.segments for t in s.token_ids], np.int32)
        sampled = np.array([m for s in self.segments for m in s.sampled], bool)
        said = [(drawn and s.drawn_log_probs) or s.log_probs for s in self.segments]
        log_probs = np.array([p for of in said for p in of], np.float32)
        return ids, sampled, log_probs

    def had_alternatives(self) -> np.ndarray:
        """[S]; False where grammar or truncation left the token alone: drawn with certainty.

        Such a token was no choice of the policy, whatever probability it has there.
        """
        drawn = [s.drawn_log_probs or [-1.0] * len(s.token_ids) for s in self.segments]
        return np.array([p != 0 for of in drawn for p in of], bool)

    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """What the policy saw at once, as often as it changed: one part if nothing was forgotten.

        Returns: per part (indices into the tokens [N], which of them count there [N]): sampled
          tokens count in the part in which they were sampled, and in no other.
        """
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        seen, counts = np.zeros(0, np.int64), np.zeros(0, bool)
        leaving: dict[int, list[np.ndarray]] = {}  # by the turn after which they leave
        end = 0
        for segment in self.segments:
            start, end = end, end + len(segment.token_ids)
            seen = np.append(seen, np.arange(start, end))
            counts = np.append(counts, np.array(segment.sampled, bool))
            if segment.forgotten:
                after = segment.forgotten_after
                gone = np.arange(start, start + segment.forgotten)
                leaving.setdefault(segment.turn if after < 0 else after, []).append(gone)
            if segment.role == "agent" and segment.turn in leaving:
                parts.append((seen, counts))
                seen = np.setdiff1d(seen, np.concatenate(leaving.pop(segment.turn)))
                counts = np.zeros(len(seen), bool)
        return [*parts, (seen, counts)] if counts.any() or not parts else parts

    def to_json_line(self) -> str:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["task"] = self.task.to_json()
        data["segments"] = [s.to_json() for s in self.segments]
        return dumps(data)

    @classmethod
    def from_json_line(cls, line: str, clips: Clips = _no_clips) -> Trajectory:
        """Reads what `to_json_line` wrote; `clips` finds the sound that the line names.

        Raises ValueError for a line that names some where there is no `clips`.
        """
        data = json.loads(line)
        return cls(
            **{
                **data,
                "task": Task.from_json(data["task"]),
                "segments": [Segment.from_json(s, clips) for s in data["segments"]],
            }
        )
