"""What a run holds on a device, moment by moment, counted before it starts.

The bytes of what stays (parameters, optimiser, caches, copies) are those of the arrays that the run
makes, by their shapes and by how the mesh splits them. What a program takes for itself while it
runs comes from its compiler, or from an estimate (`memory_estimate.py`). Where rollouts have
devices of their own (`mesh.rollout_devices`), each moment is of a device of one of the two sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tarl_jax.config import RunConfig
from tarl_jax.config.rollout import carries
from tarl_jax.models import decoder
from tarl_jax.models.lora import frozen_part
from tarl_jax.parallel.mesh import bytes_on_device
from tarl_jax.rl.objective import in_loss, in_reward
from tarl_jax.rl.update import Updater
from tarl_jax.rollout.compiled import Compiled
from tarl_jax.rollout.paged_compiled import PagedPrograms

ROLLOUTS = ("prefill", "feed", "feed with sound", "decode")  # programs that have the cache
APART = "on their own devices, "  # before a moment of devices that rollouts have to themselves


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment of a run, and what is held then: (what, bytes), of the device that holds most."""

    name: str
    held: tuple[tuple[str, float], ...]

    @property
    def bytes(self) -> float:
        return sum(size for _, size in self.held)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a run's arrays, on the device that holds most.

    Attributes:
      whole: all parameters of the policy, as they are when they have been loaded.
      policy: what trains of it. frozen: what does not.
      value: what trains of the value model. optimizer: the states of both optimisers.
      reference: what a KL penalty holds on to, where it is not the frozen weights.
      anchor: the same as an argument of a program, whosever it is.
      prepared: the policy as rollouts take it; copied: of which is not part of the state.
      kept: of which stays between rollouts.
      between: a second copy of it while it is made, where updates run.
      cache: of all rows, at its largest; moved: what moving it takes for a moment.
      ahead: what rollouts have beside that of the policies that play ahead of the update, or wait
        to; 0: nothing plays ahead.
      apart: whether rollouts have devices of their own.
      fine_tuned: whether the run begins with fine-tuning.
      anchored: the programs that have the anchor.
    """

    whole: int
    policy: int
    frozen: int
    value: int
    optimizer: int
    reference: int
    anchor: int
    prepared: int
    copied: int
    kept: int
    between: int
    cache: int
    moved: int
    ahead: int
    apart: bool
    fine_tuned: bool
    anchored: tuple[str, ...]

    @property
    def gradient(self) -> int:
        """Sums of gradients: as what trains."""
        return self.policy + self.value

    @property
    def saved(self) -> int:
        """What a checkpoint has of the device; it is copied to the host before it is written."""
        return self.policy + self.value + self.optimizer

    def arguments(self, program: str) -> int:
        """Bytes that a program of the model is given; batches and rows, which are small, are not
        counted."""
        if program in ROLLOUTS:
            return self.prepared + self.cache
        trained = self.policy + self.value
        anchor = self.anchor if program in self.anchored else 0
        return {
            "gradient": trained + self.gradient + self.frozen + anchor,
            "score": trained + self.frozen + anchor,
            "apply": trained + self.optimizer + self.gradient,
            "measure": self.policy + self.frozen,
        }[program]

    def moments(self, own: Mapping[str, float]) -> list[Moment]:
        """The moments of a run, in order.

        own: bytes that each program takes beside its arguments, by its name; moments of programs
          that are not in it are left out.
        """
        found: list[Moment] = []

        def add(name: str, *held: tuple[str, float], program: str = "") -> None:
            if program and program not in own:
                return
            mine = [(f"{program}'s own", own[program])] if program else []
            found.append(Moment(name, tuple(x for x in (*held, *mine) if x[1])))

        weights = ("parameters", self.policy), ("frozen weights", self.frozen)
        state = *weights, ("value model", self.value), ("optimiser", self.optimizer)
        rest = *state, ("reference", self.reference)
        sums = "gradients", self.gradient
        add("the policy is loaded", ("parameters", self.whole))
        if self.fine_tuned:
            # Its optimiser is the policy's alone; the bound is that of the run.
            add("fine-tuning", *state, sums, program="gradient")
        add("the run begins", *rest)
        cache, way = ("cache", self.cache), ("on their way", self.between)
        beside: list[tuple[str, float]] = []
        if self.apart:
            on, playing = APART, [("copies for rollouts", max(self.copied, self.kept + self.ahead))]
            add("parameters are made ready for rollouts", *rest, way)
        else:
            on, playing = "", [*rest, ("copy for rollouts", self.copied)]
            add("parameters are made ready for rollouts", *playing, way)
            beside += [("kept for rollouts", self.kept)]
            if self.ahead:
                most = max((own[name] for name in ROLLOUTS if name in own), default=0.0)
                beside += [("copies that play ahead", self.ahead), cache, ("rollouts' own", most)]
        for program in ROLLOUTS:
            add(f"{on}rollouts: {program}", *playing, cache, program=program)
        if self.moved:
            add(f"{on}rollouts: the cache moves", *playing, cache, ("while it moves", self.moved))
        add("update: score", *rest, *beside, program="score")
        add("update: gradient", *rest, sums, *beside, program="gradient")
        add("update: apply", *rest, sums, *beside, program="apply")
        add("update: measure", *rest, *beside, program="measure")
        add("a checkpoint is written", *rest, *beside)
        return found


def memory(config: RunConfig, updater: Updater, programs: Compiled | PagedPrograms) -> Memory:
    """Counts what a run of this config holds; needs none of the devices."""
    model, rl = config.model, config.rl
    frozen = frozen_part(model, updater.policy_shapes)
    state = dataclasses.replace(updater.shapes(), frozen=frozen)
    whole = bytes_on_device(updater.policy_shapes)
    merged = bool(model.lora.rank) and not config.sft.steps  # adapters stand on the reference
    prepared, copied, between, kept = _for_rollouts(programs, state.policy)
    steps = max(rl.max_staleness - carries(config.rollout), 0)  # each by a policy of its own
    ahead = steps * (_for_rollouts(programs, state.policy, state.params)[1] - kept)
    apart = config.mesh.rollout_devices > 0
    if apart:  # made where updates run, then moved
        between = bytes_on_device([_cast(x, model.dtype) for x in jax.tree.leaves(state.policy)])
    cache, moved = programs.cache_bytes()
    return Memory(
        whole=whole,
        policy=bytes_on_device(state.params),
        frozen=bytes_on_device(frozen),
        value=bytes_on_device(state.value),
        optimizer=bytes_on_device((state.opt_state, state.value_opt_state)),
        reference=whole if rl.kl_coef > 0 and not merged else 0,
        anchor=whole if rl.kl_coef > 0 else 0,
        prepared=prepared,
        copied=copied,
        kept=kept,
        between=between,
        cache=cache,
        moved=moved,
        ahead=ahead,
        apart=apart,
        fine_tuned=config.sft.steps > 0,
        anchored=("gradient",) * in_loss(rl) + ("score",) * in_reward(rl),
    )


def _cast(x: Any, dtype: str) -> Any:
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding)


def _for_rollouts(
    programs: Compiled | PagedPrograms, policy: decoder.Params,
    given_up: decoder.Params | None = None,
) -> tuple[int, int, int, int]:
    """Bytes of a policy as rollouts take it, of which are copies, of a second copy while they are
    made, and of what stays between rollouts.

    given_up: what of the policy must not be shared.
    """
    if isinstance(programs, PagedPrograms):
        made = programs.shapes(policy)
        if len(jax.tree.leaves(made)) > len(jax.tree.leaves(policy)):  # quantised
            return bytes_on_device(made), bytes_on_device(made), 0, 0
        pairs = list(zip(*map(jax.tree.leaves, (policy, made)), strict=True))
        own = {id(x) for x in jax.tree.leaves(given_up)}
        copies = [y for x, y in pairs if id(x) in own or not _same(x, y)]
        return bytes_on_device(made), bytes_on_device(copies), 0, 0
    prepare = programs.prepare
    made = prepare.shapes(policy)
    size = bytes_on_device(made)
    frozen = prepare.frozen(policy)
    kept = bytes_on_device(prepare.shapes(frozen)) if frozen else 0
    # They leave their program as XLA splits them, and move then.
    return size, size, size if len(jax.tree.leaves(made)[0].sharding.device_set) > 1 else 0, kept


def _same(x: Any, y: Any) -> bool:
    """Whether rollouts take a leaf as it is."""
    return bool(x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, len(x.shape)))
