"""Batches lose no sequence, duplicate none, and come in few shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarl_jax.rl import batching
from tarl_jax.rl.batching import (
    SHORTEST,
    Layout,
    batch_shapes,
    fill,
    packed_layouts,
    packed_shapes,
    pad_rows,
    padded_layouts,
    padded_length,
    plan_batches,
    samples_of,
    take_out,
)
from tarl_jax.rl.losses import loss_weights
from tarl_jax.types import Segment, Task, Trajectory


def samples(trajectories, advantages, **fields):
    return [
        sample for i, t in enumerate(trajectories)
        for sample in samples_of(t, advantages[i], {name: of[i] for name, of in fields.items()})
    ]


def make_batches(trajectories, advantages, *sizes):
    layouts = padded_layouts([t.num_tokens for t in trajectories], *sizes)
    return fill(layouts, samples(trajectories, advantages), packed=False)


def pack_batches(trajectories, advantages, *sizes):
    layouts = packed_layouts([t.num_tokens for t in trajectories], *sizes)
    return fill(layouts, samples(trajectories, advantages), packed=True)


LENGTHS = st.lists(st.integers(1, 900), max_size=60)


@pytest.fixture
def step_128(monkeypatch):
    """What is worked by hand below holds for this step."""
    monkeypatch.setattr(batching, "SHORTEST", 128)


@pytest.mark.parametrize("tokens, padded", [
    (1, 64), (64, 64), (65, 128), (384, 384), (385, 512), (768, 768), (769, 1024), (1536, 1536),
    (1537, 2048), (30_000, 32_768),
])
def test_padded_length_by_hand(tokens, padded):
    assert padded_length(tokens) == padded


def test_padding_is_little_and_its_sizes_are_few():
    lengths = range(1, 20_000)
    padded = [padded_length(n) for n in lengths]
    assert all(n <= p for n, p in zip(lengths, padded, strict=True))
    assert all(p <= n * 4 / 3 for n, p in zip(lengths, padded, strict=True) if n >= 3 * SHORTEST)
    assert padded == sorted(padded)
    assert len(set(padded)) < 30  # each is a program to compile
    assert all(padded_length(p) == p for p in set(padded))


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 6000), st.sampled_from([1, 2, 3, 8]))
def test_every_sequence_is_in_one_batch_that_holds_it(lengths, budget, multiple):
    plans = plan_batches(lengths, budget, multiple)
    assert sorted(i for _, _, chosen in plans for i in chosen) == list(range(len(lengths)))
    shapes = {}
    for padded, rows, chosen in plans:
        assert padded == padded_length(max(lengths[i] for i in chosen))
        assert chosen and len(chosen) <= rows and rows % multiple == 0
        assert max(lengths[i] for i in chosen) <= padded
        # The budget holds, unless the fewest rows that the devices allow are too many already.
        assert rows * padded <= budget or rows == multiple
        # One shape per padded length: each shape is a program to compile.
        assert shapes.setdefault(padded, rows) == rows


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(128, 6000), st.sampled_from([1, 4]))
def test_the_shapes_announced_for_compilation_are_all_there_are(lengths, budget, multiple):
    announced = batch_shapes(900, budget, multiple)
    # 64 to 384 by 64, 512 to 768 by 128, and 1,024.
    assert len(announced) == len(set(announced)) == 6 + 3 + 1
    assert {(rows, padded) for padded, rows, _ in plan_batches(lengths, budget, multiple)} <= set(
        announced
    )


def test_longest_first_and_rows_by_hand(step_128):
    lengths = [100, 300, 128, 129, 50, 20]
    assert plan_batches(lengths, 512) == [(384, 1, [1]), (256, 2, [3, 2]), (128, 4, [0, 4, 5])]


def test_short_sequences_are_not_padded_to_the_longest(step_128):
    plans = plan_batches([900] + [60] * 40, 1024)
    assert sum(padded * rows for padded, rows, _ in plans) <= 1024 * 6


def test_no_sequences_make_no_batches():
    assert plan_batches([], 1000) == []


def test_pad_rows():
    got = pad_rows([np.array([1, 2, 3]), np.array([4])], (3, 4), np.int32)
    assert got.dtype == np.int32
    assert got.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0], [0, 0, 0, 0]]


def trajectory(*segments):
    task = Task("t", "u", "", (), (), "train", "hand", None, 1)
    return Trajectory(task, 0, list(segments), "user_stop", True)


def test_a_batch_puts_the_advantage_on_sampled_tokens_only(step_128):
    short = trajectory(Segment.forced("system", [7, 8], -1, ""),
                       Segment("agent", [9], [True], [-0.5], 0, ""))
    long = trajectory(
        Segment.forced("system", [1] * 130, -1, ""),
        Segment("agent", [2, 3], [True, True], [-1.0, -2.0], 0, ""),
        Segment.forced("user", [4], 0, ""),
        Segment("agent", [5], [True], [-3.0], 1, ""),
    )
    first, second = make_batches([short, long], [0.25, -4.0], 256)
    assert first.tokens.shape == (1, 256) and second.tokens.shape == (2, 128)
    assert first.tokens[0, 129:135].tolist() == [1, 2, 3, 4, 5, 0]
    assert first.sampled[0, 129:135].tolist() == [0, 1, 1, 0, 1, 0]
    assert first.log_probs[0, 129:135].tolist() == [0, -1, -2, 0, -3, 0]
    assert first.advantages[0, 129:135].tolist() == [0, -4, -4, 0, -4, 0]
    assert second.tokens[0, :4].tolist() == [7, 8, 9, 0]
    assert second.advantages[0, :4].tolist() == [0, 0, 0.25, 0]
    assert not second.sampled[1].any()
    for batch in (first, second):
        assert (batch.tokens.dtype, batch.sampled.dtype) == (np.int32, np.float32)
        assert (batch.log_probs.dtype, batch.advantages.dtype) == (np.float32, np.float32)


def test_a_token_without_an_alternative_leaves_the_loss():
    """The second one was drawn with certainty, whatever the policy thought of it; forced it is not.

    Where nothing was cut off, a log-prob of 0 is the policy's own certainty, and counts.
    """
    said = Segment("agent", [5, 6, 7], [True] * 3, [-1.0, -9.0, -2.0], 0, "")
    said.drawn_log_probs = [-0.5, 0.0, -2.0]
    sure = Segment("agent", [8], [True], [0.0], 1, "")
    whole = trajectory(Segment.forced("system", [1], -1, ""), said, sure)
    for drawn, log_probs in ((False, [0, -1, 0, -2, 0]), (True, [0, -0.5, 0, -2, 0])):
        (sample,) = samples_of(whole, 3.0, {"values": np.full(5, 4.0)}, drawn)
        assert sample.tokens.tolist() == [1, 5, 6, 7, 8]
        assert sample.sampled.tolist() == [0, 1, 0, 1, 1]
        assert sample.log_probs.tolist() == log_probs
        assert sample.advantages.tolist() == [0, 3, 0, 3, 3]
        assert sample.fields["values"].tolist() == [0, 4, 0, 4, 4]
    (scored,) = samples_of(whole, 0.0, choices=False)
    assert scored.sampled.tolist() == [0, 1, 1, 1, 1]


def thinking(turns):
    """Turns of two tokens of thought, which leave the context with it, and one that stays."""
    said = [Segment("agent", [7, 8, 9], [True] * 3, [-1.0] * 3, n, "", forgotten=2)
            for n in range(turns)]
    answers = [Segment.forced("user", [4], n, "") for n in range(turns)]
    return trajectory(*(s for pair in zip(said, answers, strict=True) for s in pair))


@pytest.mark.parametrize("mean, total, count", [
    ("token", (30, 3), 33), ("sequence", (1, 1), 2), ("constant", (3, 0.3), 2),
])
def test_an_episode_weighs_the_same_whatever_splits_it(mean, total, count):
    episodes = [thinking(10), thinking(1)]
    found, counts = [0.0, 0.0], 0.0
    for i, episode in enumerate(episodes):
        parts = samples_of(episode, 1.0, shares=True)
        assert len(parts) == len(episode.turns)
        # Each part in a micro-batch of its own.
        for part in parts:
            (batch,) = fill([Layout((1, 64), [[0]])], [part], packed=False)
            weights, number = loss_weights(batch.sampled, None, mean, 10, batch.shares)
            found[i] += float(weights.sum())
            counts += float(number)
    assert found == pytest.approx(total) and counts == pytest.approx(count)


def test_reasoning_leaves_after_the_turn_that_is_named():
    """Two turns of one exchange, then another: the first two thoughts leave together."""
    whole = thinking(3)
    first, second, third = whole.turns
    first.forgotten_after, second.forgotten_after, third.forgotten = 1, -1, 0
    _, sampled, _ = whole.arrays()
    (one, counted), (two, after) = whole.parts()
    assert one.tolist() == [0, 1, 2, 3, 4, 5, 6] and counted.tolist() == sampled[:7].tolist()
    assert two.tolist() == [2, 3, 6, 7, 8, 9, 10, 11]
    assert after.tolist() == [False] * 4 + [True] * 3 + [False]


@pytest.mark.parametrize("multiple", [2, 4])
def test_rows_added_for_the_devices_do_not_count(step_128, multiple):
    one = trajectory(Segment("agent", [3, 4], [True, True], [-1.0, -1.0], 0, ""))
    (batch,) = make_batches([one], [1.0], 128, multiple)
    assert batch.tokens.shape == (multiple, 128)
    assert batch.sampled.sum() == 2


# ---- packed rows ----------------------------------------------------------------------------


def numbered(index, length):
    """A trajectory whose arrays say which one it is: every second token is sampled."""
    ids = list(range(1000 * index, 1000 * index + length))
    sampled = [i % 2 == 1 for i in range(length)]
    segment = Segment("agent", ids, sampled, [-0.5 * s for s in sampled], 0, "")
    task = Task(str(index), "u", "", (), (), "train", "test", None, 1)
    return Trajectory(task, 0, [segment], "user_stop", True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 200), max_size=30), st.integers(1, 2000), st.sampled_from([1, 4]))
def test_packed_rows_hold_every_trajectory_once(lengths, budget, multiple):
    whole = [numbered(i, n) for i, n in enumerate(lengths)]
    batches = pack_batches(whole, range(1, len(whole) + 1), budget, 200, multiple)
    announced = packed_shapes(200, budget, multiple)
    assert len(announced) == len(set(announced))
    seen = []
    for batch in batches:
        assert batch.tokens.shape == batch.segments.shape and batch.tokens.shape in announced
        assert batch.tokens.shape[0] % multiple == 0 and batch.tokens.shape[1] in (256, 128)
        for row in range(batch.tokens.shape[0]):
            for segment in range(1, batch.segments[row].max() + 1):
                place = np.flatnonzero(batch.segments[row] == segment)
                assert (np.diff(place) == 1).all()
                index = int(batch.tokens[row, place[0]]) // 1000
                ids, sampled, log_probs = whole[index].arrays()
                np.testing.assert_array_equal(batch.tokens[row, place], ids)
                np.testing.assert_array_equal(batch.sampled[row, place], sampled)
                np.testing.assert_array_equal(batch.log_probs[row, place], log_probs)
                np.testing.assert_array_equal(batch.advantages[row, place], sampled * (index + 1))
                seen.append(index)
            empty = batch.segments[row] == 0
            assert not batch.sampled[row, empty].any() and not batch.tokens[row, empty].any()
    assert sorted(seen) == list(range(len(whole)))


def test_packing_by_hand():
    whole = [numbered(i, n) for i, n in enumerate([30, 90, 60, 10, 40])]
    long, short = pack_batches(whole, [1.0] * 5, 300, 100)  # rows of 128 and 64
    assert [np.bincount(row, minlength=3).tolist() for row in long.segments] == [[8, 90, 30]]
    assert [np.bincount(row, minlength=3).tolist() for row in short.segments] == [
        [4, 60, 0], [14, 40, 10]
    ]  # fmt: skip


def test_the_last_batch_of_a_length_has_few_rows():
    # Rows of 512 and 256; batches of 2,048 tokens, halved down to what is left.
    layouts = packed_layouts([500] * 5 + [250] * 11 + [100], 2048, 512)
    assert [layout.shape for layout in layouts] == [(4, 512), (1, 512), (8, 256), (4, 256)]
    assert packed_shapes(512, 2048) == [
        (1, 512), (2, 512), (4, 512), (2, 256), (4, 256), (8, 256)
    ]
    assert packed_shapes(512, 2048, 4) == [(4, 512), (4, 256), (8, 256)]


def test_packing_wastes_little():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.2, 0.45, 50).astype(int), 30, 512).tolist()  # 200 or so each
    layouts = packed_layouts(lengths, 2048, 512)
    packed = sum(rows * length for rows, length in (layout.shape for layout in layouts))
    padded = sum(rows * length for length, rows, _ in plan_batches(lengths, 2048))
    assert sum(lengths) / packed > 0.85 > sum(lengths) / padded


def test_a_trajectory_longer_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="a trajectory has 129 tokens, a packed row 128"):
        pack_batches([numbered(0, 129)], [1.0], 1000, 100)


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_per_token_go_in_and_come_out_again(packed):
    rng = np.random.default_rng(0)
    lengths = [70, 3, 20, 64, 9, 41]
    trajectories = [
        trajectory(Segment("agent", [1] * n, [True] * n, [-1.0] * n, 0, "")) for n in lengths
    ]
    numbers = [rng.normal(size=n).astype(np.float32) for n in lengths]
    layouts = packed_layouts(lengths, 256, 128) if packed else padded_layouts(lengths, 256)
    batches = fill(layouts, samples(trajectories, numbers, values=numbers), packed)
    for field in ("advantages", "values"):
        found = take_out(layouts, [getattr(b, field) for b in batches], lengths)
        for mine, theirs in zip(found, numbers, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert all(b.returns is None for b in batches)
