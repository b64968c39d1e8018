"""The service against a real server that fails in every way: what comes back, and what is counted.

The server counts the faults that it injected; the ledger must have seen each of them.
"""

import dataclasses
import json
import logging
import sqlite3
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai_server import HANG

from tarl_jax.config import InputError, LLMConfig
from tarl_jax.llm.errors import BudgetSpent, LLMError
from tarl_jax.llm.service import ChatService

KEY = "sk-very-secret-0123456789"
ASK = [{"role": "user", "content": "Say it back."}]
SCHEMA = {
    "type": "object", "required": ["score", "reason"],
    "properties": {"score": {"type": "integer"}, "reason": {"type": "string"}},
}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
def service(openai_server):
    """Makes services of a config with changes; closes them."""
    made = []

    def make(**changes):
        config = dataclasses.replace(
            LLMConfig(model="echo", base_url=openai_server.url, api_key_env="TEST_KEY",
                      timeout_seconds=60.0, max_attempts=3, backoff_seconds=0.01),
            **changes,
        )
        made.append(ChatService(config, "user.llm"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def failure(service, **options):
    with pytest.raises(LLMError) as caught:
        service.complete(ASK, **options)
    return caught.value


def test_an_answer_with_its_tokens(openai_server, service):
    openai_server.plan()
    one = service(temperature=0.5, max_tokens=7)
    completion = one.complete(ASK)
    assert completion.text == "Say it back."
    assert (completion.prompt_tokens, completion.completion_tokens) == (12, 12)
    assert openai_server.report()["last"] == {
        "path": "/v1/chat/completions",
        "body": {"model": "echo", "messages": ASK, "temperature": 0.5, "max_tokens": 7},
    }
    counts = one.ledger.snapshot()
    assert (counts["calls"], counts["requests"], counts["prompt_tokens"]) == (1, 1, 12)


def test_what_is_left_to_the_server_is_not_sent(openai_server, service):
    openai_server.plan()
    service(temperature=-1.0, max_tokens=0).complete(ASK)
    assert set(openai_server.report()["last"]["body"]) == {"model", "messages"}


@pytest.mark.parametrize(("fault", "kind"), [
    ("429", "rate_limited"), ("500", "server_error"), ("503", "server_error"),
    ("408", "timeout"), ("malformed", "malformed"), ("html", "malformed"), ("list", "malformed"),
    ("empty", "malformed"), ("silent", "malformed"), ("truncated", "connection"),
    ("drop", "connection"),
])
def test_a_fault_that_passes_is_tried_again_and_counted(openai_server, service, fault, kind):
    openai_server.plan(fault)
    one = service()
    assert one.complete(ASK).text == "Say it back."
    counts = one.ledger.snapshot()
    assert counts[f"faults_{kind}"] == 1 == openai_server.report()["injected"][fault]
    assert sum(v for k, v in counts.items() if k.startswith("faults_")) == 1
    assert counts["requests"] == 2 == openai_server.report()["requests"]
    assert counts["failed"] == 0

    openai_server.plan(*[fault] * 3)
    error = failure(one)
    assert error.kind == kind and not error.fatal
    assert "echo at http://127.0.0.1" in str(error)
    assert "gave up after attempt 3 of 3" in str(error)
    assert openai_server.report()["requests"] == 3 and one.ledger.snapshot()["failed"] == 1


@pytest.mark.parametrize("fault", ["hang", "trickle"])
def test_what_hangs_is_dropped(openai_server, service, fault):
    openai_server.plan(fault)
    # A machine that is busy may drop more than what hangs.
    one = service(timeout_seconds=0.2, max_attempts=100)
    assert one.complete(ASK).text == "Say it back."
    counts = one.ledger.snapshot()
    assert counts["faults_timeout"] == counts["requests"] - 1 >= 1
    assert openai_server.report()["injected"] == {fault: 1}
    assert counts["seconds_asking"] < HANG / 2

    openai_server.plan(*[fault] * 3)
    one = service(timeout_seconds=0.2)
    assert failure(one).kind == "timeout"
    assert one.ledger.snapshot()["faults_timeout"] == 3


@pytest.mark.parametrize(("fault", "kind", "fatal", "remedy"), [
    ("400", "bad_request", False, "config.user.llm.max_tokens=0"),
    ("401", "unauthorized", True, "config.user.llm.api_key_env"),
    ("404", "not_found", True, "config.user.llm.base_url"),
    ("quota", "quota", True, "the account has nothing left"),
])
def test_a_refusal_is_not_tried_again(openai_server, service, fault, kind, fatal, remedy):
    openai_server.plan(fault)
    one = service()
    error = failure(one)
    assert (error.kind, error.fatal) == (kind, fatal)
    assert "echo at http://127.0.0.1" in str(error) and remedy in str(error)
    assert openai_server.report()["requests"] == 1 == one.ledger.snapshot()["refused"]


def test_the_server_says_when_to_come_back(openai_server, service):
    openai_server.plan("429", "503", retry_after="0.15")
    one = service()
    begun = time.monotonic()
    one.complete(ASK)
    assert time.monotonic() - begun >= 0.3
    assert one.ledger.snapshot()["seconds_waiting"] >= 0.3


def test_a_server_that_wants_an_hour_is_given_up_on(openai_server, service):
    openai_server.plan("429", retry_after="3600")
    assert failure(service()).kind == "rate_limited"
    assert openai_server.report()["requests"] == 1


def test_no_attempt_begins_after_the_deadline(openai_server, service):
    openai_server.plan("429", retry_after="200")
    now = time.monotonic()
    assert failure(service(), deadline=now + 100).kind == "rate_limited"
    assert failure(service(), deadline=now - 1).kind == "deadline"
    assert openai_server.report()["requests"] == 1


def test_the_deadline_ends_a_request(openai_server, service):
    openai_server.plan("hang")
    assert failure(service(), deadline=time.monotonic() + 0.5).kind in ("timeout", "deadline")


def test_a_server_that_is_not_there(service):
    one = service(base_url="http://127.0.0.1:9/v1")
    assert failure(one).kind == "connection"
    assert one.ledger.snapshot()["faults_connection"] == 3


# ---- answers that must fit a schema -------------------------------------------------------------


def test_a_schema_is_sent_and_held_to(openai_server, service):
    openai_server.plan("prose")
    one = service(model="verdict/judge")
    assert json.loads(one.complete(ASK, schema=SCHEMA).text)["score"] == 1
    sent = openai_server.report()["last"]["body"]["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["schema"] == SCHEMA
    assert one.ledger.snapshot()["faults_malformed"] == 1
    other = SCHEMA | {"required": ["mood"]}
    assert "must contain ['mood']" in str(failure(one, schema=other))
    assert service(model="verdict").complete(ASK).text.startswith("{")


# ---- many at once -------------------------------------------------------------------------------


def storm(service, calls):
    """What each of so many calls at once came to."""

    def call(number):
        try:
            return service.complete(ASK, key=str(number)).text
        except LLMError as error:
            return error.kind

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(call, range(calls)))


def test_in_a_storm_every_call_ends_and_every_fault_is_counted(openai_server, service):
    faults = {"429": 0.1, "500": 0.1, "malformed": 0.1, "drop": 0.1, "truncated": 0.1}
    openai_server.plan(fractions=faults, seed=3, retry_after="0.01")
    one = service(max_in_flight=8)
    outcomes = storm(one, 120)
    answered = outcomes.count("Say it back.")
    assert len(outcomes) == 120 and 0 < answered < 120
    report, counts = openai_server.report(), one.ledger.snapshot()
    injected = report["injected"]
    assert counts["requests"] == report["requests"] == answered + sum(injected.values())
    assert counts["faults_rate_limited"] == injected["429"]
    assert counts["faults_server_error"] == injected["500"]
    assert counts["faults_malformed"] == injected["malformed"]
    assert counts["faults_connection"] == injected["drop"] + injected["truncated"]
    assert counts["faults_timeout"] == 0
    assert (counts["calls"], counts["failed"]) == (120, 120 - answered)
    assert report["max_in_flight"] <= 8


def test_calls_that_hang_end_too(openai_server, service):
    openai_server.plan(fractions={"hang": 0.3}, seed=1)
    one = service(max_in_flight=8, timeout_seconds=0.5)
    outcomes = storm(one, 16)
    assert set(outcomes) <= {"Say it back.", "timeout"}
    counts = one.ledger.snapshot()
    assert counts["faults_timeout"] >= openai_server.report()["injected"]["hang"] > 0
    assert counts["requests"] == outcomes.count("Say it back.") + counts["faults_timeout"]


def wait_until(condition):
    deadline = time.monotonic() + HANG / 2
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_more_are_in_flight_than_allowed(openai_server, service):
    openai_server.plan(*["hold"] * 12)
    one = service(max_in_flight=3)
    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(one.complete, ASK, key=str(n)) for n in range(12)]
        wait_until(lambda: openai_server.report()["requests"] == 3)
        wait_until(lambda: one.ledger.snapshot()["calls"] == 12)
        openai_server.release()
        assert all(call.result() for call in calls)
    assert openai_server.report()["max_in_flight"] == 3


def test_equal_calls_at_once_are_one_request(openai_server, service):
    openai_server.plan("hold")
    one = service(model="user")
    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(one.complete, ASK, key="same") for _ in range(5)]
        wait_until(lambda: one.ledger.snapshot()["calls"] == 5)
        openai_server.release()
        assert len({call.result().text for call in calls}) == 1
    assert openai_server.report()["requests"] == 1
    assert one.ledger.snapshot()["cache_hits"] == 4


def test_closing_ends_what_is_under_way(openai_server, service):
    openai_server.plan("hang", "429", retry_after="60")
    hanging = service(timeout_seconds=HANG)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(failure, hanging, key=str(n)) for n in range(2)]
        while openai_server.report()["requests"] < 2:
            time.sleep(0.01)
        hanging.close()
        assert {call.result(HANG / 2).kind for call in calls} == {"setup"}


# ---- budgets ------------------------------------------------------------------------------------


def test_the_budget_of_calls_counts_repeated_attempts(openai_server, service):
    openai_server.plan("500")
    one = service(max_calls=3)
    one.complete(ASK)
    one.complete(ASK)
    with pytest.raises(BudgetSpent, match=r"config.user.llm.max_calls = 3: 3 requests are sent"):
        one.complete(ASK)
    assert openai_server.report()["requests"] == 3


def test_the_budget_of_dollars(openai_server, service):
    openai_server.plan()
    one = service(max_usd=1.0, usd_per_million_input=20_000.0, usd_per_million_output=10_000.0,
                  max_tokens=12)
    one.complete(ASK)
    spent = one.ledger.snapshot()["usd"]
    assert spent == pytest.approx(12 * 0.02 + 12 * 0.01)
    with pytest.raises(BudgetSpent, match=r"max_usd = 1.0: 0.3600 are spent"):
        one.complete(ASK)  # its estimate, of about 26 tokens for the request, is beyond the rest
    assert one.ledger.snapshot()["usd"] == spent


def test_usage_that_a_server_does_not_tell_is_zero(openai_server, service):
    openai_server.plan("no_usage")
    assert service().complete(ASK).prompt_tokens == 0


# ---- cache --------------------------------------------------------------------------------------


def test_what_is_cached_is_not_asked_again(openai_server, service, tmp_path):
    openai_server.plan()
    changes = {"model": "user", "cache_dir": str(tmp_path)}
    first = service(**changes).complete(ASK, key="a")
    again = service(**changes)
    assert again.complete(ASK, key="a") == first
    assert again.ledger.snapshot()["cache_hits"] == 1 and again.ledger.snapshot()["requests"] == 0
    assert openai_server.report()["requests"] == 1
    others = [again.complete(ASK, key="b"), again.complete(ASK * 2, key="a"),
              service(**changes, temperature=0.1).complete(ASK, key="a"),
              service(**changes | {"model": "user/b"}).complete(ASK, key="a")]
    assert len({c.text for c in (first, *others)}) == 5


def test_failures_are_not_cached(openai_server, service, tmp_path):
    openai_server.plan("400")
    one = service(cache_dir=str(tmp_path))
    failure(one)
    assert one.complete(ASK).text == "Say it back."


# ---- secrets ------------------------------------------------------------------------------------


def test_the_key_is_in_no_error_no_log_and_no_file(openai_server, service, tmp_path, caplog):
    openai_server.plan("401", "400")
    one = service(cache_dir=str(tmp_path), record=str(tmp_path / "record.jsonl"))
    with caplog.at_level(logging.DEBUG):
        error = failure(one)
        failure(one)
        one.complete(ASK, key="another")
    assert "wrong key: Bearer ***" in str(error)  # the server did repeat it
    assert KEY not in "".join(traceback.format_exception(error)) + caplog.text
    assert caplog.text  # or the line above would say nothing
    assert KEY not in repr(vars(one.config)) + repr(one.ledger.snapshot())
    one.close()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 2
    assert all(KEY.encode() not in path.read_bytes() for path in written)


def test_a_key_that_an_answer_repeats_is_in_no_record_and_no_cache(
    openai_server, service, tmp_path, monkeypatch
):
    """Nor where JSON has escaped it, nor with the line end that the variable has."""
    key = "sk-secret/+0123456789"
    monkeypatch.setenv("TEST_KEY", f"{key}\n")
    openai_server.plan()
    one = service(cache_dir=str(tmp_path), record=str(tmp_path / "record.jsonl"))
    said = one.complete([{"role": "user", "content": f"The key is {key}."}]).text
    assert said == "The key is ***."
    one.close()
    record = json.loads((tmp_path / "record.jsonl").read_text())
    assert record["answer"]["text"] == said
    rows = sqlite3.connect(tmp_path / "llm.sqlite").execute("SELECT json FROM answers").fetchall()
    assert rows and not any("0123456789" in json for (json,) in rows)


def test_a_key_that_no_header_can_carry_is_named_and_not_shown(service, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-sec\nret")
    with pytest.raises(InputError, match="TEST_KEY: holds characters") as raised:
        service().check()
    assert "ret" not in str(raised.value).replace("secret", "")


def test_a_key_that_is_not_set_is_said_at_once(service, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    one = service()
    with pytest.raises(LLMError, match="variable TEST_KEY is not set: export the key of echo"):
        one.check()
    assert failure(one).fatal


def test_a_server_without_a_key_needs_none(openai_server, service):
    openai_server.plan()
    one = service(api_key_env="")
    one.check()
    assert one.complete(ASK).text == "Say it back."
