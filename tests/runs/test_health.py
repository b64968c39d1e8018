"""Each sign of trouble is said once it shows, with a remedy, and not before."""

import numpy as np
import pytest

from tarl_jax.runs.health import warnings

FINE = {
    "rl/log_prob_gap": 1e-6, "rl/kl": 0.003, "rl/entropy": 0.3, "rl/clip_fraction": 0.02,
    "rl/zero_variance_groups": 0.4, "judge/abstained": 0.0, "rollout/malformed": 0.1,
    "rollout/turns": 8.0, "rollout/waits": 2.0, "rollout/episode_tokens": 300.0,
    "rl/explained_variance": 0.3,
}  # fmt: skip


def test_a_healthy_run_says_nothing():
    assert warnings(FINE, [FINE] * 40) == []
    assert warnings({}, []) == []


@pytest.mark.parametrize("key, value, remedy", [
    ("rl/log_prob_gap", -0.2, "rl.tis_cap"),
    ("rl/kl", 0.7, "lower rl.learning_rate"),
    ("rl/entropy", 0.001, "raise rl.clip_high"),
    ("rl/clip_fraction", 0.5, "lower rl.learning_rate"),
    ("rl/zero_variance_groups", 0.95, "hardly any group"),
    ("rl/zero_variance_groups", 1.0, "nothing is learned"),
    ("user/at_fault", 0.5, "a stronger user.llm.model"),
    ("judge/abstained", 0.5, "reward.placement = terminal"),
    ("rollout/malformed", 1.0, "rollout.max_turn_tokens"),
    ("reward/mean", float("nan"), "not finite: reward/mean"),
])
def test_a_number_beyond_its_bound(key, value, remedy):
    (line,) = warnings({**FINE, key: value}, [FINE])
    assert key in line and remedy in line


@pytest.mark.parametrize("key, start, end, remedy", [
    ("rl/kl", 0.003, 0.05, "rl.kl_coef"),
    ("rollout/waits", 2.0, 0.5, "reward.denominator = expert"),
    ("rollout/episode_tokens", 300.0, 100.0, "reward.denominator = expert"),
    ("rl/explained_variance", 0.3, -0.2, "rl.value.warmup_steps"),
])
def test_a_trend(key, start, end, remedy):
    steady = [{**FINE, key: start}] * 20
    assert warnings(FINE, steady) == []
    (line,) = warnings(FINE, [*steady, *[{**FINE, key: end}] * 5])
    assert key in line and remedy in line
    # One step alone is no trend, and neither is the beginning of a run.
    assert warnings(FINE, [*steady, {**FINE, key: (3 * start + end) / 4}]) == []
    assert warnings(FINE, [{**FINE, key: end}] * 5) == []


def test_spoken_tasks_that_fall_behind():
    rng = np.random.default_rng(0)

    def steps(gap):
        return [{**FINE, "train/modality_gap": x} for x in gap + 0.05 * rng.standard_normal(20)]

    even = steps(0.05)
    assert warnings(FINE, [*even, *steps(0.07)]) == []
    (line,) = warnings(FINE, [*even, *steps(0.3)])
    assert "train/modality_gap 0.291" in line and "speech.share" in line
    assert warnings(FINE, steps(0.4)) == []  # it was so from the start
    assert warnings(FINE, [*even, *steps(0.3)[:1]]) == []


def test_staleness_is_no_fault():
    """Episodes that were played ahead are an older policy's, so the log-probs are others."""
    played_ahead = {k: v for k, v in FINE.items() if "gap" not in k} | {"rl/staleness": 0.4}
    assert warnings(played_ahead, [played_ahead] * 40) == []


def test_a_level_is_no_rise():
    assert warnings(FINE, [{**FINE, "rl/kl": 0.1}] * 40) == []


SPOKEN = "eval/spoken/clean/pass^1"


def evaluation(written, spoken, half=0.05):
    return {"eval/pass^1": written, SPOKEN: spoken, f"{SPOKEN}_low": spoken - half,
            f"{SPOKEN}_high": spoken + half}


@pytest.mark.parametrize("evaluations, said", [
    ([evaluation(0.4, 0.4), evaluation(0.5, 0.3)], True),
    ([evaluation(0.4, 0.4), evaluation(0.4, 0.3), evaluation(0.5, 0.45)], False),  # has recovered
    ([evaluation(0.4, 0.4), evaluation(0.5, 0.35)], False),  # inside the intervals
    ([evaluation(0.4, 0.4), evaluation(0.3, 0.2)], False),  # both fall: another trouble
    ([evaluation(0.4, 0.4)], False),
    ([{"eval/pass^1": 0.4}, {"eval/pass^1": 0.5}], False),  # nobody speaks
])
def test_a_policy_that_unlearns_speech_is_noticed(evaluations, said):
    found = warnings({}, [], evaluations)
    assert any("unlearns to understand speech" in s and "speech.share" in s for s in found) == said
