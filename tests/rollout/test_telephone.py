"""A user who speaks in parts of 0.2 s is answered as one whose clips were heard whole."""

import contextlib
import dataclasses

import numpy as np
import pytest
from phone_call import Call, Clock

from tarl_jax.config import InputError
from tarl_jax.config.presets import AUDIO_ENCODERS
from tarl_jax.models.audio_inputs import tokens_of
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.sampling import Truncation
from tarl_jax.rollout.telephone import Telephone

SECOND = 16_000
ENCODER = dataclasses.replace(AUDIO_ENCODERS["tiny"], n_window=40)  # pieces of 0.8 s, 20 tokens


def sound(seconds, seed, begin=1.0):
    """begin: how loud its first half is."""
    wave = 0.2 * np.random.default_rng(seed).standard_normal(round(seconds * SECOND))
    wave[: len(wave) // 2] *= begin
    return (np.rint(wave * 32_768) / 32_768).astype(np.float32)


CLIPS = [sound(2.3, 0), sound(0.3, 1), sound(3.0, 2, begin=3e-4)]


@pytest.fixture(scope="module", params=["contiguous", "pages"])
def env(request, tiny_config):
    config = dataclasses.replace(
        tiny_config,
        model=dataclasses.replace(
            tiny_config.model,
            audio=dataclasses.replace(ENCODER, output_dim=tiny_config.model.d_model),
        ),
        rollout=dataclasses.replace(
            tiny_config.rollout, cache=request.param, page=16, feed_tokens=64,
            max_episode_tokens=512, max_turn_tokens=8,
        ),
    )
    return Environment.from_config(config)


@pytest.fixture(scope="module")
def params(env, random_params):
    return random_params(env.config.model, env.vocab_size, 0)


@pytest.fixture(scope="module")
def telephone(env, params):
    with Telephone(env, params) as telephone:
        telephone.compile(params)
        yield telephone


@pytest.fixture(scope="module")
def expected(env, params):
    """The turns of a run whose clips are heard whole."""
    call = Call(env, clips=CLIPS)
    c = env.config.eval
    cut = Truncation(c.top_k, c.top_p, c.min_p)
    env.engine().run(params, [call], c.temperature, truncation=cut)
    return call.turns


@pytest.mark.parametrize("work", [0.0, 0.15], ids=["in time", "slower than who speaks"])
def test_what_is_said_in_parts_is_answered_as_what_is_heard_whole(env, telephone, expected, work):
    clock, waits = Clock(work), []
    telephone.clock, telephone.sleep, telephone.wait = clock, clock.sleep, None

    def say(clip):
        waits.append(telephone.wait)
        begun = clock.now
        telephone.say(clip)
        assert clock.now - begun >= len(clip) / SECOND - 1e-6  # no faster than it is said

    call = Call(env, say, CLIPS)
    telephone.play(call)
    waits.append(telephone.wait)
    assert [turn.ids for turn in call.turns] == [turn.ids for turn in expected]
    for one, other in zip(call.turns, expected, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)
    first, *waits = waits
    assert first is None and [wait.sound for wait in waits] == [tokens_of(len(c)) for c in CLIPS]
    slots, turn = ENCODER.n_window // 2, 16  # what ends it, and the answer's beginning
    assert waits[0].read <= slots + turn and waits[0].sound > 2 * slots
    assert waits[0].ahead >= slots and waits[1].ahead == 0  # that is less than a piece
    assert [wait.read >= wait.sound - wait.ahead for wait in waits] == [True] * 3
    assert [wait.seconds > 0.01 for wait in waits] == [work > 0] * 3


def test_a_clip_beyond_the_context_is_read_ahead_as_far_as_there_is_room(env, telephone):
    clock = Clock()
    telephone.clock, telephone.sleep = clock, clock.sleep
    call = Call(env, telephone.say, [sound(30.0, 4)])
    with pytest.raises(ValueError, match="leave no room"):  # an episode ends before
        telephone.play(call)
    assert len(call.turns) == 1 and clock.now >= 130.0 - 1e-6


def test_each_call_begins_anew_and_what_cannot_be_said_is_refused(env, telephone):
    clock = Clock()
    telephone.clock, telephone.sleep = clock, clock.sleep
    for said in ([np.zeros(0, np.float32)], []):
        call = Call(env, telephone.say, said)
        with pytest.raises(InputError, match="no samples") if said else contextlib.nullcontext():
            telephone.play(call)
    assert telephone.wait is None and telephone._session.contexts == 1

    class Opening(Call):
        def start(self):
            telephone.say(CLIPS[0])

    with pytest.raises(InputError, match="no turn was written"):
        telephone.play(Opening(env))
