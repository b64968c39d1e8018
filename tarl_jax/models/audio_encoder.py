"""Speech into the decoder: log-mel features, the audio encoder, and the merge with text.

The encoder is that of Qwen2.5-Omni's thinker (arXiv 2503.20215), a Whisper encoder
(arXiv 2212.04356) that sees 2 s at a time: two convolutions, sinusoidal positions that restart in
every chunk of mel frames, pre-norm blocks that attend inside the chunk, an average over pairs, a
layer norm and a projection to the decoder's width. Pure functions of an explicit parameter tree,
as in `decoder.py`; the arithmetic agrees with Hugging Face's `Qwen2_5OmniAudioEncoder` and
`WhisperFeatureExtractor`.

    encoded, counts = audio_embeddings(params, config, log_mel(waveform), frame_count(samples))
    merged = merge(decoder_params["embed"][tokens], tokens, AUDIO_TOKEN_ID, encoded, counts)

Axis words beside the letters of `types`: `samples` (16,000 a second), mel `frames` (100) and
their `bins`, `slots` for audio tokens (25), `clips` of a row, `out` the width of the decoder.
Chunks of all rows lie along one axis, `X`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tarl_jax.config import InputError
from tarl_jax.config.audio import AudioConfig
from tarl_jax.models.attention import attention
from tarl_jax.models.params import Params, named_key

SAMPLE_RATE = 16_000
WINDOW = 400  # samples under one frame
HOP = 160  # samples between frames
AUDIO_TOKEN_ID = 151_646  # Qwen2.5-Omni's placeholder for one audio token, <|AUDIO|>

PEAK = 14.0  # of the scores that heads of an untrained encoder begin with
_APART = 6  # positions of 20 ms between what neighbouring heads of its first layer look at
Count = TypeVar("Count", int, np.ndarray, jax.Array)


# ---- features -------------------------------------------------------------------------------


def frame_count(samples: Count) -> Count:
    """Mel frames of a clip of so many samples: one for each begun hop."""
    return -(-samples // HOP)


def token_count(frames: Count) -> Count:
    """Audio tokens of a clip of so many mel frames; 0 for a clip of fewer than 3."""
    return (frames + 1) // 4  # the second convolution rounds up, the average over pairs down


def log_mel(
    waveform: Float[Array, "*B samples"], num_mel_bins: int = 128
) -> Float[Array, "*B frames bins"]:
    """Whisper's features: log10 of mel power, at most 8 below the clip's largest, (x + 4) / 4.

    Silence follows a clip, as in the extractor, which pads it to a fixed length: rows of a batch
    may be padded with zeros, and their first `frame_count` frames stay what they are. The largest
    power is looked for in every frame that touches the clip, also those centred beyond its end,
    which are not returned. (There a clip that fills the fixed length is mirrored at its end.)

    Args:
      waveform: mono at 16 kHz, in [-1, 1]; one clip, or rows of clips.
    """
    samples = waveform.shape[-1]
    touching = frame_count(samples + WINDOW // 2)
    silence = WINDOW // 2 + HOP * (touching - 1) - samples
    padded = jnp.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(0, silence)])
    padded = jnp.concatenate((padded[..., WINDOW // 2 : 0 : -1], padded), axis=-1)  # mirrored start
    framed = padded[..., HOP * np.arange(touching)[:, None] + np.arange(WINDOW)]
    log = log_power(framed, num_mel_bins)
    log = jnp.maximum(log, log.max(axis=(-2, -1), keepdims=True) - 8.0)
    return (log[..., : frame_count(samples), :] + 4.0) / 4.0


def log_power(
    framed: Float[Array, "*B frames window"], num_mel_bins: int
) -> Float[Array, "*B frames bins"]:
    """log10 of the mel power of frames of WINDOW samples."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi / WINDOW * np.arange(WINDOW))
    spectrum = jnp.fft.rfft(framed * window.astype(np.float32))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    # In full float32 also where products of matrices default to less: a sum spans eight decades.
    mel = jnp.matmul(power, mel_filters(num_mel_bins), precision=lax.Precision.HIGHEST)
    return jnp.log10(jnp.maximum(mel, 1e-10))


@functools.cache
def mel_filters(num_mel_bins: int) -> np.ndarray:
    """Triangles of unit area on Slaney's mel scale, 0 to 8 kHz: float32 [WINDOW // 2 + 1, bins].

    The scale (M. Slaney, Auditory Toolbox, 1998) has 200/3 Hz a mel up to 1 kHz, and a factor of
    6.4 for every 27 mels above. Neighbouring triangles share corners.
    """
    knee, per_mel, growth = 1000.0, 200 / 3, math.log(6.4) / 27
    top = knee / per_mel + math.log(SAMPLE_RATE / 2 / knee) / growth
    mels = np.linspace(0.0, top, num_mel_bins + 2)
    above = knee * np.exp(growth * (mels - knee / per_mel))
    corners = np.where(mels < knee / per_mel, per_mel * mels, above)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = np.linspace(0.0, SAMPLE_RATE / 2, WINDOW // 2 + 1)[:, None]
    rise, fall = (bins - left) / (centre - left), (right - bins) / (right - centre)
    weights = np.maximum(np.minimum(rise, fall), 0.0) * 2 / (right - left)
    return weights.astype(np.float32)


# ---- parameters -----------------------------------------------------------------------------

# Ours: (Hugging Face's name, axes). `tap` is the width of a convolution.
_OUTER = {
    "conv1": ("conv1.weight", "tap bins D"),
    "conv1_bias": ("conv1.bias", "D"),
    "conv2": ("conv2.weight", "tap D D"),
    "conv2_bias": ("conv2.bias", "D"),
    "final_norm": ("ln_post.weight", "D"),
    "final_norm_bias": ("ln_post.bias", "D"),
    "project": ("proj.weight", "D out"),
    "project_bias": ("proj.bias", "out"),
}
_LAYER = {
    "attn_norm": ("self_attn_layer_norm.weight", "D"),
    "attn_norm_bias": ("self_attn_layer_norm.bias", "D"),
    "wq": ("self_attn.q_proj.weight", "D N H"),
    "wq_bias": ("self_attn.q_proj.bias", "N H"),
    "wk": ("self_attn.k_proj.weight", "D N H"),
    "wv": ("self_attn.v_proj.weight", "D N H"),
    "wv_bias": ("self_attn.v_proj.bias", "N H"),
    "wo": ("self_attn.out_proj.weight", "N H D"),
    "wo_bias": ("self_attn.out_proj.bias", "D"),
    "mlp_norm": ("final_layer_norm.weight", "D"),
    "mlp_norm_bias": ("final_layer_norm.bias", "D"),
    "w_up": ("fc1.weight", "D F"),
    "w_up_bias": ("fc1.bias", "F"),
    "w_down": ("fc2.weight", "F D"),
    "w_down_bias": ("fc2.bias", "D"),
}


def _shape(config: AudioConfig, axes: str) -> tuple[int, ...]:
    c = config
    sizes = {"tap": 3, "bins": c.num_mel_bins, "D": c.d_model, "F": c.encoder_ffn_dim,
             "N": c.encoder_attention_heads, "H": c.head_dim, "out": c.output_dim}  # fmt: skip
    return tuple(sizes[axis] for axis in axes.split())


def init_audio_params(config: AudioConfig, key: jax.Array) -> Params:
    """Random parameters: normal with std 0.02, output projections scaled by 1/sqrt(2 L).

    Those of the convolutions have std sqrt(2 / inputs) (arXiv 1502.01852): the sinusoids of size 1
    are added to what comes out of them, and would drown anything smaller. `local_projections` are
    added to those of queries and keys: heads begin by looking a few positions ahead or back, as
    convolutions would (arXiv 1911.03584).
    """
    layers = config.encoder_layers

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        if name.endswith(("norm", "bias")):
            return jnp.full(shape, float(name.endswith("norm")), jnp.float32)
        std = 0.02 / (2 * layers) ** 0.5 if name in ("wo", "w_down") else 0.02
        if name.startswith("conv"):
            std = (2 / math.prod(shape[:-1])) ** 0.5
        return std * jax.random.normal(named_key(key, f"audio/{name}"), shape, jnp.float32)

    params = {name: draw(name, _shape(config, axes)) for name, (_, axes) in _OUTER.items()}
    block = {name: (layers, *_shape(config, axes)) for name, (_, axes) in _LAYER.items()}
    drawn = {name: draw(name, shape) for name, shape in block.items()}
    queries, keys = local_projections(config)
    drawn |= {"wq": drawn["wq"] + queries, "wk": drawn["wk"] + keys}
    return {**params, "layers": drawn}


def local_projections(config: AudioConfig) -> tuple[np.ndarray, np.ndarray]:
    """Projections of queries and keys that make each head look at one distance, [L, D, N, H] each.

    The score of position t' for one at t is PEAK times the mean of cos(w (t' - t - distance)) over
    the quicker frequencies w of the sinusoids. Distances are spread evenly about 0, twice as far in
    the second layer as in the first and so on, inside the chunk.
    """
    layers, heads, width, half = (
        config.encoder_layers, config.encoder_attention_heads, config.head_dim, config.d_model // 2
    )
    count = min(width // 2, max(half // 4, 1))
    frequency = _frequencies(half)[:count]
    apart = np.minimum(_APART * np.arange(1, layers + 1), config.n_window / (2 * heads))
    distance = apart[:, None] * (np.arange(heads) - (heads - 1) / 2)
    angle = distance[..., None] * frequency  # [L, N, pair]
    size = (PEAK * width**0.5 / max(count, 1)) ** 0.5
    queries, keys = np.zeros((2, layers, config.d_model, heads, width), np.float32)
    pair = np.arange(count)
    sine, cosine = pair, half + pair  # the inputs; each pair has two of a head's places
    queries[:, sine, :, 2 * pair] = queries[:, cosine, :, 2 * pair + 1] = size
    turned = np.moveaxis(size * np.exp(1j * angle), -1, 0)  # [pair, L, N]
    keys[:, sine, :, 2 * pair] = keys[:, cosine, :, 2 * pair + 1] = turned.real
    keys[:, cosine, :, 2 * pair], keys[:, sine, :, 2 * pair + 1] = -turned.imag, turned.imag
    return queries, keys


def logical_axes(name: str) -> tuple[str | None, ...]:
    """The axes of an array of the tree for `mesh.RULES`: a matrix is split once, along D."""
    words = {**_OUTER, **_LAYER}[name][1].split()
    axes: list[str | None] = [None] * len(words)
    if len(words) > 1 and "D" in words:
        axes[len(words) - 1 - words[::-1].index("D")] = "embed"
    return ("layers", *axes) if name in _LAYER else tuple(axes)


def hugging_face_names(config: AudioConfig) -> dict[str, tuple[str, ...]]:
    """For each of our arrays ("conv1", "layers/wq", …) Hugging Face's names behind its prefix.

    One name, or one per layer where ours is stacked. The tower's `audio_bos_eos_token` is in no
    list: nothing of the thinker reads it.
    """
    names: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, (theirs, _) in _OUTER.items()}
    for ours, (theirs, _) in _LAYER.items():
        every = range(config.encoder_layers)
        names[f"layers/{ours}"] = tuple(f"layers.{i}.{theirs}" for i in every)
    return names


def from_hugging_face(config: AudioConfig, get: Callable[[str], np.ndarray]) -> Params:
    """Our tree of NumPy arrays; raises ValueError where an array does not fit the config.

    Args:
      get: the array behind a name of `thinker.audio_tower.*`, without that prefix.
    """
    names = hugging_face_names(config)

    def load(name: str, axes: str) -> np.ndarray:
        """Torch keeps [out, in] or [out, in, tap]; ours is the reverse, heads apart."""
        value, shape = np.asarray(get(name)), _shape(config, axes)
        if value.size != math.prod(shape):
            raise InputError(
                f"audio_tower.{name} has shape {value.shape}, and the config wants {shape} of it"
                f" ({axes}): take AudioConfig's values from the checkpoint's config.json"
            )
        return value.T.reshape(shape)

    params = {ours: load(names[ours][0], axes) for ours, (_, axes) in _OUTER.items()}
    layers = {}
    for ours, (_, axes) in _LAYER.items():
        layers[ours] = np.stack([load(name, axes) for name in names[f"layers/{ours}"]])
    return {**params, "layers": layers}


def to_hugging_face(config: AudioConfig, params: Params) -> dict[str, np.ndarray]:
    """The reverse of `from_hugging_face`: the arrays by their names behind `audio_tower.`."""

    def stored(value: np.ndarray, axes: str) -> np.ndarray:
        return value.reshape(_shape(config, axes.replace("N H", "D"))).T  # heads joined: width D

    found = {
        theirs: stored(np.asarray(params[ours]), axes) for ours, (theirs, axes) in _OUTER.items()
    }
    for ours, (theirs, axes) in _LAYER.items():
        for index, value in enumerate(np.asarray(params["layers"][ours])):
            found[f"layers.{index}.{theirs}"] = stored(value, axes)
    return found


# ---- the encoder ----------------------------------------------------------------------------


def audio_embeddings(
    params: Params,
    config: AudioConfig,
    features: Float[Array, "B frames bins"],
    lengths: Int[Array, " B"],
) -> tuple[Float[Array, "B slots out"], Int[Array, " B"]]:
    """The clips as the decoder reads them, and how many tokens each has.

    Args:
      features: log-mel; what stands behind a row's length does not matter.
      lengths: mel frames of each row, at most those of `features`.
    Returns: [B, token_count(frames), output_dim], zero behind a row's tokens; token counts.
    """
    rows, frames, bins = features.shape
    chunk = 2 * config.n_window
    chunks = -(-frames // chunk)
    real = jnp.arange(chunks * chunk) < lengths[:, None]
    features = jnp.pad(features, ((0, 0), (0, chunks * chunk - frames), (0, 0)))
    features = jnp.where(real[..., None], features, 0.0).astype(params["conv1"].dtype)
    shape = (rows * chunks, chunk)
    x = _encode(params, config, features.reshape(*shape, bins), real.reshape(shape))
    slots = token_count(frames)
    # Pairs are of the row: where a chunk has an odd number of positions they cross its end.
    pairs = x.reshape(rows, chunks * config.n_window, -1)[:, : 2 * slots]
    x = pairs.reshape(rows, slots, 2, -1).mean(axis=2)
    x = layer_norm(x, params["final_norm"], params["final_norm_bias"])
    x = x @ params["project"] + params["project_bias"]
    counts = token_count(lengths)
    return jnp.where((jnp.arange(slots) < counts[:, None])[..., None], x, 0.0), counts


def _encode(
    params: Params,
    config: AudioConfig,
    features: Float[Array, "X frames bins"],
    real: Bool[Array, "X frames"],
) -> Float[Array, "X C D"]:
    """Every chunk by itself: half as many positions as frames."""
    x = _convolve(features, params["conv1"], params["conv1_bias"], stride=1)
    # To the second convolution a frame beyond the clip is like one beyond the chunk: zero.
    x = jnp.where(real[..., None], x, 0.0)
    x = _convolve(x, params["conv2"], params["conv2_bias"], stride=2)
    x = x + sinusoids(config.n_window, config.d_model).astype(x.dtype)
    chunks, length, width = x.shape
    heads = config.encoder_attention_heads, config.head_dim
    visible = real[:, None, ::2]

    # The positions of all chunks in one axis: a weight's gradient is then one plain product.
    def block(x: Array, layer: Params) -> tuple[Array, None]:
        h = layer_norm(x, layer["attn_norm"], layer["attn_norm_bias"])
        q = jnp.tensordot(h, layer["wq"], 1) + layer["wq_bias"]
        k = jnp.tensordot(h, layer["wk"], 1)
        v = jnp.tensordot(h, layer["wv"], 1) + layer["wv_bias"]
        q, k, v = (each.reshape(chunks, length, *heads) for each in (q, k, v))
        out = attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible).reshape(-1, *heads)
        x = x + jnp.tensordot(out, layer["wo"], 2) + layer["wo_bias"]
        h = layer_norm(x, layer["mlp_norm"], layer["mlp_norm_bias"])
        h = jax.nn.gelu(h @ layer["w_up"] + layer["w_up_bias"], approximate=False)
        return x + h @ layer["w_down"] + layer["w_down_bias"], None

    x = lax.scan(block, x.reshape(-1, width), params["layers"])[0]
    return x.reshape(chunks, length, width)


def _convolve(x: Array, kernel: Array, bias: Array, stride: int) -> Array:
    layout = ("NWC", "WIO", "NWC")
    x = lax.conv_general_dilated(x, kernel, (stride,), [(1, 1)], dimension_numbers=layout)
    return jax.nn.gelu(x + bias, approximate=False)


def sinusoids(positions: int, width: int) -> np.ndarray:
    """Sines, then cosines, of position / 10,000^(i / (width/2 - 1)): float32 [positions, width]."""
    angle = np.arange(positions)[:, None] * _frequencies(width // 2)
    return np.concatenate((np.sin(angle), np.cos(angle)), axis=1).astype(np.float32)


def _frequencies(count: int) -> np.ndarray:
    return 10_000.0 ** (-np.arange(count) / (count - 1))


def layer_norm(
    x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"]
) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(variance + 1e-5) * scale + bias (arXiv 1607.06450)."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-5)
    return (wide * scale + bias).astype(x.dtype)


# ---- the merge with text --------------------------------------------------------------------


def join_clips(
    audio: Float[Array, "B clips slots D"], counts: Int[Array, "B clips"]
) -> tuple[Float[Array, "B joined D"], Int[Array, " B"]]:
    """The clips of each row one behind the other, their padding at the end (zero), and the sums.

    For dialogues: one clip per spoken turn, an absent clip has count 0. joined = clips * slots.
    """
    rows, clips, slots, width = audio.shape
    empty = (jnp.arange(slots) >= counts[..., None]).reshape(rows, clips * slots)
    order = jnp.argsort(empty, axis=1, stable=True)
    joined = jnp.where(empty[..., None], 0.0, audio.reshape(rows, clips * slots, width))
    return jnp.take_along_axis(joined, order[..., None], axis=1), counts.sum(axis=1)


def merge(
    embeddings: Float[Array, "B S D"],
    tokens: Int[Array, "B S"],
    audio_token_id: int,
    audio: Float[Array, "B slots D"],
    counts: Int[Array, " B"],
) -> Float[Array, "B S D"]:
    """The decoder's input: a row's n-th placeholder token becomes its n-th audio embedding.

    Args:
      embeddings: of every token, text or placeholder.
      audio, counts: of `audio_embeddings` (one clip a row) or of `join_clips`.
    Returns: `embeddings` with the placeholders' replaced. A row that has not as many placeholders
      as audio tokens is all NaN, so that a wrongly built prompt cannot go unseen; `token_count`
      says how many a clip needs.
    """
    placeholder = tokens == audio_token_id
    index = jnp.clip(jnp.cumsum(placeholder, axis=1) - 1, 0, audio.shape[1] - 1)
    chosen = jnp.take_along_axis(audio, index[..., None], axis=1).astype(embeddings.dtype)
    merged = jnp.where(placeholder[..., None], chosen, embeddings)
    return jnp.where((placeholder.sum(axis=1) == counts)[:, None, None], merged, jnp.nan)
