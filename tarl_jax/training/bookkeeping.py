"""What a run writes down while it trains: metrics, episodes, clocks, a profile."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Self

import jax
import numpy as np

from tarl_jax.parallel import hosts
from tarl_jax.parallel.compilations import all_compilations
from tarl_jax.runs import metrics
from tarl_jax.runs.curves import plot_curves
from tarl_jax.runs.directory import flat
from tarl_jax.runs.wandb_copy import WandbCopy
from tarl_jax.training.differences import keep, per_task
from tarl_jax.training.evaluation import by_kind, save_results
from tarl_jax.training.run import Run, State
from tarl_jax.types import Trajectory


class Clock:
    """Times the phases of a step, and shows which one is under way.

    Attributes:
      seconds: of each phase that has ended, by its name.
    """

    def __init__(self, run: Run):
        self._run = run
        self._begun = time.perf_counter()
        self._compiled = run.compilations
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._run.view.phase(name)
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun

    def metrics(self) -> dict[str, float]:
        """"seconds/…" of each phase and of all since the clock was made, and "compilations"."""
        return {f"seconds/{name}": value for name, value in self.seconds.items()} | {
            "seconds/step": time.perf_counter() - self._begun,
            "compilations": self._run.compilations - self._compiled,
        }


def by_turn(trajectory: Trajectory, advantage: float | np.ndarray) -> list[list[float]]:
    """`Trajectory.advantages` of an advantage of all sampled tokens, or of one per token [S]."""
    found, begin = [], 0
    whole = np.broadcast_to(advantage, trajectory.num_tokens)
    for segment in trajectory.segments:
        end = begin + len(segment.token_ids)
        if segment.role == "agent":
            own = whole[begin:end][np.array(segment.sampled, bool)]
            same = len(own) > 0 and bool(np.all(own == own[0]))
            found.append([round(float(a), 6) for a in (own[:1] if same else own)])
        begin = end
    return found


class RunLog:
    """The files that a run adds to; the first process alone writes them. A context manager.

    resume_step: lines of later steps are dropped, for the run writes them again.
    """

    def __init__(self, run: Run, resume_step: int):
        self._run = run
        self._writer = (
            metrics.MetricsWriter(run.run_dir, resume_step=resume_step) if hosts.first() else None
        )
        project = run.config.log.wandb
        self._copy = (
            WandbCopy(run.run_dir, project, flat(run.config)) if project and hosts.first() else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()
        if self._copy:
            self._copy.close()

    def step(
        self, step: int, values: dict[str, float], trajectories: Sequence[Trajectory],
        advantages: Sequence[float | np.ndarray],
    ) -> None:
        """Of a training step: its metrics and the first of its episodes.

        advantages: as in `Credit`; they are written with the episodes.
        """
        kept = [
            dataclasses.replace(trajectory, advantages=by_turn(trajectory, advantage))
            for trajectory, advantage in zip(
                trajectories[: self._run.config.log.trajectories], advantages, strict=False
            )
        ]
        if kept:
            hosts.from_first(
                lambda: metrics.append_trajectories(self._run.run_dir, step, kept)
            )
        self._write(step, "train", values)  # last: where it is there, so are they
        self._run.view.update(step, values)

    def evaluation(
        self, step: int, kind: str, values: dict[str, float], trajectories: Sequence[Trajectory]
    ) -> None:
        """Of an evaluation: its metrics and some episodes of each kind; τ²-bench's results, all."""
        tools, maths = by_kind(trajectories)
        spoken = [t for t in tools if any(t.sounds())]
        written = [t for t in tools if not any(t.sounds())]
        kept = [*written[:64], *maths[:16], *spoken[:16]]
        hosts.from_first(
            lambda: metrics.append_trajectories(self._run.run_dir, step, kept, kind="eval")
        )
        hosts.from_first(
            lambda: save_results(self._run.run_dir, step, self._run.evaluation, trajectories)
        )
        if kind != "eval":
            trials, own = self._run.config.eval.trials, self._run.config.eval.spoken
            first = tools[: len(tools) // (1 + len(own))]  # behind them: the same tasks, spoken
            hosts.from_first(lambda: keep(self._run.run_dir, kind, per_task(first, trials)))
        self._write(step, kind, values)
        hosts.from_first(lambda: plot_curves(self._run.run_dir))
        self._run.view.update(step, values)

    def found(self, kind: str, step: int) -> dict[str, float]:
        """The metrics of an evaluation that an earlier start has made; {} if there is none."""
        for record in hosts.from_first(lambda: metrics.read_metrics(self._run.run_dir)):
            if record["kind"] == kind and record["step"] == step:
                return {k: v for k, v in record.items() if k not in ("step", "kind")}
        return {}

    @contextlib.contextmanager
    def traced(self, step: int) -> Iterator[None]:
        """Records what the step does, for Perfetto, where it is the one that was asked for."""
        run = self._run
        if step != run.config.log.trace_step or not hosts.first():
            yield
            return
        with jax.profiler.trace(run.run_dir / "trace", create_perfetto_trace=True):
            yield
        run.view.log(f"trace of step {step}: {run.run_dir / 'trace'}, for ui.perfetto.dev")

    def _write(self, step: int, kind: str, values: dict[str, float]) -> None:
        def write() -> None:
            assert self._writer is not None  # the first process has one
            self._writer.write(step, kind, values)
            if self._copy:
                self._copy.write(step, values)

        hosts.from_first(write)


def compile_programs(run: Run, state: State) -> None:
    """Compiles all that the run will run, so that nothing is compiled in a step.

    Where no step is left, the rollouts alone.
    """
    begun, before = time.perf_counter(), all_compilations()
    run.engine.programs.compile(
        state.policy, progress=functools.partial(run.view.phase, "compiling rollouts")
    )
    config = run.config
    if state.step < config.rl.steps:
        run.updater.compile(
            state.train, run.learner.shapes(), config.rl.pack,
            functools.partial(run.view.phase, "compiling the update"),
            sound=bool(config.speech.share or config.curriculum.spoken),
        )
    compiled, read = (now - then for now, then in zip(all_compilations(), before, strict=True))
    earlier = f"; {read} of them by an earlier start" if read else ""
    run.view.log(f"{compiled + read} programs, compiled in {time.perf_counter() - begun:.0f} s"
                 f"{earlier}")
