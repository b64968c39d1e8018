"""The device mesh, and where arrays live on it.

One device is a mesh of one. Rows of a batch (episodes, engine slots) are split over the `data`
axis; parameters are replicated.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"


def make_mesh() -> Mesh:
    """A mesh over all devices of all hosts."""
    return Mesh(np.array(jax.devices()), (DATA,), axis_types=(AxisType.Auto,))


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis split over `data`. Its size must be a multiple of the mesh's."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def round_up(rows: int, mesh: Mesh) -> int:
    """The smallest number of rows >= `rows` that the mesh splits evenly."""
    size = mesh.shape[DATA]
    return -(-rows // size) * size
