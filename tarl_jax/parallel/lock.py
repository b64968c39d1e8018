"""One owner at a time of a folder or a file, among processes of all hosts that see it.

The lock is a file that says who holds it. Its owner touches it every few seconds, so that a lock
whose owner is gone is told from one that is held: on the owner's host by asking for the process,
elsewhere by the age of the last touch. All times are those of the file system, so clocks that
differ do not matter. Locks of the operating system would do on one host alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tarl_jax.config.errors import TarlError
from tarl_jax.parallel.files import unique, writing

BEAT = 5.0  # seconds between touches
SILENCE = 60.0  # seconds without a touch after which an owner on another host counts as gone
# How file systems say that they have no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LockedError(TarlError):
    """Another process holds the lock, or took it from this one; says which."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    place: boot and namespace of the process; what its number means there.
    begun: when the process began, as its system counts it: numbers are used again.
    since: when it took the lock, for people.
    """

    host: str
    place: str
    process: int
    begun: str
    since: str
    token: str

    @classmethod
    def me(cls) -> Owner:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        process = os.getpid()
        return cls(socket.gethostname(), _place(), process, _begun(process), now, uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} (since {self.since})"

    @property
    def here(self) -> bool:
        """Whether its process can be seen from this one."""
        return (self.host, self.place) == (socket.gethostname(), _place())

    def gone(self) -> bool:
        """Whether its process has ended; only where it is `here`."""
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        begun = _begun(self.process)
        return begun == "ended" or bool(begun and self.begun and begun != self.begun)


class Lock:
    """Holds `path`, a file beside what it guards, from `take` to `release`; a context manager.

    what: it guards, for messages.
    """

    def __init__(self, path: Path, what: str):
        self._path = path
        self._what = what
        self._me = Owner.me()
        self._released = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None

    def take(self, wait: Callable[[str], None] | None = None) -> Self:
        """Takes it, from an owner that is gone too.

        wait: called every second with who holds it, until it is free; None: raises LockedError
          that says who.
        Raises WriteError where there can be no such file.
        """
        while True:
            if self._made():
                break
            owner = self._owner()
            if owner is None:
                continue  # it was released just now
            if self._is_gone(owner):
                self._replaced(owner)
                continue
            if wait is None:
                raise LockedError(
                    f"{self._what}: is in use by {owner}: wait until it has ended, or end it"
                    + (f" (kill {owner.process})" if owner.here else "")
                )
            wait(str(owner))
            time.sleep(1.0)
        self._thread = threading.Thread(target=self._touch, name="lock", daemon=True)
        self._thread.start()
        return self

    def require(self) -> None:
        """Raises LockedError where another process has taken it, or the file was deleted."""
        if self._lost or not self.mine():
            owner = self._owner()
            raise LockedError(
                f"{self._what}: " + (f"was taken over by {owner}" if owner else
                                     f"its lock {self._path} was deleted while this process used"
                                     " it; what this process still had to write is left out")
            )

    def mine(self) -> bool:
        """Whether the file is there, and this lock's own."""
        owner = self._owner()
        return owner is not None and owner.token == self._me.token

    def release(self) -> None:
        """Gives it back; a second time does nothing."""
        self._released.set()
        if self._thread:
            self._thread.join()
        with contextlib.suppress(OSError):
            if self.mine():
                self._path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _made(self) -> bool:
        """Whether the file was not there, and now is, whole, and this process's."""
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_name(f".{self._path.name}.{unique()}.tmp")
            text = json.dumps(dataclasses.asdict(self._me))
            try:
                part.write_text(text, "utf-8")
                os.link(part, self._path)
            except FileNotFoundError:  # whoever had it has just removed the folder
                return False
            except FileExistsError:
                # A network may have lost the answer to a link that was made.
                return part.stat().st_nlink > 1
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                try:  # the file is empty for a moment
                    with self._path.open("x", encoding="utf-8") as file:
                        file.write(text)
                except FileExistsError:
                    return False
            finally:
                part.unlink(missing_ok=True)
            return True

    def _owner(self) -> Owner | None:
        """Who holds it; None where nobody does."""
        for _ in range(50):
            try:
                return Owner(**json.loads(self._path.read_text("utf-8")))
            except FileNotFoundError:
                return None
            except (ValueError, TypeError):  # being written
                time.sleep(0.02)
        return Owner("unknown", "", 0, "", "unknown", "")

    def _is_gone(self, owner: Owner) -> bool:
        if owner.here:
            return owner.gone()
        first = self._age()
        while first is not None:
            age = self._age()
            if age is None or age > SILENCE:
                return True
            if age < first:  # it was touched meanwhile
                return False
            first = age
            time.sleep(min(1.0, BEAT / 4))
        return True

    def _age(self) -> float | None:
        """Seconds since it was touched, by the clock of the file system; None: it is not there."""
        now = self._path.with_name(f".{self._path.name}.{unique()}.tmp")
        with writing(now):
            try:
                now.touch()
                # Opened, because a file system over the network looks at nothing else anew.
                with self._path.open("rb") as file:
                    return now.stat().st_mtime - os.fstat(file.fileno()).st_mtime
            except FileNotFoundError:
                return None
            finally:
                now.unlink(missing_ok=True)

    def _replaced(self, owner: Owner) -> None:
        """Removes the lock of an owner that is gone: one process alone does, and looks again."""
        turn = self._path.with_name(f"{self._path.name}.{owner.token[:8]}")
        with Lock(turn, self._what).take(lambda _: None):
            if self._owner() == owner:
                self._path.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):  # it may be back the next time
                if not self.mine():
                    self._lost = True
                    return
                os.utime(self._path)


def _place() -> str:
    """Tells apart machines, their starts, and containers, where process numbers mean others."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _begun(process: int) -> str:
    """When a process began, in ticks since the boot; "ended" for one that is dead but not waited
    for, "" where the system does not say."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2]
        state, *rest = fields.split()
        return "ended" if state in "ZX" else rest[18]
    return ""
