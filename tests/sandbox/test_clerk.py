"""The scripted clerk: each error it can be told to make is made, and it knows no more than it read.

Its errors give the warm start its variety, so an error that never happens goes unnoticed there.
"""

import dataclasses
import json

import pytest

from tarl_jax.config import ClerkConfig, ShopConfig, TaskConfig
from tarl_jax.sandbox import shop
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import Dialogue
from tarl_jax.sandbox.retail import retail_domain
from tarl_jax.sandbox.shop_requests import KINDS
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.user import Reply, ScriptedUser
from tarl_jax.sandbox.verifier import verify
from tarl_jax.types import Call

DOMAIN = retail_domain(shop.make_shop(ShopConfig()))
TASKS = make_tasks(DOMAIN, ShopConfig(), TaskConfig(num_train=1500), "train")
FORBIDDEN_TASKS = make_tasks(
    DOMAIN, ShopConfig(), TaskConfig(num_train=400, forbidden=0.9, max_idle=1.0), "train"
)


def served(task, seed=1, **errors):
    """(success, history) of the clerk that makes these errors."""
    dialogue = Dialogue(task, DOMAIN, ScriptedUser(task, seed))
    history = play(dialogue, dataclasses.replace(FAULTLESS, **errors), seed)
    gold = [(c.name, dict(c.kwargs)) for c in task.gold_calls]
    return verify(DOMAIN, dialogue.state, gold).success, history


def single(kinds=KINDS, denial="", change=""):
    """Tasks of one request of that sort."""
    found = []
    for task in FORBIDDEN_TASKS if denial else TASKS:
        first, *rest = task.script["requests"]
        same = (first["denial"], first["change"]) == (denial, change)
        if same and not rest and first["kind"] in kinds:
            found.append(task)
    assert len(found) >= 5
    return found


def writes(history):
    return [observation for _, observation in history if observation.info.get("wrote")]


def messages(history):
    return [action for action, _ in history if isinstance(action, str)]


def order_of(task):
    return DOMAIN.database["orders"][task.script["requests"][0]["order_id"]]


def test_a_wrong_variant_fails_every_exchange_and_modification():
    for task in single(("exchange", "modify")):
        assert served(task)[0]
        assert not served(task, wrong_variant=1.0)[0]


def test_a_wrong_item_fails_every_return_from_an_order_with_several():
    some = 0
    for task in single(("return",)):
        several = len(order_of(task)["items"]) > 1
        some += several
        assert served(task, wrong_item=1.0)[0] == (not several)
    assert some


def test_a_wrong_reason_fails_every_cancellation():
    for task in single(("cancel",)):
        success, history = served(task, wrong_reason=1.0)
        assert not success and len(writes(history)) == 1


def test_a_wrongful_denial_writes_nothing():
    for task in single():
        success, history = served(task, wrongful_denial=1.0)
        assert not success and not writes(history)
        assert "cannot" in messages(history)[-1]


def test_a_false_done_writes_nothing_and_says_done():
    for task in single():
        success, history = served(task, false_done=1.0)
        assert not success and not writes(history)
        assert "done" in messages(history)[-1].lower()


def test_a_transfer_ends_the_dialogue():
    for task in single():
        success, history = served(task, transfer=1.0)
        assert not success
        assert history[-1][1].stop_reason == "transfer"


def test_a_redundant_read_does_no_harm():
    for task in single():
        success, history = served(task, redundant_read=1.0)
        calls = [json.dumps(a.to_json()) for a, _ in history if isinstance(a, Call)]
        assert success and len(set(calls)) == len(calls) - 1


def test_without_the_confirmation_a_change_of_mind_is_never_heard():
    for task in single():
        success, history = served(task, skip_confirmation=1.0)
        assert success and not any("(yes/no)" in text for text in messages(history))
    for task in single(change="option") + single(change="drop"):
        assert not served(task, skip_confirmation=1.0)[0]


def test_ignoring_a_rule_tries_what_is_forbidden():
    # The shop's own tools stop all but a made-up reason.
    for denial in ("status", "reason", "unavailable", "balance"):
        for task in single(denial=denial):
            assert not any("yes/no" in m for m in messages(served(task)[1]))
            success, history = served(task, ignore_rule=1.0)
            assert success == (denial != "reason") == (not writes(history))
            if success:
                assert any(o.text.startswith("Error: ") for _, o in history)
                assert "cannot" in messages(history)[-1]


def test_a_rejected_write_is_tried_again_with_the_right_arguments():
    again = 0
    for task in single(("exchange", "modify")):
        _, once = served(task, wrong_variant=1.0)
        success, twice = served(task, wrong_variant=1.0, retry=1.0)
        rejected = [i for i, (_, seen) in enumerate(once) if seen.info.get("error")]
        if not rejected:  # the tool took the wrong variant: it cannot be taken back
            assert twice == once and not success
            continue
        again += 1
        (at,) = rejected
        assert twice[: at + 1] == once[: at + 1]
        assert "cannot" in once[at + 1][0] and len(once) == at + 2
        assert success and len(writes(twice)) == 1 and len(twice) == at + 3
        assert task.gold_calls == (twice[at + 1][0],) and "done" in twice[at + 2][0].lower()
    assert again >= 3


def test_how_often_it_tries_again_is_its_own_number():
    def tried(retry):
        return sum(
            served(t, wrong_variant=1.0, retry=retry)[0] for t in single(("exchange", "modify"))
        )

    assert 0 == tried(0.0) < tried(0.5) < tried(1.0)


def test_what_the_policy_forbids_is_not_tried_again():
    for denial in ("status", "unavailable", "balance"):
        for task in single(denial=denial):
            assert served(task, ignore_rule=1.0, retry=1.0) == served(task, ignore_rule=1.0)


def test_a_faultless_clerk_tries_nothing_again():
    for task in TASKS[:200]:
        assert served(task, retry=1.0) == served(task)


def test_the_default_clerk_makes_each_of_its_errors_sometimes_and_fails_sometimes():
    results = [served(task, **dataclasses.asdict(ClerkConfig()))[0] for task in TASKS[:500]]
    assert 0.75 < sum(results) / len(results) < 0.88


@pytest.mark.parametrize("errors", [FAULTLESS, ClerkConfig()], ids=["faultless", "default"])
@pytest.mark.parametrize("brief", [False, True])
def test_it_uses_only_what_the_dialogue_has_shown(errors, brief):
    # A policy that imitates it could otherwise only learn to guess.
    for task in TASKS[:200]:
        dialogue = Dialogue(task, DOMAIN, ScriptedUser(task, 5), brief_writes=brief)
        shown = dialogue.opening
        for action, observation in play(dialogue, errors, 5):
            if isinstance(action, Call):
                for key, value in action.kwargs.items():
                    if key not in ("reason", "summary"):
                        for text in value if isinstance(value, list) else [value]:
                            assert text in shown, (task.task_id, action)
            shown += f"\n{observation.text}"


def test_the_seed_decides_its_errors():
    def texts(seed):
        return [[str(a) for a, _ in served(t, seed, **dataclasses.asdict(ClerkConfig()))[1]]
                for t in TASKS[:30]]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_it_serves_scripted_users_only():
    class Other:
        def opening(self):
            return "Hi."

        def reply(self, message):
            return Reply("Hm.", {})

    with pytest.raises(TypeError, match="ScriptedUser only"):
        play(Dialogue(TASKS[0], DOMAIN, Other()), FAULTLESS, 0)
