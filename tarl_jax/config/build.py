"""The way into `RunConfig` from ml_collections, and back.

A config file in `configs/` builds an `ml_collections.ConfigDict` with the same nesting (see
`to_config_dict`), so that any field can be set from the command line; `from_config_dict` turns it
into `RunConfig` at once, and an unknown key or a wrong type is an error that names it.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any

from tarl_jax.config.checks import check
from tarl_jax.config.errors import ConfigError
from tarl_jax.config.run import RunConfig


def to_config_dict(config: RunConfig) -> Any:
    """The same values as an `ml_collections.ConfigDict`, for command-line overrides."""
    import ml_collections

    return ml_collections.ConfigDict(dataclasses.asdict(config))


def from_config_dict(data: Mapping[str, Any]) -> RunConfig:
    """Checked conversion; raises ConfigError for an unknown key, a wrong type or a bad value."""
    if hasattr(data, "to_dict"):
        data = data.to_dict()
    config = _build(RunConfig(), data, prefix="config")
    check(config)
    return config


def _build(default: Any, data: Mapping[str, Any], prefix: str) -> Any:
    """`default` with what `data` gives in place of its fields, group by group."""
    hints = typing.get_type_hints(type(default))
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"unknown config key '{prefix}.{key}': {hint}")
    values = {}
    for key, value in data.items():
        kind = hints[key]
        where = f"{prefix}.{key}"
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where} = {value!r}: expected a group of keys")
            values[key] = _build(getattr(default, key), value, where)
        elif kind == tuple[str, ...]:
            if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
                raise ConfigError(f"{where} = {value!r}: expected a list of strings")
            values[key] = tuple(value)
        elif typing.get_origin(kind) is tuple:
            numbers = isinstance(value, list | tuple) and all(
                isinstance(v, int | float) and not isinstance(v, bool) for v in value
            )
            if not numbers:
                raise ConfigError(f"{where} = {value!r}: expected a list of numbers")
            values[key] = tuple(float(v) for v in value)
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            values[key] = float(value)
        elif type(value) is not kind:
            raise ConfigError(f"{where} = {value!r}: expected {kind.__name__}")
        else:
            values[key] = value
    return dataclasses.replace(default, **values)
