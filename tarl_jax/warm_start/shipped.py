"""Warm starts that the package keeps, so that figures can be compared and nobody waits for them.

Each is NAME.npz, its values in half precision, with NAME.json, which says what it is of and how it
was made (`python -m tarl_jax.training.ship_base`).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tarl_jax.config import InputError, TarlError
from tarl_jax.models.params import Params

FOLDER = Path(__file__).parent


def shipped_policy(digest: str) -> tuple[Params, Path] | None:
    """The policy of a warm start with this digest, and its file; None: the package has none.

    Raises TarlError where the file is not the one that its record describes.
    """
    for record in sorted(FOLDER.glob("*.json")):
        said = _record(record)
        path = record.with_suffix(".npz")
        if said["digest"] == digest and path.is_file():
            return _read(path, said), path
    return None


def shipped_encoder(name: str) -> Params:
    """The audio encoder of the policy of that name.

    Raises InputError where the package has no policy of that name, or one that only reads;
    TarlError where the file is not the one that its record describes.
    """
    record = _hearing(name)
    return _read(record.with_suffix(".npz"), _record(record))["audio"]


def encoder_hash(name: str) -> str:
    """Names the file that `shipped_encoder` reads, which is not read. Raises InputError alike."""
    return str(_record(_hearing(name))["sha256"])


def ship_policy(name: str, params: Params, record: dict[str, Any]) -> Path:
    """Puts a policy into the package, each value rounded to half precision; returns its file.

    record: its digest, and how it was made; the hash is added here.
    Raises TarlError where the package has another policy of that name, or that policy by another.
    """
    for other in FOLDER.glob("*.json"):
        if (other.stem == name) != (_record(other)["digest"] == record["digest"]):
            what = "is of another config" if other.stem == name else "is of the same config"
            raise TarlError(f"{other}: {what}; remove it and its .npz, or give the run another"
                            " config.name")
    leaves: Any = jax.tree_util.tree_leaves_with_path(params)
    arrays: dict[str, Any] = {
        "/".join(key.key for key in path): np.asarray(x).astype(np.float16) for path, x in leaves
    }
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    said = {**record, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(said, indent=2) + "\n", "utf-8")
    return path


def _record(path: Path) -> dict[str, Any]:
    """Raises TarlError for a file that is none."""
    try:
        said = json.loads(path.read_text("utf-8"))
        if isinstance(said, dict) and {"digest", "sha256"} <= said.keys():
            return said
    except ValueError:
        pass
    raise TarlError(f"{path}: is not a record of a policy; install the package again, or remove it")


def _hearing(name: str) -> Path:
    """The record of a policy that hears. Raises InputError where there is none of that name."""
    known = {path.stem: path for path in sorted(FOLDER.glob("*.json")) if _hears(path)}
    if name not in known:
        raise InputError(f"config.warm_start.speech_stage.encoder={name!r}: the package keeps no"
                         f" policy of that name that hears; choose one of {', '.join(known)}, or"
                         " '' for one that begins untaught")
    return known[name]


def _hears(record: Path) -> bool:
    path = record.with_suffix(".npz")
    if not path.is_file():
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.startswith("audio/") for name in file.namelist())


def _read(path: Path, said: dict[str, Any]) -> Params:
    """Raises TarlError where it is not the file of that record."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != said["sha256"]:
        raise TarlError(f"{path}: is not the file that {path.stem}.json describes; install the"
                        " package again, or make the warm start: --config.warm_start.make=True")
    params: Params = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            *way, last = name.split("/")
            place = params
            for step in way:
                place = place.setdefault(step, {})
            place[last] = arrays[name].astype(np.float32)
    return params
