"""Several processes, one per host of a slice, that make one run together.

All of them run the same commands in the same order. Each plays its share of the dialogues; what
they come to is then known to all, so that all learn from the same batches, of which each device
holds its rows. The first process prints and writes; the run directory and the caches are on a file
system that all of them share. With one process nothing here costs anything.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import jax
import numpy as np

from tarl_jax.config import ConfigError, MeshConfig, RunConfig, TarlError
from tarl_jax.parallel.wire import pack, unpack

T = TypeVar("T")
_BLOCK = 1 << 26  # bytes that are sent at a time: they pass through the devices' memory


class HostError(TarlError):
    """Another process of the run failed; the message says which, and how."""


def join(config: MeshConfig) -> None:
    """Meets the other processes of `config.processes`; before anything else asks JAX for devices.

    Raises ConfigError where they cannot be found.
    """
    if config.processes == 1 or jax.distributed.is_initialized():
        return
    known: dict[str, Any] = {}
    if config.processes:
        rank = os.environ.get("JAX_PROCESS_ID", "")
        if not rank.isdigit() or ":" not in os.environ.get("JAX_COORDINATOR_ADDRESS", ""):
            raise ConfigError(
                f"config.mesh.processes = {config.processes}: set JAX_COORDINATOR_ADDRESS to"
                " HOST:PORT of the first process, and JAX_PROCESS_ID to 0, 1, … in each"
            )
        known = {"num_processes": config.processes, "process_id": int(rank)}
        if "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:  # else: on every address of the host
            known["coordinator_bind_address"] = os.environ["JAX_COORDINATOR_ADDRESS"]
    try:
        jax.distributed.initialize(**known)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"config.mesh.processes = {config.processes}: {str(error).splitlines()[0]}; 0 finds the"
            " others on TPU pods and under SLURM, Open MPI or Kubernetes, 1 is a run of one process"
        ) from error


def check(config: RunConfig) -> None:
    """Raises ConfigError for what only a run of one process does."""
    if not several():
        return
    if not jax.distributed.is_initialized():
        raise ConfigError(
            f"config.mesh.processes = {config.mesh.processes}: the devices belong to"
            f" {jax.process_count()} processes; give --config.mesh.processes=0"
        )
    settings = {"rollout.outside.base_url": config.rollout.outside.base_url} | {
        f"{who}.llm.{name}": getattr(group.llm, name)
        for who, group in (("user", config.user), ("judge", config.judge))
        for name in ("record", "replay")
    }
    for name, value in settings.items():
        if value:
            raise ConfigError(f"config.{name} = {value}: only a run of one process does this, and"
                              f" there are {jax.process_count()}; leave it out")


def require_shared(folder: Path) -> None:
    """Raises ConfigError where not all processes see the same files in the folder."""
    if not several():
        return
    token = from_first(lambda: _write_token(folder))
    seen = gathered(token.is_file())
    from_first(token.unlink)
    if not all(seen):
        raise ConfigError(
            f"{folder}: process {seen.index(False)} does not see what the first one writes there;"
            " choose a folder on a file system that all hosts share"
        )


def _write_token(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".shared-{uuid.uuid4().hex}"
    token.write_text("")
    return token


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def output() -> TextIO:
    """Where this process prints what the user should read once."""
    return sys.stdout if first() else open(os.devnull, "w")


def own(folder: Path) -> Path:
    """A folder beside it where this process alone writes; the first one's is the folder itself."""
    return folder if first() else folder.with_name(f"{folder.name}-{jax.process_index()}")


def share(items: Sequence[T]) -> list[T]:
    """This process's part of what all of them hold: one run of neighbours each."""
    ends = [len(items) * n // jax.process_count() for n in range(jax.process_count() + 1)]
    return list(items[ends[jax.process_index()] : ends[jax.process_index() + 1]])


def joined(items: Sequence[T], *kinds: type) -> list[T]:
    """The items of all processes, those of the first one first; undoes `share`.

    kinds: as of `gathered`.
    """
    return [item for part in gathered(list(items), None, *kinds) for item in part]


def gathered(mine: T, failure: Exception | None = None, *kinds: type) -> list[T]:
    """What each process has, in their order; it must be one that `wire.pack` takes.

    kinds: the dataclasses in it.
    Raises: `failure`, if this process failed, HostError in the others.
    """
    if not several():
        if failure:
            raise failure
        return [mine]
    try:
        data = pack((mine, failure and f"{type(failure).__name__}: {failure}"))
    except TypeError as error:  # the others wait to hear of it
        failure = failure or error
        data = pack((None, f"{type(failure).__name__}: {failure}"))
    parts = [unpack(part, kinds) for part in _all_gather(data)]
    if failure:
        raise failure
    for rank, (_, reason) in enumerate(parts):
        if reason:
            raise HostError(f"process {rank} failed: {reason}")
    return [part for part, _ in parts]


def _all_gather(data: bytes) -> list[bytes]:
    from jax.experimental.multihost_utils import process_allgather

    sizes = np.asarray(process_allgather(np.array([len(data)], np.uint32))).ravel()
    found = [b""] * len(sizes)
    for begin in range(0, int(sizes.max()), _BLOCK):
        longest = min(int(sizes.max()) - begin, _BLOCK)
        padded = np.zeros(1 << (longest - 1).bit_length(), np.uint8)  # few shapes
        part = np.frombuffer(data[begin : begin + _BLOCK], np.uint8)
        padded[: part.size] = part
        rows = np.asarray(process_allgather(padded)).reshape(len(sizes), -1)
        found = [
            whole + row[: max(min(int(size) - begin, _BLOCK), 0)].tobytes()
            for whole, row, size in zip(found, rows, sizes, strict=True)
        ]
    return found


def from_first(make: Callable[[], T]) -> T:
    """What `make` comes to in the first process, which alone calls it.

    Raises: what it raised, HostError in the others.
    """
    if not several():
        return make()
    found: Any = None
    failure: Exception | None = None
    if first():
        try:
            found = make()
        except Exception as error:
            failure = error
    return gathered(found, failure)[0]


def total(counts: Mapping[str, float]) -> dict[str, float]:
    """The sums over all processes, key by key."""
    parts = gathered(dict(counts))
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: sum(part.get(key, 0.0) for part in parts) for key in keys}


def whole(tree: Any) -> Any:
    """The arrays of a tree on the host, whole, wherever their parts are."""
    if not several():
        return jax.device_get(tree)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True)


def zeros(shapes: Any) -> Any:
    """Arrays of zeros where the shapes say that they live; nothing is compiled for them."""

    def make(x: jax.ShapeDtypeStruct) -> jax.Array:
        part = np.zeros(x.sharding.shard_shape(x.shape), x.dtype)
        return jax.make_array_from_callback(x.shape, x.sharding, lambda _: part)

    return jax.tree.map(make, shapes)


def put(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, placed on the devices of all.

    shardings: one for all leaves, or a tree like `tree`.
    """
    if not several():
        return jax.device_put(tree, shardings)

    def place(x: Any, where: jax.sharding.Sharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            if x.sharding.device_set == where.device_set:
                return jax.device_put(x, where)
            x = whole(x)  # JAX moves nothing between sets of devices of several processes
        own = np.asarray(x)
        return jax.make_array_from_callback(own.shape, where, lambda index: own[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: place(x, shardings), tree)
    return jax.tree.map(place, tree, shardings)
