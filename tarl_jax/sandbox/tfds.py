"""Reading prepared datasets of tensorflow-datasets.

Without TensorFlow and without a network: files are array_record (or parquet), and nothing is
downloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tarl_jax.config import InputError

_PLACE = re.compile(r"^[/.~]|://")
_PREPARE = ("python -c \"import tensorflow_datasets as tfds; tfds.builder('{}',"
            " file_format='array_record').download_and_prepare()\"")


def examples(
    entry: str, field: str, needed: Sequence[str], kept: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, features) of every example of a prepared dataset, in the order of its files.

    Args:
      entry: `NAME[/CONFIG][:VERSION]` as in `tfds.load`, found in TFDS_DATA_DIR (else TFDS's own
        default), or the folder of a prepared dataset; and behind an `@` a split, as `train[:50%]`.
        Without: all splits.
      field: the config's, for messages.
      needed: features that it must have; of these and of `kept` it yields text as str, and numbers.
    Raises: InputError naming field, entry and remedy, without the package too.
    """
    where = f"config.{field} = {entry!r}"
    name, _, split = entry.partition("@")
    found = _opened(name, where)
    features = found.info.features
    if missing := [n for n in needed if n not in features]:
        raise InputError(f"{where}: has the features {', '.join(features)}, but not"
                         f" {', '.join(missing)}: name another dataset, or prepare it with these")
    for part in [split] if split else list(found.info.splits):
        for number, example in enumerate(_source(found, part, where), 1):
            place = f"{where}: {part}, example {number}"
            wanted = [n for n in (*needed, *kept) if n in features]
            yield place, {n: _plain(example[n], place, n) for n in wanted}


def _opened(name: str, where: str) -> Any:
    """The read-only builder of a prepared dataset."""
    tfds = package(where)
    place = os.path.expanduser(name)
    try:
        if _PLACE.search(name) or Path(place, "dataset_info.json").is_file():
            found = tfds.builder_from_directory(place)
        else:
            found = tfds.builder(name, data_dir=data_dir())
    except tfds.core.DatasetNotFoundError:
        root = data_dir() or tfds.core.constants.DATA_DIR
        raise InputError(f"{where}: no dataset of this name is prepared in {root}, and none is"
                         " known: mend the name, or set TFDS_DATA_DIR to the folder that holds"
                         " it") from None
    except (OSError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"{where}: cannot be opened ({_short(error)}): give NAME[/CONFIG]"
                         "[:VERSION], or the folder that holds dataset_info.json") from None
    if not found.info.splits:
        raise InputError(f"{where}: is known but not prepared here: {_PREPARE.format(name)}")
    return found


def _source(found: Any, split: str, where: str) -> Any:
    try:
        return found.as_data_source(split)
    except NotImplementedError:
        raise InputError(f"{where}: its files are {found.info.file_format.value}, which cannot be"
                         " read here: prepare it anew elsewhere, in array_record:"
                         f" {_PREPARE.format(found.info.full_name)}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: {_short(error)}; its splits are"
                         f" {', '.join(found.info.splits)}") from None
    except ImportError as error:
        raise InputError(f"{where}: {_short(error)}: pip install -e '.[tfds]'") from None


def _plain(value: Any, place: str, name: str) -> Any:
    try:
        found = value.item() if isinstance(value, np.generic | np.ndarray) else value
        found = found.decode() if isinstance(found, bytes) else found
    except ValueError:  # several values, or no UTF-8
        found = None
    if isinstance(found, str | int | float):
        return found
    raise InputError(f"{place}: its feature {name!r} is {value!r:.40}: expected one text in UTF-8,"
                     " or one number")


def _short(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def data_dir() -> str | None:
    """TFDS_DATA_DIR as it is now (the package reads it at its import); None: TFDS's default."""
    return os.environ.get("TFDS_DATA_DIR") or None


def package(where: str) -> ModuleType:
    """tensorflow_datasets. Raises InputError, which begins with `where`, if it is not installed."""
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise InputError(f"{where}: needs tensorflow-datasets ({error}): pip install"
                         " -e '.[tfds]'") from None
    return tensorflow_datasets
