"""Every knob of a run, as small frozen dataclasses, and the way in from ml_collections.

A config file in `configs/` builds an `ml_collections.ConfigDict` with the same nesting (see
`to_config_dict`), so that any field can be set from the command line; `from_config_dict` turns it
into `RunConfig` at once, and an unknown key or a wrong type is an error that names it.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any

from tarl_jax.audio_config import AudioConfig, check_audio
from tarl_jax.credit_config import RewardConfig as RewardConfig
from tarl_jax.credit_config import RLConfig as RLConfig
from tarl_jax.credit_config import check_credit
from tarl_jax.curriculum_config import CurriculumConfig as CurriculumConfig
from tarl_jax.curriculum_config import check_curriculum
from tarl_jax.judge_config import JudgeConfig as JudgeConfig
from tarl_jax.judge_config import NoiseConfig as NoiseConfig
from tarl_jax.judge_config import check_judge
from tarl_jax.llm_config import LLMConfig as LLMConfig
from tarl_jax.llm_config import UserConfig, check_user
from tarl_jax.maths.config import MathsConfig, check_maths
from tarl_jax.speech_config import SpeechConfig as SpeechConfig
from tarl_jax.speech_config import check_speech, parse_chain
from tarl_jax.warm_start_config import ClerkConfig as ClerkConfig
from tarl_jax.warm_start_config import WarmStartConfig, check_warm_start


class ConfigError(ValueError):
    """A config key or value that no run can use; the message names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work; one of the first three may be -1: what is left.

    data: copies of the parameters, each on other rows. fsdp: parameters split, other rows. tensor:
    heads, feed-forward and vocabulary split, the same rows. rollout_tensor: `tensor` while rollouts
    run (their parameters are split in no other way, since decoding would gather them each token).
    processes: of the run, one per host (`hosts.py`); 0: as many as the cluster says.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rollout_tensor: int = 1
    processes: int = 1


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) on frozen weights. `rank=0`: all weights train."""

    rank: int = 0
    alpha: float = 32.0  # the adapter's product is scaled by alpha / rank
    targets: tuple[str, ...] = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder, Qwen3's or Qwen2.5's, and how it computes.

    Names of the shape follow Hugging Face's where they have one.
    pretrained: folder of a Hugging Face checkpoint, with its tokenizer; empty: random parameters
      and the embedded tokenizer.
    dtype: of activations and matrix products; "float32" or "bfloat16".
    param_dtype: of the parameters; "bfloat16" only where they are frozen.
    remat: what the backward pass computes again: "none", "dots" (all but matrix products) or
      "full" (each layer, from its input).
    attention: "auto" (by platform), "xla", "splash" (TPU) or "cudnn" (GPU).
    audio: the encoder that a policy hears with; by default none.
    """

    d_model: int = 128
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    d_ff: int = 384
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    qk_norm: bool = True
    qkv_bias: bool = False
    tie_embeddings: bool = True
    vocab_size: int = 0  # 0: the tokenizer's; checkpoints round theirs up
    scan_layers: bool = False  # one compiled layer, for deep models; unrolled is faster for few
    pretrained: str = ""
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    lora: LoraConfig = LoraConfig()
    audio: AudioConfig = dataclasses.field(default_factory=AudioConfig)


@dataclasses.dataclass(frozen=True)
class ShopConfig:
    """The embedded synthetic shop (tau-bench's retail schema, short ids)."""

    seed: int = 0
    num_users: int = 200
    orders_per_user: int = 4
    held_out_fraction: float = 0.3


@dataclasses.dataclass(frozen=True)
class SandboxConfig:
    """The domain that a run plays in.

    data: folder of benchmark data (tau-bench, tau2-bench), whose database and tasks are used; its
      tasks need a user that is a language model. Empty: the embedded shop.
    """

    domain: str = "retail"
    data: str = ""


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What the users want. Probabilities are per task or, where said, per request."""

    seed: int = 0
    file: str = ""  # JSON lines of tasks; empty: the data's, or synthesised for the embedded shop
    num_train: int = 3000
    num_held_out: int = 512
    requests: tuple[float, ...] = (0.66, 0.24, 0.07, 0.03)  # P(1), P(2), P(3), P(4) requests
    forbidden: float = 0.2  # per request: the policy forbids it
    change_mind: float = 0.2  # per request: the user changes its mind when asked to confirm
    max_idle: float = 0.03  # share of tasks whose right solution writes nothing


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Episodes and how they are sampled.

    top_k, top_p, min_p: which tokens may be drawn (`rollout/sampling.py`); by default all.
    in_flight: episodes under way at once, where users are slow; 0: four times the slots.
    parked: caches of waiting episodes that are kept while others use their slots; the caches of
      further ones are dropped and made again when the answer has come.
    share_prefix: the shortest prompt prefix, in tokens, that is copied between episodes instead of
      computed again; 0: never.
    constrain_calls: only what can still become a call of a known tool is drawn inside a call.
    loss_log_probs: those that the loss takes as the old ones: "whole", of the policy at the
      temperature, or "drawn", of the distribution that was drawn from, if anything cuts that off.
    reasoning: "kept": what a turn says in `<think>` stays in the context; "dropped": it leaves it
      when the turn is over, and each turn is trained on in the context in which it was written.
    episode_seconds: after which an episode is cut off at its next turn; 0: never.
    step_seconds: after which a training step goes on without the episodes that have not ended,
      which then are played on in the next step, under its policy ("carry"), or cut off ("cut"),
      as `unfinished` says. The groups of carried ones are held back with them. 0: never.
    interruptions: how often, at most, the judge interrupts a training episode after a turn that it
      gives -1, and asks for it to be put right. For ablations: the method's authors found it
      harmful.
    """

    tasks_per_step: int = 16
    group_size: int = 8
    temperature: float = 1.0
    max_turns: int = 30
    max_turn_tokens: int = 48
    max_episode_tokens: int = 512
    brief_writes: bool = True  # the policy sees only the new status after a successful write
    system_prompt: str = "brief"  # "brief": one line; "full": policy text and tool schemas
    slots: int = 128  # episodes on the device at once
    straggler_fraction: float = 0.5  # decode returns to the host when fewer rows still write
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    in_flight: int = 0
    parked: int = 0
    share_prefix: int = 64
    constrain_calls: bool = False
    loss_log_probs: str = "whole"
    reasoning: str = "kept"
    episode_seconds: float = 0.0
    step_seconds: float = 0.0
    unfinished: str = "carry"
    interruptions: int = 0


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """heard: acoustics (chains as in `speech.acoustics`) in which every evaluation plays its tasks
    once more, spoken, beside once in writing; empty: once, as config.speech has it.
    """

    every: int = 20  # steps between evaluations; 0: only before and after training
    tasks: int = 64  # held-out tasks of an evaluation during training
    final_tasks: int = 256  # held-out tasks of the evaluations before and after training
    maths_tasks: int = 0  # held-out maths problems of every evaluation
    trials: int = 4
    temperature: float = 1.0
    bootstrap: int = 2000
    seed: int = 0
    heard: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 10
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class LogConfig:
    trajectories: int = 16  # training trajectories written per step
    live: bool = True  # the live view, where standard output is a terminal
    trace_step: int = 0  # the step whose profile is written for Perfetto; 0: none


@dataclasses.dataclass(frozen=True)
class RunConfig:
    name: str = "grpo_tarl"
    seed: int = 0
    workdir: str = ""  # empty: runs/<name>-<date and time>
    mesh: MeshConfig = MeshConfig()
    model: ModelConfig = ModelConfig()
    sandbox: SandboxConfig = SandboxConfig()
    shop: ShopConfig = ShopConfig()
    user: UserConfig = dataclasses.field(default_factory=UserConfig)
    tasks: TaskConfig = TaskConfig()
    maths: MathsConfig = dataclasses.field(default_factory=MathsConfig)
    warm_start: WarmStartConfig = dataclasses.field(default_factory=WarmStartConfig)
    rollout: RolloutConfig = RolloutConfig()
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    rl: RLConfig = dataclasses.field(default_factory=RLConfig)
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    speech: SpeechConfig = dataclasses.field(default_factory=SpeechConfig)
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)


def to_config_dict(config: RunConfig) -> Any:
    """The same values as an `ml_collections.ConfigDict`, for command-line overrides."""
    import ml_collections

    return ml_collections.ConfigDict(dataclasses.asdict(config))


def from_config_dict(data: Mapping[str, Any]) -> RunConfig:
    """Checked conversion; raises ConfigError for an unknown key, a wrong type or a bad value."""
    if hasattr(data, "to_dict"):
        data = data.to_dict()
    config = _build(RunConfig(), data, prefix="config")
    _check(config)
    return config


def _build(default: Any, data: Mapping[str, Any], prefix: str) -> Any:
    """`default` with what `data` gives in place of its fields, group by group."""
    hints = typing.get_type_hints(type(default))
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"unknown config key '{prefix}.{key}': {hint}")
    values = {}
    for key, value in data.items():
        kind = hints[key]
        where = f"{prefix}.{key}"
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where} = {value!r}: expected a group of keys")
            values[key] = _build(getattr(default, key), value, where)
        elif kind == tuple[str, ...]:
            if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
                raise ConfigError(f"{where} = {value!r}: expected a list of strings")
            values[key] = tuple(value)
        elif typing.get_origin(kind) is tuple:
            numbers = isinstance(value, list | tuple) and all(
                isinstance(v, int | float) and not isinstance(v, bool) for v in value
            )
            if not numbers:
                raise ConfigError(f"{where} = {value!r}: expected a list of numbers")
            values[key] = tuple(float(v) for v in value)
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            values[key] = float(value)
        elif type(value) is not kind:
            raise ConfigError(f"{where} = {value!r}: expected {kind.__name__}")
        else:
            values[key] = value
    return dataclasses.replace(default, **values)


def _check(c: RunConfig) -> None:
    def require(ok: bool, where: str, value: Any, remedy: str) -> None:
        if not ok:
            raise ConfigError(f"config.{where} = {value!r}: {remedy}")

    def choice(where: str, value: str, options: tuple[str, ...]) -> None:
        require(value in options, where, value, f"choose one of {', '.join(options)}")

    check_credit(c.reward, c.rl, c.rollout.group_size, require, choice)
    check_user(c.user, require, choice)
    check_judge(c.judge, require, choice)
    choice("sandbox.domain", c.sandbox.domain, ("retail", "airline"))
    require(c.sandbox.domain == "retail" or bool(c.sandbox.data), "sandbox.data", c.sandbox.data,
            f"name a folder with data of the domain {c.sandbox.domain!r}; only retail has its own")
    choice("model.dtype", c.model.dtype, ("float32", "bfloat16"))
    choice("model.param_dtype", c.model.param_dtype, ("float32", "bfloat16"))
    choice("model.remat", c.model.remat, ("none", "dots", "full"))
    choice("model.attention", c.model.attention, ("auto", "xla", "splash", "cudnn"))
    for target in c.model.lora.targets:
        choice("model.lora.targets", target, LoraConfig.targets)
    require(c.model.lora.rank >= 0, "model.lora.rank", c.model.lora.rank, "must be at least 0")
    require(c.model.param_dtype == "float32" or c.model.lora.rank > 0, "model.param_dtype",
            c.model.param_dtype, "small updates vanish in it: keep float32, or train adapters"
            " (model.lora.rank > 0) on frozen weights")
    for where in ("data", "fsdp", "tensor"):
        value = getattr(c.mesh, where)
        require(value > 0 or value == -1, f"mesh.{where}", value, "must be at least 1, or -1")
    require((c.mesh.data, c.mesh.fsdp, c.mesh.tensor).count(-1) <= 1, "mesh.data", c.mesh.data,
            "only one of data, fsdp and tensor can be -1")
    require(c.mesh.processes >= 0, "mesh.processes", c.mesh.processes, "must be at least 0")
    require(c.mesh.rollout_tensor > 0, "mesh.rollout_tensor", c.mesh.rollout_tensor,
            "must be at least 1")
    check_audio(c.model.audio, c.model.d_model, require)
    check_warm_start(c.warm_start, require)
    check_speech(c.speech, require, choice)
    require(not c.speech.share or bool(c.model.audio), "speech.share", c.speech.share,
            "a policy without ears hears no speech: set model.audio.encoder_layers, as"
            " configs/omni_tarl.py does, or leave it 0")
    check_curriculum(c.curriculum, bool(c.model.audio), require)
    require(not c.curriculum.maths or max(c.maths.ratio) > 0, "curriculum.maths",
            c.curriculum.maths, "the mix that follows has no maths: raise maths.ratio, or leave it"
            " 0")
    require(bool(c.model.audio) or not c.eval.heard, "eval.heard", c.eval.heard,
            "a policy without ears hears no speech: leave it empty")
    for chain in c.eval.heard:
        try:
            parse_chain(chain)
        except ValueError as error:
            require(False, "eval.heard", chain, str(error))
    choice("rollout.system_prompt", c.rollout.system_prompt, ("brief", "full"))
    for where, value in (
        ("rollout.tasks_per_step", c.rollout.tasks_per_step),
        ("rollout.slots", c.rollout.slots),
        ("rollout.max_turns", c.rollout.max_turns),
        ("rollout.max_turn_tokens", c.rollout.max_turn_tokens),
        ("model.num_layers", c.model.num_layers),
        ("model.num_heads", c.model.num_heads),
        ("model.num_kv_heads", c.model.num_kv_heads),
        ("eval.tasks", c.eval.tasks),
        ("eval.final_tasks", c.eval.final_tasks),
        ("rl.minibatches", c.rl.minibatches),
        ("rl.micro_batch_tokens", c.rl.micro_batch_tokens),
        ("checkpoint.every", c.checkpoint.every),
        ("checkpoint.keep", c.checkpoint.keep),
        ("eval.trials", c.eval.trials),
    ):
        require(value > 0, where, value, "must be at least 1")
    require(c.rollout.temperature > 0, "rollout.temperature", c.rollout.temperature,
            "must be above 0: a greedy policy has no log-probabilities to train on")
    require(c.eval.temperature > 0, "eval.temperature", c.eval.temperature, "must be above 0")
    choice("rollout.loss_log_probs", c.rollout.loss_log_probs, ("whole", "drawn"))
    choice("rollout.reasoning", c.rollout.reasoning, ("kept", "dropped"))
    choice("rollout.unfinished", c.rollout.unfinished, ("carry", "cut"))
    for where in ("top_k", "in_flight", "parked", "share_prefix", "episode_seconds",
                  "step_seconds", "interruptions"):
        value = getattr(c.rollout, where)
        require(value >= 0, f"rollout.{where}", value, "must be at least 0")
    require(0 < c.rollout.top_p <= 1, "rollout.top_p", c.rollout.top_p,
            "must be above 0 and at most 1")
    for where, value in (
        ("tasks.forbidden", c.tasks.forbidden),
        ("shop.held_out_fraction", c.shop.held_out_fraction),
        ("tasks.change_mind", c.tasks.change_mind),
        ("tasks.max_idle", c.tasks.max_idle),
        ("rollout.straggler_fraction", c.rollout.straggler_fraction),
        ("rollout.min_p", c.rollout.min_p),
    ):
        require(0 <= value <= 1, where, value, "must be between 0 and 1")
    require(c.model.num_heads % c.model.num_kv_heads == 0, "model.num_kv_heads",
            c.model.num_kv_heads, f"must divide model.num_heads = {c.model.num_heads}")
    require(c.rollout.tasks_per_step % c.rl.minibatches == 0, "rl.minibatches",
            c.rl.minibatches, f"must divide rollout.tasks_per_step = {c.rollout.tasks_per_step}")
    require(len(c.tasks.requests) > 0 and abs(sum(c.tasks.requests) - 1) < 1e-6
            and min(c.tasks.requests) >= 0,
            "tasks.requests", c.tasks.requests, "probabilities must sum to 1")
    check_maths(c.maths, require)
    require(0 <= c.eval.maths_tasks <= c.maths.num_held_out, "eval.maths_tasks",
            c.eval.maths_tasks, f"must be between 0 and maths.num_held_out ="
            f" {c.maths.num_held_out}")
