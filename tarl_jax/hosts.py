"""Several processes, one per host of a slice, that make one run together.

All of them run the same commands in the same order. Each plays its share of the dialogues; what
they come to is then known to all, so that all learn from the same batches, of which each device
holds its rows. The first process prints and writes; the run directory and the caches are on a file
system that all of them share. With one process nothing here costs anything.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from tarl_jax.config import ConfigError, MeshConfig, RunConfig

T = TypeVar("T")


def join(config: MeshConfig) -> None:
    """Meets the other processes of `config.processes`; before anything else asks JAX for devices.

    Raises ConfigError where they cannot be found.
    """
    if config.processes == 1 or jax.distributed.is_initialized():
        return
    known: dict[str, Any] = {}
    if config.processes:
        rank = os.environ.get("JAX_PROCESS_ID", "")
        if not rank.isdigit() or "JAX_COORDINATOR_ADDRESS" not in os.environ:
            raise ConfigError(
                f"config.mesh.processes = {config.processes}: set JAX_COORDINATOR_ADDRESS to"
                " HOST:PORT of the first process, and JAX_PROCESS_ID to 0, 1, … in each"
            )
        known = {"num_processes": config.processes, "process_id": int(rank)}
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
    settings = {"rl.ahead": config.rl.ahead} | {
        f"{who}.llm.{name}": getattr(group.llm, name)
        for who, group in (("user", config.user), ("judge", config.judge))
        for name in ("record", "replay")
    }
    for name, value in settings.items():
        if value:
            raise ConfigError(f"config.{name} = {value}: only a run of one process does this, and"
                              f" there are {jax.process_count()}; leave it out")


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def share(items: Sequence[T]) -> list[T]:
    """This process's part of what all of them hold: one run of neighbours each."""
    ends = [len(items) * n // jax.process_count() for n in range(jax.process_count() + 1)]
    return list(items[ends[jax.process_index()] : ends[jax.process_index() + 1]])


def joined(items: Sequence[T]) -> list[T]:
    """The items of all processes, those of the first one first; undoes `share`."""
    return [item for part in gathered(items) for item in part]


def gathered(mine: T) -> list[T]:
    """What each process has, in their order; it must be one that can be pickled."""
    if not several():
        return [mine]
    from jax.experimental.multihost_utils import process_allgather

    data = np.frombuffer(pickle.dumps(mine), np.uint8)
    sizes = np.asarray(process_allgather(np.array([data.size], np.int32))).ravel()
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)  # few shapes
    padded[: data.size] = data
    rows = np.asarray(process_allgather(padded)).reshape(len(sizes), -1)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def from_first(make: Callable[[], T]) -> T:
    """What `make` comes to in the first process, which alone calls it; raises what it raised."""
    if not several():
        return make()
    found: Any = None
    if first():
        try:
            found = make()
        except Exception as error:
            found = error
    found = gathered(found)[0]
    if isinstance(found, Exception):
        raise found
    return found


def total(counts: Mapping[str, float]) -> dict[str, float]:
    """The sums over all processes, key by key."""
    parts = gathered(dict(counts))
    return {key: sum(part.get(key, 0.0) for part in parts) for key in parts[0]}


def put(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, placed on the devices of all.

    shardings: one for all leaves, or a tree like `tree`.
    """
    if not several():
        return jax.device_put(tree, shardings)

    def place(x: Any, where: jax.sharding.Sharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, where)
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, where, lambda index: whole[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: place(x, shardings), tree)
    return jax.tree.map(place, tree, shardings)
