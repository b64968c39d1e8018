"""Rows under way on the device, their caches in pages; the surface is that of `running.Running`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from tarl_jax.config import RolloutConfig
from tarl_jax.models import decoder
from tarl_jax.models.pages import Pool
from tarl_jax.rollout.page_pool import PagePool
from tarl_jax.rollout.paged_compiled import PagedPrograms
from tarl_jax.rollout.paged_programs import Sound, Writers
from tarl_jax.rollout.paged_scheduler import PagedScheduler, Part
from tarl_jax.rollout.programs import Written
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.scheduler import Row


class PagedRunning:
    """The rows of a run, the pages, and which of them hold which.

    The pool lives as long as this: while a policy is updated there is none.

    Attributes:
      params: as decoding takes them.
      rows: under way, by index.
    """

    def __init__(self, programs: PagedPrograms, config: RolloutConfig, params: decoder.Params):
        self._programs, self._config = programs, config
        self.params = params
        self.stats = EngineStats()
        self.renew()

    def renew(self) -> None:
        """Forgets all rows."""
        programs = self._programs
        self._pool: Pool = {}  # the old one goes before the new one comes
        self._pool = programs.empty()
        pools = [PagePool(programs.pages, programs.size) for _ in range(programs.shards)]
        self.rows: dict[int, Row] = {}
        self.scheduler = PagedScheduler(programs.slots, pools, self._config.share_prefix > 0)

    def rest(self) -> None:
        """Nothing: pages that nobody holds are given anew."""

    def admit(self) -> None:
        """Gives slots to the rows that have something to write."""
        self.scheduler.admit()

    def shrink(self) -> None:
        """Nothing: an idle slot holds no cache."""

    def write(self) -> list[Row]:
        """One step: tokens are fed, and every row that is fed writes; many where none is to be fed.

        Returns: rows whose turn is over, or which only read, and now ask for an answer.
        Raises: ValueError where one outgrows the longest dialogue.
        """
        longest = self._programs.longest
        for row in self.scheduler.writing:
            if len(row.tokens) - 1 + row.limit - row.written > longest:
                raise ValueError(
                    f"a dialogue needs more than {longest} positions: that is what"
                    " rollout.max_episode_tokens leaves room for"
                )
        self.stats.ticks += 1
        plan = self.scheduler.mixed(self._programs.budget)
        over = self._burst() if plan is None else self._feed(plan)
        for row in self.scheduler.writing:
            if row.reading and not row.pending:
                row.asking = True
                over.append(row)
        return over

    def _feed(self, plan: Sequence[Sequence[Part]]) -> list[Row]:
        begun = time.perf_counter()
        programs, stats = self._programs, self.stats
        flat, writers, sound = programs.nothing(programs.budget)
        own, heard = programs.slots // programs.shards, False
        rows: dict[int, Row] = {}  # that write, by their sequence
        for shard, parts in enumerate(plan):
            at, ends = 0, shard * (own + 1)
            flat.count[shard] = len(parts)
            for number, part in enumerate(parts):
                row, place = part.row, shard * own + number
                begin, end = shard * programs.budget + at, part.first + part.count
                here = slice(begin, begin + part.count)
                flat.tokens[here] = row.tokens[part.first : end]
                positions = np.arange(part.first, end)
                held = np.array(row.pages)
                flat.positions[here], flat.pages[here] = positions, held[positions // programs.size]
                flat.tables[place, : len(held)] = held
                flat.lengths[place] = end
                heard |= _hear(sound, begin, part)
                at += part.count
                flat.begins[ends + number + 1] = at
                _write_row(writers, place, row)
                if part.samples:
                    writers.room[place] = 1
                    rows[place] = row
            flat.begins[ends + len(parts) + 1 : ends + own + 1] = at
            stats.fed_tokens += at - sum(part.samples for part in parts)
        stats.fed_places += programs.budget * programs.shards
        stats.row_steps += programs.slots
        self._pool, out = programs.mixed(
            self.params, self._pool, flat, writers, sound if heard else None
        )
        stats.extend_seconds += time.perf_counter() - begun
        return self._take(rows, out)

    def _burst(self) -> list[Row]:
        begun = time.perf_counter()
        programs, stats = self._programs, self.stats
        flat, writers, _ = programs.nothing(programs.slots // programs.shards)
        own = programs.slots // programs.shards
        flat.count[:] = own
        flat.begins[:] = np.tile(np.arange(own + 1), programs.shards)
        rows: dict[int, Row] = {}
        for slot, room in self.scheduler.bursts(programs.burst).items():
            row = self.scheduler.slots[slot]
            assert row is not None
            rows[slot] = row
            flat.tokens[slot], flat.positions[slot] = row.tokens[-1], row.fed
            flat.tables[slot, : len(row.pages)] = row.pages
            _write_row(writers, slot, row)
            writers.room[slot] = room
        patience = int(self._config.straggler_fraction * len(rows))
        self._pool, out = programs.decode(self.params, self._pool, flat, writers, patience)
        stats.decode_seconds += time.perf_counter() - begun
        stats.row_steps += int(out.counts.max()) * programs.slots
        for slot, row in rows.items():
            row.fed += int(out.counts[slot])
        return self._take(rows, out)

    def _take(self, rows: dict[int, Row], out: Written) -> list[Row]:
        """What they wrote; returns those that are done."""
        over = []
        for place, row in rows.items():
            n = int(out.counts[place])
            row.tokens += out.tokens[place, :n].tolist()
            row.written += n
            row.log_probs += out.log_probs[place, :n].tolist()
            row.drawn_log_probs += out.drawn_log_probs[place, :n].tolist()
            row.syntax = int(out.syntax[place])
            self.stats.sampled_tokens += n
            self.scheduler.wrote(row)
            if n and (row.tokens[-1] in self._programs.stop_ids or row.written == row.limit):
                row.asking = True
                over.append(row)
        return over


def _write_row(writers: Writers, place: int, row: Row) -> None:
    writers.seeds[place] = row.seed
    writers.dropped[place] = row.dropped
    writers.syntax[place] = row.syntax
    way = row.sampling
    writers.temperature[place], writers.top_k[place] = way.temperature, way.top_k
    writers.top_p[place], writers.min_p[place] = way.top_p, way.min_p


def _hear(sound: Sound, start: int, part: Part) -> bool:
    """Puts what the row hears in the part where its tokens stand, from `start` on."""
    heard = False
    for spoken in part.row.spoken:
        first = max(spoken.first, part.first)
        end = min(spoken.end, part.first + part.count)
        if first < end:
            here = slice(start + first - part.first, start + end - part.first)
            sound.spoken[here] = True
            sound.inputs[here] = spoken.inputs[first - spoken.first : end - spoken.first]
            heard = True
    return heard
