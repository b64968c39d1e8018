"""How a process of a command starts, and with which exit status it ends."""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tarl_jax.config.errors import TarlError

# Without these, glibc gives freed memory back to the system after every step and takes it anew,
# page by page, which costs a CPU up to half of a training step. They are read when a process
# starts, hence the second start.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def restart_with_tuned_malloc(module: str) -> None:
    """Starts `python -m module` again with MALLOC set, unless the user has set any of it.

    TARL_KEEP_MALLOC=1 switches it off.
    """
    if _tuned():
        run_module(module, sys.argv[1:])


def run_module(module: str, arguments: Sequence[str]) -> NoReturn:
    """Becomes `python -m module …`, with MALLOC set as `restart_with_tuned_malloc` says."""
    sys.stdout.flush()
    command = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, command, {**os.environ, **(MALLOC if _tuned() else {})})


def _tuned() -> bool:
    taken = any(name in os.environ for name in (*MALLOC, "TARL_KEEP_MALLOC"))
    return not taken and sys.platform.startswith("linux")


def exit_status(job: Callable[[], Any], debug: bool = False) -> int:
    """Runs the job of a command; 0 when it is done.

    An error that the project raises on purpose is printed as one line, and its `code` returned
    (1: the run failed, 2: bad input, 130 or 143: stopped by a signal). Where whoever read standard
    output has gone, as in `… | head -1`, the status is 141, and nothing is said. Any other error is
    raised: it keeps its traceback.

    debug: those raised on purpose show their traceback too; so does TARL_DEBUG=1.
    """
    try:
        job()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        return 141
    except TarlError as error:
        if debug or os.environ.get("TARL_DEBUG", "") not in ("", "0"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def _reader_has_gone() -> bool:
    """Whether nobody reads standard output any more; what is in its buffer is then let go."""
    try:
        place = sys.stdout.fileno()
    except OSError:  # no file
        return False
    asked = select.poll()
    asked.register(place, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return True
