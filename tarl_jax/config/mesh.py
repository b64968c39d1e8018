"""How the devices share the work."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work; one of the first three may be -1: what is left.

    data: copies of the parameters, each on other rows.
    fsdp: parameters split, other rows.
    tensor: heads, feed-forward and vocabulary split, the same rows.
    rollout_tensor: `tensor` while rollouts run (their parameters are split in no other way, since
      decoding would gather them each token).
    rollout_devices: that rollouts have to themselves, the last ones (of several processes as many
      of each), while updates have the others: with `rl.max_staleness` both work at the same time;
      0: both are on all devices.
    processes: of the run, one per host (`parallel/hosts.py`); 0: as many as the cluster says.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rollout_tensor: int = 1
    rollout_devices: int = 0
    processes: int = 1
