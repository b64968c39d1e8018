"""`python -m tarl_jax.view RUN`: print an episode of a run, or list them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

_DESCRIPTION = """\
Print an episode of a training run: the dialogue with the judge's score of each turn,
the tool calls and results, what changed in the database, and the reward."""
_EXAMPLES = """\
examples:
  python -m tarl_jax.view runs/grpo_tarl                     first episode of the last step
  python -m tarl_jax.view runs/grpo_tarl --list              one line per episode of that step
  python -m tarl_jax.view runs/grpo_tarl --step 12 --which major
  python -m tarl_jax.view runs/grpo_tarl --eval --which failure --index 5
"""


def parser() -> argparse.ArgumentParser:
    """The command line; made without importing anything heavy, so that --help is quick."""
    p = argparse.ArgumentParser(
        "python -m tarl_jax.view",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", metavar="RUN", help="a run's directory, a .jsonl file of trajectories,"
                   " or a results.json of τ²-bench")
    p.add_argument(
        "--step", default=None, metavar="N|last", help="which step's file (default: last)"
    )
    p.add_argument(
        "--eval",
        action="store_true",
        help="episodes of the evaluation after that step instead of training episodes",
    )
    p.add_argument(
        "--which",
        choices=("success", "failure", "major", "any"),
        default="any",
        help="only episodes that succeeded, failed, or hold a major deviation (default: any)",
    )
    p.add_argument(
        "--index",
        type=int,
        default=0,
        metavar="I",
        help="place in the file, from 0; with --which, the first such episode from there on",
    )
    p.add_argument("--list", action="store_true", help="one line per episode instead of one whole")
    p.add_argument("--full", action="store_true", help="do not shorten prompts and tool results")
    p.add_argument(
        "--tokens", action="store_true", help="also the id and log-prob of each agent token"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 where there is nothing to show."""
    args = parser().parse_args(argv)
    from tarl_jax.view import terminal

    try:
        path = terminal.find_file(args.run, args.step, evaluation=args.eval)
        terminal.show(
            path,
            which=args.which,
            index=args.index,
            listing=args.list,
            full=args.full,
            tokens=args.tokens,
        )
    except terminal.ViewError as error:
        print(f"tarl_jax.view: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
