"""Episodes played by an engine outside this process: token in, token out, over HTTP.

The weights of each new policy are written to a folder, as Hugging Face has them, and the server is
told to take them. A dialogue is a thread, which asks for one turn after the other; how turns share
the device is the server's business. What a turn is, how it is answered and what is kept of it is
as with the engine of this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tarl_jax.config import LLMConfig, ModelConfig, RolloutConfig
from tarl_jax.llm.tokens import TokenService
from tarl_jax.models import decoder, hugging_face
from tarl_jax.models.lora import join, merge
from tarl_jax.parallel.compilations import Progress
from tarl_jax.rollout.prepared import Ready
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.sampling import Truncation
from tarl_jax.rollout.scheduler import Row, extend_context
from tarl_jax.rollout.workers import POLL, Dialogue, Turn, Unfinished, opening

PREFIX = "rollout.outside"


class NoPrograms:
    """What an outside engine has this process compile."""

    compilations = 0

    def compile(
        self, params: decoder.Params, progress: Progress = lambda done, total, note="": None
    ) -> None:
        """Compiles nothing."""


@dataclasses.dataclass(eq=False)
class _Play:
    """A dialogue under way; `over` when it has ended."""

    episode: Dialogue
    row: Row
    begun: bool = False
    over: bool = False


class OutsideEngine:
    """Runs dialogues on the server of `config.outside`, with one set of parameters at a time.

    Args of the constructor:
      vocab_size: rows of the embedding.
    Raises LLMError("setup") without a key or the client.
    """

    def __init__(
        self, model: ModelConfig, config: RolloutConfig, stop_ids: tuple[int, ...],
        vocab_size: int,
    ):
        outside = config.outside
        self._model, self._config, self._stop_ids = model, config, stop_ids
        self._vocab_size = vocab_size
        self._service = TokenService(
            LLMConfig(
                model=outside.model, base_url=outside.base_url, api_key_env=outside.api_key_env,
                timeout_seconds=outside.timeout_seconds, max_attempts=outside.max_attempts,
                backoff_seconds=outside.backoff_seconds, max_in_flight=outside.max_in_flight,
            ),
            PREFIX, vocab_size,
        )
        self._handed: list[weakref.ref[jax.Array]] = []  # the leaves that the server has
        self._folder: Path | None = None  # where it has them from
        self.programs = NoPrograms()

    def ready(self, trained: decoder.Params, frozen: decoder.Params) -> Ready:
        """As `Engine.ready`: a copy, in the dtype that is written for the server."""
        copy = jax.tree.map(lambda x: jnp.array(x, self._model.dtype, copy=True), trained)
        return Ready(join(frozen, jax.block_until_ready(copy)))

    def run(
        self,
        params: decoder.Params | Ready,
        episodes: Sequence[Dialogue],
        temperature: float,
        progress: Callable[[int, int], None] | None = None,
        *,
        ended: Callable[[Dialogue], None] | None = None,
        seconds: float = 0.0,
        enough: Callable[[], bool] = lambda: True,
        unfinished: Sequence[Unfinished] = (),
        truncation: Truncation | None = None,
        leave: Callable[[], bool] | None = None,
    ) -> EngineStats:
        """As `Engine.run`. When the time is up, each turn that is under way is waited for.

        Raises: what a dialogue raised, and LLMError where the server gives no turn or takes no
          weights.
        """
        begun, c = time.perf_counter(), self._config
        self._hand_over(params.params if isinstance(params, Ready) else params)
        cut = truncation or Truncation(c.top_k, c.top_p, c.min_p)
        plays = [
            _Play(u.episode, dataclasses.replace(u.row, index=i) if u.row else
                  Row(i, u.episode.seed), u.row is not None)
            for i, u in enumerate(unfinished)
        ]
        plays += [_Play(e, Row(len(plays) + i, e.seed)) for i, e in enumerate(episodes)]
        stats = EngineStats(episodes=len(plays))
        stop = threading.Event()
        fields = _fields(temperature, cut, self._stop_ids, c.max_turn_tokens)
        under_way = c.in_flight or 4 * c.outside.max_in_flight
        pool = ThreadPoolExecutor(max(min(under_way, len(plays)), 1), "outside")
        try:
            going = {pool.submit(self._play, one, fields, stop): one for one in plays}
            done = 0
            while going:
                late = bool(seconds) and time.perf_counter() - begun >= seconds and enough()
                stats.left = stats.left or bool(leave and leave())
                if late or stats.left:
                    stop.set()
                for future in wait(going, POLL, FIRST_COMPLETED).done:
                    one = going.pop(future)
                    self._count(stats, future)
                    done += one.over
                    if one.over and ended:
                        ended(one.episode)
                if progress:
                    progress(done, len(plays))
        except BaseException:
            stop.set()  # the others end with their turn, or when this engine is closed
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        stats.unfinished = [
            Unfinished(one.episode, one.row if one.begun else None, None)
            for one in plays if not one.over
        ]
        stats.seconds = time.perf_counter() - begun
        return stats

    def close(self) -> None:
        """Ends the requests that are under way."""
        self._service.close()

    @staticmethod
    def _count(stats: EngineStats, future: Future[tuple[int, int, float, float]]) -> None:
        sampled, forced, asking, answering = future.result()  # raises what the thread raised
        stats.sampled_tokens += sampled
        stats.forced_tokens += forced
        stats.decode_seconds += asking
        stats.outside_seconds += answering

    def _play(
        self, one: _Play, fields: dict[str, Any], stop: threading.Event
    ) -> tuple[int, int, float, float]:
        """Plays a dialogue until it ends or is stopped between two turns.

        Returns: tokens sampled and forced, seconds of waiting for the server and for answers.
        """
        sampled = forced = 0
        asking = answering = 0.0
        row = one.row
        while not stop.is_set():
            if one.begun:
                begun = time.perf_counter()
                place = len(row.tokens) + row.dropped
                written = self._service.complete(
                    row.tokens, {**fields, "seed": _seed(one.episode.seed, place)}
                )
                asking += time.perf_counter() - begun
                sampled += len(written.ids)
                row.tokens += written.ids
                turn = Turn(written.ids, written.log_probs, list(written.log_probs))
            begun = time.perf_counter()
            answer = one.episode.turn(turn) if one.begun else opening(one.episode)
            answering += time.perf_counter() - begun
            if answer is None:
                one.over = True
                break
            one.begun = True
            forced += len(answer.tokens)
            extend_context(row, answer.tokens, answer.keep, ())
            if answer.dropped is not None:
                row.dropped = answer.dropped
        return sampled, forced, asking, answering

    def _hand_over(self, params: decoder.Params) -> None:
        """Writes the parameters for the server and has it take them, where it has others."""
        leaves = jax.tree.leaves(params)
        if len(leaves) == len(self._handed) and all(
            kept() is leaf for kept, leaf in zip(self._handed, leaves, strict=True)
        ):
            return
        outside = self._config.outside
        base = Path(outside.folder).expanduser().absolute()
        base.mkdir(parents=True, exist_ok=True)
        folder = base / f"weights-{os.getpid()}-{time.time_ns()}"
        body = _with_folder(json.loads(outside.reload_body), str(folder))
        try:
            hugging_face.save_params(
                folder, merge(params, self._model), self._model, self._vocab_size,
                dtype=self._model.dtype, tokenizer_files=self._model.pretrained or None,
            )
            self._service.post(outside.reload, body, outside.reload_seconds)
        except BaseException:
            _remove(folder)
            raise
        self._handed = [weakref.ref(leaf) for leaf in leaves]
        # Its own alone: others write theirs into the same folder, or keep something there.
        if self._folder:
            _remove(self._folder)
        self._folder = folder


def _remove(folder: Path) -> None:
    """The weights that no policy needs; where they cannot go they stay."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)


def _fields(
    temperature: float, cut: Truncation, stop_ids: tuple[int, ...], limit: int
) -> dict[str, Any]:
    """How a turn is sampled, in the words of the protocol and of its usual extensions."""
    fields: dict[str, Any] = {
        "temperature": temperature, "max_tokens": limit, "stop_token_ids": list(stop_ids),
    }
    if cut.top_k:
        fields["top_k"] = int(cut.top_k)
    if cut.top_p < 1:
        fields["top_p"] = float(cut.top_p)
    if cut.min_p:
        fields["min_p"] = float(cut.min_p)
    return fields


def _seed(seed: int, place: int) -> int:
    """Of a turn's sampling: servers begin their random numbers anew with each request."""
    return int.from_bytes(hashlib.sha256(f"{seed} {place}".encode()).digest()[:4]) >> 1


def _with_folder(value: Any, folder: str) -> Any:
    """The JSON value with the folder in place of {folder}, wherever it stands in a text."""
    if isinstance(value, str):
        return value.replace("{folder}", folder)
    if isinstance(value, dict):
        return {name: _with_folder(one, folder) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_folder(one, folder) for one in value]
    return value
