"""A user that errs on purpose, played over HTTP: what of it the check of users finds."""

import collections
import json

import pytest
from erring_users import KIND, Users, serving

from tarl_jax.config import LLMConfig, ShopConfig, TaskConfig, UserConfig
from tarl_jax.judge.calibrate import main
from tarl_jax.judge.user_truth import compare, summary
from tarl_jax.sandbox.llm_user import LLMUsers
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.tasks import make_tasks

SHOP = ShopConfig(num_users=60)


@pytest.fixture(scope="module")
def played():
    domain = embedded_domain("retail", SHOP)
    tasks = make_tasks(domain, SHOP, TaskConfig(num_train=240, num_held_out=2), "train")
    users = Users(tasks)
    with serving(users) as url:
        llm = LLMConfig(model="erring", base_url=url, api_key_env="", backoff_seconds=0.0)
        model = LLMUsers(UserConfig(kind="llm", llm=llm, stop_waits=False))
        try:
            found = compare(domain, tasks, model.user)
        finally:
            model.close()
    return users, found


def test_it_finds_what_the_user_does_wrong_and_blames_no_other(played):
    users, found = played
    by_fault = collections.defaultdict(list)
    for one in found:
        fault = users.made.get(one.trajectory.segments[0].text)
        by_fault[fault].append(one.found)
    right = by_fault.pop(None)
    wrong = [kinds for of in by_fault.values() for kinds in of]
    assert len(wrong) > 40 and len(right) > 120 and len(by_fault) >= 7
    assert sum(map(bool, wrong)) >= 0.95 * len(wrong)
    assert sum(map(bool, right)) <= 0.02 * len(right)
    named = [KIND.get(fault, "contradicts") in kinds for fault, of in by_fault.items()
             for kinds in of]
    assert sum(named) >= 0.9 * len(named)  # by its name, too


def test_the_script_is_the_truth(played):
    users, found = played
    told = summary(found)
    assert told["check"]["finds any"] >= 0.95 and told["check"]["false alarms"] <= 0.15
    assert 0.6 < told["user"]["right"] < 0.9 and told["user"]["failed_to_answer"] == 0
    assert 0.6 < told["user"]["passes"] <= 1 and told["user"]["early_end"] > 0
    assert told["same"]["opening"] == 1 and 0.5 < told["same"]["confirmed"] < 1
    # A user as its script wants it, served by a faultless clerk, passes.
    for one in found:
        if one.trajectory.segments[0].text not in users.made:
            assert one.truth == frozenset() and one.trajectory.success


def test_the_command_prints_it(tmp_path, capsys):
    domain = embedded_domain("retail", ShopConfig())
    tasks = make_tasks(domain, ShopConfig(), TaskConfig(num_held_out=12), "held_out")
    with serving(Users(tasks)) as url:
        user = {"kind": "llm", "llm": {"model": "erring", "base_url": url, "api_key_env": ""}}
        (tmp_path / "user.json").write_text(json.dumps(user))
        assert main(["--users", str(tmp_path / "user.json"), "--episodes", "12"]) == 0
    told = capsys.readouterr().out
    assert "right" in told and "confirmed" in told


@pytest.mark.parametrize(("arguments", "told"), [
    (["--users"], "kind = 'scripted'"), ([], "give --users"),
    (["--users", "no_such_file.json"], "no_such_file.json"),
])
def test_the_command_says_what_is_missing(arguments, told, capsys):
    assert main(arguments) == 2 and told in capsys.readouterr().err
