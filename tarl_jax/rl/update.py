"""One optimiser update: gradients summed over micro-batches, then one step, all jitted.

Micro-batches have different lengths (few shapes, so few programs); each adds the gradient of its
*sum* of losses, and the update divides by the number of sampled tokens (or episodes) of all of
them, so that the split never changes the result. A value model, where there is one, is updated in
the same two programs, with an optimiser of its own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from tarl_jax.config import ModelConfig, RLConfig, TarlError
from tarl_jax.models import decoder
from tarl_jax.models.lora import frozen_part, join, trained_part
from tarl_jax.parallel import hosts, launches
from tarl_jax.parallel.compilations import (
    Progress,
    Wanted,
    abstract,
    compilations,
    compile_all,
    named,
)
from tarl_jax.parallel.mesh import (
    by_rows,
    bytes_on_device,
    check_fits,
    place_shapes,
    replicated,
    tree_shardings,
)
from tarl_jax.rl import objective
from tarl_jax.rl.apply import apply, zeros
from tarl_jax.rl.batching import fullest, rooms_for_pieces
from tarl_jax.rl.losses import POLICY_LOSSES, PolicyLoss
from tarl_jax.rl.objective import Sums, Trained
from tarl_jax.rl.optimizer import make_optimizer
from tarl_jax.speech.sound import AudioInputs, Pieces
from tarl_jax.types import Batch


class NonFiniteError(TarlError):
    """A loss or gradient is not a number; the parameters before it are still good."""


@struct.dataclass
class TrainState:
    """Parameters and optimiser state.

    Attributes:
      params: what trains: all parameters, or the adapters.
      opt_state: the optimiser's.
      frozen: the parameters that do not train, such as adapters stand on; {} where all train.
      value, value_opt_state: what trains of the value model, and its optimiser's; {} without one.
    """

    params: decoder.Params
    opt_state: Any
    frozen: decoder.Params = struct.field(default_factory=dict)
    value: decoder.Params = struct.field(default_factory=dict)
    value_opt_state: Any = struct.field(default_factory=dict)

    @property
    def trained(self) -> Trained:
        return Trained(self.params, self.value)

    @property
    def policy(self) -> decoder.Params:
        """All parameters in one tree."""
        return join(self.frozen, self.params)


class Updater:
    """Holds the jitted programs of the RL update for one model, optimiser and temperature.

    Attributes:
      policy_shapes: shape, dtype and sharding of all parameters of a policy without adapters.
      policy_shardings: the last of the three alone.
    """

    def __init__(
        self, model: ModelConfig, vocab_size: int, config: RLConfig, temperature: float, mesh: Mesh,
        policy_loss: PolicyLoss | None = None,
    ):
        """policy_loss: in place of the one that `config.loss` names."""
        check_fits(mesh, model, vocab_size)
        self._mesh = mesh
        self._model = model
        self._vocab_size = vocab_size
        self._config = config
        self._optimizer = make_optimizer(config)
        self._value_optimizer = make_optimizer(config, config.value.learning_rate)
        gradient = functools.partial(
            _gradient, model, config, temperature, policy_loss or POLICY_LOSSES[config.loss]
        )
        score = functools.partial(objective.score, model, config, temperature)
        # Where results live is said, not inferred: arrays that went once round the loop then look
        # the same to jit as the first ones, and nothing compiles twice.
        whole = replicated(mesh)
        self.policy_shapes = decoder.placed_shapes(model, vocab_size, mesh)
        self.policy_shardings = jax.tree.map(lambda x: x.sharding, self.policy_shapes)
        trained = jax.eval_shape(self._trained, self.policy_shapes)
        self._shardings = Trained(
            tree_shardings(mesh, decoder.logical_axes(trained.params)),
            tree_shardings(mesh, decoder.logical_axes(trained.value)),
        )
        self._opt_shardings = self._init_shardings(trained)
        accumulated = (self._shardings, whole)

        def program(name: str, function: Callable[..., Any], **options: Any) -> Any:
            return jax.jit(named(f"update_{name}", function), **options)

        self._gradient = program(
            "gradient", gradient, donate_argnums=0, out_shardings=accumulated
        )
        self._apply = program(
            "apply", functools.partial(apply, self._optimizer, self._value_optimizer),
            donate_argnums=(0, 1, 2),
            out_shardings=(self._shardings, self._opt_shardings, whole, whole),
        )
        self._score = program("score", score, out_shardings=whole)
        moved = functools.partial(objective.moved, model, config, temperature)
        self._moved = program("moved", moved, out_shardings=whole)
        self._zeros = program("zeros", zeros, out_shardings=accumulated)
        self._own = jax.jit(
            lambda policy: jax.tree.map(jnp.copy, self._trained(policy)),
            out_shardings=self._shardings,
        )
        value = functools.partial(objective.init_value, model, config)
        self._value = jax.jit(value, out_shardings=self._shardings.value)
        self._init = jax.jit(self._init_optimizers, out_shardings=self._opt_shardings)

    def _init_optimizers(self, trained: Trained) -> tuple[Any, Any]:
        """Fresh optimiser states of policy and value model."""
        value = self._value_optimizer.init(trained.value) if trained.value else {}
        return self._optimizer.init(trained.params), value

    def _init_shardings(self, trained: Trained) -> tuple[Any, Any]:
        """Where the optimiser states live: beside what they are of."""
        shapes = jax.eval_shape(self._init_optimizers, trained)
        wheres = self._shardings.params, self._shardings.value
        optimizers = self._optimizer, self._value_optimizer
        found = [
            optax.tree_utils.tree_map_params(
                optimizer, lambda _, place: place, shape, where,
                transform_non_params=lambda _: replicated(self._mesh),
            ) if where else {}
            for optimizer, shape, where in zip(optimizers, shapes, wheres, strict=True)
        ]
        return found[0], found[1]

    def _trained(self, policy: decoder.Params) -> Trained:
        params = trained_part(self._model, policy, jax.random.key(0))
        return Trained(params, objective.init_value(self._model, self._config, policy))

    def place(self, params: decoder.Params) -> decoder.Params:
        """All parameters of a policy, where this mesh keeps them."""
        return hosts.put(params, self.policy_shardings)

    def random(self, key: jax.Array) -> decoder.Params:
        """Random parameters of a policy, made where this mesh keeps them."""
        make = functools.partial(decoder.init_params, self._model, self._vocab_size)
        return jax.jit(make, out_shardings=self.policy_shardings)(key)

    def shapes(self) -> TrainState:
        """What `init` gives, as shapes with shardings; nothing is frozen."""
        trained = jax.eval_shape(self._trained, self.policy_shapes)
        opt_states = jax.eval_shape(self._init_optimizers, trained)
        trained = place_shapes(trained, self._shardings)
        opt_state, value_opt_state = place_shapes(opt_states, self._opt_shardings)
        return TrainState(trained.params, opt_state, {}, trained.value, value_opt_state)

    def init(self, params: decoder.Params, give: bool = False) -> TrainState:
        """A fresh state from all parameters of a policy.

        What trains is copied, since updates donate it; what is frozen is taken as it is.

        Args:
          give: what trains is taken as it is, too: the caller uses `params` no more.
        """
        params = self.place(params)
        frozen = frozen_part(self._model, params)
        if give and not self._model.lora.rank:
            kept = {name: x for name, x in params.items() if name not in frozen}
            trained = Trained(kept, self._value(params))
        else:
            trained = self._own(params)
        opt_state, value_opt_state = self._init(trained)
        return TrainState(trained.params, opt_state, frozen, trained.value, value_opt_state)

    def compile(
        self, state: TrainState, shapes: Sequence[tuple[int, int]], packed: bool = False,
        progress: Progress = lambda done, total, note="": None, sound: bool = True,
    ) -> None:
        """Compiles the programs for batches of these (rows, length), and holds no array for it.

        sound: also those for batches that have some; without, the first such batch compiles its.
        """
        compile_all(self.wanted(abstract(state), shapes, packed, sound), progress)

    def wanted(
        self, state: TrainState, shapes: Sequence[tuple[int, int]], packed: bool,
        sound: bool = True,
    ) -> list[Wanted]:
        """What has to be compiled for such batches.

        state: shapes with shardings; needs none of the devices.
        """
        whole, config = replicated(self._mesh), self._config
        sums = jax.eval_shape(Sums.zeros)
        accumulated = state.trained, place_shapes(sums, jax.tree.map(lambda _: whole, sums))
        reference = state.frozen if self._model.lora.rank else self.policy_shapes
        found: list[Wanted] = []

        def add(name: str, program: Any, *args: Any, at: str = "", sized: bool = True) -> None:
            found.append(Wanted(name, sized, program, args, at, self._mesh))

        add("zeros", self._zeros, state.trained, sized=False)
        add("apply", self._apply, state.trained, state.opt_state, state.value_opt_state,
            accumulated, jax.ShapeDtypeStruct((), jnp.bool_))
        in_loss = self._anchor(reference, objective.in_loss)
        in_reward = self._anchor(reference, objective.in_reward)
        for shape in shapes:
            for room in (0, *(self._rooms(shape) if sound else ())):
                batch = self._batch(shape, packed, room)
                at = f"{shape[0]} x {shape[1]}" + (f", {room} pieces of sound" if room else "")
                add("gradient", self._gradient, accumulated, state.trained, state.frozen,
                    in_loss, batch, at=at)
                if objective.needs_score(config):
                    scored = dataclasses.replace(batch, shares=None)
                    add("score", self._score, state.trained, state.frozen, in_reward, scored,
                        at=at)
                if config.measure_after and shape == fullest(shapes)[shape[1]]:
                    add("measure", self._moved, state.params, state.frozen, batch, at=at)
        return found

    def _rooms(self, shape: tuple[int, int]) -> list[int]:
        """For how many pieces of sound batches of a shape have room; none where nothing hears."""
        audio = self._model.audio
        return rooms_for_pieces(shape, audio.n_window // 2) if audio else []

    def _batch(self, shape: tuple[int, int], packed: bool, room: int) -> Batch:
        """A batch of the updates, as shapes with shardings; `room`: for pieces of sound."""
        of = functools.partial(jax.ShapeDtypeStruct, sharding=by_rows(self._mesh))
        ints, floats = of(shape, jnp.int32), of(shape, jnp.float32)
        valued = floats if objective.has_value_model(self._config) else None
        numbers = ints if packed else None
        audio_inputs = None
        if room:
            encoder = self._model.audio
            size = room, 2 * encoder.n_window, encoder.num_mel_bins
            audio_inputs = AudioInputs(Pieces(of(size, jnp.float32), of(size[:1], jnp.int32)), ints)
        shares = floats if objective.has_shares(self._config) else None
        return Batch(ints, floats, floats, floats, numbers, valued, valued, shares, audio_inputs)

    def model_sized(self, shape: tuple[int, int], packed: bool) -> dict[str, Wanted]:
        """The update's programs for a (rows, length) of micro-batches, of each kind the largest.

        Needs no arrays and none of the devices: a mesh of devices that are elsewhere will do.
        """
        frozen = frozen_part(self._model, self.policy_shapes)
        state = dataclasses.replace(self.shapes(), frozen=frozen)
        # Of the programs of a shape the last has the most sound.
        return {one.name: one for one in self.wanted(state, [shape], packed) if one.model_sized}

    def bytes_per_device(self) -> tuple[int, int]:
        """(what trains and is frozen, the optimiser's state), of the device with most."""
        state = self.shapes()
        parameters = state.trained, frozen_part(self._model, self.policy_shapes)
        optimizers = state.opt_state, state.value_opt_state
        return bytes_on_device(parameters), bytes_on_device(optimizers)

    @property
    def compilations(self) -> int:
        """Programs of updates that this process has compiled so far."""
        return compilations("update_")

    def score(
        self, state: TrainState, batches: Sequence[Batch], reference: decoder.Params | None
    ) -> dict[str, list[np.ndarray]]:
        """What the advantages need to know of each batch, [B, S]; see `objective.score`.

        What the batches hold beside tokens, marks and log-probs does not matter.
        """
        reference = self._anchor(reference, objective.in_reward)
        found: dict[str, list[np.ndarray]] = {}
        with jax.set_mesh(self._mesh):
            for batch in batches:
                if objective.has_value_model(self._config):  # of the update's type: one program
                    ignored = batch.advantages
                    batch = dataclasses.replace(batch, values=ignored, returns=ignored)
                batch = dataclasses.replace(batch, shares=None)
                batch = hosts.put(batch, by_rows(self._mesh))
                scores = self._score(state.trained, state.frozen, reference, batch)
                for name, values in launches.fetched(scores).items():
                    found.setdefault(name, []).append(values)
        return found

    def update(
        self,
        state: TrainState,
        batches: Sequence[Batch],
        reference: decoder.Params | None,
        train_policy: bool = True,
    ) -> tuple[TrainState, dict[str, float]]:
        """One optimiser step on the micro-batches.

        Args:
          state: donated.
          reference: parameters that the KL penalty holds on to; needed where `kl_coef` > 0.
          train_policy: False leaves the policy and its optimiser as they are, while the value model
            trains. Without a value model it must be True.
        Returns: the new state and means over sampled tokens ("loss" and "value_loss": the mean that
          `loss_mean` says).
        Raises: NonFiniteError if the loss or the gradient is not finite. The new parameters are
          then lost: the caller goes back to its last checkpoint.
        """
        if not (train_policy or state.value):
            raise ValueError("train_policy = False without a value model trains nothing")
        reference = self._anchor(reference, objective.in_loss)
        with jax.set_mesh(self._mesh):
            accumulated = self._zeros(state.trained)
            for batch in batches:
                batch = hosts.put(batch, by_rows(self._mesh))
                accumulated = self._gradient(
                    accumulated, state.trained, state.frozen, reference, batch
                )
            trained, opt_states, sums, norms = self._apply(
                state.trained, state.opt_state, state.value_opt_state, accumulated,
                np.bool_(train_policy),
            )
        state = TrainState(
            trained.params, opt_states[0], state.frozen, trained.value, opt_states[1]
        )
        sums, norms = launches.fetched((sums, norms))
        if not np.isfinite([sums.loss, sums.value_loss, *norms.values()]).all():
            said = ", ".join(f"{name.replace('_', ' ')} {x}" for name, x in norms.items())
            raise NonFiniteError(
                f"loss sum {sums.loss}, value loss sum {sums.value_loss}, {said}"
            )
        means = sums.means(bool(state.value)) | {"grad_norm": float(norms["gradient_norm"])}
        if state.value:
            means["value_grad_norm"] = float(norms["value_gradient_norm"])
        return state, means

    def measure(self, state: TrainState, batches: Sequence[Batch]) -> dict[str, float]:
        """How far the policy now is from what sampled the batches; see `objective.moved`.

        batches: of the most rows that their length has (`batching.fullest`).
        Returns: "kl" and "clip_fraction_after", means over sampled tokens.
        """
        with jax.set_mesh(self._mesh):
            said = launches.fetched([
                self._moved(state.params, state.frozen, hosts.put(batch, by_rows(self._mesh)))
                for batch in batches
            ])
        tokens = max(float(sum(of["tokens"] for of in said)), 1.0)
        named = (("kl", "kl"), ("clip_fraction_after", "outside"))
        return {name: float(sum(of[key] for of in said)) / tokens for name, key in named}

    def _anchor(
        self, reference: decoder.Params | None, used: Callable[[RLConfig], bool]
    ) -> decoder.Params | None:
        """The reference where it is used. Raises ValueError where it is missing."""
        if not used(self._config):
            return None
        if reference is None:
            raise ValueError("rl.kl_coef > 0 needs reference parameters")
        return reference


def _gradient(
    model: ModelConfig,
    config: RLConfig,
    temperature: float,
    policy_loss: PolicyLoss,
    accumulated: tuple[Trained, Sums],
    trained: Trained,
    frozen: decoder.Params,
    reference: decoder.Params | None,
    batch: Batch,
) -> tuple[Trained, Sums]:
    """Adds the gradient of the batch's loss sum, and its sums, to `accumulated`."""
    gradient, sums = jax.grad(objective.loss_sum, has_aux=True)(
        trained, frozen, reference, batch, model, config, temperature, policy_loss
    )
    total, before = accumulated
    return jax.tree.map(jnp.add, total, gradient), before.plus(sums)
