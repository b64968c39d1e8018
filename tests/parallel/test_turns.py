"""Two threads that launch programs, one at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tarl_jax.parallel import hosts, turns


@pytest.fixture
def several(monkeypatch):
    monkeypatch.setattr(hosts, "several", lambda: True)


class Devices:
    """Where threads launch programs; two at once are an error."""

    def __init__(self):
        self.busy, self.log = threading.Lock(), []

    def launch(self, who):
        assert self.busy.acquire(blocking=False)
        self.log.append(who)
        threading.Event().wait(0.001)
        self.busy.release()


def test_one_thread_launches_at_a_time(several):
    order, devices, ticked = turns.Turns(), Devices(), threading.Semaphore(0)

    def play(ticks):
        with order.task():
            for _ in range(ticks):
                devices.launch("ahead")
                ticked.release()
                if turns.wanted():
                    turns.pass_on()

    for _ in range(2):
        order.add()
    with ThreadPoolExecutor(1) as pool:
        tasks = [pool.submit(play, ticks) for ticks in (5, 50)]
        for _ in range(3):
            devices.launch("main")
        assert devices.log == ["main"] * 3  # nobody else has had a turn
        for _ in range(10):
            with turns.given():
                ticked.acquire()
            devices.launch("main")
        with turns.given():
            tasks[0].result()
        devices.launch("main")
        with turns.given():
            tasks[1].result()
        devices.launch("main")
    assert devices.log.count("ahead") == 55 and devices.log[-1] == "main"
    with turns.given():  # to nobody
        devices.launch("main")
    order.close()


def test_who_waits_for_a_turn_ends_with_the_run(several):
    order = turns.Turns()

    def play():
        with order.task():
            pytest.fail("has no turn")

    order.add()
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(play)
        order.close()
        with pytest.raises(RuntimeError, match="the run has ended"):
            task.result()


def test_one_process_waits_for_nothing():
    order = turns.Turns()
    order.add()
    with order.task(), turns.given():
        assert not turns.wanted() and turns.fetched(3) == 3
