"""config.json of a Hugging Face checkpoint, read into a ModelConfig and written from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tarl_jax.config import InputError, ModelConfig
from tarl_jax.models.tensor_files import read_json

CONFIG = "config.json"
OMNI = ("qwen2_5_omni", "qwen2_5_omni_thinker")
_KINDS = ("qwen3", "qwen2", *OMNI)


def read_config(folder: str | Path) -> tuple[ModelConfig, int]:
    """The decoder's shape and its vocabulary size (padding included) from `folder`/config.json.

    Reads qwen3, qwen2 and the thinker of qwen2_5_omni. Raises ValueError for another model type
    and for what the decoder does not compute, e.g. a sliding window or stretched rotary positions.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: has no {CONFIG}: give the folder of a Hugging Face checkpoint")
    whole = read_json(path)

    def require(ok: bool, field: str, value: Any, remedy: str) -> None:
        if not ok:
            raise InputError(f"{path}: {field} = {value!r}: {remedy}")

    kind = whole.get("model_type")
    require(kind in _KINDS, "model_type", kind, f"this decoder reads {', '.join(_KINDS)}")
    outer = whole.get("thinker_config", {}) if kind == "qwen2_5_omni" else whole
    text = outer.get("text_config", {}) if kind in OMNI else whole
    unsupported = "the decoder does not compute this; choose a checkpoint without it"

    for field in ("num_experts", "num_local_experts", "quantization_config"):
        found = text.get(field) or whole.get(field)
        require(not found, field, found, unsupported)
    if kind == "qwen3":
        require(not text.get("attention_bias"), "attention_bias", True, unsupported)
    activation = text.get("hidden_act", "silu")
    require(activation == "silu", "hidden_act", activation, unsupported)

    def value(field: str) -> Any:
        require(text.get(field) is not None, field, None, "must be given; add it to the file")
        return text[field]

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
        head_dim=text.get("head_dim") or width // heads,
        d_ff=value("intermediate_size"),
        rope_theta=float(rope.get("rope_theta") or value("rope_theta")),
        rms_norm_eps=float(value("rms_norm_eps")),
        qk_norm=kind == "qwen3",
        qkv_bias=kind != "qwen3",
        tie_embeddings=bool(outer.get("tie_word_embeddings", False)),
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
