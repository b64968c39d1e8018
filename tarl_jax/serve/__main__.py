"""Serves a policy over OpenAI's protocol.

    python -m tarl_jax.serve RUN [--port=8000]

serves the newest checkpoint of a run (`--step` chooses another). With --config=FILE instead of RUN
it serves what that config starts from, such as a checkpoint in Hugging Face's format:
--config=configs/grpo_tarl.py:qwen3_8b --config.model.pretrained=FOLDER.

On any address but this machine's own, clients have to show a token: the environment variable that
--token_env names must hold it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import socket
from pathlib import Path
from typing import Any

from tarl_jax.config import ConfigError, RunConfig
from tarl_jax.parallel.process import restart_with_tuned_malloc

_LOCAL = ("127.0.0.1", "::1", "localhost")


def main() -> None:
    from tarl_jax.runs.command import run_with_config

    run_with_config(__doc__ or "", _serve, _options)


def _options(parser: argparse.ArgumentParser) -> None:
    from tarl_jax.serve.policy import HttpLimits, ServeConfig

    add, own, http = parser.add_argument, ServeConfig(), HttpLimits()
    add("--step", type=int, default=-1, metavar="N", help="the checkpoint's step; -1: the newest")
    add("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    add("--port", type=int, default=8000, help="0: any free one (8000)")
    add("--token_env", default="TARL_SERVE_TOKEN", metavar="NAME",
        help="the environment variable with the token (TARL_SERVE_TOKEN)")
    add("--grace", type=int, default=30, metavar="SECONDS",
        help="that open requests have to end after SIGTERM (30)")
    add("--record", metavar="FILE", help="append rewarded episodes to this file, for training")
    for field in dataclasses.fields(ServeConfig):
        default = getattr(own, field.name)
        if isinstance(default, bool):
            add(f"--{field.name}", type=_bool, default=default, metavar="BOOL",
                help=f"see docs/serving.md ({default})")
        else:
            add(f"--{field.name}", type=type(default), default=default, metavar="N",
                help=f"see docs/serving.md ({default})")
    for limit in dataclasses.fields(HttpLimits):
        add(f"--max_{limit.name}", type=int, default=getattr(http, limit.name), metavar="N",
            help=f"see docs/serving.md ({getattr(http, limit.name)})")


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: give True or False")
    return text.lower() == "true"


def _serve(config: RunConfig, parts: Any, given: argparse.Namespace) -> None:
    token = os.environ.get(given.token_env) or None
    if given.host not in _LOCAL and token is None:
        raise ConfigError(f"--host={given.host}: others can reach it, so set {given.token_env} in"
                          " the environment to a token that they have to show")
    try:
        import uvicorn

        from tarl_jax.serve.http import Server
    except ModuleNotFoundError as error:
        raise ConfigError(f"a server needs the package {error.name}: pip install -e '.[serve]'"
                          ) from error
    from tarl_jax.serve.policy import HttpLimits, ServeConfig, load_policy, serve_policy
    from tarl_jax.serve.protocol import Protocol
    from tarl_jax.serve.recording import Recorder
    from tarl_jax.training.parts import checked

    if given.grace < 0:
        raise ConfigError(f"--grace={given.grace}: must be at least 0")
    serve = ServeConfig(**{f.name: getattr(given, f.name) for f in dataclasses.fields(ServeConfig)})
    limits = HttpLimits(*(getattr(given, f"max_{f.name}") for f in dataclasses.fields(HttpLimits)))
    serve.rollout(config.rollout)  # its checks
    if given.record and config.rollout.reasoning != "kept":
        raise ConfigError(f"--record: what is trained on is one context, and rollout.reasoning ="
                          f" {config.rollout.reasoning!r} takes thoughts out of it: serve with"
                          " --config.rollout.reasoning=kept")
    recorder = Recorder(Path(given.record).expanduser()) if given.record else None
    listener = _listen(given.host, given.port)
    if given.dry_run:
        from tarl_jax.training.dry_run import show

        listener.close()
        return show(config, checked(parts, config), given.step)
    name, env, params = load_policy(config, checked(parts, config), given.step)
    served = serve_policy(name, env, params, serve)
    try:
        app = Server(served, limits, token, recorder).app()
        port = listener.getsockname()[1]
        host = f"[{given.host}]" if ":" in given.host else given.host
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn, once done, sends it again
            signal.signal(number, lambda *_: None)
        listener.listen(2048)  # so that who reads the next line can connect
        print(f"serving {name} at http://{host}:{port}/v1", flush=True)
        uvicorn.Server(uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=given.grace, lifespan="off",
            http=Protocol,
        )).run(sockets=[listener])
    finally:
        served.session.close()
        env.close()
        if recorder:
            recorder.close()


def _listen(host: str, port: int) -> socket.socket:
    """The socket, taken before the long part of the start. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"--host={host} --port={port}: {error}; choose another") from error
    return listener


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.serve")
    main()
