"""What a run's policy starts from, how it comes back from a checkpoint, and how it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from tarl_jax.config import RunConfig
from tarl_jax.models import hugging_face
from tarl_jax.models.decoder import Params, named_key
from tarl_jax.models.hf_config import completed
from tarl_jax.models.lora import frozen_part, merge
from tarl_jax.models.omni_files import AudioIds
from tarl_jax.models.peft_files import save_adapters
from tarl_jax.parallel import hosts
from tarl_jax.parallel.mesh import make_mesh
from tarl_jax.rl.losses import PolicyLoss
from tarl_jax.rl.update import TrainState, Updater
from tarl_jax.rollout.environment import Environment
from tarl_jax.runs.checkpoint import Checkpoints
from tarl_jax.runs.directory import chosen, require_contents, require_run
from tarl_jax.text.tokenizer import AUDIO, AUDIO_END, AUDIO_START
from tarl_jax.training.parts import Parts, record
from tarl_jax.warm_start.imitation import Progress, Score
from tarl_jax.warm_start.recipe import warm_start


def make_updater(
    config: RunConfig, env: Environment, policy_loss: PolicyLoss | None = None
) -> Updater:
    """The updater of a run, on its mesh over all devices.

    policy_loss: in place of the one that the config names.
    """
    mesh = make_mesh(config.mesh)
    return Updater(
        config.model, env.vocab_size, config.rl, config.rollout.temperature, mesh, policy_loss
    )


def starting_policy(
    config: RunConfig,
    env: Environment,
    updater: Updater,
    progress: Progress = lambda what, step, steps, loss: None,
    log: Callable[[str], None] = lambda line: None,
    score: Score | None = None,
) -> Params:
    """All parameters, on the mesh: a pretrained checkpoint's, a warm start's, or random ones."""
    model = config.model
    key = named_key(jax.random.key(config.warm_start.seed), "init")
    if model.pretrained:
        log(f"loading {model.pretrained}")
        return hugging_face.load_params(
            Path(model.pretrained), model, env.vocab_size, updater.policy_shardings,
            model.param_dtype,
        )
    if not config.warm_start.steps:
        return updater.random(key)
    params, folder = warm_start(config, env, updater, key, progress, score)
    log(f"warm start: {folder}")
    return params


def restore(
    config: RunConfig, env: Environment, updater: Updater, checkpoints: Checkpoints, step: int
) -> TrainState:
    """The train state of a checkpoint. What is frozen comes from where the run had it.

    Raises ConfigError where that, or the tokenizer, is not what the run began with.
    """
    model = config.model
    if config.workdir:
        held = {name: value for name, value in env.contents().items()
                if name in ("tokenizer", "frozen weights")}
        run_dir = Path(config.workdir).expanduser()
        hosts.from_first(lambda: require_contents(run_dir, held, keep=False))
    frozen = {}
    if model.lora.rank or (model.audio and model.audio.frozen):
        frozen = frozen_part(model, starting_policy(config, env, updater))
    state, _ = checkpoints.restore(step, updater.shapes())
    return state.replace(frozen=frozen)


def newest(checkpoints: Checkpoints, run_dir: Path, step: int) -> int:
    """`step`, or the newest checkpoint's where it is -1; ConfigError where there is none such."""
    return chosen(run_dir, hosts.from_first(lambda: checkpoints.steps), step)


def export(
    config: RunConfig, folder: Path, step: int, parts: Parts, adapters: bool = False
) -> int:
    """Writes the policy of a checkpoint (step -1: the newest) as a Hugging Face folder.

    Adapters are merged into their weights, whose dtype is the model's.

    adapters: writes them alone, for PEFT, in float32.
    Returns: the step.
    Raises: ConfigError if there is no such run, ValueError if the folder is not empty or no Hugging
      Face model has such a policy's parts, CheckpointError if there is no such checkpoint.
    """
    config = completed(config)
    run_dir = Path(config.workdir).expanduser()
    require_run(config, run_dir, record(parts))
    checkpoints = Checkpoints(run_dir, config.checkpoint)
    step = newest(checkpoints, run_dir, step)
    env = Environment.from_config(config, parts.domain, parts.tasks, parts.user)
    state = restore(config, env, make_updater(config, env), checkpoints, step)
    checkpoints.close()
    if adapters:
        save_adapters(folder, state.policy, config.model)
        return step
    hugging_face.save_params(
        folder, merge(state.policy, config.model), config.model, env.vocab_size,
        dtype=config.model.dtype, tokenizer_files=config.model.pretrained or None,
        audio_ids=_audio_ids(env) if config.model.audio else None,
    )
    return step


def _audio_ids(env: Environment) -> AudioIds:
    markup = env.tokenizer.encode_markup
    (start,), (token,), (end,) = markup(AUDIO_START), markup(AUDIO), markup(AUDIO_END)
    return AudioIds(start, token, end)
