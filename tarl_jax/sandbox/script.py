"""What a scripted user wants: who it is, and its requests with the calls that fulfil them.

A script is the JSON-like `Task.script`. A request may be forbidden by the policy (`denial`), and
the user may change its mind when asked to confirm (`change`); `then` is the wish after the change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tarl_jax.sandbox.desk import Customer
from tarl_jax.sandbox.desks import desk_of


@dataclasses.dataclass(frozen=True)
class Script(Customer):
    """The user and its requests.

    desk: the domain whose desk it goes to; scripts from before there were several name none.
    """

    requests: tuple[Any, ...]
    desk: str = "retail"

    def to_json(self) -> dict[str, Any]:
        data = {**vars(self), "requests": [request.to_json() for request in self.requests]}
        if self.desk == "retail":
            del data["desk"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Script:
        wish = desk_of(data.get("desk", "retail")).wish
        return cls(**{**data, "requests": tuple(wish.from_json(r) for r in data["requests"])})
