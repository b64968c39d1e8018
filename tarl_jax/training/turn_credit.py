"""Advantages that differ from token to token of an episode: of stages, of turns, of states.

Each function gives one array [S] per trajectory. Trajectories come as in `credit.py`: P tasks, the
G episodes of a task side by side; `valid` [P, G] is False where an episode teaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tarl_jax.config import RunConfig
from tarl_jax.rl.advantages import group_advantages
from tarl_jax.rl.calibration import worth
from tarl_jax.rl.rewards import less_minors, turn_rewards
from tarl_jax.rl.turn_advantages import Item, by_state, leave_one_out_by_key, returns_to_go
from tarl_jax.training.stages import Stage, stages_of, states_of
from tarl_jax.types import Trajectory

Table = Mapping[str, float]  # a calibrated turn's kind to its value


def stage_advantages(
    trajectories: Sequence[Trajectory], config: RunConfig, table: Table | None, valid: np.ndarray,
    kinds: Sequence[str],
) -> list[np.ndarray]:
    """Stage credit: on the tokens of stage j of episode e, A = R_ej - b_ej, over a constant.

        R_ej = terminal_scale [goal j ended right]
               + min(max((turn_scale n+ - minor_scale n0) / (T / J), 0), turn_cap)
               - major_scale [-1s of the stage that cost]

    n+ is what the stage's turns are worth (its +1s), n0 how many of them are minor, T the task's
    turns, J its goals; with `stage_judge` = False only the goal counts. b_ej is the mean over the
    group's *other* episodes that reached stage j: whether it is reached was decided before it
    began, and the episode's own tokens are not in it, so the baseline costs no bias
    (`rl/turn_advantages.py`). What a stage changes for later ones is not its credit:
    `episode_weight` adds that.
    """
    staged = [stages_of(t) for t in trajectories]
    groups: list[list[list[Item]]] = []
    shape = valid.shape
    for rows in np.arange(len(trajectories)).reshape(shape):
        groups.append([
            [(stage.key, stage_reward(trajectories[i], stage, staged[i][1], config, table))
             for stage in staged[i][0]] if valid.flat[i] else []
            for i in rows
        ])
    found = [e for group in leave_one_out_by_key(groups) for e in group]
    scales = _scales(found, shape, config, kinds)
    return [
        _on_turns(t, [
            (turn, a / scale) for stage, a in zip(stages, advantages, strict=False)
            for turn in stage.turns
        ])
        for t, (stages, _), advantages, scale in zip(
            trajectories, staged, found, scales, strict=True
        )
    ]


def stage_reward(
    trajectory: Trajectory, stage: Stage, goals: int, config: RunConfig, table: Table | None
) -> float:
    """What a stage earned; see `stage_advantages`."""
    c = config.reward
    earned = c.terminal_scale * stage.right
    scores = trajectory.scores
    if scores is None or not c.stage_judge:
        return earned
    marks = np.array([scores[turn] for turn in stage.turns])
    values = np.array([(worth_of(trajectory, table) or scores)[turn] for turn in stage.turns])
    turns = len(stage.turns) if c.denominator == "taken" else trajectory.task.expert_turns / goals
    minors = np.array([(trajectory.minors or [False] * len(scores))[t] for t in stage.turns])
    good = less_minors(
        np.where(marks == -1, 0.0, c.turn_scale * values / max(turns, 1)),
        c.minor_scale * minors / max(turns, 1),
    ).sum()
    majors = min(int((marks == -1).sum()), c.max_majors)
    return earned + float(np.clip(good, -c.turn_cap, c.turn_cap)) - c.major_scale * majors


def score_advantages(
    trajectories: Sequence[Trajectory], config: RunConfig, table: Table | None, valid: np.ndarray,
    kinds: Sequence[str],
) -> list[np.ndarray]:
    """turn_weight times a turn's score, normalised among all turns of the group."""
    marks, judged = _score_table(trajectories, table, valid)
    shape = (len(kinds), -1)
    relative, _ = group_advantages(
        marks.reshape(shape), judged.reshape(shape) > 0, config.rl.normalise, kinds,
        config.reward.turn_scale,
    )
    return _by_number(trajectories, config.reward.turn_weight * relative.reshape(marks.shape))


def indexed_score_advantages(
    trajectories: Sequence[Trajectory], config: RunConfig, table: Table | None, valid: np.ndarray,
    kinds: Sequence[str],
) -> list[np.ndarray]:
    """MT-GRPO's term (arXiv 2505.11821): turn_weight times a turn's score, normalised among the
    turns of the same number of the group's episodes.
    """
    marks, judged = _score_table(trajectories, table, valid)
    relative = np.zeros_like(marks)
    for number in range(marks.shape[1]):
        of, there = marks[:, number].reshape(valid.shape), judged[:, number].reshape(valid.shape)
        relative[:, number] = group_advantages(
            of, there > 0, config.rl.normalise, kinds, config.reward.turn_scale
        )[0].reshape(-1)
    return _by_number(trajectories, config.reward.turn_weight * relative)


def state_advantages(
    trajectories: Sequence[Trajectory], config: RunConfig, table: Table | None, valid: np.ndarray,
    kinds: Sequence[str],
) -> list[np.ndarray]:
    """GiGPO's term (arXiv 2505.10978): turn_weight times the discounted return from a turn on,
    against the turns of the group that were taken in the same state (`stages.states_of`).
    """
    rows = np.arange(len(trajectories)).reshape(valid.shape)
    divide = config.rl.normalise == "group"
    found: list[list[float]] = []
    for group in rows:
        items = [
            list(zip(states_of(trajectories[i]), _returns(trajectories[i], config, table),
                     strict=True)) if valid.flat[i] else []
            for i in group
        ]
        found += by_state(items, divide)
    # A spread within states needs no other scale.
    scales = np.ones(len(trajectories)) if divide else _scales(found, valid.shape, config, kinds)
    weight = config.reward.turn_weight
    return [
        _on_turns(t, [(turn, weight * a / scale) for turn, a in enumerate(advantages)])
        for t, advantages, scale in zip(trajectories, found, scales, strict=True)
    ]


def return_advantages(
    trajectories: Sequence[Trajectory], config: RunConfig, table: Table | None, valid: np.ndarray,
    kinds: Sequence[str],
) -> list[np.ndarray]:
    """On the tokens of turn i: A = G_i - mean of G_i over the group's other episodes with a turn i.

    G_i is the return from turn i on (`rl.turn_discount`). What a further turn brings is compared
    with what it brings to others, so no term pays for one turn more: normalising the rewards of
    each turn by themselves and summing these would (each adds minus its expected value).
    """
    rows = np.arange(len(trajectories)).reshape(valid.shape)
    groups: list[list[list[Item]]] = [
        [list(enumerate(_returns(trajectories[i], config, table))) if valid.flat[i] else []
         for i in group]
        for group in rows
    ]
    found = [e for group in leave_one_out_by_key(groups) for e in group]
    scales = _scales(found, valid.shape, config, kinds)
    return [
        _on_turns(t, [(turn, a / scale) for turn, a in enumerate(advantages)])
        for t, advantages, scale in zip(trajectories, found, scales, strict=True)
    ]


def turn_of_token(trajectory: Trajectory) -> np.ndarray:
    """[S]; the number of the agent turn that sampled each token, -1 for forced ones."""
    numbers, turn = [np.zeros(0, int)], 0
    for segment in trajectory.segments:
        mine = turn if segment.role == "agent" else -1
        numbers.append(np.where(segment.sampled, mine, -1).astype(int))
        turn += segment.role == "agent"
    return np.concatenate(numbers)


def worth_of(trajectory: Trajectory, table: Table | None) -> list[float] | None:
    """Per turn what a calibrated table says it is worth; None where the scores count."""
    if table is None or trajectory.scores is None:
        return None
    return worth(trajectory.turns, trajectory.scores, table)


def _returns(trajectory: Trajectory, config: RunConfig, table: Table | None) -> np.ndarray:
    rewards = turn_rewards(
        bool(trajectory.success), trajectory.scores, len(trajectory.turns),
        trajectory.task.expert_turns, config.reward, worth_of(trajectory, table),
        trajectory.minors,
    )
    return returns_to_go(rewards, config.rl.turn_discount)


def _scales(
    found: Sequence[Sequence[float]], shape: tuple[int, ...], config: RunConfig,
    kinds: Sequence[str],
) -> np.ndarray:
    """Per episode what its advantages are divided by, as `rl.normalise` says."""
    count = len(found)
    if config.rl.normalise == "scale":
        return np.full(count, config.reward.terminal_scale)
    scales = np.ones(count)
    if config.rl.normalise == "batch":
        of = np.repeat(np.asarray(kinds), shape[1])
        for kind in np.unique(of):
            values = np.array([a for e, k in zip(found, of, strict=True) if k == kind for a in e])
            root = np.sqrt(np.mean(values**2)) if values.size else 0.0
            scales[of == kind] = root if root > 1e-6 else np.inf
    return scales


def _score_table(
    trajectories: Sequence[Trajectory], table: Table | None, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per trajectory and turn its score, and whether there is one that counts."""
    values = [worth_of(t, table) or t.scores or [] for t in trajectories]
    longest = max(map(len, values), default=0)
    marks, judged = np.zeros((2, len(values), longest))
    for i, (of, whole) in enumerate(zip(values, valid.reshape(-1), strict=True)):
        marks[i, : len(of)], judged[i, : len(of)] = of, whole
    return marks, judged


def _by_number(trajectories: Sequence[Trajectory], values: np.ndarray) -> list[np.ndarray]:
    """Per token the value [trajectory, turn] of its turn."""
    # A last column of zeros for tokens of no turn, whose number is -1.
    values = np.pad(values, ((0, 0), (0, 1)))
    last = values.shape[1] - 1
    return [values[i, np.minimum(turn_of_token(t), last)] for i, t in enumerate(trajectories)]


def _on_turns(trajectory: Trajectory, turns: Sequence[tuple[int, float]]) -> np.ndarray:
    """[S]; on the tokens of each turn its value, elsewhere 0."""
    values = np.zeros(len(trajectory.turns) + 1)
    for turn, value in turns:
        values[turn] = value
    return values[turn_of_token(trajectory)]
