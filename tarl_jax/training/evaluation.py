"""Evaluation: pass^k on held-out tasks with intervals, and how the policy behaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from tarl_jax.config import RunConfig
from tarl_jax.config.speech import condition_of
from tarl_jax.judge.service import Judge
from tarl_jax.judge.user_rules import KINDS
from tarl_jax.llm.errors import LLMError
from tarl_jax.models.decoder import Params
from tarl_jax.models.hf_config import completed
from tarl_jax.parallel import hosts
from tarl_jax.rollout.environment import AnyEngine, Environment
from tarl_jax.rollout.journal import Journal
from tarl_jax.rollout.sampling import Truncation
from tarl_jax.runs.checkpoint import Checkpoints
from tarl_jax.runs.directory import require_run, write_json
from tarl_jax.runs.live import LiveView
from tarl_jax.runs.summary import print_summary
from tarl_jax.runs.tau2_results import RESULTS_FILE, write_results
from tarl_jax.sandbox.published import task_records
from tarl_jax.sandbox.scoring import calls_of, score_of
from tarl_jax.training.heard import write_down
from tarl_jax.training.parts import Parts, record
from tarl_jax.training.policy import make_updater, newest, restore
from tarl_jax.types import CUT_OFF, Task, Trajectory

MAX_K = 4


def pass_hat_k(successes: Int[np.ndarray, " P"], trials: int, k: int) -> np.ndarray:
    """Per task C(c, k) / C(n, k): the chance that k of its n trials, drawn at random, all pass.

    Source: tau-bench (arXiv 2406.12045). Not pass@k, which asks for at least one.
    Raises ValueError where k exceeds the trials.
    """
    if not 1 <= k <= trials:
        raise ValueError(f"pass^{k} needs at least {k} trials, there are {trials}")
    return np.array([math.comb(int(c), k) / math.comb(trials, k) for c in successes])


def bootstrap_interval(
    per_task: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """95% percentile interval of the mean, tasks drawn with replacement."""
    picks = rng.integers(0, len(per_task), (draws, len(per_task)))
    low, high = np.percentile(per_task[picks].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def evaluate(
    engine: AnyEngine,
    params: Params,
    env: Environment,
    tasks: Sequence[Task],
    stream: str,
    progress: Callable[[int, int], None] | None = None,
    judge: Judge | None = None,
    journal: Journal | None = None,
) -> tuple[dict[str, float], list[Trajectory]]:
    """Plays `config.eval.trials` episodes of each task, of whatever kind, and judges them.

    Args:
      stream: names the random stream of the episodes; the same name gives the same episodes.
      judge: None: they are not judged. Noise of its config is left out.
      journal: keeps the episodes while they are played.
    Returns: metrics named "eval/…", and the trajectories, the trials of a task side by side.
    Raises: LLMError where users are language models and none of them could play.
    """
    config = env.config.eval
    episodes = [env.episode(task, stream, config.seed, trial, journal=journal)
                for task in hosts.share(tasks) for trial in range(config.trials)]
    ended = judge.begin if judge else None
    cut = Truncation(config.top_k, config.top_p, config.min_p)
    stats = engine.run(
        params, episodes, config.temperature, progress, ended=ended, truncation=cut
    )
    trajectories = [episode.trajectory() for episode in episodes]
    if judge:
        verdicts = judge.judge_all(trajectories, exact=True)
        for trajectory, verdict in zip(trajectories, verdicts, strict=True):
            if verdict is not None:
                trajectory.turn_scores, trajectory.judge_notes = verdict.scores, verdict.notes
                trajectory.turn_minors = verdict.minors
        judge.check_assertions(trajectories)
        judge.check_users(trajectories)
    trajectories = hosts.joined(trajectories, Trajectory)
    require_some(trajectories)
    tools, maths = by_kind(trajectories)
    metrics = summarise(tools, config.trials, config.bootstrap, config.seed)
    if maths:
        metrics |= summarise_maths(maths, config.trials, config.bootstrap, config.seed)
    metrics["eval/tokens_per_second"] = stats.tokens_per_second
    counts = hosts.total(env.user_counts() | (judge.counts() if judge else {}))
    metrics |= {f"eval/{name}": count for name, count in counts.items()}
    return metrics, trajectories


def evaluate_modalities(
    engine: AnyEngine,
    params: Params,
    env: Environment,
    tasks: Sequence[Task],
    stream: str,
    progress: Callable[[int, int], None] | None = None,
    judge: Judge | None = None,
    journal: Journal | None = None,
) -> tuple[dict[str, float], list[Trajectory]]:
    """`evaluate`, and with `config.eval.spoken` the same users written and spoken, side by side.

    Metrics named "eval/…" are of the written ones; "eval/spoken/<condition>/…" of the tool tasks
    spoken, once for each of `config.eval.spoken`: "gap" there is by how much less of them pass than
    written, "word_error_rate" what `heard.write_down` counts. `progress` counts all of them as one.
    """
    spoken = env.config.eval.spoken
    if not spoken:
        return evaluate(engine, params, env, tasks, stream, progress, judge, journal)
    tools = [task for task in tasks if task.kind == "tool"]
    written, aloud = (env.config.eval.trials * len(hosts.share(of)) for of in (tasks, tools))
    total = written + len(spoken) * aloud

    def ahead(done: int) -> Callable[[int, int], None] | None:
        """Counts on from there: all conditions are one count."""
        return progress and (lambda more, _: progress(done + more, total))

    metrics, trajectories = evaluate(
        engine, params, env.speaking(0.0), tasks, stream, ahead(0), judge, journal
    )
    for place, condition in enumerate(spoken):
        chain, voices = condition_of(condition, env.config.speech)
        speaking = env.speaking(1.0, (chain,), voices, clean=0.0)
        found, episodes = evaluate(
            engine, params, speaking, tools, stream, ahead(written + place * aloud), judge, journal
        )
        trajectories += episodes
        found |= write_down(params, env, episodes)
        if "eval/pass^1" in found and "eval/pass^1" in metrics:
            found["gap"] = metrics["eval/pass^1"] - found["eval/pass^1"]
        for name, value in found.items():
            metrics[f"eval/spoken/{condition}/{name.removeprefix('eval/')}"] = value
    return metrics, trajectories


def summarise(
    trajectories: Sequence[Trajectory], trials: int, draws: int, seed: int
) -> dict[str, float]:
    """Metrics of an evaluation; a broken episode counts as a failure.

    pass^k and clean pass (success without a major deviation) come with "_low" and "_high", the
    ends of their 95% interval by bootstrap over tasks. Success is a right database; where some task
    requires outputs, "pass^k_with_outputs" asks for these too, as tau-bench does. Where all tasks
    are tau2-bench's, success is of all that each task's `reward_basis` names, and "tau2_pass^k" is
    the benchmark's number: "tau2_unjudged" is the share of episodes whose reward hangs on
    assertions that nobody has judged, which do not pass there. Clean pass and
    "major_share" are of the episodes that were judged (a broken one passes neither), and absent
    where none was: nobody saw no deviation. "judge/abstained" is the share of the others.

    "pass_variance" is the mean over tasks of p (1 - p), p being the chance to pass, unbiased: what
    groups of this policy differ by, which foretells what training gains. "entropy" is the mean of
    -log p of the sampled tokens.
    """
    rng = np.random.default_rng(seed)
    shape = (-1, trials)
    success = np.array([bool(t.success) for t in trajectories]).reshape(shape)
    major = np.array([-1 in (t.turn_scores or ()) for t in trajectories]).reshape(shape)
    judged = np.array([t.turn_scores is not None for t in trajectories]).reshape(shape)
    broken = np.array([t.success is None for t in trajectories]).reshape(shape)
    metrics: dict[str, float] = {}

    def add(name: str, per_task: np.ndarray) -> None:
        metrics[name] = float(per_task.mean())
        metrics[f"{name}_low"], metrics[f"{name}_high"] = bootstrap_interval(per_task, draws, rng)

    for k in range(1, min(MAX_K, trials) + 1):
        add(f"eval/pass^{k}", pass_hat_k(success.sum(axis=1), trials, k))
    if judged.any():
        add("eval/clean_pass", _mean_of(success & ~major, judged | broken))
        add("eval/major_share", _mean_of(major, judged))
    if trials > 1:
        passed = success.sum(axis=1)
        metrics["eval/pass_variance"] = float(
            np.mean(passed * (trials - passed) / (trials * (trials - 1)))
        )
    sampled = [t.arrays()[2][t.arrays()[1]] for t in trajectories]
    if any(of.size for of in sampled):
        metrics["eval/entropy"] = float(-np.concatenate(sampled).mean(dtype=np.float64))
    if any(t.task.outputs for t in trajectories):
        found = np.array([t.outputs_found for t in trajectories]).reshape(shape)
        for k in range(1, min(MAX_K, trials) + 1):
            both = (success & found).sum(axis=1)
            add(f"eval/pass^{k}_with_outputs", pass_hat_k(both, trials, k))
    if all(t.task.reward_basis for t in trajectories):
        rewards = [tau2_reward(t) for t in trajectories]
        passed = np.array([reward == 1 for reward in rewards]).reshape(shape).sum(axis=1)
        for k in range(1, min(MAX_K, trials) + 1):
            add(f"eval/tau2_pass^{k}", pass_hat_k(passed, trials, k))
        metrics["eval/tau2_unjudged"] = float(np.mean([reward is None for reward in rewards]))
    metrics |= {f"eval/{name}": value for name, value in behaviour(trajectories).items()}
    metrics |= {f"eval/{name}": value for name, value in user_faults(trajectories).items()}
    metrics["eval/judge/abstained"] = float(np.mean([t.turn_scores is None for t in trajectories]))
    metrics["eval/outputs_found"] = float(np.mean([t.outputs_found for t in trajectories]))
    metrics["eval/tasks"] = float(len(success))
    return metrics


def tau2_reward(trajectory: Trajectory) -> float | None:
    """The reward by the task's `reward_basis`, 0 where the episode did not come to its end; None
    where it hangs on assertions alone, which nobody has judged."""
    if trajectory.stop_reason not in ("user_stop", "transfer") or trajectory.success is None:
        return 0.0
    # Of a task with checks the verdict is theirs; its basis holds no database.
    return score_of(
        trajectory.task, trajectory.success, trajectory.outputs_found,
        calls_of(trajectory.segments), environment=trajectory.success,
        assertions=all(trajectory.assertions_met) if trajectory.assertions_met else None,
    ).reward


def save_results(
    run_dir: Path, step: int, env: Environment, trajectories: Sequence[Trajectory]
) -> None:
    """Writes `tau2/step_<step>/results.json` of the episodes of τ²-bench's own tasks, if any."""
    data = env.config.sandbox.data
    written = [t for t in trajectories if t.task.source == "tau2" and not any(t.sounds())]
    if not data or not written:
        return
    records = task_records(env.domain.name, data)
    written = [t for t in written if t.task.task_id in records]
    path = run_dir / "tau2" / f"step_{step:06d}" / RESULTS_FILE
    rewards = [tau2_reward(t) for t in written]
    write_results(path, written, records, rewards, env.domain, env.config)


def summarise_maths(
    trajectories: Sequence[Trajectory], trials: int, draws: int, seed: int
) -> dict[str, float]:
    """Metrics of an evaluation's maths problems; pass@1 is the share of episodes that succeed."""
    success = np.array([bool(t.success) for t in trajectories]).reshape(-1, trials)
    per_task = success.mean(axis=1)
    low, high = bootstrap_interval(per_task, draws, np.random.default_rng([seed, 1]))
    name = "eval/maths_pass@1"
    metrics = {name: float(per_task.mean()), f"{name}_low": low, f"{name}_high": high}
    more = maths_behaviour(trajectories)
    return metrics | {f"eval/maths_{key}": value for key, value in more.items()}


def held_out(env: Environment, count: int) -> list[Task]:
    """`count` held-out tasks, and as many maths problems as an evaluation takes."""
    maths = env.maths.held_out_tasks if env.maths else []
    return [*env.held_out_tasks[:count], *maths[: env.config.eval.maths_tasks]]


def by_kind(trajectories: Sequence[Trajectory]) -> tuple[list[Trajectory], list[Trajectory]]:
    """(those of tool tasks, those of maths problems), each in order."""
    tools = [t for t in trajectories if t.task.kind == "tool"]
    return tools, [t for t in trajectories if t.task.kind == "maths"]


def modalities(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of a training step: the share of spoken episodes, pass rates by modality and their gap."""
    spoken = np.array([any(t.sounds()) for t in trajectories])
    success = np.array([bool(t.success) for t in trajectories])
    if not spoken.any():
        return {}
    metrics = {"train/spoken": float(spoken.mean())}
    for name, part in (("spoken", spoken), ("written", ~spoken)):
        if part.any():
            metrics[f"train/pass_rate_{name}"] = float(success[part].mean())
    if not spoken.all():
        metrics["train/modality_gap"] = (
            metrics["train/pass_rate_written"] - metrics["train/pass_rate_spoken"]
        )
    return metrics


def _mean_of(values: Bool[np.ndarray, "P n"], counts: Bool[np.ndarray, "P n"]) -> np.ndarray:
    """Per task the mean over the trials that count, of the tasks that have any."""
    number = counts.sum(axis=1)
    return ((values & counts).sum(axis=1) / np.maximum(number, 1))[number > 0]


def require_some(trajectories: Sequence[Trajectory]) -> None:
    """Raises LLMError where the infrastructure broke every one: to go on would be of no use."""
    if all(t.stop_reason == "infrastructure_error" for t in trajectories):
        reason = trajectories[-1].segments[-1].info["failure"]
        raise LLMError("outage", f"all {len(trajectories)} episodes are broken; the last one:"
                       f" {reason}. Once that is mended, --workdir continues the run from its last"
                       " checkpoint")


def behaviour(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means per episode: turns, waits (messages that ask the user something), tokens, stops.

    "broken": share that an outside failure ended.
    """
    count = len(trajectories)
    turns = [t.turns for t in trajectories]
    stops = [t.stop_reason for t in trajectories]
    return {
        "turns": sum(map(len, turns)) / count,
        "waits": sum("?" in s.message for ts in turns for s in ts) / count,
        "malformed": sum("malformed" in s.info for ts in turns for s in ts) / count,
        "episode_tokens": sum(t.num_tokens for t in trajectories) / count,
        "transfers": stops.count("transfer") / count,
        "broken": stops.count("infrastructure_error") / count,
        "truncated": sum(stop in CUT_OFF for stop in stops) / count,
    }


def user_faults(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Shares of the episodes whose users were checked: those at fault, and by kind of fault; the
    pass rate of the others. Empty where nobody checked."""
    checked = [t for t in trajectories if t.user_faults is not None]
    if not checked:
        return {}
    count = len(checked)
    found = {"user/checked": count / len(trajectories),
             "user/at_fault": sum(bool(t.user_faults) for t in checked) / count}
    for kind in KINDS:
        named = sum(any(f.startswith(f"{kind}:") for f in t.user_faults or ()) for t in checked)
        found[f"user/{kind}"] = named / count
    sound = [bool(t.success) for t in checked if not t.user_faults]
    return found | ({"user/pass_rate_without_fault": sum(sound) / len(sound)} if sound else {})


def maths_behaviour(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means per maths problem: tokens, answers given in a form that is understood, stops."""
    count = len(trajectories)
    stops = [t.stop_reason for t in trajectories]
    return {
        "episode_tokens": sum(t.num_tokens for t in trajectories) / count,
        "answered": sum(any("answer" in s.info for s in t.turns) for t in trajectories) / count,
        "malformed": stops.count("malformed") / count,
        "truncated": stops.count("max_tokens") / count,
    }


def maths_metrics(trajectories: Sequence[Trajectory], others: int) -> dict[str, float]:
    """Metrics of a training step's maths problems, of which there may be none, beside `others`."""
    if not trajectories:
        return {}
    metrics = {f"maths/{name}": value for name, value in maths_behaviour(trajectories).items()}
    return metrics | {
        "maths/pass_rate": float(np.mean([bool(t.success) for t in trajectories])),
        "maths/share": len(trajectories) / (len(trajectories) + others),
    }


def evaluate_run(config: RunConfig, step: int, parts: Parts) -> dict[str, float]:
    """Evaluates a checkpoint of the run in `config.workdir` (step -1: the newest).

    parts: those that the run began with.

    Users, judge, lengths and tasks may be others than the run's. Prints the table and writes
    `evaluation-<step>.json` to the run directory: the numbers, and as `changed` the fields of the
    config that are not the run's, as [of the run, now].
    Raises ConfigError if there is no such run, CheckpointError if there is no such checkpoint.
    """
    config = completed(config)
    hosts.check(config)
    run_dir = Path(config.workdir).expanduser()
    changed = require_run(config, run_dir, record(parts))
    checkpoints = Checkpoints(run_dir, config.checkpoint)
    step = newest(checkpoints, run_dir, step)
    env = Environment.from_config(config, parts.domain, parts.tasks, parts.user)
    engine, where = env.engine(), env.evaluation()
    state = restore(config, env, make_updater(config, env), checkpoints, step)
    try:
        env.check_users()
        with (
            LiveView(0, config.log.live, str(run_dir), hosts.output()) as view,
            Judge(config.judge, hosts.own(run_dir / "judge"), view.log, parts.judge,
                  config.user, where.scripts) as judge,
        ):
            judge.check()
            for key, (before, now) in changed.items():
                view.log(f"not as the run: config.{key}: {before!r} -> {now!r}")
            values, trajectories = evaluate_modalities(
                engine, state.policy, where, held_out(where, config.eval.final_tasks), "eval",
                lambda done, total: view.phase(f"evaluating step {step}", done, total), judge,
            )
    finally:
        env.close()
    checkpoints.close()
    if hosts.first():
        write_json(run_dir / f"evaluation-{step}.json",
                   {**values, **({"changed": changed} if changed else {})})
        save_results(run_dir, step, where, trajectories)
        print_summary({}, values)
    return values
