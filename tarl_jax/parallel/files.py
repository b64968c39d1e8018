"""Files that are whole or not there, whatever happens to whoever writes them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from tarl_jax.config.errors import TarlError

_OF_A_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.ENOMEM
)


class WriteError(TarlError):
    """A file that could not be written; names it, the reason and what helps."""


class _FullWriteError(WriteError):
    def __init__(self, path: str | os.PathLike[str], error: OSError):
        super().__init__(
            f"{path}: could not be written ({error.strerror or error}); what was there before is"
            " whole. Make room, or mend the disk"
        )


def replace(path: Path, content: str | bytes) -> None:
    """Writes a file, whole or not at all; of several writers at once the last one counts.

    Raises WriteError.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, moved to `path` when the block has ended well.

    The bytes are on the disk before they have the name. Raises WriteError for an OSError.
    """
    temporary = path.with_name(f".{path.name}.{unique()}.tmp")
    with writing(path):
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an OSError of the block into a WriteError that names `path`."""
    try:
        yield
    except OSError as error:
        raise _FullWriteError(path, error) from error


@contextlib.contextmanager
def disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """The same for a block that does more than write: of a full or broken disk's errors alone."""
    try:
        yield
    except OSError as error:
        if isinstance(error, TarlError) or error.errno not in _OF_A_DISK:
            raise
        raise _FullWriteError(error.filename or path, error) from error


def unique() -> str:
    """A part of a name that no other process, on any host, and no other call comes to."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def new_folder(path: Path) -> Path:
    """Makes a folder that was not there: `path`, or "path-2", "path-3", … where others have it."""
    for number in range(1, 10_000):
        found = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError), writing(found):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                found.mkdir()
            except FileExistsError:
                continue
            return found
    raise WriteError(f"{path}: is taken, with every number; choose another name")


def sweep(folder: Path) -> None:
    """Deletes what writers that were killed left half-written; whoever owns the folder may."""
    for half in filter(is_unfinished, folder.rglob("*")):
        with contextlib.suppress(OSError):
            half.unlink()


def is_unfinished(path: Path) -> bool:
    """Whether it has the name of a file that is being written, or whose writer was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def sync_tree(folder: Path) -> None:
    """Sees to it that all files of a folder are on the disk. Raises WriteError."""
    with writing(folder):
        for path in folder.rglob("*"):
            if path.is_file():
                _sync(path)
            else:
                sync_folder(path)
        sync_folder(folder)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """The same of the names in a folder, where its file system can do that."""
    with contextlib.suppress(OSError):
        _sync(folder)


def _sync(path: Path) -> None:
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


class LineFile:
    """A file of lines that one process adds to; each is on the disk when `add` returns.

    An unfinished last line, which a kill leaves, is cut off when the file is opened, and what a
    full disk let through of a line is taken back. A file that is no longer the one that was
    opened (deleted, replaced, or written by somebody else) is noticed before the next line.
    Raises WriteError.
    """

    def __init__(self, path: Path):
        self.path = path
        with writing(path):
            self._file = path.open("ab", buffering=0)
            content = path.read_bytes()
            self._end = content.rfind(b"\n") + 1
            if self._end < len(content):
                self._file.truncate(self._end)

    def add(self, line: str, sync: bool = True) -> None:
        """Adds a line, which has no line feed in it.

        sync: False: it survives the process, and not the machine, until the next one.
        """
        self._require_mine()
        data = line.encode() + b"\n"
        with writing(self.path):
            try:
                done = 0
                while done < len(data):
                    done += self._file.write(data[done:])
                if sync:
                    os.fsync(self._file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._end)
                raise
        self._end += len(data)

    def close(self) -> None:
        """Closes it; a second time does nothing."""
        with contextlib.suppress(OSError):  # every line is on the disk
            self._file.close()

    def _require_mine(self) -> None:
        mine = os.fstat(self._file.fileno())
        try:
            there = os.stat(self.path)
        except OSError:
            raise WriteError(
                f"{self.path}: is gone; somebody deleted or moved it while this process was adding"
                " to it: put it back before you go on"
            ) from None
        same = (there.st_dev, there.st_ino, there.st_size) == (mine.st_dev, mine.st_ino, self._end)
        if not same:
            raise WriteError(
                f"{self.path}: somebody else has changed it while this process was adding to it;"
                " let one process at a time write there"
            )
