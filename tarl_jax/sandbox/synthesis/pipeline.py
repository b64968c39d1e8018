"""Tasks in the manner of APIGEN-MT (arXiv 2504.03601): blueprints, checks, composition, no twins.

A single request is drawn by the write tool that serves it; each is checked as a task of its own,
and tasks of several requests are composed of checked ones of one user about distinct orders, and
checked again as a whole. Everything follows from the seed.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from tarl_jax.config import InputError, ShopConfig
from tarl_jax.sandbox import blueprint, phrases, shop, shop_blueprint, shop_phrases
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.shop_requests import KINDS, READS, Request, write_call
from tarl_jax.sandbox.synthesis.checks import Rejected, check
from tarl_jax.sandbox.synthesis.graph import ToolGraph
from tarl_jax.sandbox.tasks import draft_task
from tarl_jax.types import Task

Finish = Callable[[Task], Task]  # writes the instruction anew, or raises Rejected


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to make. Shares are of tasks or, where said, of requests.

    num: tasks in all. held_out: share of them that is held out. requests: of tasks with 1, 2, 3
    and 4 requests. reads: of requests that only ask. forbidden, change_mind: as in TaskConfig.
    asides: of requests with a distractor. personas: of tasks whose user speaks in a manner.
    max_idle: of tasks whose right solution writes nothing.
    """

    num: int
    seed: int = 0
    held_out: float = 0.15
    requests: tuple[float, ...] = (0.4, 0.3, 0.2, 0.1)
    reads: float = 0.1
    forbidden: float = 0.15
    change_mind: float = 0.2
    asides: float = 0.25
    personas: float = 0.5
    max_idle: float = 0.06


@dataclasses.dataclass
class Synthesis:
    """The tasks made so far, and how many candidates each (stage, reason) rejected."""

    tasks: list[Task] = dataclasses.field(default_factory=list)
    rejected: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)


def synthesise(
    domain: Domain,
    plan: Plan,
    finish: Finish | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Synthesis:
    """`plan.num` tasks, the training ones first; the splits share no user and no order.

    finish: the last stage, of a task that passed all others. progress: called for every task made.
    Raises ValueError if the database admits too few, naming the reasons that rejected most.
    """
    held_out_users = shop.held_out_users(domain.database, ShopConfig())
    held_out = max(1, round(plan.held_out * plan.num))
    made = Synthesis()
    for split, wanted in (("train", plan.num - held_out), ("held_out", held_out)):
        users = [u for u, record in domain.database["users"].items()
                 if record["orders"] and (u in held_out_users) == (split == "held_out")]
        _Maker(domain, plan, split, users, made, finish or (lambda task: task)).make(
            wanted, progress
        )
    return made


def signature(task: Task) -> str:
    """Two tasks of one signature are near-duplicates.

    It holds the user, the gold calls with sorted lists and in any order, and of each request its
    kind, its order, why it is refused and how the user changes its mind. It does not hold wording,
    persona, distractors, how the user says who it is, the order of the requests, or which options
    were asked for in vain.
    """
    calls = sorted(
        json.dumps({name: sorted(value) if isinstance(value, list) else value
                    for name, value in {**call.kwargs, "tool": call.name}.items()}, sort_keys=True)
        for call in task.gold_calls
    )
    requests = Script.from_json(task.script).requests if task.script else ()
    intents = sorted((r.kind, r.order_id, r.denial, r.change) for r in requests)
    return json.dumps([task.user_id, calls, intents])


class _Maker:
    """Makes the tasks of one split."""

    def __init__(self, domain: Domain, plan: Plan, split: str, users: list[str],
                 made: Synthesis, finish: Finish):
        self.domain = domain
        self.plan = plan
        self.split = split
        self.users = users
        self.made = made
        self.finish = finish
        self.rng = random.Random(f"synthesis-{plan.seed}-{split}")
        self.graph = ToolGraph(domain)
        self.by_tool = {write_call(Request(kind, "")).name: kind for kind in KINDS}
        self.kinds = [self.by_tool[t] for t in self.graph.writes() if t in self.by_tool]
        self.seen: set[str] = set()
        self.idle = 0

    def make(self, wanted: int, progress: Callable[[], None]) -> None:
        weights = self.plan.requests
        sizes = self.rng.choices(range(1, len(weights) + 1), weights, k=wanted)
        count = attempts = 0
        while count < wanted:
            attempts += 1
            if not self.users or attempts > 1000 + 50 * wanted:
                most = "; ".join(
                    f"{n} x {stage}: {reason}"
                    for (stage, reason), n in self.made.rejected.most_common(3)
                )
                raise InputError(
                    f"{len(self.users)} {self.split} users with orders admit only {count} of"
                    f" {wanted} tasks ({most or 'none was tried'}): lower --num"
                )
            try:
                self.made.tasks.append(self._task(count, sizes[count], wanted))
            except Rejected as error:
                self.made.rejected[error.stage, error.reason] += 1
                continue
            count += 1
            progress()

    def _task(self, number: int, size: int, wanted: int) -> Task:
        user_id = self.rng.choice(self.users)
        persona = ""
        if self.rng.random() < self.plan.personas:
            persona = self.rng.choice(list(phrases.PERSONAS))
        singles = self._singles(user_id, size)
        user = self.domain.database["users"][user_id]
        script = blueprint.script_of(self.rng, "retail", user, self._with_asides(user, singles))
        task = draft_task(
            self.domain, script, f"synthesis-{self.split}-{number}", self.split, "synthesis",
            persona,
        )
        mark = signature(task)
        if mark in self.seen:
            raise Rejected("duplicate", "a near-duplicate")
        if not task.gold_calls and self.idle + 1 > self.plan.max_idle * wanted:
            raise Rejected("quota", "enough tasks without a write")
        task = self.finish(check(self.domain, self.graph, task))
        self.seen.add(mark)
        self.idle += not task.gold_calls
        return task

    def _singles(self, user_id: str, size: int) -> list[Request]:
        """`size` requests about distinct orders of a user; several are each checked as a task."""
        user = self.domain.database["users"][user_id]
        orders = user["orders"]
        found: list[Request] = []
        for order_id in self.rng.sample(orders, len(orders)) if len(orders) >= size else ():
            if len(found) == size:
                break
            request = self._request(user, self.domain.database["orders"][order_id])
            if request is None:
                continue
            if size == 1:  # checked as the task it becomes
                return [request]
            script = blueprint.script_of(self.rng, "retail", user, (request,))
            single = draft_task(self.domain, script, "single", self.split, "synthesis")
            try:
                check(self.domain, self.graph, single)
            except Rejected as error:
                self.made.rejected[error.stage, error.reason] += 1
                continue
            found.append(request)
        if len(found) < size:
            raise Rejected("blueprint", "the user's orders admit too few requests")
        return found

    def _request(self, user: dict[str, Any], order: dict[str, Any]) -> Request | None:
        rng, database, plan = self.rng, self.domain.database, self.plan
        draw = rng.random()
        request: Request | None
        if draw < plan.reads:
            kind = rng.choice(READS)
            request = shop_blueprint.request_of_kind(rng, database, user, order, kind, "")
        elif draw < plan.reads + plan.forbidden:
            request = shop_blueprint.make_request(rng, database, user, order, forbidden=True)
        else:
            fit = shop_blueprint.KIND_WEIGHTS.get(order["status"], {})
            kinds = [k for k in self.kinds if k in fit]
            if not kinds:
                return None
            kind = rng.choice(kinds)
            request = shop_blueprint.request_of_kind(rng, database, user, order, kind, "")
            if request and rng.random() < plan.change_mind:
                request = shop_blueprint.with_change(rng, database, order, request)
        return request

    def _with_asides(
        self, user: dict[str, Any], requests: list[Request]
    ) -> tuple[Request, ...]:
        """The requests, some with a sentence that names another item or order and asks for nothing.

        No sentence is about an order that a request is about.
        """
        about = {request.order_id for request in requests}
        return tuple(
            dataclasses.replace(request, aside=self._aside(user, about, request))
            if self.rng.random() < self.plan.asides else request
            for request in requests
        )

    def _aside(self, user: dict[str, Any], about: set[str], request: Request) -> str:
        """Such a sentence; empty if none fits."""
        orders = self.domain.database["orders"]
        order = orders[request.order_id]
        others = [orders[order_id] for order_id in user["orders"] if order_id not in about]
        meant = {request.item_id, request.then.item_id if request.then else ""}
        options = [
            shop_phrases.ASIDES["product"].format(item=item["name"], order=other["order_id"])
            for other in others for item in other["items"]
            if item["product_id"] == request.product_id
        ]
        if not options and request.item_id:
            options = [
                shop_phrases.ASIDES["item"].format(
                    item=f"{shop_blueprint.option_words(item)} {item['name']}"
                )
                for item in order["items"] if item["item_id"] not in meant
            ]
        if not options:
            options = [shop_phrases.ASIDES["order"].format(order=o["order_id"]) for o in others]
        return self.rng.choice(options) if options else ""
