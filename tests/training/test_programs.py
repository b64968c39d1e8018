"""How many programs a run compiles, counted from shapes: nothing is compiled here."""

import collections
import dataclasses
from unittest import mock

import jax
import pytest

from tarl_jax.config import RunConfig
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.compiled import Compiled
from tarl_jax.training.bookkeeping import compile_programs
from tarl_jax.training.learn import Learner

VOCAB = 4096


def counted(config):
    """By name, of a run on one CPU device."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    updater = Updater(config.model, VOCAB, config.rl, config.rollout.temperature, mesh)
    engine = Compiled(config.model, config.rollout, 0, mesh)
    wanted = engine.prepare.wanted(updater.policy_shapes)
    wanted += engine.wanted(engine.prepare.shapes(updater.policy_shapes), engine.sizes())
    shapes = Learner(config, updater, row_shards=1).shapes()
    wanted += updater.wanted(updater.shapes(), shapes, config.rl.pack)
    return collections.Counter(one.name for one in wanted)


@pytest.mark.parametrize(("tokens", "slots", "most"), [(768, 128, 30), (4096, 32, 48)])
def test_a_run_compiles_few_programs(tokens, slots, most):
    config = RunConfig()
    rollout = dataclasses.replace(config.rollout, max_episode_tokens=tokens, slots=slots)
    found = counted(dataclasses.replace(config, rollout=rollout))
    assert 10 < found.total() <= most, found
    assert "grow" not in found  # caches of this length are made whole


@pytest.mark.parametrize(("share", "at_first", "sound"), [
    (0.0, 0.0, False), (0.5, 0.0, True), (0.0, 0.5, True)])
def test_updates_for_sound_are_compiled_where_somebody_speaks(share, at_first, sound):
    """`speech.share` in the end, `curriculum.spoken` at first: one of them is enough."""
    config = RunConfig()
    config = dataclasses.replace(
        config, speech=dataclasses.replace(config.speech, share=share),
        curriculum=dataclasses.replace(config.curriculum, spoken=at_first))
    run = mock.MagicMock(config=config)
    compile_programs(run, mock.MagicMock(step=0))
    assert run.updater.compile.call_args.kwargs["sound"] is sound
