"""Errors on purpose come as often as asked, and are the same every time."""

import numpy as np
import pytest

from tarl_jax.config import NoiseConfig
from tarl_jax.judge.noise import disturbed
from tarl_jax.judge.rules import Judgement

TRUE = Judgement([-1, 0, 1] * 10, ["note"] * 30)
SEEDS = range(400)


def shown(**noise):
    """[episodes, turns] of scores."""
    return np.array([disturbed(TRUE, seed, NoiseConfig(**noise)).scores for seed in SEEDS])


def test_without_noise_nothing_changes():
    assert disturbed(TRUE, 7, NoiseConfig()) == TRUE


def test_flips_come_as_often_as_asked_and_go_both_ways():
    scores, true = shown(flip=0.2), np.array(TRUE.scores)
    for score in (-1, 0, 1):
        got = scores[:, true == score]  # 4,000 turns: 0.2 has a standard error of 0.006
        for other in {-1, 0, 1} - {score}:
            assert np.mean(got == other) == pytest.approx(0.1, abs=0.025)


def test_optimism_only_raises():
    scores, true = shown(optimism=0.3), np.array(TRUE.scores)
    assert (scores[:, true == 1] == 1).all()
    for score in (-1, 0):
        got = scores[:, true == score]
        assert np.mean(got == 1) == pytest.approx(0.3, abs=0.03)
        assert set(np.unique(got)) == {score, 1}


def test_abstentions_take_whole_episodes():
    lost = [disturbed(TRUE, seed, NoiseConfig(abstain=0.25)) is None for seed in range(4000)]
    assert np.mean(lost) == pytest.approx(0.25, abs=0.03)


def test_errors_are_of_seed_and_turn_and_grow_with_the_probability():
    few, many, true = shown(flip=0.1), shown(flip=0.3), np.array(TRUE.scores)
    np.testing.assert_array_equal(few, shown(flip=0.1))
    wrong = few != true
    np.testing.assert_array_equal(few[wrong], many[wrong])
    assert not (wrong == wrong[0]).all() and not (wrong[:, 0] == wrong.T).all()
    short = disturbed(Judgement(TRUE.scores[:4], TRUE.notes[:4]), 3, NoiseConfig(flip=0.3))
    assert short.scores == many[3][:4].tolist()


def test_a_changed_score_is_told():
    found = disturbed(TRUE, 1, NoiseConfig(optimism=1.0))
    assert found.notes[:3] == ["note (noise: was -1)", "note (noise: was +0)", "note"]


def test_a_minor_turn_stays_minor_unless_its_score_is_another():
    minor = Judgement([0] * 40, ["note"] * 40, [True, False] * 20)
    for seed in range(5):
        found = disturbed(minor, seed, NoiseConfig(flip=0.5))
        kept = np.array(found.scores) == 0
        assert 5 < kept.sum() < 35
        assert found.minors == (kept & np.array(minor.minors)).tolist()
