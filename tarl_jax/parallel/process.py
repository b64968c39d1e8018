"""How a training process starts on Linux: with glibc's allocator told to keep its memory."""

from __future__ import annotations

import os
import sys

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
    taken = any(name in os.environ for name in (*MALLOC, "TARL_KEEP_MALLOC"))
    if taken or not sys.platform.startswith("linux"):
        return
    sys.stdout.flush()
    arguments = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execve(sys.executable, arguments, {**os.environ, **MALLOC})
