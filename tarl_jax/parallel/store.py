"""The files under an address (gs://BUCKET/…, s3://BUCKET/…) or a folder: whole or not there.

fsspec reads and writes them, as `etils.epath` does. A bucket replaces a file at once, and has
neither folders that can be renamed nor locks.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tarl_jax.config.errors import ConfigError, TarlError
from tarl_jax.parallel.files import replace, replacing, unique

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # of fsspec's kinds of addresses


class BucketError(TarlError):
    """An address that cannot be read or written; names it, the reason and what helps."""


def is_address(path: str) -> bool:
    """Whether a path names no file of this machine."""
    return "://" in path


class Store:
    """The files under an address, gs://… or s3://…, or under a folder.

    Raises ConfigError for an address of another kind, or whose package is not installed; its
    methods raise BucketError.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        scheme, _, rest = address.partition("://") if is_address(address) else ("", "", address)
        if scheme and (scheme not in PACKAGES or not rest.strip("/")):
            known = " and ".join(f"{name}://BUCKET/RUN" for name in PACKAGES)
            raise ConfigError(f"{address}: addresses are {known}; for others mount a folder")
        import fsspec

        more: dict[str, Any] = {"use_listings_cache": False} if scheme else {"auto_mkdir": True}
        where = self.address if scheme else str(Path(self.address).expanduser().absolute())
        try:
            self._files, self._root = fsspec.core.url_to_fs(where, skip_instance_cache=True, **more)
        except ImportError as error:
            raise ConfigError(f"{address}: needs the package {PACKAGES[scheme]}: pip install -e"
                              " '.[bucket]'") from error
        except Exception as error:  # a package's own checks, of many kinds
            raise BucketError(self._said(error)) from error
        self._here = not scheme

    def names(self, folder: str) -> list[str]:
        """Names of the files of a folder, without it; empty where there is none."""
        with self._failing():
            self._files.invalidate_cache()
            found = self._files.find(f"{self._root}/{folder}")
        return sorted(str(name).rpartition("/")[2] for name in found)

    def time(self, name: str) -> float | None:
        """When a file was written, in seconds by the clock there; None: it is not there."""
        with self._failing():
            try:
                return float(self._files.modified(f"{self._root}/{name}").timestamp())
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        """A file; None where it is not there."""
        with self._failing():
            try:
                return bytes(self._files.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """A file, whole or not at all."""
        with self._failing():
            if self._here:
                self._made(name)
                replace(Path(self._root, name), content)
            else:
                self._files.pipe_file(f"{self._root}/{name}", content)

    def put(self, file: Path, name: str) -> None:
        """A file of this machine, whole or not at all. Raises FileNotFoundError if it has gone."""
        if not file.is_file():
            raise FileNotFoundError(str(file))
        with self._failing():
            if self._here:
                self._made(name)
                with replacing(Path(self._root, name)) as part:
                    shutil.copyfile(file, part)
            else:
                self._files.put_file(str(file), f"{self._root}/{name}")

    def get(self, name: str, file: Path) -> bool:
        """Writes a file of this machine, whole; False: there is none of that name."""
        part = file.with_name(f".{file.name}.{unique()}.tmp")
        try:
            with self._failing():
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._files.get_file(f"{self._root}/{name}", str(part))
                except FileNotFoundError:
                    return False
            with replacing(file) as whole:
                part.replace(whole)
            return True
        finally:
            part.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Deletes a file, if it is there."""
        with self._failing(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    def _made(self, name: str) -> None:
        Path(self._root, name).parent.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except TarlError:
            raise
        except Exception as error:  # the packages raise their own, of many kinds
            raise BucketError(self._said(error)) from error

    def _said(self, error: Exception) -> str:
        reason = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
        return (f"{self.address}: {reason}. Check that the bucket is there, and that this machine"
                " may read and write it (docs/runs.md)")
