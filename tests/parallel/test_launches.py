"""Two threads that launch programs, one at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tarl_jax.parallel import hosts, launches


@pytest.fixture(params=["two processes", "two devices of one"])
def order(request, monkeypatch):
    """Between threads that have to take turns."""
    if request.param == "two devices of one":
        return launches.Launches(together=True)
    monkeypatch.setattr(hosts, "several", lambda: True)
    return launches.Launches(together=False)


class Devices:
    """Where threads launch programs; two at once are an error."""

    def __init__(self):
        self.busy, self.log = threading.Lock(), []

    def launch(self, who):
        assert self.busy.acquire(blocking=False)
        self.log.append(who)
        threading.Event().wait(0.001)
        self.busy.release()


def test_one_thread_launches_at_a_time(order):
    devices, ticked = Devices(), threading.Semaphore(0)

    def play(ticks):
        with order.task():
            for _ in range(ticks):
                devices.launch("ahead")
                ticked.release()
                if launches.wanted():
                    launches.pass_on()

    for _ in range(2):
        order.add()
    with ThreadPoolExecutor(1) as pool:
        tasks = [pool.submit(play, ticks) for ticks in (5, 50)]
        for _ in range(3):
            devices.launch("main")
        assert devices.log == ["main"] * 3  # nobody else was let
        for _ in range(10):
            with launches.given():
                ticked.acquire()
            devices.launch("main")
        with launches.given():
            tasks[0].result()
        devices.launch("main")
        with launches.given():
            tasks[1].result()
        devices.launch("main")
    assert devices.log.count("ahead") == 55 and devices.log[-1] == "main"
    with launches.given():  # to nobody
        devices.launch("main")
    order.close()


def test_who_waits_to_launch_ends_with_the_run(order):
    def play():
        with order.task():
            pytest.fail("may not launch")

    order.add()
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(play)
        order.close()
        with pytest.raises(RuntimeError, match="the run has ended"):
            task.result()


@pytest.mark.parametrize("count, together", [(1, True), (2, False)])
def test_threads_that_share_no_two_devices_wait_for_nothing(monkeypatch, count, together):
    monkeypatch.setattr(launches.jax, "device_count", lambda: count)
    order = launches.Launches(together)
    order.add()
    with order.task(), launches.given():
        assert not launches.takes_turns() and launches.fetched(3) == 3
