"""tau2-bench's own harness as the client of our server.

    git clone https://github.com/sierra-research/tau2-bench TAU2    # tested at version 1.0.1
    python experiments/tau2/harness.py TAU2 --out=FOLDER -- RUN --context=32768

installs the checkout into an environment of its own (FOLDER/venv, or --venv; its litellm takes
another openai than ours; needs Python 3.12 or 3.13), serves the policy that stands behind `--` (the
arguments of `python -m tarl_jax.serve`), and runs each of --domains. The users are played by
--user_url, a server of the same protocol, or by the policy itself, which is no user but shows that
nothing breaks. The harness's judge of assertions asks whoever plays the users.
FOLDER/results/DOMAIN is what the harness wrote:
`python -m tarl_jax.view FOLDER/results/DOMAIN/results.json`.

Printed per domain: simulations, how they ended, the mean reward, and how many the harness would
throw away. The exit status is 1 where there is one of those.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

LOST = ("infrastructure_error", "context_window_exceeded", "unexpected_error", "agent_error",
        "user_error")
ROOT = Path(__file__).parents[2]


def main() -> int:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--venv", type=Path, help="the harness's environment (FOLDER/venv)")
    parser.add_argument("--python", default="python3.12", help="that makes it")
    parser.add_argument("--domains", nargs="+", default=["retail", "airline", "telecom"])
    parser.add_argument("--num_tasks", type=int, default=30)
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--seed", type=int, default=300)
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--user_url", help="a server that plays the users, up to /v1")
    parser.add_argument("--user_model", default="user")
    given = parser.parse_args(arguments[:split])
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    program = installed(given, (given.venv or out / "venv").resolve())
    server, url = serve(arguments[split + 1 :], out / "server.log")
    try:
        lost = 0
        for domain in given.domains:
            results = run(given, program, domain, url, out)
            lost += report(domain, results)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    return 1 if lost else 0


def installed(given: argparse.Namespace, venv: Path) -> Path:
    """The harness's program, installed where it is not yet."""
    program = venv / "bin" / "tau2"
    if not program.is_file():
        subprocess.run([given.python, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", "-q", str(given.checkout)],
                       check=True)
    return program


def serve(arguments: list[str], log: Path) -> tuple[subprocess.Popen[str], str]:
    """(the process, its address); what it prints is in the log."""
    command = [sys.executable, "-m", "tarl_jax.serve", *arguments, "--port=0"]
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors,
                                   text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("serving "):
            return process, line.split()[-1]
    sys.exit(f"the server did not start: {log}")


def run(
    given: argparse.Namespace, program: Path, domain: str, url: str, out: Path
) -> dict[str, Any]:
    """The harness's results of one domain."""
    user = given.user_url or url
    name = f"tarl_jax_{os.getpid()}_{domain}"
    data = given.checkout.resolve() / "data"
    # Its judge of assertions takes no address: it asks whoever OPENAI_API_BASE names.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_BASE": user,
                   "OPENAI_BASE_URL": user, "OPENAI_API_KEY": "none", "TAU2_DATA_DIR": str(data)}
    command = [
        str(program), "run", "--domain", domain, "--agent-llm", "openai/policy",
        "--agent-llm-args", json.dumps({"temperature": given.temperature, "api_base": url}),
        "--user-llm", f"openai/{given.user_model}",
        "--user-llm-args", json.dumps({"temperature": 0.0, "api_base": user}),
        "--num-tasks", str(given.num_tasks), "--num-trials", str(given.trials),
        "--seed", str(given.seed), "--max-steps", str(given.max_steps),
        "--max-concurrency", str(given.concurrency), "--save-to", name, "--log-level", "ERROR",
    ]
    with (out / f"{domain}.log").open("w") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    made = next((data / "simulations").glob(f"{name}*"), None)
    if made is None:
        sys.exit(f"{domain}: the harness wrote nothing: {out / f'{domain}.log'}")
    target = out / "results" / domain
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if made.is_dir():
        shutil.copytree(made, target, dirs_exist_ok=True)
        shutil.rmtree(made)
    else:
        shutil.move(made, target / "results.json")
    return json.loads((target / "results.json").read_text(encoding="utf-8"))


def report(domain: str, results: dict[str, Any]) -> int:
    """Prints a line; returns how many simulations are lost."""
    simulations = results["simulations"]
    ends = collections.Counter(s["termination_reason"] for s in simulations)
    rewards = [(s.get("reward_info") or {}).get("reward") for s in simulations]
    known = [r for r in rewards if r is not None]
    lost = sum(count for end, count in ends.items() if end in LOST)
    mean = sum(known) / len(known) if known else float("nan")
    print(f"{domain}: {len(simulations)} simulations, {dict(ends)}, mean reward {mean:.3f},"
          f" {lost} lost", flush=True)
    return lost


if __name__ == "__main__":
    sys.exit(main())
