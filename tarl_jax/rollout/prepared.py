"""The stacked parameters of training as decoding takes them, on the engine's mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from tarl_jax.config import ModelConfig
from tarl_jax.models import decoder
from tarl_jax.models.quantised import quantised
from tarl_jax.parallel import hosts
from tarl_jax.parallel.compilations import Wanted, abstract, named
from tarl_jax.parallel.mesh import place_shapes, tree_shardings


@dataclasses.dataclass(frozen=True)
class Ready:
    """A policy's parameters as rollouts take them, on their devices; nobody else's."""

    params: decoder.Params


class Prepared:
    """Makes them: in the model's dtype, one tree per layer, split as rollouts split them.

    Weights that are frozen under adapters are made ready once and kept, so that a rollout copies
    the adapters alone.
    """

    def __init__(self, model: ModelConfig, mesh: Mesh, int8: bool = False):
        """int8: whether the weights are."""
        self._model = model
        self._mesh = mesh
        ready = quantised if int8 else decoder.cast
        self._unstack = jax.jit(
            named("engine_unstack", lambda p: decoder.unstack(ready(p, model.dtype)))
        )
        self._frozen: tuple[list[Any], decoder.Params] | None = None

    def __call__(self, params: decoder.Params) -> decoder.Params:
        frozen, adapters = self._split(params)
        if not frozen:
            return self._placed(adapters)
        leaves = jax.tree.leaves(frozen)
        kept = self._frozen
        if kept is None or any(x is not y for x, y in zip(leaves, kept[0], strict=True)):
            kept = self._frozen = None  # the old ones go before the new ones come
            kept = self._frozen = leaves, self._placed(frozen)
        if not adapters["layers"]:
            return kept[1]
        layers = zip(kept[1]["layers"], self._placed(adapters)["layers"], strict=True)
        return {**kept[1], "layers": tuple({**weight, **adapter} for weight, adapter in layers)}

    def wanted(self, params: decoder.Params) -> list[Wanted]:
        """What has to be compiled for such arrays or shapes."""
        return [
            Wanted("prepare", False, self._unstack, (abstract(part),))
            for part in self._split(params) if part and part["layers"]
        ]

    def frozen(self, params: decoder.Params) -> decoder.Params:
        """What of the parameters is made ready once, and kept."""
        return self._split(params)[0]

    def _split(self, params: decoder.Params) -> tuple[decoder.Params, decoder.Params]:
        """(what is made ready once, what anew each time)."""
        if not self._model.lora.rank:
            return {}, params
        adapters = {n: x for n, x in params["layers"].items() if n.endswith(("_a", "_b"))}
        weights = {n: x for n, x in params["layers"].items() if n not in adapters}
        return {**params, "layers": weights}, {"layers": adapters}

    def shapes(self, params: decoder.Params) -> decoder.Params:
        """What it makes of arrays or shapes, as shapes that say where they live."""
        shapes = jax.eval_shape(self._unstack, params)
        return place_shapes(shapes, tree_shardings(self._mesh, decoder.logical_axes(shapes)))

    def _placed(self, params: decoder.Params) -> decoder.Params:
        params = self._unstack(params)
        return hosts.put(params, tree_shardings(self._mesh, decoder.logical_axes(params)))
