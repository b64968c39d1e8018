"""The decoder against Hugging Face's, and its cached steps against the full forward pass."""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import token_log_probs

from tarl_jax.config import ModelConfig
from tarl_jax.models import cache as caches
from tarl_jax.models import decoder
from tarl_jax.models.cache import empty_cache, lengthened, rows_of, sizes_of

VOCAB = 50
SMALL = ModelConfig(d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=24,
                    rope_theta=1000.0, rms_norm_eps=1e-5)

hidden_states = jax.jit(decoder.hidden_states, static_argnums=1)
init_params = jax.jit(decoder.init_params, static_argnums=(0, 1))
cached_step = jax.jit(decoder.cached_step, static_argnums=1)


# ---- Hugging Face ---------------------------------------------------------------------------

CASES = {
    "tied": SMALL,
    "untied_no_groups": dataclasses.replace(SMALL, num_kv_heads=4, tie_embeddings=False),
    "groups_of_eight": dataclasses.replace(SMALL, num_heads=8, num_kv_heads=1, rope_theta=1e6),
    # Qwen2's heads share the width of the model.
    "qwen2": dataclasses.replace(SMALL, head_dim=4, qk_norm=False, qkv_bias=True),
    "qwen2_untied": dataclasses.replace(
        SMALL, head_dim=4, qk_norm=False, qkv_bias=True, tie_embeddings=False, num_kv_heads=1
    ),
}


def hugging_face(config: ModelConfig):
    """The same model by Hugging Face, every weight random, in float32."""
    torch = pytest.importorskip("torch", reason="the comparison needs torch (the test extra)")
    transformers = pytest.importorskip(
        "transformers", reason="the comparison needs transformers (the test extra)"
    )
    shape = dict(
        vocab_size=VOCAB,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        rope_theta=config.rope_theta,
        rms_norm_eps=config.rms_norm_eps,
        tie_word_embeddings=config.tie_embeddings,
        max_position_embeddings=128,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    if config.qk_norm:
        settings = transformers.Qwen3Config(**shape, head_dim=config.head_dim)
        model = transformers.Qwen3ForCausalLM(settings)
    else:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape))
    model = model.float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.2)
    return model


def as_params(config: ModelConfig, value_of) -> decoder.Params:
    """Our tree from Hugging Face's names; `value_of(name)` is a weight, or its gradient."""
    c = config

    def stack(name: str, *shape: int) -> np.ndarray:
        """Torch keeps a product's weight as [out, in]; ours is [in, out], heads apart."""
        layers = (value_of(f"model.layers.{i}.{name}") for i in range(c.num_layers))
        return np.stack([x.T.reshape(shape) for x in layers])

    layers = {
        "attn_norm": stack("input_layernorm.weight", c.d_model),
        "wq": stack("self_attn.q_proj.weight", c.d_model, c.num_heads, c.head_dim),
        "wk": stack("self_attn.k_proj.weight", c.d_model, c.num_kv_heads, c.head_dim),
        "wv": stack("self_attn.v_proj.weight", c.d_model, c.num_kv_heads, c.head_dim),
        "wo": stack("self_attn.o_proj.weight", c.num_heads, c.head_dim, c.d_model),
        "mlp_norm": stack("post_attention_layernorm.weight", c.d_model),
        "w_gate": stack("mlp.gate_proj.weight", c.d_model, c.d_ff),
        "w_up": stack("mlp.up_proj.weight", c.d_model, c.d_ff),
        "w_down": stack("mlp.down_proj.weight", c.d_ff, c.d_model),
    }
    if c.qk_norm:
        layers["q_norm"] = stack("self_attn.q_norm.weight", c.head_dim)
        layers["k_norm"] = stack("self_attn.k_norm.weight", c.head_dim)
    if c.qkv_bias:
        layers["bq"] = stack("self_attn.q_proj.bias", c.num_heads, c.head_dim)
        layers["bk"] = stack("self_attn.k_proj.bias", c.num_kv_heads, c.head_dim)
        layers["bv"] = stack("self_attn.v_proj.bias", c.num_kv_heads, c.head_dim)
    params = {
        "embed": value_of("model.embed_tokens.weight"),
        "layers": layers,
        "final_norm": value_of("model.norm.weight"),
    }
    if not c.tie_embeddings:
        params["head"] = value_of("lm_head.weight").T
    return params


def relative(a, b) -> float:
    """Largest difference over the largest value."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_hugging_face(case):
    config, model = CASES[case], hugging_face(CASES[case])
    import torch

    weights = dict(model.named_parameters())
    params = as_params(config, lambda name: weights[name].detach().numpy())
    expected = jax.eval_shape(lambda: decoder.init_params(config, VOCAB, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 150))

    theirs = model(torch.tensor(tokens)).logits

    log_probs = theirs[:, :-1].log_softmax(-1)
    (-log_probs.gather(-1, torch.tensor(tokens)[:, 1:, None]).mean()).backward()

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient_and_logits(p):
        scores = decoder.logits(p, decoder.hidden_states(p, config, tokens))
        return -token_log_probs(scores[:, :-1], tokens[:, 1:], 1.0)[0].mean(), scores

    gradient, ours = gradient_and_logits(params)
    assert relative(ours, theirs.detach()) < 1e-4
    wanted = as_params(config, lambda name: weights[name].grad.numpy())
    # The bias of the keys shifts all scores of a query alike: its true gradient is zero.
    differences = {
        jax.tree_util.keystr(path): relative(x, y)
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(wanted), strict=True
        )
        if "bk" not in jax.tree_util.keystr(path)
    }
    assert {k: v for k, v in differences.items() if v > 1e-3} == {}


@pytest.mark.parametrize("case", CASES)
def test_greedy_decoding_equals_hugging_face(case):
    """64 tokens through the cache, one at a time, behind a prompt fed in two pieces."""
    config, model = CASES[case], hugging_face(CASES[case])
    import torch

    weights = dict(model.named_parameters())
    params = decoder.unstack(as_params(config, lambda name: weights[name].detach().numpy()))
    prompt = np.random.default_rng(1).integers(0, VOCAB, (2, 9))
    theirs = model.generate(
        torch.tensor(prompt), attention_mask=torch.ones(2, 9, dtype=torch.long), do_sample=False,
        max_new_tokens=64, eos_token_id=None, pad_token_id=0,
    ).numpy()[:, 9:]
    cache = empty_cache(config, 2, 80)
    _, cache = cached_step(params, config, cache, prompt[:, :5], np.zeros(2, np.int32))
    hidden, cache = cached_step(params, config, cache, prompt[:, 5:], np.full(2, 5, np.int32))
    ours = []
    for place in range(9, 73):
        token = np.asarray(decoder.logits(params, hidden[:, -1]).argmax(axis=-1))
        ours.append(token)
        start = np.full(2, place, np.int32)
        hidden, cache = cached_step(params, config, cache, token[:, None], start)
    np.testing.assert_array_equal(np.stack(ours, axis=1), theirs)


# ---- the forward pass -----------------------------------------------------------------------


def test_scanned_layers_equal_unrolled_ones(random_params):
    config = dataclasses.replace(SMALL, num_layers=3)
    params = random_params(config, VOCAB, 1)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (2, 17))

    def run(scan_layers: bool):
        model = dataclasses.replace(config, scan_layers=scan_layers)

        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def gradient_and_output(p):
            out = decoder.hidden_states(p, model, tokens)
            return jnp.sum(jnp.sin(out)), out

        return gradient_and_output(params)

    for a, b in zip(*map(jax.tree.leaves, (run(True), run(False))), strict=True):
        assert relative(a, b) < 1e-5


def test_right_padding_changes_nothing_before_it(random_params):
    params = random_params(SMALL, VOCAB, 2)
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, VOCAB, (3, 24))
    short = hidden_states(params, SMALL, tokens[:, :15])
    for padding in (np.zeros((3, 9), int), rng.integers(0, VOCAB, (3, 9))):
        padded = np.concatenate((tokens[:, :15], padding), axis=1)
        long = hidden_states(params, SMALL, padded)
        np.testing.assert_allclose(long[:, :15], short, rtol=1e-5, atol=1e-5)


def test_left_padding_changes_nothing_behind_it(random_params):
    """Padding in front is a segment of its own: positions begin behind it."""
    params = random_params(SMALL, VOCAB, 2)
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, VOCAB, (3, 15))
    short = hidden_states(params, SMALL, tokens)
    padded = np.concatenate((rng.integers(0, VOCAB, (3, 9)), tokens), axis=1)
    segments = np.repeat([[0, 1]], [9, 15], axis=1).repeat(3, axis=0)
    long = hidden_states(params, SMALL, padded, segments)
    np.testing.assert_allclose(long[:, 9:], short, rtol=1e-5, atol=1e-5)


def test_rows_do_not_see_each_other(random_params):
    params = random_params(SMALL, VOCAB, 3)
    tokens = np.random.default_rng(3).integers(0, VOCAB, (4, 12))
    together = hidden_states(params, SMALL, tokens)
    for row in range(4):
        alone = hidden_states(params, SMALL, tokens[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-5, atol=1e-5)


# ---- the cache ------------------------------------------------------------------------------


ROWS, LENGTH = 4, 32  # of the cache in every test here, so that few programs are compiled


class Rows:
    """What the host knows: each cache row's sequence, and how much of it has been fed."""

    def __init__(self, params: decoder.Params, length: int = LENGTH):
        self.params, self.unstacked = params, decoder.unstack(params)
        self.rng = np.random.default_rng(4)
        self.sequences = self.rng.integers(0, VOCAB, (ROWS, LENGTH))
        self.expected = np.array(hidden_states(params, SMALL, self.sequences))
        self.fed = np.zeros(ROWS, int)
        self.cache = empty_cache(SMALL, ROWS, length)

    def feed(self, chosen: list[int], used: list[int], columns: int, places: int | None) -> None:
        """Feeds `used[i]` tokens to row `chosen[i]`, garbage in every column behind them.

        places: rows of the call, those beyond `chosen` fillers; None addresses all rows in order.
        """
        count = len(self.fed) if places is None else places
        tokens = self.rng.integers(0, VOCAB, (count, columns))
        rows = self.rng.integers(len(self.fed), len(self.fed) + 5, count)
        start = self.rng.integers(0, LENGTH, count)
        for place, (row, n) in enumerate(zip(chosen, used, strict=True)):
            rows[place], start[place] = row, self.fed[row]
            tokens[place, :n] = self.sequences[row, self.fed[row] : self.fed[row] + n]
        hidden, self.cache = cached_step(
            self.unstacked, SMALL, self.cache, tokens, start, None if places is None else rows
        )
        for place, (row, n) in enumerate(zip(chosen, used, strict=True)):
            begin = self.fed[row]
            np.testing.assert_allclose(
                hidden[place, :n], self.expected[row, begin : begin + n], rtol=1e-4, atol=1e-4
            )
            self.fed[row] += n

    def restart(self, rows: np.ndarray) -> None:
        """The rows take other sequences; what the cache holds of the old ones stays there."""
        self.sequences[rows] = self.rng.integers(0, VOCAB, (len(rows), LENGTH))
        self.expected = np.array(hidden_states(self.params, SMALL, self.sequences))
        self.fed[rows] = 0


def test_cached_steps_equal_the_full_pass(random_params):
    """Calls like the engine's: some rows at a time by chunks, or all rows by one token."""
    rows = Rows(random_params(SMALL, VOCAB, 5))
    restarts = 0
    for _ in range(60):
        columns, places = [(9, 2), (4, 3), (1, None)][rows.rng.integers(3)]
        chosen = list(range(ROWS))
        if places is not None:
            chosen = rows.rng.permutation(ROWS)[: rows.rng.integers(1, places + 1)].tolist()
        # Rows may also get nothing: then all of their columns are garbage.
        used = [int(min(rows.rng.integers(0, columns + 1), LENGTH - rows.fed[row]))
                for row in chosen]
        rows.feed(chosen, used, columns, places)
        full = np.flatnonzero(rows.fed == LENGTH)
        if full.size:
            rows.restart(full)
            restarts += full.size
    assert restarts > 2


def test_cached_steps_equal_the_full_pass_whatever_parts_the_cache_is_in(
    random_params, monkeypatch
):
    monkeypatch.setattr(caches, "_GRAIN", 5)
    rows = Rows(random_params(SMALL, VOCAB, 5))
    assert sizes_of(rows.cache[0]) == [5, 5, 5, 5, 5, 5, 2]
    for _ in range(30):
        columns, places = [(9, 2), (4, 3), (1, None)][rows.rng.integers(3)]
        chosen = rows.rng.permutation(ROWS)[:places].tolist() if places else list(range(ROWS))
        used = [int(min(rows.rng.integers(0, columns + 1), LENGTH - rows.fed[row]))
                for row in chosen]
        rows.feed(chosen, used, columns, places)
    assert max(rows.fed) == LENGTH


@pytest.mark.parametrize("columns", [1, 4])
def test_parts_that_no_row_sees_change_nothing(random_params, monkeypatch, columns):
    """To the bit: neighbours that have come further change nothing of a row."""
    monkeypatch.setattr(caches, "_GRAIN", 5)
    params = decoder.unstack(random_params(SMALL, VOCAB, 9))
    rng = np.random.default_rng(9)
    cache = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), empty_cache(SMALL, 2, LENGTH)
    )
    tokens, start = rng.integers(0, VOCAB, (2, columns)), np.array([3, 7])
    outputs = []
    for most in (None, 31, 7 + columns - 1):
        bound = None if most is None else np.int32(most)
        hidden, _ = cached_step(params, SMALL, cache, tokens, start, None, None, bound)
        outputs.append(np.asarray(hidden))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_garbage_beyond_the_end_of_the_cache_is_dropped(random_params):
    rows = Rows(random_params(SMALL, VOCAB, 6))
    for _ in range(3):
        rows.feed([0, 1], [9, 9], 9, 2)
    rows.feed([2, 0], [9, 5], 9, 2)  # row 0: four columns beyond the end
    rows.feed([2, 1], [9, 4], 9, 2)
    rows.feed([0, 1], [0, 1], 9, 2)  # row 0: all columns beyond the end; row 1: eight
    rows.feed([2], [9], 9, 2)


def test_fillers_write_nothing(random_params):
    params = decoder.unstack(random_params(SMALL, VOCAB, 7))
    cache = jax.tree.map(lambda x: x + 7.0, empty_cache(SMALL, ROWS, LENGTH))
    tokens, start = np.ones((2, 9), int), np.zeros(2, int)
    _, after = cached_step(params, SMALL, cache, tokens, start, np.array([ROWS, 900]))
    for x in jax.tree.leaves(after):
        np.testing.assert_array_equal(x, np.full_like(x, 7.0))


def test_a_resized_cache_goes_on(random_params):
    rows = Rows(random_params(SMALL, VOCAB, 8), length=12)
    rows.feed([0, 2], [9, 7], 9, 2)
    rows.feed([1, 3], [5, 9], 9, 2)
    keep = np.array([2, 0])
    more = empty_cache(SMALL, 2, LENGTH - 12)
    rows.cache = lengthened(rows_of(rows.cache, keep), more)
    rows.sequences, rows.expected = rows.sequences[keep], rows.expected[keep]
    rows.fed = rows.fed[keep]
    rows.feed([0, 1], [9, 6], 9, None)
    rows.feed([0, 1], [9, 9], 9, None)


# ---- parameters -----------------------------------------------------------------------------


def test_named_streams_differ_and_are_stable():
    key = jax.random.key(3)
    data = {name: jax.random.key_data(decoder.named_key(key, name)).tolist()
            for name in ("wq", "wk", "embed", "init", "")}
    assert len({tuple(x) for x in data.values()}) == len(data)
    number = int(hashlib.sha256(b"wq").hexdigest()[:8], 16)
    assert data["wq"] == jax.random.key_data(jax.random.fold_in(key, number)).tolist()
    other = decoder.named_key(jax.random.key(4), "wq")
    assert jax.random.key_data(other).tolist() != data["wq"]


def test_a_further_weight_does_not_shift_the_others():
    plain = init_params(SMALL, VOCAB, jax.random.key(0))
    config = dataclasses.replace(SMALL, tie_embeddings=False, qkv_bias=True, qk_norm=False)
    more = init_params(config, VOCAB, jax.random.key(0))
    assert "head" in more and "bq" in more["layers"] and "q_norm" not in more["layers"]
    np.testing.assert_array_equal(plain["embed"], more["embed"])
    for name in plain["layers"].keys() & more["layers"].keys():
        np.testing.assert_array_equal(plain["layers"][name], more["layers"][name])


def test_initial_weights_have_the_stated_spread():
    config = dataclasses.replace(SMALL, d_model=48, d_ff=64, num_layers=8)
    layers = init_params(config, VOCAB, jax.random.key(1))["layers"]
    for name in ("wq", "wk", "wv", "w_gate", "w_up"):
        assert np.std(layers[name]) == pytest.approx(0.02, rel=0.05)
    for name in ("wo", "w_down"):
        assert np.std(layers[name]) == pytest.approx(0.02 / 4, rel=0.05)
    first, second = np.array(layers["wq"][0]), np.array(layers["wq"][1])
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1
