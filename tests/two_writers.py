"""One of two processes that write a checkpoint while they go on; started by test_checkpoint.py.

Usage: two_writers.py PORT RANK FOLDER
"""

import sys
import time
from pathlib import Path

import jax
import numpy as np

from tarl_jax.config import CheckpointConfig
from tarl_jax.parallel import hosts
from tarl_jax.parallel.mesh import by_rows, make_mesh
from tarl_jax.runs import checksums
from tarl_jax.runs.checkpoint import Checkpoints


def main():
    port, rank, folder = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
    where = by_rows(make_mesh())
    checkpoints = Checkpoints(Path(folder), CheckpointConfig(every=1, keep=1))
    seal, said = checksums.seal, []

    def sealed(step):
        """Waits until both have gone on for a while."""
        while len(said) < 3 * int(step.name):
            time.sleep(0.01)
        seal(step)

    checksums.seal = sealed
    for step in (1, 2):
        state = {"w": hosts.put(np.arange(8.0, dtype=np.float32) + step, where)}
        checkpoints.save(step, state, {"step": step})
        for _ in range(3):  # through the devices, as a step does it
            said.append(hosts.gathered(rank))
    assert hosts.gathered(None, checkpoints.failure(wait=True)) == [None, None]
    found, meta = checkpoints.restore(2, state)
    assert meta == {"step": 2} and checkpoints.steps == [2]
    for part in found["w"].addressable_shards:
        np.testing.assert_array_equal(part.data, np.arange(8.0)[part.index] + 2)
    assert all(x == ["0", "1"] for x in said) and len(said) == 6
    checkpoints.close()
    print("whole")


if __name__ == "__main__":
    main()
