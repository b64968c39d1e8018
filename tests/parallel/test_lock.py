"""One owner at a time: among threads, processes, and what looks like another host."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tarl_jax.parallel import lock as module
from tarl_jax.parallel.lock import Lock, LockedError, Owner

HOLDER = """
import sys, time
from pathlib import Path
from tarl_jax.parallel.lock import Lock
Lock(Path(sys.argv[1]), "the thing").take()
print("held", flush=True)
time.sleep(600)
"""

# Adds 1 to a number in a file, so slowly that two at once would lose one.
COUNTER = """
import sys, time
from pathlib import Path
from tarl_jax.parallel.lock import Lock
path = Path(sys.argv[1])
for _ in range(3):
    with Lock(path.with_suffix(".lock"), "the count").take(lambda owner: None):
        count = int(path.read_text())
        time.sleep(0.02)
        path.write_text(str(count + 1))
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.lock"


@pytest.fixture
def holder(path):
    """A process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE)
    assert process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_is_told_who_holds_it(path, holder):
    with pytest.raises(LockedError, match=rf"the run: is in use by process {holder.pid} on .*"
                       rf"\(since 20.*\(kill {holder.pid}\)"):
        Lock(path, "the run").take()
    assert json.loads(path.read_text())["process"] == holder.pid


@pytest.mark.parametrize("waited_for", [True, False])
def test_a_lock_of_a_dead_process_is_taken_over(path, holder, waited_for):
    """Also of one that is dead and not yet waited for, as the child of a program that hangs."""
    holder.send_signal(signal.SIGKILL)
    if waited_for:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with Lock(path, "x").take():
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert not list(path.parent.iterdir())


def test_a_number_that_another_process_has_now_is_not_the_owner(path):
    me = Owner.me()
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(me, begun="1", token="t"))))
    Lock(path, "x").take().release()


def test_waiting_names_the_owner_until_it_is_free(path):
    first = Lock(path, "x").take()
    seen = []

    def wait(owner):
        seen.append(owner)
        first.release()

    with Lock(path, "x").take(wait):
        assert len(seen) == 1 and f"process {os.getpid()} on" in seen[0]


def elsewhere(path, monkeypatch, silence=0.6):
    """The lock of an owner on another host, which nobody here can look at."""
    monkeypatch.setattr(module, "SILENCE", silence)
    monkeypatch.setattr(module, "BEAT", 0.1)
    owner = dataclasses.replace(Owner.me(), host="another", token="theirs")
    path.write_text(json.dumps(dataclasses.asdict(owner)))


def test_an_owner_elsewhere_that_gives_signs_of_life_is_not_robbed(path, monkeypatch):
    elsewhere(path, monkeypatch)
    over = threading.Event()

    def live():
        while not over.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(LockedError, match="on another") as raised:
        Lock(path, "x").take()
    over.set()
    thread.join()
    assert "kill" not in str(raised.value)  # there is no such process here


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_an_owner_elsewhere_that_is_silent_is_gone(path, monkeypatch, content):
    """And whatever a full disk or a crash has left of a lock."""
    elsewhere(path, monkeypatch)
    if content is not None:
        path.write_text(content)
    with Lock(path, "x").take() as lock:
        lock.require()
        first = path.stat().st_mtime_ns
        deadline = time.monotonic() + 20
        while path.stat().st_mtime_ns == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime_ns > first, "the owner gives no sign of life"
    assert not path.exists()


def test_an_owner_notices_that_it_was_robbed_and_leaves_the_other_ones_lock(path, monkeypatch):
    mine = Lock(path, "x").take()
    mine.require()
    elsewhere(path, monkeypatch)
    with pytest.raises(LockedError, match="taken over by process"):
        mine.require()
    mine.release()
    assert path.exists()
    path.unlink()
    other = Lock(path, "x").take()
    path.unlink()
    with pytest.raises(LockedError, match="was deleted"):
        other.require()
    other.release()


def test_processes_that_all_want_it_get_it_one_by_one(tmp_path):
    """After one that died with it, which all of them find at the same time."""
    count = tmp_path / "count"
    count.write_text("0")
    dead = dataclasses.replace(Owner.me(), process=2**22 + 1, token="dead")
    (tmp_path / "count.lock").write_text(json.dumps(dataclasses.asdict(dead)))
    code = COUNTER.replace("import sys, time", "import sys, time\nimport tarl_jax.parallel.lock as"
                           " m\nsleep = time.sleep\nm.time.sleep = lambda s: sleep(min(s, 0.01))")
    running = [subprocess.Popen([sys.executable, "-c", code, count]) for _ in range(6)]
    assert [process.wait(timeout=120) for process in running] == [0] * 6
    assert count.read_text() == "18"
    assert [p.name for p in tmp_path.iterdir()] == ["count"]


def test_a_file_system_without_links_will_do(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with Lock(path, "x").take(), pytest.raises(LockedError):
        Lock(path, "x").take()
    assert not list(path.parent.iterdir())
