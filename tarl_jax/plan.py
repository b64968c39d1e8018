"""Says whether a run fits on devices that are not there: a TPU slice, or GPUs.

    python -m tarl_jax.plan --config=configs/grpo_tarl.py:qwen3_8b --topology=v5e:4x4
    python -m tarl_jax.plan --config=configs/grpo_tarl.py:qwen3_8b_lora --topology=h100

For a TPU the run's programs of the model's size are compiled by TPU's own compiler (`pip install
libtpu`; with jax 0.10.2: libtpu==0.0.42.1), which says what each takes. For GPUs (`h100`,
`h200:8`, …) there is none: what programs take is estimated (`training/memory_estimate.py`). The
shape is that of the checkpoint that `model.pretrained` names, else of the published model
(`config/shapes.py`).

Printed are, per chip, the programs, and what the run holds at each of its moments; the last line is
"fits" or "does NOT fit", by the moment that holds most. --compile_time adds how long each program
takes to compile, --search looks for the largest micro-batch, --count leaves the compiler out.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from tarl_jax.config import ConfigError, ModelConfig, RunConfig
from tarl_jax.parallel.topologies import (
    GPU_GIB,
    GPU_SHARE,
    MEMORY_GIB,
    chips_of_a_host,
    devices_of,
    is_gpu,
)

LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)  # of rows that a search tries
ROWS_PER_CHIP = (1, 2, 4, 8)
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program, per chip.

    Attributes:
      at: the shapes that it is for.
      peak_gib: memory at its highest, arguments included; inf where the compiler ran out.
      argument_gib: of which the arguments.
      collectives: how often each kind stands in the program (a loop's body counts once).
      tracing, seconds: how long it took to trace and lower it, and to compile it.
    """

    name: str
    at: str
    peak_gib: float
    argument_gib: float
    collectives: dict[str, int]
    tracing: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What one slice, or some GPUs, make of a config; per chip.

    Attributes:
      mesh: of updates; playing: chips that rollouts have to themselves.
      tflop: operations of one micro-batch.
      moments: GiB of what the run holds: (moment, ((what, GiB), …)).
      estimated: GiB that each program takes for itself, by count; where nothing was compiled,
        `moments` has that.
      host_gib: of a host's memory, while a checkpoint is written: the state of its chips.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    memory_gib: float
    rows: int
    length: int
    tflop: float
    programs: list[Program]
    moments: list[tuple[str, tuple[tuple[str, float], ...]]]
    estimated: dict[str, float]
    host_gib: float = 0.0
    playing: int = 0

    @property
    def worst(self) -> tuple[str, float]:
        """The moment that holds most, and its GiB."""
        return max(
            ((name, sum(gib for _, gib in held)) for name, held in self.moments),
            key=lambda moment: moment[1],
        )

    @property
    def fits(self) -> bool:
        return self.worst[1] <= self.memory_gib


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
    from tarl_jax.parallel.mesh import make_mesh, rollout_mesh, row_shards
    from tarl_jax.rl.batching import packed_rows, padded_length

    if config.model.pretrained:
        config = completed(config)
    if is_gpu(topology) and config.rollout.cache == "auto":  # which stand-ins would not have
        pages = dataclasses.replace(config.rollout, cache="pages")
        config = dataclasses.replace(config, rollout=pages)
    devices = devices_of(topology, slices)
    mesh = make_mesh(config.mesh, devices)
    rollout_mesh(config.mesh, devices)
    if not config.model.vocab_size:
        raise ConfigError("config.model.vocab_size = 0: give the size that is to be planned for")
    length = padded_length(config.rollout.max_episode_tokens)
    rows = packed_rows(config.rl.micro_batch_tokens, length, row_shards(mesh))
    return LaidOut(config, devices, mesh, rows, length)


def report(
    config: RunConfig, topology: str, slices: int = 1, shape: tuple[int, int] | None = None,
    rollout: bool = True, compiled: bool = True,
) -> Report:
    """What the slice makes of the config. Raises ConfigError where the mesh does not fit model or
    slice.

    shape: (rows, length) of a micro-batch; None: as the config has it.
    rollout: whether what feeds and writes is compiled too.
    compiled: whether TPU's compiler is asked; where not, programs are estimated as for GPUs.
    """
    from tarl_jax.parallel.mesh import rollout_mesh
    from tarl_jax.rl.update import Updater
    from tarl_jax.rollout.compiled import Compiled
    from tarl_jax.rollout.paged_compiled import PagedPrograms, in_pages
    from tarl_jax.training.memory import memory
    from tarl_jax.training.memory_estimate import estimate

    gpus = is_gpu(topology)
    laid = laid_out(config, topology, slices)
    config, devices, mesh = laid.config, laid.devices, laid.mesh
    model, vocab = config.model, config.model.vocab_size
    rows, length = shape or (laid.rows, laid.length)
    updater = Updater(model, vocab, config.rl, config.rollout.temperature, mesh)
    wanted = updater.model_sized((rows, length), config.rl.pack)
    decoding = rollout_mesh(config.mesh, devices)
    engine: Compiled | PagedPrograms
    if in_pages(config.rollout, decoding):
        engine = PagedPrograms(model, config.rollout, 0, decoding)
        played = engine.model_sized(updater.policy_shapes) if rollout else {}
    else:
        engine = Compiled(model, config.rollout, 0, decoding)
        played = engine.model_sized(updater.policy_shapes, length) if rollout else {}
    counted = memory(config, updater, engine)
    programs: list[Program] = []
    fed = engine.budget if isinstance(engine, PagedPrograms) else engine.slots
    own: Mapping[str, float] = estimate(config, counted, mesh, (rows, length), fed)
    estimated = {name: size / 2**30 for name, size in own.items()}
    if compiled and not gpus:
        programs = [_compile(one) for one in (wanted | played).values()]
        own = {p.name: max(p.peak_gib * 2**30 - counted.arguments(p.name), 0.0)
               for p in programs if p.name != "encode"}
    chip = topology.split(":")[0]
    return Report(
        topology=topology if slices == 1 else f"{slices} x {topology}",
        chips=len(devices),
        mesh={name: size for name, size in mesh.shape.items() if size > 1},
        memory_gib=GPU_SHARE * GPU_GIB[chip] if gpus else MEMORY_GIB[chip],
        rows=rows,
        length=length,
        tflop=update_flops(model, vocab, rows, length) / mesh.size / 1e12,
        programs=programs,
        moments=[
            (moment.name, tuple((what, size / 2**30) for what, size in moment.held))
            for moment in counted.moments(own)
        ],
        estimated=estimated,
        host_gib=counted.saved / 2**30 * chips_of_a_host(list(mesh.devices.flat), slices),
        playing=config.mesh.rollout_devices,
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

    shards = row_shards(make_mesh(config.mesh, devices_of(topology, slices)))

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


def _compile(wanted: Any) -> Program:
    begun = time.perf_counter()
    lowered = wanted.lower()
    traced = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:  # the compiler says so in words only
        found = re.search(r"[Uu]sed ([\d.]+)([MG]) of", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) and not found:
            raise
        used = float(found[1]) / (1024 if found[2] == "M" else 1) if found else float("inf")
        return Program(wanted.name, wanted.at, used, 0.0, {}, traced - begun,
                       time.perf_counter() - traced)
    done = time.perf_counter()
    analysis = compiled.memory_analysis()
    text = compiled.as_text()
    counts = {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in COLLECTIVES}
    return Program(
        wanted.name, wanted.at,
        analysis.peak_memory_in_bytes / 2**30,
        analysis.argument_size_in_bytes / 2**30,
        {kind: n for kind, n in counts.items() if n},
        traced - begun, done - traced,
    )


def show(found: Report) -> str:
    """The report as text, without its verdict."""
    mesh = " x ".join(f"{name} {size}" for name, size in found.mesh.items()) or "of one"
    if found.playing:
        mesh += f", {found.playing} of them for rollouts alone"
    lines = [
        f"{found.topology}: {found.chips} chip{'s' * (found.chips > 1)} of {found.memory_gib:.2f}"
        f" GiB, mesh {mesh}; micro-batch of {found.rows} x {found.length} tokens:"
        f" {found.tflop:.1f} Tflop a chip",
    ]
    for p in found.programs:
        collectives = ", ".join(f"{n} {kind}" for kind, n in p.collectives.items()) or "none"
        peak = "out of memory" if p.peak_gib == float("inf") else f"{p.peak_gib:.2f} GiB"
        lines.append(f"  {p.name:9} peak {peak} (arguments {p.argument_gib:.2f}); collectives:"
                     f" {collectives}")
    if not found.programs and found.estimated:
        said = ", ".join(f"{name} {gib:.1f}" for name, gib in found.estimated.items())
        lines.append(f"nothing was compiled; what programs take for themselves, estimated: {said}")
    lines.append("held on a chip, GiB:")
    width = max(len(name) for name, _ in found.moments)
    for name, held in found.moments:
        parts = " + ".join(f"{what} {gib:.2f}" for what, gib in held)
        lines.append(f"  {name:{width}} | {sum(gib for _, gib in held):7.2f} | {parts}")
    lines.append(f"of a host's memory a checkpoint that is being written takes {found.host_gib:.1f}"
                 " GiB")
    return "\n".join([*lines, f"at most {found.worst[1]:.2f} of {found.memory_gib:.2f} GiB:"
                              f" {found.worst[0]}"])


def show_times(programs: list[Program]) -> str:
    """How long they took to compile, and what of it a second start spends again."""
    if not programs:
        return "0 programs, compiled in 0 s: for GPUs there is no compiler here"
    lines = [
        f"  {f'{p.name} {p.at}'.strip()}: {p.tracing + p.seconds:.1f} s, of which tracing"
        f" {p.tracing:.1f} s" for p in programs
    ]
    tracing = sum(p.tracing for p in programs)
    total = tracing + sum(p.seconds for p in programs)
    lines.append(f"{len(programs)} programs, compiled in {total:.0f} s")
    lines.append(
        f"the compilation cache on disk (warm_start.cache_dir) saves {total - tracing:.0f} s of"
        f" them: a second start traces for {tracing:.0f} s and reads what was compiled"
    )
    return "\n".join(lines)


def _show_try(rows: int, length: int, fits: bool) -> None:
    print(f"  {rows} x {length} tokens: {'fits' if fits else 'does not fit'}", flush=True)


def main() -> None:
    from tarl_jax.runs.command import run_with_config

    run_with_config(__doc__ or "", _plan, _options)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", default="v5e:4x4", metavar="SLICE",
                        help="a TPU slice, e.g. v5p:2x2x2, or GPUs, e.g. h100 or h100:8"
                             " (default: v5e:4x4)")
    parser.add_argument("--slices", type=int, default=1, help="number of such slices, or nodes")
    parser.add_argument("--compile_time", action="store_true",
                        help="how long each program takes to compile")
    parser.add_argument("--count", action="store_true",
                        help="estimate for TPUs too: seconds, where compiling takes minutes")
    parser.add_argument("--search", action="store_true",
                        help="look for the largest micro-batch that fits")


def _plan(config: RunConfig, parts: Any, given: argparse.Namespace) -> None:
    if given.slices < 1:
        raise ConfigError(f"--slices={given.slices}: must be at least 1")
    if given.dry_run:
        laid = laid_out(config, given.topology, given.slices)
        axes = " x ".join(f"{name} {size}" for name, size in laid.mesh.shape.items())
        if config.mesh.rollout_devices:
            axes += f", {config.mesh.rollout_devices} of them for rollouts alone"
        print(f"{given.slices} x {given.topology}: {len(laid.devices)} chips, mesh {axes};"
              f" micro-batch of {laid.rows} x {laid.length} tokens\nall checks pass; this was a dry"
              " run: nothing was compiled")
        return
    import jax

    # What was compiled for devices that are not here cannot be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    found = report(config, given.topology, given.slices, compiled=not given.count)
    print(show(found), flush=True)
    if given.compile_time:
        print(show_times(found.programs), flush=True)
    if given.search:
        best = largest(config, given.topology, given.slices, _show_try)
        print(f"largest micro-batch: {best[0]} x {best[1]} tokens" if best else
              "no micro-batch fits")
    print("fits" if found.fits else "does NOT fit")


if __name__ == "__main__":
    main()
