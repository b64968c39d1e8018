"""`python -m tarl_jax.sandbox.prepare FILE`: a task file as a dataset of tensorflow-datasets."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tarl_jax.config import InputError
from tarl_jax.sandbox import tfds
from tarl_jax.sandbox.tasks import load_tasks


def write(file: str | Path, name: str, data_dir: str | None = None) -> Path:
    """Prepares the tasks of a file, as its review leaves them, as the dataset `tarl_tasks/name`.

    Each example is a text feature `task`, the JSON line; splits are the tasks' own, "train" and
    "held_out". Returns the folder. Raises InputError for a broken file, a name that TFDS cannot
    have, or one that is there already.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise InputError(f"--name={name}: use small letters, digits, _ and -")
    found = load_tasks(file)
    package = tfds.package(f"--name={name}")
    from tarl_jax.sandbox.tfds_builder import builder

    made = builder(found, name, data_dir or tfds.data_dir())
    if made.data_path.exists():
        raise InputError(f"{made.data_path}: is there already: choose another --name, or delete it")
    package.disable_progress_bar()
    made.download_and_prepare(
        download_config=package.download.DownloadConfig(try_download_gcs=False)
    )
    return Path(made.data_path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 for bad input."""
    p = argparse.ArgumentParser(
        "python -m tarl_jax.sandbox.prepare",
        description="Prepare a task file as the dataset tarl_tasks/NAME of tensorflow-datasets.",
    )
    p.add_argument("file", type=Path, help="JSON lines, as tarl_jax.sandbox.synthesis makes them")
    p.add_argument("--name", help="NAME (default: the file's)")
    p.add_argument("--data_dir", help="where (default: TFDS_DATA_DIR, else TFDS's own)")
    args = p.parse_args(argv)
    try:
        name = args.name or args.file.stem.lower()
        folder = write(args.file, name, args.data_dir)
    except (ValueError, OSError) as error:
        print(f"tarl_jax.sandbox.prepare: {error}", file=sys.stderr)
        return 2
    print(f"{folder}\ntrain on it: --config.tasks.tfds=tarl_tasks/{name}"
          + (f" with TFDS_DATA_DIR={args.data_dir}" if args.data_dir else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
