"""What a config refuses: each value by itself, and those that do not go together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from tarl_jax.config.audio import check_audio
from tarl_jax.config.credit import GROUP_ADVANTAGES, check_credit
from tarl_jax.config.curriculum import check_curriculum
from tarl_jax.config.errors import ConfigError
from tarl_jax.config.evaluation import check_evaluation
from tarl_jax.config.judge import check_judge
from tarl_jax.config.llm import check_user
from tarl_jax.config.maths import check_maths
from tarl_jax.config.model import LoraConfig
from tarl_jax.config.outside import check_outside
from tarl_jax.config.rollout import carries
from tarl_jax.config.run import RunConfig
from tarl_jax.config.sft import check_sft
from tarl_jax.config.speech import check_speech, condition_of
from tarl_jax.config.warm_start import check_warm_start

Require = Callable[[bool, str, Any, str], None]
NO_BUCKETS = (
    "is an address, at which a run directory can be and nothing else: name a folder of this"
    " machine, or mount the bucket (gcsfuse, mountpoint-s3)"
)


def check(c: RunConfig) -> None:
    """Raises ConfigError for a value that no run can use, or that another one rules out."""

    def require(ok: bool, where: str, value: Any, remedy: str) -> None:
        if not ok:
            raise ConfigError(f"config.{where} = {value!r}: {remedy}")

    def choice(where: str, value: str, options: tuple[str, ...]) -> None:
        require(value in options, where, value, f"choose one of {', '.join(options)}")

    check_credit(c.reward, c.rl, c.rollout.group_size, require, choice)
    _check_paths(c, require)
    check_user(c.user, require, choice)
    check_judge(c.judge, require, choice)
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
    require(c.mesh.rollout_devices >= 0, "mesh.rollout_devices", c.mesh.rollout_devices,
            "must be at least 0")
    check_audio(c.model.audio, c.model.d_model, require)
    check_warm_start(c.warm_start, require)
    check_sft(c.sft, require)
    check_speech(c.speech, require, choice)
    require(not c.speech.share or bool(c.model.audio), "speech.share", c.speech.share,
            "a policy without an audio encoder hears no speech: set model.audio.encoder_layers, as"
            " configs/omni_tarl.py does, or leave it 0")
    check_curriculum(c.curriculum, bool(c.model.audio), require)
    require(not c.curriculum.maths or max(c.maths.ratio) > 0, "curriculum.maths",
            c.curriculum.maths, "the mix that follows has no maths: raise maths.ratio, or leave it"
            " 0")
    require(bool(c.model.audio) or not c.eval.spoken, "eval.spoken", c.eval.spoken,
            "a policy without an audio encoder hears no speech: leave it empty")
    for chain in c.eval.spoken:
        try:
            condition_of(chain, c.speech)
        except ValueError as error:
            require(False, "eval.spoken", chain, str(error))
    choice("rollout.system_prompt", c.rollout.system_prompt, ("auto", "brief", "full"))
    choice("rollout.greeting", c.rollout.greeting, ("rules", "on", "off"))
    for where, value in (
        ("rollout.tasks_per_step", c.rollout.tasks_per_step),
        ("rollout.slots", c.rollout.slots),
        ("rollout.max_turn_tokens", c.rollout.max_turn_tokens),
        ("model.num_layers", c.model.num_layers),
        ("model.num_heads", c.model.num_heads),
        ("model.num_kv_heads", c.model.num_kv_heads),
        ("eval.tasks", c.eval.tasks),
        ("eval.final_tasks", c.eval.final_tasks),
        ("rl.minibatches", c.rl.minibatches),
        ("rl.epochs", c.rl.epochs),
        ("rl.micro_batch_tokens", c.rl.micro_batch_tokens),
        ("model.d_model", c.model.d_model),
        ("model.head_dim", c.model.head_dim),
        ("model.d_ff", c.model.d_ff),
        ("shop.num_users", c.shop.num_users),
        ("shop.orders_per_user", c.shop.orders_per_user),
        ("tasks.num_train", c.tasks.num_train),
        ("tasks.num_held_out", c.tasks.num_held_out),
        ("rollout.max_episode_tokens", c.rollout.max_episode_tokens),
        ("eval.bootstrap", c.eval.bootstrap),
        ("checkpoint.every", c.checkpoint.every),
        ("checkpoint.keep", c.checkpoint.keep),
        ("eval.trials", c.eval.trials),
    ):
        require(value > 0, where, value, "must be at least 1")
    own = ", or -1: the checkpoint's own"
    require(c.rollout.temperature > 0 or c.rollout.temperature == -1, "rollout.temperature",
            c.rollout.temperature,
            f"must be above 0 (a greedy policy has no log-probabilities to train on){own}")
    check_evaluation(c.eval, require)
    require(not c.eval.split or bool(c.eval.data or c.sandbox.data), "eval.split", c.eval.split,
            "names a split of published data: set sandbox.data, or leave it empty")
    elsewhere = c.eval.domain or c.eval.data
    require(not (elsewhere and c.rollout.constrain_calls), "rollout.constrain_calls",
            c.rollout.constrain_calls, f"its grammar is of the training domain's tools: leave it"
            f" off, or evaluate there (eval.domain = {c.eval.domain!r}, eval.data ="
            f" {c.eval.data!r})")
    for where, value in (
        ("seed", c.seed), ("shop.seed", c.shop.seed), ("tasks.seed", c.tasks.seed),
        ("maths.seed", c.maths.seed),
        ("eval.seed", c.eval.seed), ("rl.steps", c.rl.steps), ("eval.every", c.eval.every),
        ("model.vocab_size", c.model.vocab_size), ("log.trajectories", c.log.trajectories),
        ("log.trace_step", c.log.trace_step),
    ):
        require(value >= 0, where, value, "must be at least 0")
    for where, number in (
        ("model.rope_theta", c.model.rope_theta), ("model.rms_norm_eps", c.model.rms_norm_eps),
        ("model.lora.alpha", c.model.lora.alpha),
    ):
        require(number > 0, where, number, "must be above 0")
    require(c.model.head_dim % 2 == 0, "model.head_dim", c.model.head_dim,
            "must be even: rotary positions turn pairs")
    choice("rollout.loss_log_probs", c.rollout.loss_log_probs, ("whole", "drawn"))
    choice("rollout.after_transfer", c.rollout.after_transfer, ("rules", "end", "go on"))
    choice("sandbox.tool_schemas", c.sandbox.tool_schemas, ("data", "own"))
    choice("sandbox.rules", c.sandbox.rules, ("", "tau", "tau2"))
    choice("rollout.thinking", c.rollout.thinking, ("on", "off"))
    choice("rollout.reasoning", c.rollout.reasoning, ("kept", "template", "dropped"))
    choice("rollout.several_calls", c.rollout.several_calls, ("refused", "first", "all"))
    require(c.rollout.several_calls != "all" or bool(c.model.pretrained), "rollout.several_calls",
            c.rollout.several_calls, "the embedded chat has no markup between several answers: set"
            " model.pretrained, or choose refused or first")
    choice("rollout.quantise", c.rollout.quantise, ("", "int8", "int8_cache", "int8_both"))
    choice("rollout.cache", c.rollout.cache, ("auto", "contiguous", "pages"))
    for where in ("page", "feed_tokens"):
        value = getattr(c.rollout, where)
        require(value > 0, f"rollout.{where}", value, "must be above 0")
    choice("rollout.unfinished", c.rollout.unfinished, ("carry", "cut"))
    check_outside(c.rollout.outside, require)
    require(c.rl.max_staleness >= 0, "rl.max_staleness", c.rl.max_staleness, "must be at least 0")
    outside = bool(c.rollout.outside.base_url)
    require(not (outside and c.mesh.rollout_devices), "mesh.rollout_devices",
            c.mesh.rollout_devices, "an outside engine plays on devices of its own: leave it 0")
    require(not (outside and c.model.audio), "rollout.outside.base_url",
            c.rollout.outside.base_url, "an outside engine reads token ids, no sound: leave it"
            " empty for a policy that hears")
    require(not (outside and c.rollout.constrain_calls), "rollout.constrain_calls",
            c.rollout.constrain_calls, "an outside engine has not this engine's grammar: leave it"
            " off")
    for where in ("lanes", "in_flight", "parked", "share_prefix", "episode_seconds",
                  "step_seconds", "interruptions", "refills"):
        value = getattr(c.rollout, where)
        require(value >= 0, f"rollout.{where}", value, "must be at least 0")
    for where in ("max_errors", "max_messages", "max_turns"):
        value = getattr(c.rollout, where)
        require(value >= -1, f"rollout.{where}", value, "must be at least -1")
    for where, clash in (
        ("rl.max_staleness", c.rl.max_staleness), ("rollout.step_seconds", c.rollout.step_seconds),
    ):
        require(not (c.rollout.refills and clash), "rollout.refills", c.rollout.refills,
                f"{where} = {clash} plays episodes in other steps than they are learned from: leave"
                " one of the two out")
    require(not carries(c.rollout) or c.rl.max_staleness > 0, "rl.max_staleness",
            c.rl.max_staleness, f"rollout.step_seconds = {c.rollout.step_seconds} carries episodes"
            " over to later steps, under other weights: set it to how many steps late they may"
            " come, or rollout.unfinished to cut")
    grouped = c.rl.advantage in GROUP_ADVANTAGES
    require(grouped or not c.rollout.refills, "rollout.refills", c.rollout.refills,
            f"with rl.advantage = {c.rl.advantage!r} a group whose episodes earn the same teaches"
            " all the same: leave it 0")
    require(0 < c.rollout.top_p <= 1 or c.rollout.top_p == -1, "rollout.top_p", c.rollout.top_p,
            f"must be above 0 and at most 1{own}")
    require(0 <= c.rollout.min_p <= 1 or c.rollout.min_p == -1, "rollout.min_p", c.rollout.min_p,
            f"must be between 0 and 1{own}")
    require(c.rollout.top_k >= -1, "rollout.top_k", c.rollout.top_k, f"must be at least 0{own}")
    for where, value in (
        ("tasks.forbidden", c.tasks.forbidden),
        ("shop.held_out_fraction", c.shop.held_out_fraction),
        ("tasks.change_mind", c.tasks.change_mind),
        ("tasks.max_idle", c.tasks.max_idle),
        ("rollout.straggler_fraction", c.rollout.straggler_fraction),
        ("rollout.max_too_long", c.rollout.max_too_long),
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
    require(not (c.tasks.file and c.tasks.tfds), "tasks.tfds", c.tasks.tfds,
            f"tasks.file = {c.tasks.file!r} names tasks too: give one of the two")
    require(c.tasks.file != "" or bool(c.tasks.tfds) or c.sandbox.data != ""
            or c.rollout.tasks_per_step <= c.tasks.num_train, "tasks.num_train",
            c.tasks.num_train, "a step takes rollout.tasks_per_step ="
            f" {c.rollout.tasks_per_step} of them: raise it, or lower that")
    for key, value in _numbers(c):
        require(math.isfinite(value), key, value, "must be a finite number")


def _check_paths(c: RunConfig, require: Require) -> None:
    """No field that names a file or folder names a bucket, but for where a run is copied."""
    kind, _, place = c.log.copy_to.rpartition("://")
    require(kind in ("", "gs", "s3") and bool(place or not kind), "log.copy_to", c.log.copy_to,
            "give gs://BUCKET/RUN, s3://BUCKET/RUN or a folder")
    for where, value in (
        ("workdir", c.workdir), ("model.pretrained", c.model.pretrained),
        ("sandbox.data", c.sandbox.data), ("tasks.file", c.tasks.file),
        ("maths.file", c.maths.file), ("reward.calibration", c.reward.calibration),
        ("eval.data", c.eval.data),
        ("warm_start.cache_dir", c.warm_start.cache_dir),
        ("speech.cache_dir", c.speech.cache_dir), ("speech.recordings", c.speech.recordings),
        ("speech.piper_voices", c.speech.piper_voices),
        *((f"{group}.llm.{name}", getattr(llm, name))
          for group, llm in (("user", c.user.llm), ("judge", c.judge.llm))
          for name in ("cache_dir", "record", "replay")),
    ):
        require("://" not in value, where, value, NO_BUCKETS)


def _numbers(group: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of the config with its key, those in tuples too."""
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{prefix}{field.name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                yield f"{prefix}{field.name}", number
