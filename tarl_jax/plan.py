"""Compiles a run's programs for a TPU slice that is not there, and says whether they fit.

    python -m tarl_jax.plan --config=configs/grpo_tarl.py:qwen3_8b --topology=v5e:4x4

needs no TPU, but its compiler: `pip install libtpu` (with jax 0.10.2: libtpu==0.0.42.1). Compiled
are the update (gradient of one micro-batch, optimiser step) and what rollouts run, feeding and
writing. The shape is that of the checkpoint that `model.pretrained` names, else of the published
model (`config/shapes.py`). Printed per chip: parameters, optimiser, peak memory, floating-point
operations, collectives, and the largest micro-batch that fits (`--search`).
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import os
import re
import time
from collections.abc import Callable
from typing import Any

from tarl_jax.config import ConfigError, ModelConfig, RunConfig

# GiB of a chip's memory that programs may use: what the compiler names when it runs out.
MEMORY_GIB = {"v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)  # of rows that a search tries
ROWS_PER_CHIP = (1, 2, 4, 8)
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program, per chip.

    Attributes:
      peak_gib: memory at its highest, arguments included; inf where the compiler ran out.
      argument_gib: of which the arguments.
      resident_gib: what else stays in memory meanwhile: the optimiser while gradients are
        computed, parameters and optimiser during rollouts.
      collectives: how often each kind stands in the program (a loop's body counts once).
      seconds: that compiling took.
    """

    name: str
    peak_gib: float
    argument_gib: float
    resident_gib: float
    collectives: dict[str, int]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What one slice makes of a config. Sizes are per chip; tflop of one micro-batch per chip."""

    topology: str
    chips: int
    mesh: dict[str, int]
    memory_gib: float
    parameters_gib: float
    optimizer_gib: float
    rows: int
    length: int
    tflop: float
    programs: list[Program]

    @property
    def fits(self) -> bool:
        return all(p.peak_gib + p.resident_gib <= self.memory_gib for p in self.programs)


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of a slice such as "v5e:4x4". Raises ConfigError for one that is not known."""
    # Asks no metadata server and shares the compiler with other processes.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    from jax.experimental import topologies

    chip = topology.split(":")[0]
    if chip not in MEMORY_GIB:
        known = ", ".join(MEMORY_GIB)
        raise ConfigError(f"--topology={topology}: known chips: {known}, e.g. v5e:4x4")
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
    except Exception as error:  # the plug-in raises several kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--topology={topology}: {reason}. It needs TPU's compiler (pip install libtpu; with"
            " jax 0.10.2 libtpu==0.0.42.1) and a shape that exists, e.g. v5e:4x4, v5p:2x2x2"
        ) from error
    return list(found.devices)


@dataclasses.dataclass(frozen=True)
class LaidOut:
    """A config on a slice: its shape complete, the mesh, and (rows, length) of a micro-batch."""

    config: RunConfig
    devices: list[Any]
    mesh: Any
    rows: int
    length: int


def laid_out(config: RunConfig, topology: str, slices: int = 1) -> LaidOut:
    """Raises ConfigError where the mesh does not fit the slice, or the vocabulary is not known."""
    from tarl_jax.models.hf_config import completed
    from tarl_jax.parallel.mesh import make_mesh, row_shards
    from tarl_jax.rl.batching import packed_rows, padded_length

    if config.model.pretrained:
        config = completed(config)
    devices = topology_devices(topology, slices)
    mesh = make_mesh(config.mesh, devices)
    if not config.model.vocab_size:
        raise ConfigError("config.model.vocab_size = 0: give the size that is to be compiled for")
    length = padded_length(config.rollout.max_episode_tokens)
    rows = packed_rows(config.rl.micro_batch_tokens, length, row_shards(mesh))
    return LaidOut(config, devices, mesh, rows, length)


def report(
    config: RunConfig, topology: str, slices: int = 1, shape: tuple[int, int] | None = None,
    rollout: bool = True,
) -> Report:
    """Compiles for the slice. Raises ConfigError where the mesh does not fit model or slice.

    shape: (rows, length) of a micro-batch; None: as the config has it.
    rollout: whether what feeds and writes is compiled too.
    """
    from tarl_jax.parallel.mesh import rollout_mesh
    from tarl_jax.rl.update import Updater
    from tarl_jax.rollout.compiled import Compiled
    from tarl_jax.rollout.paged_compiled import PagedPrograms, in_pages

    laid = laid_out(config, topology, slices)
    config, devices, mesh = laid.config, laid.devices, laid.mesh
    model, vocab = config.model, config.model.vocab_size
    rows, length = shape or (laid.rows, laid.length)
    updater = Updater(model, vocab, config.rl, config.rollout.temperature, mesh)
    lowered = updater.lower((rows, length), config.rl.pack)
    if rollout:
        decoding = rollout_mesh(config.mesh, devices)
        if in_pages(config.rollout, decoding):
            lowered |= PagedPrograms(model, config.rollout, 0, decoding).lower(vocab)
        else:
            lowered |= Compiled(model, config.rollout, 0, decoding).lower(vocab, length)
    trained, optimizer = (size / 2**30 for size in updater.bytes_per_device())
    resident = {"gradient": optimizer, "score": optimizer, "apply": 0.0}
    return Report(
        topology=topology if slices == 1 else f"{slices} x {topology}",
        chips=len(devices),
        mesh={name: size for name, size in mesh.shape.items() if size > 1},
        memory_gib=MEMORY_GIB[topology.split(":")[0]],
        parameters_gib=trained,
        optimizer_gib=optimizer,
        rows=rows,
        length=length,
        tflop=update_flops(model, vocab, rows, length) / len(devices) / 1e12,
        programs=[
            _compile(name, program, resident.get(name, trained + optimizer))
            for name, program in lowered.items()
        ],
    )


def largest(
    config: RunConfig,
    topology: str,
    slices: int = 1,
    tried: Callable[[int, int, bool], None] = lambda rows, length, fits: None,
) -> tuple[int, int] | None:
    """The largest (rows, length) that fits: the longest row first, then more rows; None if none.

    Args:
      tried: called after each compilation with (rows, length, whether that fits). There are about
        five, bisecting `LENGTHS` at one row per chip and then `ROWS_PER_CHIP`.
    """
    from tarl_jax.parallel.mesh import make_mesh, row_shards

    shards = row_shards(make_mesh(config.mesh, topology_devices(topology, slices)))

    def too_large(rows: int, length: int) -> bool:
        fits = report(config, topology, slices, (rows, length), rollout=False).fits
        tried(rows, length, fits)
        return not fits

    fitting = bisect.bisect(LENGTHS, False, key=lambda length: too_large(shards, length))
    if not fitting:
        return None
    length = LENGTHS[fitting - 1]
    more = bisect.bisect(ROWS_PER_CHIP, False, lo=1, key=lambda n: too_large(n * shards, length))
    return ROWS_PER_CHIP[more - 1] * shards, length


def update_flops(model: ModelConfig, vocab: int, rows: int, length: int) -> float:
    """Floating-point operations of forward and backward pass, recomputation left out.

    Six per weight and token, 6 S N H more per layer and token for causal attention (half of the
    score matrix), the head over all positions. As in arXiv 2204.02311, appendix B.
    """
    per_layer = (
        model.d_model * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
        + 3 * model.d_model * model.d_ff
    )
    weights = model.num_layers * per_layer + model.d_model * vocab
    attention = model.num_layers * model.num_heads * model.head_dim * length
    return 6.0 * rows * length * (weights + attention)


def _compile(name: str, lowered: Any, resident: float) -> Program:
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:  # the compiler says so in words only
        found = re.search(r"[Uu]sed ([\d.]+)([MG]) of", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) and not found:
            raise
        used = float(found[1]) / (1024 if found[2] == "M" else 1) if found else float("inf")
        return Program(name, used, 0.0, resident, {}, time.perf_counter() - begun)
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    counts = {
        kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in COLLECTIVES
    }
    return Program(
        name,
        memory.peak_memory_in_bytes / 2**30,
        memory.argument_size_in_bytes / 2**30,
        resident,
        {kind: n for kind, n in counts.items() if n},
        time.perf_counter() - begun,
    )


def show(found: Report) -> str:
    """The report as text."""
    mesh = " x ".join(f"{name} {size}" for name, size in found.mesh.items())
    lines = [
        f"{found.topology}: {found.chips} chips of {found.memory_gib} GiB, mesh {mesh}",
        f"per chip: parameters {found.parameters_gib:.2f} GiB, optimiser"
        f" {found.optimizer_gib:.2f} GiB; micro-batch of {found.rows} x {found.length} tokens:"
        f" {found.tflop:.1f} Tflop",
    ]
    for p in found.programs:
        collectives = ", ".join(f"{n} {kind}" for kind, n in p.collectives.items()) or "none"
        peak = "out of memory" if p.peak_gib == float("inf") else f"{p.peak_gib:.2f} GiB"
        lines.append(
            f"  {p.name:9} peak {peak} (arguments {p.argument_gib:.2f}), beside"
            f" {p.resident_gib:.2f} GiB; collectives:"
            f" {collectives}; compiled in {p.seconds:.0f} s"
        )
    return "\n".join([*lines, "fits" if found.fits else "does NOT fit"])


def _show_try(rows: int, length: int, fits: bool) -> None:
    print(f"  {rows} x {length} tokens: {'fits' if fits else 'does not fit'}", flush=True)


def main() -> None:
    from tarl_jax.runs.command import run_with_config

    run_with_config(__doc__ or "", _plan, _options)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", default="v5e:4x4", metavar="SLICE",
                        help="e.g. v5p:2x2x2 (default: v5e:4x4)")
    parser.add_argument("--slices", type=int, default=1, help="number of such slices")
    parser.add_argument("--search", action="store_true",
                        help="look for the largest micro-batch that fits")


def _plan(config: RunConfig, parts: Any, given: argparse.Namespace) -> None:
    if given.dry_run:
        laid = laid_out(config, given.topology, given.slices)
        axes = " x ".join(f"{name} {size}" for name, size in laid.mesh.shape.items())
        print(f"{given.slices} x {given.topology}: {len(laid.devices)} chips, mesh {axes};"
              f" micro-batch of {laid.rows} x {laid.length} tokens\nall checks pass; this was a dry"
              " run: nothing was compiled")
        return
    import jax

    # What was compiled for devices that are not here cannot be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    print(show(report(config, given.topology, given.slices)), flush=True)
    if given.search:
        best = largest(config, given.topology, given.slices, _show_try)
        print(f"largest micro-batch: {best[0]} x {best[1]} tokens" if best else
              "no micro-batch fits")


if __name__ == "__main__":
    main()
