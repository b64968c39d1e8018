"""`python -m tarl_jax.view RUN …`: a page to look at runs with, or one episode in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from tarl_jax.parallel.process import exit_status
from tarl_jax.runs.command import Parser, unknown_argument

_DESCRIPTION = """\
Opens a page on this machine: curves and evaluations of one or several runs, and their episodes with
the judge's score of each turn, rewards, tokens, and what changed in the database. It follows a run
that goes on."""
_EXAMPLES = """\
examples:
  python -m tarl_jax.view runs/grpo_tarl runs/grpo           two runs side by side
  python -m tarl_jax.view runs/grpo_tarl --out=report.html   one file, to keep or to send
  python -m tarl_jax.view runs/grpo_tarl --curves            draws curves.png anew
  python -m tarl_jax.view runs/grpo_tarl --terminal          an episode of the last step, as text
  python -m tarl_jax.view runs/grpo_tarl --list              a line per episode of that step
  python -m tarl_jax.view runs/grpo_tarl --step=12 --which=major
  python -m tarl_jax.view runs/grpo_tarl --eval --which=failure --index=5
"""


def parser() -> Parser:
    """The command line."""
    p = Parser(
        "python -m tarl_jax.view",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("runs", metavar="RUN", nargs="+", help="a run's directory or address, a .jsonl"
                   " file of episodes, or τ²-bench's results.json")
    p.add_argument("--out", metavar="FILE.html", help="write one self-contained file instead")
    p.add_argument("--files", type=int, default=2, metavar="N", help="files of episodes, of each"
                   " kind, that go into it: the last N (default: 2)")
    p.add_argument("--port", type=int, default=0, help="of the page (default: a free one)")
    p.add_argument("--no_browser", action="store_true", help="print the page's address only")
    p.add_argument("--curves", action="store_true", help="draw RUN/curves.png anew, and end")
    p.add_argument("--print_config", action="store_true",
                   help="print the configs of the runs as JSON, and end")
    p.add_argument("--dry_run", action="store_true",
                   help="check that the runs can be shown, say what is in them, and end")
    p.add_argument("--debug", action="store_true", help="show the traceback of every error")
    text = p.add_argument_group("in the terminal, of one run")
    text.add_argument("--terminal", action="store_true",
                      help="print an episode as text; each of the following means it too")
    text.add_argument("--step", metavar="N|last", help="which step's file (default: last)")
    text.add_argument("--eval", action="store_true",
                      help="episodes of the evaluation after that step, not of training")
    text.add_argument("--which", choices=("success", "failure", "major", "any"),
                      help="only episodes that succeeded, failed, or hold a major deviation")
    text.add_argument("--index", type=int, metavar="I", help="place in the file, from 0; with"
                      " --which, the first such episode from there on")
    text.add_argument("--list", action="store_true", help="a line per episode")
    text.add_argument("--full", action="store_true", help="do not shorten prompts and answers")
    text.add_argument("--tokens", action="store_true",
                      help="also the id and log-prob of each agent token")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 where there is nothing to show."""
    words = sys.argv[1:] if argv is None else list(argv)
    return exit_status(lambda: _view(words), "--debug" in words)


def _view(argv: Sequence[str]) -> None:
    from tarl_jax.config import ConfigError, RunConfig
    from tarl_jax.parallel.store import is_address

    own = parser()
    given, unknown = own.parse_known_args(argv)
    if unknown:
        raise ConfigError(unknown_argument(unknown[0], own))
    if any(map(is_address, given.runs)):
        from tarl_jax.runs.copies import fetched

        cache = RunConfig().warm_start.cache_dir
        given.runs = [str(fetched(r, cache)) if is_address(r) else r for r in given.runs]
    in_terminal = given.terminal or given.list or given.full or given.tokens or given.eval
    in_terminal |= any(value is not None for value in (given.step, given.which, given.index))
    if in_terminal and len(given.runs) > 1:
        raise ConfigError(f"{given.runs[1]}: in the terminal one run is shown; name one, or leave"
                          " the terminal's flags out")
    for other in ("out", "terminal", "list"):
        if given.curves and getattr(given, other):
            raise ConfigError(f"--curves and --{other}: give one of them")
    if given.print_config:
        _print_configs(given.runs)
    elif given.dry_run:
        _dry_run(given)
    elif given.curves:
        from tarl_jax.runs.curves import plot_curves

        for run in given.runs:
            print(plot_curves(run))
    elif in_terminal:
        from tarl_jax.view import terminal

        path = terminal.find_file(given.runs[0], given.step, evaluation=given.eval)
        terminal.show(
            path, which=given.which or "any", index=given.index or 0, listing=given.list,
            full=given.full, tokens=given.tokens,
        )
    elif given.out is not None:
        _write(given)
    else:
        _serve(given)


def _print_configs(runs: Sequence[str]) -> None:
    from tarl_jax.config import from_config_dict
    from tarl_jax.runs.directory import flat, read_run

    for run in runs:
        values, _ = read_run(Path(run).expanduser())
        print(json.dumps(flat(from_config_dict(values)), indent=2))


def _dry_run(given: argparse.Namespace) -> None:
    from tarl_jax.view.records import open_source

    if given.out is not None:
        _out(given)
    for run in given.runs:
        source = open_source(run)
        files = source.state()["files"]
        print(f"{source.name}: {len(source.metrics())} lines of metrics, files of episodes:"
              f" {len(files['train'])} of training, {len(files['eval'])} of evaluations")
    print("all checks pass; this was a dry run: nothing was opened or written")


def _out(given: argparse.Namespace) -> Path:
    from tarl_jax.config import ConfigError

    if given.files < 1:
        raise ConfigError(f"--files={given.files}: must be at least 1")
    out = Path(given.out).expanduser()
    if not given.out or out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out={given.out}: name a file in a folder that is there")
    return out


def _write(given: argparse.Namespace) -> None:
    from tarl_jax.parallel.files import replace
    from tarl_jax.view.document import report
    from tarl_jax.view.records import open_source

    out = _out(given)
    text = report([open_source(run) for run in given.runs], given.files)
    replace(out, text)
    print(f"{out} ({len(text.encode()) / 2**20:.1f} MiB)")


def _serve(given: argparse.Namespace) -> None:
    from tarl_jax.view.records import open_source
    from tarl_jax.view.server import HOST, make_server

    with make_server([open_source(run) for run in given.runs], given.port) as server:
        address = f"http://{HOST}:{server.server_port}"
        print(f"{address}  (Ctrl-C ends it; --terminal prints an episode here instead)", flush=True)
        if not given.no_browser:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
