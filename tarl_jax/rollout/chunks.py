"""Chunks of forced tokens, put together on the host.

Where a batch is split over devices, each of its shards feeds rows of its own, at places of its own
in the chunk: a cache that one shard took from another would be sent between them for every chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tarl_jax.rollout.programs import Chunk
from tarl_jax.rollout.scheduler import Row


def fitting(
    waiting: Sequence[Row], batch: int, places: int, shards: int
) -> tuple[list[Row], list[Row]]:
    """(the first of them that a chunk has places for, the others)."""
    chosen: list[Row] = []
    others: list[Row] = []
    used = [0] * shards
    for row in waiting:
        shard = _shard(row, batch, shards)
        fits = used[shard] < places // shards
        used[shard] += fits
        (chosen if fits else others).append(row)
    return chosen, others


def chunk_of(
    rows: Sequence[Row], batch: int, shards: int, shape: tuple[int, int], width: int
) -> Chunk:
    """The rows' next pending tokens, as many as fit but each one's newest, counted as fed.

    Args:
      rows: no more than have a place.
      shape: (places, columns).
      width: of what stands in place of a token of sound.
    """
    places, columns = shape
    chunk = empty(shape, batch)
    placed: dict[int, Row] = {}
    used = [0] * shards
    for row in rows:
        shard = _shard(row, batch, shards)
        placed[shard * places // shards + used[shard]] = row
        used[shard] += 1
    before = {place: row.fed for place, row in placed.items()}
    for place, row in placed.items():
        assert row.slot is not None
        part = row.tokens[row.fed : min(row.fed + columns, len(row.tokens) - 1)]
        chunk.slots[place] = row.slot % (batch // shards)  # counted within its shard
        chunk.start[place], chunk.used[place] = row.fed, len(part)
        chunk.tokens[place, : len(part)] = part
        chunk.last[place], chunk.seeds[place] = row.tokens[-1], row.seed
        chunk.dropped[place], chunk.syntax[place] = row.dropped, row.syntax
        row.fed += len(part)
        row.read += len(part)
    if any(sound.first < row.fed and before[place] < sound.end
           for place, row in placed.items() for sound in row.spoken):
        return with_sound(chunk, placed, before, width)
    return chunk


def empty(shape: tuple[int, int], batch: int) -> Chunk:
    """A chunk that feeds nothing: its slots lie beyond the batch."""
    places = shape[0]
    ints: Any = lambda *dims: np.zeros(dims, np.int32)  # noqa: E731
    return Chunk(
        slots=np.full(places, batch, np.int32), tokens=ints(*shape), start=ints(places),
        used=ints(places), last=ints(places), seeds=np.zeros(places, np.uint32),
        dropped=ints(places), syntax=ints(places),
    )


def with_sound(
    chunk: Chunk, placed: Mapping[int, Row], before: Mapping[int, int], width: int
) -> Chunk:
    """The chunk, and what the rows at its places hear in it.

    before: how many tokens of the row at a place had been fed before the chunk.
    """
    spoken = np.zeros(chunk.tokens.shape, bool)
    inputs = np.zeros((*spoken.shape, width), np.float32)
    for place, row in placed.items():
        begin = before[place]
        for sound in row.spoken:
            first, end = max(sound.first, begin), min(sound.end, row.fed)
            if first < end:
                spoken[place, first - begin : end - begin] = True
                inputs[place, first - begin : end - begin] = (
                    sound.inputs[first - sound.first : end - sound.first]
                )
    return dataclasses.replace(chunk, spoken=spoken, inputs=inputs)


def _shard(row: Row, batch: int, shards: int) -> int:
    """Which shard of the batch the row's slot is in."""
    assert row.slot is not None
    return row.slot * shards // batch
