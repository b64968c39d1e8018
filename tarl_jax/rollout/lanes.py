"""Parts of a run that play beside each other on a CPU, each in a thread of its own.

XLA's programs for decoding keep one core of a CPU busy, and none while episodes are answered. Each
lane has slots of its own; what an episode draws does not depend on the others'.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from jax.sharding import Mesh

from tarl_jax.config import ConfigError, ModelConfig, RolloutConfig
from tarl_jax.parallel import hosts
from tarl_jax.rollout.paged_compiled import in_pages
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.workers import Dialogue

SPLIT = 32  # slots from which on there may be two lanes where `rollout.lanes` is 0


@dataclasses.dataclass(frozen=True)
class Callbacks:
    """What a run tells and asks; see `Engine.run`."""

    ended: Callable[[Dialogue], None] | None
    progress: Callable[[int, int], None] | None
    leave: Callable[[], bool] | None
    enough: Callable[[], bool]


Play = Callable[[int, Callbacks], EngineStats]


def lanes_on(mesh: Mesh, config: RolloutConfig, model: ModelConfig) -> int:
    """How many lanes runs have on these devices; the number of cores does not matter, so that
    batches are the same wherever a run goes on.

    Two where there are `SPLIT` slots or more and caches, half full, weigh more than the layers, of
    which each lane reads all.

    Raises: ConfigError where `rollout.lanes` asks for more than can be.
    """
    on_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    if not on_cpu or hosts.several() or in_pages(config, mesh):
        if config.lanes > 1:
            raise ConfigError(
                f"config.rollout.lanes = {config.lanes}: lanes are for one CPU device of one"
                " process, with contiguous caches; set it to 0"
            )
        return 1
    if config.lanes:
        return config.lanes
    heads = 2 * (model.num_heads + model.num_kv_heads)
    weights = model.d_model * (heads * model.head_dim + 3 * model.d_ff)  # of a layer
    cache = config.slots * config.max_episode_tokens * 2 * model.num_kv_heads * model.head_dim
    return 2 if config.slots >= SPLIT and cache > 2 * weights else 1


def play_in_lanes(sizes: Sequence[int], play: Play, told: Callbacks) -> EngineStats:
    """What lanes of so many dialogues played, the first of them in this thread.

    Args:
      play: plays a lane. What it tells and asks comes from one lane at a time, and progress is that
        of all.
    Raises: what a lane raised, once the others have stopped at their next tick.
    """
    lock, stop = threading.RLock(), threading.Event()
    done_by = [0] * len(sizes)

    def one(lane: int) -> EngineStats:
        def progress(done: int, _: int) -> None:
            with lock:
                done_by[lane] = done
                if told.progress:
                    told.progress(sum(done_by), sum(sizes))

        def ended(dialogue: Dialogue) -> None:
            with lock:
                if told.ended:
                    told.ended(dialogue)

        def leave() -> bool:
            if not stop.is_set():
                with lock:
                    if told.leave and told.leave():
                        stop.set()
            return stop.is_set()

        def enough() -> bool:
            with lock:
                return told.enough()

        try:
            return play(lane, Callbacks(ended, progress, leave, enough))
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(len(sizes) - 1, "lane") as pool:
        others = [pool.submit(one, lane) for lane in range(1, len(sizes))]
        played = [one(0), *(other.result() for other in others)]
    return joined(played)


def joined(played: Sequence[EngineStats]) -> EngineStats:
    """The statistics of lanes as of one run: counts add up, seconds are those of the mean lane."""
    whole = EngineStats()
    for of in played:
        for name, value in vars(of).items():
            if name == "left":
                whole.left = whole.left or value
            elif name in ("extend_seconds", "decode_seconds", "wait_seconds"):
                setattr(whole, name, getattr(whole, name) + value / len(played))
            else:
                setattr(whole, name, getattr(whole, name) + value)
    return whole
