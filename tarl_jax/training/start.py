"""Where a run begins, or goes on: its first state, fresh from a warm start or from a checkpoint."""

from __future__ import annotations

import dataclasses
import math

from tarl_jax.models.decoder import Params
from tarl_jax.models.lora import merge
from tarl_jax.parallel import hosts
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rl.update import TrainState
from tarl_jax.runs.checkpoint import CheckpointError, load_params, save_params
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.training.credit import Baselines
from tarl_jax.training.difficulty import medium_problems
from tarl_jax.training.evaluation import evaluate
from tarl_jax.training.mixture import Mixture
from tarl_jax.training.policy import restore, starting_policy
from tarl_jax.training.run import Run, State, honour_stop, save
from tarl_jax.warm_start.demonstrations import desk_name, shop_of, tasks_of
from tarl_jax.warm_start.fine_tune import fine_tune


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
