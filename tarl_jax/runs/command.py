"""What the commands of a run share: its config and parts from the command line.

A command is told a run in one of two ways: by its directory, which knows its config, or by a config
file. `--config.KEY=VALUE` changes a field of either. Everything is checked before anything is
built, and `--help` lists every field.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import inspect
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from tarl_jax.config import ConfigError, RunConfig, from_config_dict
from tarl_jax.config.fields import described, nearest, overridden
from tarl_jax.parallel.process import exit_status
from tarl_jax.parallel.store import is_address
from tarl_jax.runs import directory
from tarl_jax.runs.copies import fetched

Job = Callable[[RunConfig, Any, argparse.Namespace], Any]

_EXAMPLES = """\
RUN is a run's directory, or its address (gs://BUCKET/RUN, s3://BUCKET/RUN): its config and its
parts are those that it began with. --config.KEY=VALUE changes a field; --config=FILE takes the
config of a file instead, and FILE:SIZE one of its sizes (tiny, qwen3_0_6b, …).

"""


def run_with_config(
    doc: str, job: Job, options: Callable[[argparse.ArgumentParser], None] | None = None
) -> NoReturn:
    """Reads the command line, and runs `job(config, parts, given)`.

    Args:
      doc: the command's docstring, which --help shows.
      options: adds the command's own arguments to the parser; `given` has what came of them.
      job: parts: what `get_parts()` of the config file returns; None where it defines none.

    The process ends with the status that `exit_status` gives.
    """
    argv = sys.argv[1:]
    sys.exit(exit_status(lambda: _command(argv, doc, job, options), "--debug" in argv))


def load_parts(path: str | Path) -> Any:
    """What `get_parts()` of a config file returns; None where the file defines no such function."""
    return _parts_of(_module(Path(path)))


class Parser(argparse.ArgumentParser):
    """argparse's, which raises ConfigError where the command line is wrong."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _command(
    argv: Sequence[str], doc: str, job: Job,
    options: Callable[[argparse.ArgumentParser], None] | None,
) -> None:
    overrides, rest = _overrides(argv)
    wants_help = any(a in ("-h", "--help") for a in rest)
    parser = _parser(doc, described(_width()) if wants_help else "")
    if options:
        options(parser)
    given, unknown = parser.parse_known_args(rest)
    if unknown:
        raise ConfigError(unknown_argument(unknown[0], parser))
    config, parts = _config(given, overrides)
    if given.print_config:
        print(json.dumps(directory.flat(config), indent=2))
        return
    _start(config)
    job(config, parts, given)


def _parser(doc: str, fields: str) -> Parser:
    spec = sys.modules["__main__"].__spec__
    parser = Parser(
        f"python -m {spec.name if spec else sys.argv[0]}", description=doc,
        epilog=_EXAMPLES + fields, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [RUN | --config=FILE[:SIZE] [--workdir=RUN]] [--config.KEY=VALUE …]"
        " [options]", allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", nargs="?", help="the directory of a run")
    parser.add_argument("--config", metavar="FILE[:SIZE]", help="e.g. configs/grpo_tarl.py:tiny")
    parser.add_argument("--workdir", metavar="RUN", help="the directory of the run; main makes it")
    parser.add_argument("--print_config", action="store_true",
                        help="print the whole config as JSON, and do nothing else")
    parser.add_argument("--dry_run", action="store_true", help="check all, say devices, sizes,"
                        " lengths and cost, and write nothing")
    parser.add_argument("--debug", action="store_true",
                        help="show the traceback of every error; TARL_DEBUG=1 does too")
    return parser


def _width() -> int:
    return min(shutil.get_terminal_size((100, 0)).columns, 100)


def _overrides(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """({key: text} of --config.KEY=VALUE or --config.KEY VALUE, the other arguments)."""
    found: dict[str, str] = {}
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals:
            following = next(arguments, None)
            if following is None:
                raise ConfigError(f"{argument}: give it a value, as in {argument}=VALUE")
            text = following
        found[key] = text
    overridden({}, found)  # its keys
    return found, rest


def unknown_argument(argument: str, parser: argparse.ArgumentParser) -> str:
    """What to say of an argument that no command has."""
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}; flags look like --config.rl.steps=10"
    name = argument.lstrip("-").partition("=")[0]
    flags = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(f"--{name}", flags, 1)
    has_config = "--config" in flags
    hint = (f"did you mean {near[0]}?" if near else nearest(name) if has_config
            else "--help lists all")
    return f"unknown flag --{name}: {hint}"


def _config(given: argparse.Namespace, overrides: Mapping[str, str]) -> tuple[RunConfig, Any]:
    """The run's config and parts, by its directory or a file, with the overrides in place."""
    if given.run and given.workdir and Path(given.run) != Path(given.workdir):
        raise ConfigError(f"RUN {given.run} and --workdir={given.workdir}: name one run")
    workdir = given.run or given.workdir
    if given.config is None:
        if not workdir:
            raise ConfigError("name a run, or a config file: --config=configs/grpo_tarl.py")
        here = fetched(workdir, _cache(overrides)) if is_address(workdir) else Path(workdir)
        kept, file = directory.read_run(here.expanduser())
        return _checked(kept, overrides, workdir), load_parts(file) if file else None
    path, _, size = given.config.partition(":")
    if not Path(path).is_file():
        near = ", ".join(sorted(map(str, Path("configs").glob("*.py")))) or "none"
        raise ConfigError(f"config file {path} does not exist; here there are: {near}")
    module = _module(Path(path))
    data = _made(module, path, size)
    return _checked(data, overrides, workdir), _parts_of(module)


def _checked(data: Mapping[str, Any], overrides: Mapping[str, str], workdir: str | None
             ) -> RunConfig:
    if workdir:
        overrides = {**overrides, "workdir": workdir}
    values = overridden(data, overrides)
    address = str(values.get("workdir", ""))
    if is_address(address):
        values["workdir"] = str(fetched(address, _cache(overrides)))
        values["log"] = {**values.get("log", {}), "copy_to": address}
    config = from_config_dict(values)
    if is_address(address) and config.mesh.processes != 1:
        raise ConfigError(f"--workdir={address}: processes of several hosts share a folder: give"
                          f" --workdir=FOLDER, which all see, and --config.log.copy_to={address}")
    if config.model.pretrained:
        from tarl_jax.models.hf_config import completed

        config = completed(config, given=overrides)
    return config


def _cache(overrides: Mapping[str, str]) -> str:
    """Where this machine keeps the folders of runs at addresses."""
    return overrides.get("warm_start.cache_dir", RunConfig().warm_start.cache_dir)


def _made(module: ModuleType, path: str, size: str) -> Mapping[str, Any]:
    """What `get_config` of a config file makes, as a nested mapping."""
    make = getattr(module, "get_config", None)
    if make is None:
        raise ConfigError(f"{path}: defines no get_config(size), which returns the config")
    if size and not inspect.signature(make).parameters:
        raise ConfigError(f"{path}: its get_config() takes no size: leave out ':{size}'")
    try:
        data = make(size) if size else make()
    except (AttributeError, KeyError) as error:  # of a ConfigDict that lacks a key
        if "ml_collections" not in traceback.extract_tb(error.__traceback__)[-1].filename:
            raise  # a fault of the file's own
        found = re.search(r"\w+", str(error).strip("'\""))
        key = found[0] if found else ""
        raise ConfigError(f"{path}: unknown config key {key!r}: {nearest(key)}") from error
    return data.to_dict() if hasattr(data, "to_dict") else data


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"parts_of_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses, `inspect` and pickle look for what the file defines.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _parts_of(module: ModuleType) -> Any:
    return module.get_parts() if hasattr(module, "get_parts") else None


def _start(config: RunConfig) -> None:
    """Joins the run's processes, and lets XLA reuse programs that an earlier start compiled."""
    from absl import logging

    logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
    if config.mesh.processes != 1:
        from tarl_jax.parallel import hosts

        hosts.join(config.mesh)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import jax

        folder = Path(config.warm_start.cache_dir).expanduser() / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
