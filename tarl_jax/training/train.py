"""The training loop: collect, judge, reward, update, log, checkpoint; and evaluations around it.

By default GRPO as in arXiv 2402.03300 with TARL's trajectory reward (arXiv 2509.14480): groups of
episodes of one task, one scalar reward per episode, its group-relative advantage on every token
that the policy sampled, PPO's clipped loss averaged over tokens. docs/credit.md has the choices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from tarl_jax.config import RunConfig
from tarl_jax.judge.service import Judge
from tarl_jax.models.decoder import Params
from tarl_jax.parallel import hosts
from tarl_jax.parallel.mesh import make_mesh, row_shards
from tarl_jax.rl.update import NonFiniteError, TrainState
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs import metrics as logs
from tarl_jax.runs.checkpoint import CheckpointError, Checkpoints, load_params, save_params
from tarl_jax.runs.curves import plot_curves
from tarl_jax.runs.directory import open_run_dir, write_json
from tarl_jax.runs.live import LiveView, print_summary
from tarl_jax.runs.stopping import Interrupted, StopRequest
from tarl_jax.training.collect import Collector
from tarl_jax.training.credit import reward
from tarl_jax.training.difficulty import medium_problems
from tarl_jax.training.evaluation import (
    behaviour,
    by_kind,
    evaluate,
    evaluate_modalities,
    held_out,
    maths_metrics,
    modalities,
    require_some,
)
from tarl_jax.training.learn import Learner
from tarl_jax.training.mixture import Mixture
from tarl_jax.training.policy import make_updater, restore, starting_policy
from tarl_jax.types import Trajectory


def train(config: RunConfig) -> dict[str, dict[str, float]]:
    """Runs, or continues, the run of `config`; returns {"base": metrics, "trained": metrics}.

    Raises ConfigError, CheckpointError, NonFiniteError, LLMError or Interrupted, each with a
    message for the user.
    """
    hosts.check(config)
    run_dir = hosts.from_first(lambda: open_run_dir(config))
    hosts.require_shared(run_dir)
    output = hosts.output()
    with (
        LiveView(config.rl.steps, config.log.live, str(run_dir), output) as view,
        StopRequest() as stop,
    ):
        run = _Run(config, run_dir, view, stop)
        try:
            return run.go()
        finally:
            run.close()


class _Run:
    def __init__(self, config: RunConfig, run_dir: Path, view: LiveView, stop: StopRequest):
        self.config, self.run_dir, self.view, self.stop = config, run_dir, view, stop
        self.mesh = make_mesh(config.mesh)
        view.phase("building the shop and its tasks")
        self.env = Environment.from_config(config)
        self.env.check_users()
        self.judge = Judge(config.judge, hosts.own(run_dir / "judge"), view.log)
        self.judge.check()
        self.engine = self.env.engine()
        self.updater = make_updater(config, self.env)
        self.learner = Learner(config, self.updater, row_shards(self.mesh), run_dir)
        self.checkpoints = Checkpoints(run_dir, config.checkpoint)
        self.writer: logs.MetricsWriter | None = None
        self.collector: Collector | None = None
        self.mixture: Mixture | None = None

    def close(self) -> None:
        if self.collector:
            self.collector.close()
        self.env.close()
        self.judge.close()
        self.checkpoints.close()
        if self.writer:
            self.writer.close()

    def go(self) -> dict[str, dict[str, float]]:
        step, state, reference = self._start()
        if hosts.first():
            self.writer = logs.MetricsWriter(self.run_dir, resume_step=step)
        self.view.phase("compiling")
        self.engine.programs.compile(state.policy)
        self.updater.compile(state, self.learner.shapes(), self.config.rl.pack)
        self.mixture = self._mixture(state.policy if not step else None)
        self._require_same_schedule(step)
        self.collector = Collector(
            self.config, self.engine, self.env, self.mixture, self.run_dir / "ahead",
            self.judge.begin,
            self.judge.objection if self.config.rollout.interruptions else None,
        )
        base = self._found("base") or self._evaluation("base", 0, state.policy)
        while step < self.config.rl.steps:
            step += 1
            with self._traced(step):
                state = self._step(step, state, reference)
            last = step == self.config.rl.steps
            every = self.config.eval.every
            if every and step % every == 0 and not last:
                self._evaluation("eval", step, state.policy)
            # Read once: a stop after this line waits for the next.
            stopping = max(hosts.gathered(self.stop.received))
            if step % self.config.checkpoint.every == 0 or last or stopping:
                self._save(step, state)
            if stopping:
                raise self._stopped(f"after step {step}", stopping)
        trained = base  # where there is nothing but the warm start
        if step > 0:
            trained = self._found("final") or self._evaluation("final", step, state.policy)
        summary = {"base": base, "trained": trained}
        hosts.from_first(lambda: plot_curves(self.run_dir))
        hosts.from_first(lambda: write_json(self.run_dir / "summary.json", summary))
        return summary

    def _start(self) -> tuple[int, TrainState, Params | None]:
        """(last finished step, state, reference parameters), from a checkpoint or warm start."""
        config = self.config
        steps = hosts.from_first(lambda: self.checkpoints.steps)
        if steps:
            state = restore(config, self.env, self.updater, self.checkpoints, steps[-1])
            self.learner.baselines = self.checkpoints.meta(steps[-1]).get("baselines", {})
            self.view.log(f"resuming {self.run_dir} after step {steps[-1]}")
            reference = state.policy
        else:
            reference = starting_policy(
                config, self.env, self.updater, self._warm_progress, self.view.log,
                self._warm_score,
            )
            state = self.updater.init(reference)
        if config.rl.kl_coef > 0:
            folder = self.run_dir / "reference"
            if hosts.from_first(folder.exists):
                reference = load_params(folder, self.updater.policy_shapes)
            else:
                save_params(folder, reference)
        if not steps:
            self._save(0, state)
        return (steps[-1] if steps else 0), state, reference if config.rl.kl_coef > 0 else None

    def _mixture(self, base: Params | None) -> Mixture:
        """The tasks of every step; `base` is the policy that no step has changed yet."""
        config, maths = self.config, self.env.maths
        problems = medium_problems(
            self.engine, base, self.env, self.run_dir,
            lambda done, total: self.view.phase("trying the maths problems", done, total),
        )
        if maths is not None:
            self.view.log(f"maths: {len(problems)} of {len(maths.train_tasks)} problems to train"
                          f" on; {maths.too_long} were too long")
        return Mixture(self.env.train_tasks, problems, config.rollout.tasks_per_step,
                       config.maths, config.seed, config.speech, config.curriculum)

    def _require_same_schedule(self, step: int) -> None:
        """Raises CheckpointError where the run's checkpoint was made by another schedule."""
        assert self.mixture is not None  # `go` made it
        kept = self.checkpoints.meta(step).get("curriculum", {})
        now = self.mixture.state(step)
        if kept and kept != now:
            raise CheckpointError(
                f"{self.run_dir}: at step {step} its curriculum stood at {kept}, and this config's"
                f" at {now}: use the maths problems and the config that it began with"
            )

    def _save(self, step: int, state: TrainState) -> None:
        # What is frozen is where it came from: it is not written again.
        meta = {"step": step, "config": self.config.name, "baselines": self.learner.baselines}
        if self.mixture:
            meta["curriculum"] = self.mixture.state(step)
        if self.collector:
            self.collector.save()
        self.checkpoints.save(step, dataclasses.replace(state, frozen={}), meta)
        if self.collector:
            self.collector.forget(self.checkpoints.steps[0])

    def _honour_stop(self, where: str) -> None:
        if self.stop.received and not hosts.several():  # who stop between steps alone, together
            raise self._stopped(where, self.stop.received)

    def _stopped(self, where: str, number: int) -> Interrupted:
        return Interrupted(f"stopped {where}; go on with --workdir={self.run_dir}", number)

    def _warm_progress(self, what: str, step: int, steps: int, loss: float) -> None:
        note = f"loss {loss:.3f}" if math.isfinite(loss) else ""
        self.view.phase(f"warm start: {what}", step, steps, note)
        self._honour_stop("in the warm start, which begins again")

    def _warm_score(self, params: Params) -> float:
        """Share of training tasks passed: the first ones, as many as an evaluation has."""
        if not self.engine.programs.compilations:
            self.engine.programs.compile(params)
        tasks = self.env.train_tasks[: self.config.eval.tasks]
        # The warm start is shared by runs of every seed: its episodes have a seed of their own.
        seeded = dataclasses.replace(self.config, seed=self.config.warm_start.seed)
        env = dataclasses.replace(self.env, config=seeded)
        values, _ = evaluate(self.engine, params, env, tasks, "warm start")
        passed = values["eval/pass^1"]
        self.view.log(f"warm start: passes {passed:.3f} of {len(tasks)} training tasks")
        return passed

    # ---- one step ---------------------------------------------------------------------------

    def _step(self, step: int, state: TrainState, reference: Params | None) -> TrainState:
        begun = time.perf_counter()
        compiled = self._compiled()
        self.view.phase("rollout")
        assert self.collector is not None  # `go` made it
        collected = self.collector.collect(step, state.policy)
        if self.config.rl.ahead and step < self.config.rl.steps:
            self.collector.play_ahead(step + 1, state.policy)
        after_rollout = time.perf_counter()
        self.view.phase("judge")
        trajectories = self._judged(collected.trajectories)
        require_some(trajectories)
        values = self._reward(trajectories)
        after_judge = time.perf_counter()
        self.view.phase("update")
        try:
            state, losses = self.learner.learn(step, state, reference, trajectories)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"step {step}: {error}. Nothing of this step was saved; the last good state"
                f" is the checkpoint of step {self.checkpoints.steps[-1]}. Lower"
                f" rl.learning_rate and start from it in a new run, or look at the"
                f" trajectories in {self.run_dir}"
            ) from error
        done = time.perf_counter()
        counts = hosts.total(self.env.user_counts() | self.judge.counts())
        values |= losses | collected.stats.metrics() | counts | {
            "seconds/rollout": after_rollout - begun,
            "seconds/judge": after_judge - after_rollout,
            "seconds/update": done - after_judge,
            "seconds/step": done - begun,
            "compilations": self._compiled() - compiled,
        }
        self._write(step, "train", values)
        kept = trajectories[: self.config.log.trajectories]
        if kept:
            hosts.from_first(lambda: logs.append_trajectories(self.run_dir, step, kept))
        self.view.update(step, values)
        return state

    def _judged(self, played: Sequence[Trajectory]) -> list[Trajectory]:
        """Those of all processes, each judged where it was played."""
        for t, verdict in zip(played, self.judge.judge_all(played), strict=True):
            if verdict:
                t.turn_scores, t.judge_notes = verdict.scores, verdict.notes
        return hosts.joined(played)

    def _reward(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Rewards in place; returns metrics, those of maths problems apart."""
        for t in trajectories:
            earned = reward(t, self.config, self.learner.table)
            t.reward, t.reward_parts = earned.total, dataclasses.asdict(earned)
        trajectories, maths = by_kind(trajectories)
        values = maths_metrics(maths, len(trajectories))
        if not trajectories:
            return values
        rewards = {
            f"reward/{part}": float(np.mean([t.reward_parts[part] for t in trajectories]))
            for part in ("terminal", "turns", "major")
        }
        major = [-1 in (t.turn_scores or ()) for t in trajectories]
        success = [bool(t.success) for t in trajectories]
        values |= {f"rollout/{k}": v for k, v in behaviour(trajectories).items()}
        values |= modalities(trajectories)
        return values | rewards | {
            "reward/mean": float(np.mean([t.reward for t in trajectories])),
            "train/pass_rate": float(np.mean(success)),
            "train/clean_pass": float(np.mean(np.array(success) & ~np.array(major))),
            "judge/major_share": float(np.mean(major)),
            "judge/abstained": float(np.mean([t.turn_scores is None for t in trajectories])),
        }

    # ---- evaluation -------------------------------------------------------------------------

    def _evaluation(self, kind: str, step: int, params: Params) -> dict[str, float]:
        config = self.config.eval
        if self.collector:
            self.collector.settle()
        count = config.tasks if kind == "eval" else config.final_tasks
        tasks = held_out(self.env, count)
        begun = time.perf_counter()
        name = {"base": "evaluating the base", "final": "evaluating the trained policy"}.get(
            kind, "evaluating")

        def progress(done: int, total: int) -> None:
            self.view.phase(name, done, total)
            if kind != "eval":
                self._honour_stop(f"while {name}")

        # Base and final play the very same episodes.
        stream = f"eval-{step}" if kind == "eval" else "eval"
        values, trajectories = evaluate_modalities(
            self.engine, params, self.env, tasks, stream, progress, self.judge
        )
        values["seconds/eval"] = time.perf_counter() - begun
        self._write(step, kind, values)
        tools, maths = by_kind(trajectories)
        spoken = [t for t in tools if any(t.sounds())]
        read = [t for t in tools if not any(t.sounds())]
        kept = [*read[:64], *maths[:16], *spoken[:16]]
        hosts.from_first(lambda: logs.append_trajectories(self.run_dir, step, kept, kind="eval"))
        self.view.update(step, values)
        return values

    def _write(self, step: int, kind: str, values: dict[str, float]) -> None:
        def write() -> None:
            assert self.writer is not None  # `go` opens it before there is anything to write
            self.writer.write(step, kind, values)

        hosts.from_first(write)

    @contextlib.contextmanager
    def _traced(self, step: int) -> Iterator[None]:
        """Records what the step does, for Perfetto, where it is the one that was asked for."""
        if step != self.config.log.trace_step or not hosts.first():
            yield
            return
        with jax.profiler.trace(self.run_dir / "trace", create_perfetto_trace=True):
            yield
        self.view.log(f"trace of step {step}: {self.run_dir / 'trace'}, for ui.perfetto.dev")

    def _found(self, kind: str) -> dict[str, float]:
        """The metrics of an evaluation that an earlier start has made; {} if there is none."""
        for record in hosts.from_first(lambda: logs.read_metrics(self.run_dir)):
            if record["kind"] == kind and record["step"] in (0, self.config.rl.steps):
                return {k: v for k, v in record.items() if k not in ("step", "kind")}
        return {}

    def _compiled(self) -> int:
        return self.engine.programs.compilations + self.updater.compilations


def run_and_report(config: RunConfig) -> None:
    """`train`, then the table of base and trained side by side."""
    summary = train(config)
    if hosts.first():
        print_summary(summary["base"], summary["trained"])
