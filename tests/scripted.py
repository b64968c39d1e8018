"""Dialogues with answers known beforehand, and a plain loop that plays them without a cache."""

import jax
import jax.numpy as jnp
import numpy as np

from tarl_jax.config import ModelConfig, RolloutConfig
from tarl_jax.models import decoder
from tarl_jax.rollout.workers import Answer, Turn

VOCAB, STOP = 10, 3  # few tokens, so that many turns end before the limit
LONGEST = 512  # tokens of a dialogue
MODEL = ModelConfig(d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=24)
CONFIG = RolloutConfig(
    slots=16, max_turn_tokens=14, max_episode_tokens=LONGEST, straggler_fraction=0.5,
    share_prefix=0,
)
TEMPERATURE = 1.5


class Scripted:
    """A dialogue that answers with random tokens; keeps what it was given, like an episode."""

    outside, shared = False, 0

    def __init__(self, seed: int, prompt: int, answers: list[int]):
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.prompt = rng.integers(0, VOCAB, prompt).tolist()
        self.answers = [rng.integers(0, VOCAB, n).tolist() for n in answers]
        self.turns: list[tuple[list[int], list[float]]] = []

    @classmethod
    def random(cls, seed: int) -> "Scripted":
        rng = np.random.default_rng([seed, 1])
        return cls(seed, rng.integers(1, 120), rng.integers(1, 70, rng.integers(0, 6)).tolist())

    def twin(self) -> "Scripted":
        """The same dialogue, not begun."""
        twin = Scripted(self.seed, 1, [])
        twin.prompt, twin.answers = self.prompt, self.answers
        return twin

    def start(self) -> list[int]:
        return list(self.prompt)

    def turn(self, turn: Turn) -> Answer | None:
        self.turns.append((list(turn.ids), list(turn.log_probs)))
        done = len(self.turns) > len(self.answers)
        return None if done else Answer(list(self.answers[len(self.turns) - 1]))

    def cut(self) -> None:
        self.was_cut = True

    @property
    def sampled_ids(self) -> list[list[int]]:
        return [ids for ids, _ in self.turns]

    def sequence(self) -> tuple[list[int], list[bool], list[float]]:
        """(ids, sampled, log-probs) of the whole dialogue."""
        parts = [(self.prompt, False, [0.0] * len(self.prompt))]
        for place, (ids, log_probs) in enumerate(self.turns):
            parts.append((ids, True, log_probs))
            answer = self.answers[place] if place < len(self.answers) else []
            parts.append((answer, False, [0.0] * len(answer)))
        return (
            [t for ids, _, _ in parts for t in ids],
            [s for ids, s, _ in parts for _ in ids],
            [p for _, _, log_probs in parts for p in log_probs],
        )


@jax.jit
def next_token(params, tokens, length, dropped, seed, temperature):
    """The token behind `length` tokens of one padded row, from a full forward pass.

    The rule: the cumulative distribution is inverted at a uniform number from (seed, position of
    the token before, in the dialogue with what has left the context). The first number chooses a
    block of the vocabulary; here is only one.
    """
    hidden = decoder.hidden_states(params, MODEL, tokens[None])[0, length - 1]
    key = jax.random.fold_in(jax.random.key(seed), length - 1 + dropped)
    _, uniform = jax.random.uniform(key, (2,))
    cumulative = jnp.cumsum(jax.nn.softmax(decoder.logits(params, hidden) / temperature))
    return jnp.argmax(cumulative > uniform)


def play_plainly(params, episode: Scripted, temperature: float) -> Scripted:
    """The same dialogue, alone, without a cache."""
    twin = episode.twin()
    context, answer, dropped = twin.start(), Answer([]), 0
    while answer is not None:
        if answer.keep is not None:
            dropped += len(context) - answer.keep
            del context[answer.keep :]
        context += answer.tokens
        ids: list[int] = []
        while len(ids) < CONFIG.max_turn_tokens and STOP not in ids:
            tokens = np.zeros(LONGEST, np.int32)
            tokens[: len(context) + len(ids)] = context + ids
            seed, length = np.uint32(episode.seed), len(context) + len(ids)
            ids.append(int(next_token(params, tokens, length, dropped, seed, temperature)))
        context += ids
        answer = twin.turn(Turn(ids, [0.0] * len(ids), [0.0] * len(ids)))
    return twin


class Forgetful(Scripted):
    """A dialogue in which half of each turn leaves the context with the answer, as reasoning may.

    contexts: what the policy should have seen when it wrote each turn.
    """

    def __init__(self, seed: int, prompt: int, answers: list[int]):
        super().__init__(seed, prompt, answers)
        self.context: list[int] = []
        self.contexts: list[list[int]] = []

    def twin(self) -> "Forgetful":
        twin = Forgetful(self.seed, 1, [])
        twin.prompt, twin.answers = self.prompt, self.answers
        return twin

    def start(self) -> list[int]:
        self.context = super().start()
        return list(self.context)

    def turn(self, turn: Turn) -> Answer | None:
        self.contexts.append(list(self.context))
        answer = super().turn(turn)
        if answer is None:
            return None
        keep = len(self.context)
        tokens = turn.ids[len(turn.ids) // 2 :] + answer.tokens
        self.context += tokens
        return Answer(tokens, keep)


class Slow(Scripted):
    """Waits for something outside before it answers; `gate.wait` may be any callable."""

    outside = True

    def __init__(self, seed: int, prompt: int, answers: list[int], wait=lambda: None):
        super().__init__(seed, prompt, answers)
        self.wait = wait

    def start(self) -> list[int]:
        self.wait()
        return super().start()

    def turn(self, turn: Turn) -> Answer | None:
        self.wait()
        return super().turn(turn)
