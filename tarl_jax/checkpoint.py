"""State on disk, by Orbax: whole checkpoints of a run, and bare parameters.

A checkpoint is written to a temporary folder and renamed, so that a kill at any moment leaves the
one before it whole.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax

from tarl_jax.config import CheckpointConfig


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit; the message names it and the remedy."""


def save_params(folder: Path, params: Any) -> None:
    """Writes a parameter tree; the folder appears only when it is whole."""
    import orbax.checkpoint as ocp

    folder.parent.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), params, force=True)


def load_params(folder: Path, like: Any) -> Any:
    """Reads a tree of the shapes of `like`. Raises CheckpointError if it is not there or differs."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return _restore(lambda: checkpointer.restore(folder.absolute(), _abstract(like)), folder)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _restore(read: Any, folder: Path) -> Any:
    try:
        return read()
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no such checkpoint") from error
    except Exception as error:  # Orbax raises many kinds; all mean that this one is unusable
        raise CheckpointError(
            f"{folder}: cannot be read, or was written with another model or optimiser"
            f" ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        ) from error
