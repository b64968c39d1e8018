"""Chunks of forced tokens, where the batch is split over devices."""

import dataclasses

import numpy as np
from scripted import CONFIG, MODEL, STOP, VOCAB

from tarl_jax.models import decoder
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rollout.chunks import chunk_of, empty, fitting
from tarl_jax.rollout.compiled import Compiled
from tarl_jax.rollout.scheduler import Row


def row(slot, count, fed=0):
    return Row(slot, 100 + slot, tokens=list(range(10, 10 + count)), fed=fed, slot=slot)


def test_each_shard_has_places_of_its_own():
    waiting = [row(slot, 9) for slot in (0, 1, 2, 3, 6)]  # of 8 slots, 4 to a shard
    chosen, others = fitting(waiting, batch=8, places=4, shards=2)
    assert [r.slot for r in chosen] == [0, 1, 6] and [r.slot for r in others] == [2, 3]
    chosen, others = fitting(waiting, batch=8, places=4, shards=1)
    assert [r.slot for r in chosen] == [0, 1, 2, 3] and [r.slot for r in others] == [6]


def test_slots_are_counted_within_their_shard():
    rows = [row(6, 9), row(1, 4, fed=2), row(4, 2)]
    chunk = chunk_of(rows, batch=8, shards=2, shape=(4, 5), width=3)
    assert chunk.slots.tolist() == [1, 8, 2, 0]  # row 1; a filler; rows 6 and 4
    assert chunk.start.tolist() == [2, 0, 0, 0] and chunk.used.tolist() == [1, 0, 5, 1]
    assert chunk.tokens[0].tolist() == [12, 0, 0, 0, 0] and not chunk.tokens[1].any()
    assert chunk.tokens[2:].tolist() == [[10, 11, 12, 13, 14], [10, 0, 0, 0, 0]]
    assert chunk.last.tolist() == [13, 0, 18, 11] and chunk.seeds.tolist() == [101, 0, 106, 104]
    assert [r.fed for r in rows] == [5, 3, 1] and chunk.spoken is None


def test_an_empty_chunk_feeds_no_slot():
    chunk = empty((3, 2), batch=16)
    assert chunk.slots.tolist() == [16] * 3 and not np.any(chunk.used)


def test_shards_send_each_other_nothing_while_they_feed():
    config = dataclasses.replace(CONFIG, slots=4)
    params = decoder.placed_shapes(MODEL, VOCAB, make_mesh())
    lowered = Compiled(MODEL, config, STOP, make_mesh()).model_sized(params, 128)
    kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    text = lowered["prefill"].compile().as_text()
    assert "num_partitions=2" in text and not any(kind in text for kind in kinds)
    assert "all-reduce" in lowered["decode"].compile().as_text()  # who still writes?
