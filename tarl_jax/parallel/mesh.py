"""The device mesh, and the one table of what lives where on it.

One device is a mesh of one. The mesh has three axes: `data` (copies of the parameters, other
rows), `fsdp` (parameters split, other rows) and `tensor` (heads, feed-forward and vocabulary
split, the same rows). Arrays name their axes logically and RULES says which mesh axes split each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tarl_jax.config import ConfigError, MeshConfig, ModelConfig

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")
RULES: dict[str, str | tuple[str, ...] | None] = {
    "rows": ROW_AXES,  # of a batch, of the engine's slots
    "tokens": "tensor",  # of activations between layers, so that what is saved of them is split
    "width": None,  # of activations
    "layers": None,
    "embed": "fsdp",  # the model's width in a parameter
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "norm": None,
    "rank": None,  # of a low-rank adapter
}


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of updates, over all devices of all hosts, or over those given, but for those that
    rollouts have to themselves.

    Raises ConfigError if the axes do not multiply to the number of devices.
    """
    config = config or MeshConfig()
    devices, _ = _sets(config, devices)
    return _laid_out(config, devices)


def rollout_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """What rollouts run on, the same devices or their own: copies of the parameters, each on some
    tensor axis.

    Raises ConfigError where `rollout_tensor` does not divide their number.
    """
    _, devices = _sets(config, devices)
    count = len(devices)
    if count % config.rollout_tensor:
        whose = "that rollouts have" if config.rollout_devices else "of this run"
        raise ConfigError(
            f"config.mesh.rollout_tensor = {config.rollout_tensor}: does not divide the"
            f" {count} device{'s' if count > 1 else ''} {whose}; give a divisor, 1 if in doubt"
            " (--config.mesh.rollout_tensor=1)"
        )
    return _laid_out(MeshConfig(data=-1, fsdp=1, tensor=config.rollout_tensor), devices)


def _sets(config: MeshConfig, devices: Sequence[Any] | None) -> tuple[list[Any], list[Any]]:
    """(the devices of updates, those of rollouts): the same, or the latter each process's last.

    Raises ConfigError where a process would have none for updates.
    """
    devices = jax.devices() if devices is None else list(devices)
    wanted = config.rollout_devices
    if not wanted:
        return devices, devices
    owners: dict[int, list[Any]] = {}
    for device in devices:
        owners.setdefault(device.process_index, []).append(device)
    each, rest = divmod(wanted, len(owners))
    if rest or any(each >= len(own) for own in owners.values()):
        have = f"{len(devices)} device{'s' if len(devices) > 1 else ''}"
        several = f" of {len(owners)} processes, which give as many each" * (len(owners) > 1)
        raise ConfigError(
            f"config.mesh.rollout_devices = {wanted}: this run has {have}{several}, and updates"
            " keep at least one of each process; give fewer, or 0: both on the same"
            " (--config.mesh.rollout_devices=0)"
        )
    playing = {id(device) for own in owners.values() for device in own[-each:]}
    return ([device for device in devices if id(device) not in playing],
            [device for device in devices if id(device) in playing])


def _laid_out(config: MeshConfig, devices: list[Any]) -> Mesh:
    sizes = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([s for s in sizes if s > 0]))
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        left = f", which mesh.rollout_devices = {config.rollout_devices} leaves to updates" * bool(
            config.rollout_devices
        )
        raise ConfigError(
            f"config.mesh: data {config.data} x fsdp {config.fsdp} x tensor {config.tensor} does"
            f" not make {len(devices)} devices{left}; set one of them to -1 to have it follow"
        )
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def spec(*axes: str | None) -> PartitionSpec:
    """Of an array with these logical axes (None: not split).

    Raises ValueError for an axis that is not in RULES, and where one mesh axis would split two.
    """
    parts: list[str | tuple[str, ...] | None] = []
    used: dict[str, str | None] = {}  # mesh axis -> the logical axis that it splits
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r} in {axes}; known: {', '.join(RULES)}")
        part = RULES[axis] if axis is not None else None
        for name in (part,) if isinstance(part, str) else part or ():
            if name in used:
                raise ValueError(
                    f"mesh axis {name!r} would split both {used[name]!r} and {axis!r} of {axes}"
                )
            used[name] = axis
        parts.append(part)
    return PartitionSpec(*parts)


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    return NamedSharding(mesh, spec(*axes))


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """Shardings of a tree whose leaves are tuples of logical axes."""
    return jax.tree.map(lambda axes: sharding(mesh, *axes), tree, is_leaf=_is_axes)


def _is_axes(leaf: Any) -> bool:
    return isinstance(leaf, tuple) and all(a is None or isinstance(a, str) for a in leaf)


def place_shapes(shapes: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of `shapes` that say where the arrays would be."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings
    )


def bytes_on_device(shapes: Any) -> int:
    """Bytes that one device holds of arrays, or of shapes with shardings."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(shapes)
    )


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis split over the row axes. Its size must be a multiple of `row_shards`."""
    return sharding(mesh, "rows")


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the mesh splits rows."""
    return int(np.prod([mesh.shape[name] for name in ROW_AXES]))


def round_up(rows: int, mesh: Mesh) -> int:
    """The smallest number of rows >= `rows` that the mesh splits evenly."""
    shards = row_shards(mesh)
    return -(-rows // shards) * shards


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fixes how `x` is split inside a jitted function; does nothing outside `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, spec(*axes))


def check_fits(
    mesh: Mesh, model: ModelConfig, vocab_size: int, tensor: str = "tensor"
) -> None:
    """Raises ConfigError if the mesh cannot split the model evenly.

    tensor: the field of the config that the mesh's axis of this name is.
    """
    sizes = {
        "model.d_model": ("fsdp", model.d_model),
        "model.num_heads": ("tensor", model.num_heads),
        "model.num_kv_heads": ("tensor", model.num_kv_heads),
        "model.d_ff": ("tensor", model.d_ff),
        "the vocabulary": ("tensor", vocab_size),
        **({"model.audio.d_model": ("fsdp", model.audio.d_model)} if model.audio else {}),
    }
    for name, (axis, size) in sizes.items():
        if size % mesh.shape[axis]:
            field = tensor if axis == "tensor" else axis
            raise ConfigError(
                f"config.mesh.{field} = {mesh.shape[axis]}: does not divide {name} = {size}"
            )
