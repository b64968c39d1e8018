"""What a researcher would want to be told without looking, each with what to do about it.

Two kinds of signs: a number of the present step beyond a bound, and a trend over the steps so far.
The bounds are rules of thumb, not measurements.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

RECENT = 5  # steps that make up the present, in a trend
_SPOKEN = re.compile(r"eval/spoken/.+/pass\^1")

# (key, is it bad, why it matters, and the remedy)
_BOUNDS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("rl/log_prob_gap", lambda x: abs(x) > 0.05,
     "engine and trainer disagree on log-probs: compute both in one dtype, or set rl.tis_cap = 2"),
    ("rl/kl", lambda x: x > 0.5,
     "the policy is far from the one that played the step: lower rl.learning_rate, rl.minibatches"
     " or rl.epochs"),
    ("rl/entropy", lambda x: x < 0.02,
     "the policy has all but stopped exploring: raise rl.clip_high or rollout.temperature, or take"
     " harder tasks"),
    ("rl/clip_fraction", lambda x: x > 0.3,
     "most of an update is clipped: lower rl.learning_rate, rl.minibatches or rl.epochs"),
    ("rl/zero_variance_groups", lambda x: 0.9 < x < 1,
     "hardly any group has episodes that differ: raise rollout.group_size, or take tasks that the"
     " policy sometimes passes"),
    ("rl/zero_variance_groups", lambda x: x >= 1,
     "no group has episodes that differ, so nothing is learned: take tasks that the policy"
     " sometimes passes, raise rollout.group_size, or set reward.placement = trajectory"),
    ("rollout/truncated", lambda x: x > 0.05,
     "episodes are cut off before their end, and fail whatever they did: raise"
     " rollout.max_episode_tokens or rollout.max_turns, or lower the thoughts' length"
     " (rollout.max_turn_tokens)"),
    ("user/at_fault", lambda x: x > 0.3,
     "the simulated user is at fault, and with user.leave_out_faults these episodes teach nothing:"
     " read some (tarl_jax.view RUN --terminal --list), then take a stronger user.llm.model or"
     " another user.strategy"),
    ("judge/abstained", lambda x: x > 0.2,
     "the judge abstains and these episodes earn the verdict alone: see why it cannot judge them,"
     " or set reward.placement = terminal"),
)  # fmt: skip


def warnings(
    values: Mapping[str, float],
    steps: Sequence[Mapping[str, float]],
    evaluations: Sequence[Mapping[str, float]] = (),
) -> list[str]:
    """What is wrong, one line each.

    Args:
      values: the numbers on display.
      steps: the training numbers of every step so far, in order, the present one included.
      evaluations: the numbers of every evaluation so far, in order.
    """
    broken = sorted(key for key, x in values.items() if not math.isfinite(x))
    found = [f"not finite: {', '.join(broken)}"] if broken else []
    for key, bad, why in _BOUNDS:
        if key in values and math.isfinite(values[key]) and bad(values[key]):
            found.append(f"{key} {values[key]:.3g}: {why}")
    malformed, turns = values.get("rollout/malformed", 0.0), values.get("rollout/turns", 0.0)
    if turns > 0 and malformed > 0.1 * turns:
        found.append(
            f"rollout/malformed {malformed:.3g} of {turns:.3g} turns: raise"
            " rollout.max_turn_tokens if they are cut off, else warm-start longer or lower"
            " rl.learning_rate"
        )
    trends = [line for trend in (_kl, _collapse, _value_model) for line in trend(steps)]
    return found + trends + _forgets_speech(evaluations) + _gap(steps)


def _kl(steps: Sequence[Mapping[str, float]]) -> list[str]:
    """A step's updates move the policy much further than those of earlier steps did."""
    kl = _series(steps, "rl/kl")
    if len(kl) < 3 * RECENT:
        return []
    now, before = kl[-RECENT:].mean(), float(np.median(kl[-3 * RECENT : -RECENT]))
    if now < 0.01 or now < 4 * before:
        return []
    return [
        f"rl/kl rises fast ({before:.3g} to {now:.3g}): lower rl.learning_rate, set rl.kl_coef, or"
        " take reward.placement = trajectory in place of turn_end"
    ]


def _collapse(steps: Sequence[Mapping[str, float]]) -> list[str]:
    """Episodes shrink, or the agent stops asking: a policy that gives up shows it here first."""
    found = []
    for key, what in (
        ("rollout/waits", "the agent stops asking the user"),
        ("rollout/episode_tokens", "episodes get short"),
    ):
        series = _series(steps, key)
        if len(series) < 4 * RECENT:
            continue
        first, now = series[:RECENT].mean(), series[-RECENT:].mean()
        if now < 0.5 * first:
            found.append(
                f"{key} {now:.3g}, at first {first:.3g}: {what}; read the episodes"
                " (tarl_jax.view), set reward.denominator = expert, and lower reward.major_scale"
                " if giving up pays"
            )
    return found


def _value_model(steps: Sequence[Mapping[str, float]]) -> list[str]:
    explained = _series(steps, "rl/explained_variance")
    if len(explained) < 3 * RECENT or explained[-RECENT:].mean() >= 0:
        return []
    return [
        f"rl/explained_variance {explained[-RECENT:].mean():.3g}: the value model says less than a"
        " constant would: raise rl.value.warmup_steps, or lower rl.value.learning_rate"
    ]


def _forgets_speech(evaluations: Sequence[Mapping[str, float]]) -> list[str]:
    """The policy unlearns to understand speech while it gets better in writing.

    Spoken tasks have fallen by more than both intervals explain, and written ones have not.
    """
    if len(evaluations) < 2:
        return []
    first, now = evaluations[0], evaluations[-1]
    found = []
    for key in sorted(k for k in now if _SPOKEN.fullmatch(k) and k in first):
        written, spoken = (now[k] - first[k] for k in ("eval/pass^1", key))
        if written >= 0 > spoken + math.hypot(*(_half_width(e, key) for e in (first, now))):
            found.append(
                f"{key} fell from {first[key]:.3g} to {now[key]:.3g} while eval/pass^1 rose from"
                f" {first['eval/pass^1']:.3g} to {now['eval/pass^1']:.3g}: the policy unlearns to"
                " understand speech; raise speech.share, or freeze the encoder (model.audio.frozen)"
            )
    return found


def _gap(steps: Sequence[Mapping[str, float]]) -> list[str]:
    """Spoken training episodes fall behind written ones, beyond what steps differ by."""
    gaps = _series(steps, "train/modality_gap")
    size = 2 * RECENT
    if len(gaps) < 2 * size:
        return []
    first, now = gaps[:size], gaps[-size:]
    error = math.sqrt((first.var(ddof=1) + now.var(ddof=1)) / size)
    if now.mean() - first.mean() < max(0.1, 3 * error):
        return []
    return [
        f"train/modality_gap {now.mean():.3g}, at first {first.mean():.3g}: spoken tasks fall"
        " behind written ones; raise speech.share, lower the noise (speech.clean), or warm-start"
        " longer with speech"
    ]


def _half_width(values: Mapping[str, float], key: str) -> float:
    """Of the interval of an evaluation's number."""
    return (values.get(f"{key}_high", values[key]) - values.get(f"{key}_low", values[key])) / 2


def _series(steps: Sequence[Mapping[str, float]], key: str) -> np.ndarray:
    """The finite values of a key, in order of step."""
    return np.array([s[key] for s in steps if key in s and math.isfinite(s[key])], float)
