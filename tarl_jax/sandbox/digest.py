"""τ-bench's state hash (arXiv 2406.12045), without rendering the whole database each time.

The hash is SHA-256 of `str(x)`, where x turns each dict into a tuple of (key, value) pairs sorted
by key and each list into a tuple, recursively. What comes before the first record that differs is
the same text for all states, so its digest is kept; only what follows is hashed again.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_CHUNK = 16  # records: fewer would keep more digests, more would join more text for a change


def frozen(value: Any) -> Any:
    """The value as nested tuples, whose `repr` is what the hash is taken of."""
    if isinstance(value, dict):
        return tuple((key, frozen(item)) for key, item in sorted(value.items()))
    if isinstance(value, list):
        return tuple(frozen(item) for item in value)
    return value


def _entry(key: str, record: Any) -> str:
    return repr((key, frozen(record)))


@dataclass(frozen=True)
class _Chunk:
    """Neighbouring records of a table.

    entries: key -> text of the (key, record) pair, sorted.
    head: the text before the first of them; sole, last: whether no other chunk of the table is
    there, or comes later.
    """

    entries: dict[str, str]
    head: str
    sole: bool
    last: bool

    def text(self, changed: Mapping[str, str]) -> bytes:
        """The whole text, with the entries of `changed` in place of these or added to them."""
        entries = {**self.entries, **changed}
        if len(entries) > len(self.entries):  # those that are new came last
            entries = dict(sorted(entries.items()))
        comma = "," if self.sole and len(entries) == 1 else ""
        return f"{self.head}{', '.join(entries.values())}{comma}{'))' * self.last}".encode()


class Digest:
    """Hashes a database and variations of it. The database must not be written meanwhile."""

    def __init__(self, database: Mapping[str, Mapping[str, Any]]):
        self._database = database

    def hexdigest(self, changes: Mapping[tuple[str, str], Any]) -> str:
        """The hash of the database with `changes`, (table, key) -> record, written into it."""
        changed: dict[int, dict[str, str]] = {}  # index of a chunk -> what changes in it
        for (table, key), record in changes.items():
            start, keys = self._index[table]
            place = start + max(0, bisect_right(keys, key) - 1)
            changed.setdefault(place, {})[key] = _entry(key, record)
        first = min(changed, default=len(self._chunks))
        digest = self._before[first].copy()
        for place in range(first, len(self._chunks)):
            if place in changed:
                digest.update(self._chunks[place].text(changed[place]))
            else:
                digest.update(self._texts[place])
        digest.update({0: b"()", 1: b",)"}.get(len(self._database), b")"))
        return digest.hexdigest()

    @cached_property
    def _chunks(self) -> list[_Chunk]:
        """The database in the order of the text; a table without records is one empty chunk."""
        chunks: list[_Chunk] = []
        for table, records in sorted(self._database.items()):
            keys = sorted(records)
            for at in range(0, max(1, len(keys)), _CHUNK):
                entries = {key: _entry(key, records[key]) for key in keys[at : at + _CHUNK]}
                head = ", " if at else f"{', ' if chunks else '('}({table!r}, ("
                sole, last = len(keys) <= _CHUNK, at + _CHUNK >= len(keys)
                chunks.append(_Chunk(entries, head, sole, last))
        return chunks

    @cached_property
    def _index(self) -> dict[str, tuple[int, list[str]]]:
        """table -> index of its first chunk, and the first key of each of its chunks."""
        index, start = {}, 0
        for table, records in sorted(self._database.items()):
            keys = sorted(records)[::_CHUNK] or [""]
            index[table] = start, keys
            start += len(keys)
        return index

    @cached_property
    def _texts(self) -> list[bytes]:
        return [chunk.text({}) for chunk in self._chunks]

    @cached_property
    def _before(self) -> list["hashlib._Hash"]:
        """The digest of all text before each chunk, and at last of the whole."""
        digests = [hashlib.sha256()]
        for text in self._texts:
            digests.append(digests[-1].copy())
            digests[-1].update(text)
        return digests
