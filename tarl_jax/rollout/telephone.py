"""One dialogue whose user speaks as on a telephone: heard while it is said, answered behind it.

What a user says comes in parts of 0.2 s. As it comes, the audio encoder hears every whole piece
(`models/incoming.py`) and the policy reads what that gives (`session.Ask` of no tokens), so that
behind the last word only the last piece and the turn's end are left to be read.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from tarl_jax.config import InputError
from tarl_jax.models.incoming import IncomingClip
from tarl_jax.models.params import Params
from tarl_jax.parallel.compilations import Progress
from tarl_jax.parallel.mesh import rollout_mesh
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.grammar import anything, build
from tarl_jax.rollout.prepared import Ready
from tarl_jax.rollout.sampling import Sampling
from tarl_jax.rollout.scheduler import Row, SpokenInputs, extend_context, key_of
from tarl_jax.rollout.session import Ask, Session, Written
from tarl_jax.rollout.workers import Answer, Dialogue, opening
from tarl_jax.speech.sound import Pieces
from tarl_jax.speech.synthesis import SAMPLE_RATE

PART = 0.2  # seconds of what a user says that come at a time


@dataclasses.dataclass(frozen=True)
class Wait:
    """Behind the last word that the policy has heard.

    Attributes:
      seconds: until its next turn was written.
      read: tokens that were read in these.
      sound: how many tokens the clip has; ahead: of these, how many were read while it was said.
    """

    seconds: float
    read: int
    sound: int
    ahead: int


class Telephone:
    """Plays dialogues, one at a time, with an engine of its own. A context manager.

    Args of the constructor:
      env: whose policy hears.
      params: stacked, as training has them.
      sampling: None: as evaluations draw.

    Attributes:
      wait: behind what was last said by `say`; None before the turn behind it.
      clock, sleep: of seconds.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)
    sleep: Callable[[float], None] = staticmethod(time.sleep)

    def __init__(self, env: Environment, params: Params, sampling: Sampling | None = None):
        config = env.config
        rollout = dataclasses.replace(config.rollout, slots=1, parked=0, lanes=1)
        free = anything(env.vocab_size)
        engine = Engine(
            config.model, rollout, env.tokenizer.stop_ids, rollout_mesh(config.mesh), free,
            ids=env.tokenizer.vocab_size,
        )
        self._chat, self._model, self._rollout = env.chat, config.model, config.rollout
        self._sampling = sampling or _evaluated(env)
        self._grammar = (
            build(env.tokenizer, env.domain.tools, env.vocab_size, env.chat.begin)
            if config.rollout.constrain_calls else None
        )
        self._programs, self._hear = engine.programs, engine.programs.hear
        self._ready = Ready(engine.programs.prepare(params))
        self._session = Session(engine, self._ready, free, float("inf"), most=1)
        self._context, self._row = Row(0, 0), -1
        self._known: dict[int, np.ndarray] = {}  # what was heard already, by its clip
        # When the last word was, the clip's tokens, and how many of them were read by then.
        self._said: tuple[float, int, int] | None = None
        self.wait: Wait | None = None

    def compile(
        self, params: Params, progress: Progress = lambda done, total, note="": None
    ) -> None:
        """All programs, so that nobody waits for one while they speak."""
        self._programs.compile(params, shrinks=False, progress=progress)
        incoming = IncomingClip(self._model, self._piece)
        incoming.feed(np.zeros(SAMPLE_RATE, np.float32))
        incoming.end()

    def play(self, dialogue: Dialogue) -> None:
        """Until it ends. While `turn` of it waits for its user, `say` may be called.

        Raises: what it raises, ValueError where a turn has no room.
        """
        self._context, self._row = Row(0, dialogue.seed), -1
        self._known, self._said, self.wait = {}, None, None
        answer = opening(dialogue)
        while answer is not None:
            self._take(answer)
            limit = self._rollout.max_turn_tokens
            written = self._ask(self._context.tokens, self._context.spoken, limit)
            if self._said is not None:
                said, sound, ahead = self._said
                self.wait = Wait(self.clock() - said, written.fed, sound, ahead)
                self._said = None
            self._context.tokens += written.turn.ids
            answer = dialogue.turn(written.turn)

    def say(self, clip: np.ndarray) -> None:
        """The user says it, in as many seconds as it has; the dialogue's answer is to hold it.

        clip: float32 [samples] at 16 kHz. Raises InputError for one without any, and where the
        policy has written nothing yet.
        """
        tokens, spoken = self._context.tokens, self._context.spoken
        if not len(clip) or not tokens:
            raise InputError("say: a clip of no samples" if tokens else "say: no turn was written"
                             " yet; a dialogue's opening is heard whole")
        self.wait = None
        stopped = tokens[-1] == self._chat.stop_id
        around, place = self._chat.spoken(1)
        before = [*tokens, *([] if stopped else [self._chat.stop_id]), *around[:place]]
        incoming = IncomingClip(self._model, self._piece)
        room = self._rollout.max_episode_tokens - len(before)
        size, at, read, begun = round(PART * SAMPLE_RATE), 0, 0, self.clock()
        while at < len(clip):
            end = min(at + size, len(clip))
            self.sleep(max(begun + end / SAMPLE_RATE - self.clock(), 0.0))
            # Who is slower than the user takes all that has come.
            come = int((self.clock() - begun) * SAMPLE_RATE)
            end = min(max(end, come), len(clip))
            kept, at = incoming.feed(clip[at:end]), end
            if at == len(clip):
                incoming.end()
            elif kept < read or read < len(incoming.encoded) <= room:
                read = min(len(incoming.encoded), room)
                heard = self._pieces(len(before), incoming.encoded[:read], clip)
                self._ask([*before, *around[place : place + 1] * read], [*spoken, *heard], 0)
        self._known = {key_of(clip): incoming.encoded}
        self._said = begun + len(clip) / SAMPLE_RATE, len(incoming.encoded), read

    def close(self) -> None:
        """Ends the session."""
        self._session.close()

    def __enter__(self) -> Telephone:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self, answer: Answer) -> None:
        spoken = []
        for sound in answer.sounds:
            inputs = self._known.pop(key_of(sound.clip), None)
            if inputs is None:
                inputs = self._hear(self._ready.params, sound.clip)
            spoken += self._pieces(sound.first, inputs, sound.clip)
        extend_context(self._context, answer.tokens, answer.keep, spoken)
        if answer.dropped is not None:
            self._context.dropped = answer.dropped

    def _ask(self, tokens: list[int], spoken: list[SpokenInputs], limit: int) -> Written:
        ask = Ask(
            tokens, self._context.seed, self._sampling, limit, self._grammar if limit else None,
            len(self._chat.begin) if limit else 0, self._context.dropped, self._row, tuple(spoken),
        )
        written = self._session.ask(ask).result()
        self._row = written.row
        return written

    def _piece(self, pieces: Pieces) -> np.ndarray:
        return self._hear.piece(self._ready.params, pieces)

    def _pieces(self, first: int, inputs: np.ndarray, clip: np.ndarray) -> list[SpokenInputs]:
        """What is heard from position `first` on, by pieces, so that one that stays is known."""
        slots = self._model.audio.n_window // 2
        return [
            SpokenInputs(first + i, part, clip, key_of(part))
            for i in range(0, len(inputs), slots) for part in [inputs[i : i + slots]]
        ]


def _evaluated(env: Environment) -> Sampling:
    """How evaluations of an environment's policy draw its tokens."""
    c = env.config.eval
    return Sampling(c.temperature, c.top_k, c.top_p, c.min_p)
