"""What was heard: the encoder's best path as NumPy finds it, and errors counted by hand."""

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_encoder import small_encoder

from tarl_jax.config import ModelConfig
from tarl_jax.models import audio_encoder
from tarl_jax.speech.sound import Sound
from tarl_jax.training import heard
from tarl_jax.training.evaluation import modalities
from tarl_jax.types import Segment

ENCODER = small_encoder(16)
MODEL = ModelConfig(
    d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24, audio=ENCODER
)
WORDS, PLACEHOLDER = ["cancel ", "order ", "yes ", "no "], 4


class Letters:
    """A tokenizer of four words."""

    def encode_markup(self, text):
        return [PLACEHOLDER]

    def decode(self, ids):
        return "".join(WORDS[i] for i in ids)


def env(episodes=1):
    config = SimpleNamespace(model=MODEL, warm_start=SimpleNamespace(
        speech_stage=SimpleNamespace(episodes=episodes)))
    return SimpleNamespace(config=config, tokenizer=Letters())


def clip(seed, samples=5_100):
    rng = np.random.default_rng(seed)
    return (rng.integers(-9000, 9000, samples) / 32768).astype(np.float32)


def episode(*turns):
    segments = [Segment.forced("system", [1], -1, "be kind")]
    for text, sound in turns:
        segment = Segment.forced("user", [3], -1, text)
        if sound is not None:
            segment.sound, segment.info["spoken"] = Sound(0, 1, sound), {"voice": "en"}
        segments.append(segment)
    return SimpleNamespace(segments=segments)


def encoded(params, sound):
    """The outputs of a clip of one piece."""
    frames = audio_encoder.frame_count(len(sound))
    found, counts = jax.jit(audio_encoder.audio_embeddings, static_argnums=1)(
        params["audio"], ENCODER, audio_encoder.log_mel(sound, 8)[None], np.array([frames])
    )
    return np.asarray(found[0, : int(counts[0])])


def by_numpy(params, sound):
    """Best path of CTC, in float64 behind the encoder."""
    x = encoded(params, sound).astype(np.float64)
    table = np.asarray(params["embed"], np.float64)
    path = ((x[:, None] - table) ** 2).sum(-1).argmin(-1)  # the nearest entry
    return "".join(WORDS[k] for k, _ in itertools.groupby(path) if k != PLACEHOLDER)


def test_what_the_encoder_makes_of_a_clip_stands_beside_it(random_params, monkeypatch):
    params = random_params(MODEL, 5, 0)
    first, second = clip(0), clip(1, 9_000)
    table = np.array([encoded(params, first)[i] for i in (0, 2, 4, 5, 6)])
    params = {**params, "embed": table}
    played = [episode(("Cancel it.", first), ("In writing.", None)),
              episode(("Cancel it.", first), ("Yes.", second))]
    done = []
    find = heard.transcribe
    monkeypatch.setattr(heard, "transcribe", lambda *a: done.append(a[2]) or find(*a))
    found = heard.write_down(params, env(), played)
    texts = [[s.info.get("heard") for s in e.segments] for e in played]
    expected = [by_numpy(params, sound) for sound in (first, second)]
    assert len(set(expected)) == 2 and texts == [
        [None, expected[0], None], [None, expected[0], expected[1]]]
    assert len(done) == 2  # a group hears its opening once
    errors = [heard.edits(said, text.split()) for said, text in (
        (["cancel", "it"], expected[0]), (["yes"], expected[1]))]
    assert found["word_error_rate"] == pytest.approx((2 * errors[0] + errors[1]) / 5)
    monkeypatch.setattr(heard, "MOST", 1)
    fewer = [episode(("Yes.", second), ("Cancel it.", first), ("Yes.", second))]
    heard.write_down(params, env(), fewer)
    assert ["heard" in s.info for s in fewer[0].segments] == [False, True, False, True]


def test_an_encoder_that_was_never_taught_to_spell_is_not_asked():
    played = [episode(("Cancel it.", clip(0)))]
    assert heard.write_down(None, env(episodes=0), played) == {}
    assert heard.write_down(None, env(), [episode(("In writing.", None))]) == {}
    assert "heard" not in played[0].segments[1].info


@pytest.mark.parametrize("one, other, expected", [
    ("", "", 0), ("a b", "", 2), ("", "a", 1), ("a b c", "a b c", 0), ("a b c", "a c", 1),
    ("a b c", "a x c", 1), ("a b c d", "b c d a", 2), ("kitten", "sitting", 1),
])
def test_edits_by_hand(one, other, expected):
    assert heard.edits(one.split(), other.split()) == expected
    assert heard.edits(list("kitten"), list("sitting")) == 3


def test_words_are_without_case_and_punctuation():
    text = "Hi, I am Ada (ada.li@mail.com): order #W12-3, it's $1,020.50!"
    assert heard.words_of(text) == [
        "hi", "i", "am", "ada", "ada.li@mail.com", "order", "w12-3", "it's", "1", "020.50"]


def test_the_gap_is_what_written_tasks_have_more():
    def one(spoken, success):
        return SimpleNamespace(sounds=lambda: iter([1] if spoken else []), success=success)

    mixed = [one(True, True), one(True, False), one(False, True), one(False, True)]
    assert modalities(mixed) == {
        "train/spoken": 0.5, "train/pass_rate_spoken": 0.5, "train/pass_rate_written": 1.0,
        "train/modality_gap": 0.5}
    assert "train/modality_gap" not in modalities(mixed[:2])
    assert modalities(mixed[2:]) == {}
