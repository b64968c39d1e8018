"""What a run is made of, and where it stands; built once, handed on, and changed by nobody."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import jax

from tarl_jax.config import InputError, RunConfig
from tarl_jax.judge.service import Judge
from tarl_jax.models.decoder import Params
from tarl_jax.models.lora import merge
from tarl_jax.parallel import hosts
from tarl_jax.parallel.files import WriteError, disk, sweep
from tarl_jax.parallel.lock import Lock
from tarl_jax.parallel.mesh import make_mesh, rollout_mesh, row_shards
from tarl_jax.rl.update import NonFiniteError, TrainState, Updater
from tarl_jax.rollout.engine import Engine
from tarl_jax.rollout.environment import Environment
from tarl_jax.rollout.journal import Journals
from tarl_jax.rollout.lengths import require_room
from tarl_jax.runs import wandb_copy
from tarl_jax.runs.checkpoint import CheckpointError, Checkpoints, load_params, save_params
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
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.training.collect import Collector
from tarl_jax.training.credit import Baselines
from tarl_jax.training.difficulty import medium_problems
from tarl_jax.training.estimate import estimate
from tarl_jax.training.evaluation import evaluate
from tarl_jax.training.learn import Learner, kept_table
from tarl_jax.training.mixture import Mixture
from tarl_jax.training.parts import Parts, record
from tarl_jax.training.policy import make_updater, restore, starting_policy
from tarl_jax.warm_start.demonstrations import desk_name, shop_of, tasks_of
from tarl_jax.warm_start.fine_tune import fine_tune


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
    engine: Engine
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
            checkpoints = Checkpoints(run_dir, config.checkpoint)
            stack.callback(checkpoints.close)
            engine = env.engine()
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
def _naming_what_is_saved(checkpoints: Checkpoints, run_dir: Path) -> Iterator[None]:
    """Adds to a WriteError where the run goes on; what a disk raises elsewhere is one too."""
    try:
        with disk(run_dir):
            yield
    except WriteError as error:
        saved = checkpoints.steps
        on = f"it goes on from step {saved[-1]}" if saved else "it has no saved step yet"
        raise WriteError(f"{error}. The run has stopped; with --workdir={run_dir} {on}") from error


def start(run: Run) -> State:
    """Where the run goes on, by its newest checkpoint, or where it begins: after its warm start.

    A fresh run has checkpoint 0 afterwards.
    """
    config, updater = run.config, run.updater
    steps = hosts.from_first(lambda: run.checkpoints.steps)
    baselines: Baselines = {}
    if steps:
        train = restore(config, run.env, updater, run.checkpoints, steps[-1])
        baselines = run.checkpoints.meta(steps[-1]).get("baselines", {})
        run.view.log(f"resuming {run.run_dir} after step {steps[-1]}")
        reference = train.policy
    else:
        reference = starting_policy(
            config, run.env, updater, lambda *how_far: _show_warm_start(run, *how_far),
            run.view.log, lambda params: _training_pass_rate(run, params),
        )
        if config.sft.steps:
            train, reference = _fine_tuned(run, reference)
        else:  # nobody else needs them where nothing is held on to
            train = updater.init(reference, give=not config.rl.kl_coef)
    if config.rl.kl_coef > 0 and config.model.lora.rank and not config.sft.steps:
        reference = train.frozen  # what adapters stand on
    elif config.rl.kl_coef > 0:
        folder = run.run_dir / "reference"
        if hosts.from_first(folder.exists):
            reference = load_params(folder, updater.policy_shapes)
        else:
            save_params(folder, reference)
    state = State(
        steps[-1] if steps else 0, train, reference if config.rl.kl_coef > 0 else None, baselines
    )
    if not steps:
        save(run, state)
    return state


def require_enough(env: Environment) -> None:
    """Raises InputError where there are fewer tasks than a step takes."""
    wanted, there = env.config.rollout.tasks_per_step, len(env.train_tasks)
    if wanted > there:
        raise InputError(f"config.rollout.tasks_per_step = {wanted}: there are {there} tasks to"
                         " train on; lower it, or give more tasks")


def task_mixture(run: Run, state: State) -> Mixture:
    """The tasks of every step.

    Raises CheckpointError where the run's checkpoint was made by another schedule.
    """
    config, maths = run.config, run.env.maths
    problems = medium_problems(
        run.engine, None if state.step else state.policy, run.env, run.run_dir,
        lambda done, total: run.view.phase("trying the maths problems", done, total),
    )
    if maths is not None:
        run.view.log(f"maths: {len(problems)} of {len(maths.train_tasks)} problems to train"
                     f" on; {maths.too_long} were too long")
    mixture = Mixture(run.env.train_tasks, problems, config.rollout.tasks_per_step, config.maths,
                      config.seed, config.speech, config.curriculum)
    kept = run.checkpoints.meta(state.step).get("curriculum", {})
    now = mixture.state(state.step)
    if kept and kept != now:
        raise CheckpointError(
            f"{run.run_dir}: at step {state.step} its curriculum stood at {kept}, and this config's"
            f" at {now}: use the maths problems and the config that it began with"
        )
    return mixture


def save(run: Run, state: State, mixture: Mixture | None = None,
         collector: Collector | None = None) -> None:
    """Writes the checkpoint of a step, and what was played ahead of it."""
    meta = {"step": state.step, "config": run.config.name, "baselines": state.baselines}
    if mixture:
        meta["curriculum"] = mixture.state(state.step)
    if run.lock:
        run.lock.require()
    if run.config.log.copy_to:  # what it copies would go
        hosts.from_first(run.copy.wait if run.copy else lambda: None)
    if collector:
        collector.save()
    # What is frozen is where it came from: it is not written again.
    run.checkpoints.save(state.step, dataclasses.replace(state.train, frozen={}), meta)
    if collector:
        collector.forget(run.checkpoints.steps[0])
    if run.copy:
        run.copy.begin()


@contextlib.contextmanager
def naming_the_last_good(run: Run, step: int) -> Iterator[None]:
    """Adds to a NonFiniteError which state is good, and what to do."""
    try:
        yield
    except NonFiniteError as error:
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


def _fine_tuned(run: Run, params: Params) -> tuple[TrainState, Params]:
    """A fresh state whose policy has learned from dialogues, and all parameters of that policy.

    The value model starts from it too, but adapters of its own begin anew. `params` are given up.
    """
    config = run.config
    tuned, said = fine_tune(
        config, run.env, make_mesh(config.mesh), params,
        lambda *how_far: _show_warm_start(run, *how_far),
    )
    run.view.log(said)
    policy, adapters = tuned.policy, tuned.params
    del tuned  # with its optimiser
    if not config.model.lora.rank:
        return run.updater.init(policy, give=not config.rl.kl_coef), policy
    merged = merge(policy, config.model) if config.rl.kl_coef > 0 else params
    return dataclasses.replace(run.updater.init(params), params=adapters), merged


def _show_warm_start(run: Run, what: str, step: int, steps: int, loss: float) -> None:
    note = f"loss {loss:.3f}" if math.isfinite(loss) else ""
    run.view.phase(f"warm start: {what}", step, steps, note)
    honour_stop(run, "in the warm start, which goes on from here")


def _training_pass_rate(run: Run, params: Params) -> float:
    """Share of the embedded domain's tasks passed, by a policy that learned from its clerk.

    The warm start is shared by runs of many kinds, so tasks, users, lengths and seeds are its own.
    """
    if not run.engine.programs.compilations:
        run.engine.programs.compile(params)
    config, own = run.config, run.config.warm_start
    domain = embedded_domain(desk_name(config), shop_of(config))
    wanted = tasks_of(config, num_train=own.score_tasks)
    tasks = make_tasks(domain, shop_of(config), wanted, "train")
    longest = min(config.rollout.max_episode_tokens, own.max_tokens)
    seeded = dataclasses.replace(
        config, seed=own.seed,
        rollout=dataclasses.replace(
            config.rollout, max_turns=own.max_turns, max_episode_tokens=longest
        ),
        eval=dataclasses.replace(config.eval, trials=own.score_trials, temperature=1.0,
                                 top_k=0, top_p=1.0, min_p=0.0),
    )
    env = dataclasses.replace(
        run.env, config=seeded, domain=domain, users=None, own_user=None, speech=None
    )
    values, _ = evaluate(run.engine, params, env, tasks, "warm start")
    passed = values["eval/pass^1"]
    run.view.log(f"warm start: passes {passed:.3f} of {len(tasks)} tasks")
    return passed
