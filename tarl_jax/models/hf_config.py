"""What a Hugging Face checkpoint says of itself, read into a config and written from one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tarl_jax.config import AudioConfig, ConfigError, InputError, ModelConfig, RunConfig
from tarl_jax.config.checks import check
from tarl_jax.models.tensor_files import INDEX, SINGLE, open_tensors, read_json

CONFIG = "config.json"
OMNI = ("qwen2_5_omni", "qwen2_5_omni_thinker")
_KINDS = ("qwen3", "qwen2", *OMNI)
_UNSUPPORTED = "the decoder does not compute this; choose a checkpoint without it"


# What a checkpoint's config.json decides; the other fields of ModelConfig are the run's choice.
DECIDED = tuple(
    "d_model num_layers num_heads num_kv_heads head_dim d_ff rope_theta rms_norm_eps qk_norm"
    " qkv_bias tie_embeddings".split()
)
_SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # where a file says none


@dataclasses.dataclass(frozen=True)
class _Stated:
    """config.json of a checkpoint: as a whole, and its parts that a policy is made of."""

    path: Path
    whole: dict[str, Any]
    outer: dict[str, Any]  # what holds the parts: of Omni the thinker
    text: dict[str, Any]
    audio: dict[str, Any]  # {}: the checkpoint hears nothing

    @classmethod
    def read(cls, folder: str | Path) -> _Stated:
        path = Path(folder) / CONFIG
        if not path.is_file():
            what = f"has no {CONFIG}" if path.parent.is_dir() else "is not there"
            raise InputError(
                f"{folder}: {what}: give the folder of a Hugging Face checkpoint, e.g. one that"
                " `hf download Qwen/Qwen3-8B --local-dir DIR` makes"
            )
        whole = read_json(path)
        kind = whole.get("model_type")
        outer = whole.get("thinker_config", {}) if kind == "qwen2_5_omni" else whole
        omni = kind in OMNI
        return cls(
            path, whole, outer, outer.get("text_config", {}) if omni else whole,
            outer.get("audio_config", {}) if omni else {},
        )

    def require(self, ok: bool, field: str, value: Any, remedy: str) -> None:
        if not ok:
            raise InputError(f"{self.path}: {field} = {value!r}: {remedy}")

    def value(self, field: str) -> Any:
        """A number of the decoder's part."""
        found = self.text.get(field)
        self.require(found is not None, field, None, "must be given; add it to the file")
        number = isinstance(found, int | float) and not isinstance(found, bool)
        self.require(number, field, found, "must be a number; download the file again")
        return found


def completed(config: RunConfig, given: Collection[str] = ()) -> RunConfig:
    """The config with what its checkpoint decides: nothing of it need be in a config.

    That is the shape of the decoder, of the audio encoder (where the run has one), the size of the
    vocabulary, and the sampling of `rollout` and `eval` where a field is -1. So is `rl.tis_cap`.

    Args:
      given: fields that were set by hand, such as "model.d_ff".
    Raises: ConfigError for a model of a published size without a checkpoint, a given field that
      contradicts the checkpoint, episodes that are longer than it has positions, an audio encoder
      that it lacks; InputError for a checkpoint that cannot be read.
    """
    model = config.model
    if not model.pretrained:
        if model.size:
            raise ConfigError(
                f"config.model.pretrained = '': {model.size} is trained from its checkpoint: give"
                " the folder that holds it (download it by `hf download`), or choose the embedded"
                " default by leaving the size out"
            )
        return _with_defaults(config, _SAMPLING)
    stated = _Stated.read(Path(model.pretrained).expanduser())
    read, vocab_size = read_config(stated.path.parent)
    shape = {name: getattr(read, name) for name in DECIDED} | {"vocab_size": vocab_size}
    audio = _audio_shape(stated) if model.audio else {}
    said = {f"model.{name}": (getattr(model, name), value) for name, value in shape.items()} | {
        f"model.audio.{name}": (getattr(model.audio, name), value) for name, value in audio.items()
    }
    for name, (now, value) in said.items():
        if name in given and now != value:
            raise ConfigError(f"config.{name} = {now!r}: {stated.path} says {value!r}: leave it"
                              " out, the checkpoint decides")
    longest = stated.text.get("max_position_embeddings")
    if longest and config.rollout.max_episode_tokens > longest:
        raise ConfigError(
            f"config.rollout.max_episode_tokens = {config.rollout.max_episode_tokens}: the"
            f" checkpoint has {longest} positions (max_position_embeddings in {stated.path}):"
            " give at most as many"
        )
    shape["audio"] = dataclasses.replace(model.audio, **audio)
    model = dataclasses.replace(model, pretrained=str(stated.path.parent), **shape)
    config = dataclasses.replace(config, model=model)
    config = _with_defaults(config, sampling_defaults(stated.path.parent))
    check(config)
    return config


def sampling_defaults(folder: str | Path) -> dict[str, Any]:
    """temperature, top_k, top_p and min_p of generation_config.json, or what cuts nothing off.

    The temperature is 0 where the file says that nothing is drawn (`do_sample` is false). Raises
    InputError for a value that is none.
    """
    path = Path(folder) / "generation_config.json"
    said = read_json(path) if path.is_file() else {}
    found: dict[str, Any] = {}
    for name, none in _SAMPLING.items():
        value = said.get(name)
        number = none if value is None else value
        if not isinstance(number, int | float) or isinstance(number, bool) or number < 0:
            raise InputError(f"{path}: {name} = {value!r}: must be a number of at least 0")
        found[name] = type(none)(number)
    if said.get("do_sample") is False:
        found["temperature"] = 0.0
    return found


def _with_defaults(config: RunConfig, defaults: dict[str, Any]) -> RunConfig:
    """-1 in a field of sampling stands for the checkpoint's, and in `rl.tis_cap` for 2 where
    rollouts are quantised (elsewhere it stays, and weighs nothing)."""
    if config.rl.tis_cap == -1 and config.rollout.quantise:
        config = dataclasses.replace(config, rl=dataclasses.replace(config.rl, tis_cap=2.0))
    for group in ("rollout", "eval"):
        now = getattr(config, group)
        left = {n: v for n, v in defaults.items() if getattr(now, n, None) == -1}
        config = dataclasses.replace(config, **{group: dataclasses.replace(now, **left)})
    return config


def _audio_shape(stated: _Stated) -> dict[str, Any]:
    stated.require(bool(stated.audio), "audio_config", None, "the checkpoint has no audio encoder:"
                   " give one of Qwen2.5-Omni, or --config.model.audio.encoder_layers=0")
    shape = {}
    for field in dataclasses.fields(AudioConfig):
        if field.name != "frozen":
            # transformers leaves out what is its default, which is ours too; ours has 0 layers.
            default = 32 if field.name == "encoder_layers" else field.default
            shape[field.name] = stated.audio.get(field.name, default)
    activation = stated.audio.get("activation_function", "gelu")
    stated.require(activation == "gelu", "activation_function", activation, _UNSUPPORTED)
    stated.require(not stated.audio.get("scale_embedding"), "scale_embedding", True, _UNSUPPORTED)
    return shape


def _tied(stated: _Stated, folder: Path) -> bool:
    """As the file says; where it says nothing, whether there is no head of its own."""
    said = stated.outer.get("tie_word_embeddings")
    if said is not None:
        return bool(said)
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return bool(stated.text.get("tie_word_embeddings", False))
    head = ("lm_head.weight", "thinker.lm_head.weight")
    return not any(name in head for name in open_tensors(folder))


def read_config(folder: str | Path) -> tuple[ModelConfig, int]:
    """The decoder's shape and its vocabulary size (padding included) from `folder`/config.json.

    Reads qwen3, qwen2 and the thinker of qwen2_5_omni. Raises ValueError for another model type
    and for what the decoder does not compute, e.g. a sliding window or stretched rotary positions.
    """
    stated = _Stated.read(folder)
    whole, text, require, value = stated.whole, stated.text, stated.require, stated.value
    kind, unsupported = whole.get("model_type"), _UNSUPPORTED
    require(kind in _KINDS, "model_type", kind, f"this decoder reads {', '.join(_KINDS)}")

    for field in ("num_experts", "num_local_experts", "quantization_config"):
        found = text.get(field) or whole.get(field)
        require(not found, field, found, unsupported)
    if kind == "qwen3":
        require(not text.get("attention_bias"), "attention_bias", True, unsupported)
    activation = text.get("hidden_act", "silu")
    require(activation == "silu", "hidden_act", activation, unsupported)

    width, heads, layers = (
        value(f) for f in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    kinds = text.get("layer_types") or ["full_attention"]
    require(set(kinds) == {"full_attention"}, "layer_types", sorted(set(kinds)), unsupported)
    windowed = (
        text.get("use_sliding_window")
        and text.get("sliding_window") is not None
        and not text.get("layer_types")
        and text.get("max_window_layers", 0) < layers
    )
    require(not windowed, "use_sliding_window", True, unsupported)

    rope = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    stretch = rope.get("rope_type", rope.get("type", "default"))
    # The three-axis positions of Omni are plain ones as long as there are no images.
    plain = ("default", "mrope") if kind in OMNI else ("default",)
    require(stretch in plain, "rope_type", stretch, unsupported)
    share = rope.get("partial_rotary_factor", text.get("partial_rotary_factor"))
    require(share in (None, 1.0), "partial_rotary_factor", share, unsupported)
    config = ModelConfig(
        d_model=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or (128 if kind == "qwen3" else width // heads),
        d_ff=value("intermediate_size"),
        rope_theta=float(rope.get("rope_theta") or value("rope_theta")),
        rms_norm_eps=float(value("rms_norm_eps")),
        qk_norm=kind == "qwen3",
        qkv_bias=kind != "qwen3",
        tie_embeddings=_tied(stated, Path(folder)),
        scan_layers=True,
    )
    return config, value("vocab_size")


def config_fields(
    c: ModelConfig, vocab_size: int, dtype: str, max_position_embeddings: int
) -> dict[str, Any]:
    """config.json; values that transformers 4 and 5 name differently stand under both names."""
    kinds = {
        (True, False): ("qwen3", "Qwen3ForCausalLM"),
        (False, True): ("qwen2", "Qwen2ForCausalLM"),
    }
    if (c.qk_norm, c.qkv_bias) not in kinds:
        raise InputError(
            f"qk_norm = {c.qk_norm}, qkv_bias = {c.qkv_bias}: no Hugging Face model has this; set"
            " exactly one of them (qk_norm: Qwen3, qkv_bias: Qwen2)"
        )
    kind, architecture = kinds[c.qk_norm, c.qkv_bias]
    return {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "tie_word_embeddings": c.tie_embeddings,
        "attention_dropout": 0.0,
        **({"attention_bias": False} if kind == "qwen3" else {}),
        "use_sliding_window": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
