"""State on disk, by Orbax: whole checkpoints of a run, and bare parameters.

A checkpoint is written in the background: who saves waits until the state is in the host's memory,
and may give it up then. It goes to a temporary folder that is renamed, so that a kill at any moment
leaves the one before it whole; checksums of its files tell, when it is read, whether they are what
was written. What is not in it (tasks, user phrasing, sampling) is a pure function of the config and
the step number.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import jax

from tarl_jax.config import CheckpointConfig, TarlError
from tarl_jax.parallel import hosts
from tarl_jax.parallel.files import WriteError
from tarl_jax.runs import checksums
from tarl_jax.runs.directory import checkpoints

_PATIENCE = 3600  # seconds that processes wait for each other's part of a checkpoint


class CheckpointError(TarlError):
    """A checkpoint that cannot be read, written or does not fit; names it and the remedy."""


class Checkpoints:
    """The newest checkpoints of a run, under `run_dir/checkpoints/<step>`.

    Each holds the train state (parameters and optimiser) and a small JSON record `meta`. One is
    written at a time.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig):
        import orbax.checkpoint as ocp

        self._run_dir = run_dir.absolute()
        self._folder = self._run_dir / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                enable_async_checkpointing=True,
                # Folders are made before `save` returns: processes meet over that.
                async_options=ocp.AsyncOptions(
                    timeout_secs=_PATIENCE, create_directories_asynchronously=False
                ),
            ),
        )
        self._swept = False
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[None]] | None = None  # the step that was saved last

    @property
    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, oldest first; while one is written, without that."""
        found = checkpoints(self._run_dir)
        if self._writing:
            step, written = self._writing
            if step in found and not (written.done() and written.exception() is None):
                found.remove(step)
        return found

    def has(self, step: int) -> bool:
        """Whether a step has been saved, or is being written."""
        return step in self._manager.all_steps()

    def save(
        self, step: int, state: Any, meta: dict[str, Any], whole: Callable[[], None] | None = None
    ) -> None:
        """Begins to write a checkpoint, after the one before; returns when it needs `state` no
        longer.

        whole: is called, from another thread, when the checkpoint is whole.
        Raises CheckpointError, e.g. for a full disk, also that of the one before; what happens
        later `failure` says. Earlier checkpoints stay.
        """
        import orbax.checkpoint as ocp

        if error := self.failure(wait=True):
            raise error
        # Here, not on opening: another process may read while one writes.
        if not self._swept and hosts.first():
            for half_written in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half_written)
            self._swept = True
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        )
        if failure := _written(lambda: self._manager.save(step, args=args, force=True)):
            raise self._not_written(step, failure) from failure
        self._writing = step, self._pool.submit(self._finish, step, whole)

    def _finish(self, step: int, whole: Callable[[], None] | None) -> None:
        def finish() -> None:
            self._manager.wait_until_finished()
            if hosts.first():
                checksums.seal(self._folder / str(step))

        if failure := _written(finish):
            raise self._not_written(step, failure) from failure
        if whole:
            whole()

    def _not_written(self, step: int, error: Exception) -> CheckpointError:
        there = [found for found in self.steps if found != step]
        return CheckpointError(
            f"{self._folder / str(step)}: could not be written ({_first_line(error)});"
            f" checkpoints of the steps {there} are whole. Make room, then run the same"
            " command with --workdir to go on from there"
        )

    def failure(self, wait: bool = False) -> Exception | None:
        """Why the last checkpoint could not be written; None: it was, or it is being written.

        wait: until it is known.
        """
        if not self._writing:
            return None
        _, written = self._writing
        return cast("Exception | None", written.exception() if wait or written.done() else None)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of `step`, with the shapes and shardings of `like`."""
        import orbax.checkpoint as ocp

        self.failure(wait=True)
        if step not in self.steps:
            raise CheckpointError(
                f"{self._folder}: no checkpoint of step {step}; there are {self.steps}"
            )
        self._require_undamaged(step)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(_abstract(like)), meta=ocp.args.JsonRestore()
        )
        found = _read(lambda: self._manager.restore(step, args=args), self._folder / str(step))
        return found["state"], found["meta"]

    def meta(self, step: int) -> dict[str, Any]:
        """The record of `step` alone."""
        import orbax.checkpoint as ocp

        self.failure(wait=True)
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        found = _read(lambda: self._manager.restore(step, args=args), self._folder / str(step))
        return dict(found["meta"])

    def close(self) -> None:
        """Waits for what is being written; whether it was, `failure` says."""
        self._pool.shutdown()
        _written(self._manager.close)

    def _require_undamaged(self, step: int) -> None:
        problem = hosts.from_first(lambda: checksums.damaged(self._folder / str(step)))
        if not problem:
            return
        good = hosts.from_first(lambda: [
            s for s in self.steps if s < step and not checksums.damaged(self._folder / str(s))
        ])
        remedy = (
            f"Remove that folder to go on from step {good[-1]}, the last good one" if good else
            "No earlier one is whole: start in a new --workdir"
        )
        raise CheckpointError(f"{self._folder / str(step)}: is damaged: {problem}. {remedy}")


def save_params(folder: Path, params: Any) -> None:
    """Writes a parameter tree; the folder appears only when it is whole. Raises CheckpointError."""
    import orbax.checkpoint as ocp

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), params, force=True)
        hosts.from_first(lambda: checksums.seal(folder))
    except (OSError, ValueError, WriteError) as error:
        raise CheckpointError(f"{folder}: could not be written ({_first_line(error)}); make room,"
                              " and run the same command again") from error


def load_params(folder: Path, like: Any) -> Any:
    """A tree with the shapes of `like`. Raises CheckpointError if it is not there or differs."""
    import orbax.checkpoint as ocp

    if problem := hosts.from_first(lambda: checksums.damaged(folder)):
        raise CheckpointError(f"{folder}: is damaged: {problem}; remove that folder, and it is made"
                              " again")
    with ocp.StandardCheckpointer() as checkpointer:
        return _read(lambda: checkpointer.restore(folder.absolute(), _abstract(like)), folder)


def _written(write: Callable[[], None]) -> Exception | None:
    """Why it could not be written; None: it was."""
    with _one_message():
        try:
            write()
            return None
        # A ValueError is how TensorStore says "disk full".
        except (OSError, ValueError, WriteError) as error:
            failure = error.with_traceback(None)
        time.sleep(0.3)  # for the writes that are still under way
        gc.collect()
    return failure


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _read(read: Callable[[], Any], folder: Path) -> Any:
    with _one_message():
        try:
            return read()
        except Exception as error:  # Orbax raises many kinds; all mean that this one is unusable
            kind = type(error).__name__
            reason = (str(error).strip().splitlines() or [""])[0][:200]
        time.sleep(0.3)  # for the reads that are still under way
        gc.collect()
    raise CheckpointError(
        f"{folder}: is damaged, or was written with another model or optimiser"
        f" ({kind}: {reason}). Remove that folder to go on from the one before it, or start in a"
        " new --workdir"
    )


@contextlib.contextmanager
def _one_message() -> Iterator[None]:
    """Silences the reads that Orbax abandons when one fails: each would print its traceback."""
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    levels, hooks = [one.level for one in loggers], (sys.unraisablehook, sys.excepthook)
    for one in loggers:
        one.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda *_: None
    sys.excepthook = lambda *_: None
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = hooks
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
