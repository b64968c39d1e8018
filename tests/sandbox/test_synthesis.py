"""Synthesised tasks are solvable and distinct, keep the policy, and tell right from wrong."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from tarl_jax.config import RunConfig
from tarl_jax.sandbox import load_domain, shop
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import Dialogue
from tarl_jax.sandbox.domain import Domain, make_tool
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.shop_requests import READS
from tarl_jax.sandbox.synthesis.__main__ import main
from tarl_jax.sandbox.synthesis.checks import Rejected, check, perturbations
from tarl_jax.sandbox.synthesis.graph import ToolGraph
from tarl_jax.sandbox.synthesis.pipeline import Plan, signature, synthesise
from tarl_jax.sandbox.synthesis.policy import violations
from tarl_jax.sandbox.tasks import draft_task, load_tasks
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.sandbox.verifier import verify
from tarl_jax.types import Call

SHARED = Path(__file__).parents[3] / "shared/tau_bench"
DOMAIN = load_domain("retail")
GRAPH = ToolGraph(DOMAIN)
PLAN = Plan(60)
MADE = synthesise(DOMAIN, PLAN)
TASKS = MADE.tasks


def gold(task):
    return [(call.name, dict(call.kwargs)) for call in task.gold_calls]


def requests(task):
    return Script.from_json(task.script).requests


def final_state(domain, calls):
    state = domain.new_state()
    for call in calls:
        domain.call(state, call.name, call.kwargs)
    return state


def test_every_task_is_solved_by_the_expert_and_by_no_expert_with_one_wrong_argument():
    assert len(TASKS) == 60
    for task in TASKS:
        dialogue = Dialogue(task, DOMAIN, ScriptedUser(task, seed=99))
        history = play(dialogue, FAULTLESS, seed=7)
        assert history[-1][1].stop_reason == "user_stop"
        said = [action for action, _ in history if isinstance(action, str)]
        verdict = verify(DOMAIN, dialogue.state, gold(task), task.outputs, said)
        assert verdict.success and verdict.outputs_found, task.task_id
        assert len(history) == task.expert_turns
        wrong = list(perturbations(DOMAIN, task))
        assert wrong
        for calls in wrong:
            assert not verify(DOMAIN, final_state(DOMAIN, calls), gold(task)).success
            if task.gold_calls:
                pairs = list(zip(task.gold_calls, calls, strict=True))
                changed = [(a, b) for a, b in pairs if a != b]
                assert len(changed) == 1
                before, after = changed[0]
                assert sum(before.kwargs[k] != after.kwargs[k] for k in before.kwargs) == 1


def test_all_that_was_asked_for_occurs():
    assert {len(t.gold_calls) for t in TASKS} >= {0, 1, 2, 3}
    found = [r for t in TASKS for r in requests(t)]
    assert {r.kind for r in found} >= {"cancel", "return", "exchange", "modify", "payment"}
    assert {r.kind for r in found} & set(READS) and any(t.outputs for t in TASKS)
    assert any(r.denial for r in found) and any(r.change for r in found)
    assert any(r.aside for r in found)
    assert len({t.persona for t in TASKS}) > 3
    idle = sum(not t.gold_calls for t in TASKS)
    assert 0 < idle <= 4


def test_splits_share_no_user_and_no_order():
    split = {name: [t for t in TASKS if t.split == name] for name in ("train", "held_out")}
    assert len(split["held_out"]) == 9
    users = [{t.user_id for t in tasks} for tasks in split.values()]
    orders = [{r.order_id for t in tasks for r in requests(t)} for tasks in split.values()]
    assert not users[0] & users[1] and not orders[0] & orders[1]


def test_no_two_tasks_are_near_duplicates():
    assert len({signature(t) for t in TASKS}) == len({t.task_id for t in TASKS}) == 60


def test_a_near_duplicate_differs_in_words_only():
    task = next(t for t in TASKS if len(t.gold_calls) == 2)
    script = task.script
    other_words = {**script, "identify": "name", "eager": not script["eager"],
                   "requests": script["requests"][::-1]}
    twin = dataclasses.replace(task, task_id="x", instruction="y", persona="terse",
                               script=other_words, gold_calls=task.gold_calls[::-1])
    assert signature(twin) == signature(task)
    fewer = dataclasses.replace(task, gold_calls=task.gold_calls[:1])
    assert signature(fewer) != signature(task)


def test_difficulty_adds_up():
    for task in TASKS:
        parts = requests(task)
        traps = sum(2 * (r.change != "") + 2 * (r.denial != "") + (r.aside != "") for r in parts)
        assert task.difficulty == task.expert_turns + traps > 0


def test_instruction_holds_distractor_and_manner():
    for task in TASKS:
        for request in requests(task):
            assert request.aside in task.instruction
            assert request.order_id in task.instruction
    assert any("You are impatient." in t.instruction for t in TASKS)


def test_rejections_are_counted_and_an_impossible_wish_names_them():
    assert MADE.rejected and all(n > 0 for n in MADE.rejected.values())
    small = retail_domain(shop.make_shop(dataclasses.replace(RunConfig().shop, num_users=3)))
    with pytest.raises(ValueError, match=r"admit only \d+ of .* a near-duplicate.*: lower --num"):
        synthesise(small, Plan(400))


# --- graph ----------------------------------------------------------------------------------------


def test_the_graph_tells_which_reads_a_write_rests_on():
    finders = ["find_user_id_by_email", "find_user_id_by_name_zip"]
    assert GRAPH.reads_for("cancel_pending_order") == []
    exchange = GRAPH.reads_for("exchange_delivered_order_items")
    assert set(exchange) == {"get_order_details", "get_product_details", "get_user_details",
                             *finders}
    assert exchange.index("get_order_details") < exchange.index("get_product_details")
    assert exchange.index("find_user_id_by_email") < exchange.index("get_user_details")


def test_what_no_read_yields_and_nobody_says_cannot_be_written():
    assert set(GRAPH.writes()) == {
        "cancel_pending_order", "exchange_delivered_order_items", "modify_pending_order_items",
        "modify_pending_order_payment", "return_delivered_order_items",
    }  # an address is neither


def test_an_argument_out_of_thin_air_is_ungrounded():
    call = next(c for t in TASKS for c in t.gold_calls if "item_ids" in c.kwargs)
    user = DOMAIN.database["users"][
        DOMAIN.database["orders"][call.kwargs["order_id"]]["user_id"]]
    said = {"email": user["email"], "order_id": call.kwargs["order_id"]}
    assert GRAPH.ungrounded(call, said) == []
    made_up = Call(call.name, {**call.kwargs, "item_ids": ["31337"]})
    assert GRAPH.ungrounded(made_up, said) == ["item_ids"]


# --- stages ---------------------------------------------------------------------------------------


def without_script(task, *calls):
    return dataclasses.replace(task, script=None, gold_calls=calls)


def an_order(status, **wanted):
    return next(o for o in DOMAIN.database["orders"].values()
                if o["status"] == status and all(len(o[k]) >= n for k, n in wanted.items()))


def task_about(order, *calls):
    return dataclasses.replace(without_script(TASKS[0], *calls), user_id=order["user_id"])


PENDING, DELIVERED = an_order("pending"), an_order("delivered")
OTHERS = next(o for o in DOMAIN.database["orders"].values()
              if o["status"] == "pending" and o["user_id"] != PENDING["user_id"])


def cancel(order, reason="no longer needed"):
    return Call("cancel_pending_order", {"order_id": order["order_id"], "reason": reason})


@pytest.mark.parametrize("task, stage, reason", [
    (dataclasses.replace(TASKS[0], user_id="nobody"), "format", "no such user"),
    (dataclasses.replace(TASKS[0], split="test"), "format", "not a task record"),
    (dataclasses.replace(TASKS[0], instruction=""), "format", "not a task record"),
    (dataclasses.replace(TASKS[0], gold_calls=()), "format", "the script means other calls"),
    (dataclasses.replace(TASKS[0], script={"first_name": "Ada"}), "format", "not a task record"),
    (task_about(PENDING, Call("get_order_details", {"order_id": "#W1"})), "format",
     "a gold call that is no write"),
    (task_about(PENDING, Call("cancel_pending_order", {"order_id": "#W1"})), "format",
     "arguments do not fit the tool"),
    (task_about(DELIVERED, cancel(DELIVERED)), "execution", "a gold call is refused"),
    (task_about(PENDING, Call("modify_pending_order_address", {
        "order_id": PENDING["order_id"], **PENDING["address"]})), "execution",
     "a gold call changes nothing"),
    (task_about(PENDING, cancel(OTHERS)), "policy", "a gold call breaks a rule: account"),
])
def test_each_stage_rejects_with_its_reason(task, stage, reason):
    with pytest.raises(Rejected) as caught:
        check(DOMAIN, GRAPH, task)
    assert (caught.value.stage, caught.value.reason) == (stage, reason)


def test_a_script_that_lies_about_a_refusal_is_rejected():
    task = next(t for t in TASKS if any(r.denial == "status" for r in requests(t)))
    script = {**task.script, "requests": [
        {**r, "denial": "balance" if r["denial"] == "status" else r["denial"]}
        for r in task.script["requests"]]}
    with pytest.raises(Rejected, match="not on that ground"):
        check(DOMAIN, GRAPH, dataclasses.replace(task, script=script))


def test_a_distractor_that_names_another_requests_order_is_rejected():
    task = next(t for t in TASKS if len(requests(t)) == 2)
    first, second = requests(task)
    script = dataclasses.replace(Script.from_json(task.script), requests=(
        dataclasses.replace(first, aside=f"My order {second.order_id} can stay."), second))
    lying = draft_task(DOMAIN, script, "x", "train", "synthesis")
    with pytest.raises(Rejected, match="a distractor contradicts a request"):
        check(DOMAIN, GRAPH, lying)


def test_a_task_whose_perturbed_solution_passes_is_rejected():
    # In this shop the reason of a cancellation leaves no trace.
    def cancel_pending_order(db, order_id: str, reason: str) -> str:
        """Cancel.

        Args:
            order_id: The order.
            reason: The reason.
        """
        db.edit("orders", order_id)["status"] = "cancelled"
        return "{}"

    tool = make_tool(cancel_pending_order, write=True)
    parameters = DOMAIN.tools["cancel_pending_order"].schema["function"]["parameters"]
    tool.schema["function"]["parameters"] = parameters
    tools = {**DOMAIN.tools, "cancel_pending_order": tool}
    blind = Domain("retail", "", DOMAIN.database, tools.values())
    task = task_about(PENDING, cancel(PENDING))
    assert check(DOMAIN, GRAPH, task) == task
    with pytest.raises(Rejected, match="verifier cannot tell"):
        check(blind, ToolGraph(blind), task)


# --- policy ---------------------------------------------------------------------------------------

PRODUCT = {"name": "Mug", "product_id": "5", "variants": {
    i: {"item_id": i, "options": {"color": c}, "available": ok, "price": p}
    for i, c, ok, p in (
        ("50", "red", True, 10), ("51", "blue", True, 40), ("52", "green", False, 9))
}}


def record(order_id, status, user="ada"):
    item = {"name": "Mug", "product_id": "5", "item_id": "50", "price": 10,
            "options": {"color": "red"}}
    paid = {"transaction_type": "payment", "amount": 10, "payment_method_id": f"paypal_{user}"}
    return {"order_id": order_id, "user_id": user, "address": {}, "items": [item],
            "fulfillments": [], "status": status, "payment_history": [paid]}


def methods(user):
    return {f"paypal_{user}": {"source": "paypal", "id": f"paypal_{user}"},
            f"visa_{user}": {"source": "credit_card", "id": f"visa_{user}"},
            f"gift_{user}": {"source": "gift_card", "id": f"gift_{user}", "balance": 45}}


BOOKS = {
    "users": {u: {"name": {}, "address": {}, "email": "", "orders": [],
                  "payment_methods": methods(u)} for u in ("ada", "ben")},
    "orders": {o: record(o, s, u) for o, s, u in (
        ("#W1", "pending", "ada"), ("#W2", "delivered", "ada"), ("#W3", "delivered", "ada"),
        ("#W4", "processed", "ada"), ("#W5", "pending", "ben"), ("#W6", "pending", "ada"))},
    "products": {"5": PRODUCT},
}


def swap(tool, order, old=("50",), new=("51",), method="paypal_ada"):
    return Call(tool, {"order_id": order, "item_ids": list(old), "new_item_ids": list(new),
                       "payment_method_id": method})


def pay(order, method):
    return Call("modify_pending_order_payment", {"order_id": order, "payment_method_id": method})


def back(order, method, items=("50",)):
    return Call("return_delivered_order_items",
                {"order_id": order, "item_ids": list(items), "payment_method_id": method})


EXCHANGE, MODIFY = "exchange_delivered_order_items", "modify_pending_order_items"


@pytest.mark.parametrize("calls, grounds", [
    ([cancel({"order_id": "#W1"})], []),
    ([cancel({"order_id": "#W1"}, "found it cheaper")], ["reason"]),
    ([cancel({"order_id": "#W4"})], ["status"]),
    ([cancel({"order_id": "#W5"})], ["account"]),
    ([cancel({"order_id": "#W9"})], ["missing"]),
    ([cancel({"order_id": "#W1"}), swap(MODIFY, "#W1")], ["status"]),
    ([swap(MODIFY, "#W1"), swap(MODIFY, "#W1")], ["status"]),
    ([swap(EXCHANGE, "#W2")], []),
    ([swap(EXCHANGE, "#W2"), back("#W2", "paypal_ada")], ["status"]),
    ([swap(EXCHANGE, "#W1")], ["status"]),
    ([swap(EXCHANGE, "#W2", new=("52",))], ["unavailable"]),
    ([swap(EXCHANGE, "#W2", new=("50",))], ["items"]),  # the tool lets it through
    ([swap(EXCHANGE, "#W2", new=("77",))], ["items"]),
    ([swap(EXCHANGE, "#W2", old=(), new=())], ["items"]),  # so here
    ([swap(EXCHANGE, "#W2", old=("50", "50"), new=("51", "51"))], ["items"]),
    ([swap(EXCHANGE, "#W2", method="gift_ada")], []),
    # 30 dollars each, and 45 on the card: the tool looks at one call at a time.
    ([swap(EXCHANGE, "#W2", method="gift_ada"), swap(EXCHANGE, "#W3", method="gift_ada")],
     ["balance"]),
    ([swap(MODIFY, "#W1", method="visa_ben")], ["method"]),
    ([pay("#W1", "gift_ada")], []),
    ([pay("#W1", "paypal_ada")], ["method"]),
    ([pay("#W1", "visa_ada"), pay("#W1", "gift_ada")], ["method"]),
    ([back("#W2", "gift_ada")], []),
    ([back("#W2", "visa_ada")], ["method"]),
    ([back("#W2", "paypal_ada", ())], ["items"]),
    ([back("#W2", "paypal_ada", ("50", "50"))], ["items"]),
    ([Call("think", {"thought": ""})], ["rule"]),
])
def test_the_policy_by_hand(calls, grounds):
    assert [v.ground for v in violations(BOOKS, "ada", calls)] == grounds


def test_what_only_the_policy_forbids_the_tools_let_through():
    domain = retail_domain(BOOKS)
    for calls in (
        [swap(EXCHANGE, "#W2", new=("50",))],
        [swap(EXCHANGE, "#W2", old=(), new=())],
        [cancel({"order_id": "#W5"})],
        [swap(EXCHANGE, "#W2", method="gift_ada"), swap(EXCHANGE, "#W3", method="gift_ada")],
    ):
        state = domain.new_state()
        for call in calls:
            assert not domain.call(state, call.name, call.kwargs).startswith("Error: ")
        assert violations(BOOKS, "ada", calls)


# --- command --------------------------------------------------------------------------------------


def test_the_command_writes_the_same_bytes_for_the_same_seed(tmp_path, capsys):
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    for path, seed in zip(files, (3, 3, 4), strict=True):
        assert main(["--domain=retail", "--num=12", f"--seed={seed}", f"--out={path}"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert Counter(t.split for t in load_tasks(files[0])) == {"train": 10, "held_out": 2}
    printed = capsys.readouterr().out
    assert "Rejected" in printed and "12 tasks in" in printed


@pytest.mark.parametrize("flags, named", [
    (["--domain=airline"], "--domain=airline: tasks can be made for retail only"),
    (["--num=1"], "--num=1"),
    (["--held_out=1"], "--held_out=1"),
    (["--out=/nowhere/at/all.jsonl"], "no such folder"),
    (["--data=/nowhere"], "/nowhere"),
])
def test_bad_flags_are_named(flags, named, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    assert named in capsys.readouterr().err


def test_published_data_is_played_by_the_same_users_and_experts():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    domain = load_domain("retail", SHARED / "retail")
    tasks = synthesise(domain, Plan(20)).tasks
    assert len(tasks) == 20 and all(t.script and t.difficulty for t in tasks)
    for task in tasks:
        dialogue = Dialogue(task, domain, ScriptedUser(task, seed=5))
        play(dialogue, FAULTLESS, seed=5)
        assert verify(domain, dialogue.state, gold(task)).success
        assert json.loads(json.dumps(task.to_json()))["source"] == "synthesis"
