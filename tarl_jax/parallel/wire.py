"""What processes of a run tell each other, as bytes that can hold nothing but data.

JSON for what is small, arrays and bytes as they are behind it. Reading calls no code but the
constructors of the dataclasses that the reader expects.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # makes bfloat16 and its like known to NumPy by name
import numpy as np

_HEAD = 8  # bytes of the length of the JSON


def pack(value: Any) -> bytes:
    """None, numbers, texts, bytes, paths, arrays, and lists, tuples, dicts and dataclasses of them.

    Raises TypeError, which names it, for anything else.
    """
    blobs: list[bytes] = []
    text = json.dumps(_plain(value, blobs)).encode()
    return b"".join([len(text).to_bytes(_HEAD, "little"), text, *blobs])


def unpack(data: bytes, kinds: Iterable[type] = ()) -> Any:
    """What was packed; arrays can be written to.

    kinds: dataclasses that may be in it, with those that their fields name.
    Raises ValueError for another dataclass, or bytes that `pack` did not make.
    """
    end = _HEAD + int.from_bytes(data[:_HEAD], "little")
    classes = {one.__name__: one for kind in kinds for one in _within(kind)}
    return _value(json.loads(data[_HEAD:end]), memoryview(data)[end:], classes)


def _plain(value: Any, blobs: list[bytes]) -> Any:
    """What JSON can hold: lists stand for themselves, an object says what it is."""

    def blob(content: bytes) -> list[int]:
        begin = sum(map(len, blobs))
        blobs.append(content)
        return [begin, begin + len(content)]

    match value:
        case None | bool() | str():
            return value
        case int() | float() if type(value) in (int, float):
            return value
        case list():
            return [_plain(item, blobs) for item in value]
        case tuple():
            return {"tuple": [_plain(item, blobs) for item in value]}
        case Mapping():
            pairs = [[_plain(k, blobs), _plain(v, blobs)] for k, v in value.items()]
            return {"dict": pairs}
        case bytes():
            return {"bytes": blob(value)}
        case Path():
            return {"path": str(value)}
        case np.ndarray() | np.generic() if value.dtype.kind != "O":
            place = blob(np.ascontiguousarray(value).tobytes())
            name = "scalar" if isinstance(value, np.generic) else "array"
            return {name: [value.dtype.name, list(value.shape), *place]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name), blobs) for f in dataclasses.fields(value)}
        return {"record": [type(value).__name__, fields]}
    raise TypeError(f"{type(value).__name__} cannot be told to another process: {value!r:.80}")


def _value(plain: Any, blobs: memoryview, classes: Mapping[str, type]) -> Any:
    if isinstance(plain, list):
        return [_value(item, blobs, classes) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    match kind:
        case "tuple":
            return tuple(_value(item, blobs, classes) for item in content)
        case "dict":
            return {_value(k, blobs, classes): _value(v, blobs, classes) for k, v in content}
        case "bytes":
            return bytes(blobs[content[0] : content[1]])
        case "path":
            return Path(content)
        case "array" | "scalar":
            name, shape, begin, end = content
            found = np.frombuffer(blobs[begin:end], np.dtype(name)).reshape(shape).copy()
            return found if kind == "array" else found[()]
        case "record":
            name, fields = content
            if name in classes:
                return classes[name](**{k: _value(v, blobs, classes) for k, v in fields.items()})
            raise ValueError(f"a {name} came from another process, and nobody expects one here")
    raise ValueError(f"{kind!r} is nothing that a process tells another")


def _within(kind: type) -> set[type]:
    """A dataclass, and those that its fields name, at any depth."""
    found: set[type] = set()

    def walk(hint: Any) -> None:
        for part in typing.get_args(hint):
            walk(part)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in found:
            found.add(hint)
            for inner in typing.get_type_hints(hint).values():
                walk(inner)

    walk(kind)
    return found
