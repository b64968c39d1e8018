"""Episodes that are carried over where several processes play; threads stand in for these.

What they tell each other goes through `hosts`, as between processes. A made-up engine has every
dialogue write a turn a tick: the number of the policy that plays.
"""

import contextlib
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from tarl_jax.config import RunConfig
from tarl_jax.parallel import hosts
from tarl_jax.rollout.journal import Journals
from tarl_jax.rollout.running import EngineStats
from tarl_jax.rollout.scheduler import Row, extend_context
from tarl_jax.rollout.workers import Answer, Turn, Unfinished, Workers
from tarl_jax.training.collect import Collector
from tarl_jax.training.mixture import Planned
from tarl_jax.types import Task, Trajectory

# Turns of the episodes of a step's groups. With a tick a step the third group is carried twice; the
# fourth never ends.
LENGTHS = ((1, 1), (1, 2), (3, 1), (10**6, 1))
THREAD = threading.local()  # its `rank`: the process that a thread is of


def as_processes(monkeypatch, count, work):
    """What `work` comes to in each of so many, in their order."""
    barrier, parts = threading.Barrier(count, timeout=60), [b""] * count

    def gather(data):
        parts[THREAD.rank] = data
        barrier.wait()
        found = list(parts)
        barrier.wait()
        return found

    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr(hosts, "_all_gather", gather)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(jax, "process_index", lambda: THREAD.rank)

    def one(rank):
        THREAD.rank = rank
        try:
            return work()
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


class Episode:
    """Ends after so many turns."""

    outside, shared = False, 0

    def __init__(self, task, seed, length):
        self.task, self.seed, self.length = task, seed, length
        self.policies, self.was_cut = [], False  # that wrote its turns

    def start(self):
        return [self.seed]

    def turn(self, turn):
        assert not self.was_cut and len(self.policies) < self.length
        self.policies += turn.ids
        return None if len(self.policies) == self.length else Answer([-1])

    def cut(self):
        self.was_cut = True

    def trajectory(self):
        assert self.was_cut or len(self.policies) == self.length
        end = "max_seconds" if self.was_cut else "user_stop"
        return Trajectory(self.task, self.seed, [], end, not self.was_cut,
                          diff=[str(policy) for policy in self.policies])


class Env:
    """Of such episodes; also the mixture, whose steps all have the same tasks."""

    def __init__(self, lengths):
        self._lengths = lengths

    def plan(self, step):
        return [Planned(Task(str(n), "", "", (), (), "train", "shop", None, 1), 0.0)
                for n in range(len(self._lengths))]

    def speaking(self, share, clean):
        return self

    def episode(self, task, kind, step, trial, supervisor, journal):
        group = int(task.task_id)
        episode = Episode(task, seed_of(step, group, trial), self._lengths[group][trial])
        return journal.kept(episode, timed=True) if journal else episode


def seed_of(step, group, trial):
    return (step * 10 + group) * 10 + trial


class Engine:
    """Dialogues under the policy of a number; a tick takes longer than a step may."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(1)

    def ready(self, trained, frozen):
        return trained

    def run(self, policy, episodes, temperature, *, ended, seconds, enough, unfinished, leave):
        play = Workers(unfinished, episodes, self._pool, seconds, enough, ended)
        rows = {index: dataclasses.replace(row) for index, row in play.rows.items()}
        stats = EngineStats(play.count, forced_tokens=sum(len(r.tokens) for r in rows.values()))
        for index in sorted(set(range(play.count)) - set(rows)):
            rows[index] = Row(index, play.seeds[index])
            play.start(index)

        def take_answers():
            for index, answer in play.arrived(0.0):
                if answer is None:
                    del rows[index]
                else:
                    extend_context(rows[index], answer.tokens, answer.keep, ())

        while rows and not play.late:
            take_answers()
            if not (play.late and stats.ticks):
                stats.ticks += 1
                for index, row in rows.items():
                    assert row.tokens[0] == play.seeds[index]
                    row.tokens.append(policy)
                    play.turn(index, Turn([policy], [-0.5], [-0.5]))
        take_answers()
        stats.unfinished = [
            Unfinished(episode, row, None) for index, row in sorted(rows.items())
            if (episode := play.episode(index))
        ]
        return stats


@contextlib.contextmanager
def collector(folder, bound, lengths=LENGTHS, journal=True):
    config = RunConfig()
    config = dataclasses.replace(
        config, rl=dataclasses.replace(config.rl, max_staleness=bound, steps=99),
        rollout=dataclasses.replace(config.rollout, step_seconds=1e-9, group_size=2),
    )
    env, rank = Env(lengths), THREAD.rank
    journals = Journals(folder / "journal") if journal else None
    found = Collector(config, Engine(), env, env, folder / "ahead", journals=journals)
    found._pool = ThreadPoolExecutor(1, initializer=lambda: setattr(THREAD, "rank", rank))
    with contextlib.closing(found):
        yield found
    if journals:
        journals.close()


def steps(collect, first, last, ahead):
    """What this process collects in the steps; the policy's number is that of the updates."""
    found = []
    for step in range(first, last + 1):
        found.append(collect.collect(step, step - 1))
        if ahead:
            collect.play_ahead(step, step - 1)
    return found


def merged(parts):
    """By step the trajectories of all processes; that all tell the same, and some group ended."""
    of_steps = list(zip(*parts, strict=True))
    for of_step in of_steps:
        told = [{name: value for name, value in one.metrics().items()
                 if not name.startswith("seconds/") and "per_second" not in name}
                for one in of_step]
        assert all(metrics == told[0] for metrics in told)
        assert told[0].get("rollout/too_stale", 0) == of_step[0].stale
        assert any(one.trajectories for one in of_step)
    return [[t for one in of_step for t in one.trajectories] for of_step in of_steps]


@pytest.mark.parametrize("count, bound, ahead", [(1, 2, False), (2, 2, False), (3, 2, False),
                                                 (2, 3, True)])
def test_every_episode_is_learned_from_once(monkeypatch, tmp_path, count, bound, ahead):
    """Also where a process has nothing to give in a step, and where steps are played ahead."""

    def work():
        with collector(tmp_path, bound) as collect:
            found = steps(collect, 1, 9, ahead)
            collect.settle()
            assert len(collect._held) <= bound * len(LENGTHS)
            return found

    parts = as_processes(monkeypatch, count, work)
    found = merged(parts)
    learned = [t.seed for step in found for t in step]
    assert len(learned) == len(set(learned))
    begun = {seed_of(step, group, trial) for step in range(1, 10 - bound)
             for group in range(len(LENGTHS)) for trial in range(2)}
    assert begun <= set(learned)
    if count > 1:
        assert any(not one.trajectories for part in parts for one in part)
    for number, (step, of_one) in enumerate(zip(found, parts[0], strict=True), start=1):
        cut = [t for t in step if t.stop_reason == "max_seconds"]
        assert of_one.stale == len(cut) and max(of_one.behind) <= bound
        assert {t.seed % 100 // 10 for t in cut} <= ({2, 3} if ahead else {3})
        assert len(of_one.behind) == len(step) / 2
        for t in step:  # each turn by the policy of its time
            policies = [int(policy) for policy in t.diff]
            assert policies == sorted(policies) and number - 1 - policies[0] <= bound
            whole = LENGTHS[t.seed % 100 // 10][t.seed % 10]
            assert len(policies) == whole or (t in cut and len(policies) < whole)
    if not ahead:  # by hand: the third group of each step is played by three policies
        assert [t.diff for t in found[4] if t.seed == seed_of(3, 2, 0)] == [["2", "3", "4"]]
        assert parts[0][4].stale == 1 and parts[0][4].unfinished == 6


@pytest.mark.parametrize("before, after, ahead", [(2, 2, False), (2, 2, True), (2, 3, False),
                                                  (3, 1, False), (1, 2, True)])
def test_a_resumed_run_goes_on_with_what_was_carried(
    monkeypatch, tmp_path, before, after, ahead
):
    """By the same processes or others in number: turns that were written stay as they are."""
    bound = 3 if ahead else 2

    def first():
        with collector(tmp_path, bound) as collect:
            found = steps(collect, 1, 4, ahead)
            collect.save(4)
            held = {e.seed: list(e._episode.policies) for one in collect._held
                    for e in one.episodes}
            return found, held

    def then():
        with collector(tmp_path, bound) as collect:
            collect.restore(4)
            taken = {e.seed for one in collect._held for e in one.episodes}
            found = steps(collect, 5, 10, ahead)
            collect.save(10)
            collect.forget(10)
            return found, taken

    old = as_processes(monkeypatch, before, first)
    new = as_processes(monkeypatch, after, then)
    held = {seed: policies for _, of in old for seed, policies in of.items()}
    assert {seed for _, taken in new for seed in taken} == set(held)
    assert sum(len(taken) for _, taken in new) == len(held) > 3
    assert max(map(len, held.values())) == (1 if ahead else 2)
    found = [t for step in merged([part for part, _ in old]) for t in step]
    kept = [t for step in merged([part for part, _ in new]) for t in step]
    learned = [t.seed for t in found + kept]
    assert len(learned) == len(set(learned))
    assert {seed_of(step, group, trial) for step in range(1, 10 - bound)
            for group in range(4) for trial in range(2)} <= set(learned)
    for t in kept:
        policies = [int(policy) for policy in t.diff]
        assert policies[: len(held.get(t.seed, []))] == held.get(t.seed, [])
    assert not list((tmp_path / "ahead").glob("4.carried.json"))
    names = {int(path.name.partition("-")[0]) for path in (tmp_path / "journal").iterdir()}
    assert min(names) >= 10 - bound  # older ones are gone, whoever wrote them


def test_without_journals_carried_groups_begin_anew(monkeypatch, tmp_path):
    def work():
        with collector(tmp_path, 2, journal=False) as collect:
            steps(collect, 1, 3, False)
            collect.save(3)
        with collector(tmp_path, 2, journal=False) as collect:
            collect.restore(3)
            return steps(collect, 4, 4, False)

    (found,) = merged(as_processes(monkeypatch, 2, work))
    assert [t.diff for t in found if t.seed == seed_of(2, 2, 1)] == [["3"]]
    assert [t.diff for t in found if t.seed == seed_of(2, 3, 0)] == [["3"]]  # cut off


def test_a_step_without_time_lasts_until_a_group_has_ended(monkeypatch, tmp_path):
    """In any process, the ticks that it takes; groups that this step is the last for end in it."""
    lengths = ((9, 9), (9, 9), (5, 5), (9, 9))

    def work():
        with collector(tmp_path, 1, lengths) as collect:
            collect._depth = 0
            return steps(collect, 1, 3, False)

    parts = as_processes(monkeypatch, 2, work)
    found = merged(parts)
    assert [one.stats.ticks for one in parts[0]] == [5, 1, 1]
    assert [t.seed for t in found[0]] == [seed_of(1, 2, 0), seed_of(1, 2, 1)]
    assert [one.stale for one in parts[0]] == [0, 6, 8]
    assert {len(t.diff) for t in found[1]} == {6}
