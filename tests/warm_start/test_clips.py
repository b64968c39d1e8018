"""Batches of clips: which are in them, where they lie, and acoustics of their own."""

import itertools

import numpy as np
import pytest
from small_encoder import small_encoder

from tarl_jax.config.speech import SpeechConfig
from tarl_jax.models import audio_encoder
from tarl_jax.models.audio_inputs import pieces_of
from tarl_jax.warm_start.clips import (
    batch_of,
    clip_batches,
    drawn_acoustics,
    mixed_batches,
    strung_batches,
)
from tarl_jax.warm_start.demonstrations import Transcript

ENCODER = small_encoder(16)
PIECE = 3200  # samples


def transcript(samples, text, seed=0):
    rng = np.random.default_rng([seed, samples])
    clip = rng.integers(-9000, 9000, samples).astype(np.int16)
    return Transcript(clip, np.array(text, np.int32))


def count_of(one):
    return -(-len(one.clip) // PIECE)


def texts_of(batch):
    return [
        tuple(row[gone == 0].tolist()) for row, gone in zip(batch.text, batch.absent, strict=True)
    ]


@pytest.mark.parametrize("samples", [2, 800, 3199, 3200, 3201, 3360, 9600])
def test_a_batch_holds_what_a_policy_would_get_of_the_clip(samples):
    """Alone in a batch, or beside a longer one."""
    one = transcript(samples, [1, 2])
    other = transcript(9600, [3, 3, 1])
    expected = pieces_of(one.clip / np.float32(32768), ENCODER)
    batch = batch_of([(one.clip, one.text), (other.clip, other.text)], 3, 4, ENCODER)
    mel = np.asarray(batch.pieces.mel).reshape(2, 3, 20, 8)
    np.testing.assert_allclose(mel[0, : expected.count], expected.mel, atol=2e-5)
    assert not mel[0, expected.count :].any()
    real = np.asarray(batch.pieces.frames).reshape(2, 3)
    assert real[0, : expected.count].tolist() == expected.frames.tolist()
    assert not real[0, expected.count :].any()
    assert (batch.silent[0] == 0).sum() == one.tokens and (batch.silent[1] == 0).sum() == 15
    assert texts_of(batch) == [(1, 2), (3, 3, 1)]


def test_batches_hold_every_clip_once_a_pass_and_shapes_are_few():
    rng = np.random.default_rng(0)
    clips = [
        transcript(int(rng.integers(800, 9000)), rng.integers(0, 4, 1 + i % 5).tolist(), seed=i)
        for i in range(40)
    ]
    batches = clip_batches(clips, 2.0, ENCODER, seed=[0])
    rows = {n: round(2.0 / (0.2 * n)) for n in set(map(count_of, clips))}
    per_pass = sum(-(-sum(count_of(c) == n for c in clips) // rows[n]) for n in rows)
    for _ in range(2):
        found = []
        for make in itertools.islice(batches, per_pass):
            batch = make()
            count = batch.pieces.count // len(batch.text)
            assert batch.pieces.count == rows[count] * count
            found += texts_of(batch)
        assert set(found) == {tuple(c.text.tolist()) for c in clips}
    shapes = {make().text.shape for make in itertools.islice(batches, 3 * per_pass)}
    assert len(shapes) == len(rows)


def test_strung_clips_lie_where_their_texts_say():
    """Every row is silence and whole clips, in the order of its text; some begin late."""
    clips = [transcript(n, [k], seed=k) for n, k in ((3100, 1), (1700, 2), (12000, 3))]
    by_text = {int(one.text[0]): one.clip for one in clips}
    heard = []

    def listen(clip, rng):
        heard.append(np.rint(clip * 32768).astype(np.int16))
        return clip

    batches = strung_batches(clips, 6.0, ENCODER, seed=[0], acoustics=listen)
    shapes, begins, told = set(), [], []
    for make in itertools.islice(batches, 12):
        heard.clear()
        batch = make()
        rows, slots = batch.silent.shape
        shapes.add((rows, slots, batch.text.shape[1]))
        assert len(heard) == rows  # a row has acoustics as a whole
        for row, (words, whole) in enumerate(zip(texts_of(batch), heard, strict=True)):
            told.append(len(words))
            at = 0
            for place, word in enumerate(words):
                one = by_text[word]
                first = at + int((whole[at:] != 0).argmax())
                begin = max(first - int((one != 0).argmax()), at)
                np.testing.assert_array_equal(whole[begin : begin + len(one)], one)
                assert not whole[at:begin].any() and begin - at <= (4000 if place else 9600)
                begins += [] if place else [begin]
                at = begin + len(one)
            assert at == len(whole) <= slots * 640
            frames = audio_encoder.frame_count(len(whole))
            assert (batch.silent[row] == 0).sum() == audio_encoder.token_count(frames)
    assert len(shapes) == 2 and max(told) > 1 and len(set(begins)) > 10


def test_acoustics_are_drawn_anew_each_time_a_clip_comes_and_the_same_in_every_start():
    clips = [transcript(3000, [i], seed=i) for i in range(4)]
    speech = SpeechConfig(acoustics=("white:0..10", "hesitant:0.5"), clean=0.25)
    acoustics = drawn_acoustics(speech, ())

    def passes():
        batches = clip_batches(clips, 0.8, ENCODER, [0], acoustics)
        found = {}
        for make in itertools.islice(batches, 12):
            batch = make()
            for text, mel in zip(texts_of(batch), np.asarray(batch.pieces.mel), strict=True):
                found.setdefault(text, []).append(mel.tobytes())
        return found

    first = passes()
    assert first == passes()
    clean = {
        (i,): np.asarray(batch_of([(one.clip, one.text)], 1, 1, ENCODER).pieces.mel)[0].ravel()
        for i, one in enumerate(clips)
    }
    for text, heard in first.items():
        # A row alone and the same one beside others differ in the last bits on some processors.
        noisy = [mel for mel in heard if not np.allclose(
            np.frombuffer(mel, np.float32), clean[text], rtol=0, atol=2e-5)]
        assert len(heard) == 12 and 0 < len(noisy) < 12  # some are clean, or but hesitant
        assert len(set(noisy)) == len(noisy)


def test_a_clip_that_acoustics_make_too_long_stays_as_it_was():
    one = transcript(3000, [1])
    rows = [(one.clip, one.text)]
    plain = batch_of(rows, 1, 1, ENCODER)
    longer = batch_of(rows, 1, 1, ENCODER, lambda clip, rng: np.pad(clip, (0, 201)))
    fitting = batch_of(rows, 1, 1, ENCODER, lambda clip, rng: np.pad(clip, (0, 200)))
    np.testing.assert_array_equal(plain.pieces.mel, longer.pieces.mel)
    assert int(fitting.pieces.frames[0]) == 20 and int(plain.pieces.frames[0]) == 19


def test_what_is_passed_over_is_not_made():
    clips = [transcript(3000, [i], seed=i) for i in range(4)]
    asked = []

    def acoustics(clip, rng):
        asked.append(rng.random())
        return clip

    def batches():
        return mixed_batches(clips, 1.0, ENCODER, [0], acoustics)

    whole = [make() for make in itertools.islice(batches(), 6)]
    draws = list(asked)
    asked.clear()
    later = batches()
    for _ in range(4):
        next(later)
    assert not asked
    for batch in whole[4:]:
        np.testing.assert_array_equal(next(later)().pieces.mel, batch.pieces.mel)
    assert asked == draws[-len(asked):]
