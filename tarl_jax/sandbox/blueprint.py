"""Scripts of a user's requests, drawn at random."""

from __future__ import annotations

import random
from typing import Any

from tarl_jax.config import TaskConfig
from tarl_jax.sandbox.desk import Wish
from tarl_jax.sandbox.desks import desk_of
from tarl_jax.sandbox.domain import Database, Record
from tarl_jax.sandbox.script import Script


def sample_script(
    rng: random.Random, domain: str, database: Database, user_id: str, config: TaskConfig
) -> Script:
    """Requests about distinct records of one user; none if the user's records admit none."""
    desk, user = desk_of(domain), database["users"][user_id]
    count = rng.choices(range(1, len(config.requests) + 1), config.requests)[0]
    requests: list[Any] = []
    for record_id in rng.sample(user[desk.table], len(user[desk.table])):
        if len(requests) == count:
            break
        record = database[desk.table][record_id]
        forbidden = rng.random() < config.forbidden
        request = desk.make_request(rng, database, user, record, forbidden)
        if request and not request.denial and rng.random() < config.change_mind:
            request = desk.with_change(rng, database, user, record, request)
        if request:
            requests.append(request)
    return script_of(rng, domain, user, tuple(requests))


def script_of(
    rng: random.Random, domain: str, user: Record, requests: tuple[Wish, ...]
) -> Script:
    """The script of a user who has these requests."""
    return Script(
        first_name=user["name"]["first_name"],
        last_name=user["name"]["last_name"],
        email=user["email"],
        zip=user["address"]["zip"],
        identify=rng.choice(desk_of(domain).identify),
        eager=rng.random() < 0.5,
        requests=requests,
        desk=domain,
    )
