"""Episodes under way, on disk turn by turn, so that a run that is killed asks nobody twice.

A journal has the turns that the policy has sampled, and what language models have answered. An
episode is a function of these: the next start plays it again from there, tools and users included,
without asking anybody, and goes on behind the last turn. On a CPU, where a run repeats to the bit,
the policy computes its turns again, in the same batches, and so comes to the very numbers of a run
that was not killed; elsewhere, and where steps end by the clock, the context is fed from the
journal, which takes a fraction of that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tarl_jax.config.plain import dumps, loads
from tarl_jax.llm.store import is_answer
from tarl_jax.parallel.files import LineFile
from tarl_jax.rollout.episode import Episode
from tarl_jax.rollout.workers import Answer, Turn
from tarl_jax.types import Trajectory

Name = tuple[str, int]  # of an episode: its task's id, its seed


@dataclasses.dataclass(frozen=True)
class KeptTurn:
    """A turn of a journal; context: what the policy had before it, by a hash of its tokens."""

    context: str
    turn: Turn


class Journals:
    """The journals of a run, one per step or evaluation, in `folder`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._open: dict[str, Journal] = {}
        self._lock = threading.Lock()

    def of(self, name: str | int) -> Journal:
        """The journal of that name, with what an earlier start has left in it."""
        with self._lock:
            if str(name) not in self._open:
                path = self._folder / f"{name}-{jax.process_index()}.jsonl"
                self._open[str(name)] = Journal(path)
            return self._open[str(name)]

    def adopt(self, name: str | int, episodes: Collection[Name]) -> bool:
        """Takes over what other processes have of these episodes in theirs of that name.

        An earlier start may have had others in number, and an episode been another one's then.
        Before any process plays. Returns whether there was more than here.
        """
        own = self.of(name)
        others = sorted(self._ranks(name) - {jax.process_index()})
        paths = [self._folder / f"{name}-{rank}.jsonl" for rank in others]
        return any([own.adopt(Journal(path), episodes) for path in paths])

    def forget(self, oldest: int) -> None:
        """Deletes those of steps up to one that has a checkpoint."""
        for path in self._folder.glob("*.jsonl"):
            step = path.stem.partition("-")[0]
            if step.isdigit() and int(step) <= oldest:
                self.done(step)

    def done(self, name: str | int) -> None:
        """Deletes the journal of that name: what came of it is kept elsewhere."""
        mine = {jax.process_index()}
        if jax.process_index() == 0:  # and those of processes that are no more
            mine |= {rank for rank in self._ranks(name) if rank >= jax.process_count()}
        with self._lock:
            journal = self._open.pop(str(name), None)
            if journal:
                journal.close()
            for rank in mine:
                (self._folder / f"{name}-{rank}.jsonl").unlink(missing_ok=True)

    def _ranks(self, name: str | int) -> set[int]:
        """Processes that have one of that name."""
        ends = (path.stem.removeprefix(f"{name}-") for path in self._folder.glob(f"{name}-*.jsonl"))
        return {int(end) for end in ends if end.isdigit()}

    def close(self) -> None:
        """Closes the files; they stay."""
        with self._lock:
            for journal in self._open.values():
                journal.close()
            self._open = {}


class Journal:
    """One file of turns and answers. Safe to share between threads; `llm.service.Answers`.

    Raises WriteError where it cannot be written. A last line that a kill left unfinished, and
    whatever else cannot be read, is left out: it is asked for again.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._file: LineFile | None = None  # until there is something to write
        self._answers: dict[str, dict[str, Any]] = {}
        self._turns: dict[Name, list[KeptTurn]] = {}
        if path.is_file():
            for line in path.read_bytes().split(b"\n")[:-1]:
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    self._read(loads(line))

    def kept(self, episode: Episode, timed: bool = False) -> KeptEpisode:
        """The episode, from where it was; its turns are kept from now on.

        timed: it is of steps that end by the clock, so that no run repeats another one.
        """
        turns = self._turns.get((episode.task.task_id, episode.seed), [])
        fed = timed or jax.default_backend() != "cpu"
        return KeptEpisode(episode, self, turns, fed)

    def adopt(self, other: Journal, episodes: Collection[Name]) -> bool:
        """Takes over the turns of these episodes that the other has more of, and all answers."""
        with self._lock:
            self._answers = other._answers | self._answers
        more = {
            name: other._turns[name] for name in episodes
            if len(other._turns.get(name, [])) > len(self._turns.get(name, []))
        }
        for name, turns in more.items():
            for number, kept in enumerate(turns):
                self.add(name, number, kept)
        self._turns |= more
        return bool(more)

    def get(self, name: str) -> dict[str, Any] | None:
        """A language model's answer to the request of that digest."""
        with self._lock:
            return self._answers.get(name)

    def put(self, name: str, answer: dict[str, Any]) -> None:
        """Keeps such an answer."""
        self._add({"digest": name, "answer": answer}, sync=True)
        with self._lock:
            self._answers[name] = answer

    def add(self, episode: Name, number: int, kept: KeptTurn) -> None:
        """Keeps the turn of that number, which comes in place of it and those behind it."""
        turn = kept.turn
        record = {"task": episode[0], "seed": episode[1], "number": number, "ids": turn.ids,
                  "context": kept.context, "log_probs": turn.log_probs}
        if turn.drawn_log_probs != turn.log_probs:
            record["drawn_log_probs"] = turn.drawn_log_probs
        self._add(record, sync=False)  # the answer that follows is worth waiting for

    def close(self) -> None:
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None

    def _add(self, record: dict[str, Any], sync: bool) -> None:
        line = dumps(record)
        with self._lock:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = LineFile(self._path)
            self._file.add(line, sync)

    def _read(self, record: Any) -> None:
        if "digest" in record:
            if is_answer(record["answer"]):
                self._answers[record["digest"]] = record["answer"]
            return
        log_probs = [float(p) for p in record["log_probs"]]
        drawn = [float(p) for p in record.get("drawn_log_probs", log_probs)]
        turn = Turn([int(i) for i in record["ids"]], log_probs, drawn)
        turns = self._turns.setdefault((record["task"], int(record["seed"])), [])
        number = int(record["number"])
        if number > len(turns):
            raise ValueError(f"turn {number} without those before it")
        turns[number:] = [KeptTurn(record["context"], turn)]


class KeptEpisode:
    """An episode whose turns are written down before they are answered; `workers.Dialogue`.

    turns: that an earlier start has sampled. They stand as they are, whatever is sampled now.
    fed: they are part of the first tokens; else each is sampled again, and replaced where another
      one comes of it.
    """

    def __init__(self, episode: Episode, journal: Journal, turns: list[KeptTurn], fed: bool):
        self.task, self.seed = episode.task, episode.seed
        self.outside, self.shared = episode.outside, episode.shared
        self._episode = episode
        self._journal = journal
        self._kept = turns[::-1]  # the next one last
        self._fed = fed
        self._number = 0
        self._context: list[int] = []  # the policy's
        self._dropped = 0  # tokens that have left it

    def start(self) -> list[int] | Answer | None:
        """As the episode's, with the turns that were kept and their answers where they are fed."""
        found = self._episode.start()
        if found is None:
            return None
        first = found if isinstance(found, Answer) else Answer(found)
        self._context = list(first.tokens)
        sounds = list(first.sounds)
        while self._fed and (turn := self._next()):
            answer = self._play(turn)
            if answer is None:
                return None
            begin = len(self._context) - len(answer.tokens)
            sounds = [s for s in sounds if answer.keep is None or s.first < answer.keep]
            sounds += [dataclasses.replace(s, first=begin + s.first) for s in answer.sounds]
        if not self._number:
            return found
        return Answer(list(self._context), sounds=tuple(sounds), dropped=self._dropped)

    def turn(self, turn: Turn) -> Answer | None:
        """As the episode's; a turn that was kept comes in place of what was sampled."""
        before = len(self._context)
        kept = self._next()
        if kept is None:
            name = self.task.task_id, self.seed
            self._journal.add(name, self._number, KeptTurn(self._hash(), turn))
        answer = self._play(kept or turn)
        if answer is None or kept is None or kept.ids == turn.ids:
            return answer
        behind = before if answer.keep is None else answer.keep
        moved = len(self._context) - behind - len(answer.tokens)
        return Answer(
            self._context[behind:], behind, dropped=self._dropped,
            sounds=tuple(dataclasses.replace(s, first=moved + s.first) for s in answer.sounds),
        )

    def cut(self) -> None:
        self._episode.cut()

    def trajectory(self) -> Trajectory:
        """The finished record, as the episode's."""
        return self._episode.trajectory()

    def _next(self) -> Turn | None:
        """The next turn that was kept; none, if it was sampled in another context than this."""
        if not self._kept:
            return None
        kept = self._kept.pop()
        if kept.context != self._hash():
            self._kept = []
            return None
        return kept.turn

    def _play(self, turn: Turn) -> Answer | None:
        answer = self._episode.turn(turn)
        self._number += 1
        if answer is not None:
            whole = self._context + turn.ids
            keep = len(whole) if answer.keep is None else answer.keep
            self._dropped += len(whole) - keep
            self._context = whole[:keep] + answer.tokens
        return answer

    def _hash(self) -> str:
        tokens = np.array(self._context, np.int64).tobytes()
        return hashlib.sha256(tokens).hexdigest()[:16]
