"""The server under load: many conversations, hostile requests, recorded exchanges.

    python benchmarks/serve.py [--conversations 64] [--turns 12] [--fuzz 2000] [--wire FOLDER] \\
        [-- arguments of python -m tarl_jax.serve]

Conversations: each carries a mark and goes on for so many turns, all at once. Printed: failures,
how many contexts differ at the end (all should), tokens a second, what of the time the device's
programs took, and tokens fed per turn, first and last third. Fuzz: hostile requests; printed:
statuses, and the server's memory before, in the middle and after. Wire: recorded exchanges of
tau2-bench's harness, a line each.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import gzip
import json
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from hostile import hostile_body  # noqa: E402

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
         for name in ("cancel_pending_order", "find_user_id_by_email", "get_order_details")]


class Server:
    """A server process, and requests to it."""

    def __init__(self, arguments: list[str]):
        command = [sys.executable, "-m", "tarl_jax.serve", *arguments, "--port=0"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if line.startswith("serving "))
        self.root = line.split()[-1].removesuffix("/v1")

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        request = urllib.request.Request(self.root + path, body)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                content = answer.read()
                stream = content.startswith(b"data:")
                return answer.status, None if stream else json.loads(content)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def chat(self, **request: Any) -> dict[str, Any]:
        status, found = self.post("/v1/chat/completions", json.dumps(request).encode())
        if status != 200:
            raise RuntimeError(f"{status}: {found}")
        return found

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.root}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return {k: float(v) for k, v in (x.split() for x in lines if not x.startswith("#"))}

    def memory(self) -> float:
        """Resident MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


def conversations(server: Server, count: int, turns: int) -> None:
    fed: list[list[int]] = [[] for _ in range(turns)]
    tokens = [0] * count

    def play(number: int) -> str:
        mark = f"{100 + number}"
        messages: list[dict[str, Any]] = [{"role": "user", "content": f"My mark is {mark}."}]
        for turn in range(turns):
            found = server.chat(messages=messages, tools=TOOLS, seed=number, temperature=1.0,
                                return_token_ids=True)
            usage, message = found["usage"], found["choices"][0]["message"]
            fed[turn].append(usage["prompt_tokens"]
                             - usage["prompt_tokens_details"]["cached_tokens"])
            tokens[number] += fed[turn][-1] + usage["completion_tokens"]
            messages.append(message)
            if message.get("tool_calls"):
                messages.append({"role": "tool", "tool_call_id": message["tool_calls"][0]["id"],
                                 "content": f"mark {mark}"})
            else:
                messages.append({"role": "user", "content": f"mark {mark}"})
            prompts[number] = found["prompt_token_ids"]
        return mark

    prompts: dict[int, list[int]] = {}
    begun = time.perf_counter()
    failures: collections.Counter[str] = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(play, number) for number in range(count)]:
            try:
                future.result()
            except Exception as error:
                failures[str(error)[:80]] += 1
    seconds = time.perf_counter() - begun
    third = max(turns // 3, 1)
    first = sum(map(sum, fed[1 : 1 + third])) / max(sum(map(len, fed[1 : 1 + third])), 1)
    last = sum(map(sum, fed[-third:])) / max(sum(map(len, fed[-third:])), 1)
    values = server.metrics()
    busy = (values["tarl_serve_engine_extend_seconds_total"]
            + values["tarl_serve_engine_decode_seconds_total"])
    print(f"{count} conversations x {turns} turns: {seconds:.1f} s, failures {dict(failures)},"
          f" {len({tuple(p) for p in prompts.values()})} different contexts")
    print(f"  {sum(tokens) / seconds:.0f} tokens/s; the engine's programs ran {busy:.1f} s in all;"
          f" fed per turn {first:.1f} early, {last:.1f} late")


def fuzz(server: Server, count: int) -> None:
    rng = random.Random(0)
    bodies = [hostile_body(rng) for _ in range(count)]
    before = server.memory()
    statuses: collections.Counter[int] = collections.Counter()

    def post(number: int) -> tuple[int, Any]:
        path = ("/v1/chat/completions", "/v1/chat/completions", "/v1/completions")[number % 3]
        return server.post(path, bodies[number])

    middle = before
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for number, (status, found) in enumerate(pool.map(post, range(count))):
            statuses[status] += 1
            if status != 200:
                assert 400 <= status < 500 and found["error"]["message"], (status, found)
            if number == count // 2:
                middle = server.memory()
    print(f"{count} hostile requests: {dict(statuses)}; memory {before:.0f} -> {middle:.0f} ->"
          f" {server.memory():.0f} MB; alive: {server.process.poll() is None}")


def wire(server: Server, folder: Path) -> None:
    for path in sorted(folder.glob("*.jsonl.gz")):
        kinds: collections.Counter[str] = collections.Counter()
        begun = time.perf_counter()
        for line in gzip.decompress(path.read_bytes()).splitlines():
            found = server.chat(**json.loads(line)["request"])
            message = found["choices"][0]["message"]
            for call in message.get("tool_calls", ()):
                assert isinstance(json.loads(call["function"]["arguments"]), dict)
            assert message["content"] or message.get("tool_calls"), found
            kinds[found["choices"][0]["finish_reason"]] += 1
        print(f"{path.name}: {dict(kinds)}, {time.perf_counter() - begun:.1f} s")


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--fuzz", type=int, default=2000)
    parser.add_argument("--wire", type=Path)
    args = parser.parse_args(arguments[:split])
    server = Server(arguments[split + 1 :] or [
        "--config=configs/grpo_tarl.py", "--slots=64", "--parked=64", "--context=1024"])
    try:
        if args.wire:
            wire(server, args.wire)
        if args.conversations:
            conversations(server, args.conversations, args.turns)
        if args.fuzz:
            fuzz(server, args.fuzz)
        print({k.removeprefix("tarl_serve_"): v for k, v in server.metrics().items()})
    finally:
        server.process.terminate()
        server.process.wait()


if __name__ == "__main__":
    main()
