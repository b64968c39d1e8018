"""The main job: trains an agent and prints what training changed.

    python -m tarl_jax.main --config=configs/grpo_tarl.py [--workdir=DIR] [--config.KEY=VALUE ...]

A --workdir that holds an earlier run continues it.
"""

from __future__ import annotations

import os
import sys

# Without these, glibc gives freed memory back to the system after every step and takes it anew,
# page by page: on a CPU that nearly doubles the cost of a training step. They are read when a
# process starts, hence the second start.
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def restart_with_tuned_malloc(module: str) -> None:
    """Starts this program again with `_MALLOC` set, on Linux and unless the user set any of it.

    TARL_KEEP_MALLOC=1 switches it off.
    """
    taken = any(name in os.environ for name in (*_MALLOC, "TARL_KEEP_MALLOC"))
    if taken or not sys.platform.startswith("linux"):
        return
    sys.stdout.flush()
    arguments = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execve(sys.executable, arguments, {**os.environ, **_MALLOC})


def main() -> None:
    from tarl_jax.cli import run_with_config

    def job(config):
        from tarl_jax.train import run_and_report

        run_and_report(config)

    run_with_config(__doc__, job)


if __name__ == "__main__":
    restart_with_tuned_malloc("tarl_jax.main")
    main()
