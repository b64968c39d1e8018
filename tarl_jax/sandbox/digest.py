"""The benchmarks' state hashes, without rendering the whole database each time.

τ-bench (arXiv 2406.12045): SHA-256 of `str(x)`, where x turns each dict into a tuple of (key,
value) pairs sorted by key and each list into a tuple, recursively. τ²-bench (2506.07982): SHA-256
of the database as JSON with sorted keys. What comes before the first record that differs is the
same text for all states, so its digest is kept; only what follows is hashed again.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Notation:
    """How a benchmark writes a database as text.

    entry: a record under its key; sole: what follows it in a table that holds no other.
    head: what comes before the first record of a table, by its name; end: after the last.
    start: what comes before the first table; ends: after the last, by the number of tables (-1: of
    any other number).
    listed: a table is a list in the database's order, and not an object with sorted keys.
    """

    entry: Callable[[str, Any], str]
    head: Callable[[str], str]
    start: str
    end: str
    ends: Mapping[int, str]
    sole: str
    listed: bool = False


tau = Notation(
    entry=lambda key, record: repr((key, frozen(record))),
    head=lambda table: f"({table!r}, (",
    start="(", end="))", ends={0: "()", 1: ",)", -1: ")"}, sole=",",
)  # fmt: skip
tau2 = Notation(
    entry=lambda key, record: f"{json.dumps(key)}: "
    + json.dumps(record, sort_keys=True, default=str),
    head=lambda table: f"{json.dumps(table)}: {{",
    start="{", end="}", ends={0: "{}", -1: "}"}, sole="",
)  # fmt: skip
# τ²'s databases whose tables are lists, and one whose records have no tables.
tau2_lists = replace(
    tau2, entry=lambda key, record: json.dumps(record, sort_keys=True, default=str),
    head=lambda table: f"{json.dumps(table)}: [", end="]", listed=True,
)  # fmt: skip
tau2_records = replace(tau2, head=lambda table: "", end="")


@dataclass(frozen=True)
class _Chunk:
    """Neighbouring records of a table.

    entries: key -> text of the (key, record) pair, sorted.
    head: the text before the first of them; end: after the last; sole: after one that is alone.
    """

    entries: dict[str, str]
    head: str
    end: str
    sole: str
    listed: bool

    def text(self, changed: Mapping[str, str]) -> bytes:
        """The whole text, with the entries of `changed` in place of these or added to them."""
        entries = {**self.entries, **changed}
        if len(entries) > len(self.entries) and not self.listed:  # those that are new came last
            entries = dict(sorted(entries.items()))
        comma = self.sole if len(entries) == 1 else ""
        return f"{self.head}{', '.join(entries.values())}{comma}{self.end}".encode()


class Digest:
    """Hashes a database and variations of it. The database must not be written meanwhile."""

    def __init__(self, database: Mapping[str, Mapping[str, Any]], notation: Notation):
        self._database = database
        self._notation = notation

    def hexdigest(self, changes: Mapping[tuple[str, str], Any]) -> str:
        """The hash of the database with `changes`, (table, key) -> record, written into it.

        Changes of tables that are not this database's do not count.
        """
        changed: dict[int, dict[str, str]] = {}  # index of a chunk -> what changes in it
        for (table, key), record in changes.items():
            if table not in self._index:
                continue
            start, place_of = self._index[table]
            place = start + place_of(key)
            changed.setdefault(place, {})[key] = self._notation.entry(key, record)
        first = min(changed, default=len(self._chunks))
        digest = self._before[first].copy()
        for place in range(first, len(self._chunks)):
            if place in changed:
                digest.update(self._chunks[place].text(changed[place]))
            else:
                digest.update(self._texts[place])
        ends = self._notation.ends
        digest.update(ends.get(len(self._database), ends[-1]).encode())
        return digest.hexdigest()

    @cached_property
    def _chunks(self) -> list[_Chunk]:
        """The database in the order of the text; a table without records is one empty chunk."""
        chunks: list[_Chunk] = []
        write = self._notation
        for table, records in sorted(self._database.items()):
            keys = list(records) if write.listed else sorted(records)
            for at in range(0, max(1, len(keys)), _CHUNK):
                entries = {key: write.entry(key, records[key]) for key in keys[at : at + _CHUNK]}
                head = ", " if at else f"{', ' if chunks else write.start}{write.head(table)}"
                end = write.end if at + _CHUNK >= len(keys) else ""
                sole = write.sole if len(keys) <= _CHUNK else ""
                chunks.append(_Chunk(entries, head, end, sole, write.listed))
        return chunks

    @cached_property
    def _index(self) -> dict[str, tuple[int, Callable[[str], int]]]:
        """table -> index of its first chunk, and what tells which of its chunks a key is in."""
        index, start = {}, 0
        for table, records in sorted(self._database.items()):
            place_of = _in_list(list(records)) if self._notation.listed else _in_order(records)
            index[table] = start, place_of
            start += -(-max(1, len(records)) // _CHUNK)
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


def _in_order(records: Mapping[str, Any]) -> Callable[[str], int]:
    firsts = sorted(records)[::_CHUNK]
    return lambda key: max(0, bisect_right(firsts, key) - 1)


def _in_list(keys: list[str]) -> Callable[[str], int]:
    """A key that is new comes last."""
    places = {key: at // _CHUNK for at, key in enumerate(keys)}
    last = max(0, len(keys) - 1) // _CHUNK
    return lambda key: places.get(key, last)
