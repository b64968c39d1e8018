"""SpecAugment (D. S. Park et al., Interspeech 2019): bands and stretches of clips are masked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tarl_jax.config.warm_start import SpeechStageConfig
from tarl_jax.warm_start.clips import Clips, Make


def masked(
    batches: Iterable[Make], settings: SpeechStageConfig, seed: Sequence[int]
) -> Iterator[Make]:
    """The batches, in each clip of which so many bands and stretches are its mean, if any."""
    if not settings.masks:
        yield from batches
        return
    for count, make in enumerate(batches):
        yield functools.partial(_masked, make, settings, [*seed, 4, count])


def _masked(make: Make, settings: SpeechStageConfig, seed: list[int]) -> Clips:
    return mask(make(), settings, np.random.default_rng(seed))


def mask(batch: Clips, settings: SpeechStageConfig, rng: np.random.Generator) -> Clips:
    """One batch; the clips that it was made of stay as they are.

    The paper's policy without its warping: `frequency_masks` bands of up to `frequency_mask_bins`
    bins, through all pieces of a clip, and `time_masks` stretches of up to `time_mask_frames`
    frames, which may go from one piece into the next. What is masked becomes the mean of the clip's
    real frames; those behind its end stay.
    """
    pieces = batch.pieces
    rows, (size, bins) = len(batch.text), pieces.mel.shape[1:]
    mel = np.array(pieces.mel).reshape(rows, -1, bins)
    real = np.asarray(pieces.frames).reshape(rows, -1, 1) > np.arange(size)
    for clip, there in zip(mel, real.reshape(rows, -1), strict=True):
        frames = int(there.sum())
        if not frames:
            continue
        hidden = np.zeros(clip.shape, bool)
        for _ in range(settings.frequency_masks):
            hidden[:, _stretch(bins, settings.frequency_mask_bins, rng)] = True
        for _ in range(settings.time_masks):
            hidden[_stretch(frames, settings.time_mask_frames, rng)] = True
        hidden &= there[:, None]
        clip[hidden] = clip[there].mean()
    return dataclasses.replace(
        batch, pieces=dataclasses.replace(pieces, mel=mel.reshape(pieces.mel.shape))
    )


def _stretch(of: int, longest: int, rng: np.random.Generator) -> slice:
    width = int(rng.integers(min(longest, of) + 1))
    first = int(rng.integers(of - width + 1))
    return slice(first, first + width)
