"""Every effect is measured on its output, not on what it was told to do."""

import random
import warnings

import numpy as np
import pytest

from tarl_jax.config.speech import Effect, SpeechConfig, chain_of, parse_chain
from tarl_jax.speech import acoustics
from tarl_jax.speech.synthesis import SAMPLE_RATE

RNG = np.random.default_rng(7)
NOISE = (0.1 * RNG.standard_normal(10 * SAMPLE_RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def voice():
    """A tone with syllables: 2 s, peak 0.5."""
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    wave = 0.5 * np.sin(2 * np.pi * 440 * time) * np.maximum(np.sin(2 * np.pi * 3 * time), 0)
    return wave.astype(np.float32)


def power(x):
    return np.mean(np.square(x, dtype=np.float64))


def db(ratio):
    return 10 * np.log10(ratio)


def spectrum(x, size=1600):
    """Mean power in bins of 10 Hz."""
    rows = x[: len(x) // size * size].reshape(-1, size) * np.hanning(size)
    return np.mean(np.abs(np.fft.rfft(rows.astype(np.float64))) ** 2, axis=0)


def separate(mixed, clean):
    """(factor, the rest): the mix as factor x clean + what has nothing to do with it."""
    factor = np.dot(mixed, clean) / np.dot(clean, clean)
    return factor, mixed - factor * clean


@pytest.mark.parametrize("snr", [-5.0, 0.0, 10.0, 30.0])
@pytest.mark.parametrize("kind", ["white", "pink", "babble"])
def test_noise_has_the_asked_ratio(kind, snr, voice):
    # White noise as the clip, so that no noise of this length resembles it by chance.
    clean = NOISE
    mixed = acoustics.apply(clean, (Effect(kind, snr),), 3, [voice, NOISE[:9999]])
    assert len(mixed) == len(clean)
    factor, noise = separate(mixed.astype(np.float64), clean.astype(np.float64))
    assert db(power(factor * clean) / power(noise)) == pytest.approx(snr, abs=0.1)


def test_noise_that_would_clip_is_made_quieter_with_the_clip(voice):
    loud = voice / np.abs(voice).max()
    mixed = acoustics.apply(loud, (Effect("white", 0.0),), 0)
    assert np.abs(mixed).max() <= 1.0
    assert np.sum(np.abs(mixed) > 0.999) <= 2  # one peak, no plateau
    factor, noise = separate(mixed.astype(np.float64), loud.astype(np.float64))
    assert factor < 0.8
    assert db(power(factor * loud) / power(noise)) == pytest.approx(0.0, abs=0.1)


def test_pink_noise_falls_three_db_an_octave():
    found = spectrum(acoustics.pink(60 * SAMPLE_RATE, np.random.default_rng(0)))
    frequencies = np.arange(len(found)) * 10.0
    inside = (frequencies > 100) & (frequencies < 7000)
    slope = np.polyfit(np.log2(frequencies[inside]), db(found[inside]), 1)[0]
    assert slope == pytest.approx(-3.01, abs=0.1)


def test_babble_gives_every_voice_the_same_power():
    loud, quiet = NOISE[:8000], 0.01 * NOISE[8000:17000]
    mixed = acoustics.babble(80_000, [loud, quiet], np.random.default_rng(0))
    only = acoustics.babble(80_000, [loud], np.random.default_rng(0))
    assert power(mixed - only) == pytest.approx(power(only), rel=0.05)
    with pytest.raises(ValueError, match="babble needs clips"):
        acoustics.babble(100, [], np.random.default_rng(0))


@pytest.mark.parametrize("rt60", [0.2, 0.5, 1.2])
def test_a_room_rings_as_long_as_asked(rt60):
    click = np.zeros(100, np.float32)
    click[0] = 1.0
    response = acoustics.reverberate(click, rt60, np.random.default_rng(1))
    # Schroeder's backward integral, between -10 and -30 dB, stretched to 60.
    decay = db(np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1] / np.sum(
        np.square(response, dtype=np.float64)) + 1e-30)
    begin, end = np.argmax(decay < -10), np.argmax(decay < -30)
    measured = 3 * (end - begin) / SAMPLE_RATE
    assert measured == pytest.approx(rt60, rel=0.15)
    assert response[0] > 5 * np.abs(response[1:]).max()  # the click itself comes first


def test_a_room_keeps_the_loudness_and_rings_on():
    wet = acoustics.reverberate(NOISE, 0.4, np.random.default_rng(0))
    assert len(wet) == len(NOISE) + round(0.4 * SAMPLE_RATE)
    assert abs(db(power(wet[: len(NOISE)]) / power(NOISE))) < 0.5
    assert 0 < power(wet[len(NOISE) :]) < 0.5 * power(NOISE)


def test_a_telephone_passes_its_band_and_nothing_else():
    ratio = db(spectrum(acoustics.telephone(NOISE)) / spectrum(NOISE))
    frequencies = np.arange(len(ratio)) * 10.0
    assert np.abs(ratio[(frequencies >= 400) & (frequencies <= 3300)]).max() < 1.0
    assert ratio[frequencies <= 250].max() < -30
    assert ratio[frequencies >= 3450].max() < -30


def test_a_telephone_neither_shifts_nor_stretches(voice):
    received = acoustics.telephone(voice)
    assert len(received) == len(voice)
    factor, rest = separate(received.astype(np.float64), voice.astype(np.float64))
    assert factor == pytest.approx(1.0, abs=0.02)
    assert db(power(voice) / power(rest)) > 25  # what 8 bits cost


def test_mu_law_has_the_standards_values():
    # G.711, table 2a: decoder outputs on 14 bits, times 4.
    codes = {0x80: 8031, 0x8F: 4191, 0x90: 3999, 0x9F: 2079, 0xAF: 1023, 0xFE: 2, 0xFF: 0,
             0x00: -8031, 0x7E: -2, 0x7F: 0}
    assert acoustics.mu_law_decode(np.array(list(codes), np.uint8)).tolist() == [
        4 * value for value in codes.values()]


def test_mu_law_follows_the_logarithm():
    # F(x) = sign(x) ln(1 + 255|x|) / ln 256, of which G.711's segments are chords.
    x = np.arange(-32_600, 32_601, 7)
    code = ~acoustics.mu_law_encode(x.astype(np.int16)).astype(int) & 255
    ours = np.where(code & 128, -1, 1) * ((code & 127) + 0.5) / 128
    formula = np.sign(x) * np.log1p(255 * np.abs(x) / 32_636) / np.log(256)
    assert np.abs(ours - formula)[np.abs(x) > 8].max() < 0.016  # two of 128 steps


def test_mu_law_equals_pythons_own():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        audioop = pytest.importorskip("audioop", reason="Python 3.13 has no audioop")
    samples, codes = np.arange(-32_768, 32_768).astype("<i2"), np.arange(256).astype(np.uint8)
    encoded = np.frombuffer(audioop.lin2ulaw(samples.tobytes(), 2), np.uint8)
    np.testing.assert_array_equal(acoustics.mu_law_encode(samples), encoded)
    decoded = np.frombuffer(audioop.ulaw2lin(codes.tobytes(), 2), "<i2")
    np.testing.assert_array_equal(acoustics.mu_law_decode(codes), decoded)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_moves_length_and_pitch(factor):
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(SAMPLE_RATE) / SAMPLE_RATE))
    fast = acoustics.apply(tone.astype(np.float32), (Effect("speed", factor),), 0)
    assert len(fast) == pytest.approx(SAMPLE_RATE / factor, abs=2)
    assert np.argmax(spectrum(fast)) * 10 == pytest.approx(1000 * factor, abs=10)


def test_convolution_equals_numpys():
    x, h = RNG.standard_normal(100), RNG.standard_normal(30)
    np.testing.assert_allclose(acoustics.convolve(x, h), np.convolve(x, h), atol=1e-12)


def test_lost_packets_fade_and_the_others_stay():
    lost = acoustics.lose_packets(NOISE, 0.2, np.random.default_rng(4))
    assert len(lost) == len(NOISE)
    packets, before = lost.reshape(-1, 320), NOISE.reshape(-1, 320)
    same = (packets == before).all(1)
    assert 1 - same.mean() == pytest.approx(0.2, abs=0.06)  # 500 packets
    for i in np.flatnonzero(~same):
        np.testing.assert_array_equal(packets[i], packets[i - 1] / 2 if i else np.zeros(320))


def test_packets_by_hand():
    class Chance:
        def random(self, count):
            return np.array([0.0, 0.9, 0.0, 0.0, 0.9])[:count]

    clip = np.repeat(np.array([1, 2, 3, 4, 5], np.float32), 320)[:-10]
    found = acoustics.lose_packets(clip, 0.5, Chance())
    assert found[::320].tolist() == [0.0, 2.0, 1.0, 0.5, 5.0] and len(found) == len(clip)
    assert clip[0] == 1.0  # not in place


def test_ranges_are_drawn_from():
    config = SpeechConfig(acoustics=("reverb:0.2..0.6+white:5..30+telephone",))
    drawn = [acoustics.draw_effects(config, random.Random(seed)) for seed in range(300)]
    for effects in drawn:
        assert [e.name for e in effects] == ["reverb", "white", "telephone"]
        assert parse_chain(chain_of(effects)) == effects  # as it is written down
    for place, (low, high) in enumerate([(0.2, 0.6), (5, 30)]):
        values = [effects[place].value for effects in drawn]
        assert low <= min(values) < max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, rel=0.07)
    assert chain_of(()) == "clean" and parse_chain("clean") == ()


@pytest.mark.parametrize("chain", ["white:30..5", "white:5..", "white:..5", "white:5..99",
                                   "telephone:1..2", "loss:-1", "hesitant:0.9"])
def test_ranges_that_are_none_are_refused(chain):
    with pytest.raises(ValueError, match=chain.partition(":")[0]):
        parse_chain(chain)


@pytest.mark.parametrize("change", [-20.0, 6.0])
def test_level_is_in_decibels(change, voice):
    found = acoustics.apply(voice, (Effect("level", change),), 0)
    assert db(power(found) / power(voice)) == pytest.approx(change, abs=0.1)


CHAIN = parse_chain("speed:1.1+reverb:0.3+babble:10+pink:20+white:30+telephone")


def test_a_chain_is_a_function_of_its_seed(voice):
    one = acoustics.apply(voice, CHAIN, 5, [NOISE])
    np.testing.assert_array_equal(one, acoustics.apply(voice, CHAIN, 5, [NOISE]))
    assert not np.array_equal(one, acoustics.apply(voice, CHAIN, 6, [NOISE]))


def test_a_chain_ends_in_16_bits_and_no_chain_changes_nothing(voice):
    found = acoustics.apply(voice, CHAIN, 0, [NOISE])
    assert found.dtype == np.float32 and np.abs(found).max() < 1
    np.testing.assert_array_equal(found * 32768, np.rint(found * 32768))
    assert acoustics.apply(voice, (), 0) is voice
    with pytest.raises(ValueError, match="no effect 'echo'"):
        acoustics.apply(voice, (Effect("echo"),), 0)
