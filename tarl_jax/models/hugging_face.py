"""Hugging Face checkpoints: read into sharded device arrays, and written for other libraries.

Torch keeps a product's weight as [out, in] with the heads joined; the tree of `decoder.py` has
[in, out] with the heads apart, and stacks the layers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tarl_jax.config import InputError, ModelConfig
from tarl_jax.models.audio_encoder import from_hugging_face
from tarl_jax.models.decoder import Params
from tarl_jax.models.hf_config import CONFIG, DECIDED, OMNI, config_fields, read_config
from tarl_jax.models.omni_files import TOWER, AudioIds, omni_checkpoint
from tarl_jax.models.tensor_files import (
    Tensor,
    new_folder,
    open_tensors,
    read_json,
    write_tensors,
)
from tarl_jax.parallel import hosts

# What a checkpoint has beside its weights and config.json; of Omni also how sound and pictures
# become numbers, and the voices of its talker.
TOKENIZER_FILES = tuple(
    "tokenizer.json tokenizer_config.json vocab.json merges.txt special_tokens_map.json"
    " added_tokens.json chat_template.jinja chat_template.json generation_config.json"
    " preprocessor_config.json processor_config.json video_preprocessor_config.json"
    " spk_dict.pt".split()
)
_LEFT_OUT = ("visual.", "talker.", "token2wav.")  # parts of an Omni checkpoint that nobody reads
_FLOATS = ("float64", "float32", "float16", "bfloat16")  # other weights are quantised
_BLOCK = 2**18  # elements that are transposed at once, so that they stay in the cache


# ---- where a leaf of the tree lies in a checkpoint -------------------------------------------


@dataclasses.dataclass(frozen=True)
class Leaf:
    """ours = stored.reshape(apart).transpose(axes), per layer where the leaf is stacked."""

    name: str  # of the tensor; {} stands for the layer
    stored: tuple[int, ...]
    apart: tuple[int, ...]
    axes: tuple[int, ...]
    layers: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the leaf in our tree."""
        stack = () if self.layers is None else (self.layers,)
        return (*stack, *(self.apart[axis] for axis in self.axes))

    @property
    def names(self) -> list[str]:
        return [self.name.format(layer) for layer in range(self.layers or 1)]


def leaves_of(c: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """The parameter tree with a Leaf in each place."""

    def vector(name: str, *apart: int) -> Leaf:
        return Leaf(name, (math.prod(apart),), apart, tuple(range(len(apart))))

    def product(name: str, out: tuple[int, ...], into: tuple[int, ...]) -> Leaf:
        count = len(out) + len(into)
        axes = (*range(len(out), count), *range(len(out)))
        return Leaf(f"{name}.weight", (math.prod(out), math.prod(into)), out + into, axes)

    d, ff, q, kv = (c.d_model,), (c.d_ff,), (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
    layer = {
        "attn_norm": vector("input_layernorm.weight", c.d_model),
        "wq": product("self_attn.q_proj", q, d),
        "wk": product("self_attn.k_proj", kv, d),
        "wv": product("self_attn.v_proj", kv, d),
        "wo": product("self_attn.o_proj", d, q),
        "mlp_norm": vector("post_attention_layernorm.weight", c.d_model),
        "w_gate": product("mlp.gate_proj", ff, d),
        "w_up": product("mlp.up_proj", ff, d),
        "w_down": product("mlp.down_proj", d, ff),
    }
    if c.qk_norm:
        layer["q_norm"] = vector("self_attn.q_norm.weight", c.head_dim)
        layer["k_norm"] = vector("self_attn.k_norm.weight", c.head_dim)
    if c.qkv_bias:
        layer["bq"] = vector("self_attn.q_proj.bias", *q)
        layer["bk"] = vector("self_attn.k_proj.bias", *kv)
        layer["bv"] = vector("self_attn.v_proj.bias", *kv)
    table = (vocab_size, c.d_model)
    tree = {
        "embed": Leaf("model.embed_tokens.weight", table, table, (0, 1)),
        "layers": {
            key: dataclasses.replace(x, name=f"model.layers.{{}}.{x.name}", layers=c.num_layers)
            for key, x in layer.items()
        },
        "final_norm": vector("model.norm.weight", c.d_model),
    }
    if not c.tie_embeddings:
        tree["head"] = product("lm_head", (vocab_size,), d)
    return tree


# ---- reading --------------------------------------------------------------------------------


def load_params(
    folder: str | Path,
    config: ModelConfig,
    vocab_size: int,
    shardings: Any = None,
    dtype: Any = "bfloat16",
) -> Params:
    """The decoder's parameters, straight from files to devices, and the audio encoder's, if any.

    Each shard of a leaf is read once, by the slices of the files that it consists of, and sent to
    the devices that hold it before the next is read: the host holds one shard at a time.

    Args:
      config, vocab_size: as `read_config` gives them, up to what config.json does not decide.
      shardings: a tree of jax.sharding.Sharding like the parameters; None: the default device.
      dtype: of all leaves.
    Raises: ValueError that lists every tensor that is missing, surplus or of another shape, and
      every field of `config` that contradicts the checkpoint; nothing has been read then.
    """
    leaves = leaves_of(config, vocab_size)
    tensors = _checked_tensors(Path(folder), leaves, config, vocab_size)
    dtype = jnp.dtype(dtype)
    encoder = {"audio": _read_audio_encoder(Path(folder), config, dtype)} if config.audio else {}
    if encoder and shardings is not None:
        encoder = hosts.put(encoder, {"audio": shardings["audio"]})
        shardings = {name: where for name, where in shardings.items() if name != "audio"}

    def load(leaf: Leaf, sharding: jax.sharding.Sharding | None = None) -> jax.Array:
        whole = (slice(None),) * len(leaf.shape)
        if sharding is None:
            return jax.device_put(_read(tensors, leaf, whole, dtype)).block_until_ready()
        arrays: dict[tuple, jax.Array] = {}
        placed = []
        for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
            key = tuple(s.indices(n) for s, n in zip(index, leaf.shape, strict=True))
            value = arrays[key] if key in arrays else _read(tensors, leaf, index, dtype)
            placed.append(jax.device_put(value, device).block_until_ready())
            arrays.setdefault(key, placed[-1])
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, placed)

    return jax.tree.map(load, leaves, *(() if shardings is None else (shardings,))) | encoder


def check_checkpoint(folder: str | Path, config: ModelConfig, vocab_size: int) -> None:
    """What `load_params` refuses of the decoder's files, by their headers alone."""
    with warnings.catch_warnings(action="ignore"):
        _checked_tensors(Path(folder), leaves_of(config, vocab_size), config, vocab_size)


def _read_audio_encoder(folder: Path, config: ModelConfig, dtype: np.dtype) -> Params:
    """The audio encoder's parameters, on the host. Raises ValueError where one is missing."""
    stored = {name.rpartition(TOWER)[2]: x for name, x in open_tensors(folder).items()
              if TOWER in name}

    def get(name: str) -> np.ndarray:
        if name not in stored:
            raise InputError(
                f"{folder}: missing {TOWER}{name}, which model.audio.encoder_layers ="
                f" {config.audio.encoder_layers} needs: is it a checkpoint of Qwen2.5-Omni?"
            )
        return np.asarray(stored[name]).astype(dtype)

    return from_hugging_face(config.audio, get)


def _checked_tensors(
    folder: Path, leaves: Params, config: ModelConfig, vocab_size: int
) -> dict[str, np.ndarray]:
    """The decoder's tensors by their plain names; see `load_params` for what it raises."""
    stated, stated_vocab = read_config(folder)
    given = {**{name: getattr(config, name) for name in DECIDED}, "vocab_size": vocab_size}
    wanted = {**{name: getattr(stated, name) for name in DECIDED}, "vocab_size": stated_vocab}
    problems = [
        f"{name} = {given[name]!r}, but the checkpoint's {CONFIG} says {wanted[name]!r}"
        for name in given
        if given[name] != wanted[name]
    ]
    tensors = open_tensors(folder)
    if read_json(folder / CONFIG)["model_type"] in OMNI:
        tensors = {name.removeprefix("thinker."): x for name, x in tensors.items()}
        unread = sum(name.startswith(_LEFT_OUT) for name in tensors)
        if unread:
            warnings.warn(
                f"{folder}: {unread} vision, talker and token2wav tensors are left out: only text"
                " and audio are in scope",
                stacklevel=3,
            )
        tensors = {n: x for n, x in tensors.items() if not n.startswith((*_LEFT_OUT, TOWER))}
    unused = ("rotary_emb.inv_freq", *(("lm_head.weight",) if config.tie_embeddings else ()))
    tensors = {name: x for name, x in tensors.items() if not name.endswith(unused)}

    expected = {name: leaf.stored for leaf in jax.tree.leaves(leaves) for name in leaf.names}
    for name in sorted(expected.keys() | tensors.keys()):
        shape = expected.get(name, "none")
        found = tensors[name].shape if name in tensors else "none"
        if found != shape:
            what = "surplus" if shape == "none" else "missing" if found == "none" else "mis-shaped"
            problems.append(f"{what} {name}: expected {shape}, found {found}")
        elif tensors[name].dtype.name not in _FLOATS:
            problems.append(
                f"quantised {name}: expected {'/'.join(_FLOATS)}, found {tensors[name].dtype.name}"
            )
    if problems:
        text = (
            f"{folder}: does not fit the model config. Take that from read_config of this folder,"
            " or download the checkpoint again:"
        )
        raise InputError("\n  ".join((text, *problems)))
    return tensors


def _read(
    tensors: dict[str, np.ndarray], leaf: Leaf, index: tuple[slice, ...], dtype: np.dtype
) -> np.ndarray:
    """leaf[index], in its own layout."""
    layers = range(leaf.layers or 1)
    if leaf.layers is not None:
        layers, index = layers[index[0]], index[1:]
    places = np.argsort(leaf.axes)  # where each axis of the file lies in our tree
    where = tuple(index[place] for place in places)
    inner = [len(range(n)[index[i]]) for i, n in enumerate(leaf.shape[-len(leaf.axes) :])]
    out = np.empty((len(layers), *inner), dtype)
    for target, layer in zip(out, layers, strict=True):
        source = tensors[leaf.name.format(layer)].reshape(leaf.apart)[where]
        target = target.transpose(places)
        step = max(1, _BLOCK // max(1, math.prod(source.shape[1:])))
        for at in range(0, len(source), step):
            target[at : at + step] = _fetch(source[at : at + step])
    return out if leaf.layers is not None else out[0]


def _fetch(mapped: np.ndarray) -> np.ndarray:
    """The one place where tensor data are read from a file."""
    return np.array(mapped)


# ---- writing --------------------------------------------------------------------------------


def save_params(
    folder: str | Path,
    params: Params,
    config: ModelConfig,
    vocab_size: int,
    dtype: Any = "bfloat16",
    max_shard_bytes: int = 5 * 10**9,
    tokenizer_files: str | Path | None = None,
    max_position_embeddings: int = 40_960,
    audio_ids: AudioIds | None = None,
) -> None:
    """Writes weights and config.json so that transformers' AutoModelForCausalLM loads them.

    A policy that hears becomes a checkpoint of Qwen2.5-Omni (`omni_files.py`), for
    Qwen2_5OmniThinkerForConditionalGeneration, or for what the checkpoint that it came from is for.

    Tensors pass through the host one layer's at a time. The folder appears only when it is whole:
    it is written beside its place and renamed.

    Args:
      params: stacked, without adapters, every shard on a device of this process.
      dtype: of the file: float32, bfloat16 or float16.
      max_shard_bytes: of one file, unless a single tensor is larger.
      tokenizer_files: a folder whose TOKENIZER_FILES are copied as they are: the checkpoint that
        the policy came from, whose config.json is kept but for the dtype.
      max_position_embeddings: the context length that other libraries assume.
      audio_ids: of a policy that hears.
    Raises: ValueError for parameters that do not fit `config`, a config that neither Qwen3 nor
      Qwen2 has, a destination that holds something, a folder without tokenizer files.
    """
    folder, dtype = Path(folder), jnp.dtype(dtype)
    if dtype.name not in _FLOATS[1:]:
        raise InputError(f"dtype = {dtype.name}: choose one of {', '.join(_FLOATS[1:])}")
    extra = [Path(tokenizer_files) / name for name in TOKENIZER_FILES] if tokenizer_files else []
    extra = [path for path in extra if path.is_file()]
    if tokenizer_files and not extra:
        raise InputError(f"{tokenizer_files}: has none of {', '.join(TOKENIZER_FILES)}")
    fields = config_fields(config, vocab_size, dtype.name, max_position_embeddings)
    base = Path(tokenizer_files) if tokenizer_files else None
    stated = read_json(base / CONFIG) if base and (base / CONFIG).is_file() else {}
    decoder = {name: value for name, value in params.items() if name != "audio"}
    tensors = _tensors_of(decoder, leaves_of(config, vocab_size), dtype)
    if config.audio or stated.get("model_type") in OMNI:
        fields, tensors = omni_checkpoint(
            (fields, tensors), params.get("audio"), config, audio_ids, base
        )
    elif stated:  # what it says beside the shape stays
        fields = {**stated, **{key: fields[key] for key in ("dtype", "torch_dtype")}}

    with new_folder(folder) as partial:
        write_tensors(partial, tensors, dtype, max_shard_bytes)
        (partial / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        for path in extra:
            shutil.copyfile(path, partial / path.name)


def _tensors_of(params: Params, leaves: Params, dtype: np.dtype) -> list[Tensor]:
    """What to write, layer by layer. Raises ValueError that lists every leaf that does not fit."""

    def by_path(tree: Params) -> dict[str, Any]:
        return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}

    ours, wanted = by_path(params), by_path(leaves)
    problems = []
    for path in sorted(ours.keys() | wanted.keys()):
        shape = wanted[path].shape if path in wanted else "none"
        found = tuple(ours[path].shape) if path in ours else "none"
        if found != shape:
            problems.append(f"{path}: expected {shape}, found {found}")
        elif isinstance(ours[path], jax.Array) and not ours[path].is_fully_addressable:
            problems.append(f"{path}: lies on devices of other processes; save from a single one")
    if problems:
        text = "these parameters do not fit the config (adapters are to be merged first):"
        raise InputError("\n  ".join((text, *problems)))

    def tensor(path: str, leaf: Leaf, layer: int) -> Tensor:
        def value() -> np.ndarray:
            x = ours[path] if leaf.layers is None else ours[path][layer]
            # A copy, since an array that is looked at on the host keeps what was fetched.
            x = jnp.array(x, dtype, copy=True).transpose(np.argsort(leaf.axes))
            return jax.device_get(x.reshape(leaf.stored))

        return Tensor(leaf.name.format(layer), leaf.stored, value)

    return [
        tensor(path, leaf, layer)
        for layer in range(max(leaf.layers or 1 for leaf in wanted.values()))
        for path, leaf in wanted.items()
        if layer < (leaf.layers or 1)
    ]
