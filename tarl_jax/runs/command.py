"""What the commands of a run share: its config and parts from the command line."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from tarl_jax.config import ConfigError, RunConfig, TarlError, from_config_dict
from tarl_jax.parallel.process import exit_status


def run_with_config(doc: str, job: Callable[[RunConfig, Any], Any]) -> None:
    """Defines --config, --workdir and --debug, and runs `job(config, parts)`.

    parts: what `get_parts()` of the config file returns; None where it defines none.
    The process ends with the status that `exit_status` gives.
    """
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config", None, "The config file, e.g. configs/grpo_tarl.py or configs/grpo_tarl.py:tiny."
    )
    flags.DEFINE_string(
        "workdir", None, "The run directory; one that holds an earlier run continues it."
    )
    flags.DEFINE_bool("debug", False, "Show the traceback of every error; TARL_DEBUG=1 does too.")
    for name in ("config", "workdir", "debug"):  # shown by --help
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    sys.modules["__main__"].__doc__ = doc

    def go(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO

        def whole() -> None:
            if len(argv) > 1:
                raise ConfigError(
                    f"unexpected argument {argv[1]!r}; flags look like --config.rl.steps=10"
                )
            _run(job)

        sys.exit(exit_status(whole, flags.FLAGS.debug))

    app.run(go, flags_parser=_parse)


def load_parts(path: str | Path) -> Any:
    """What `get_parts()` of a config file returns; None where the file defines no such function."""
    spec = importlib.util.spec_from_file_location(f"parts_of_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None  # the config was read from this file
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses, `inspect` and pickle look for what the file defines.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.get_parts() if hasattr(module, "get_parts") else None


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with errors in the config or its overrides as one line."""
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    rest: list[str] = []

    def parse() -> None:
        if given and not Path(given[-1].split(":")[0]).is_file():
            near = ", ".join(sorted(map(str, Path("configs").glob("*.py")))) or "none"
            raise ConfigError(
                f"config file {given[-1].split(':')[0]} does not exist; here there are: {near}"
            )
        try:
            rest.extend(flags.FLAGS(argv))
        except (KeyError, AttributeError) as error:
            if "ml_collections" not in traceback.extract_tb(error.__traceback__)[-1].filename:
                raise  # a fault of the config file's own
            words = re.findall(r"\w+", re.sub(r"\\n", " ", str(error)))
            hint = f"; did you mean {words[4]!r}?" if words[1:4] == ["Did", "you", "mean"] else ""
            raise ConfigError(f"unknown config key {words[0] if words else ''!r}{hint}") from error
        except (flags.Error, TypeError, ValueError, OSError) as error:
            cause: BaseException = error
            while cause.__context__ is not None:
                cause = cause.__context__
            if isinstance(cause, TarlError):
                raise cause from None
            if "parsing config file" in str(error):
                raise cause from None  # with the traceback that leads into the config file
            raise ConfigError(next(filter(str.strip, str(error).splitlines()), repr(error))
                              ) from error
        if flags.FLAGS.config is None:
            raise ConfigError("--config is required, e.g. --config=configs/grpo_tarl.py")

    status = exit_status(parse, "--debug" in argv)
    if status:
        sys.exit(status)
    return rest


def _run(job: Callable[[RunConfig, Any], Any]) -> None:
    config = from_config_dict(flags.FLAGS.config)
    if flags.FLAGS.workdir:
        config = dataclasses.replace(config, workdir=flags.FLAGS.workdir)
    flag: Any = flags.FLAGS["config"]
    if config.model.pretrained:
        from tarl_jax.models.hf_config import completed

        config = completed(config, given=flag.override_values)
    parts = load_parts(flag.config_filename.split(":")[0])
    if config.mesh.processes != 1:
        from tarl_jax.parallel import hosts

        hosts.join(config.mesh)
    _keep_compiled_programs(Path(config.warm_start.cache_dir).expanduser())
    job(config, parts)


def _keep_compiled_programs(cache_dir: Path) -> None:
    """Lets XLA reuse programs that an earlier start compiled."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
