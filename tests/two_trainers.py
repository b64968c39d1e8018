"""One of two processes that train together; started by test_configs.py and test_parts.py.

Usage: two_trainers.py FILE [CONFIG], which hold a pickled RunConfig, and get_parts().
"""

import dataclasses
import pickle
import sys
from pathlib import Path

from tarl_jax.parallel import hosts
from tarl_jax.runs.command import load_parts
from tarl_jax.training.train import train


def main():
    config = pickle.loads(Path(sys.argv[1]).read_bytes())
    mesh = dataclasses.replace(config.mesh, processes=2, data=1, fsdp=2)
    config = dataclasses.replace(config, mesh=mesh)
    hosts.join(config.mesh)
    train(config, load_parts(sys.argv[2]) if len(sys.argv) > 2 else None, table=True)


if __name__ == "__main__":
    main()
