"""Desks by the name of their domain, and scripts that name theirs."""

import json

import pytest

from tarl_jax.config import ShopConfig, TaskConfig
from tarl_jax.sandbox import shop
from tarl_jax.sandbox.desk import call_key
from tarl_jax.sandbox.desks import DESKS, desk_of
from tarl_jax.sandbox.published import DOMAINS, embedded_domain
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.shop_requests import Request
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.types import Call

SMALL = ShopConfig(num_users=20)


def test_a_domain_without_a_desk_is_named():
    with pytest.raises(ValueError, match="domain 'bank' has no scripted desk: choose one of ret"):
        desk_of("bank")
    with pytest.raises(ValueError, match="domain 'bank' has no scripted desk"):
        embedded_domain("bank", SMALL)


def test_a_script_without_a_desk_is_retails():
    # Task files from before there were several desks.
    script = Script("Ada", "Ito", "a@mail.com", "801", "email", True, (Request("cancel", "#W1"),))
    data = script.to_json()
    assert "desk" not in data and Script.from_json(json.loads(json.dumps(data))) == script
    assert Script.from_json(data).desk == "retail"


def test_a_script_of_an_unknown_desk_is_refused():
    data = Script("Ada", "Ito", "a@mail.com", "801", "email", True, ()).to_json()
    with pytest.raises(ValueError, match="domain 'bank' has no scripted desk"):
        Script.from_json({**data, "desk": "bank"})


@pytest.mark.parametrize("name", DESKS)
def test_a_desk_fits_its_domain(name):
    desk, domain = DESKS[name], embedded_domain(name, SMALL)
    assert domain.name == name and DOMAINS[name].policy.read_text("utf-8") == domain.policy
    user_id, user = next(iter(domain.database["users"].items()))
    assert set(user[desk.table]) <= set(domain.database[desk.table])
    for task in make_tasks(domain, SMALL, TaskConfig(num_train=40), "train"):
        script = Script.from_json(task.script)
        assert script.desk == name
        for request in script.requests:
            look = desk.look(request)
            answer = domain.call(domain.new_state(), look.name, dict(look.kwargs))
            assert json.loads(answer) == domain.database[desk.table][request.record_id]
            for call in desk.look_further(request, user_id):
                assert not domain.tools[call.name].write
            if not request.denial and request.kind not in desk.reads:
                assert set(desk.wrong_grounds(request)) <= set(desk.phrases.refusals)


def test_embedded_retail_is_the_shop():
    domain = embedded_domain("retail", SMALL, branch=2)
    assert domain.database == shop.make_shop(SMALL, 2)


def test_equal_calls_have_one_key():
    one, two = Call("f", {"a": 1, "b": [2]}), Call("f", {"b": [2], "a": 1})
    assert call_key(one) == call_key(two) != call_key(Call("f", {"a": 1, "b": [3]}))
