"""A server of OpenAI's chat completions, as a process of its own, that fails as it is told.

    python tests/openai_server.py            # prints its port

What it answers depends on the model's name: the part before "/" names a function of ANSWERS. Each
request is answered, or meets a fault: `POST /plan` takes
{"script": ["429", "ok", …], "fractions": {"500": 0.1, …}, "seed": 0, "retry_after": "0.05"}
and starts the counts anew; the script goes first, then faults are drawn. `GET /report` gives the
counts. What is on "hold" is answered after `POST /release`. `LocalServer` starts one for tests.
"""

from __future__ import annotations

import ast
import collections
import json
import random
import re
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANG = 120.0  # seconds: far beyond any timeout of a test


def user(messages: list[dict], number: int) -> str:
    """A customer that says something new each time, and leaves after three messages."""
    said = sum(m["role"] == "assistant" for m in messages)
    return f"I have a wish, number {number}." if said < 3 else "Goodbye. ###STOP###"


def customer(messages: list[dict], number: int) -> str:
    """A customer whose words the dialogue and the ids in its instruction decide, nothing else."""
    said = sum(m["role"] == "assistant" for m in messages)
    if said >= 3:
        return "Goodbye. ###STOP###"
    known = sorted(set(re.findall(r"#W\d+|[a-z]+_[a-z]+_\d+|[A-Z0-9]{6}", messages[0]["content"])))
    words = [*known, *(m["content"] or "" for m in messages[1:])]
    wish = zlib.crc32(" ".join(words).encode())
    about = f" about {known[wish % len(known)]}" if known else ""
    return f"I have a wish{about}, number {wish % 1000}."


def assertions(messages: list[dict], number: int) -> str:
    """tau2-bench's judge of assertions, which finds that all of them are met."""
    expected = ast.literal_eval(messages[1]["content"].split("expectedOutcomes:")[1].strip())
    return json.dumps({"results": [
        {"expectedOutcome": text, "reasoning": "is met", "metExpectation": True}
        for text in expected
    ]})


def reader(messages: list[dict], number: int) -> str:
    """Finds every outcome met but those that say "WRONG"; in a fence, in words of its own."""
    expected = json.loads(messages[1]["content"].splitlines()[2])["expectedOutcomes"]
    results = [{"expectedOutcome": text, "reasoning": "so it seems",
                "metExpectation": str("WRONG" not in text)} for text in expected]
    return f"I read it twice.\n```json\n{json.dumps({'results': results})}\n```"


def react(messages: list[dict], number: int) -> str:
    return f"Thought: SECRET{number}, I should speak.\nUser Response: {user(messages, number)}"


def supervised(messages: list[dict], number: int) -> str:
    """A customer, its supervisor, and its second thoughts, told apart by what is asked for."""
    asked = messages[-1]["content"]
    if "Verdict:" in asked:
        return f"Number {number} could be better.\nVerdict: {'good' if number % 2 else 'bad'}"
    if "Reflection:" in asked:
        return f"Reflection: SECRET{number}.\nUser Response: {user(messages, number)}"
    return user(messages, number)


def phone(messages: list[dict], number: int) -> str | list[dict]:
    """The owner of a phone: calls the tools that the agent names, and tells their first lines."""
    last = messages[-1]
    if last["role"] == "tool":
        said = last["content"].splitlines()[0]
        return f"It says: {said}" + (" ###STOP###" if "can send" in said else "")
    named = re.findall(r"\b(?:check|toggle|can|reboot)_[a-z_]+", last["content"])
    if named:
        return [{"name": name, "arguments": "{}"} for name in named]
    return "I cannot send pictures. I am Ada, 801-2."


def echo(messages: list[dict], number: int) -> str:
    return messages[-1]["content"]


def verdict(messages: list[dict], number: int) -> str:
    return json.dumps({"score": 1, "reason": f"number {number}"})


def author(messages: list[dict], number: int) -> str:
    """Writes a customer's instruction in other words, and finds every third one wanting."""
    asked = messages[1]["content"]
    if asked.startswith("Facts:"):
        return json.dumps({"accept": number % 3 > 0, "reason": f"number {number}"})
    return json.dumps({"instruction": "Listen. " + json.loads(asked)["plain instruction"]})


def judge(messages: list[dict], number: int) -> str:
    """A grade for each turn of the episode that is asked about: +1, minor, +1, neutral, +1, …"""
    count = turns_in(messages)
    return grades([(turn + 1) % 2 for turn in range(count)], range(1, count, 4))


def moody(messages: list[dict], number: int) -> str:
    """A grade for each turn that what was said decides, and nothing else."""
    seed = zlib.crc32(messages[1]["content"].encode())
    return grades([(seed >> turn % 24) % 2 for turn in range(turns_in(messages))])


def inspector(messages: list[dict], number: int) -> str:
    """Judges users: those that say "WRONG" contradict what they were told; in a fence, in prose."""
    lines = messages[1]["content"].splitlines()
    entries = json.loads(lines[2])["dialogue"]
    place, found = -1, []
    for entry in entries:
        place = entry.get("turn", place)
        if "WRONG" in entry.get("user", ""):
            found.append({"turn": str(place), "kind": "Contradicts", "reason": "it says WRONG"})
    return f"Looking at it:\n```json\n{json.dumps({'faults': found})}\n```"


def turns_in(messages: list[dict]) -> int:
    return int(re.search(r"the agent's (\d+) turns", messages[1]["content"].splitlines()[-1])[1])


def grades(scores: list[int], minors=()) -> str:
    return json.dumps({"turns": [
        {"turn": turn, "reason": f"reason {turn}", "score": score, "minor": turn in minors}
        for turn, score in enumerate(scores)
    ]})


ANSWERS = {
    f.__name__: f
    for f in (user, customer, react, supervised, phone, echo, verdict, author, judge, moody,
              inspector, reader)
}
ANSWERS["gpt-4.1-2025-04-14"] = assertions  # which tau2-bench asks whatever its arguments


class Plan:
    """What happens to which request, and what has happened."""

    def __init__(self, script=(), fractions=None, seed=0, retry_after="0.05"):
        self.script = collections.deque(script)
        self.fractions = fractions or {}
        self.random = random.Random(seed)
        self.retry_after = retry_after
        self.released = threading.Event()
        self.requests = self.in_flight = self.max_in_flight = 0
        self.injected = collections.Counter()
        self.last = {}

    def draw(self) -> str:
        if self.script:
            return self.script.popleft()
        place = self.random.random()
        for fault, share in self.fractions.items():
            place -= share
            if place < 0:
                return fault
        return "ok"

    def report(self) -> dict:
        names = ("requests", "in_flight", "max_in_flight", "injected", "last")
        return {name: getattr(self, name) for name in names}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.plan = Plan()
        self.number = 0  # of the completion, never the same again

    def handle_error(self, request, client_address):
        pass  # clients that hang up are what is being tested


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args):
        pass

    def do_GET(self):
        with self.server.lock:
            self._send(200, self.server.plan.report())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/plan":
            with self.server.lock:
                self.server.plan = Plan(**body)
            self._send(200, {})
            return
        if self.path == "/release":
            self.server.plan.released.set()
            self._send(200, {})
            return
        with self.server.lock:
            plan = self.server.plan
            plan.requests += 1
            self.server.number += 1
            number = self.server.number
            plan.in_flight += 1
            plan.max_in_flight = max(plan.max_in_flight, plan.in_flight)
            fault = plan.draw()
            if fault != "ok":
                plan.injected[fault] += 1
            plan.last = {"body": body, "path": self.path}
        try:
            self._act(fault, body, number, plan)
        finally:
            with self.server.lock:
                plan.in_flight -= 1

    def _act(self, fault, body, number, plan):
        whole = json.dumps(self._completion(body, number)).encode()
        match fault:
            case "ok":
                self._raw(200, whole)
            case "hold":
                plan.released.wait(HANG)
                self._raw(200, whole)
            case "429" | "503":
                self._error(int(fault), "come back later", {"Retry-After": plan.retry_after})
            case "401":  # some servers repeat the key
                self._error(401, f"wrong key: {self.headers['Authorization']}")
            case "no_schema":
                self._error(400, "response_format: json_schema is not known here")
            case "quota":
                self._error(429, "insufficient_quota")
            case "400" | "404" | "408" | "500":
                self._error(int(fault), "no")
            case "hang":
                time.sleep(HANG)
                self.close_connection = True
            case "trickle":
                self.send_response(200)
                self.send_header("Content-Length", str(len(whole)))
                self.end_headers()
                for byte in whole:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.1)
            case "malformed":
                self._raw(200, whole[: len(whole) // 2])
            case "html":
                self._raw(200, b"<html>Welcome</html>", "text/html")
            case "list":
                self._raw(200, b"[1, 2]")
            case "empty":
                self._raw(200, json.dumps({"choices": []}).encode())
            case "silent":
                self._raw(200, json.dumps(self._completion(body, number, " ")).encode())
            case "prose":
                text = "Sure! Here is the answer you asked for."
                self._raw(200, json.dumps(self._completion(body, number, text)).encode())
            case "miscounted":  # a judge's
                text = grades([1] * (turns_in(body["messages"]) + 1))
                self._raw(200, json.dumps(self._completion(body, number, text)).encode())
            case "minors":  # of a +1
                text = grades([1] * turns_in(body["messages"]), [0])
                self._raw(200, json.dumps(self._completion(body, number, text)).encode())
            case "majors":
                text = grades([-1] * turns_in(body["messages"]))
                self._raw(200, json.dumps(self._completion(body, number, text)).encode())
            case "no_usage":
                found = self._completion(body, number)
                del found["usage"]
                self._raw(200, json.dumps(found).encode())
            case "truncated":
                self.send_response(200)
                self.send_header("Content-Length", str(len(whole)))
                self.end_headers()
                self.wfile.write(whole[: len(whole) // 2])
                self.close_connection = True
            case "drop":
                self.close_connection = True
                self.connection.close()
            case _:
                raise ValueError(fault)

    def _completion(self, body, number, text=None):
        if text is None:
            text = ANSWERS[body["model"].split("/")[0]](body["messages"], number)
        said = sum(len(m["content"] or "") for m in body["messages"])
        message, ended = {"role": "assistant", "content": text}, "stop"
        if isinstance(text, list):  # calls of tools
            ended = "tool_calls"
            message = {"role": "assistant", "content": None, "tool_calls": [
                {"id": f"server-{number}-{place}", "type": "function", "function": call}
                for place, call in enumerate(text)
            ]}
        return {
            "id": f"completion-{number}", "object": "chat.completion", "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": ended, "message": message}],
            "usage": {"prompt_tokens": said, "completion_tokens": len(text),
                      "total_tokens": said + len(text)},
        }

    def _error(self, status, message, headers=None):
        self._send(status, {"error": {"message": message, "type": "x", "code": message}}, headers)

    def _send(self, status, data, headers=None):
        self._raw(status, json.dumps(data).encode(), headers=headers)

    def _raw(self, status, content, kind="application/json", headers=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class LocalServer:
    """The server in a process of its own; `url` is what a client takes as its base_url."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdout=subprocess.PIPE, text=True
        )
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def plan(self, *script: str, **plan) -> None:
        self._call("plan", {"script": script, **plan})

    def report(self) -> dict:
        return self._call("report")

    def release(self) -> None:
        self._call("release", {})

    def close(self) -> None:
        self.process.kill()
        self.process.stdout.close()
        self.process.wait()

    def _call(self, path, data=None):
        data = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", data)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


if __name__ == "__main__":
    server = Server()
    print(server.server_port, flush=True)
    server.serve_forever()
