"""The knobs of credit assignment: reward, advantage, loss, value model; and what they refuse.

docs/credit.md has the formula behind every choice. `tarl_jax.config` holds these as its groups
`reward` and `rl`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

ADVANTAGES = ("grpo", "rloo", "gae", "single_stream", "gigpo", "return_to_go", "gdpo", "mt_grpo")
GROUP_ADVANTAGES = ("grpo", "rloo", "gigpo", "return_to_go", "gdpo", "mt_grpo")  # of the group
LOSSES = ("clip", "spo", "gspo")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """TARL's reward; every constant is a field because the sources read them differently.

    placement: "trajectory" (one scalar on every sampled token), "stage" (what each stage earned,
      against the group's other episodes that reached it, on its own tokens), "turn_end" (each
      turn's part on its last sampled token; needs `rl.advantage="gae"`) or "terminal" (no judge).
    stage_judge: False: a stage earns its goal alone, and the judge nothing.
    episode_weight: adds this many times the episode's own advantage to that of its stages; with
      other placements that advantage is all there is, and this is not read.
    abstained: what becomes of a group in which the judge abstained on some episodes: "group" (the
      verdict alone counts in all of it) or "member" (these teach nothing and enter no baseline).
    minor_scale: what a minor turn costs, over T as a right one earns; together they take no more
      than the right ones earned. 0: they are worth as much as neutral ones.
    denominator: "taken" (turns of the episode, as published) or "expert" (turns the task needs).
    turn_weight: adds this many times the normalised score of a turn to the advantage of its tokens.
    calibration: JSON table of what each kind of turn is worth, in place of the +1s; empty: the
      judge's scores as they are. `tarl_jax.training.calibrate_turns` makes one.
    """

    placement: str = "trajectory"
    terminal_scale: float = 10.0  # what success earns
    major_scale: float = 5.0  # what a major deviation (-1) costs
    max_majors: int = 1  # -1s that cost, of an episode or a stage; later ones count as 0
    turn_scale: float = 5.0  # what the right turns (+1) earn together, over T
    turn_cap: float = 5.0  # they earn no more together than this
    minor_scale: float = 0.0
    denominator: str = "expert"
    before_major_only: bool = False  # +1 turns count only up to the first -1
    turn_weight: float = 0.0
    calibration: str = ""
    stage_judge: bool = True
    episode_weight: float = 0.0
    abstained: str = "group"


@dataclasses.dataclass(frozen=True)
class ValueConfig:
    """PPO's value model (`rl.advantage="gae"`), and the advantages made of its values.

    trunk: "own" (a copy of the policy's, trained apart; with adapters: adapters of its own on the
      same frozen weights) or "shared" (a head on the policy's).
    warmup_steps: first steps, in which the value model trains and the policy stands still.
    clip: how far a value may move from what it was at the rollout before its loss goes flat; 0: no
      limit. In units of the reward.
    coef: weight of the value loss where it shares the policy's trunk.
    """

    trunk: str = "own"
    learning_rate: float = 1e-3  # of AdamW on the value model
    warmup_steps: int = 10
    clip: float = 0.0
    coef: float = 0.1
    discount: float = 1.0  # per step
    trace: float = 1.0  # GAE's lambda, per step
    step: str = "token"  # what a step is: each sampled token, or "turn": from turn to turn


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """Advantage, loss and optimiser.

    advantage: "grpo", "rloo", "gae" (PPO), "single_stream" (a baseline per task that outlives the
      step), or with a term per turn: "gigpo", "return_to_go", "gdpo", "mt_grpo" (docs/credit.md).
    normalise: "group": divide by the group's std; "batch": by the batch's, each kind of task
      (`Task.kind`) by its own; "scale": by `reward.terminal_scale`, so that a verdict is worth 1
      whatever the group; "none".
    decay_steps: training steps, as many updates as their minibatches and epochs make, in which the
      rates of policy and value model fall in a straight line to `final_rate` of their peaks, and
      stay there. 0: they do not fall.
    turn_discount: per turn, of the returns that "gigpo" and "return_to_go" compare.
    loss: "clip" (PPO's), "spo" (Simple Policy Optimization) or "gspo" (the sequence's ratio).
    loss_mean: "token", "sequence" (mean over episodes of their means) or "constant" (sum of an
      episode over `loss_constant`, mean over episodes), whatever splits episodes into sequences.
    kl_estimator, kl_in: k1, k2 or k3 against the warm start, times `kl_coef`, in the "loss" or,
      token by token, in the "reward".
    tis_cap: weighs each token by min(exp(trainer - sampler), cap); 0: no weight; -1: 2 where
      rollouts are quantised, else none.
    max_staleness: how many updates, at most, may lie between the policy that began an episode and
      the one that learns from it. 0: none; 1: the next step's episodes are played while this one's
      are learned from, which is faster where users are slow; more: those of further steps too.
      Where episodes are carried over (`rollout.unfinished`), the last of these is left to them.
    baseline_decay: what a visit leaves of the weight of earlier ones; "single_stream" only.
    epochs: passes over a step's minibatches; the old log-probs stay the sampler's.
    dual_clip: c > 1: the loss of a token with a negative advantage A is at most -c A; 0: no limit.
    mask_truncated: episodes cut off for length ("max_tokens", "max_turns") teach nothing and enter
      no baseline, as those cut off for time never do.
    measure_after: after the last update of a step, one forward pass over its last minibatch says
      how far the policy is from the sampler; False: "rl/kl" is that of before the last update.
    """

    steps: int = 60  # of training
    learning_rate: float = 3e-4  # of AdamW
    encoder_rate: float = 0.1  # share of it, by which an audio encoder that trains does
    warmup_steps: int = 3  # updates in which the rate rises to it
    decay_steps: int = 60
    final_rate: float = 0.1  # share of the rates that is left after decay_steps
    weight_decay: float = 0.0  # of AdamW
    max_grad_norm: float = 1.0  # longer gradients are scaled down to it
    advantage: str = "grpo"
    normalise: str = "scale"
    loss: str = "clip"
    loss_mean: str = "token"
    loss_constant: int = 128  # what "constant" divides by, in tokens
    clip_low: float = 0.2  # the ratio counts down to 1 minus this
    clip_high: float = 0.28  # and up to 1 plus this
    kl_coef: float = 0.0  # weight of the penalty on distance from the warm start
    kl_estimator: str = "k3"
    kl_in: str = "loss"
    entropy_coef: float = 0.0  # for ablations: the method's authors found it harmful
    tis_cap: float = -1.0
    turn_discount: float = 1.0
    baseline_decay: float = 0.9
    minibatches: int = 2  # optimiser updates per step, each on a share of the groups
    epochs: int = 1
    dual_clip: float = 0.0
    mask_truncated: bool = False
    measure_after: bool = True
    micro_batch_tokens: int = 2048  # padded tokens per forward/backward pass
    pack: bool = True  # several trajectories in a row, where they fit
    max_staleness: int = 0
    value: ValueConfig = ValueConfig()


def check_credit(
    reward: RewardConfig,
    rl: RLConfig,
    group_size: int,
    require: Callable[[bool, str, Any, str], None],
    choice: Callable[[str, str, tuple[str, ...]], None],
) -> None:
    """Asks `require` and `choice` of `config.checks` about the fields, one by one and together."""
    choice("reward.placement", reward.placement, ("trajectory", "stage", "turn_end", "terminal"))
    choice("reward.abstained", reward.abstained, ("group", "member"))
    choice("rl.value.step", rl.value.step, ("token", "turn"))
    choice("reward.denominator", reward.denominator, ("taken", "expert"))
    choice("rl.advantage", rl.advantage, ADVANTAGES)
    choice("rl.normalise", rl.normalise, ("group", "batch", "scale", "none"))
    choice("rl.loss", rl.loss, LOSSES)
    choice("rl.loss_mean", rl.loss_mean, ("token", "sequence", "constant"))
    choice("rl.kl_estimator", rl.kl_estimator, ("k1", "k2", "k3"))
    choice("rl.kl_in", rl.kl_in, ("loss", "reward"))
    choice("rl.value.trunk", rl.value.trunk, ("own", "shared"))
    for where, value in (
        ("reward.terminal_scale", reward.terminal_scale),
        ("reward.major_scale", reward.major_scale),
        ("reward.turn_scale", reward.turn_scale),
        ("reward.turn_weight", reward.turn_weight),
        ("reward.episode_weight", reward.episode_weight),
        ("reward.turn_cap", reward.turn_cap),
        ("reward.minor_scale", reward.minor_scale),
        ("reward.max_majors", reward.max_majors),
        ("rl.warmup_steps", rl.warmup_steps),
        ("rl.decay_steps", rl.decay_steps),
        ("rl.weight_decay", rl.weight_decay),
        ("rl.clip_low", rl.clip_low),
        ("rl.clip_high", rl.clip_high),
        ("rl.kl_coef", rl.kl_coef),
        ("rl.entropy_coef", rl.entropy_coef),
        ("rl.value.warmup_steps", rl.value.warmup_steps),
        ("rl.value.clip", rl.value.clip),
        ("rl.value.coef", rl.value.coef),
    ):
        require(value >= 0, where, value, "must be at least 0")
    require(rl.tis_cap >= 0 or rl.tis_cap == -1, "rl.tis_cap", rl.tis_cap,
            "must be at least 0, or -1: 2 where rollouts are quantised")
    for where, value in (
        ("rl.learning_rate", rl.learning_rate),
        ("rl.encoder_rate", rl.encoder_rate),
        ("rl.max_grad_norm", rl.max_grad_norm),
        ("rl.loss_constant", rl.loss_constant),
        ("rl.value.learning_rate", rl.value.learning_rate),
    ):
        require(value > 0, where, value, "must be above 0")
    for where, value in (
        ("rl.baseline_decay", rl.baseline_decay),
        ("rl.value.discount", rl.value.discount),
        ("rl.value.trace", rl.value.trace),
        ("rl.turn_discount", rl.turn_discount),
        ("rl.final_rate", rl.final_rate),
    ):
        require(0 <= value <= 1, where, value, "must be between 0 and 1")
    _check_together(reward, rl, group_size, require)


def _check_together(
    reward: RewardConfig,
    rl: RLConfig,
    group_size: int,
    require: Callable[[bool, str, Any, str], None],
) -> None:
    grouped = rl.advantage in GROUP_ADVANTAGES
    require(group_size > (1 if grouped else 0), "rollout.group_size", group_size,
            "a group needs at least 2 episodes for its mean to be a baseline" if grouped
            else "must be at least 1")
    require(reward.placement != "turn_end" or rl.advantage == "gae", "reward.placement",
            reward.placement, f"rl.advantage = {rl.advantage!r} takes one number per episode: set"
            " rl.advantage to gae, or place the reward on the trajectory and set"
            " reward.turn_weight")
    require(reward.turn_weight == 0 or grouped, "reward.turn_weight", reward.turn_weight,
            f"a turn's score is normalised by its group, which rl.advantage = {rl.advantage!r}"
            " does without: choose grpo or rloo, or 0")
    require(reward.placement != "stage" or rl.advantage in ("grpo", "rloo"), "rl.advantage",
            rl.advantage, "reward.placement = 'stage' compares stages with those of the group:"
            " choose grpo or rloo")
    require(reward.placement != "stage" or not reward.before_major_only,
            "reward.before_major_only", reward.before_major_only,
            "is for whole episodes: with reward.placement = 'stage' leave it out")
    require(reward.placement != "stage" or rl.normalise != "group", "rl.normalise", rl.normalise,
            "few episodes of a group may reach a stage: with reward.placement = 'stage' choose"
            " scale, batch or none")
    by_turn = reward.placement == "stage" or rl.advantage in ("return_to_go", "gdpo", "mt_grpo")
    require(not by_turn or rl.kl_coef == 0 or rl.kl_in == "loss", "rl.kl_in", rl.kl_in,
            "a penalty on the episode's reward has no place among parts of episodes: set rl.kl_in"
            " to loss")
    require(rl.advantage not in ("gigpo", "mt_grpo") or reward.turn_weight > 0,
            "reward.turn_weight", reward.turn_weight,
            f"rl.advantage = {rl.advantage!r} is grpo without it: set it above 0, e.g. 1")
    require(rl.advantage not in ("return_to_go", "gdpo") or reward.turn_weight == 0,
            "reward.turn_weight", reward.turn_weight,
            f"rl.advantage = {rl.advantage!r} has no such term: leave it 0")
    require(rl.advantage != "return_to_go" or rl.normalise != "group", "rl.normalise",
            rl.normalise, "rl.advantage = 'return_to_go' compares turn by turn: choose scale, batch"
            " or none")
    require(rl.advantage != "gdpo" or rl.normalise in ("batch", "none"), "rl.normalise",
            rl.normalise, "rl.advantage = 'gdpo' divides each reward by its own spread: choose"
            " batch, as published, or none")
    require(not reward.calibration or reward.placement != "terminal" or reward.turn_weight > 0,
            "reward.calibration", reward.calibration,
            "no turn is rewarded with reward.placement = 'terminal': choose another placement")
    require(rl.normalise != "group" or grouped, "rl.normalise", rl.normalise,
            f"rl.advantage = {rl.advantage!r} has no group: choose batch or none")
    require(rl.dual_clip == 0 or rl.dual_clip > 1, "rl.dual_clip", rl.dual_clip,
            "must be above 1, e.g. 3, or 0 for no limit")
    require(rl.dual_clip == 0 or rl.loss != "spo", "rl.dual_clip", rl.dual_clip,
            "rl.loss = 'spo' has no clip, and holds such tokens by its penalty: leave it 0")
    updates = rl.minibatches * rl.epochs
    require(rl.loss == "clip" or updates > 1 or rl.max_staleness > 0, "rl.loss", rl.loss,
            "with one update per step every ratio is 1, and the loss is clip's step for step: set"
            " rl.minibatches or rl.epochs to 2 or more")
    require(rl.loss != "gspo" or rl.loss_mean == "sequence", "rl.loss_mean", rl.loss_mean,
            "rl.loss = 'gspo' weighs whole sequences: set rl.loss_mean to sequence")
    require(rl.loss != "gspo" or rl.advantage != "gae", "rl.loss", rl.loss,
            "one ratio for a sequence leaves gae's advantages of single tokens no place: choose"
            " clip or spo")
    require(rl.loss != "spo" or rl.clip_low == rl.clip_high > 0, "rl.clip_high", rl.clip_high,
            f"rl.loss = 'spo' has one bound: set rl.clip_low (now {rl.clip_low}) to the same,"
            " above 0")
    require(rl.kl_estimator != "k1" or rl.kl_in == "reward" or rl.kl_coef == 0, "rl.kl_estimator",
            rl.kl_estimator, "its gradient has mean 0, whatever the policy: choose k2 or k3, or set"
            " rl.kl_in to reward")
