"""What a warm start imitates: dialogues of the scripted clerk that errs on purpose.

They play in other branches of the shop, so that nothing about the users and orders of the run,
trained on or held out, can be known by heart. Users write or, to a policy that hears, speak.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np

from tarl_jax.config import ClerkConfig, RunConfig, ShopConfig, TaskConfig
from tarl_jax.maths.arithmetic import make_problems
from tarl_jax.models.audio_inputs import audio_inputs_of, tokens_of
from tarl_jax.rl.batching import Sample
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.maths_episode import Maths
from tarl_jax.sandbox.clerk import play
from tarl_jax.sandbox.desks import DESKS, desk_of
from tarl_jax.sandbox.dialogue import Dialogue, rules_of
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.telecom_user import TelecomUser
from tarl_jax.sandbox.users import scripted_user
from tarl_jax.speech.acoustics import apply, draw_effects, halves, needs_babble
from tarl_jax.speech.service import Speech
from tarl_jax.speech.sound import AudioInputs, Sound
from tarl_jax.speech.speakable import speakable
from tarl_jax.speech.synthesis import draw_voice
from tarl_jax.types import Task

# From one token of what is said to the next, in 1/25 s: exponential with this mean, and at most so
# many. What an encoder had learned to spell of eSpeak's voices had quartiles of 4, 8 and 15.
_SPACE, _LONGEST_SPACE = 10, 48

Made = Callable[[int, int], None]  # told of dialogues: (made, to make)
# The clip of a text, and what then happens to it.
Said = tuple[Future[np.ndarray], Callable[[np.ndarray], np.ndarray]]
Part = tuple[str, str | list[int]]  # "user" and its text, or "clerk" or "tool" and their tokens


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A clip and what is said in it.

    Attributes:
      clip: int16 [samples] at 16 kHz, before any acoustics.
      text: int32 [S]; the ids of what the user would have written.
    """

    clip: np.ndarray
    text: np.ndarray

    @property
    def tokens(self) -> int:
        """That the clip has, 25 a second."""
        return tokens_of(len(self.clip))


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One dialogue.

    Attributes:
      tokens: int32 [S].
      agent: bool [S]; which of them the clerk wrote.
      spoken: bool [S]; which of them stand for sound, and teach nothing.
      audio_inputs: the sound there; None: there is none.
      said: the clips of it.
    """

    tokens: np.ndarray
    agent: np.ndarray
    spoken: np.ndarray
    audio_inputs: AudioInputs | None = None
    said: tuple[Transcript, ...] = ()

    def sample(self, observation_weight: float) -> Sample:
        """For a batch: `sampled` marks the clerk's tokens, `advantages` are the loss's weights."""
        weights = np.where(self.agent, 1.0, observation_weight)
        weights[0] = 0.0  # in a packed row what is before it is another dialogue
        weights[self.spoken] = 0.0
        return Sample(self.tokens, self.agent, np.zeros(len(self.tokens)), weights,
                      audio_inputs=self.audio_inputs)


def demonstrate(
    config: RunConfig, env: Environment, clerk: ClerkConfig, episodes: int,
    progress: Made = lambda made, total: None,
) -> list[Demonstration]:
    """The clerk's dialogues, and worked maths problems; those beyond the context are left out."""
    found = []
    for _, parts, _ in _dialogues(config, env, clerk, episodes):
        found.append(_demonstration(env, parts, _written))
        progress(len(found), episodes)
    if env.maths is not None:
        found += _worked_problems(config, env.maths, len(found))
    return _short(found, config)


def demonstrate_spaced(
    config: RunConfig, env: Environment, clerk: ClerkConfig, episodes: int
) -> list[Demonstration]:
    """The same dialogues as a perfect audio encoder would give them to the decoder, without sound.

    The tokens of what users say stand as far apart as in speech, with placeholders in between: from
    these a policy learns, cheaply, to read what is not closely set.
    """
    found = []
    for _, parts, seed in _dialogues(config, env, clerk, episodes):
        turn = functools.partial(_spaced, rng=np.random.default_rng(seed))
        found.append(_demonstration(env, parts, turn))
    return _short(found, config)


def demonstrate_spoken(
    config: RunConfig, env: Environment, clerk: ClerkConfig, episodes: int, speech: Speech,
    progress: Made = lambda made, total: None,
) -> tuple[list[Demonstration], list[Transcript]]:
    """The same dialogues, their users speaking; and what matters in them, each said alone.

    The dialogues have acoustics; their clips, and what is said alone, are kept as they were before.
    Raises SpeechError.
    """
    begun = []
    babblers = speech.babblers() if needs_babble(config.speech) else ()
    for task, parts, seed in _dialogues(config, env, clerk, episodes):
        rng = random.Random(f"aloud-{seed}")
        voice = draw_voice(config.speech, rng)
        turns = [text for role, text in parts if role == "user" and isinstance(text, str)]

        said: list[Said] = []
        for i, text in enumerate(turns):
            place = f"-{i}" if config.speech.acoustics_per == "turn" else ""
            effects = draw_effects(config.speech, random.Random(f"acoustics-{seed}{place}"))
            words, after = halves(effects)
            draw = rng.getrandbits(32)
            clip = speech.submit(speakable(text), voice, words, draw)
            change = functools.partial(apply, effects=after, seed=draw, babblers=babblers)
            said.append((clip, change))
        values = _values(task, rng)
        alone_said = [
            speech.submit(speakable(value), voice, (), rng.getrandbits(32)) for value in values
        ]
        begun.append((parts, said, values, alone_said))
    found, alone = [], []
    begun.reverse()
    while begun:  # what is done with is let go
        parts, said, values, clips = begun.pop()
        found.append(_demonstration(env, parts, functools.partial(_spoken, clips=iter(said))))
        alone += [
            _transcript(env, value, clip.result())
            for value, clip in zip(values, clips, strict=True)
        ]
        progress(len(found), len(found) + len(begun))
    return _short(found, config), alone


def _values(task: Task, rng: random.Random) -> list[str]:
    """Who the user of a task is, the ids of its records, and two other things that are named."""
    if task.script is None:  # who has a phone says its number, and nothing else that is odd
        return [TelecomUser(task, 0).phone]
    script = Script.from_json(task.script)
    desk = desk_of(script.desk)
    values = desk.values(script, task.user_id)
    values += [f"{request.record_id}." for request in script.requests]
    others = [thing for request in script.requests for thing in desk.things(request)]
    return values + rng.sample(others, min(2, len(others)))


def with_more_errors(clerk: ClerkConfig, times: float) -> ClerkConfig:
    """The clerk, erring so many times as often, but where only a judge would see it."""
    rates = {name: min(times * rate, 1.0) for name, rate in dataclasses.asdict(clerk).items()}
    kept = {"skip_confirmation": clerk.skip_confirmation, "retry": clerk.retry}
    return ClerkConfig(**{**rates, **kept})


def played(maths: Maths) -> set[str]:
    """The problems of a run, which no demonstration shows."""
    return {task.instruction for task in maths.train_tasks + maths.held_out_tasks}


def _short(found: list[Demonstration], config: RunConfig) -> list[Demonstration]:
    longest = config.warm_start.max_tokens
    return [d for d in found if len(d.tokens) <= longest]


def desk_name(config: RunConfig) -> str:
    """The embedded domain whose clerk is imitated: the run's, or the shop where that has none."""
    name = config.sandbox.domain.removesuffix("-workflow")
    return name if name in (*DESKS, "telecom") else "retail"


def shop_of(config: RunConfig) -> ShopConfig:
    """The shops that a warm start plays in."""
    c = config.warm_start
    return ShopConfig(num_users=c.num_users, orders_per_user=c.orders_per_user)


def tasks_of(config: RunConfig, num_train: int, seed: int = 0) -> TaskConfig:
    """The tasks that a warm start's clerk serves."""
    c = config.warm_start
    return TaskConfig(
        seed=seed, num_train=num_train, requests=c.requests, forbidden=c.forbidden,
        change_mind=c.change_mind,
    )


def _dialogues(
    config: RunConfig, env: Environment, clerk: ClerkConfig, episodes: int
) -> Iterator[tuple[Task, list[Part], int]]:
    """Each dialogue's task, its parts behind the system turn, and its seed."""
    branches = min(config.warm_start.branches, episodes)
    share = -(-episodes // branches)
    for branch in range(1, branches + 1):
        domain = embedded_domain(desk_name(config), shop_of(config), branch)
        wanted = tasks_of(config, num_train=share, seed=branch)
        for index, task in enumerate(make_tasks(domain, shop_of(config), wanted, "train")):
            seed = (config.warm_start.seed * 1_009 + branch) * 1_000_003 + index
            yield task, _parts(config, env, domain, clerk, task, seed), seed


def _parts(
    config: RunConfig, env: Environment, domain: Domain, clerk: ClerkConfig, task: Task, seed: int
) -> list[Part]:
    dialogue = Dialogue(
        task, domain, scripted_user(domain, task, seed), max_turns=config.warm_start.max_turns,
        brief_writes=config.rollout.brief_writes, ends=rules_of(task),
    )
    parts: list[Part] = [("user", dialogue.opening)]
    for action, observation in play(dialogue, clerk, seed):
        parts += [("begin", list(env.chat.begin)), ("clerk", env.chat.agent(action))]
        if not observation.stop_reason:
            tool = observation.role == "tool"
            parts.append(
                ("tool", env.chat.tool(observation.text)) if tool else ("user", observation.text)
            )
    return parts


@dataclasses.dataclass(frozen=True)
class _UserTurn:
    """ids, which of them stand for sound, and the sound."""

    ids: list[int]
    spoken: np.ndarray
    clip: np.ndarray | None = None
    transcript: Transcript | None = None


def _written(env: Environment, text: str) -> _UserTurn:
    ids = env.chat.user(text)
    return _UserTurn(ids, np.zeros(len(ids), bool))


def _spaced(env: Environment, text: str, rng: np.random.Generator) -> _UserTurn:
    words = env.tokenizer.encode(text)
    gaps = rng.exponential(_SPACE, len(words) + 1).clip(max=_LONGEST_SPACE - 1)
    at = np.cumsum(1 + gaps.astype(int))  # 1: the next token
    ids, first = env.chat.spoken(int(at[-1]))
    for place, word in zip(at[:-1], words, strict=True):
        ids[first + int(place)] = word
    spoken = np.zeros(len(ids), bool)
    spoken[first : first + int(at[-1])] = True
    return _UserTurn(ids, spoken)


def _spoken(env: Environment, text: str, clips: Iterator[Said]) -> _UserTurn:
    said, acoustics = next(clips)
    clip = acoustics(said.result())
    tokens = tokens_of(len(clip))
    ids, first = env.chat.spoken(tokens)
    spoken = np.zeros(len(ids), bool)
    spoken[first : first + tokens] = True
    return _UserTurn(ids, spoken, clip, _transcript(env, text, said.result()))


def _demonstration(
    env: Environment, parts: list[Part], user: Callable[[Environment, str], _UserTurn]
) -> Demonstration:
    tokens = list(env.system[1])
    agent, spoken = [False] * len(tokens), [False] * len(tokens)
    sounds: list[Sound] = []
    transcripts = []
    for role, content in parts:
        turn = None
        if isinstance(content, list):
            ids = content
        else:
            turn = user(env, content)
            ids = turn.ids
            if turn.clip is not None and turn.transcript is not None:
                first = len(tokens) + int(turn.spoken.argmax())
                sounds.append(Sound(first, tokens_of(len(turn.clip)), turn.clip))
                transcripts.append(turn.transcript)
        if role == "clerk":  # what its turns begin with is forced on it
            tokens += env.chat.begin
            agent += [False] * len(env.chat.begin)
            spoken += [False] * len(env.chat.begin)
        tokens += ids
        agent += [role == "clerk"] * len(ids)
        spoken += [False] * len(ids) if turn is None else turn.spoken.tolist()
    audio_inputs = audio_inputs_of(sounds, len(tokens), env.config.model.audio) if sounds else None
    return Demonstration(
        np.array(tokens, np.int32), np.array(agent), np.array(spoken), audio_inputs,
        tuple(transcripts),
    )


def _transcript(env: Environment, text: str, clip: np.ndarray) -> Transcript:
    ids = np.array(env.tokenizer.encode(text), np.int32)
    return Transcript(np.rint(clip * 32_768).clip(-32_768, 32_767).astype(np.int16), ids)


def _worked_problems(config: RunConfig, maths: Maths, dialogues: int) -> list[Demonstration]:
    """Maths problems of the run's levels with their solutions; none that the run plays."""
    share = config.maths.demonstrations
    problems = make_problems(
        round(dialogues * share / (1 - share)), config.maths.levels,
        f"demonstrations-{config.warm_start.seed}", played(maths),
    )
    found = []
    for problem in problems:
        prompt = [*maths.system[1], *maths.chat.user(problem.text), *maths.chat.begin]
        solution = maths.chat.agent(problem.solution)
        agent = np.arange(len(prompt) + len(solution)) >= len(prompt)
        nothing = np.zeros(len(agent), bool)
        found.append(Demonstration(np.array(prompt + solution, np.int32), agent, nothing))
    return found
