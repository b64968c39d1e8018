"""A policy as a checkpoint of Qwen2.5-Omni, for `hugging_face.save_params`.

From a whole checkpoint comes a whole one, for Qwen2_5OmniForConditionalGeneration: the thinker's
decoder and audio encoder are the policy's, all else is what it was.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tarl_jax.config import InputError, ModelConfig
from tarl_jax.config.audio import AudioConfig
from tarl_jax.models.audio_encoder import to_hugging_face
from tarl_jax.models.hf_config import CONFIG
from tarl_jax.models.params import Params
from tarl_jax.models.tensor_files import Tensor, open_tensors, read_json

TOWER = "audio_tower."  # the audio encoder, as files name it
_UNREAD = "audio_bos_eos_token.weight"  # of the tower; nothing of the thinker reads it


@dataclasses.dataclass(frozen=True)
class AudioIds:
    """Ids of the markup of sound: before it, in the place of each of its tokens, behind it."""

    start: int
    token: int
    end: int


def omni_checkpoint(
    decoder: tuple[dict[str, Any], Sequence[Tensor]],
    encoder: Params | None,
    config: ModelConfig,
    ids: AudioIds | None,
    base: Path | None,
) -> tuple[dict[str, Any], list[Tensor]]:
    """config.json and all tensors.

    Args:
      decoder: both, of the decoder alone.
      encoder: the audio encoder's parameters, stacked; None: those of `base`.
      ids: needed where there is no `base`.
      base: the Omni checkpoint that the policy comes from, whose vision, talker, vocoder and
        configuration stay as they are, to the bit; None: there are none, and the vision part is of
        no size.
    Raises: ValueError where the decoder is not of Omni's kind.
    """
    fields, tensors = decoder
    if fields["model_type"] != "qwen2":
        raise InputError(
            "model.qk_norm = True: a policy that hears is written as Qwen2.5-Omni's thinker, whose"
            " decoder has qk_norm = False and qkv_bias = True"
        )
    own = [*tensors, *(_tower(config.audio, encoder) if encoder is not None else ())]
    if base is None:
        if ids is None:
            raise InputError("audio_ids = None: a policy that hears has markup of sound")
        silent = np.zeros((2, config.d_model), np.float32)
        own.append(Tensor(f"{TOWER}{_UNREAD}", silent.shape, lambda: silent))
        return _thinker(fields, config, ids), own
    stated = read_json(base / CONFIG)
    if stated["model_type"] == "qwen2_5_omni":
        own = [dataclasses.replace(tensor, name=f"thinker.{tensor.name}") for tensor in own]
    names = {tensor.name for tensor in own}
    rest = [
        Tensor(name, array.shape, functools.partial(np.asarray, array), array.dtype)
        for name, array in open_tensors(base).items() if name not in names
    ]
    dtype = {key: fields["dtype"] for key in ("dtype", "torch_dtype")}
    return {**stated, **dtype}, own + rest


def _tower(config: AudioConfig, encoder: Params) -> list[Tensor]:
    return [
        Tensor(f"{TOWER}{name}", array.shape, functools.partial(np.asarray, array))
        for name, array in to_hugging_face(config, encoder).items()
    ]


def _thinker(text: dict[str, Any], config: ModelConfig, ids: AudioIds) -> dict[str, Any]:
    half = config.head_dim // 2
    sections = [half // 4, half - 2 * (half // 4), half // 4]  # without images they say the same
    rope = {**text["rope_parameters"], "mrope_section": sections}
    own = {"model_type": "qwen2_5_omni_text", "rope_parameters": rope}
    audio = dataclasses.asdict(config.audio)
    del audio["frozen"]
    return {
        "architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"],
        "model_type": "qwen2_5_omni_thinker",
        "text_config": {**text, **own},
        "audio_config": {"model_type": "qwen2_5_omni_audio_encoder", **audio},
        "vision_config": {
            "model_type": "qwen2_5_omni_vision_encoder", "depth": 0, "hidden_size": 8,
            "intermediate_size": 8, "num_heads": 2, "out_hidden_size": config.d_model,
        },
        # Those of vision are the published ones, which no text of ours contains.
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
        "image_token_index": 151_655,
        "video_token_index": 151_656,
        "audio_start_token_id": ids.start,
        "audio_token_index": ids.token,
        "audio_end_token_id": ids.end,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": text["dtype"],
        "torch_dtype": text["torch_dtype"],
    }
