"""A whole run on one page: start or resume, then step by step, with evaluations around it.

By default GRPO as in arXiv 2402.03300 with TARL's trajectory reward (arXiv 2509.14480): groups of
episodes of one task, one scalar reward per episode, its group-relative advantage on every token
that the policy sampled, PPO's clipped loss averaged over tokens. docs/credit.md has the choices.

From here to the loss: `train` -> `Learner.update` (learn.py) -> `Updater.update` -> `_gradient`
(rl/update.py) -> `loss_sum` (rl/objective.py) -> `clipped_policy_loss` (rl/losses.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tarl_jax.config import RunConfig
from tarl_jax.models.decoder import Params
from tarl_jax.models.hf_config import completed
from tarl_jax.parallel import hosts
from tarl_jax.runs.curves import plot_curves
from tarl_jax.runs.directory import write_json
from tarl_jax.runs.stopping import Interrupted
from tarl_jax.runs.summary import print_summary
from tarl_jax.training.bookkeeping import Clock, RunLog, compile_programs
from tarl_jax.training.collect import Collector, Left
from tarl_jax.training.differences import difference
from tarl_jax.training.evaluation import evaluate_modalities, held_out, require_some
from tarl_jax.training.mixture import Mixture
from tarl_jax.training.parts import Parts, checked
from tarl_jax.training.refill import refilled
from tarl_jax.training.rewarding import judged, rewarded
from tarl_jax.training.run import (
    Run,
    State,
    honour_stop,
    naming_the_last_good,
    open_run,
    save,
    settle,
    stopped,
)
from tarl_jax.training.start import start, task_mixture

Summary = dict[str, dict[str, float]]


def train(config: RunConfig, parts: Parts | None = None, table: bool = False) -> Summary:
    """Runs, or continues, the run of `config`; returns its metrics "base", "trained" and
    "difference", the last with intervals paired by task.

    The former are empty where `eval.before` is off.

    Args:
      parts: the user's own, in place of what the config names.
      table: whether it ends with base and trained side by side.

    Raises a `TarlError` with a message for the user: ConfigError, InputError, CheckpointError,
    NonFiniteError, LLMError, SpeechError or Interrupted.
    """
    config = completed(config)
    rl = config.rl
    with contextlib.ExitStack() as stack:
        # ---- start or resume ----------------------------------------------------------------
        run = stack.enter_context(open_run(config, checked(parts, config)))
        state = start(run)
        log = stack.enter_context(RunLog(run, state.step))
        with run.stop.at_once():
            compile_programs(run, state)
        mixture = task_mixture(run, state)
        collector = stack.enter_context(contextlib.closing(Collector(
            config, run.engine, run.env, mixture, run.run_dir / "ahead", run.judge.begin,
            run.judge.objection if config.rollout.interruptions else None,
            run.journals, lambda: bool(run.stop.received) and not hosts.several(),
        )))
        collector.restore(state.step)
        base = log.found("base", 0)
        if config.eval.before and not base:
            base = _evaluation(run, log, "base", 0, state.policy)
        while state.step < rl.steps:
            if _is_due(config, log, state.step):
                collector.settle()
                try:
                    _evaluation(run, log, "eval", state.step, state.policy)
                except Interrupted:
                    if not run.checkpoints.has(state.step):
                        save(run, state, mixture, collector)
                    raise
            step, clock = state.step + 1, Clock(run)
            with log.traced(step):
                # ---- collect ----------------------------------------------------------------
                with clock.phase("rollout"), _leaving(run, state, mixture, collector):
                    collected = collector.collect(step, state.policy)
                    collector.play_ahead(step, state.train.params, state.train.frozen)
                # ---- judge, reward ----------------------------------------------------------
                with clock.phase("judge"):
                    trajectories = judged(run.judge, collected.trajectories)
                    require_some(trajectories)
                    values = rewarded(trajectories, config, run.learner.table, run.parts.reward)
                if config.rollout.refills:
                    with clock.phase("refill"), _leaving(run, state, mixture, collector):
                        trajectories, more = refilled(
                            run, mixture, collector, step, state.policy, trajectories
                        )
                        values |= more
                # ---- credit, update ---------------------------------------------------------
                with clock.phase("update"), naming_the_last_good(run, step):
                    credit = run.learner.credit(
                        state.train, state.reference, trajectories, state.baselines
                    )
                    learned, losses = run.learner.update(
                        step, state.train, state.reference, trajectories, credit
                    )
                    state = State(step, learned, state.reference, credit.baselines)
                # ---- log --------------------------------------------------------------------
                asked = hosts.total(run.env.user_counts() | run.judge.counts())
                values |= losses | collected.metrics() | asked | clock.metrics()
                log.step(step, values, trajectories, credit.advantages)
            # ---- checkpoint -----------------------------------------------------------------
            last = step == rl.steps
            # Read once: a stop after this line waits for the next.
            stopping = max(hosts.gathered(run.stop.received, run.checkpoints.failure()))
            if step % config.checkpoint.every == 0 or last or stopping:
                save(run, state, mixture, collector)
            if stopping:
                raise stopped(run, f"after step {step}", stopping)
        # ---- evaluate and report ------------------------------------------------------------
        trained = base  # where there is nothing but the warm start
        if state.step > 0 or not base:
            trained = log.found("final", state.step) or _evaluation(
                run, log, "final", state.step, state.policy
            )
        settle(run, collector)
        change = hosts.from_first(
            lambda: difference(run.run_dir, config.eval.bootstrap, config.eval.seed)
        )
        summary = {"base": base, "trained": trained, "difference": change}
        hosts.from_first(lambda: _report(run.run_dir, summary))

        def say() -> None:
            if table:
                print_summary(base, trained, hosts.output(), change)
            run.view.log(_what_next(run))

        run.view.at_end(say)
        return summary


@contextlib.contextmanager
def _leaving(run: Run, state: State, mixture: Mixture, collector: Collector) -> Iterator[None]:
    """Of a step whose episodes are in the journal: ends the run in it where that was asked for."""
    try:
        yield
    except Left:
        if not run.checkpoints.has(state.step):
            save(run, state, mixture, collector)
        where = f"in step {state.step + 1}, whose episodes go on from there"
        raise stopped(run, where, run.stop.received) from None


def _is_due(config: RunConfig, log: RunLog, step: int) -> bool:
    """Whether an evaluation belongs behind a step, and no earlier start has made it."""
    every = config.eval.every
    return bool(every and step and step % every == 0) and not log.found("eval", step)


def _evaluation(
    run: Run, log: RunLog, kind: str, step: int, policy: Params
) -> dict[str, float]:
    """Plays held-out tasks, logs and returns the metrics; kind: "base", "eval" or "final"."""
    config = run.config.eval
    tasks = held_out(run.evaluation, config.tasks if kind == "eval" else config.final_tasks)
    begun = time.perf_counter()
    name = {"base": "evaluating the base", "final": "evaluating the trained policy"}.get(
        kind, "evaluating")

    def progress(done: int, total: int) -> None:
        run.view.phase(name, done, total)
        honour_stop(run, f"while {name}")

    # Base and final play the very same episodes.
    stream = f"eval-{step}" if kind == "eval" else "eval"
    journal = run.journals.of(f"{kind}-{step}") if run.journals else None
    values, trajectories = evaluate_modalities(
        run.engine, policy, run.evaluation, tasks, stream, progress, run.judge, journal
    )
    values["seconds/eval"] = time.perf_counter() - begun
    log.evaluation(step, kind, values, trajectories)
    if run.journals:
        run.journals.done(f"{kind}-{step}")
    return values


def _what_next(run: Run) -> str:
    """Where everything is, and the commands that go on from there."""
    where, command = run.run_dir, "python -m tarl_jax"
    twice = 2 * max(run.config.rl.steps, 1)
    return "\n".join((
        f"{where}: curves.png, summary.json, metrics.jsonl, trajectories/, checkpoints/",
        f"  look at it   {command}.view {where}",
        f"  evaluate it  {command}.evaluate {where}",
        f"  go on        {command}.main {where} --config.rl.steps={twice}",
        f"  export it    {command}.export {where} --out=DIR",
    ))


def _report(run_dir: Path, summary: Summary) -> None:
    plot_curves(run_dir)
    write_json(run_dir / "summary.json", summary)
