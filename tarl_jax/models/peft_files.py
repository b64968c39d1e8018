"""Adapters as a folder that PEFT loads onto the checkpoint that they were trained on."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tarl_jax.config import InputError, ModelConfig
from tarl_jax.models.hf_config import CONFIG, OMNI
from tarl_jax.models.hugging_face import leaves_of
from tarl_jax.models.params import Params
from tarl_jax.models.tensor_files import SINGLE, Tensor, new_folder, read_json, write_tensors

_TENSORS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def require_adapters(config: ModelConfig) -> None:
    """Raises InputError for a policy without adapters or a checkpoint that they belong to."""
    if not config.lora.rank:
        raise InputError("config.model.lora.rank = 0: there are no adapters to write; leave out"
                         " --adapters to write the whole policy")
    if not config.pretrained:
        raise InputError("config.model.pretrained = '': adapters belong to a checkpoint; leave out"
                         " --adapters to write the whole policy")


def save_adapters(folder: str | Path, params: Params, config: ModelConfig) -> None:
    """Writes adapter_model.safetensors (float32) and adapter_config.json.

    The base is `config.pretrained`. Of an Omni checkpoint the thinker's decoder alone has adapters,
    so its modules are named in full, as the transformers that is installed here names them.

    Args:
      params: with adapters, stacked, every shard on a device of this process.
    Raises: ValueError for a policy without adapters or a checkpoint that they belong to, and for a
      destination that holds something.
    """
    require_adapters(config)
    if not all(x.is_fully_addressable for x in jax.tree.leaves(params)):
        raise InputError("these adapters lie on devices of other processes; save from a single one")
    kind = read_json(Path(config.pretrained) / CONFIG).get("model_type")
    begins = "model.layers." if kind not in OMNI else _of_thinker(whole=kind == "qwen2_5_omni")
    tensors, modules = [], []
    for target in config.lora.targets:
        name = leaves_of(config, 1)["layers"][target].name.removesuffix(".weight")
        name = begins + name.removeprefix("model.layers.")
        modules.append(name)
        for side in "ab":
            for layer, leaf in enumerate(params["layers"][f"{target}_{side}"]):
                shape = _matrix(side, config.lora.rank, leaf.shape)
                full = f"base_model.model.{name.format(layer)}.lora_{side.upper()}.weight"
                tensors.append(Tensor(full, shape, functools.partial(_value, leaf, side)))
    short = [name.rpartition(".")[2] for name in modules]
    full = rf"{re.escape(begins)}\d+\.(self_attn|mlp)\.({'|'.join(short)})"
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None if kind in OMNI else "CAUSAL_LM",
        "base_model_name_or_path": str(config.pretrained),
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": full if kind in OMNI else short,
    }
    with new_folder(Path(folder)) as partial:
        write_tensors(partial, tensors, np.dtype(np.float32), 2**62)
        (partial / SINGLE).rename(partial / _TENSORS)
        (partial / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _of_thinker(whole: bool) -> str:
    """What names of the decoder's layers begin with; they changed with transformers 5."""
    import transformers

    inner = "model.language_model.layers." if int(transformers.__version__[0]) > 4 else (
        "model.layers.")
    return f"thinker.{inner}" if whole else inner


def _matrix(side: str, rank: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Of torch's weight, [out, in], from one layer's side of ours, [*in, rank] or [rank, *out]."""
    size = int(np.prod(shape)) // rank
    return (rank, size) if side == "a" else (size, rank)


def _value(leaf: Any, side: str) -> np.ndarray:
    flat = np.asarray(jax.device_get(leaf), np.float32)
    joined = flat.reshape(-1, flat.shape[-1]) if side == "a" else flat.reshape(flat.shape[0], -1)
    return joined.T
