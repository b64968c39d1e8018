"""SpecAugment: what is masked is as much as asked, the clip's mean, and nowhere else."""

import dataclasses

import numpy as np

from tarl_jax.config.warm_start import SpeechStageConfig
from tarl_jax.speech.sound import Pieces
from tarl_jax.warm_start.clips import Clips
from tarl_jax.warm_start.masking import mask, masked

BINS, SIZE, ROWS, COUNT = 20, 40, 8, 2


def clips(seed=0):
    rng = np.random.default_rng(seed)
    mel = rng.standard_normal((ROWS * COUNT, SIZE, BINS)).astype(np.float32)
    frames = np.array([SIZE, 25] * ROWS, np.int32)
    for piece, real in zip(mel, frames, strict=True):
        piece[real:] = 0.0
    nothing = np.zeros((ROWS, 1), np.float32)
    return Clips(Pieces(mel, frames), nothing, nothing.astype(np.int32), nothing)


def changes(**fields):
    batch = clips()
    before = np.array(batch.pieces.mel)
    settings = dataclasses.replace(SpeechStageConfig(), **fields)
    found = mask(batch, settings, np.random.default_rng(1))
    np.testing.assert_array_equal(batch.pieces.mel, before)  # others use it too
    shape = (ROWS, COUNT * SIZE, BINS)
    return before.reshape(shape), np.asarray(found.pieces.mel).reshape(shape)


REAL = np.concatenate([np.arange(SIZE), SIZE + np.arange(25)])


def test_a_band_goes_through_the_whole_clip_and_becomes_its_mean():
    before, after = changes(frequency_masks=1, frequency_mask_bins=6)
    widths = []
    for old, new in zip(before, after, strict=True):
        changed = old != new
        bins = np.flatnonzero(changed.any(0))
        widths.append(len(bins))
        if len(bins):
            assert bins[-1] - bins[0] + 1 == len(bins)  # one band
            assert changed[REAL][:, bins].all()
            np.testing.assert_allclose(new[REAL][:, bins], old[REAL].mean(), rtol=1e-5)
        assert not changed[np.setdiff1d(np.arange(COUNT * SIZE), REAL)].any()
    assert max(widths) <= 6 and len(set(widths)) > 2


def test_a_stretch_is_of_all_bins_and_within_the_clip():
    before, after = changes(time_masks=1, time_mask_frames=12)
    lengths = []
    for old, new in zip(before, after, strict=True):
        changed = old != new
        frames = np.flatnonzero(changed.any(1))
        lengths.append(len(frames))
        assert changed[frames].all() and set(frames) <= set(REAL)
        assert not len(frames) or frames[-1] - frames[0] + 1 == len(frames)
    assert max(lengths) <= 12 and len(set(lengths)) > 2


def test_masks_are_a_function_of_the_seed():
    settings = dataclasses.replace(SpeechStageConfig(), frequency_masks=2, time_masks=2)
    one, same, other = (
        np.asarray(next(iter(masked([clips], settings, [seed])))().pieces.mel) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_masks_differ_from_batch_to_batch():
    settings = dataclasses.replace(SpeechStageConfig(), frequency_masks=2, time_masks=2)
    first, second = (make().pieces.mel for make in masked([clips, clips], settings, [3]))
    assert not np.array_equal(first, second)
    assert list(masked([clips, clips], SpeechStageConfig(), [3])) == [clips, clips]
