"""Safetensors files: mapped when read, streamed when written, so never whole on the host.

A file is a length (8 bytes, little-endian), that many bytes of JSON (per tensor its dtype, shape
and place) and the tensors' bytes, row-major. A checkpoint is one such file, or several and an
index that names each tensor's file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tarl_jax.config import InputError, plain

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_AGAIN = "download it again"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError if there is none."""
    try:
        return plain.read_json(path, dict)
    except InputError as error:
        raise InputError(f"{error}: {_AGAIN}") from None


def open_tensors(folder: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint by name, as a read-only array that maps the file.

    Only headers are read here; data come in as slices are copied. Raises ValueError for a folder
    without safetensors and for a file that is damaged or cut short. An index, where there is one,
    decides which file a tensor comes from.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if not (folder / SINGLE).is_file():
        raise InputError(
            f"{folder}: has neither {SINGLE} nor {INDEX}: give the folder of a Hugging Face"
            " checkpoint in safetensors format"
        )
    return dict(_open_file(folder / SINGLE))


def _indexed(folder: Path) -> dict[str, np.ndarray]:
    place = read_json(folder / INDEX).get("weight_map")
    if not isinstance(place, dict) or not place or not all(
        isinstance(file, str) and Path(file).name == file for file in place.values()
    ):
        raise InputError(f"{folder / INDEX}: has no weight_map of tensors to files: {_AGAIN}")
    files = sorted(set(place.values()))
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise InputError(
            f"{folder}: {INDEX} names {', '.join(absent)}, not there: download the missing files"
        )
    found = {
        name: array for file in files for name, array in _open_file(folder / file)
        if place.get(name) == file
    }
    if missing := sorted(place.keys() - found.keys()):
        raise InputError(f"{folder / place[missing[0]]}: lacks {missing[0]}, which {INDEX} says is"
                         f" there: {_AGAIN}")
    return found


def _open_file(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise InputError(f"{path}: is no safetensors file, or cut short: {_AGAIN}")
        try:
            header = plain.loads(file.read(length))
        except ValueError as error:
            raise InputError(f"{path}: has a damaged header: {_AGAIN}") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: has a damaged header: {_AGAIN}")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if not _is_entry(entry):
            raise InputError(f"{path}: {name} has a damaged entry: {_AGAIN}")
    data = 8 + length
    end = data + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != end:
        raise InputError(f"{path}: has {size} bytes, but by its header {end}: {_AGAIN}")
    mapped = np.memmap(path, np.uint8, "r")
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise InputError(f"{path}: {name} has dtype {entry['dtype']}: convert it to BF16")
        dtype, shape = jnp.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        if stop - start != math.prod(shape) * dtype.itemsize:
            raise InputError(f"{path}: {name} has a damaged entry: {_AGAIN}")
        yield name, np.ndarray(shape, dtype, mapped, data + start)


def _is_entry(entry: Any) -> bool:
    """Whether a header's entry has a dtype, a shape and a place inside the data."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    whole = all(type(number) is int and number >= 0 for number in (*shape, *offsets))
    return whole and offsets[0] <= offsets[1]


def fingerprint(folder: str | Path) -> str:
    """A hash that tells checkpoints apart without reading them whole.

    It is of the configuration, and of each file of weights its name, size, and a mebibyte from its
    beginning, middle and end.
    """
    found = hashlib.sha256()
    for path in sorted([*Path(folder).glob("config.json"), *Path(folder).glob("*.safetensors")]):
        size = path.stat().st_size
        found.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for at in (0, size // 2, max(size - 2**20, 0)):
                file.seek(at)
                found.update(file.read(2**20))
    return found.hexdigest()[:16]


def require_empty(folder: Path) -> None:
    """Raises InputError for a place that holds something, or can hold nothing."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists already; remove it or choose another folder")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{folder}: {above} is a file; choose another folder")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which appears in its place when it is whole, or not at all.

    Raises ValueError for a place that holds something.
    """
    require_empty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a kill left
    partial.mkdir()
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor to write; `value()` is called when its turn comes and then let go.

    dtype: of the file; None: as the other tensors of the checkpoint.
    """

    name: str
    shape: tuple[int, ...]
    value: Callable[[], np.ndarray]
    dtype: np.dtype | None = None


def write_tensors(
    folder: Path, tensors: Sequence[Tensor], dtype: np.dtype, max_shard_bytes: int
) -> None:
    """Writes a checkpoint's tensors, in order, as one file or as several with an index."""
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _size(tensor, dtype)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    count = len(shards)
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = [SINGLE]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, dtype)
    if count > 1:
        index = {
            "metadata": {"total_size": sum(_size(tensor, dtype) for tensor in tensors)},
            "weight_map": {t.name: n for n, s in zip(names, shards, strict=True) for t in s},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _size(tensor: Tensor, dtype: np.dtype) -> int:
    return math.prod(tensor.shape) * (tensor.dtype or dtype).itemsize


def _write_file(path: Path, tensors: Sequence[Tensor], dtype: np.dtype) -> None:
    codes = {name: code for code, name in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + _size(tensor, dtype)
        header[tensor.name] = {
            "dtype": codes[(tensor.dtype or dtype).name], "shape": tensor.shape,
            "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            value = np.ascontiguousarray(tensor.value(), tensor.dtype or dtype)
            value = value.reshape(tensor.shape)  # a scalar has become a list of one
            file.write(value.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
