"""Tasks that are passed without being done, counted by hand."""

from pathlib import Path

import pytest
from small_databases import small_retail

from tarl_jax.sandbox import load_benchmark_tasks, load_domain
from tarl_jax.sandbox.idle import Idle, idle
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.types import Call, GoldAction, Task

CANCEL = Call("cancel_pending_order", {"order_id": "#W1", "reason": "no longer needed"})
REFUSED = Call("cancel_pending_order", {"order_id": "#W2", "reason": "no longer needed"})


def task(gold=(), outputs=(), **more):
    return Task("t", "ada_1", "", tuple(gold), tuple(outputs), "train", "x", None, 1, **more)


def test_they_are_counted_by_the_database_and_by_the_whole_reward():
    handing = GoldAction("transfer_to_human_agents", {"summary": "y"}, ())
    tasks = [
        task([CANCEL]),  # something is to be done
        task(), task([REFUSED]),  # nothing is, or it is refused
        task(outputs=["54"]),  # something is to be told
        task(actions=(handing,), reward_basis=("DB", "ACTION")),  # a transfer is the solution
    ]
    assert idle(retail_domain(small_retail()), tasks) == Idle(
        tasks=5, nothing=2, nothing_database=4, handing_over=3, handing_over_database=4)


def test_of_published_data():
    folder = Path(__file__).parents[2] / "../shared/tau_bench/airline"
    if not folder.is_dir():
        pytest.skip("τ-bench's data are not here")
    domain = load_domain("airline", folder)
    tasks = load_benchmark_tasks("airline", folder, domain)
    found = idle(domain, tasks)
    # Whoever writes nothing passes where no gold call changes anything: those without one do.
    assert found.nothing_database >= sum(not t.gold_calls for t in tasks) > 0
    assert f"of {len(tasks)} tasks {found.nothing_database} are passed" in str(found)
