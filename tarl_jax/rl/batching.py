"""Sequences of different lengths as padded batches of few shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tarl_jax.types import Batch, Trajectory

SHORTEST = 64  # tokens; the smallest padded length


def padded_length(tokens: int) -> int:
    """The length that a sequence is padded to: few sizes, each at most 64 tokens or a third more.

    Multiples of 64 up to 384, of 128 up to 768, of 256 up to 1,536, and so on.
    """
    step = SHORTEST
    while tokens > 6 * step:
        step *= 2
    return -(-tokens // step) * step


def plan_batches(
    lengths: Sequence[int], tokens_per_batch: int, row_multiple: int = 1
) -> list[tuple[int, int, list[int]]]:
    """Groups sequences of similar length.

    Args:
      lengths: tokens of each sequence.
      tokens_per_batch: padded size that a batch stays under where one row allows it.
      row_multiple: the number of rows is a multiple of this (devices of the data axis).
    Returns: per batch (padded length, rows, indices), longest first. The rows follow from the
      padded length, so that there are as many shapes as padded lengths; a batch may have more
      rows than indices.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    plans = []
    while order:
        padded = padded_length(lengths[order[0]])
        rows = max(tokens_per_batch // padded // row_multiple, 1) * row_multiple
        plans.append((padded, rows, order[:rows]))
        order = order[rows:]
    return plans


def pad_rows(
    rows: Sequence[np.ndarray], shape: tuple[int, int], dtype: type = np.float32
) -> np.ndarray:
    """The rows left-aligned in an array of `shape`, zeros elsewhere."""
    out: np.ndarray = np.zeros(shape, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def make_batches(
    trajectories: Sequence[Trajectory],
    advantages: Sequence[float],
    tokens_per_batch: int,
    row_multiple: int = 1,
) -> list[Batch]:
    """Padded batches of whole trajectories, each with one advantage on all its sampled tokens."""
    arrays = [t.arrays() for t in trajectories]
    batches = []
    for length, rows, chosen in plan_batches(
        [len(ids) for ids, _, _ in arrays], tokens_per_batch, row_multiple
    ):
        shape = (rows, length)
        part = [arrays[i] for i in chosen]
        weights = [arrays[i][1] * np.float32(advantages[i]) for i in chosen]
        batches.append(
            Batch(
                tokens=pad_rows([ids for ids, _, _ in part], shape, np.int32),
                sampled=pad_rows([sampled for _, sampled, _ in part], shape),
                log_probs=pad_rows([log_probs for _, _, log_probs in part], shape),
                advantages=pad_rows(weights, shape),
            )
        )
    return batches


def pack_batches(
    trajectories: Sequence[Trajectory],
    advantages: Sequence[float],
    tokens_per_batch: int,
    length: int,
    row_multiple: int = 1,
) -> list[Batch]:
    """Batches of one shape, whose rows of `length` hold several whole trajectories each.

    First fit, longest first. Raises ValueError for a trajectory longer than a row.
    """
    arrays = [t.arrays() for t in trajectories]
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(arrays)), key=lambda i: (-len(arrays[i][0]), i)):
        size = len(arrays[i][0])
        if size > length:
            raise ValueError(f"a trajectory has {size} tokens, a packed row {length}")
        place = next((r for r, left in enumerate(room) if left >= size), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(i)
        room[place] -= size
    count = packed_rows(tokens_per_batch, length, row_multiple)
    shape = (count, length)
    batches = []
    for start in range(0, len(rows), count):
        part = rows[start : start + count]

        def joined(of: Callable[[int], np.ndarray], part: list[list[int]] = part) -> np.ndarray:
            return pad_rows([np.concatenate([of(i) for i in row]) for row in part], shape)

        batches.append(
            Batch(
                tokens=joined(lambda i: arrays[i][0]).astype(np.int32),
                sampled=joined(lambda i: arrays[i][1]),
                log_probs=joined(lambda i: arrays[i][2]),
                advantages=joined(lambda i: arrays[i][1] * np.float32(advantages[i])),
                segments=pad_rows(
                    [np.repeat(np.arange(len(row)) + 1, [len(arrays[i][0]) for i in row])
                     for row in part],
                    shape, np.int32,
                ),
            )
        )
    return batches


def packed_rows(tokens_per_batch: int, length: int, row_multiple: int) -> int:
    """Rows of a packed batch: as many as fit, at least `row_multiple` and a multiple of it."""
    return max(tokens_per_batch // length // row_multiple, 1) * row_multiple


def batch_shapes(
    longest: int, tokens_per_batch: int, row_multiple: int = 1
) -> list[tuple[int, int]]:
    """Every (rows, length) that `plan_batches` can yield for sequences up to `longest` tokens."""
    lengths = sorted({padded_length(n) for n in range(1, longest + 1)})
    return [
        (rows, padded)
        for n in lengths
        for padded, rows, _ in plan_batches([n], tokens_per_batch, row_multiple)
    ]
