"""Two processes say what one with as many devices says (whole runs: test_configs.py)."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from processes import free_port, outputs, start

from tarl_jax.config import ConfigError, LLMConfig, MeshConfig, RunConfig
from tarl_jax.parallel import hosts
from tarl_jax.parallel.wire import pack, unpack
from tarl_jax.rollout.sampling import Sampling
from tarl_jax.rollout.scheduler import Row, SpokenInputs
from tarl_jax.rollout.workers import Answer, Unfinished, Workers
from tarl_jax.speech.sound import Sound

TESTS = Path(__file__).parents[1]


def test_two_processes_say_what_one_says():
    """Though each has a second thread that launches programs of both."""
    port, script = free_port(), TESTS / "two_processes.py"

    def results(processes, devices):
        running = [start([script, *map(str, (port, processes, rank))], devices)
                   for rank in range(processes)]
        return [json.loads(out.splitlines()[-1]) for out in outputs(running)]

    pair = results(2, devices=4)
    (alone,) = results(1, devices=8)
    together = pair[0]["said"] | pair[1]["said"]
    assert len(pair[0]["said"]) == len(pair[1]["said"]) == 12
    assert together.keys() == alone["said"].keys()
    for seed, (ids, log_probs) in alone["said"].items():
        assert together[seed][0] == ids, seed
        np.testing.assert_allclose(together[seed][1], log_probs, atol=1e-5)
    assert pair[0]["sampled"] == pair[1]["sampled"] == alone["sampled"] > 500


def test_processes_that_cannot_meet_are_an_error(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"mesh.processes = 2: set JAX_COORDINATOR_ADDRESS"):
        hosts.join(MeshConfig(processes=2))


def test_answers_reach_other_processes_to_the_sample(monkeypatch):
    def stacked(x):
        return np.stack([x, x])

    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", stacked)
    clip = np.random.default_rng(0).integers(-9000, 9000, 900).astype(np.float32) / 32768
    mine = (True, [(3, Answer([5, 9, 9, 1], 7, (Sound(1, 2, clip),))), (4, None), (2**40, 0.1)])
    assert hosts.gathered(mine, None, Answer) == [mine, mine]
    monkeypatch.setattr(hosts, "_BLOCK", 100)
    assert hosts.gathered(mine, None, Answer) == [mine, mine]
    assert hosts.total({"calls": 2.0}) == {"calls": 4.0}


def test_what_is_carried_over_reaches_other_processes_with_its_sound(monkeypatch):
    """A process's rows as they are; what they hear as clips and lengths, to be made again."""
    clip = np.random.default_rng(1).integers(-9000, 9000, 900).astype(np.float32) / 32768
    spoken = [SpokenInputs(3, np.ones((4, 6), np.float32), clip, -5)]
    rows = [Row(7, 21, [1, 2, 3, 9, 9, 9, 9], sampling=Sampling(0.7), asking=False, written=2,
                log_probs=[-1.0, -0.1], spoken=spoken), None]
    mine = [Unfinished(SimpleNamespace(seed=21 + n, shared=n), row, None)
            for n, row in enumerate(rows)]
    sent = []
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.jax, "process_index", lambda: 1)
    monkeypatch.setattr(hosts, "_all_gather", lambda data: sent.append(data) or [data, data])
    new = SimpleNamespace(seed=5, shared=2)
    play = Workers(mine, [new], None, 0.0, lambda: True)
    assert play.seeds == [21, 22, 21, 22, 5, 5] and play.shared == [0, 1, 0, 1, 2, 2]
    assert [play.episode(n) for n in range(6)] == [
        None, None, mine[0].episode, mine[1].episode, None, new
    ]
    assert sorted(play.rows) == [0, 2]
    for row in play.rows.values():
        (sound,) = row.spoken
        assert dataclasses.replace(row, spoken=[]).__dict__ == (
            dataclasses.replace(rows[0], spoken=[]).__dict__
        )
        assert (sound.first, sound.key, len(sound.inputs)) == (3, -5, 4)
        assert sound.clip.tobytes() == clip.tobytes()
    assert len(sent[0]) < 3 * clip.nbytes


def test_what_fails_in_one_process_fails_in_all(monkeypatch):
    def fail():
        raise ConfigError("no such file")

    kept = []

    def gather(data):
        kept.append(data)
        return [kept[0], data]

    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "_all_gather", gather)
    with pytest.raises(ConfigError, match="no such file"):
        hosts.from_first(fail)
    monkeypatch.setattr(hosts.jax, "process_index", lambda: 1)
    with pytest.raises(hosts.HostError, match="process 0 failed: ConfigError: no such file"):
        hosts.from_first(fail)


@pytest.mark.parametrize("shared", [True, False])
def test_a_folder_that_is_not_shared_is_an_error(monkeypatch, tmp_path, shared):
    def gather(data):
        mine, said = unpack(data)
        other = shared if isinstance(mine, bool) else mine
        return [data, pack((other, said))]

    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "_all_gather", gather)
    if shared:
        hosts.require_shared(tmp_path / "new")
    else:
        with pytest.raises(ConfigError, match="new: process 1 does not see"):
            hosts.require_shared(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_what_only_one_process_does_is_an_error_in_two(monkeypatch):
    def changed(group, **fields):
        config = RunConfig()
        return dataclasses.replace(
            config, **{group: dataclasses.replace(getattr(config, group), **fields)}
        )

    alone = {
        "user.llm.record = a": changed("user", llm=LLMConfig(record="a")),
        "judge.llm.replay = b": changed("judge", llm=LLMConfig(replay="b")),
    }
    for config in alone.values():
        hosts.check(config)
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"give --config\.mesh\.processes=0"):
        hosts.check(RunConfig())
    monkeypatch.setattr(hosts.jax.distributed, "is_initialized", lambda: True)
    hosts.check(RunConfig())
    hosts.check(changed("rollout", step_seconds=5.0))
    hosts.check(changed("rl", max_staleness=1))
    for name, config in alone.items():
        with pytest.raises(ConfigError, match=f"config.{name}: only a run of one process"):
            hosts.check(config)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_are_neighbours_and_lose_nothing(monkeypatch, count):
    monkeypatch.setattr(hosts.jax, "process_count", lambda: count)
    parts = []
    for rank in range(count):
        monkeypatch.setattr(hosts.jax, "process_index", lambda rank=rank: rank)
        parts.append(hosts.share(list(range(7))))
    assert [x for part in parts for x in part] == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
