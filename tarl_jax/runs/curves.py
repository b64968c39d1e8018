"""Learning curves of a run as one picture: `plot_curves(run_dir)` writes `curves.png`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tarl_jax.config import InputError
from tarl_jax.parallel.files import replacing
from tarl_jax.runs.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#8C8C8C",
)  # fmt: skip
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_PHASES = (("rollout", BLUE), ("judge", ORANGE), ("update", GREEN), ("eval", SKY))

SPOKEN = re.compile(r"eval/spoken/[^/]+/pass\^1")

Records = Sequence[Mapping[str, Any]]


def plot_curves(run_dir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Draws what `metrics.jsonl` holds and returns the picture's path.

    Panels: pass rate in training and held-out pass^1 with its interval, of spoken tasks too (four
    conditions at most), and the gap between written and spoken training episodes; the reward and
    its parts; KL and entropy; share of episodes with a major deviation, and clean pass; turns and
    tokens of an episode; seconds of each phase. Training curves are drawn as they are (thin) and as
    a centred moving average (thick). A panel without data says so.

    Args:
      out: where to write; `curves.png` in the run directory by default. The suffix chooses the
        format.

    Raises FileNotFoundError or ValueError as `read_metrics` does, and ValueError where the file
    holds no line yet.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    run_dir = Path(run_dir)
    records = read_metrics(run_dir)
    if not records:
        raise InputError(f"{run_dir}: metrics.jsonl holds no line yet: nothing to draw")
    out = run_dir / "curves.png" if out is None else Path(out)
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
        figure = Figure(figsize=(13, 6.8), layout=layout)
        _draw(figure, records, run_dir.resolve().name)
        with replacing(out) as temporary:
            figure.savefig(temporary, dpi=150, format=out.suffix.lstrip(".") or "png")
    return out


def _draw(figure: Figure, records: Records, name: str) -> None:
    axes = figure.subplots(2, 3)
    panels = (_pass_rate, _reward, _kl_and_entropy, _deviations, _length, _seconds)
    last = max(record["step"] for record in records)
    for ax, panel in zip(axes.flat, panels, strict=True):
        panel(ax, records)
        pad = max(0.5, 0.02 * last)
        ax.set_xlim(-pad, last + pad)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if not (ax.lines or ax.collections or ax.patches):
            ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", color=GREY)
            ax.set_yticks([])
    for ax in axes[1]:
        ax.set_xlabel("step")
    title = f"{name}  ·  {last:,} step{'' if last == 1 else 's'}"
    _, passed = series(records, "eval/pass^1")
    if len(passed) > 1:
        title += f"  ·  held-out pass^1 {passed[0]:.3f} → {passed[-1]:.3f}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)


def series(records: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps [n], values [n]) of a key in order of step; nulls are left out.

    Where a step has several values, the last one written counts.
    """
    by_step = {r["step"]: r[key] for r in records if r.get(key) is not None}
    steps = sorted(by_step)
    return np.array(steps, int), np.array([by_step[s] for s in steps], float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over an eighth of the curve, at most 21 values.

    Its ends average what there is.
    """
    half = min(len(values) // 16, 10)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    end = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def _line(ax: Axes, records: Records, key: str, color: str, label: str, **kwargs: Any) -> None:
    steps, values = series(records, key)
    if not len(steps):
        return
    ax.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
    marker = "o" if len(steps) == 1 else None
    kwargs = {"linewidth": 1.8, "marker": marker, "markersize": 5} | kwargs
    ax.plot(steps, smooth(values), color=color, label=label, **kwargs)


def _evaluation(ax: Axes, records: Records, key: str, color: str, label: str) -> None:
    """Points with their interval as a band (a bar where there is one point alone)."""
    steps, values = series(records, key)
    if not len(steps):
        return
    marker = "o" if len(steps) <= 20 else None
    ax.plot(steps, values, color, label=label, linewidth=1.8, marker=marker, markersize=4.5)
    low, high = (
        dict(zip(*series(records, f"{key}_{end}"), strict=True)) for end in ("low", "high")
    )
    both = [s for s in steps if s in low and s in high]
    if len(both) == 1:
        ax.vlines(both, low[both[0]], high[both[0]], color=color, alpha=0.5, linewidth=2)
    elif both:
        ends = [low[s] for s in both], [high[s] for s in both]
        ax.fill_between(both, *ends, color=color, alpha=0.18, linewidth=0)


def _legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best")


def _pass_rate(ax: Axes, records: Records) -> None:
    ax.set_title("Pass rate")
    _line(ax, records, "train/pass_rate", BLUE, "training episodes")
    _evaluation(ax, records, "eval/pass^1", RED, "held-out pass^1")
    conditions = sorted({key for r in records for key in r if SPOKEN.fullmatch(key)})
    for key, color in zip(conditions, (ORANGE, GREEN, SKY, GREY), strict=False):
        _evaluation(ax, records, key, color, f"the same, {key.split('/')[2]}")
    _line(ax, records, "train/modality_gap", "black", "written less spoken", linewidth=1.0)
    _legend(ax)


def _reward(ax: Axes, records: Records) -> None:
    ax.set_title("Reward and its parts")
    for key, color, label in (
        ("terminal", GREEN, "terminal"),
        ("turns", SKY, "turns"),
        ("major", RED, "major deviations"),
    ):
        _line(ax, records, f"reward/{key}", color, label, linewidth=1.3)
    _line(ax, records, "reward/mean", "black", "total", linewidth=2.2)
    if ax.lines:
        ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    _legend(ax)


def _twin(ax: Axes, records: Records, left: tuple[str, str], right: tuple[str, str]) -> None:
    """Up to two curves of different units, each (key, label) with its own axis."""
    curves = [(*left, BLUE, 9), (*right, ORANGE, 5)]
    axis = None
    for key, label, color, markersize in curves:
        if not len(series(records, key)[0]):
            continue
        if axis is None:
            axis = ax
        else:
            axis = ax.twinx()
            axis.grid(visible=False)
            axis.spines["right"].set_visible(True)
        # Single points coincide, for each axis centres its own: the one behind is larger.
        _line(axis, records, key, color, label, markersize=markersize)
        axis.set_ylabel(label, color=color)
        axis.tick_params(axis="y", colors=color)
        axis.ticklabel_format(axis="y", scilimits=(-3, 5))


def _kl_and_entropy(ax: Axes, records: Records) -> None:
    ax.set_title("KL from sampler to update, and entropy")
    _twin(ax, records, ("rl/kl", "KL (nats per token)"), ("rl/entropy", "entropy (nats per token)"))


def _deviations(ax: Axes, records: Records) -> None:
    ax.set_title("Share of episodes")
    _line(ax, records, "judge/major_share", RED, "with a major deviation, training")
    _evaluation(ax, records, "eval/major_share", ORANGE, "with a major deviation, held-out")
    _evaluation(ax, records, "eval/clean_pass", GREEN, "clean pass, held-out")
    _legend(ax)


def _length(ax: Axes, records: Records) -> None:
    ax.set_title("Length of an episode")
    _twin(ax, records, ("rollout/turns", "turns"), ("rollout/episode_tokens", "tokens"))


def _seconds(ax: Axes, records: Records) -> None:
    ax.set_title("Seconds of a step")
    phases = [phase for phase, _ in _PHASES] + ["step"]
    found = {p: dict(zip(*series(records, f"seconds/{p}"), strict=True)) for p in phases}
    steps = sorted(set().union(*found.values()))
    if not steps:
        return
    values = {p: np.array([by_step.get(s, 0.0) for s in steps]) for p, by_step in found.items()}
    parts = [(phase, color, values[phase]) for phase, color in _PHASES]
    rest = np.maximum(values["step"] - sum(v for _, _, v in parts), 0.0)
    top = np.zeros(len(steps))
    edges = _edges(steps)
    for label, color, height in (*parts, ("rest", "#C8C8C8", rest)):
        if height.any():
            ax.stairs(top + height, edges, baseline=top, fill=True, color=color, label=label)
        top = top + height
    _cut(ax, top)
    tight = {"handlelength": 1, "columnspacing": 1, "handletextpad": 0.4}
    legend = ax.legend(loc="upper left", ncols=5, frameon=True, framealpha=0.85, **tight)
    legend.get_frame().set_linewidth(0)


def _edges(steps: Sequence[int]) -> np.ndarray:
    """Borders half-way between steps, [n + 1]."""
    middle = (np.array(steps[1:]) + np.array(steps[:-1])) / 2
    return np.concatenate([[steps[0] - 0.5], middle, [steps[-1] + 0.5]])


def _cut(ax: Axes, top: np.ndarray) -> None:
    """Keeps a few slow steps from flattening every other one, and says so; leaves room on top."""
    highest, usual = float(top.max()), float(np.median(top))
    if highest <= 3 * usual:
        ax.set_ylim(0, 1.2 * highest or 1.0)
        return
    ax.set_ylim(0, 2 * usual)
    note = f"cut off: steps of up to {highest:,.0f} s"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
    ax.text(0.98, 0.86, note, transform=ax.transAxes, ha="right", va="top", fontsize=8, bbox=box)
