"""How a run saves in the background: in which order, and what it says when that fails."""

import signal
from types import SimpleNamespace

import pytest

from tarl_jax.config import from_config_dict
from tarl_jax.config.presets import sized
from tarl_jax.rl.update import TrainState
from tarl_jax.runs.checkpoint import CheckpointError
from tarl_jax.runs.stopping import Interrupted
from tarl_jax.training import run as module
from tarl_jax.training.run import State, save, settle

BROKEN = CheckpointError("checkpoints/4: could not be written (No space left on device)")


class Told:
    """Whose every method notes that it was called, and returns what `answers` has for it."""

    def __init__(self, calls, name, **answers):
        self._calls, self._name, self._answers = calls, name, answers

    def __getattr__(self, method):
        def call(*args, **kwargs):
            self._calls.append(f"{self._name}.{method}")
            return self._answers.get(method)

        return call


@pytest.fixture
def calls():
    return []


@pytest.fixture
def run(calls):
    checkpoints = Told(calls, "checkpoints")
    checkpoints.steps = [2, 4]
    config = from_config_dict(sized("tiny"))
    config = module.dataclasses.replace(
        config, log=module.dataclasses.replace(config.log, copy_to="elsewhere")
    )
    return SimpleNamespace(config=config, checkpoints=checkpoints, lock=Told(calls, "lock"),
                           copy=Told(calls, "copy"))


def test_nothing_goes_before_what_takes_its_place_is_whole(run, calls):
    """The one before is whole, and copied, before a further one is begun, which removes it."""
    state = State(6, TrainState({}, {}, {}), None, {})
    save(run, state, None, Told(calls, "collector"))
    assert calls == ["checkpoints.failure", "lock.require", "copy.wait", "collector.save",
                     "collector.forget", "checkpoints.save"]


def test_a_checkpoint_that_could_not_be_written_ends_the_run(run, calls):
    run.checkpoints = Told(calls, "checkpoints", failure=BROKEN)
    with pytest.raises(CheckpointError, match="No space left"):
        settle(run, Told(calls, "collector"))
    assert calls == ["checkpoints.failure"]


@pytest.fixture
def ended(monkeypatch, calls):
    """How a run ends whose last checkpoint failed, or not: (what it raised, what it said)."""

    def end(ending, failure):
        said = []
        monkeypatch.setattr(module, "Checkpoints",
                            lambda *_: Told(calls, "checkpoints", failure=failure))
        try:
            with module._written_whole(None, SimpleNamespace(checkpoint=None),
                                       SimpleNamespace(log=said.append)):
                if ending:
                    raise ending
        except Exception as error:
            return error, said
        return None, said

    return end


def test_a_stop_waits_for_what_is_written_and_says_if_it_was_not(ended, calls):
    stop = Interrupted("stopped after step 4", signal.SIGTERM)
    assert ended(stop, None) == (stop, [])
    assert calls == ["checkpoints.failure", "checkpoints.close"]
    assert ended(stop, BROKEN) == (BROKEN, [])


def test_another_error_stays_the_runs_and_both_are_told(ended):
    other = ValueError("a fault")
    assert ended(other, BROKEN) == (other, [str(BROKEN)])
    assert ended(BROKEN, BROKEN) == (BROKEN, [])  # once
