"""Devices that are not here: those of a TPU slice, and stand-ins for GPUs; and their memory."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from tarl_jax.config.errors import ConfigError

# GiB of a chip's memory that programs may use: what the compiler names when it runs out.
MEMORY_GIB = {"v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
# GiB of a GPU's memory as its driver names it, of which JAX takes a share at the start.
GPU_GIB = {"a100-40gb": 39.5, "a100-80gb": 79.3, "h100": 79.6, "h200": 140.4}
GPU_SHARE = 0.92  # XLA_PYTHON_CLIENT_MEM_FRACTION; the rest is for CUDA and its libraries


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of a slice such as "v5e:4x4". Raises ConfigError for one that is not known."""
    # Asks no metadata server and shares the compiler with other processes.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    from jax.experimental import topologies

    chip = topology.split(":")[0]
    if chip not in MEMORY_GIB:
        raise ConfigError(
            f"--topology={topology}: known TPUs: {', '.join(MEMORY_GIB)}, e.g. v5e:4x4; known"
            f" GPUs: {', '.join(GPU_GIB)}, e.g. h100 or h100:8"
        )
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
    except Exception as error:  # the plug-in raises several kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--topology={topology}: {reason}. It needs TPU's compiler (pip install libtpu; with"
            " jax 0.10.2 libtpu==0.0.42.1) and a shape that exists, e.g. v5e:4x4, v5p:2x2x2"
        ) from error
    return list(found.devices)


def stand_ins(topology: str, nodes: int = 1) -> list[Any]:
    """As many devices of this host as "h100:8" has GPUs: arrays are counted on them, none is made.

    Raises ConfigError for a count that is none.
    """
    import jax

    _, _, said = topology.partition(":")
    if said and not (said.isdecimal() and int(said)):
        raise ConfigError(f"--topology={topology}: give the GPUs of a node, e.g. h100:8")
    count = int(said or 1) * nodes
    if count > 1:
        with contextlib.suppress(RuntimeError):  # JAX has started: there are as many as there are
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ConfigError(f"--topology={topology}: this process has {len(devices)} devices to"
                          f" stand for {count}; count them in one of its own")
    return devices[:count]


def is_gpu(topology: str) -> bool:
    return topology.split(":")[0] in GPU_GIB


def devices_of(topology: str, slices: int = 1) -> list[Any]:
    return (stand_ins if is_gpu(topology) else topology_devices)(topology, slices)


def chips_of_a_host(devices: list[Any], slices: int = 1) -> int:
    """How many of the devices one host has; stand-ins for GPUs have a node for each of `slices`."""
    if devices[0].platform == "cpu":
        return len(devices) // slices
    return len(devices) // len({(getattr(d, "slice_index", 0), d.process_index) for d in devices})
