"""Run directories at an address, such as gs://bucket/run: a folder of this machine, and a copy.

A run is worked on in a folder, because its files are locked, replaced whole and brought to the
disk, which a bucket has no form of. After each checkpoint the folder is copied to the address in
the background, and who names the address on another machine gets the folder back. There lie the
files of the run, and

    copy.json         who copied last, and the files with sizes and times; it is written last
    in_use/<token>    who copies there now; written again every few seconds

A kill while files are copied leaves the last list as it was. Files that have changed since are
newer then, which a run that continues copes with as after any kill; checkpoints never change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from tarl_jax.config import ConfigError, TarlError
from tarl_jax.parallel.files import replace
from tarl_jax.parallel.lock import SILENCE, Lock, LockedError, Owner
from tarl_jax.parallel.store import BucketError, Store, is_address
from tarl_jax.runs import checksums
from tarl_jax.runs.directory import LOCK, checkpoints
from tarl_jax.runs.metrics import METRICS_FILE

BEAT = 15.0  # seconds between signs of life
LIST, IN_USE = "copy.json", "in_use"
# Folders whose files go where the copy has them no more: an older state would be gone on from.
_STATE = ("checkpoints", "reference", "ahead", "journal", "trajectories")
Files = dict[str, list[int]]  # name in the run directory -> [bytes, nanoseconds of the last change]


@dataclasses.dataclass(frozen=True)
class Listed:
    """What `copy.json` says at an address: which folder copied last, in which push, which files."""

    writer: str
    push: str
    files: Files


@dataclasses.dataclass(frozen=True)
class Known:
    """What `copy.json` says in a run directory: its own id, and the push that it has seen last."""

    id: str = ""
    push: str = ""

    def may_follow(self, last: Listed | None) -> bool:
        """Whether nothing at the address is newer than the folder."""
        return last is None or last.writer == self.id or last.push == self.push


def fetched(address: str, cache_dir: str) -> Path:
    """The folder of this machine for a run at an address, with what was copied there last.

    It stays as it is where it is the one that copied last: then nothing there is newer. Raises
    LockedError where a process of this machine writes in it, BucketError, ConfigError.
    """
    store = Store(address)
    place = store.address.replace("://", "/").lstrip("/")
    folder = Path(cache_dir).expanduser() / "buckets" / place
    for _ in range(5):
        last = _last(store)
        if last is None or _known(folder).may_follow(last) or _fetch(store, folder, last):
            return folder
    raise BucketError(f"{address}: its files change faster than they can be read; wait until the"
                      " run that copies there has ended")


def _fetch(store: Store, folder: Path, last: Listed) -> bool:
    """Makes a folder what was copied; False where a file of that has gone meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / LOCK, f"run directory {folder}").take():
        (folder / LIST).unlink(missing_ok=True)  # until it is whole it is nobody's copy
        wanted = {name: stat for name, stat in last.files.items() if _is_inside(name)}
        there = _stats(folder)
        for name in there.keys() - wanted.keys():
            if name.split("/")[0] in _STATE:
                (folder / name).unlink()
        for step in checkpoints(folder):
            if f"checkpoints/{step}/{checksums.FILE}" not in wanted:
                shutil.rmtree(folder / "checkpoints" / str(step))
        missing = [name for name, stat in wanted.items() if there.get(name) != stat]
        with ThreadPoolExecutor(8) as pool:
            if not all(pool.map(lambda name: store.get(name, folder / name), missing)):
                return False
        for name in missing:
            os.utime(folder / name, ns=(wanted[name][1],) * 2)
        _know(folder, Known(uuid.uuid4().hex, last.push))
    return True


def _is_inside(name: str) -> bool:
    """Whether a name that came from elsewhere stays in the folder."""
    return not name.startswith("/") and ".." not in name.split("/")


class Copy:
    """Copies a run directory to an address; a context manager, which copies once more at its end.

    say: is told what failed. A copy that failed is tried again after the next checkpoint.
    Raises LockedError where another process copies there, ConfigError where another run does.
    """

    def __init__(self, run_dir: Path, address: str, say: Callable[[str], None]):
        self._run_dir, self._say = run_dir, say
        self._store = Store(address)
        self._mine, self._lost = f"{IN_USE}/{uuid.uuid4().hex}", False
        if not is_address(address) and Path(address).expanduser().resolve() == run_dir.resolve():
            raise ConfigError(f"config.log.copy_to = {address!r}: is the run directory itself: give"
                              " another, or --config.log.copy_to= for none")
        known, last = _known(run_dir), _last(self._store)
        if not known.may_follow(last):
            raise ConfigError(
                f"config.log.copy_to = {address!r}: has the copy of another run, or a newer one of"
                f" this: go on with that, python -m tarl_jax.main {address}, or choose another"
                " address"
            )
        self._known = Known(known.id or uuid.uuid4().hex, last.push if last else "")
        _know(run_dir, self._known)
        self._claim()
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(1, "copy")
        self._under_way: Future[None] | None = None
        self._beats = threading.Thread(target=self._beat, name="copy", daemon=True)
        self._beats.start()

    def begin(self) -> None:
        """Copies what is there now, in the background; call `wait` before a checkpoint goes."""
        self.wait()
        self._under_way = self._pool.submit(self._push)

    def wait(self) -> None:
        """Until nothing is being copied. Raises LockedError where somebody else copies there."""
        under_way, self._under_way = self._under_way, None
        if not under_way:
            return
        try:
            under_way.result()
        except LockedError:
            raise
        except TarlError as error:
            self._say(f"copy: {error}; tried again after the next checkpoint")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with contextlib.suppress(LockedError) if kind else contextlib.nullcontext():
                self.wait()
            if checkpoints(self._run_dir):
                self._finish(kind is not None)
        finally:
            self._ended.set()
            self._pool.shutdown()
            self._beats.join()
            with contextlib.suppress(TarlError):
                self._store.remove(self._mine)

    def _finish(self, is_failing: bool) -> None:
        try:
            self._push()
        except TarlError as error:
            on = (f"The copy is behind; all is in {self._run_dir}, and python -m tarl_jax.main"
                  f" {self._run_dir} copies it")
            if not is_failing:
                raise type(error)(f"{error}. {on}") from error
            self._say(f"copy: {error}. {on}")

    def _push(self) -> None:
        last = _last(self._store)
        if self._lost or self._store.time(self._mine) is None or not self._known.may_follow(last):
            raise LockedError(f"{self._store.address}: another process copies there now; this"
                              f" run is whole in {self._run_dir}")
        there = last.files if last else {}
        now = _stats(self._run_dir)
        for name in _in_order(now):
            if there.get(name) != now[name]:
                try:
                    self._store.put(self._run_dir / name, name)
                except FileNotFoundError:  # it was replaced by another, or is no longer needed
                    del now[name]
        done = Listed(self._known.id, uuid.uuid4().hex, now)
        self._store.write(LIST, json.dumps(dataclasses.asdict(done), indent=0).encode())
        self._known = Known(done.writer, done.push)
        _know(self._run_dir, self._known)
        for name in there.keys() - now.keys():
            self._store.remove(name)

    def _claim(self) -> None:
        """Says that this process copies there, unless another one that lives says so.

        Each writes first and looks then: of two at once both may give way, and never none.
        """
        me, seen = json.dumps(dataclasses.asdict(Owner.me())).encode(), dict[str, float]()
        while True:
            self._store.write(self._mine, me)
            now = self._store.time(self._mine) or 0.0
            others = [f"{IN_USE}/{name}" for name in self._store.names(IN_USE)]
            alive = {name: t for name in others if name != self._mine
                     and (t := self._alive(name, now)) is not None}
            if not alive:
                return
            for name, written in alive.items():
                owner = self._owner(name)
                if owner and (owner.here or seen.get(name, written) != written):
                    self._store.remove(self._mine)
                    raise LockedError(f"{self._store.address}: is in use by {owner}: wait until it"
                                      " has ended, or end it")
            seen |= alive
            time.sleep(BEAT / 4)

    def _alive(self, name: str, now: float) -> float | None:
        """When who says that it copies there said so; None, and its word goes, where it is gone."""
        written, owner = self._store.time(name), self._owner(name)
        if written is None or owner is None:
            return None
        if (owner.here and owner.gone()) or now - written > SILENCE:
            self._store.remove(name)
            return None
        return written

    def _owner(self, name: str) -> Owner | None:
        content = self._store.read(name)
        try:
            return Owner(**json.loads(content)) if content else None
        except (ValueError, TypeError):
            return Owner("unknown", "", 0, "", "unknown", "")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(TarlError):  # it may be reached the next time
                content = self._store.read(self._mine)
                if content is None:
                    self._lost = True
                    return
                self._store.write(self._mine, content)


def _last(store: Store) -> Listed | None:
    """What was copied last; None: nothing was. Raises BucketError."""
    content = store.read(LIST)
    try:
        return Listed(**json.loads(content)) if content is not None else None
    except (ValueError, TypeError) as error:
        raise BucketError(f"{store.address}/{LIST}: is no list of a run's files; choose another"
                          " address") from error


def _known(run_dir: Path) -> Known:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Known(**json.loads((run_dir / LIST).read_text("utf-8")))
    return Known()


def _know(run_dir: Path, known: Known) -> None:
    replace(run_dir / LIST, json.dumps(dataclasses.asdict(known)))


def _stats(run_dir: Path) -> Files:
    """The files of a run that a copy has: none that is half-written, no lock."""
    whole = {str(step) for step in checkpoints(run_dir)
             if (run_dir / "checkpoints" / str(step) / checksums.FILE).is_file()}
    found: Files = {}
    for path in run_dir.rglob("*"):
        parts = path.relative_to(run_dir).parts
        if parts[0] == LIST or LOCK in parts[0] or path.name.endswith(".tmp"):
            continue
        if parts[0] == "checkpoints" and (len(parts) < 3 or parts[1] not in whole):
            continue
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink():
                stat = path.stat()
                found["/".join(parts)] = [stat.st_size, stat.st_mtime_ns]
    return found


def _in_order(files: Files) -> list[str]:
    """As the run writes them: episodes before their lines, lines before the checkpoint."""
    def rank(name: str) -> tuple[int, str]:
        return (2 if name.startswith("checkpoints/") else name == METRICS_FILE, name)

    return sorted(files, key=rank)
