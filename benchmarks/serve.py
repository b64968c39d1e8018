"""The server under load: many conversations, hostile requests, recorded exchanges.

    python benchmarks/serve.py [--conversations 64] [--turns 12] [--rounds 3] [--large] \\
        [--fuzz 2000] [--wire FOLDER] [-- arguments of python -m tarl_jax.serve]

Conversations: each carries a mark and goes on for so many turns, all at once. Printed: failures,
how many contexts differ at the end (all should), tokens a second, CPU seconds of the server's
process and of the clients', the share of the decoding programs' rows that drew a token, and tokens
fed per turn, first and last third. With --rounds, which takes the embedded default as its policy
(--config.KEY=VALUE behind `--` changes it), the engine alone plays the same conversations in this
process after the server, so many times: how many have the same tokens, and the ratios of the
medians. Server and clients are processes of their own. --large: a policy of 11 million random
weights, whose turns have some forty tokens (`talkative.py`). Fuzz: hostile requests; printed:
statuses, and the server's memory before, in quarters and after. Wire: recorded exchanges of
tau2-bench's harness, a line each.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import gzip
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
from hostile import hostile_body  # noqa: E402

from tarl_jax.parallel.process import MALLOC  # noqa: E402

CONTEXT = 2048
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
        return Client(self).chat(**request)

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.root}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return {k: float(v) for k, v in (x.split() for x in lines if not x.startswith("#"))}

    def memory(self) -> float:
        """Resident MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    """One that keeps its connection, and costs little itself."""

    def __init__(self, server: Server):
        self._connection = http.client.HTTPConnection(server.root.removeprefix("http://"))

    def chat(self, **request: Any) -> dict[str, Any]:
        self._connection.request("POST", "/v1/chat/completions", json.dumps(request).encode())
        answer = self._connection.getresponse()
        found = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {found}")
        return found


@dataclasses.dataclass
class Result:
    """seconds, CPU seconds of the process that holds the engine, decode steps times rows (`places`)
    and tokens drawn in them, and of each conversation the token ids of its answers."""

    seconds: float
    cpu: float
    places: float
    drawn: float
    said: list[list[list[int]]]

    def __str__(self) -> str:
        return (f"{self.seconds:.1f} s, {self.cpu:.1f} of CPU; {self.drawn:.0f} tokens drawn,"
                f" {self.drawn / max(self.places, 1):.0%} of the rows' steps")


def conversations(
    server: Server, count: int, turns: int, temperature: float = 1.0, ids: bool = True
) -> Result:
    """Plays them all at once, and prints what came of it; ids: asks for the tokens too."""
    fed: list[list[int]] = [[] for _ in range(turns)]
    tokens = [0] * count
    said: list[list[list[int]]] = [[] for _ in range(count)]
    prompts: dict[int, list[int]] = {}
    before, cpu, own = server.metrics(), server.cpu_seconds(), time.process_time()

    def play(number: int) -> None:
        mark, client = f"{100 + number}", Client(server)
        messages: list[dict[str, Any]] = [{"role": "user", "content": opening(number)}]
        for turn in range(turns):
            found = client.chat(messages=messages, tools=TOOLS, seed=number,
                                temperature=temperature, return_token_ids=ids)
            usage, choice = found["usage"], found["choices"][0]
            message = choice["message"]
            fed[turn].append(usage["prompt_tokens"]
                             - usage["prompt_tokens_details"]["cached_tokens"])
            tokens[number] += fed[turn][-1] + usage["completion_tokens"]
            said[number].append(choice.get("token_ids", []))
            messages.append(message)
            if message.get("tool_calls"):
                messages.append({"role": "tool", "tool_call_id": message["tool_calls"][0]["id"],
                                 "content": f"mark {mark}"})
            else:
                messages.append({"role": "user", "content": f"mark {mark}"})
            prompts[number] = found.get("prompt_token_ids", [number])

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
    places, drawn, ticks = (
        values[f"tarl_serve_engine_{name}_total"] - before[f"tarl_serve_engine_{name}_total"]
        for name in ("row_steps", "sampled_tokens", "ticks"))
    played = Result(seconds, server.cpu_seconds() - cpu, places, drawn, said)
    print(f"{count} conversations x {turns} turns: {played} in {ticks:.0f} bursts; clients took"
          f" {time.process_time() - own:.1f} s of CPU; failures {dict(failures)},"
          f" {len({tuple(p) for p in prompts.values()})} different contexts;"
          f" {sum(tokens) / seconds:.0f} tokens/s;"
          f" fed per turn {first:.1f} early, {last:.1f} late", flush=True)
    return played


def opening(number: int) -> str:
    return f"My mark is {100 + number}."


def config_of(changes: dict[str, str]) -> Any:
    from tarl_jax.config import from_config_dict
    from tarl_jax.config.fields import overridden
    from tarl_jax.config.presets import sized

    return from_config_dict(overridden(sized("").to_dict(), changes))


class Direct:
    """The engine as training plays with it, in this process, with the server's policy."""

    def __init__(self, slots: int, context: int, changes: dict[str, str]):
        from tarl_jax.parallel.mesh import rollout_mesh
        from tarl_jax.rollout.engine import Engine
        from tarl_jax.rollout.grammar import build
        from tarl_jax.serve.policy import load_policy
        from tarl_jax.training.parts import Parts

        config = config_of(changes)
        rollout = dataclasses.replace(config.rollout, slots=slots, parked=slots,
                                      max_episode_tokens=context)
        config = dataclasses.replace(config, rollout=rollout)
        _, self._env, self._params = load_policy(config, Parts())
        tokenizer, model = self._env.tokenizer, self._env.config.model
        names = [tool["function"]["name"] for tool in TOOLS]
        grammar = build(tokenizer, names, self._env.vocab_size, self._env.chat.begin)
        self._engine = Engine(model, rollout, tokenizer.stop_ids,
                              rollout_mesh(self._env.config.mesh), grammar)

    def conversations(self, count: int, turns: int, temperature: float) -> Result:
        """The same as the server's."""
        from serving import Played

        episodes = [Played(self._env, turns, number, opening(number), f"mark {100 + number}")
                    for number in range(count)]
        cpu, begun = time.process_time(), time.perf_counter()
        stats = self._engine.run(self._params, episodes, temperature)
        seconds = time.perf_counter() - begun
        played = Result(seconds, time.process_time() - cpu, stats.row_steps, stats.sampled_tokens,
                        [[ids for ids, _ in episode.answers] for episode in episodes])
        print(f"  the engine alone: {played} in {stats.ticks} bursts", flush=True)
        return played


def side_by_side(
    server: Server, direct: Direct, count: int, turns: int, temperature: float, rounds: int
) -> None:
    """Server and engine in turns; the first round, in which programs are compiled, is left out."""
    both = []
    for number in range(rounds + 1):
        served = conversations(server, count, turns, temperature, not number)
        alone = direct.conversations(count, turns, temperature)
        if number:
            both.append((served, alone))
            continue
        same = sum(a == b for a, b in zip(served.said, alone.said, strict=True))
        print(f"  {same} of {count} conversations have the engine's tokens", flush=True)
    for name in ("seconds", "cpu", "places"):
        served, alone = (statistics.median(getattr(one, name) for one in column)
                         for column in zip(*both, strict=True))
        print(f"median {name} of {rounds}: served {served:.2f}, the engine alone {alone:.2f}:"
              f" {alone / served:.1%}", flush=True)


def fuzz(server: Server, count: int) -> None:
    rng = random.Random(0)
    bodies = [hostile_body(rng) for _ in range(count)]
    before = server.memory()
    statuses: collections.Counter[int] = collections.Counter()

    def post(number: int) -> tuple[int, Any]:
        path = ("/v1/chat/completions", "/v1/chat/completions", "/v1/completions")[number % 3]
        return server.post(path, bodies[number])

    seen = [before]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for number, (status, found) in enumerate(pool.map(post, range(count))):
            statuses[status] += 1
            if status != 200:
                assert 400 <= status < 500 and found["error"]["message"], (status, found)
            if (number + 1) % max(count // 4, 1) == 0:
                seen.append(server.memory())
    print(f"{count} hostile requests: {dict(statuses)}; memory"
          f" {' -> '.join(f'{mb:.0f}' for mb in seen)} MB;"
          f" alive: {server.process.poll() is None}", flush=True)


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
    parser.add_argument("--temperature", type=float, default=1.0, help="hotter: longer turns")
    parser.add_argument("--rounds", type=int, default=0, help="beside the engine alone")
    parser.add_argument("--large", action="store_true", help="a policy of 11 million parameters")
    parser.add_argument("--fuzz", type=int, default=2000)
    parser.add_argument("--wire", type=Path)
    args = parser.parse_args(arguments[:split])
    own = arguments[split + 1 :]
    changes: dict[str, str] = {}
    folder = tempfile.TemporaryDirectory()
    if args.large:
        import talkative

        changes = {**talkative.FIELDS, "warm_start.cache_dir": folder.name}
        own += [f"--config.{name}={value}" for name, value in changes.items()]
    changes |= dict(a.removeprefix("--config.").split("=", 1) for a in own
                    if a.startswith("--config."))
    if not any(a.startswith("--config=") or not a.startswith("--") for a in own):
        count = args.conversations or 64
        own = ["--config=configs/grpo_tarl.py", f"--slots={count}", f"--parked={count}",
               f"--context={CONTEXT}", "--lazy=True", *own]
    if args.large:
        count = talkative.keep(config_of(changes), Path(folder.name))
        print(f"{count / 1e6:.1f} million parameters", flush=True)
    server = Server(own)
    try:
        if args.wire:
            wire(server, args.wire)
        if args.rounds:
            direct = Direct(args.conversations, CONTEXT, changes)
            side_by_side(server, direct, args.conversations, args.turns, args.temperature,
                         args.rounds)
        elif args.conversations:
            conversations(server, args.conversations, args.turns, args.temperature)
        if args.fuzz:
            fuzz(server, args.fuzz)
        print({k.removeprefix("tarl_serve_"): v for k, v in server.metrics().items()})
    finally:
        server.process.terminate()
        server.process.wait()
        folder.cleanup()


if __name__ == "__main__":
    if not {"TARL_KEEP_MALLOC", *MALLOC} & os.environ.keys():  # as the server has it
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    main()
