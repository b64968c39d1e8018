"""Sequences of different lengths as padded batches of few shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tarl_jax.speech.sound import AudioInputs, Pieces
from tarl_jax.types import Batch, Trajectory

SHORTEST = 64  # tokens; the smallest padded length
HALVINGS = 2  # how often the rows of a packed batch may be halved: each is a program to compile


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


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where sequences lie in one batch: its (rows, length), and per used row which, in order."""

    shape: tuple[int, int]
    rows: list[list[int]]


def padded_layouts(
    lengths: Sequence[int], tokens_per_batch: int, row_multiple: int = 1
) -> list[Layout]:
    """One sequence per row; see `plan_batches`."""
    return [
        Layout((rows, padded), [[i] for i in chosen])
        for padded, rows, chosen in plan_batches(lengths, tokens_per_batch, row_multiple)
    ]


def packed_layouts(
    lengths: Sequence[int], tokens_per_batch: int, longest: int, row_multiple: int = 1
) -> list[Layout]:
    """Several sequences per row: first fit, longest first, what fits no short row in long ones.

    The shapes are those of `packed_shapes`: the last batch of a length has no more rows than it
    needs.

    Raises ValueError for a sequence longer than a row.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if order and lengths[order[0]] > row_lengths(longest)[0]:
        raise ValueError(f"a trajectory has {lengths[order[0]]} tokens, a packed row"
                         f" {row_lengths(longest)[0]}")
    layouts: list[Layout] = []
    sizes = row_lengths(longest)
    for length, shorter in zip(sizes, [*sizes[1:], 0], strict=True):
        rows: list[list[int]] = []
        room: list[int] = []
        waiting = []
        for i in order:
            place = next((r for r, left in enumerate(room) if left >= lengths[i]), len(rows))
            if place == len(rows):
                if lengths[i] <= shorter:
                    waiting.append(i)
                    continue
                rows.append([])
                room.append(length)
            rows[place].append(i)
            room[place] -= lengths[i]
        order = waiting
        while rows:
            count = _rows(len(rows), packed_rows(tokens_per_batch, length, row_multiple),
                          row_multiple)
            layouts.append(Layout((count, length), rows[:count]))
            rows = rows[count:]
    return layouts


def fullest(shapes: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Of the (rows, length) of each length that with the most rows, by length."""
    return {length: max(s for s in shapes if s[1] == length) for _, length in shapes}


def row_lengths(longest: int) -> list[int]:
    """Lengths of packed rows: that of the longest sequence, and half of it.

    Most sequences are short, and attention pays for the length of a row.
    """
    full = padded_length(longest)
    return [full, full // 2] if full > SHORTEST else [full]


def packed_shapes(
    longest: int, tokens_per_batch: int, row_multiple: int = 1
) -> list[tuple[int, int]]:
    """Every (rows, length) that `packed_layouts` can yield."""
    found = []
    for length in row_lengths(longest):
        most = packed_rows(tokens_per_batch, length, row_multiple)
        found += sorted({(_rows(n, most, row_multiple), length) for n in range(1, most + 1)})
    return found


def _rows(wanted: int, most: int, row_multiple: int) -> int:
    """Rows of a batch for `wanted` rows or `most` of them: that number, halved as may be."""
    count = most
    for _ in range(HALVINGS):
        if count // 2 < wanted or (count // 2) % row_multiple:
            break
        count //= 2
    return count


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sequence that the policy saw at once, and what its tokens train on; all of shape [S].

    fields: more of a Batch, by the field's name.
    audio_inputs: its sound, `places` [S]; None: it has none.
    """

    tokens: np.ndarray
    sampled: np.ndarray
    log_probs: np.ndarray
    advantages: np.ndarray
    fields: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    audio_inputs: AudioInputs | None = None


def samples_of(
    trajectory: Trajectory,
    advantage: float | np.ndarray,
    fields: Mapping[str, np.ndarray] | None = None,
    drawn: bool = False,
    audio_inputs: AudioInputs | None = None,
    choices: bool = True,
    shares: bool = False,
) -> list[Sample]:
    """One sample for each of the trajectory's parts.

    Args:
      advantage: one number for all sampled tokens, or one per token of the trajectory.
      fields: by name, one number per token of the trajectory.
      drawn: as in `Trajectory.arrays`.
      audio_inputs: of the trajectory, its `places` [S].
      choices: leaves out tokens that a grammar or a truncation left without an alternative.
      shares: whether the samples have the field "shares" of a Batch.
    """
    tokens, sampled, log_probs = trajectory.arrays(drawn)
    chosen = trajectory.had_alternatives() if choices else np.ones(len(tokens), bool)
    weights = sampled * np.asarray(advantage, np.float32)
    parts = [(at, counts & chosen[at]) for at, counts in trajectory.parts()]
    of_tokens = {name: np.asarray(of) for name, of in (fields or {}).items()}
    if shares:
        counted = sum(int(counts.sum()) for _, counts in parts)
        of_tokens["shares"] = np.full(len(tokens), 1 / max(counted, 1), np.float32)
    return [
        Sample(
            tokens[at], counts, log_probs[at] * counts, weights[at] * counts,
            {name: of[at] * counts for name, of in of_tokens.items()},
            None if audio_inputs is None else _audio_inputs_at(audio_inputs, at),
        )
        for at, counts in parts
    ]


def fill(layouts: Sequence[Layout], samples: Sequence[Sample], packed: bool) -> list[Batch]:
    """The batches that the layouts describe."""
    batches = []
    for layout in layouts:

        def joined(
            of: Callable[[Sample], np.ndarray], dtype: type = np.float32, layout: Layout = layout
        ) -> np.ndarray:
            rows = [np.concatenate([of(samples[i]) for i in row]) for row in layout.rows]
            return pad_rows(rows, layout.shape, dtype)

        batch = Batch(
            tokens=joined(lambda s: s.tokens, np.int32),
            sampled=joined(lambda s: s.sampled),
            log_probs=joined(lambda s: s.log_probs),
            advantages=joined(lambda s: s.advantages),
            segments=pad_rows(
                [np.repeat(np.arange(len(row)) + 1, [len(samples[i].tokens) for i in row])
                 for row in layout.rows],
                layout.shape, np.int32,
            ) if packed else None,
        )
        names = samples[layout.rows[0][0]].fields

        def field(name: str) -> Callable[[Sample], np.ndarray]:
            return lambda s: s.fields[name]

        more = {name: joined(field(name)) for name in names}
        audio_inputs = _audio_inputs(layout, samples)
        batches.append(dataclasses.replace(batch, **more, audio_inputs=audio_inputs))
    return batches


def rooms_for_pieces(shape: tuple[int, int], slots: int) -> list[int]:
    """How many pieces of sound a batch of (rows, length) has room for, as a rule: few sizes.

    As many in each row as it has if every token is one of `slots` of a piece, or half as many; each
    is a program to compile.
    """
    rows, length = shape
    full = -(-length // slots)
    return sorted({rows * -(-full // 2), rows * full})


def pieces_of_batch(shape: tuple[int, int], slots: int, count: int) -> int:
    """Room for at least so many pieces of sound in a batch of (rows, length).

    The first of `rooms_for_pieces` that will do; else the last, doubled as often as needed: short
    clips leave most of a piece empty.
    """
    rooms = rooms_for_pieces(shape, slots)
    while rooms[-1] < count:
        rooms.append(2 * rooms[-1])
    return next(room for room in rooms if room >= count)


def _audio_inputs_at(audio_inputs: AudioInputs, at: np.ndarray) -> AudioInputs | None:
    """The sound at some of the tokens, which are in order; None: there is none."""
    places = np.asarray(audio_inputs.places)[at]
    if not places.any():
        return None
    pieces = audio_inputs.pieces  # those behind the last of these sound later
    count = (int(places.max()) - 1) // pieces.slots + 1
    return AudioInputs(Pieces(pieces.mel[:count], pieces.frames[:count]), places)


def _audio_inputs(layout: Layout, samples: Sequence[Sample]) -> AudioInputs | None:
    """The sound in one batch; None: there is none.

    A piece that several sequences have, as those of a group have one opening, is there once.
    """
    kept: dict[bytes, tuple[int, Pieces]] = {}
    places = np.zeros(layout.shape, np.int32)
    for row, chosen in enumerate(layout.rows):
        begin = 0
        for i in chosen:
            audio_inputs, end = samples[i].audio_inputs, begin + len(samples[i].tokens)
            if audio_inputs is not None:
                parts = [(one.mel.tobytes() + one.frames.tobytes(), one)
                         for one in audio_inputs.pieces.parts(1)]
                moved = np.array([kept.setdefault(of, (len(kept), one))[0] for of, one in parts])
                piece, slot = np.divmod(audio_inputs.places - 1, audio_inputs.pieces.slots)
                there = moved[piece] * audio_inputs.pieces.slots + slot + 1
                places[row, begin:end] = np.where(audio_inputs.places, there, 0)
            begin = end
    if not kept:
        return None
    pieces = Pieces.joined([one for _, one in kept.values()])
    room = pieces_of_batch(layout.shape, pieces.slots, pieces.count)
    return AudioInputs(pieces.padded(room), places)


def take_out(
    layouts: Sequence[Layout], filled: Sequence[np.ndarray], lengths: Sequence[int]
) -> list[np.ndarray]:
    """The reverse of `fill` for one field: per sequence its part [length] of the [B, S] arrays."""
    found: list[np.ndarray] = [np.zeros(0)] * len(lengths)
    for layout, values in zip(layouts, filled, strict=True):
        for row, chosen in enumerate(layout.rows):
            place = 0
            for i in chosen:
                found[i] = values[row, place : place + lengths[i]]
                place += lengths[i]
    return found


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
