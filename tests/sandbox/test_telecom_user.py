"""Telecom's scripted user: what it understands, does and tells; and the clerk that mends phones."""

import gzip
import json
from pathlib import Path

import pytest
from telecom_small import small_telecom

from tarl_jax.sandbox import load_benchmark_tasks, load_domain
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.dialogue import TAU2_ENDS, Dialogue
from tarl_jax.sandbox.scoring import verdict_on
from tarl_jax.sandbox.telecom_phrases import ASKS, read
from tarl_jax.sandbox.telecom_user import PATIENCE, TelecomUser
from tarl_jax.types import Call, Check, GoldAction, Task

RECORDED = Path(__file__).parents[3] / "shared" / "tau2" / "telecom" / "domain"
INFO = {"env_type": "user", "func_name": "set_user_info",
        "arguments": {"name": "Ada Ito", "phone_number": "801-2"}}
MMS = Check("assert_can_send_mms", {"expected_status": True})


def broken(*names, checks=(MMS,), actions=()):
    steps = [INFO, *({"env_type": "user", "func_name": n, "arguments": {}} for n in names)]
    return Task("t", "C2", "", (), (), "train", "tau2", None, 3, checks=checks, actions=actions,
                reward_basis=("ENV_ASSERTION",), initial_state={"initialization_actions": steps})


def begun(task, **more):
    domain = small_telecom()
    return Dialogue(task, domain, TelecomUser(task, 1), ends=TAU2_ENDS, **more)


@pytest.mark.parametrize("tool", ASKS)
def test_each_tool_is_understood_by_its_sentence_and_its_name(tool):
    sentence = ASKS[tool].sentence.format(app_name="messaging", permission="sms")
    assert read(sentence).tool in (tool, "make_payment")
    assert read(f"Now call `{tool}()`.").tool == tool


@pytest.mark.parametrize(("message", "tool", "more"), [
    ("Could you please switch Airplane Mode off?", "toggle_airplane_mode", {"on": False}),
    ("Enable data roaming, then restart.", "toggle_roaming", {"on": True}),
    ("Can you check if Data Saver is on?", "check_data_restriction_status", {"on": True}),
    ("Set the network mode preference to 4g_only", "set_network_mode_preference",
     {"mode": "4g_only"}),
    ("Please grant the messaging app the SMS permission.", "grant_app_permission",
     {"permission": "sms"}),
    ("What does your status bar show?", "check_status_bar", {}),
    ("Remove the SIM card and put it back", "reseat_sim_card", {}),
    ("Please pay the bill.", "make_payment", {}),
])
def test_other_words_are_understood(message, tool, more):
    meant = read(message)
    assert (meant.kind, meant.tool) == ("tool", tool)
    assert {key: getattr(meant, key) for key in more} == more


@pytest.mark.parametrize(("message", "kind"), [
    ("What is your phone number?", "who"),
    ("You are being transferred to a human agent.", "transfer"),
    ("Shall I add 2 GB for $4.00? (yes/no)", "yes"), ("Hello.", "other"),
])
def test_what_is_no_task_for_the_phone(message, kind):
    assert read(message).kind == kind


def test_it_does_what_it_is_asked_tells_what_it_sees_and_stops_when_it_is_mended():
    dialogue = begun(broken("turn_data_off", "turn_airplane_mode_on"))
    assert "picture" in dialogue.opening or "pictures" in dialogue.opening
    assert "801-2" in dialogue.opening and dialogue.opening_info == {"fulfilled": []}
    seen = dialogue.act("Please check your network status.")
    assert seen.text.startswith("Airplane Mode: ON\n") and seen.stop_reason is None
    assert [c["name"] for c in seen.info["user_calls"]] == ["check_network_status"]
    off = dialogue.act("Please turn airplane mode off.")
    assert off.text.startswith("Airplane Mode is now OFF.") and "Status Bar" not in off.text
    assert [c["name"] for c in off.info["user_calls"]] == [
        "check_network_status", "toggle_airplane_mode", "can_send_mms"]
    assert off.info["fulfilled"] == [] and off.stop_reason is None
    again = dialogue.act("Please turn airplane mode off.")
    assert again.text == "It is off already." and "fulfilled" not in again.info
    mended = dialogue.act("Use toggle_data.")
    assert mended.stop_reason == "user_stop" and mended.info["fulfilled"] == [0]


def test_it_takes_what_the_agent_does_not_say_from_its_task():
    task = broken("turn_data_off", actions=(GoldAction("grant_app_permission",
                                                    {"app_name": "messaging", "permission": "sms"},
                                                    requestor="user"),))
    dialogue = begun(task)
    left_open = dialogue.act("Please give the messaging app its permission.")
    assert left_open.info["user_calls"][0]["kwargs"]["permission"] == "sms"
    named = dialogue.act("Please give the messaging app the network permission.")
    calls = [c["kwargs"]["permission"] for c in named.info["user_calls"] if c["kwargs"]]
    assert calls == ["network"]


def test_it_gives_up_and_is_transferred():
    locked = broken("unseat_sim_card")
    dialogue = begun(locked)
    stops = [dialogue.act("Hello.").stop_reason for _ in range(PATIENCE + 1)]
    assert stops == [None] * PATIENCE + ["user_stop"]
    dialogue = begun(locked)
    assert dialogue.act(Call("transfer_to_human_agents", {"summary": ""})).stop_reason is None
    last = dialogue.act("YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.")
    assert (last.text, last.stop_reason) == ("###TRANSFER###", "user_stop")


def test_its_calls_count_among_errors_and_messages():
    dialogue = begun(broken("turn_data_off"))
    dialogue.act("Please check your network status.")
    assert dialogue._messages == 5 and dialogue._errors == 0
    dialogue._call_of_user("fly", {})
    assert dialogue._messages == 7 and dialogue._errors == 1


def test_a_task_without_a_complaint_needs_another_user():
    with pytest.raises(ValueError, match=r"'t': its checks ask for nothing .* --config.user.kind"):
        TelecomUser(broken(checks=()), 0)


@pytest.mark.skipif(not RECORDED.is_dir(), reason="τ²-bench's telecom is not beside this checkout")
def test_the_clerk_mends_the_benchmarks_tasks(tmp_path):
    for path in RECORDED.iterdir():
        data = path.read_bytes()
        packed = path.suffix == ".gz"
        (tmp_path / path.name.removesuffix(".gz")).write_bytes(
            gzip.decompress(data) if packed else data
        )
    domain = load_domain("telecom", tmp_path)
    base = set(json.loads((tmp_path / "split_tasks.json").read_text())["base"])
    tasks = [t for t in load_benchmark_tasks("telecom", tmp_path, domain)
             if t.task_id.removeprefix("tau2/telecom/") in base]
    assert len(tasks) >= 74
    for task in tasks:
        dialogue = Dialogue(task, domain, TelecomUser(task, 0), max_turns=60, ends=TAU2_ENDS)
        turns = play(dialogue, FAULTLESS, 0)
        calls = [action for action, _ in turns if isinstance(action, Call)]
        assert verdict_on(domain, task, dialogue.state, calls, []).success, task.task_id
        assert turns[-1][1].stop_reason == "user_stop"
        assert not any(o.info.get("error") for _, o in turns), task.task_id
