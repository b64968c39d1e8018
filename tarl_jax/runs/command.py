"""What the commands share: a config from the command line, and errors as one message."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from tarl_jax.config import ConfigError, RunConfig, from_config_dict
from tarl_jax.runs.stopping import Interrupted


def run_with_config(doc: str, job: Callable[[RunConfig], Any]) -> None:
    """Defines --config and --workdir, reads the config, runs `job`, and maps errors to exit codes.

    Exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted by Ctrl-C, 143
    by SIGTERM.
    """
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config", None, "The config file, e.g. configs/grpo_tarl.py or configs/grpo_tarl.py:tiny."
    )
    flags.DEFINE_string(
        "workdir", None, "The run directory; one that holds an earlier run continues it."
    )
    for name in ("config", "workdir"):  # shown by --help
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    sys.modules["__main__"].__doc__ = doc

    def go(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # Orbax reports every file at INFO
        if len(argv) > 1:
            _fail(2, f"unexpected argument {argv[1]!r}; flags look like --config.rl.steps=10")
        sys.exit(_run(job))

    app.run(go, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with errors in the config or its overrides as one line."""
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if given and not Path(given[-1].split(":")[0]).is_file():
        near = ", ".join(sorted(map(str, Path("configs").glob("*.py")))) or "none"
        _fail(2, f"config file {given[-1].split(':')[0]} does not exist; here there are: {near}")
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS.config is None:
            _fail(2, "--config is required, e.g. --config=configs/grpo_tarl.py")
        return rest
    except (KeyError, AttributeError) as error:
        words = re.findall(r"\w+", re.sub(r"\\n", " ", str(error)))
        hint = f"; did you mean {words[4]!r}?" if words[1:4] == ["Did", "you", "mean"] else ""
        _fail(2, f"unknown config key {words[0] if words else ''!r}{hint}")
    except (flags.Error, TypeError, ValueError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        # A config that raises comes with its whole traceback; its last line says why.
        _fail(2, lines[-1] if "parsing config file" in lines[0] else lines[0])
    raise AssertionError("not reached")


def _run(job: Callable[[RunConfig], Any]) -> int:
    try:
        config = from_config_dict(flags.FLAGS.config)
        if flags.FLAGS.workdir:
            config = dataclasses.replace(config, workdir=flags.FLAGS.workdir)
        if config.mesh.processes != 1:
            from tarl_jax.parallel import hosts

            hosts.join(config.mesh)
        _keep_compiled_programs(Path(config.warm_start.cache_dir).expanduser())
        job(config)
    except (ConfigError, ValueError, FileNotFoundError) as error:
        return _report(2, error)
    except Interrupted as error:
        return _report(error.code, error)
    except KeyboardInterrupt:
        return _report(130, "interrupted; the run directory holds the last checkpoint")
    except Exception as error:
        known = {"CheckpointError": 1, "NonFiniteError": 1, "LLMError": 1, "BudgetSpent": 1,
                 "SpeechError": 1, "HostError": 1}
        if type(error).__name__ in known:
            return _report(known[type(error).__name__], error)
        if isinstance(error, OSError):
            return _report(1, f"{error}; whole checkpoints stay, and --workdir continues the run")
        raise
    return 0


def _keep_compiled_programs(cache_dir: Path) -> None:
    """Lets XLA reuse programs that an earlier start compiled."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _report(code: int, error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _fail(code: int, message: str) -> None:
    sys.exit(_report(code, message))
