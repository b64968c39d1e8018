"""`python -m tarl_jax.sandbox.synthesis`: makes a file of tasks, or lets a person review one."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tarl_jax.config import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from tarl_jax.sandbox.synthesis.pipeline import Finish, Synthesis

SUPPORTED = ("retail",)
_EXAMPLES = """\
examples:
  python -m tarl_jax.sandbox.synthesis --num=3000 --seed=0 --out=tasks.jsonl
  python -m tarl_jax.sandbox.synthesis --review=tasks.jsonl --sample=50
  python -m tarl_jax.main --config=configs/grpo_tarl.py --config.tasks.file=tasks.jsonl
"""


def parser() -> argparse.ArgumentParser:
    """The command line; made without importing anything heavy."""
    p = argparse.ArgumentParser(
        "python -m tarl_jax.sandbox.synthesis",
        description="Make checked tasks for a sandbox domain, or review those of a file.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--domain", default="retail", help=f"one of {', '.join(SUPPORTED)}")
    p.add_argument("--data", metavar="FOLDER", help="a benchmark's data; default: the shop")
    p.add_argument("--num", type=int, default=3000, help="tasks to make, of both splits")
    p.add_argument("--held_out", type=float, default=0.15, help="share of them that is held out")
    p.add_argument("--seed", type=int, default=0, help="same seed, same file")
    p.add_argument("--out", type=Path, default=Path("tasks.jsonl"), help="the file to write")
    p.add_argument("--llm_model", help="a model that writes the instructions (default: none)")
    p.add_argument("--base_url", default="", help="where that model answers")
    p.add_argument("--reviews", type=int, default=3, help="reviews that vote on a text")
    p.add_argument("--tries", type=int, default=3, help="texts that may be tried for a task")
    p.add_argument("--review", type=Path, metavar="FILE", help="review the tasks of a file")
    p.add_argument("--sample", type=int, default=0, help="tasks to review; 0: all")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 2 for bad input, 130 if interrupted."""
    args = parser().parse_args(argv)
    from rich.console import Console

    try:
        if args.review:
            _review(args, Console())
        else:
            _make(args, Console())
    except (ValueError, OSError) as error:
        print(f"tarl_jax.sandbox.synthesis: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _make(args: argparse.Namespace, console: Console) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from tarl_jax.sandbox import load_domain
    from tarl_jax.sandbox.synthesis.pipeline import Plan, synthesise
    from tarl_jax.sandbox.tasks import save_tasks

    _supported(args.domain)
    if args.num < 2:
        raise InputError(f"--num={args.num}: at least 2, one of each split")
    if not 0 < args.held_out < 1:
        raise InputError(f"--held_out={args.held_out}: must lie between 0 and 1")
    if not args.out.absolute().parent.is_dir():
        raise InputError(f"--out={args.out}: there is no such folder")
    domain = load_domain(args.domain, args.data)
    began = time.monotonic()
    columns = ("[b]tasks", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with contextlib.ExitStack() as stack:
        finish = _writer(args, stack)
        progress = stack.enter_context(Progress(*columns, console=console))
        bar = progress.add_task("", total=args.num)
        made = synthesise(
            domain, Plan(args.num, args.seed, args.held_out), finish, lambda: progress.advance(bar)
        )
    save_tasks(args.out, made.tasks)
    _summary(made, console)
    console.print(f"{len(made.tasks)} tasks in {args.out} after {time.monotonic() - began:.0f} s")


def _summary(made: Synthesis, console: Console) -> None:
    from rich.table import Table

    tasks = made.tasks
    rejected = Table("stage", "rejected because", "candidates", title="Rejected")
    for (stage, reason), count in sorted(made.rejected.items(), key=lambda x: (-x[1], x[0])):
        rejected.add_row(stage, reason, str(count))
    accepted = Table("tasks", "by", title="Accepted")
    levels = sorted(task.difficulty for task in tasks)
    for name, counts in (
        ("split", Counter(t.split for t in tasks)),
        ("writes", Counter(len(t.gold_calls) for t in tasks)),
        ("tool", Counter(c.name for t in tasks for c in t.gold_calls)),
        ("persona", Counter(t.persona or "plain" for t in tasks)),
    ):
        for value, count in sorted(counts.items(), key=str):
            accepted.add_row(str(count), f"{name} {value}")
    console.print(rejected, accepted)
    console.print(
        f"difficulty: lowest {levels[0]}, median {levels[len(levels) // 2]}, highest {levels[-1]};"
        " every task solved by the scripted expert, and by no solution with one argument wrong"
    )


def _review(args: argparse.Namespace, console: Console) -> None:
    from tarl_jax.sandbox import load_domain
    from tarl_jax.sandbox.synthesis.review import review

    _supported(args.domain)
    review(args.review, load_domain(args.domain, args.data), console, args.sample)


def _supported(domain: str) -> None:
    if domain not in SUPPORTED:
        raise InputError(f"--domain={domain}: tasks can be made for {', '.join(SUPPORTED)} only")


def _writer(args: argparse.Namespace, stack: contextlib.ExitStack) -> Finish | None:
    """What writes the instructions with the model that the flags name; None if they name none.

    `stack` ends what it begins.
    """
    if not args.llm_model:
        return None
    from tarl_jax.config.llm import LLMConfig
    from tarl_jax.config.servers import check_server
    from tarl_jax.llm.errors import LLMError
    from tarl_jax.llm.service import ChatService
    from tarl_jax.sandbox.synthesis.writer import Writer

    # With the cache, a run that was stopped asks for nothing twice.
    cache = str(Path("~/.cache/tarl_jax/llm").expanduser())
    config = LLMConfig(model=args.llm_model, base_url=args.base_url, cache_dir=cache)

    def require(ok: bool, where: str, value: object, remedy: str) -> None:
        if not ok:
            raise InputError(f"--{where.rpartition('.')[2]}={value}: {remedy}")

    check_server("synthesis", config.base_url, config.api_key_env, require)
    service = ChatService(config, "synthesis")
    stack.callback(service.close)

    def chat(messages: list[dict[str, str]], *, key: str) -> str:
        try:
            return service.complete(messages, key=key).text
        except LLMError as error:
            raise InputError(f"--llm_model={args.llm_model}: {error}") from error

    return Writer(chat, args.reviews, args.tries)


if __name__ == "__main__":
    sys.exit(main())
