"""A signal is answered while the program is deep in something, and ends what may be ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tarl_jax.runs.stopping import StopRequest


def until(true, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


# Keeps the main thread outside Python, where handlers do not run, as a compilation does.
BUSY = """
import hashlib
from tarl_jax.runs import stopping
stopping.GRACE = 0.2
with stopping.StopRequest(lambda line: print(line, flush=True)):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # a quarter of an hour
"""


def test_a_signal_is_answered_and_a_second_one_ends_a_program_that_does_not_listen():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGTERM)
        line = process.stdout.readline()
        assert line == "SIGTERM: stopping where nothing is lost; once more ends at once\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "ending at once\n"
        assert process.wait(timeout=60) == 143
        assert process.stderr.read().count("error: ended in the middle") == 1


def test_the_answer_comes_from_a_thread_once():
    said = []
    with StopRequest(said.append) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert until(lambda: said)
        assert stop.received == signal.SIGINT
    assert said == ["SIGINT: stopping where nothing is lost; once more ends at once"]


def test_a_view_that_fails_does_not_keep_the_signal():
    def fail(line):
        raise OSError("no terminal")

    with StopRequest(fail) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert until(lambda: stop.received)


def test_a_block_of_which_nothing_is_kept_ends_at_the_first_signal():
    with StopRequest(lambda line: None) as stop:
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        assert stop.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt), stop.at_once():  # it came before the block
            raise AssertionError("was entered")


def test_wakeups_of_others_are_put_back():
    import socket

    here, there = socket.socketpair()
    there.setblocking(False)
    before = signal.set_wakeup_fd(there.fileno())
    try:
        with StopRequest(lambda line: None):
            pass
        assert signal.set_wakeup_fd(before) == there.fileno()
    finally:
        signal.set_wakeup_fd(before)
        here.close()
        there.close()
