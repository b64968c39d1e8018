"""Rows under way on the device, under one set of parameters: given slots, fed, sampled."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np

from tarl_jax.config import RolloutConfig
from tarl_jax.models import decoder
from tarl_jax.rollout.chunks import fitting
from tarl_jax.rollout.compiled import PREFIXES, Compiled
from tarl_jax.rollout.programs import batch_of, length_of
from tarl_jax.rollout.sampling import Sampling, Truncation
from tarl_jax.rollout.scheduler import Row, Scheduler
from tarl_jax.rollout.workers import Unfinished


@dataclasses.dataclass
class EngineStats:
    """Of one run. Seconds are host wall time.

    Attributes:
      fed_tokens: forced tokens that went through the model; fewer than `forced_tokens` where
        prefixes were copied, more where caches were dropped.
      fed_places: token places of the programs that fed them.
      row_steps: decode steps times the rows of the batch; `sampled_tokens` of them drew a token.
      wait_seconds: in which nothing could be written, for want of answers.
      outside_seconds: that this process's dialogues waited for the outside, added up.
      unfinished: dialogues of this process that the run's time was too short for.
      left: whether the run was ended from outside.
    """

    episodes: int = 0
    sampled_tokens: int = 0
    forced_tokens: int = 0
    fed_tokens: int = 0
    fed_places: int = 0
    row_steps: int = 0
    ticks: int = 0
    extend_seconds: float = 0.0
    decode_seconds: float = 0.0
    wait_seconds: float = 0.0
    outside_seconds: float = 0.0
    host_seconds: float = 0.0
    seconds: float = 0.0
    unfinished: list[Unfinished] = dataclasses.field(default_factory=list)
    left: bool = False

    @property
    def tokens_per_second(self) -> float:
        return (self.sampled_tokens + self.forced_tokens) / max(self.seconds, 1e-9)

    def metrics(self) -> dict[str, float]:
        """What a run's metrics hold of it."""
        return {
            "rollout/tokens_per_second": self.tokens_per_second,
            "rollout/fed_per_second": self.fed_tokens / max(self.extend_seconds, 1e-9),
            "rollout/sampled_per_second": self.sampled_tokens / max(self.decode_seconds, 1e-9),
            "rollout/slots_used": self.sampled_tokens / max(self.row_steps, 1),
            "rollout/chunks_filled": self.fed_tokens / max(self.fed_places, 1),
            "rollout/ticks": float(self.ticks),
            "rollout/unfinished": float(len(self.unfinished)),
            "seconds/extend": self.extend_seconds,
            "seconds/decode": self.decode_seconds,
            "seconds/wait": self.wait_seconds,
            "seconds/outside": self.outside_seconds,
        }


class Running:
    """The rows of a run, and what the device keeps of them.

    Attributes:
      params: as decoding takes them.
      rows: under way, by index.
    """

    def __init__(
        self, programs: Compiled, config: RolloutConfig, params: decoder.Params, slots: int
    ):
        self._programs = programs
        self._config = config
        self._slots = slots
        self.params = params
        self.stats = EngineStats()
        self.renew()

    def renew(self) -> None:
        """Forgets all rows."""
        share, parked = self._config.share_prefix, self._config.parked
        self.rows: dict[int, Row] = {}
        self.scheduler = Scheduler(self._slots, parked, PREFIXES if share else 0, share)
        for old in ("state", "store"):  # they go before the new ones come
            self.__dict__.pop(old, None)
        self.state = self._programs.empty(self._slots)
        self.store = self._programs.empty_store()

    def rest(self) -> None:
        """Gives up room that no row needs, where there is none."""
        if not self.rows and length_of(self.state) > self._programs.shortest:
            self.renew()

    def admit(self) -> None:
        """Gives slots to the rows that have something to write."""
        moves = self.scheduler.admit()
        self.state, self.store = self._programs.move(
            self.state, self.store, out=moves.unpark, into=moves.park
        )

    def write(self) -> list[Row]:
        """Feeds what the rows in slots have not read, and samples until nearly all have written.

        Returns: those whose turn is over, which now ask for an answer.
        Raises: ValueError where one may outgrow the longest cache.
        """
        need = max(len(row.tokens) - 1 + row.limit - row.written for row in self.scheduler.writing)
        while length_of(self.state) < need:
            self.state, self.store = self._programs.lengthen(self.state, self.store)
        self._feed()
        return self._sample()

    def shrink(self) -> None:
        """Halves the batch where it is mostly idle; all rows are in slots."""
        size = self._programs.bucket_rows(len(self.scheduler.in_slots))
        while len(self.scheduler.slots) > size:
            slots = self.scheduler.shrink(len(self.scheduler.slots) // 2)
            self.state = self._programs.keep(self.state, slots)

    def _feed(self) -> None:
        """Feeds all pending tokens but each row's last, which sampling feeds."""
        begun = time.perf_counter()
        programs, stats, batch = self._programs, self.stats, batch_of(self.state)
        for part in self.scheduler.rounds():
            self.state, self.store = programs.move(
                self.state, self.store, within=part.from_slots, out=part.from_store
            )
            waiting = _longest_first(part.rows)
            while waiting:
                longest = waiting[0].pending
                # The smallest program that feeds the longest in one go; shorter ones fill it up.
                columns, share = next(
                    (c for c in reversed(programs.chunks) if c[0] >= longest), programs.chunks[0]
                )
                places = programs.places(batch, share)
                chosen, waiting = fitting(waiting, batch, places, programs.shards)
                before = sum(row.fed for row in chosen)
                self.state = programs.extend(self.params, self.state, chosen, (places, columns))
                stats.fed_tokens += sum(row.fed for row in chosen) - before
                stats.fed_places += places * columns
                waiting = _longest_first([row for row in chosen if row.pending] + waiting)
            self.state, self.store = programs.move(self.state, self.store, into=part.keep)
        jax.block_until_ready(self.state.lengths)
        stats.extend_seconds += time.perf_counter() - begun

    def _sample(self) -> list[Row]:
        begun = time.perf_counter()
        slots, writing = self.scheduler.slots, self.scheduler.writing
        room = np.zeros(len(slots), np.int32)
        ways = [Sampling()] * len(slots)
        for row in writing:
            assert row.slot is not None
            room[row.slot] = min(row.limit - row.written, self._programs.burst)
            ways[row.slot] = row.sampling
        patience = int(self._config.straggler_fraction * np.count_nonzero(room))
        temperature, *cuts = np.array([dataclasses.astuple(way) for way in ways]).T
        self.state, out = self._programs.decode(
            self.params, self.state, room, patience, temperature, Truncation(*cuts)
        )
        stats = self.stats
        stats.decode_seconds += time.perf_counter() - begun
        stats.ticks += 1
        stats.row_steps += int(out.counts.max()) * len(slots)
        stats.sampled_tokens += int(out.counts.sum())
        over = []
        for row in writing:
            slot = row.slot
            n = int(out.counts[slot])
            row.tokens += out.tokens[slot, :n].tolist()
            row.fed += n
            row.written += n
            row.log_probs += out.log_probs[slot, :n].tolist()
            row.drawn_log_probs += out.drawn_log_probs[slot, :n].tolist()
            row.syntax = int(out.syntax[slot])
            stopped = row.tokens[-1] in self._programs.stop_ids
            if out.ended[slot] and (stopped or row.written == row.limit):
                row.asking = True
                over.append(row)
        return over


def _longest_first(rows: Sequence[Row]) -> list[Row]:
    """Those with the most pending tokens first."""
    return sorted(rows, key=lambda row: -row.pending)
