"""From judged episodes to what each of their tokens trains on; docs/credit.md has the formulas.

Trajectories come as the rollout leaves them: P tasks, the G episodes of a task side by side. What
is pure arithmetic stands in `rl/`; this module knows where in an episode its turns and tokens are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tarl_jax.config import InputError, RunConfig
from tarl_jax.rl.advantages import (
    gae,
    group_advantages,
    leave_one_out_advantages,
    standardised,
    tracked_advantages,
    truncated_weights,
)
from tarl_jax.rl.rewards import Reward, trajectory_reward, turn_rewards
from tarl_jax.rl.turn_advantages import decoupled
from tarl_jax.speech.sound import AudioInputs
from tarl_jax.training.masking import masked
from tarl_jax.training.parts import AdvantageOf, RewardOf
from tarl_jax.training.turn_credit import (
    Table,
    indexed_score_advantages,
    return_advantages,
    score_advantages,
    stage_advantages,
    state_advantages,
    turn_of_token,
    worth_of,
)
from tarl_jax.types import Task, Trajectory

Baselines = dict[str, list[float]]  # by task: the weight of what was seen, and its mean


@dataclasses.dataclass
class Credit:
    """What the trajectories of a step train on.

    Attributes:
      advantages: per trajectory one number for all its sampled tokens, or one per token [S].
      used: per trajectory whether it has anything to teach.
      fields: more of a Batch, by the field's name: per trajectory one number per token.
      baselines: of "single_stream", after this step.
      metrics: named "rl/…".
      valid: per trajectory whether it may teach (`learned_from`; not masked).
      audio: what is spoken in each trajectory, for the update; None where nothing is.
    """

    advantages: list[float | np.ndarray]
    used: np.ndarray
    fields: dict[str, list[np.ndarray]]
    baselines: Baselines
    metrics: dict[str, float]
    valid: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    audio: list[AudioInputs | None] = dataclasses.field(default_factory=list)


def reward(
    trajectory: Trajectory, config: RunConfig, table: Table | None, own: RewardOf | None = None
) -> Reward:
    """The reward of a judged episode; by `own`, where that is given.

    Raises InputError where `own` gives no Reward of finite parts.
    """
    if own is not None and trajectory.success is None:
        return Reward(0.0, 0.0, 0.0)  # nothing is learned from it
    if own is not None:
        given = own(trajectory, config.reward)
        if not isinstance(given, Reward) or not np.isfinite(given.total):
            raise InputError(
                f"Parts(reward=…) gave {given!r:.60} for task {trajectory.task.task_id!r}: return a"
                " Reward(terminal, turns, major) of three finite numbers"
            )
        return given
    return trajectory_reward(
        bool(trajectory.success), trajectory.scores, trajectory.task.expert_turns,
        config.reward, worth_of(trajectory, table), trajectory.minors,
    )


def assign(
    trajectories: Sequence[Trajectory],
    config: RunConfig,
    scores: Mapping[str, list[np.ndarray]],
    table: Table | None,
    baselines: Baselines,
    own: AdvantageOf | None = None,
) -> Credit:
    """Advantages by `config.rl`, or by `own`, of episodes that have their reward.

    Args:
      scores: what `Updater.score` said, per trajectory one number per token.
      table: of calibrated turns; None: the judge's scores.
      baselines: of "single_stream", before this step.
    """
    rl = config.rl
    trajectories = masked(trajectories, config)
    if own is not None:
        credit = _by_own(trajectories, config, own)
    elif rl.advantage == "gae":
        credit = _by_value_model(trajectories, config, scores, table)
    else:
        credit = _by_baseline(trajectories, config, scores, table, baselines)
    if "kl" in scores:
        penalties = [rl.kl_coef * float(kl.sum()) for kl in scores["kl"]]
        credit.metrics["rl/kl_penalty"] = float(np.mean(penalties))
    if rl.tis_cap > 0:
        drawn = config.rollout.loss_log_probs == "drawn"
        gap = gap_name(rl.max_staleness)
        _reweigh(credit, trajectories, scores["log_probs"], rl.tis_cap, drawn, gap)
    return dataclasses.replace(credit, valid=learned_from(trajectories, config))


def _by_own(
    trajectories: Sequence[Trajectory], config: RunConfig, own: AdvantageOf
) -> Credit:
    size = config.rollout.group_size
    groups = [trajectories[i : i + size] for i in range(0, len(trajectories), size)]
    given = own(groups, config)
    if [len(of) for of in given] != [len(of) for of in groups]:
        raise InputError(
            f"Parts(advantage=…) gave {[len(of) for of in given]} for groups of"
            f" {[len(of) for of in groups]} episodes: give one number, or one array, for each"
        )
    advantages: list[float | np.ndarray] = []
    for t, value in zip(trajectories, (a for of in given for a in of), strict=True):
        array = np.asarray(value, np.float64)
        if array.shape not in ((), (t.num_tokens,)) or not np.isfinite(array).all():
            raise InputError(
                f"Parts(advantage=…) gave {value!r:.60} of shape {array.shape} for an episode of"
                f" {t.num_tokens} tokens: give one finite number, or one for each token"
            )
        array = array if t.success is not None else np.zeros(())
        advantages.append(array if array.shape else float(array))
    used = np.array([bool(np.any(a)) for a in advantages])
    flat = ~used.reshape(-1, size).any(axis=1)
    return Credit(advantages, used, {}, {}, {"rl/zero_variance_groups": float(flat.mean())})


# ---- one number per episode -----------------------------------------------------------------


def _by_baseline(
    trajectories: Sequence[Trajectory],
    config: RunConfig,
    scores: Mapping[str, list[np.ndarray]],
    table: Table | None,
    baselines: Baselines,
) -> Credit:
    rl, shape = config.rl, (-1, config.rollout.group_size)
    rewards = np.array([t.reward for t in trajectories], np.float64).reshape(shape)
    valid = learned_from(trajectories, config).reshape(shape)
    if "kl" in scores:
        penalties = [rl.kl_coef * float(kl.sum()) for kl in scores["kl"]]
        # Where all earned the same there is nothing to learn, whatever the penalty.
        same = group_advantages(rewards, valid, "none")[1]
        if rl.advantage == "single_stream":  # whose baseline is not the group
            same = np.zeros_like(same)
        rewards = np.where(same[:, None], rewards, rewards - np.reshape(penalties, shape))
    tasks = [t.task for t in trajectories[:: config.rollout.group_size]]
    kinds = [task.kind for task in tasks]
    turns = trajectories, config, table, valid, kinds
    if rl.advantage == "return_to_go":
        advantages: list[float | np.ndarray] = [*return_advantages(*turns)]
    else:
        values, baselines = _of_episodes(rewards, trajectories, config, valid, tasks, baselines)
        weight = config.reward.episode_weight if config.reward.placement == "stage" else 1.0
        advantages = [weight * float(a) for a in values.reshape(-1)]
        more: Callable[..., list[np.ndarray]] | None = {
            "gigpo": state_advantages, "mt_grpo": indexed_score_advantages
        }.get(rl.advantage, score_advantages if config.reward.turn_weight else None)
        if config.reward.placement == "stage":
            advantages = _added(advantages, stage_advantages(*turns))
        if more is not None:
            advantages = _added(advantages, more(*turns))
    used = np.array([bool(np.any(a)) for a in advantages])
    flat = ~used.reshape(shape).any(axis=1)
    metrics = {"rl/zero_variance_groups": float(flat.mean())}
    return Credit(advantages, used, {}, baselines, metrics)


def _of_episodes(
    rewards: np.ndarray, trajectories: Sequence[Trajectory], config: RunConfig, valid: np.ndarray,
    tasks: Sequence[Task], baselines: Baselines,
) -> tuple[np.ndarray, Baselines]:
    """One advantage for each episode, [P, G]."""
    rl, kinds, unit = config.rl, [task.kind for task in tasks], config.reward.terminal_scale
    if rl.advantage == "single_stream":
        return _tracked(rewards, valid, tasks, config, baselines)
    if rl.advantage == "gdpo":
        names = ("terminal", "turns", "major")
        parts = np.array([[t.reward_parts[n] for n in names] for t in trajectories])
        parts = parts.reshape(*rewards.shape, len(names))
        values = np.array([decoupled(*group) for group in zip(parts, valid, strict=True)])
        for kind in set(kinds):
            rows = [i for i, k in enumerate(kinds) if k == kind]
            values[rows] = standardised(values[rows], valid[rows], rl.normalise)
        return values, baselines
    if rl.advantage == "mt_grpo":  # the outcome alone; the turns have a term of their own
        rewards = np.array([t.reward_parts["terminal"] for t in trajectories])
        rewards = rewards.reshape(valid.shape)
    of = leave_one_out_advantages if rl.advantage == "rloo" else group_advantages
    return of(rewards, valid, rl.normalise, kinds, unit)[0], baselines


def _added(
    advantages: Sequence[float | np.ndarray], more: Sequence[np.ndarray]
) -> list[float | np.ndarray]:
    return [a + extra for a, extra in zip(advantages, more, strict=True)]


def judge_counts(config: RunConfig) -> bool:
    """Whether what the judge says changes what is learned."""
    c = config.reward
    return c.placement != "terminal" and (
        c.placement != "stage" or c.stage_judge or c.episode_weight > 0
    )


def learned_from(trajectories: Sequence[Trajectory], config: RunConfig) -> np.ndarray:
    """Per trajectory whether it may teach, and enters baselines.

    Not one that the infrastructure broke; nor, with `reward.abstained = "member"`, one that the
    judge abstained on while it judged others of its group.
    """
    whole = np.array([t.success is not None for t in trajectories])
    if config.reward.abstained == "member" and judge_counts(config):
        judged = np.array([t.turn_scores is not None for t in trajectories])
        groups = judged.reshape(-1, config.rollout.group_size)
        whole &= judged | ~groups.any(axis=1).repeat(groups.shape[1])
    return whole


def _tracked(
    rewards: np.ndarray,
    valid: np.ndarray,
    tasks: Sequence[Task],
    config: RunConfig,
    baselines: Baselines,
) -> tuple[np.ndarray, Baselines]:
    """Single-stream advantages; a task that was never seen begins at its kind's mean."""
    keys = [f"{task.kind}/{task.task_id}" for task in tasks]
    priors = {}
    for kind in {task.kind for task in tasks}:
        seen = [b for key, b in baselines.items() if key.startswith(f"{kind}/")]
        if seen:
            weights, means = np.array(seen).T
        else:  # the first step: the mean of what it brings
            of = np.array([task.kind == kind for task in tasks])
            weights, means = valid[of].astype(float).ravel(), np.nan_to_num(rewards[of]).ravel()
        priors[kind] = float(weights @ means / max(weights.sum(), 1e-6))
    before = np.array([
        baselines.get(key, [0.0, priors[task.kind]])
        for key, task in zip(keys, tasks, strict=True)
    ])
    values, weights, means = tracked_advantages(
        rewards, valid, before[:, 0], before[:, 1], config.rl.baseline_decay,
        config.rl.normalise, [task.kind for task in tasks], config.reward.terminal_scale,
    )
    now = {k: [float(w), float(m)] for k, w, m in zip(keys, weights, means, strict=True) if w > 0}
    return values, baselines | now


# ---- one number per token -------------------------------------------------------------------


def _by_value_model(
    trajectories: Sequence[Trajectory],
    config: RunConfig,
    scores: Mapping[str, list[np.ndarray]],
    table: Table | None,
) -> Credit:
    rl = config.rl
    marks = [t.arrays()[1] for t in trajectories]
    valid = learned_from(trajectories, config)
    shape = (len(marks), max(int(m.sum()) for m in marks))
    rewards, values, chosen = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    for i, (t, mark) in enumerate(zip(trajectories, marks, strict=True)):
        count = int(mark.sum())
        each = _token_rewards(t, config, table)
        if "kl" in scores:
            each = each - rl.kl_coef * scores["kl"][i]
        rewards[i, :count] = each[mark]
        values[i, :count] = scores["values"][i][mark]
        chosen[i, :count] = valid[i]
    numbers = None
    if rl.value.step == "turn":
        numbers = np.full(shape, -1)
        for i, (t, mark) in enumerate(zip(trajectories, marks, strict=True)):
            numbers[i, : int(mark.sum())] = turn_of_token(t)[mark]
    advantages, returns = gae(
        rewards, values, chosen, rl.value.discount, rl.value.trace, numbers
    )
    metrics = _value_metrics(values[chosen], returns[chosen])
    kinds = np.array([t.task.kind for t in trajectories])
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        advantages[rows] = standardised(
            advantages[rows], chosen[rows], rl.normalise, config.reward.terminal_scale
        )

    def spread(x: np.ndarray, mark: np.ndarray) -> np.ndarray:
        whole = np.zeros(len(mark))
        whole[mark] = x[: int(mark.sum())]
        return whole

    fields = {
        name: [spread(x, mark) for x, mark in zip(of, marks, strict=True)]
        for name, of in (("values", values), ("returns", returns))
    }
    spreads = [spread(a, mark) for a, mark in zip(advantages, marks, strict=True)]
    return Credit(list(spreads), valid, fields, {}, metrics)


def _value_metrics(values: np.ndarray, returns: np.ndarray) -> dict[str, float]:
    """Of the sampled tokens; the explained variance is 1 - Var(R - V) / Var(R)."""
    if not values.size:
        return {}
    found = {"rl/value": float(values.mean()), "rl/return": float(returns.mean())}
    if (variance := returns.var()) > 1e-9:
        found["rl/explained_variance"] = float(1 - (returns - values).var() / variance)
    return found


def _token_rewards(trajectory: Trajectory, config: RunConfig, table: Table | None) -> np.ndarray:
    """[S]; on the last sampled token of each turn what the turn earned, or of the last turn all."""
    turns = trajectory.turns
    if config.reward.placement == "turn_end":
        parts = turn_rewards(
            bool(trajectory.success), trajectory.scores, len(turns),
            trajectory.task.expert_turns, config.reward, worth_of(trajectory, table),
            trajectory.minors,
        )
    else:
        parts = np.zeros(len(turns))
        parts[-1:] = trajectory.reward or 0.0
    numbers = turn_of_token(trajectory)
    rewards = np.zeros(len(numbers))
    for turn, part in enumerate(parts):
        # A turn without a token of its own earns for the one before it.
        mine = np.flatnonzero((numbers >= 0) & (numbers <= turn))
        if mine.size:
            rewards[mine[-1]] += part
    return rewards


def gap_name(max_staleness: int) -> str:
    """Of the metric that says how far the trainer's log-probs are from the sampler's.

    Where the sampler may be an older policy the gap is staleness; else it is a fault of dtypes or
    programs.
    """
    return "rl/staleness" if max_staleness else "rl/log_prob_gap"


def _reweigh(
    credit: Credit,
    trajectories: Sequence[Trajectory],
    trainer: Sequence[np.ndarray],
    cap: float,
    drawn: bool,
    gap: str,
) -> None:
    """Takes the trainer's log-probs as the old ones, and weighs each token by what the two say."""
    weights, differences = [], []
    for i, t in enumerate(trajectories):
        _, sampled, log_probs = t.arrays(drawn)
        weight = np.where(sampled, truncated_weights(trainer[i], log_probs, cap), 0.0)
        credit.advantages[i] = credit.advantages[i] * weight
        weights.append(weight[sampled])
        differences.append(np.abs(trainer[i] - log_probs)[sampled])
    credit.fields["log_probs"] = list(trainer)
    weight, difference = np.concatenate(weights), np.concatenate(differences)
    if weight.size:
        credit.metrics |= {
            gap: float(difference.mean()),
            f"{gap}_max": float(difference.max()),
            "rl/tis_weight": float(weight.mean()),
            "rl/tis_capped": float(np.mean(weight >= cap)),
        }
