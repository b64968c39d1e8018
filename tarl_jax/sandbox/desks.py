"""The desks that there are, by the name of their domain."""

from __future__ import annotations

from typing import Any

from tarl_jax.config import InputError
from tarl_jax.sandbox.carrier_desk import CarrierDesk
from tarl_jax.sandbox.desk import Desk
from tarl_jax.sandbox.shop_desk import ShopDesk

DESKS: dict[str, Desk[Any]] = {"retail": ShopDesk(), "airline": CarrierDesk()}


def desk_of(domain: str) -> Desk[Any]:
    """The desk of a domain. Raises InputError for a domain without one."""
    if domain not in DESKS:
        raise InputError(
            f"domain {domain!r} has no scripted desk: choose one of {', '.join(DESKS)}, or give"
            " tasks and a user of your own (docs/extending.md)"
        )
    return DESKS[domain]
