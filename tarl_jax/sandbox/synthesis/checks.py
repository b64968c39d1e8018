"""The stages that a task must pass, in order; each says why it refuses one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tarl_jax.sandbox.domain import Domain, Refusal
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.shop_requests import READS, Request, write_call
from tarl_jax.sandbox.synthesis.graph import ToolGraph
from tarl_jax.sandbox.synthesis.policy import violations
from tarl_jax.sandbox.tasks import expert_plays, rated
from tarl_jax.sandbox.verifier import verify
from tarl_jax.types import Call, Task

STAGES = ("format", "execution", "policy", "reachability", "perturbation", "instruction")


class Rejected(Exception):
    """A task that a stage refuses. stage: one of STAGES; reason: why, to be counted."""

    def __init__(self, stage: str, reason: str, detail: str = ""):
        super().__init__(f"{stage}: {reason}{f' ({detail})' if detail else ''}")
        self.stage = stage
        self.reason = reason


def check(domain: Domain, graph: ToolGraph, task: Task) -> Task:
    """The task, rated by the expert's play. Raises Rejected where a stage refuses it."""
    check_format(domain, task)
    check_execution(domain, graph, task)
    check_policy(domain, task)
    task = check_reachability(domain, task)
    check_perturbation(domain, task)
    return task


def check_format(domain: Domain, task: Task) -> None:
    """A whole record: it survives JSON, its calls fit the schemas, its script means its calls."""
    try:
        again = Task.from_json(json.loads(json.dumps(task.to_json())))
        requests = _requests(task)
        meant = tuple(r.gold for r in requests if r.gold)
    except (ValueError, TypeError, KeyError) as error:
        raise Rejected("format", "not a task record", str(error)) from error
    if again != task or not task.instruction or task.split not in ("train", "held_out"):
        raise Rejected("format", "not a task record", task.task_id)
    if task.user_id not in domain.database["users"]:
        raise Rejected("format", "no such user", task.user_id)
    for call in task.gold_calls:
        tool = domain.tools.get(call.name)
        if tool is None or not tool.write:
            raise Rejected("format", "a gold call that is no write", call.name)
        if problem := tool.problem(dict(call.kwargs)):
            raise Rejected("format", "arguments do not fit the tool", problem)
    if task.script is not None and meant != task.gold_calls:
        raise Rejected("format", "the script means other calls")


def check_execution(domain: Domain, graph: ToolGraph, task: Task) -> None:
    """Each gold call succeeds on the state the ones before it left, changes it, and is grounded:
    the agent can learn every argument from the customer and the read tools."""
    state = domain.new_state()
    user = domain.database["users"][task.user_id]
    for call in task.gold_calls:
        before = state.fork()
        answer = domain.call(state, call.name, call.kwargs)
        if isinstance(answer, Refusal):
            raise Rejected("execution", "a gold call is refused", answer)
        if domain.same(before, state):
            raise Rejected("execution", "a gold call changes nothing", call.name)
        said = {"email": user["email"], **user["name"], "zip": user["address"]["zip"]}
        said |= {n: call.kwargs[n] for n in ("order_id", "reason") if n in call.kwargs}
        if missing := graph.ungrounded(call, said):
            raise Rejected("execution", "an argument that nobody tells", ", ".join(missing))


def check_policy(domain: Domain, task: Task) -> None:
    """The gold calls keep the policy, and so does every wish on the way to them; what the script
    says must be refused is forbidden, on the ground that it says."""
    database, user_id = domain.database, task.user_id
    if broken := violations(database, user_id, task.gold_calls):
        raise Rejected("policy", f"a gold call breaks a rule: {broken[0].ground}", broken[0].text)
    requests = _requests(task)
    about = [request.order_id for request in requests]
    for request in requests:
        order = database["orders"].get(request.order_id)
        if order is None or order["user_id"] != user_id:
            raise Rejected("policy", "a request about somebody else's order", request.order_id)
        if any(o in request.aside and o != request.order_id for o in about):
            raise Rejected("policy", "a distractor contradicts a request", request.aside)
        if request.kind in READS:
            continue
        grounds = [v.ground for v in violations(database, user_id, [write_call(request)])]
        if not request.denial and grounds:
            raise Rejected("policy", f"asks for what is forbidden: {grounds[0]}")
        if request.denial and (not grounds or grounds[0] != request.denial):
            raise Rejected("policy", "to be refused, but not on that ground", request.denial)
    if len(set(about)) < len(about):
        raise Rejected("policy", "two requests about one order")


def check_reachability(domain: Domain, task: Task) -> Task:
    """The scripted expert solves it through the scripted user; or, of a task without a script, the
    gold calls do when they are replayed, which tells nothing about the dialogue."""
    if task.script is None:
        if not _solves(domain, task, list(task.gold_calls)):
            raise Rejected("reachability", "the gold calls do not lead to the gold state")
        return task
    turns, verdict = expert_plays(domain, task)
    if turns[-1][1].stop_reason != "user_stop":
        raise Rejected("reachability", f"the dialogue ends by {turns[-1][1].stop_reason}")
    if not verdict.success or not verdict.outputs_found:
        raise Rejected("reachability", "the expert fails", "; ".join(verdict.diff))
    if any(answer.info.get("error") for _, answer in turns):
        raise Rejected("reachability", "the expert needs a call that is refused")
    return rated(task, len(turns))


def check_perturbation(domain: Domain, task: Task) -> None:
    """No solution with one wrong argument, or with one write where none is right, passes."""
    tried = 0
    for calls in perturbations(domain, task):
        tried += 1
        if _solves(domain, task, calls):
            raise Rejected("perturbation", "verifier cannot tell", str(calls[-1].to_json()))
    if not tried:
        raise Rejected("perturbation", "no other value to try")


def perturbations(domain: Domain, task: Task) -> Iterator[list[Call]]:
    """The gold calls with one argument of one call changed to another plausible value, every way.

    Changes that the tools refuse leave a write out, which tells less of the verifier: they come
    only where there are no others. Of a task whose right solution writes nothing: each cancellation
    that the shop would let through, and a new address of the user.
    """
    gold = list(task.gold_calls)
    user = domain.database["users"][task.user_id]
    if not gold:
        zips = {**user["address"], "zip": "00000"}
        yield [Call("modify_user_address", {"user_id": task.user_id, **zips})]
        for order_id in user["orders"]:
            call = Call("cancel_pending_order",
                        {"order_id": order_id, "reason": "no longer needed"})
            if _executes(domain, [call]):
                yield [call]
    refused = []
    executed = False
    for place, call in enumerate(gold):
        for name, value in call.kwargs.items():
            for other in _others(domain, user, call, name):
                wrong = Call(call.name, {**call.kwargs, name: other})
                calls = [*gold[:place], wrong, *gold[place + 1 :]]
                if other == value:
                    continue
                if _executes(domain, calls):
                    executed = True
                    yield calls
                else:
                    refused.append(calls)
    if not executed:
        yield from refused


def _others(domain: Domain, user: dict[str, Any], call: Call, name: str) -> list[Any]:
    """Values that an agent might take for the right one of an argument."""
    order = domain.database["orders"][call.kwargs["order_id"]]
    properties = domain.tools[call.name].schema["function"]["parameters"]["properties"]
    if "enum" in properties[name]:
        return list(properties[name]["enum"])
    match name:
        case "order_id":
            return list(user["orders"])
        case "payment_method_id":
            return list(user["payment_methods"])
        case "item_ids":
            return [[item["item_id"]] for item in order["items"]]
        case "new_item_ids":
            first = next(i for i in order["items"] if i["item_id"] == call.kwargs["item_ids"][0])
            variants = domain.database["products"][first["product_id"]]["variants"]
            return [[item_id, *call.kwargs[name][1:]] for item_id in variants]
    return []


def _executes(domain: Domain, calls: list[Call]) -> bool:
    state = domain.new_state()
    answers = [domain.call(state, call.name, call.kwargs) for call in calls]
    return not any(isinstance(answer, Refusal) for answer in answers)


def _solves(domain: Domain, task: Task, calls: list[Call]) -> bool:
    state = domain.new_state()
    for call in calls:
        domain.call(state, call.name, call.kwargs)
    return verify(domain, state, [(c.name, dict(c.kwargs)) for c in task.gold_calls]).success


def _requests(task: Task) -> tuple[Request, ...]:
    return Script.from_json(task.script).requests if task.script is not None else ()
