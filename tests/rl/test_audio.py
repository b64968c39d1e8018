"""Spoken episodes in an update: batches of text and speech, and what trains."""

import dataclasses

import jax
import numpy as np
import pytest
from small_encoder import small_encoder

from tarl_jax.config import LoraConfig, ModelConfig, RLConfig, RolloutConfig
from tarl_jax.config.credit import ValueConfig
from tarl_jax.models import audio_encoder, decoder
from tarl_jax.models.audio_inputs import audio_inputs_of, hidden_states
from tarl_jax.parallel.mesh import make_mesh, replicated
from tarl_jax.rl.batching import (
    Layout,
    Sample,
    fill,
    packed_layouts,
    padded_layouts,
    pieces_of_batch,
    rooms_for_pieces,
    samples_of,
)
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.workers import Answer
from tarl_jax.speech.sound import Sound
from tarl_jax.types import Segment, Task, Trajectory

VOCAB, STOP, AUDIO = 20, 3, 19
ENCODER = small_encoder(16)
MODEL = ModelConfig(
    d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24, audio=ENCODER
)
CONFIG = RLConfig(learning_rate=1e-3, warmup_steps=1, kl_coef=0.0)
TEMPERATURE = 0.8
TASK = Task("t", "u", "", (), (), "train", "shop", None, 1)


class Played:
    """Two turns behind a prompt and an answer of random tokens, both with a clip if it speaks."""

    outside, shared = False, 0

    def __init__(self, seed: int, speaks: bool):
        self.seed, self.speaks = seed, speaks
        self.rng = np.random.default_rng(seed)
        self.segments = []

    def forced(self) -> Answer:
        ids = self.rng.integers(0, AUDIO, int(self.rng.integers(4, 30))).tolist()
        segment = Segment.forced("user", ids, len(self.segments), "")
        if self.speaks:
            clip = self.rng.integers(-9000, 9000, int(self.rng.integers(700, 9000))) / 32768
            count = audio_encoder.token_count(audio_encoder.frame_count(len(clip)))
            sound = Sound(2, count, clip.astype(np.float32))
            ids = [*ids[:2], *[AUDIO] * count, *ids[2:]]
            segment = Segment.forced("user", ids, len(self.segments), "")
            segment.sound = sound
        self.segments.append(segment)
        return Answer(ids, sounds=(segment.sound,) if segment.sound else ())

    def start(self):
        return self.forced()

    def turn(self, turn):
        n = len(turn.ids)
        self.segments.append(Segment("agent", turn.ids, [True] * n, turn.log_probs, 0, ""))
        return self.forced() if len(self.segments) == 2 else None

    def trajectory(self) -> Trajectory:
        return Trajectory(TASK, self.seed, self.segments, "user_stop", False)


@pytest.fixture(scope="module")
def params(random_params):
    return jax.device_put(random_params(MODEL, VOCAB, 0), replicated(make_mesh()))


@pytest.fixture(scope="module")
def trajectories(params):
    """Of text and speech, as the engine samples them."""
    config = RolloutConfig(slots=8, max_turn_tokens=12, max_episode_tokens=256, share_prefix=0)
    episodes = [Played(seed, speaks=seed % 3 > 0) for seed in range(8)]
    Engine(MODEL, config, STOP, make_mesh()).run(params, episodes, TEMPERATURE)
    return [episode.trajectory() for episode in episodes]


def batches_of(trajectories, packed=False, tokens=512):
    lengths = [t.num_tokens for t in trajectories]
    layouts = (
        packed_layouts(lengths, tokens, 256, 2) if packed else padded_layouts(lengths, tokens, 2)
    )
    inputs = [audio_inputs_of(t.sounds(), t.num_tokens, ENCODER) for t in trajectories]
    advantages = np.random.default_rng(0).standard_normal(len(lengths))
    samples = [
        sample for t, advantage, of in zip(trajectories, advantages, inputs, strict=True)
        for sample in samples_of(t, advantage, audio_inputs=of)
    ]
    return fill(layouts, samples, packed)


def updated(model, params, batches, config=CONFIG):
    updater = Updater(model, VOCAB, config, TEMPERATURE, make_mesh())
    before = updater.init(params)
    start = jax.device_get(before.policy)
    state, values = updater.update(before, batches, None)
    return start, jax.device_get(state), values


def changed(before, after) -> set[str]:
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return {jax.tree_util.keystr(path) for (path, a), b in pairs if not np.array_equal(a, b)}


@pytest.fixture(scope="module")
def whole(params, trajectories):
    return updated(MODEL, params, batches_of(trajectories))


@pytest.mark.parametrize("packed", [False, True])
def test_log_probs_equal_the_samplers(params, trajectories, packed):
    batches = batches_of(trajectories, packed)
    assert any(b.audio_inputs is not None for b in batches)
    _, _, values = updated(MODEL, params, batches)
    assert values["tokens"] == sum(t.arrays()[1].sum() for t in trajectories) > 50
    assert values["gap_max"] < 1e-4


def test_inputs_equal_those_of_whole_clips(params, trajectories):
    """Against clips encoded one by one and put in place by `audio.merge`."""
    batch = batches_of(trajectories, tokens=4096)[0]
    plain = jax.device_get(params)
    ours = jax.jit(hidden_states, static_argnums=1)(
        plain, MODEL, batch.tokens, None, batch.audio_inputs
    )
    embeddings = jax.jit(audio_encoder.audio_embeddings, static_argnums=1)
    states = jax.jit(decoder.hidden_states, static_argnums=1)
    order = sorted(range(8), key=lambda i: (-trajectories[i].num_tokens, i))
    for row, i in list(enumerate(order))[::3]:
        joined = [np.zeros((0, 16), np.float32)]
        for sound in trajectories[i].sounds():
            mel = audio_encoder.log_mel(sound.clip, 8)[None]
            inputs, _ = embeddings(plain["audio"], ENCODER, mel, np.array([mel.shape[1]]))
            joined.append(inputs[0, : sound.tokens])
        encoded = np.concatenate(joined)
        sound = encoded if len(encoded) else np.zeros((1, 16), np.float32)
        tokens = batch.tokens[row : row + 1]
        # The policy may have written the placeholder's id: then it stands for itself.
        placed = np.where(batch.audio_inputs.places[row : row + 1] > 0, AUDIO + 1, tokens)
        inputs = audio_encoder.merge(
            plain["embed"][tokens], placed, AUDIO + 1, sound[None], np.array([len(encoded)])
        )
        expected = states(plain, MODEL, tokens, embeddings=inputs)
        np.testing.assert_allclose(ours[row], expected[0], atol=2e-4)


def test_splitting_and_packing_change_nothing(params, trajectories, whole):
    _, one, values = whole
    for packed, tokens in ((True, 512), (False, 4096)):
        _, other, same = updated(MODEL, params, batches_of(trajectories, packed, tokens))
        for a, b in zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)
        assert same["loss"] == pytest.approx(values["loss"], rel=1e-3, abs=1e-5)


def test_the_encoder_trains_with_the_rest(whole):
    before, state, _ = whole
    assert {f"['audio']['{name}']" for name in ("conv1", "project")} <= changed(
        before, state.policy
    )


def test_a_frozen_encoder_stays(params, trajectories):
    model = dataclasses.replace(MODEL, audio=dataclasses.replace(ENCODER, frozen=True))
    config = dataclasses.replace(CONFIG, weight_decay=0.1)
    before, state, values = updated(model, params, batches_of(trajectories), config)
    assert set(state.frozen) == {"audio"} and "audio" not in state.params
    names = changed(before, state.policy)
    assert "['embed']" in names and not any("audio" in name for name in names)
    assert values["gap_max"] < 1e-4


@pytest.mark.parametrize("model, config", [
    (dataclasses.replace(MODEL, lora=LoraConfig(rank=2)), CONFIG),
    (dataclasses.replace(MODEL, audio=dataclasses.replace(ENCODER, frozen=True)),
     dataclasses.replace(CONFIG, advantage="gae", normalise="batch",
                         value=ValueConfig(trunk="own"))),
])
def test_adapters_and_values_hear_too(params, trajectories, model, config):
    updater = Updater(model, VOCAB, config, TEMPERATURE, make_mesh())
    state = updater.init(params)
    batches = batches_of(trajectories)
    if config.advantage == "gae":
        batches = [b.replace(values=b.advantages, returns=b.advantages) for b in batches]
    state, values = updater.update(state, batches, None)
    assert values["gap_max"] < 1e-4 and "audio" in state.frozen


def test_text_alone_needs_no_audio_encoder(params, trajectories):
    text = [t for t in trajectories if not list(t.sounds())]
    assert text and all(b.audio_inputs is None for b in batches_of(text))
    _, _, values = updated(MODEL, params, batches_of(text))
    assert values["gap_max"] < 1e-4


def test_nothing_compiles_after_compile(params, trajectories):
    updater = Updater(MODEL, VOCAB, CONFIG, TEMPERATURE, make_mesh())
    state = updater.init(params)
    batches = batches_of(trajectories)
    updater.compile(state, sorted({b.tokens.shape for b in batches}))
    compiled = updater.compilations
    updater.update(state, batches, None)
    assert updater.compilations == compiled > 0


def test_where_nobody_speaks_no_program_for_sound_is_compiled(params, trajectories):
    updater = Updater(MODEL, VOCAB, CONFIG, TEMPERATURE, make_mesh())
    state = updater.init(params)
    batches = batches_of([t for t in trajectories if not list(t.sounds())])
    shapes = sorted({b.tokens.shape for b in batches})
    found = [updater.wanted(state, shapes, packed=False, sound=some) for some in (False, True)]
    silent, whole = ([one for one in each if "sound" in one.at] for each in found)
    assert not silent and {one.name for one in whole} >= {"gradient"}
    updater.compile(state, shapes, sound=False)
    compiled = updater.compilations
    updater.update(state, batches, None)
    assert updater.compilations == compiled > 0


def test_pieces_have_room_in_few_sizes():
    assert rooms_for_pieces((2, 200), 50) == [4, 8] and rooms_for_pieces((2, 101), 50) == [4, 6]
    assert rooms_for_pieces((3, 40), 50) == [3]  # as many of each row, for devices to share
    found = [pieces_of_batch((2, 200), 50, count) for count in (1, 4, 5, 8, 9, 17)]
    assert found == [4, 4, 8, 8, 16, 32]


def test_what_several_sequences_hear_is_in_a_batch_once():
    rng = np.random.default_rng(0)
    one, two = (rng.normal(0, 0.1, samples).astype(np.float32) for samples in (4000, 1600))
    dialogues = [
        audio_inputs_of([Sound(1, 6, one), Sound(9, 2, two)], 12, ENCODER),
        audio_inputs_of([Sound(2, 2, two), Sound(5, 6, one)], 13, ENCODER),
        None,
        audio_inputs_of([Sound(0, 6, one)], 8, ENCODER),
    ]
    samples = [
        Sample(*np.zeros((4, length)), audio_inputs=audio_inputs)
        for length, audio_inputs in zip((12, 13, 5, 8), dialogues, strict=True)
    ]
    (batch,) = fill([Layout((2, 32), [[0, 1], [2, 3]])], samples, packed=True)
    pieces, places = batch.audio_inputs.pieces, batch.audio_inputs.places
    assert (pieces.frames > 0).sum() == 3  # two of the one clip, one of the other
    for row, order in enumerate(([0, 1], [2, 3])):
        begin = 0
        for i in order:
            length, audio_inputs = len(samples[i].tokens), samples[i].audio_inputs
            there = places[row, begin : begin + length]
            begin += length
            if audio_inputs is None:
                assert not there.any()
                continue
            at = np.flatnonzero(audio_inputs.places)
            np.testing.assert_array_equal(np.flatnonzero(there), at)
            for p, q in zip(audio_inputs.places[at] - 1, there[at] - 1, strict=True):
                assert p % 5 == q % 5
                np.testing.assert_array_equal(audio_inputs.pieces.mel[p // 5], pieces.mel[q // 5])
                assert audio_inputs.pieces.frames[p // 5] == pieces.frames[q // 5]


def test_a_part_hears_what_came_before_its_end_and_no_more():
    """Tokens 5 and 6 are forgotten before the second clip is heard."""
    clips = [np.zeros(samples, np.float32) for samples in (4000, 1600)]  # 6 tokens, 2 tokens
    said = Segment("agent", [1, 2, STOP], [True] * 3, [-1.0] * 3, 0, "", forgotten=2)
    segments = [
        Segment.forced("user", [7] + [AUDIO] * 6 + [8], -1, ""),
        said,
        Segment.forced("user", [9, AUDIO, AUDIO], 0, ""),
        Segment("agent", [4, STOP], [True] * 2, [-1.0] * 2, 1, ""),
    ]
    segments[0].sound, segments[2].sound = Sound(1, 6, clips[0]), Sound(1, 2, clips[1])
    trajectory = Trajectory(TASK, 0, segments, "user_stop", False)
    audio_inputs = audio_inputs_of(trajectory.sounds(), trajectory.num_tokens, ENCODER)
    assert audio_inputs.pieces.frames.tolist() == [20, 5, 10]  # five slots a piece
    first, second = samples_of(trajectory, 1.0, audio_inputs=audio_inputs)
    assert first.audio_inputs.places.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0]
    assert first.audio_inputs.pieces.frames.tolist() == [20, 5]
    assert second.tokens.tolist() == [7] + [AUDIO] * 6 + [8, STOP, 9, AUDIO, AUDIO, 4, STOP]
    assert second.audio_inputs.places.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 11, 12, 0, 0]
    assert second.audio_inputs.pieces.count == 3
    assert samples_of(trajectory, 1.0)[0].audio_inputs is None
