"""How a command ends whose output nobody reads any more."""

import os
import sys

import pytest

from tarl_jax.parallel.process import exit_status


@pytest.mark.parametrize("length", [10, 100_000])  # what waits in the buffer, and what does not
def test_a_reader_that_has_gone_is_no_error(monkeypatch, capsys, length):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert exit_status(lambda: print("x" * length)) == 141
    assert capsys.readouterr().err == ""


def test_another_pipe_that_breaks_keeps_its_traceback():
    def job():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        exit_status(job)
