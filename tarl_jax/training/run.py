"""What a run is made of, and where it stands; built once, handed on, and changed by nobody."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import jax

from tarl_jax.config import InputError, RunConfig
from tarl_jax.judge.service import Judge
from tarl_jax.models.decoder import Params
from tarl_jax.parallel import hosts
from tarl_jax.parallel.files import WriteError, disk, sweep
from tarl_jax.parallel.lock import Lock
from tarl_jax.parallel.mesh import make_mesh, rollout_mesh, row_shards
from tarl_jax.rl.update import NonFiniteError, TrainState, Updater
from tarl_jax.rollout.environment import AnyEngine, Environment
from tarl_jax.rollout.journal import Journals
from tarl_jax.rollout.lengths import require_room
from tarl_jax.rollout.outside import OutsideEngine
from tarl_jax.runs import wandb_copy
from tarl_jax.runs.checkpoint import Checkpoints
from tarl_jax.runs.copies import Copy
from tarl_jax.runs.directory import (
    changes,
    claimed_run_dir,
    device_names,
    open_run_dir,
    require_contents,
)
from tarl_jax.runs.directory import checkpoints as saved_steps
from tarl_jax.runs.live import LiveView
from tarl_jax.runs.stopping import Interrupted, StopRequest
from tarl_jax.sandbox.idle import idle
from tarl_jax.training.collect import Collector
from tarl_jax.training.credit import Baselines
from tarl_jax.training.estimate import estimate
from tarl_jax.training.learn import Learner, kept_table
from tarl_jax.training.mixture import Mixture
from tarl_jax.training.parts import Parts, record
from tarl_jax.training.policy import make_updater


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of.

    Attributes:
      env: domain, tasks, users. evaluation: the same, of the tasks that evaluations play.
      judge: of finished episodes. engine: of rollouts, on the device.
      updater: of the policy. learner: from episodes to updates.
      view: what the terminal shows. stop: whether someone asked the run to stop.
      lock: on the run directory, which the first process holds; None in the others.
      journals: of episodes under way; None: they are not kept.
      copy: of the run directory at `log.copy_to`, which the first process makes; None: none.
    """

    config: RunConfig
    parts: Parts
    run_dir: Path
    env: Environment
    evaluation: Environment
    judge: Judge
    engine: AnyEngine
    updater: Updater
    learner: Learner
    checkpoints: Checkpoints
    view: LiveView
    stop: StopRequest
    lock: Lock | None
    journals: Journals | None
    copy: Copy | None

    @property
    def compilations(self) -> int:
        return self.engine.programs.compilations + self.updater.compilations


@dataclasses.dataclass(frozen=True)
class State:
    """Where a run stands after a step; all of it is in the step's checkpoint.

    Attributes:
      step: the last one that is finished; 0: none.
      train: parameters and optimiser.
      reference: what a KL penalty holds on to, the policy of the start; None without a penalty.
      baselines: of `rl.advantage = "single_stream"`.
    """

    step: int
    train: TrainState
    reference: Params | None
    baselines: Baselines

    @property
    def policy(self) -> Params:
        return self.train.policy


@contextlib.contextmanager
def open_run(config: RunConfig, parts: Parts) -> Iterator[Run]:
    """Builds what a run is made of, and ends what is open of it.

    Raises what a command prints as one line: ConfigError, InputError, LLMError, SpeechError.
    """
    hosts.check(config)
    mesh = make_mesh(config.mesh)
    rollout_mesh(config.mesh)  # before anything is written
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        locks: list[Lock] = []

        def claim() -> Path:
            run_dir, lock = stack.enter_context(claimed_run_dir(config))
            locks.append(lock)
            sweep(run_dir)
            return open_run_dir(dataclasses.replace(config, workdir=str(run_dir)), record(parts))

        with _ended_by_signal(stop, "before the run began: nothing was written"), stop.at_once():
            run_dir = hosts.from_first(claim)
        hosts.require_shared(run_dir)
        view = stack.enter_context(
            LiveView(config.rl.steps, config.log.live, str(run_dir), hosts.output())
        )
        stop.say = view.log
        stack.enter_context(_ended_by_signal(
            stop, f"at once, between two saved steps; go on: python -m tarl_jax.main {run_dir}"
        ))
        with stop.at_once():
            view.log(f"on {', '.join(device_names())}, jax {jax.__version__}")
            copy = _copy(config, run_dir, view, stack)
            view.phase("building the environment and its tasks")
            env = Environment.from_config(config, parts.domain, parts.tasks, parts.user)
            stack.callback(env.close)
            said = hosts.from_first(
                lambda: changes(run_dir) + require_contents(run_dir, env.contents())
            )
            for line in said:
                view.log(line)
            require_enough(env)
            view.log(str(require_room(env)))
            rl = config.rl
            if 0 < rl.decay_steps < rl.steps:
                view.log(f"rl.decay_steps = {rl.decay_steps} of rl.steps = {rl.steps}: behind them"
                         f" the learning rate stays at {rl.final_rate:g} of its peak")
            if config.sandbox.data:
                view.log(str(idle(env.domain, [*env.train_tasks, *env.held_out_tasks])))
            env.check_users()
            judge = stack.enter_context(
                Judge(config.judge, hosts.own(run_dir / "judge"), view.log, parts.judge,
                      config.user, {**env.scripts, **env.evaluation().scripts})
            )
            judge.check()
            wandb_copy.check(config.log.wandb)
            evaluation = env.evaluation()
            done = max(hosts.from_first(lambda: saved_steps(run_dir)), default=0)
            for asked in estimate(config, env, evaluation, parts, done):
                for line in asked.lines():
                    view.log(line)
            updater = make_updater(config, env, parts.loss)
            shards = row_shards(mesh)
            learner = Learner(config, updater, shards, kept_table(config, run_dir), parts.advantage)
            checkpoints = stack.enter_context(_written_whole(run_dir, config, view))
            engine = env.engine()
            if isinstance(engine, OutsideEngine):
                stack.callback(engine.close)
        journals = Journals(run_dir / "journal") if config.rollout.journal else None
        if journals:
            stack.callback(journals.close)
        with _naming_what_is_saved(checkpoints, run_dir):
            yield Run(config, parts, run_dir, env, evaluation, judge, engine, updater, learner,
                      checkpoints, view, stop, locks[0] if locks else None, journals, copy)


def _copy(
    config: RunConfig, run_dir: Path, view: LiveView, stack: contextlib.ExitStack
) -> Copy | None:
    address = config.log.copy_to
    if not address:
        return None
    made: list[Copy] = []

    def make() -> None:
        made.append(stack.enter_context(Copy(run_dir, address, view.log)))

    hosts.from_first(make)
    view.log(f"copied to {address} after each checkpoint; it goes on from there with python -m"
             f" tarl_jax.main {address}")
    return made[0] if made else None

@contextlib.contextmanager
def _ended_by_signal(stop: StopRequest, where: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped {where}", stop.received or signal.SIGINT) from None


@contextlib.contextmanager
def _written_whole(run_dir: Path, config: RunConfig, view: LiveView) -> Iterator[Checkpoints]:
    """Checkpoints, of which the last one is waited for, however the run ends."""
    checkpoints = Checkpoints(run_dir, config.checkpoint)
    with contextlib.closing(checkpoints):
        try:
            yield checkpoints
            if error := checkpoints.failure(wait=True):
                raise error
        except Interrupted:  # it says that all is saved
            if error := checkpoints.failure(wait=True):
                raise error from None
            raise
        except BaseException as ending:
            error = checkpoints.failure(wait=True)
            if error and error is not ending:
                view.log(str(error))
            raise


@contextlib.contextmanager
def _naming_what_is_saved(checkpoints: Checkpoints, run_dir: Path) -> Iterator[None]:
    """Adds to a WriteError where the run goes on; what a disk raises elsewhere is one too."""
    try:
        with disk(run_dir):
            yield
    except WriteError as error:
        checkpoints.failure(wait=True)
        saved = checkpoints.steps
        on = f"it goes on from step {saved[-1]}" if saved else "it has no saved step yet"
        raise WriteError(f"{error}. The run has stopped; with --workdir={run_dir} {on}") from error


def require_enough(env: Environment) -> None:
    """Raises InputError where there are fewer tasks than a step takes."""
    wanted, there = env.config.rollout.tasks_per_step, len(env.train_tasks)
    if wanted > there:
        raise InputError(f"config.rollout.tasks_per_step = {wanted}: there are {there} tasks to"
                         " train on; lower it, or give more tasks")


def save(run: Run, state: State, mixture: Mixture | None = None,
         collector: Collector | None = None) -> None:
    """Writes what was played ahead of a step, and, in the background, its checkpoint."""
    meta = {"step": state.step, "config": run.config.name, "baselines": state.baselines}
    if mixture:
        meta["curriculum"] = mixture.state(state.step)
    _whole(run)
    if run.lock:
        run.lock.require()
    if run.config.log.copy_to:  # what it copies would go
        hosts.from_first(run.copy.wait if run.copy else lambda: None)
    if collector:
        collector.save(state.step)  # after which nothing plays
        _forget(run, collector)
    # What is frozen is where it came from: it is not written again.
    run.checkpoints.save(state.step, dataclasses.replace(state.train, frozen={}), meta,
                         run.copy.begin if run.copy else None)


def settle(run: Run, collector: Collector) -> None:
    """Waits until the last checkpoint is whole; then what it makes needless goes.

    Raises CheckpointError, HostError in the processes that did not meet it.
    """
    _whole(run)
    _forget(run, collector)


def _whole(run: Run) -> None:
    hosts.gathered(None, run.checkpoints.failure(wait=True))


def _forget(run: Run, collector: Collector) -> None:
    if steps := run.checkpoints.steps:
        collector.forget(steps[0])


@contextlib.contextmanager
def naming_the_last_good(run: Run, step: int) -> Iterator[None]:
    """Adds to a NonFiniteError which state is good, and what to do."""
    try:
        yield
    except NonFiniteError as error:
        run.checkpoints.failure(wait=True)
        raise NonFiniteError(
            f"step {step}: {error}. Nothing of this step was saved; the last good state"
            f" is the checkpoint of step {run.checkpoints.steps[-1]}. Lower"
            f" rl.learning_rate and start from it in a new run, or look at the"
            f" trajectories in {run.run_dir}"
        ) from error


def honour_stop(run: Run, where: str) -> None:
    """Raises Interrupted where someone asked the run to stop. Joined processes stop together,
    between steps alone."""
    if run.stop.received and not hosts.several():
        raise stopped(run, where, run.stop.received)


def stopped(run: Run, where: str, number: int) -> Interrupted:
    return Interrupted(f"stopped {where}; go on: python -m tarl_jax.main {run.run_dir}", number)
