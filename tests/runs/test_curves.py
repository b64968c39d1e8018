"""The picture is drawn whatever the metrics hold, and from the right numbers."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from tarl_jax.runs import curves
from tarl_jax.runs.metrics import MetricsWriter

TRAIN = {
    "train/pass_rate": 0.5,
    "reward/mean": 3.0,
    "reward/terminal": 5.0,
    "reward/turns": 1.0,
    "reward/major": -3.0,
    "rl/kl": 0.002,
    "rl/entropy": 0.4,
    "judge/major_share": 0.6,
    "rollout/turns": 6.0,
    "rollout/episode_tokens": 210.0,
    "seconds/rollout": 1.2,
    "seconds/judge": 0.1,
    "seconds/update": 1.0,
    "seconds/step": 2.5,
}
EVAL = {
    "eval/pass^1": 0.4,
    "eval/pass^1_low": 0.3,
    "eval/pass^1_high": 0.5,
    "eval/clean_pass": 0.2,
    "eval/major_share": 0.7,
    "seconds/eval": 30.0,
}


def write(run_dir, lines):
    with MetricsWriter(run_dir) as writer:
        for step, kind, values in lines:
            writer.write(step, kind, values)


def draw(run_dir):
    """The panels of the run, without a file."""
    figure = Figure(layout="constrained")
    curves._draw(figure, curves.read_metrics(run_dir), "run")
    return figure.axes


LINES = {
    "one step": [(1, "train", TRAIN)],
    "base only": [(0, "base", EVAL)],
    "no keys": [(1, "train", {"other": 1.0})],
    "all null": [(s, "train", dict.fromkeys(TRAIN, float("nan"))) for s in (1, 2)],
    "no interval": [(s, "eval", {"eval/pass^1": 0.4}) for s in (0, 20)],
    "only the right axis": [(s, "train", {"rl/entropy": 0.4}) for s in (1, 2)],
    "full": [(0, "base", EVAL)]
    + [(s, "train", TRAIN) for s in range(1, 31)]
    + [(s, "eval", EVAL) for s in (10, 20, 30)],
}


@pytest.mark.parametrize("case", LINES)
def test_a_picture_comes_out_of_any_metrics(tmp_path, case):
    write(tmp_path, LINES[case])
    path = curves.plot_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 500 and image.shape[1] > 1000
    assert not list(tmp_path.glob(".curves*"))


def test_the_caller_chooses_path_and_format(tmp_path):
    write(tmp_path, LINES["one step"])
    out = curves.plot_curves(tmp_path, tmp_path / "picture.svg")
    assert out.read_text().startswith("<?xml")


def test_an_empty_log_is_an_error_not_an_empty_picture(tmp_path):
    write(tmp_path, [])
    with pytest.raises(ValueError, match="no line yet"):
        curves.plot_curves(tmp_path)
    with pytest.raises(FileNotFoundError):
        curves.plot_curves(tmp_path / "absent")


def test_series_sorts_skips_nulls_and_lets_the_last_line_win():
    records = [
        {"step": 10, "k": 1.0},
        {"step": 9, "k": 2.0},
        {"step": 11, "k": None},
        {"step": 10, "k": 3.0},
        {"step": 12},
    ]
    steps, values = curves.series(records, "k")
    assert steps.tolist() == [9, 10]
    assert values.tolist() == [2.0, 3.0]


def test_smooth_is_a_mean_of_neighbours():
    values = np.random.default_rng(0).normal(size=40)
    got = curves.smooth(values)
    expected = [values[max(i - 2, 0) : i + 3].mean() for i in range(40)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert curves.smooth(np.array([3.0])).tolist() == [3.0]


def test_held_out_band_is_the_interval(tmp_path):
    write(tmp_path, LINES["full"])
    (band,) = draw(tmp_path)[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.3, 0.5)


def test_spoken_tasks_have_curves_of_their_own(tmp_path):
    write(tmp_path, [
        (step, "eval", {**EVAL, "eval/spoken/white:10/pass^1": 0.1 * step,
                        "eval/spoken/white:10/pass^1_low": 0.0}) for step in (0, 2)
    ] + [(1, "train", {**TRAIN, "train/modality_gap": 0.25})])
    lines = {line.get_label(): line.get_ydata().tolist() for line in draw(tmp_path)[0].lines}
    assert lines["the same, white:10"] == pytest.approx([0.0, 0.2])
    assert lines["written less spoken"] == [0.25]


def test_phases_are_stacked_and_the_rest_fills_up_to_the_step(tmp_path):
    write(tmp_path, LINES["one step"])
    bars = {p.get_label(): p.get_data() for p in draw(tmp_path)[5].patches}
    assert list(bars) == ["rollout", "judge", "update", "rest"]
    assert bars["update"].baseline == pytest.approx([1.3])
    assert bars["update"].values == pytest.approx([2.3])
    assert bars["rest"].values == pytest.approx([2.5])


def test_a_slow_evaluation_does_not_flatten_the_other_steps(tmp_path):
    write(tmp_path, LINES["full"])
    ax = draw(tmp_path)[5]
    assert ax.get_ylim()[1] == pytest.approx(5.0)
    assert any("up to 32 s" in text.get_text() for text in ax.texts)


def test_panels_without_data_say_so(tmp_path):
    write(tmp_path, LINES["only the right axis"])
    said = [any(t.get_text() == "no data" for t in ax.texts) for ax in draw(tmp_path)]
    assert said == [True, True, False, True, True, True]
