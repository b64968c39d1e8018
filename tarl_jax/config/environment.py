"""Where episodes play: the domain, the embedded shop, the tasks."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ShopConfig:
    """The embedded synthetic shop (tau-bench's retail schema, short ids)."""

    seed: int = 0  # of its products, users and orders
    num_users: int = 200  # of its database
    orders_per_user: int = 4  # of its database
    held_out_fraction: float = 0.3  # of the users, whose tasks are never trained on


@dataclasses.dataclass(frozen=True)
class SandboxConfig:
    """The domain that a run plays in.

    data: folder of benchmark data (tau-bench, tau2-bench), whose database and tasks are used; its
      own tasks need a user that is a language model; `sandbox.synthesis` makes others for scripted
      users. Empty: the domain's embedded data and tasks.
    rules: whose tools answer and whose hash compares, "tau" or "tau2"; empty: those in whose format
      the folder is. Only with data.
    tool_schemas: whose words describe the tools in a full system prompt: "data", those of the
      folder, where it has any (docs/sandbox.md), or "own".
    """

    domain: str = "retail"  # "retail" or "airline"
    data: str = ""
    rules: str = ""
    tool_schemas: str = "data"


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What the users want. Probabilities are per task or, where said, per request."""

    seed: int = 0  # of what the users want
    file: str = ""  # JSON lines of tasks; empty: the data's, or synthesised for the embedded shop
    tfds: tuple[str, ...] = ()  # in place of a file: prepared datasets, NAME or NAME@SPLIT
    num_train: int = 3000  # tasks to train on, where they are made here
    num_held_out: int = 512  # tasks held out, where they are made here
    requests: tuple[float, ...] = (0.66, 0.24, 0.07, 0.03)  # P(1), P(2), P(3), P(4) requests
    forbidden: float = 0.2  # per request: the policy forbids it
    change_mind: float = 0.2  # per request: the user changes its mind when asked to confirm
    max_idle: float = 0.03  # share of tasks whose right solution writes nothing
