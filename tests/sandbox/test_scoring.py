"""The benchmark's parts and reward of an episode."""

import dataclasses

import pytest

from tarl_jax.sandbox import load_domain, score
from tarl_jax.sandbox.scoring import score_of, verdict_on
from tarl_jax.types import Call, GoldAction, Task


@pytest.fixture(scope="module")
def domain():
    return load_domain("retail", rules="tau2")


@pytest.fixture(scope="module")
def cancel(domain):
    order = next(o for o in domain.database["orders"].values() if o["status"] == "pending")
    return Call("cancel_pending_order",
                {"order_id": order["order_id"], "reason": "no longer needed"})


def task(*actions, basis=("DB",), outputs=(), assertions=(), compare_args=None):
    return Task(
        "tau2/retail/1", "u", "i", tuple(a for a in actions if a.name.startswith("cancel")),
        outputs, "train", "tau2", None, 1, assertions, reward_basis=basis,
        actions=tuple(GoldAction(a.name, a.kwargs, compare_args) for a in actions),
    )


def made(*calls, **more):
    return [{"name": c.name, "kwargs": dict(c.kwargs), **more} for c in calls]


READ = Call("calculate", {"expression": "1 + 1"})


def test_the_parts_and_the_reward_of_each_basis(domain, cancel):
    wanted = task(READ, cancel, outputs=("1,000", "Yes"), basis=("DB", "COMMUNICATE", "ACTION"))
    # (calls, messages) -> database, actions, communicate
    for calls, said, parts in [
        ([READ, cancel], ["1,000", "yes!"], (True, True, False)),  # commas go from what is said
        ([READ, cancel], ["yes"], (True, True, False)),
        ([cancel], [], (True, False, False)),
        ([READ], [], (False, False, False)),
    ]:
        found = score(domain, wanted, made(*calls), said)
        assert (found.database, found.actions, found.communicate) == parts
        assert found.environment is None and found.assertions is None
        for basis, holds in zip(("DB", "ACTION", "COMMUNICATE"), parts, strict=True):
            of_one = dataclasses.replace(wanted, reward_basis=(basis,))
            assert score(domain, of_one, made(*calls), said).reward == float(holds)
        assert found.reward == float(all(parts))


def test_what_is_not_asked_is_none_and_costs_nothing(domain):
    nothing = task(basis=("DB", "ACTION", "COMMUNICATE", "ENV_ASSERTION", "NL_ASSERTION"))
    found = score(domain, nothing, [])
    assert (found.database, found.actions, found.communicate, found.assertions, found.reward) == (
        True, None, None, None, 1.0
    )
    unasked = dataclasses.replace(nothing, actions=None)
    assert score(domain, unasked, []).database is None and score(domain, unasked, []).reward == 1


def test_assertions_that_nobody_judged_are_no_pass(domain, cancel):
    asked = task(cancel, basis=("DB", "NL_ASSERTION"), assertions=("Polite.",))
    assert score(domain, asked, made(cancel)).reward is None
    assert score(domain, asked, made(cancel), assertions=True).reward == 1.0
    assert score(domain, asked, made(cancel), assertions=False).reward == 0.0
    assert score(domain, asked, []).reward == 0.0  # the database fails whatever they say
    beside = dataclasses.replace(asked, reward_basis=("DB",))
    assert score(domain, beside, made(cancel)).reward == 1.0


@pytest.mark.parametrize(("compare_args", "kwargs", "same"), [
    (None, {"a": 1, "b": 2}, True),
    (None, {"a": 1}, True),  # what the agent left out is not compared
    (None, {"a": 1, "c": 3}, False),
    (("a",), {"a": 1, "b": 9}, True),
    (("b",), {"a": 1, "b": 9}, False),
    ((), {"z": 0}, True),
])
def test_an_action_is_compared_by_the_arguments_that_count(compare_args, kwargs, same):
    asked = task(Call("do", {"a": 1, "b": 2}), basis=("ACTION",), compare_args=compare_args)
    assert score_of(asked, True, True, [Call("do", kwargs)]).actions is same
    assert score_of(asked, True, True, [Call("did", kwargs)]).actions is False


def test_a_user_has_no_tools_here(domain, cancel):
    wanted = task(cancel)
    assert score(domain, wanted, made(cancel, requestor="assistant")).database is True
    assert score(domain, wanted, made(cancel, requestor="user")).database is False
    with pytest.raises(ValueError, match="requestor 'judge': choose one of assistant, user"):
        score(domain, wanted, made(cancel, requestor="judge"))
    begun = dataclasses.replace(wanted, initial_state={"message_history": [{"role": "user"}]})
    with pytest.raises(ValueError, match="tau2/retail/1: initial_state"):
        score(domain, begun, made(cancel))


def test_tau_bench_asks_for_database_and_outputs(cancel):
    domain = load_domain("retail")
    asked = dataclasses.replace(task(cancel, outputs=("42",)), actions=None, reward_basis=())
    assert score(domain, asked, made(cancel), ["It is 42."]).reward == 1.0
    assert score(domain, asked, made(cancel)).reward == 0.0
    assert score(domain, asked, [], ["42"]).reward == 0.0


def test_a_task_keeps_what_it_is_judged_by(cancel):
    kept = task(READ, cancel, outputs=("1",), compare_args=("reason",))
    assert Task.from_json(kept.to_json()) == kept


def test_the_verdict_of_training_is_of_all_that_the_basis_names(domain, cancel):
    """But for assertions, which rules cannot judge; without a basis of the database alone."""
    state = domain.new_state()
    domain.call(state, cancel.name, dict(cancel.kwargs))
    wanted = task(READ, cancel, outputs=("1000",), assertions=("Polite.",))
    for basis, calls, said, success, told in [
        (("DB",), [cancel], [], True, ()),
        (("DB", "COMMUNICATE"), [cancel], [], False, ("not said: 1000",)),
        (("DB", "COMMUNICATE"), [cancel], ["It is 1,000."], True, ()),
        (("DB", "ACTION"), [cancel], [], False, ("actions: not all were called",)),
        (("DB", "ACTION"), [READ, cancel], [], True, ()),
        (("DB", "NL_ASSERTION"), [cancel], [], True, ()),
        (("COMMUNICATE",), [], ["1,000"], True, ()),
        ((), [cancel], [], True, ()),
    ]:
        of_one = dataclasses.replace(wanted, reward_basis=basis)
        verdict = verdict_on(domain, of_one, state, calls, said)
        assert (verdict.success, verdict.diff) == (success, told), basis
    nothing = dataclasses.replace(wanted, reward_basis=("DB", "NL_ASSERTION"))
    assert not verdict_on(domain, nothing, domain.new_state(), [], []).success
