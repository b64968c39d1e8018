"""Plays dialogues as one of several processes, beside something else that all of them run; started
by test_two_processes.py.

Usage: two_processes.py PORT PROCESSES RANK. Prints what this process's dialogues said, as JSON.
"""

import dataclasses
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from scripted import CONFIG, MODEL, STOP, TEMPERATURE, VOCAB, Forgetful, Scripted, Slow

from tarl_jax.config import MeshConfig
from tarl_jax.models import decoder
from tarl_jax.parallel import hosts, launches
from tarl_jax.parallel.mesh import by_rows, replicated, rollout_mesh
from tarl_jax.rollout.engine import Engine


def dialogues():
    """Quick ones, slow ones, some with a common prompt, some that forget."""
    episodes = []
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, VOCAB, 60).tolist()
    for seed in range(24):
        kind = (Scripted, Slow, Forgetful)[seed % 3]
        episode = kind(seed, 30 + seed, [5, 40, 3])
        if seed % 4 == 0:
            episode.prompt, episode.shared = prompt, 40
        if kind is Slow:
            episode.wait = lambda seed=seed: time.sleep(0.002 * (seed % 5))
        episodes.append(episode)
    return episodes


def work(mesh, rank):
    """What the other thread does meanwhile: programs of all devices, and words between processes;
    it waits for something else before each, for as long as no other process does."""
    total = jax.jit(jnp.sum, out_shardings=replicated(mesh))
    for number in range(40):
        with launches.given():
            time.sleep(0.002 * ((7 * number + 3 * rank) % 5))
        numbers = hosts.put(np.full(8, number, np.float32), by_rows(mesh))
        assert launches.fetched(total(numbers)) == 8 * number
        assert hosts.gathered(number) == [number] * jax.process_count()


def play_on(engine, params, mine):
    """The same in runs of a tick each, which go on with what the one before has left: turns that
    are being written, answers that are waited for, dialogues that are not begun. How many runs."""
    runs, left, new = 0, [], mine
    while True:
        stats = engine.run(params, new, TEMPERATURE, seconds=1e-9, unfinished=left)
        runs, left, new = runs + 1, stats.unfinished, []
        if not any(hosts.gathered(len(left))):
            return runs


def main():
    port, processes, rank = map(int, sys.argv[1:])
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    assert jax.device_count() == 8 and jax.process_count() == processes
    mesh = rollout_mesh(MeshConfig())
    config = dataclasses.replace(CONFIG, slots=8, in_flight=16, parked=2, share_prefix=16)
    engine = Engine(MODEL, config, STOP, mesh)
    shapes = jax.eval_shape(lambda: decoder.init_params(MODEL, VOCAB, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes)
    everyone = dialogues()
    share = len(everyone) // processes
    mine = everyone[rank * share : (rank + 1) * share]
    ended = []
    order = launches.Launches(together=True)

    def play():
        with order.task():
            return engine.run(params, mine, TEMPERATURE, ended=lambda e: ended.append(e.seed))

    order.add()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(play)
        if processes > 1:
            work(mesh, rank)
        with launches.given():
            stats = future.result()
    assert sorted(ended) == [e.seed for e in mine] and stats.episodes == len(everyone)
    said = {e.seed: (e.sampled_ids, [p for _, lp in e.turns for p in lp]) for e in mine}
    if processes > 1:  # of one: test_slow_dialogues.py
        again = dialogues()[rank * share :][:5]
        assert play_on(engine, params, again) > 5
        for episode in again:
            ids, log_probs = said[episode.seed]
            assert episode.sampled_ids == ids, episode.seed
            carried = [p for _, lp in episode.turns for p in lp]
            np.testing.assert_allclose(carried, log_probs, atol=1e-5)
    print(json.dumps({"said": said, "sampled": stats.sampled_tokens}))


if __name__ == "__main__":
    main()
