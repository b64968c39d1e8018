"""What servers of all kinds answer: bodies, statuses and headers, each read for what it means."""

import http.server
import json
import threading

import pytest

from tarl_jax.config import LLMConfig
from tarl_jax.llm import transport
from tarl_jax.llm.errors import LLMError
from tarl_jax.llm.service import ChatService
from tarl_jax.llm.transport import is_loopback

ASK = [{"role": "user", "content": "Hello?"}]


def completion(content, ended="stop", **message):
    message = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "finish_reason": ended, "message": message}
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}


@pytest.fixture
def ask():
    """Asks a server that gives one answer after the other, the last one for good."""
    servers = []

    def go(*answers, messages=ASK, schema=None, **config):
        left, seen = list(answers), []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, body, *headers = left.pop(0) if len(left) > 1 else left[0]
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{servers[-1].server_port}/v1"
        told = {"model": "m", "base_url": url, "api_key_env": "", "backoff_seconds": 0.0,
                "max_attempts": 2, **config}
        with ChatService(LLMConfig(**told), "user.llm") as service:
            try:
                text = service.complete(messages, schema=schema).text
                return text, seen, service.ledger.snapshot()
            except LLMError as error:
                return error, seen, service.ledger.snapshot()

    yield go
    for server in servers:
        server.shutdown()
        server.server_close()


def test_half_a_character_in_an_answer_and_in_a_request(ask, tmp_path):
    body = json.dumps(completion("Cool X, cancel it.")).replace("X", "\\ud83d").encode()
    messages = [{"role": "user", "content": "And \ud83d?"}]
    record = str(tmp_path / "record.jsonl")
    text, seen, _ = ask((200, body), messages=messages, record=record, cache_dir=str(tmp_path))
    assert text == "Cool \ufffd, cancel it."
    assert seen[0]["messages"][0]["content"] == "And \ufffd?"


def test_content_in_parts(ask):
    parts = [{"type": "thinking", "thinking": "SECRET"}, {"type": "text", "text": "Hel"},
             {"type": "text", "text": "lo."}]
    assert ask((200, completion(parts)))[0] == "Hello."


@pytest.mark.parametrize("answer, told", [
    (completion("I would like to", "length"), "config.user.llm.max_tokens"),
    (completion(None, "length", reasoning_content="hm"), "config.user.llm.max_tokens"),
    (completion("I w", "content_filter"), "filter"),
    (completion(None, refusal="I cannot help."), "refuses: I cannot help"),
    (completion("Sorry.", refusal="I cannot help."), "refuses: I cannot help"),
    (completion([{"type": "image"}]), "no completion with a text"),
    ({"choices": [{"message": {"content": {"text": "x"}}}]}, "no completion with a text"),
    ({"choices": [None]}, "no completion with a text"),
    ({"error": "overloaded"}, "no completion with a text"),
])
def test_an_answer_that_is_cut_or_refuses_is_not_a_normal_one(ask, answer, told):
    assert ask((200, answer), (200, completion("Hello.")))[0] == "Hello."
    error, seen, counts = ask((200, answer))
    assert error.kind == "malformed" and told in str(error) and len(seen) == 2
    if "usage" in answer:  # it is paid for
        assert (counts["prompt_tokens"], counts["completion_tokens"]) == (10, 14)


def test_an_answer_without_end_is_read_up_to_a_bound(ask, monkeypatch):
    monkeypatch.setattr(transport, "MAX_BYTES", 1000)
    for status in (200, 400):
        error, *_ = ask((status, completion("x" * 2000)))
        assert error.kind == "malformed" and "longer than 1000 bytes" in str(error)


def said(message, **more):
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize("status, body, kind, fatal", [
    (402, said("Insufficient Balance"), "quota", True),
    (402, b"pay", "quota", True),
    (400, said("Your credit balance is too low to access the API."), "quota", True),
    (400, said("Billing hard limit", code="billing_hard_limit_reached"), "quota", True),
    (403, said("insufficient credits", type="insufficient_credits"), "quota", True),
    (429, said("You exceeded your quota", code="insufficient_quota"), "quota", True),
    (429, said("You exceeded your current quota, requests per minute"), "rate_limited", False),
    (403, said("requires moderation. Your input was flagged"), "flagged", False),
    (400, said("The response was filtered", code="content_filter"), "flagged", False),
    (400, said("Invalid prompt: violates our usage", code="content_policy_violation"), "flagged",
     False),
    (403, said("Country not supported"), "unauthorized", True),
    (400, said("maximum context length is 4096"), "bad_request", False),
    (413, said("too large"), "bad_request", False),
    (409, said("conflict"), "server_error", False),
    (529, said("overloaded"), "server_error", False),
    (200, said("Provider returned error", code=402), "quota", True),
    (200, said("flagged", code=403), "flagged", False),
    (200, said("Upstream overloaded", code=502), "server_error", False),
])
def test_a_refusal_is_known_by_status_and_words(ask, status, body, kind, fatal):
    error, *_ = ask((status, body))
    assert (error.kind, error.fatal) == (kind, fatal)


@pytest.mark.parametrize("wait", ["nan", "inf", "-5", "soon", "", "Mon, 99 Foo", "1e400"])
def test_a_wait_that_is_no_time_is_none(ask, wait):
    text, seen, _ = ask((429, said("later"), {"Retry-After": wait}), (200, completion("Hello.")))
    assert text == "Hello." and len(seen) == 2


@pytest.fixture
def proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://me:secret@127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_no_proxy_stands_before_this_machine(ask, proxy):
    assert ask((200, completion("Hello.")))[0] == "Hello."


def test_a_proxy_that_fails_is_named_without_its_password(ask, proxy):
    error, *_ = ask((200, {}), base_url="http://a.invalid/v1", max_attempts=1)
    assert error.kind == "connection"
    assert "the proxy 127.0.0.1:9" in str(error) and "secret" not in str(error)


@pytest.mark.parametrize("url, here", [
    ("http://localhost:8000/v1", True), ("http://127.0.0.1/v1", True), ("http://127.9.9.9", True),
    ("http://[::1]:80/v1", True), ("http://a.localhost/", True), ("http://10.0.0.1/v1", False),
    ("https://api.openai.com/v1", False), ("http://localhost.com/v1", False), ("", False),
])
def test_this_machine_is_known_by_its_names(url, here):
    assert is_loopback(url) == here


# ---- how JSON is asked for ----------------------------------------------------------------------


SCHEMA = {"type": "object", "required": ["minimum"], "additionalProperties": False, "properties": {
    "minimum": {"type": "integer", "minimum": 0, "maximum": 9, "default": 1},
    "kind": {"enum": [{"pattern": "x"}], "type": "object"},
    "list": {"type": "array", "maxItems": 3, "items": {"type": "string", "pattern": "a"}},
}}


def forms(seen):
    return [body.get("response_format", {}).get("type", "none") for body in seen]


def test_bounds_are_held_to_and_not_sent(ask):
    text, seen, counts = ask((200, completion('{"minimum": 10}')),
                             (200, completion('{"minimum": 3}')), schema=SCHEMA)
    assert text == '{"minimum": 3}' and counts["faults_malformed"] == 1
    assert seen[0]["response_format"]["json_schema"]["schema"] == {
        "type": "object", "required": ["minimum"], "additionalProperties": False, "properties": {
            "minimum": {"type": "integer"},
            "kind": {"enum": [{"pattern": "x"}], "type": "object"},
            "list": {"type": "array", "items": {"type": "string"}},
        },
    }


@pytest.mark.parametrize("form, sent", [
    ("schema", "json_schema"), ("object", "json_object"), ("none", "none"),
])
def test_json_is_asked_for_as_the_config_says(ask, form, sent):
    good = (200, completion('{"minimum": 3}'))
    assert forms(ask(good, schema=SCHEMA, response_format=form)[1]) == [sent]


@pytest.mark.parametrize("status, words", [
    (400, "This response_format type is unavailable now"),
    (400, "Invalid schema for response_format 'answer'"),
    (422, "json_schema is not supported"),
    (404, "No endpoints found that support response_format"),
])
def test_a_server_that_takes_no_schema_is_asked_for_less(ask, status, words):
    good, bad = (200, completion('{"minimum": 3}')), (status, said(words))
    text, seen, counts = ask(bad, good, schema=SCHEMA, max_attempts=1)
    assert text == '{"minimum": 3}' and forms(seen) == ["json_schema", "json_object"]
    assert (counts["requests"], counts["refused"], counts["failed"]) == (2, 1, 0)
    text, seen, _ = ask(bad, bad, good, schema=SCHEMA, max_attempts=1)
    assert text == '{"minimum": 3}' and forms(seen) == ["json_schema", "json_object", "none"]
    error, seen, _ = ask(bad, schema=SCHEMA, max_attempts=1)
    assert error.kind in ("bad_request", "not_found") and len(seen) == 3


def test_another_refusal_is_no_reason_to_ask_for_less(ask):
    error, seen, _ = ask((400, said("maximum context length")), schema=SCHEMA)
    assert error.kind == "bad_request" and forms(seen) == ["json_schema"]


def test_what_a_server_takes_is_remembered(openai_server):
    # One refusal, then no more requests that it would refuse.
    service = ChatService(LLMConfig(model="verdict", base_url=openai_server.url, api_key_env=""),
                          "judge.llm")
    openai_server.plan("no_schema")
    with service:
        for key in ("a", "b"):
            service.complete(ASK, key=key, schema={"type": "object"})
    assert openai_server.report()["requests"] == 3
