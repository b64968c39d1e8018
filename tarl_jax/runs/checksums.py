"""Checksums of the files of a checkpoint, so that a byte that has flipped is noticed."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tarl_jax.parallel.files import replace, sync_tree

FILE = "checksums.json"


def seal(folder: Path) -> None:
    """Sees to it that a folder is on the disk, and writes the SHA-256 of its files beside them.

    Raises WriteError.
    """
    sync_tree(folder)
    replace(folder / FILE, json.dumps(_sums(folder), indent=1, sort_keys=True) + "\n")


def damaged(folder: Path) -> str:
    """What is wrong with a folder that was sealed, and names the file; empty: nothing.

    Nothing is known of one that was never sealed.
    """
    record = folder / FILE
    try:
        said = json.loads(record.read_text("utf-8"))
        before = {str(name): str(value) for name, value in said.items()}
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError) as error:
        return f"{record} cannot be read ({error})"
    if missing := sorted(before.keys() - _names(folder)):
        return f"its file {missing[0]} is gone"
    try:
        now = _sums(folder)
    except OSError as error:
        return f"its file {error.filename} cannot be read ({error.strerror})"
    for name, value in sorted(before.items()):
        if now[name] != value:
            return f"its file {name} is not what was written: bytes have changed on the disk"
    return ""


def _names(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
    return sorted(str(path.relative_to(folder)) for path in found)


def _sums(folder: Path) -> dict[str, str]:
    names = _names(folder)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(lambda name: _sum(folder / name), names), strict=True))


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
