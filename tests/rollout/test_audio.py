"""Dialogues that are spoken: what the engine samples is what the whole model says of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import token_log_probs
from scripted import CONFIG, MODEL, STOP, TEMPERATURE, VOCAB, Scripted
from small_encoder import small_encoder

from tarl_jax.models import audio_encoder, audio_inputs, decoder
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.grammar import anything
from tarl_jax.rollout.sampling import Sampling
from tarl_jax.rollout.scheduler import BLOCK, Row, Scheduler, SpokenInputs
from tarl_jax.rollout.session import Ask, Session
from tarl_jax.rollout.workers import Answer
from tarl_jax.speech.sound import Sound

ENCODER = small_encoder(MODEL.d_model)
WITH_AUDIO = dataclasses.replace(MODEL, audio=ENCODER)
LONGEST = 256  # tokens of a dialogue
SHARING = dataclasses.replace(CONFIG, slots=4, share_prefix=BLOCK, max_episode_tokens=LONGEST)


def clip_of(seed, samples):
    rng = np.random.default_rng([seed, samples])
    return (rng.integers(-9000, 9000, samples) / 32768).astype(np.float32)


class Speaking(Scripted):
    """The prompt, and every second answer, have a clip in their middle."""

    def __init__(self, seed: int, prompt: int, answers: list[int], voice: int = 0, samples=4567):
        super().__init__(seed, prompt, answers)
        self.voice, self.samples = voice, samples

    def with_sound(self, place: int, tokens: list[int]) -> Answer:
        clip = clip_of(self.voice + place, self.samples + 500 * place)
        count = audio_encoder.token_count(audio_encoder.frame_count(len(clip)))
        middle = len(tokens) // 2
        with_clip = [*tokens[:middle], *[VOCAB - 1] * count, *tokens[middle:]]
        return Answer(with_clip, sounds=(Sound(middle, count, clip),))

    def start(self):
        return self.with_sound(0, self.prompt)

    def turn(self, turn):
        answer, place = super().turn(turn), len(self.turns)
        return self.with_sound(place, answer.tokens) if answer and place % 2 == 0 else answer

    def record(self):
        """(tokens, clips by their position, sampled, log-probs)."""
        tokens, sounds, sampled, log_probs = [], [], [], []
        for place in range(len(self.turns) + 1):
            answer = Answer(self.answers[place - 1]) if place else self.with_sound(0, self.prompt)
            if place and place % 2 == 0:
                answer = self.with_sound(place, answer.tokens)
            sounds += [(len(tokens) + s.first, s.clip) for s in answer.sounds]
            tokens += answer.tokens
            sampled += [False] * len(answer.tokens)
            log_probs += [0.0] * len(answer.tokens)
            if place == len(self.turns) or place > len(self.answers):
                break
            ids, of = self.turns[place]
            tokens, sampled = tokens + ids, sampled + [True] * len(ids)
            log_probs += of
            if place == len(self.answers):
                break
        return np.array(tokens), sounds, np.array(sampled), np.array(log_probs)


@functools.partial(jax.jit, static_argnums=2)
def encoded(params, clip, config):
    """A whole clip at once, without pieces."""
    mel = audio_encoder.log_mel(clip, config.num_mel_bins)[None]
    frames = jnp.array([mel.shape[1]])
    return audio_encoder.audio_embeddings(params["audio"], config, mel, frames)[0][0]


@jax.jit
def recomputed(params, tokens, inputs):
    hidden = decoder.hidden_states(params, WITH_AUDIO, tokens, embeddings=inputs)
    scores = decoder.logits(params, hidden)
    return token_log_probs(scores[:, :-1], tokens[:, 1:], TEMPERATURE)[0][0]


def expected_log_probs(params, episode):
    tokens, sounds, sampled, given = episode.record()
    padded = np.pad(tokens, (0, LONGEST - len(tokens)))
    inputs = np.array(params["embed"])[padded]
    for first, clip in sounds:
        sound = np.array(encoded(params, clip, ENCODER))
        assert set(tokens[first : first + len(sound)]) == {VOCAB - 1}
        inputs[first : first + len(sound)] = sound
    places = np.flatnonzero(sampled)
    return given[places], np.array(recomputed(params, padded[None], inputs[None]))[places - 1]


@pytest.fixture(scope="module")
def params(random_params):
    return random_params(WITH_AUDIO, VOCAB, 0)


@pytest.fixture(scope="module")
def engine(params):
    return Engine(WITH_AUDIO, SHARING, STOP, make_mesh())


def test_prefixes_are_shared_by_who_hears_the_same_and_no_one_else(engine, params):
    """Eight dialogues of the same tokens: four hear one clip, four another."""
    episodes = [Speaking(7, 60, [6], voice=10 * (i % 2), samples=20_000) for i in range(8)]
    for i, episode in enumerate(episodes):
        episode.seed = i
    stats = engine.run(params, episodes, TEMPERATURE)
    for episode in episodes:
        given, expected = expected_log_probs(params, episode)
        np.testing.assert_allclose(given, expected, atol=1e-4)
    prompt = len(episodes[0].start().tokens)
    assert prompt == 60 + 31
    # Of the first four slots two copy all whole blocks of the other two's prompts.
    assert stats.fed_tokens <= stats.forced_tokens - 2 * (prompt // BLOCK * BLOCK)


def test_what_is_said_matters(engine, params):
    first, second = Speaking(5, 30, [6]), Speaking(5, 30, [6], voice=3)
    engine.run(params, [first, second], TEMPERATURE)
    assert first.start().tokens == second.start().tokens
    assert first.turns[0][1] != second.turns[0][1]
    again = Speaking(5, 30, [6])  # in runs of a tick each, which hear it anew
    stats = engine.run(params, [again], TEMPERATURE, seconds=1e-9)
    assert stats.unfinished
    while stats.unfinished:
        stats = engine.run(params, [], TEMPERATURE, seconds=1e-9, unfinished=stats.unfinished)
    for (ids, log_probs), turn in zip(first.turns, again.turns, strict=True):
        assert turn[0] == ids
        np.testing.assert_allclose(turn[1], log_probs, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 480, 3200, 3201, 3290, 9_999, 6400])
def test_pieces_say_what_the_whole_clip_does(engine, params, samples):
    clip = clip_of(1, samples)
    pieces = audio_inputs.pieces_of(clip, ENCODER)
    assert pieces.mel.shape[1:] == (20, 8) and pieces.frames.sum() == -(-samples // 160)
    found = engine.programs.hear(engine.programs.prepare(params), clip)
    assert len(found) == audio_inputs.tokens_of(samples)
    if len(found):
        expected = encoded(params, clip, ENCODER)
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-4)


def test_the_longest_clip_of_a_number_of_tokens():
    for tokens in (1, 2, 77):
        longest = audio_inputs.longest_clip(tokens)
        assert audio_inputs.tokens_of(longest) == tokens
        assert audio_inputs.tokens_of(longest + 1) == tokens + 1


def test_a_context_may_lose_the_end_of_its_sound():
    inputs = np.arange(12.0).reshape(6, 2)
    row = Row(0, 0)
    scheduler = Scheduler(1)
    scheduler.begin(row)
    spoken = [SpokenInputs(1, inputs[:3], clip_of(0, 480), -9),
              SpokenInputs(5, inputs, clip_of(1, 960), -100)]
    scheduler.answered(row, [1, 8, 8, 8, 2, 8, 8, 8, 8, 8, 8, 3], spoken=spoken)
    assert row.keys == [1, -9, -10, -11, 2, -100, -101, -102, -103, -104, -105, 3]
    scheduler.admit()
    row.asking = True
    last = SpokenInputs(1, inputs[:1], clip_of(2, 480), -50)
    scheduler.answered(row, [4, 8], keep=7, spoken=[last])
    assert row.tokens == [1, 8, 8, 8, 2, 8, 8, 4, 8]
    assert row.keys == [1, -9, -10, -11, 2, -100, -101, 4, -50]
    np.testing.assert_array_equal(row.spoken[1].inputs, inputs[:2])


def test_log_probs_equal_a_full_recompute(engine, params):
    """More dialogues than slots, some of them all text, prompts and clips longer than a chunk."""
    engine.programs.compile(params)
    compiled = engine.programs.compilations
    episodes = [Speaking(s, 30 + 9 * s, [5, 40, 7, 20][: s % 4], s, 2000 + 3777 * s)
                for s in range(7)]
    text = [Scripted(s, 40, [5, 7]) for s in range(20, 23)]
    engine.run(params, episodes + text, TEMPERATURE)
    assert engine.programs.compilations == compiled > 0
    for episode in episodes:
        given, expected = expected_log_probs(params, episode)
        np.testing.assert_allclose(given, expected, atol=1e-4)


@pytest.mark.parametrize("cache", ["contiguous", "pages"])
def test_who_reads_ahead_and_who_writes_are_as_if_alone(params, cache):
    """Conversations that hear, at one time in few slots: contexts grow, and are taken back."""
    rng = np.random.default_rng(5)
    clips = [rng.standard_normal((10, WITH_AUDIO.d_model)).astype(np.float32) for _ in range(3)]

    def session(**config):
        serving = dataclasses.replace(CONFIG, cache=cache, page=8, feed_tokens=40, **config)
        engine = Engine(WITH_AUDIO, serving, STOP, make_mesh(), anything(VOCAB), burst=3)
        return Session(engine, params, anything(VOCAB))

    def grown(tokens, spoken):
        end = int(rng.integers(1, len(tokens) + 1)) if rng.random() < 0.5 else len(tokens)
        spoken = [dataclasses.replace(s, inputs=s.inputs[: end - s.first])
                  for s in spoken if s.first < end]
        n, clip = int(rng.integers(1, 11)), int(rng.integers(3))
        heard = SpokenInputs(end, clips[clip][:n], clips[clip], ~(clip + 1 << 20))
        return [*tokens[:end], *[VOCAB - 1] * n], [*spoken, heard]

    several, alone = session(slots=2, parked=1, share_prefix=16), session(slots=1, parked=0)
    contexts, rows, compared = [([1] * 17, [])] * 5, [-1] * 5, 0
    for _ in range(8):
        asked = []
        for k, (tokens, spoken) in enumerate(contexts):
            tokens, spoken = grown(tokens, spoken)
            limit = int(rng.integers(1, 6)) if rng.random() < 0.5 else 0
            tokens = [*tokens, 5] if limit else tokens
            ask = Ask(tokens, k, Sampling(TEMPERATURE), limit, row=rows[k], spoken=spoken)
            asked.append((ask, several.ask(ask)))
        for k, (ask, future) in enumerate(asked):
            written = future.result(600)
            contexts[k], rows[k] = ([*ask.tokens, *written.turn.ids], ask.spoken), written.row
            if ask.limit:
                expected = alone.ask(dataclasses.replace(ask, row=-1)).result(600)
                assert written.turn.ids == expected.turn.ids
                np.testing.assert_allclose(
                    written.turn.log_probs, expected.turn.log_probs, atol=1e-3
                )
                compared += 1
    several.close()
    alone.close()
    assert compared > 10 and not several.failures
