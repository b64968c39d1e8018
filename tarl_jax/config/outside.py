"""An engine outside this process that plays the episodes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from tarl_jax.config.llm import Require
from tarl_jax.config.servers import check_server


@dataclasses.dataclass(frozen=True)
class OutsideConfig:
    """A server of completions that plays the episodes in place of the engine (docs/rollouts.md).

    base_url: of the server, up to /v1; empty: there is none, the engine plays.
    model: its name, as the server knows it.
    api_key_env: the NAME of the environment variable that holds the key; empty: it takes none.
    folder: where the weights of each policy are written for it, on a disk that both see.
    reload: the path, or the whole address, that makes the server take new weights; the default is
      SGLang's. A path that begins with / stands behind the server's name, not behind /v1.
    reload_body: what is posted there, as JSON; {folder} is where the weights are.
    reload_seconds: how long that may take.
    timeout_seconds: of one turn, by the wall clock.
    max_attempts, backoff_seconds: of one turn, as for users and judges (`LLMConfig`).
    max_in_flight: turns asked for at once.
    """

    base_url: str = ""
    model: str = "policy"
    api_key_env: str = ""
    folder: str = ""
    reload: str = "/update_weights_from_disk"
    reload_body: str = '{"model_path": "{folder}"}'
    reload_seconds: float = 600.0
    timeout_seconds: float = 600.0
    max_attempts: int = 5
    backoff_seconds: float = 1.0
    max_in_flight: int = 256


def check_outside(outside: OutsideConfig, require: Require) -> None:
    """Asks `require` of `config.checks` about the group `rollout.outside`."""
    prefix = "rollout.outside"
    check_server(prefix, outside.base_url, outside.api_key_env, require)
    for name in ("reload_seconds", "timeout_seconds", "max_attempts", "max_in_flight"):
        value = getattr(outside, name)
        require(value > 0, f"{prefix}.{name}", value, "must be above 0")
    require(outside.backoff_seconds >= 0, f"{prefix}.backoff_seconds", outside.backoff_seconds,
            "must be at least 0")
    require("://" not in outside.folder, f"{prefix}.folder", outside.folder,
            "give a folder of a disk that this machine and the server see")
    if not outside.base_url:
        return
    require(bool(outside.folder), f"{prefix}.folder", outside.folder,
            "name the folder that the server reads weights from")
    require(bool(outside.model), f"{prefix}.model", outside.model, "name the model")
    require(outside.reload.startswith(("/", "http://", "https://")), f"{prefix}.reload",
            outside.reload, "give a path that begins with /, or an address")
    body: Any = None
    try:
        body = json.loads(outside.reload_body)
    except ValueError as error:
        require(False, f"{prefix}.reload_body", outside.reload_body, f"must be JSON ({error})")
    require(isinstance(body, dict), f"{prefix}.reload_body", outside.reload_body,
            "must be a JSON object")
