"""One optimiser update: how it is split never matters, and what must not count does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import token_log_probs

from tarl_jax.config import LoraConfig, ModelConfig, RLConfig
from tarl_jax.config.credit import ValueConfig
from tarl_jax.models import decoder
from tarl_jax.parallel.mesh import make_mesh, replicated
from tarl_jax.rl.batching import fill, padded_layouts, samples_of
from tarl_jax.rl.update import NonFiniteError, Updater
from tarl_jax.rollout.engine import Engine
from tarl_jax.types import Batch

VOCAB = 20
MODEL = ModelConfig(d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24)
CONFIG = RLConfig(learning_rate=1e-3, warmup_steps=1, max_grad_norm=1.0, kl_coef=0.0)
ROWS, LENGTH = 8, 16
TEMPERATURE = 0.8
GOLDEN = {
    "loss": 0.09964852333068848, "kl": 0.07702571868896485, "kl_reference": 0.0,
    "entropy": 2.9870199584960937, "clipped": 0.32, "gap": 0.27795665740966796,
    "gap_max": 0.8942265510559082, "grad_norm": 0.7442606687545776, "tokens": 100.0,
}


@pytest.fixture(scope="module")
def params(random_params):
    return jax.device_put(random_params(MODEL, VOCAB, 0), replicated(make_mesh()))


@pytest.fixture(scope="module")
def updater():
    return Updater(MODEL, VOCAB, CONFIG, TEMPERATURE, make_mesh())


@jax.jit
def log_probs_of(params, tokens):
    """[B, S]; entry s is about the token at s, 0 at the first."""
    scores = decoder.logits(params, decoder.hidden_states(params, MODEL, tokens))
    log_probs, _ = token_log_probs(scores[:, :-1], tokens[:, 1:], TEMPERATURE)
    return jnp.pad(log_probs, ((0, 0), (1, 0)))


@pytest.fixture(scope="module")
def batch(params) -> Batch:
    """Rows of different lengths, about half of the tokens sampled, by a slightly other policy."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    within = np.arange(LENGTH) < rng.integers(8, LENGTH + 1, (ROWS, 1))
    sampled = within & (rng.random((ROWS, LENGTH)) < 0.5)
    sampled[:, 0] = False
    # Far enough for the clip to hold some tokens back.
    old = np.array(log_probs_of(params, tokens * within)) + rng.normal(0, 0.3, (ROWS, LENGTH))
    return Batch(
        tokens=tokens * within,
        sampled=sampled.astype(np.float32),
        log_probs=(sampled * old).astype(np.float32),
        advantages=(sampled * rng.standard_normal((ROWS, 1))).astype(np.float32),
    )


def update(updater, params, batches, steps=2, reference=None):
    """(parameters after `steps` updates on the same batches, means of the last)."""
    state = updater.init(params)
    for _ in range(steps):
        state, values = updater.update(state, batches, reference)
    return jax.device_get(state.params), values


def largest_change(a, b) -> float:
    pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
    return max(float(np.abs(np.array(x) - np.array(y)).max()) for x, y in pairs)


def assert_same_update(one, other, batches, other_batches, params):
    """Gradients to a ten-thousandth of their largest entries, and two updates by them.

    Adam divides by an entry's size, even where that is rounding: where a gradient is small, a moved
    parameter may be off by a little of a step's length, differently on each machine.
    """
    first = [
        optax.tree_utils.tree_get(
            updater.update(updater.init(params), of, None)[0].opt_state, "mu"
        )
        for updater, of in ((one, batches), (other, other_batches))
    ]
    (moved, values), (there, other_values) = (
        update(updater, params, of) for updater, of in ((one, batches), (other, other_batches))
    )
    trees = *jax.device_get(first), moved, there
    for x, y, p, q in zip(*map(jax.tree.leaves, trees), strict=True):
        largest = np.abs(x).max()
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * largest)
        clear = np.abs(x) > 1e-2 * largest
        assert clear.mean() > 0.5 and np.abs((p - q) * clear).max() < 1e-6
    assert largest_change(moved, params) > 1e-4
    assert largest_change(moved, there) < CONFIG.learning_rate / 20
    assert other_values == pytest.approx(values, rel=1e-4, abs=1e-6)


def rows_of(batch: Batch, rows) -> Batch:
    return jax.tree.map(lambda x: x[rows], batch)


# ---- splitting ------------------------------------------------------------------------------


def test_micro_batches_equal_one_batch(updater, params, batch):
    parts = [rows_of(batch, slice(i, i + 2)) for i in range(0, ROWS, 2)]
    assert_same_update(updater, updater, [batch], parts, params)
    _, values = update(updater, params, parts)
    assert values["tokens"] == batch.sampled.sum()


def test_packed_rows_equal_separate_ones(updater, params, batch):
    pairs = [
        jax.tree.map(lambda x, i=i: np.concatenate([x[i], x[i + 1]])[None], batch)
        for i in range(0, ROWS, 2)
    ]
    packed = jax.tree.map(lambda *rows: np.concatenate(rows), *pairs)
    length = batch.tokens.shape[1]
    segments = np.repeat([[1, 2]], length, axis=1).repeat(ROWS // 2, axis=0).astype(np.int32)
    assert_same_update(updater, updater, [batch], [packed.replace(segments=segments)], params)


def test_fillers_and_padding_change_nothing(updater, params, batch):
    """Two empty rows, and eight empty columns, in batches of unequal shapes."""
    first = jax.tree.map(lambda x: np.pad(x, ((0, 1), (0, 8))), rows_of(batch, slice(0, 3)))
    second = jax.tree.map(lambda x: np.pad(x, ((0, 1), (0, 0))), rows_of(batch, slice(3, 8)))
    assert_same_update(updater, updater, [batch], [first, second], params)


def test_one_device_equals_two(params, batch, updater):
    mesh = make_mesh(devices=jax.devices()[:1])
    alone = Updater(MODEL, VOCAB, CONFIG, TEMPERATURE, mesh)
    assert_same_update(updater, alone, [batch], [batch], jax.device_get(params))


# ---- what counts ----------------------------------------------------------------------------


def test_forced_tokens_do_not_count(updater, params, batch):
    rng = np.random.default_rng(1)
    first, second = (1 - batch.sampled) * rng.normal(0, 30, (2, ROWS, LENGTH)).astype(np.float32)
    garbage = batch.replace(advantages=batch.advantages + first, log_probs=batch.log_probs + second)
    clean, clean_values = update(updater, params, [batch])
    other, other_values = update(updater, params, [garbage])
    assert largest_change(clean, other) == 0.0
    assert other_values == clean_values


def test_sampled_tokens_count(updater, params, batch):
    flipped, _ = update(updater, params, [batch.replace(advantages=-batch.advantages)])
    assert largest_change(flipped, update(updater, params, [batch])[0]) > 1e-4


def test_a_positive_advantage_makes_the_sampled_tokens_likelier(updater, params, batch):
    on_policy = batch.sampled * np.array(log_probs_of(params, batch.tokens))
    for sign in (1.0, -1.0):
        signed = batch.replace(advantages=sign * batch.sampled, log_probs=on_policy)
        after, _ = update(updater, params, [signed], steps=3)
        change = batch.sampled * (np.array(log_probs_of(after, batch.tokens)) - on_policy)
        assert sign * change.sum() > 0


def test_reported_means_are_of_the_sampled_tokens(updater, params, batch):
    _, values = update(updater, params, [batch], steps=1)
    sampled = batch.sampled > 0
    now = np.array(log_probs_of(params, batch.tokens), np.float64)[sampled]
    old = batch.log_probs[sampled].astype(np.float64)
    advantage = batch.advantages[sampled].astype(np.float64)
    ratio = np.exp(now - old)
    clipped = np.clip(ratio, 1 - CONFIG.clip_low, 1 + CONFIG.clip_high)
    loss = -np.minimum(ratio * advantage, clipped * advantage)
    assert values["loss"] == pytest.approx(loss.mean(), rel=1e-4, abs=1e-6)
    assert values["gap"] == pytest.approx(np.abs(now - old).mean(), rel=1e-3)
    assert values["gap_max"] == pytest.approx(np.abs(now - old).max(), rel=1e-3)
    assert values["clipped"] == pytest.approx(np.mean(clipped * advantage < ratio * advantage))
    assert values["clipped"] > 0
    # k3 of tokens drawn from the old policy, as KL(old || new).
    assert values["kl"] == pytest.approx((ratio - (now - old) - 1).mean(), rel=1e-3)
    assert values["kl_reference"] == 0.0
    assert 0 < values["entropy"] < np.log(VOCAB)


def test_the_gradient_is_of_the_mean_over_sampled_tokens(updater, params, batch):
    def loss(p):
        now = log_probs_of(p, batch.tokens)
        ratio = jnp.exp(jnp.where(batch.sampled > 0, now - batch.log_probs, 0.0))
        bounded = jnp.clip(ratio, 1 - CONFIG.clip_low, 1 + CONFIG.clip_high)
        both = jnp.minimum(ratio * batch.advantages, bounded * batch.advantages)
        return -jnp.sum(both * batch.sampled) / batch.sampled.sum()

    gradient = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    norm = float(np.sqrt(sum(np.sum(np.square(np.array(g, np.float64))) for g in gradient)))
    parts = [rows_of(batch, slice(i, i + 2)) for i in range(0, ROWS, 2)]
    for batches in ([batch], parts):
        _, values = update(updater, params, batches, steps=1)
        assert values["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_a_large_gradient_is_clipped(updater, params, batch):
    """Beyond the limit only its direction counts, also in what Adam remembers of it."""
    ends = []
    for scale in (1e2, 1e4):
        state, values = updater.update(
            updater.init(params), [batch.replace(advantages=scale * batch.advantages)], None
        )
        assert values["grad_norm"] > scale / 100 >= CONFIG.max_grad_norm  # as it was before
        for _ in range(3):
            state, _ = updater.update(state, [batch.replace(advantages=-batch.advantages)], None)
        ends.append(jax.device_get(state.params))
    assert largest_change(*ends) < 1e-5
    assert largest_change(ends[0], params) > 1e-4


def test_the_first_update_moves_the_parameters(params, batch):
    """Without warm-up at once; with one of n steps by no more than the share of the first."""
    moved = [
        largest_change(
            update(
                Updater(
                    MODEL,
                    VOCAB,
                    dataclasses.replace(CONFIG, warmup_steps=steps),
                    TEMPERATURE,
                    make_mesh(),
                ),
                params,
                [batch],
                steps=1,
            )[0],
            params,
        )
        for steps in (0, 4)
    ]
    # Adam's first step is the rate itself, wherever there is a gradient.
    assert moved[0] == pytest.approx(CONFIG.learning_rate, rel=0.01)
    assert moved[1] <= CONFIG.learning_rate / 3


# ---- other losses and means -----------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    {"loss_mean": "sequence"},
    {"loss_mean": "constant", "loss": "spo", "clip_low": 0.2, "clip_high": 0.2},
    {"loss_mean": "sequence", "loss": "gspo", "entropy_coef": 0.01},
    {"advantage": "gae", "loss_mean": "sequence", "value": ValueConfig(trunk="shared", clip=0.5)},
], ids=lambda fields: "-".join(map(str, fields)))
def test_one_batch_of_8_equals_4_of_2_and_packed_rows(params, batch, fields):
    updater = Updater(MODEL, VOCAB, dataclasses.replace(CONFIG, **fields), TEMPERATURE, make_mesh())
    if "value" in fields:
        batch = valued(batch)
    parts = [rows_of(batch, slice(i, i + 2)) for i in range(0, ROWS, 2)]
    pairs = [
        jax.tree.map(lambda x, i=i: np.concatenate([x[i], x[i + 1]])[None], batch)
        for i in range(0, ROWS, 2)
    ]
    packed = jax.tree.map(lambda *rows: np.concatenate(rows), *pairs)
    segments = np.repeat([[1, 2]], LENGTH, axis=1).repeat(ROWS // 2, axis=0).astype(np.int32)
    for batches in (parts, [packed.replace(segments=segments)]):
        assert_same_update(updater, updater, [batch], batches, params)


def test_a_golden_update():
    """Two updates on fixed arrays: the default's numbers, as they were before there was a choice.

    Seen at commit 7e81b38 on a CPU, with these very arrays.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (8, 16)).astype(np.int32)
    sampled = (rng.random((8, 16)) < 0.5).astype(np.float32)
    sampled[:, 0] = 0
    old = (sampled * (-3 + 0.3 * rng.normal(size=(8, 16)))).astype(np.float32)
    advantages = (sampled * rng.standard_normal((8, 1))).astype(np.float32)
    updater = Updater(MODEL, VOCAB, CONFIG, TEMPERATURE, make_mesh())
    params = updater.random(jax.random.key(0))
    batches = [Batch(tokens, sampled, old, advantages)] * 2
    _, values = update(updater, params, batches, steps=2)
    assert values == pytest.approx(GOLDEN, rel=1e-5)


# ---- the value model ------------------------------------------------------------------------


def valued(batch: Batch) -> Batch:
    rng = np.random.default_rng(5)
    values, returns = (batch.sampled * rng.normal(2, 1, (2, ROWS, LENGTH))).astype(np.float32)
    return batch.replace(values=values, returns=returns)


def ppo(trunk="own", model=MODEL, **fields):
    value = ValueConfig(trunk=trunk, learning_rate=3e-2)
    config = dataclasses.replace(CONFIG, advantage="gae", value=value, **fields)
    return Updater(model, VOCAB, config, TEMPERATURE, make_mesh())


LORA = dataclasses.replace(MODEL, lora=LoraConfig(rank=2))


@pytest.mark.parametrize("model", [MODEL, LORA], ids=["all", "adapters"])
@pytest.mark.parametrize("trunk", ["own", "shared"])
def test_the_value_model_learns_the_returns_while_the_policy_stands_still(
    params, batch, trunk, model
):
    """And nothing compiles once the policy moves; what is scored is what the update sees."""
    updater = ppo(trunk, model)
    state = updater.init(params)
    batch = valued(batch)
    updater.compile(state, [batch.tokens.shape])
    compiled, before = updater.compilations, jax.device_get((state.params, state.opt_state))
    frozen = jax.device_get(state.frozen)
    sized = updater.model_sized(batch.tokens.shape, False)
    assert set(sized) == {"gradient", "apply", "score", "measure"}
    (first,) = updater.score(state, [batch], None)["values"]
    assert not first.any()  # its head starts at zero
    seen = []
    for _ in range(30):
        state, values = updater.update(state, [batch], None, train_policy=False)
        seen.append(values["value_loss"])
    mask = batch.sampled > 0
    assert seen[0] == pytest.approx(0.5 * np.mean(batch.returns[mask] ** 2), rel=1e-4)
    assert seen[-1] < 0.5 * seen[0]
    assert largest_change(before, jax.device_get((state.params, state.opt_state))) == 0.0
    (now,) = updater.score(state, [batch], None)["values"]
    assert not now[~mask].any()
    expected = 0.5 * np.mean((now - batch.returns)[mask] ** 2)
    state, values = updater.update(state, [batch], None)
    assert values["value_loss"] == pytest.approx(expected, rel=1e-4)
    assert largest_change(before[0], jax.device_get(state.params)) > 1e-5
    if frozen:
        assert largest_change(frozen, jax.device_get(state.frozen)) == 0.0
    assert updater.compilations == compiled


def test_the_policy_takes_the_same_step_beside_a_value_model_of_its_own(updater, params, batch):
    alone, _ = update(updater, params, [batch])
    beside, _ = update(ppo(), params, [valued(batch)])
    assert largest_change(alone, beside) < 1e-7


def test_values_are_of_the_state_before_the_token(params, batch):
    """Against the trunk's own outputs: position s - 1 says what the token at s is worth."""
    updater = ppo()
    state = updater.init(params)
    head = np.random.default_rng(2).normal(size=MODEL.d_model).astype(np.float32)
    state = state.replace(value={**state.value, "value_head": jnp.array(head)})
    (got,) = updater.score(state, [batch], None)["values"]
    hidden = np.array(decoder.hidden_states(params, MODEL, batch.tokens), np.float64)
    wanted = np.pad((hidden @ head)[:, :-1], ((0, 0), (1, 0))) * batch.sampled
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_scores_that_a_penalty_in_the_reward_and_truncated_weights_need(params, batch):
    config = dataclasses.replace(
        CONFIG, kl_coef=0.1, kl_in="reward", kl_estimator="k1", tis_cap=2.0
    )
    updater = Updater(MODEL, VOCAB, config, TEMPERATURE, make_mesh())
    reference = jax.tree.map(lambda x: 0.9 * x, params)
    scores = updater.score(updater.init(params), [batch], reference)
    now, anchor = (
        batch.sampled * np.array(log_probs_of(p, batch.tokens)) for p in (params, reference)
    )
    np.testing.assert_allclose(scores["log_probs"][0], now, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores["kl"][0], batch.log_probs - anchor, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="kl_coef"):
        updater.score(updater.init(params), [batch], None)
    # The reference is not in the loss too.
    _, values = update(updater, params, [batch], steps=1)
    assert values["kl_reference"] == 0.0


def test_a_standstill_without_a_value_model_is_an_error(updater, params, batch):
    with pytest.raises(ValueError, match="trains nothing"):
        updater.update(updater.init(params), [batch], None, train_policy=False)


def test_an_entropy_term_raises_the_entropy(params, batch):
    ends = []
    for coef in (0.0, 1.0):
        config = dataclasses.replace(CONFIG, entropy_coef=coef)
        updater = Updater(MODEL, VOCAB, config, TEMPERATURE, make_mesh())
        _, values = update(updater, params, [batch], steps=8)
        ends.append(values["entropy"])
    assert ends[1] > ends[0] + 1e-3


# ---- the reference --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def penalised():
    return Updater(MODEL, VOCAB, dataclasses.replace(CONFIG, kl_coef=0.5), TEMPERATURE, make_mesh())


def test_the_penalty_pulls_towards_the_reference(penalised, params, batch, random_params):
    reference = jax.device_put(random_params(MODEL, VOCAB, 1), replicated(make_mesh()))
    idle = batch.replace(advantages=np.zeros_like(batch.advantages))
    state, seen = penalised.init(params), []
    for _ in range(12):
        state, values = penalised.update(state, [idle], reference)
        seen.append(values["kl_reference"])
    assert seen[0] > 0 and seen[-1] < 0.8 * seen[0]
    wanted = np.array(log_probs_of(reference, batch.tokens))
    before, after = (
        np.abs(batch.sampled * (np.array(log_probs_of(p, batch.tokens)) - wanted)).sum()
        for p in (params, state.params)
    )
    assert after < before


def test_at_the_reference_the_penalty_is_still(penalised, params, batch):
    idle = batch.replace(advantages=np.zeros_like(batch.advantages))
    _, values = update(penalised, params, [idle], steps=1, reference=params)
    assert values["kl_reference"] == pytest.approx(0, abs=1e-6)
    assert values["grad_norm"] == pytest.approx(0, abs=1e-5)


def test_a_penalty_without_reference_raises(penalised, params, batch):
    with pytest.raises(ValueError, match="kl_coef"):
        penalised.update(penalised.init(params), [batch], None)


def test_without_penalty_the_reference_is_ignored(updater, params, batch, random_params):
    reference = random_params(MODEL, VOCAB, 1)
    with_it, _ = update(updater, params, [batch], reference=reference)
    without, _ = update(updater, params, [batch])
    assert largest_change(with_it, without) == 0.0


# ---- state ----------------------------------------------------------------------------------


def test_updates_leave_the_callers_parameters_and_donate_the_state(updater, params, batch):
    before = jax.device_get(params)
    state = updater.init(params)
    old = state.params["embed"]
    state, _ = updater.update(state, [batch], None)
    state, _ = updater.update(state, [batch], None)
    assert old.is_deleted()
    assert largest_change(before, jax.device_get(params)) == 0.0
    assert largest_change(before, jax.device_get(state.params)) > 0


@pytest.mark.parametrize("where", ["params", "log_probs"])
def test_a_number_that_is_not_finite_raises(updater, params, batch, where):
    if where == "params":
        params = {**params, "final_norm": params["final_norm"].at[0].set(np.nan)}
    else:
        row, column = np.argwhere(batch.sampled > 0)[0]
        spoiled = batch.log_probs.copy()
        spoiled[row, column] = np.nan
        batch = batch.replace(log_probs=spoiled)
    with pytest.raises(NonFiniteError, match="nan"):
        updater.update(updater.init(params), [batch], None)


def test_an_update_that_breaks_the_policy_raises_at_once(params, batch):
    """Loss and gradient are those of before the step: they do not show what it did."""
    config = dataclasses.replace(CONFIG, learning_rate=1e30)
    updater = Updater(MODEL, VOCAB, config, TEMPERATURE, make_mesh())
    state = updater.init(params)
    with pytest.raises(NonFiniteError):
        for _ in range(3):
            state, _ = updater.update(state, [batch], None)
            assert largest_change(state.params, params) < 1e20, "returned a broken policy"


@pytest.mark.parametrize("devices", [1, 2])
def test_nothing_compiles_after_compile(params, batch, devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    updater = Updater(MODEL, VOCAB, CONFIG, TEMPERATURE, mesh)
    state = updater.init(jax.device_put(params, replicated(mesh)))
    shapes = [(8, 16), (4, 32)]
    before = jax.device_get(state.params)
    updater.compile(state, shapes)
    assert largest_change(before, jax.device_get(state.params)) == 0.0
    compiled = updater.compilations
    small = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 16))), rows_of(batch, slice(0, 4)))
    for batches in ([batch], [small], [small, batch, batch], [batch, small, small]):
        state, _ = updater.update(state, batches, None)
        updater.measure(state, batches)
    assert updater.compilations == compiled


@pytest.mark.parametrize("fields", [
    {}, {"loss": "gspo", "loss_mean": "sequence", "clip_low": 0.3, "clip_high": 0.3},
])
def test_how_far_an_update_moved_the_policy(fields, params, batch):
    """Against NumPy in float64: k3 from the sampler, and the ratios beyond the bounds."""
    config = dataclasses.replace(CONFIG, learning_rate=0.02, **fields)
    updater = Updater(MODEL, VOCAB, config, TEMPERATURE, make_mesh())
    halves = [rows_of(batch, slice(0, 4)), rows_of(batch, slice(4, 8))]
    state, before = updater.update(updater.init(params), halves, None)
    found = updater.measure(state, halves)
    now = np.asarray(log_probs_of(jax.device_get(state.params), batch.tokens), np.float64)
    mask = batch.sampled > 0
    d = np.where(mask, now - batch.log_probs, 0.0)
    ratio = np.exp(d)
    if fields:
        ratio = np.exp(d.sum(axis=1, keepdims=True) / mask.sum(axis=1, keepdims=True)) + 0 * d
    low, high = 1 - config.clip_low, 1 + config.clip_high
    outside = ((ratio < low) | (ratio > high))[mask]
    assert 0.1 < outside.mean() < 1
    assert found["kl"] == pytest.approx((np.exp(d) - d - 1)[mask].mean(), rel=1e-4)
    assert found["clip_fraction_after"] == pytest.approx(outside.mean(), abs=1e-6)
    assert found["kl"] != pytest.approx(before["kl"], rel=0.01)  # that of before the step


# ---- engine and updater ---------------------------------------------------------------------


def test_engine_and_updater_agree_on_log_probs(tiny_config, tiny_env, random_params):
    """The first update after a rollout sees the policy that sampled: same log-probs."""
    mesh, model = make_mesh(), tiny_config.model
    vocab_size, stop_id = tiny_env.tokenizer.vocab_size, tiny_env.tokenizer.stop_id
    params = jax.device_put(random_params(model, vocab_size, 3), replicated(mesh))
    engine = Engine(model, tiny_config.rollout, stop_id, mesh)
    updater = Updater(model, vocab_size, CONFIG, TEMPERATURE, mesh)
    episodes = [
        tiny_env.episode(task, "test", i) for task in tiny_env.train_tasks[:4] for i in range(3)
    ]
    engine.run(params, episodes, TEMPERATURE)
    trajectories = [e.trajectory() for e in episodes]
    advantages = [(-1.0) ** i for i in range(len(episodes))]
    layouts = padded_layouts([t.num_tokens for t in trajectories], 1024, mesh.size)
    samples = [samples_of(t, a)[0] for t, a in zip(trajectories, advantages, strict=True)]
    batches = fill(layouts, samples, packed=False)
    _, values = updater.update(updater.init(params), batches, None)
    assert values["tokens"] == sum(t.arrays()[1].sum() for t in trajectories) > 100
    assert values["gap_max"] < 1e-4
    assert values["kl"] < 1e-6
    assert values["clipped"] == 0.0
