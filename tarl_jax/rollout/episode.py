"""One episode at the level of tokens: a dialogue, its chat layout, and the record it leaves."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from tarl_jax.config import InputError, RolloutConfig
from tarl_jax.llm.errors import LLMError
from tarl_jax.models.audio_inputs import tokens_of
from tarl_jax.rollout.workers import Answer, Turn
from tarl_jax.sandbox.dialogue import Action, Dialogue, Ends, Observation, User, rules_of
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.llm_user import GREETING, LLMUser
from tarl_jax.sandbox.scoring import calls_of, verdict_on
from tarl_jax.sandbox.starts import start_of
from tarl_jax.sandbox.users import Scripted, scripted_user
from tarl_jax.speech.sound import Sound
from tarl_jax.speech.synthesis import SpeechError
from tarl_jax.speech.user import SpokenUser
from tarl_jax.text.chat import Chat
from tarl_jax.text.reading import Written
from tarl_jax.types import Segment, Task, Trajectory

# Told an episode so far, what is wrong with its last turn; None where that may stand.
Supervisor = Callable[[Trajectory], str | None]
_TURNS = 30  # of an episode by τ-bench's rules
# How a served policy, and an episode that is played like one, never fails to answer.
ATTEMPTS = 3  # at a turn that can be read
SHORT = "I am sorry, could you please say that again?"
CLOSING = "I am sorry, this conversation has become too long for me to go on with it. Goodbye."
_GOODBYES = 200  # that a user may answer, at most
_INTERRUPTION = "[Supervisor] Your last step was wrong: {}. Correct it before you go on."


class Episode:
    """Turns sampled ids into actions and answers into ids; nothing is ever encoded twice.

    Of a user that speaks the policy hears the clip; the text stays on the segment. A user whose
    language model or voice fails ends it as "infrastructure_error"; an error that any other episode
    would meet too (its `fatal`) is raised, by `start` or `turn`.

    seed: of the user's phrasing and of the sampling.
    system: the system turn, the same for all episodes: its text and its tokens.
    user: who plays the user; None: a scripted one.
    supervisor: looks at every turn that is answered in writing, and interrupts at most
      `rollout.interruptions` times.
    stop_waits: as in `user.stop_waits`.
    """

    def __init__(
        self, task: Task, seed: int, domain: Domain, chat: Chat, config: RolloutConfig,
        system: tuple[str, list[int]], user: User | None = None,
        supervisor: Supervisor | None = None, stop_waits: bool = True,
    ):
        self.task = task
        self.seed = seed
        self._domain = domain
        self._chat = chat
        self._config = config
        self._system = system
        # A script answers at once, and so does a recording.
        at_once = isinstance(user, Scripted | None) or (
            isinstance(user, LLMUser) and user.at_once
        )
        self.outside = bool(supervisor) or not at_once
        self._user = user or scripted_user(domain, task, seed)
        self._supervisor = supervisor
        self._stop_waits = stop_waits
        self._interruptions = 0
        self._attempts = 0  # turns in a row that could not be read, as a server counts them
        self._dialogue: Dialogue | None = None  # until the user has spoken
        self._segments: list[Segment] = []
        self._tokens = 0
        self._turn = 0
        self._thoughts: list[tuple[Segment, int]] = []  # reasoning that is to leave the context
        self._stop_reason: str | None = None
        self._cut = False
        self._begun = time.perf_counter()  # again when it starts
        self.shared = len(system[1])

    def start(self) -> list[int] | Answer | None:
        """The system turn and the user's opening; None where the user fails to give one.

        Raises ValueError if they leave no room for a turn.
        """
        self._begun = time.perf_counter()
        text, ids = self._system
        self._add(Segment.forced("system", ids, -1, text))
        if greets(self.task, self._config):
            self._add(Segment.forced("greeting", self._chat.greeting(GREETING), -1, GREETING))
        try:
            opening = self._opening()
        except (LLMError, SpeechError) as error:
            self._add(Segment.forced("user", [], -1, "", **self._broken(error)))
            return None
        self._add(opening)
        if not self._room():
            raise InputError(
                f"task {self.task.task_id!r}: its prompt has {self._tokens} tokens, which leaves"
                f" no room for a turn of {self._config.max_turn_tokens} within"
                f" rollout.max_episode_tokens = {self._config.max_episode_tokens}"
            )
        prompt = _answer_of(*self._segments, self._begin())
        return prompt if prompt.sounds else prompt.tokens

    def turn(self, turn: Turn) -> Answer | None:
        """Plays one sampled turn; returns what follows, None at the end."""
        assert self._dialogue is not None  # `start` began it
        written, action = self._chat.read(turn.ids)
        said = segment_of(turn, self._chat.begin, self._turn, written)
        self._add(said)
        try:
            ended = turn.ids[-1] == self._chat.stop_id
            answers, stop_reason = (
                self._again(written.problem, ended) if written.problem and self._config.as_served
                else self._answers(action, ended)
            )
        except (LLMError, SpeechError) as error:
            self._add(Segment.forced("user", [], self._turn, "", **self._broken(error)))
            return None
        if self._cut:
            return None
        self._stop_reason = stop_reason
        if said.calls:  # behind one that ended the episode none is made
            said.calls = said.calls[: len(answers)]
        self._turn += 1
        if self._stop_reason is None and self._late():
            self._stop_reason = "max_seconds"
        leaving = [] if self._stop_reason else self._leaving(said, answers[-1].role)
        self._tokens -= sum(count for _, count in leaving)
        if self._stop_reason is None and not self._room(sum(len(a.token_ids) for a in answers)):
            self._stop_reason = "max_tokens"
            if self._config.as_served:
                answers += self._goodbyes()
        for answer in answers:
            if self._stop_reason:
                answer.empty()
            self._add(answer)
        if self._stop_reason:
            return None
        follows = [*answers, self._begin()]
        if not leaving:
            return _answer_of(*follows)
        first = next(i for i, s in enumerate(self._segments) if s is leaving[0][0])
        keep = sum(len(s.token_ids) - s.forgotten for s in self._segments[:first])
        for segment, count in leaving:
            segment.forgotten, segment.forgotten_after = count, said.turn
        again = [Segment.forced(s.role, s.token_ids[s.forgotten:], s.turn, "")
                 for s in self._segments[first : -len(answers)]]
        return dataclasses.replace(_answer_of(*again, *follows), keep=keep)

    def _leaving(self, said: Segment, answered_by: str) -> list[tuple[Segment, int]]:
        """The turns whose reasoning leaves the context now, and how many tokens that is, in order.

        As `rollout.reasoning` has it; the template drops an empty thought with its turn, and the
        others once the user has answered.
        """
        if self._config.reasoning == "kept":
            return []
        count = self._chat.reasoning(said.token_ids)
        if count:
            self._thoughts.append((said, count))
        alone = self._config.reasoning == "dropped" or answered_by == "user"
        stays = [not alone and bool(segment.thought) for segment, _ in self._thoughts]
        leaving = [of for of, keep in zip(self._thoughts, stays, strict=True) if not keep]
        self._thoughts = [of for of, keep in zip(self._thoughts, stays, strict=True) if keep]
        return leaving

    def cut(self) -> None:
        """Ends the episode where it is, even while another thread waits in `start` or `turn`."""
        self._cut = True
        self._stop_reason = self._stop_reason or "max_seconds"

    def trajectory(self) -> Trajectory:
        """The finished record, verified. Raises RuntimeError while the episode still runs."""
        if self._stop_reason is None:
            raise RuntimeError(f"task {self.task.task_id!r}: the episode has not ended")
        return self._record(self._segments, self._stop_reason)

    def so_far(self) -> Trajectory:
        """The record of an episode that may still run; its verdict is that of now."""
        return self._record(self._segments, self._stop_reason or "")

    def _record(self, segments: list[Segment], stop_reason: str) -> Trajectory:
        said = [s.message for s in segments if s.message]
        start = start_of(self._domain, self.task.initial_state, self.task.task_id)
        state = self._dialogue.state if self._dialogue else start
        verdict = verdict_on(self._domain, self.task, state, calls_of(segments), said)
        # An episode that was cut off is a failure, whatever the database says.
        finished = stop_reason in ("user_stop", "transfer")
        broken = stop_reason == "infrastructure_error"
        return Trajectory(
            task=self.task,
            seed=self.seed,
            segments=list(segments),
            stop_reason=stop_reason,
            success=None if broken else verdict.success and finished,
            outputs_found=verdict.outputs_found,
            diff=list(self._domain.diff(state, against=start)),
            gold_diff=list(verdict.diff),
            seconds={"episode": time.perf_counter() - self._begun},
        )

    def _objection(self, observations: Sequence[Observation]) -> str | None:
        """What the supervisor has against the last turn, which the observations answer."""
        spent = self._interruptions == self._config.interruptions
        if self._supervisor is None or spent or observations[-1].clip is not None:
            return None
        answers = [self._unheard(o) for o in observations]
        wrong = self._supervisor(self._record([*self._segments, *answers], ""))
        self._interruptions += wrong is not None
        return wrong

    def _again(self, problem: str, ended: bool) -> tuple[list[Segment], str | None]:
        """`_answers` to a turn that cannot be read, by a server: it is written again, and at the
        last a short message stands for it. Raises LLMError, SpeechError.
        """
        error = self._said("tool", f"Error: {problem}", None, {"error": True, "malformed": True},
                           [] if ended else [self._chat.stop_id])
        self._attempts += 1
        if self._attempts < ATTEMPTS:
            return [error], None
        self._turn += 1
        short = self._spoken(SHORT, self._chat.agent(SHORT))
        answers, stop_reason = self._answers(SHORT, ended=True)
        return [error, short, *answers], stop_reason

    def _goodbyes(self) -> list[Segment]:
        """What is said where there is no room for a turn, until it ends the episode."""
        said: list[Segment] = []
        for _ in range(_GOODBYES):
            closing = self._spoken(CLOSING, [])
            try:
                answers, stop_reason = self._answers(CLOSING, ended=True)
            except (LLMError, SpeechError) as error:
                broken = Segment.forced("user", [], self._turn, "", **self._broken(error))
                return [*said, closing, broken]
            said += [closing, *answers]
            self._turn += 1
            if stop_reason:
                self._stop_reason = stop_reason
                break
        return said

    def _spoken(self, message: str, ids: list[int]) -> Segment:
        """A turn that the policy did not write."""
        segment = Segment.forced("agent", ids, self._turn, message)
        segment.message = message
        return segment

    def _answers(self, action: Action, ended: bool) -> tuple[list[Segment], str | None]:
        """What answers a turn, a segment for each call, and how the episode has ended, if it has.

        ended: whether the policy ended its turn itself. Raises LLMError, SpeechError.
        """
        assert self._dialogue is not None
        self._attempts = 0
        observations = (
            self._dialogue.call(action) if isinstance(action, tuple)
            else [self._dialogue.act(action)]
        )
        last = observations[-1]
        if last.stop_reason:  # too late for the policy: nobody waits for the sound
            return [self._unheard(o) for o in observations], last.stop_reason
        wrong = self._objection(observations)
        before = [] if ended else [self._chat.stop_id]  # appended, not sampled: it has no log-prob
        answers: list[Segment] = []
        for o in observations:
            info = dict(o.info)
            if wrong and o is last:
                info["interruption"] = _INTERRUPTION.format(wrong)
            answers.append(self._said(o.role, o.text, o.clip, info, before,
                                      first=not answers, last=o is last))
            before = []
        return answers, None

    def _unheard(self, o: Observation) -> Segment:
        return Segment.forced(o.role, [], self._turn, o.text, **o.info)

    def _begin(self) -> Segment:
        """What the next turn begins with; it is part of that turn's own segment."""
        return Segment.forced("agent", list(self._chat.begin), self._turn, "")

    def _opening(self) -> Segment:
        """Begins the dialogue. Raises LLMError, SpeechError."""
        dialogue = Dialogue(
            self.task, self._domain, self._user, max_turns=max_turns(self.task, self._config),
            brief_writes=self._config.brief_writes, stop_waits=self._stop_waits,
            ends=ends_of(self.task, self._config),
        )
        reply = self._user.opening_reply if isinstance(self._user, SpokenUser) else None
        clip, info = (reply.clip, reply.info) if reply else (None, {})
        opening = self._said("user", dialogue.opening, clip, {**info, **dialogue.opening_info})
        scripted = isinstance(self._user, Scripted)
        if not scripted and not self._room(len(opening.token_ids)):
            # What scripts say is known beforehand; a model's whim should not end the run.
            raise LLMError(
                "malformed", "the system turn and the user's opening leave no room for a turn in"
                f" rollout.max_episode_tokens = {self._config.max_episode_tokens:,}: raise it, or"
                f" take a shorter prompt (rollout.system_prompt); the user said: {opening.text}"
            )
        self._dialogue = dialogue
        return opening

    def _said(
        self, role: str, text: str, clip: Future[np.ndarray] | None, info: Mapping[str, Any],
        before: Sequence[int] = (), first: bool = True, last: bool = True,
    ) -> Segment:
        """What the policy reads, or hears, behind the tokens `before`. Raises SpeechError.

        first, last: of the results of one turn's calls.
        """
        turn = -1 if self._dialogue is None else self._turn
        if clip is None:
            shown = f"{text}\n{info['interruption']}" if "interruption" in info else text
            tool = role == "tool"
            ids = self._chat.tool(shown, first, last) if tool else self._chat.user(shown)
            return Segment.forced(role, [*before, *ids], turn, text, **info)
        samples = clip.result()
        tokens = tokens_of(len(samples))
        ids, place = self._chat.spoken(tokens)
        segment = Segment.forced(role, [*before, *ids], turn, text, **info)
        segment.sound = Sound(len(before) + place, tokens, samples)
        return segment

    def _broken(self, error: LLMError | SpeechError) -> dict[str, str]:
        """Ends the episode, or the run where no other would fare better; returns facts for it."""
        if error.fatal:
            raise error
        self._stop_reason = "infrastructure_error"
        return {"failure": str(error)}

    def _add(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._tokens += len(segment.token_ids)

    def _late(self) -> bool:
        limit = self._config.episode_seconds
        return limit > 0 and time.perf_counter() - self._begun > limit

    def _room(self, more: int = 0) -> bool:
        longest = len(self._chat.begin) + self._config.max_turn_tokens
        return self._tokens + more + longest <= self._config.max_episode_tokens


def ends_of(task: Task, config: RolloutConfig) -> Ends:
    """What ends an episode: as the config says, or as the benchmark whose task it is."""
    rules = rules_of(task)
    return Ends(
        rules.transfer if config.after_transfer == "rules" else config.after_transfer == "end",
        rules.errors if config.max_errors < 0 else config.max_errors,
        rules.messages if config.max_messages < 0 else config.max_messages,
    )


def max_turns(task: Task, config: RolloutConfig) -> int:
    """As the config says, or as the benchmark whose task it is; 0: any number."""
    if config.max_turns >= 0:
        return config.max_turns
    return 0 if _is_tau2(task) else _TURNS


def greets(task: Task, config: RolloutConfig) -> bool:
    """Whether the agent's greeting comes first."""
    return config.greeting == "on" or (config.greeting == "rules" and _is_tau2(task))


def _is_tau2(task: Task) -> bool:
    """Whether the task is τ²-bench's own, so that its rules hold."""
    return bool(task.reward_basis)


def segment_of(turn: Turn, begin: Sequence[int], number: int, written: Written) -> Segment:
    """The record of an agent's turn that began with the forced tokens `begin`."""
    forced = [0.0] * len(begin)
    said = Segment(
        "agent", [*begin, *turn.ids], [False] * len(begin) + [True] * len(turn.ids),
        [*forced, *turn.log_probs], number, written.text, written.message, list(written.calls),
        written.thought, written.unheard, {"malformed": written.problem} if written.problem else {},
    )
    if turn.drawn_log_probs != turn.log_probs:
        said.drawn_log_probs = [*forced, *turn.drawn_log_probs]
    return said


def _answer_of(*segments: Segment) -> Answer:
    """The segments' tokens, and the sound at some of them."""
    tokens: list[int] = []
    sounds = []
    for segment in segments:
        if sound := segment.sound:
            sounds.append(dataclasses.replace(sound, first=len(tokens) + sound.first))
        tokens += segment.token_ids
    return Answer(tokens, sounds=tuple(sounds))
