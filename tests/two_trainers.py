"""One of two processes that train together; started by test_configs.py.

Usage: two_trainers.py FILE, which holds a pickled RunConfig.
"""

import dataclasses
import pickle
import sys
from pathlib import Path

from tarl_jax.parallel import hosts
from tarl_jax.training.train import run_and_report


def main():
    config = pickle.loads(Path(sys.argv[1]).read_bytes())
    mesh = dataclasses.replace(config.mesh, processes=2, data=1, fsdp=2)
    config = dataclasses.replace(config, mesh=mesh)
    hosts.join(config.mesh)
    run_and_report(config)


if __name__ == "__main__":
    main()
