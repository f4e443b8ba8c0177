"""The figures that studies make."""

import itertools

import numpy as np
import pytest

from mea_graph.viz import score_bars, score_curves, score_map


def test_bars_are_means_and_every_seed_is_a_dot():
    axis = score_bars({"MEA": [0.5, 0.7], "GRU": [0.1, 0.2, 0.6]}, "R2", reference="MEA").axes[0]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([0.6, 0.3])
    dots = [line.get_xdata() for line in axis.lines if line.get_marker() == "o"]
    assert [list(x) for x in dots] == [[0.5, 0.7], [0.1, 0.2, 0.6]]
    spread = [collection.get_segments()[0] for collection in axis.collections]
    assert [(end[1][0] - end[0][0]) / 2 for end in spread] == pytest.approx([np.std([0.5, 0.7], ddof=1), np.std([0.1, 0.2, 0.6], ddof=1)])
    assert axis.get_xlim()[0] == 0


def test_a_phone_shows_the_names_of_the_bars_large_enough_and_apart():
    figure = score_bars({"MEA": [0.5], "a Transformer for every pair of modalities": [0.4], "pairwise Transformer (MulT)": [0.3]}, "R2")
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    assert "pairwise Transformer\n(MulT)" in [label.get_text() for label in labels]
    pixels = 360 / (figure.get_figwidth() * 72)  # a point, where the figure is 360 pixels wide
    assert all(label.get_size() * pixels > 10 for label in [*labels, figure.axes[0].xaxis.label])
    boxes = [label.get_window_extent() for label in labels]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0


def test_bars_of_like_height_say_that_they_do_not_begin_at_zero():
    axis = score_bars({"a": [0.95], "b": [0.97]}, "accuracy").axes[0]
    assert axis.get_xlim()[0] > 0.9
    assert "does not begin at 0" in axis.get_xlabel()
    left, right = axis.get_xlim()
    assert axis.dataLim.x1 < right < axis.dataLim.x1 + 0.1 * (right - left)  # no empty half


def test_bars_of_small_errors_fill_the_axis():
    """It reached from -0.01 to 2e-6, and all bars were one line."""
    axis = score_bars({"MEA": [2.0e-6, 2.1e-6], "GRU": [2.5e-6]}, "mae").axes[0]
    left, right = axis.get_xlim()
    assert 1.5e-6 < left < 2.0e-6
    assert 2.5e-6 < right < 2.7e-6


def test_curves_are_means_over_seeds_in_order():
    figure = score_curves({"mu": {"MEA": {0.5: [3.0, 5.0], 0.1: [1.0]}}, "layers": {"GRU": {1: [2.0]}}}, "R2")
    assert [axis.get_xlabel() for axis in figure.axes] == ["mu", "layers"]
    line = figure.axes[0].containers[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[0.1, 1.0], [0.5, 4.0]], atol=0.02)


def test_curves_are_told_apart_without_colour():
    figure = score_curves({"x": {str(i): {0: [i], 1: [i]} for i in range(7)}}, "y")
    assert len({container.lines[0].get_marker() for container in figure.axes[0].containers}) == 7


def test_curves_have_ticks_where_values_are_and_no_slope_where_they_are_level():
    axis = score_curves({"layers": {"MEA": {1: [0.951], 2: [0.953], 4: [0.952]}}}, "R2").axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "2", "4"]
    low, high = axis.get_ylim()
    assert high - low == pytest.approx(0.02)
    assert (low + high) / 2 == pytest.approx(0.952, abs=1e-3)


@pytest.mark.parametrize(("panels", "rows"), [(1, [1]), (2, [2]), (3, [2, 1]), (6, [2, 2, 2])])
def test_many_panels_stand_in_rows_each_with_its_label(panels: int, rows: list[int]):
    figure = score_curves({f"without {i}": {"MEA": {0: [0.5], 1: [0.4]}} for i in range(panels)}, "R2")
    tops = [round(axis.get_subplotspec().rowspan.start) for axis in figure.axes]
    assert [tops.count(row) for row in range(len(rows))] == rows
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_subplotspec().colspan.start == 0] == ["R2"] * len(rows)
    assert [axis.get_xlabel() for axis in figure.axes] == [f"without {i}" for i in range(panels)]


def test_a_phone_shows_the_letters_of_curves_large_enough_and_apart():
    labels = ["share of samples without text", "share of samples without audio", "share of modalities missing"]
    curves = {name: {0: [0.5], 1: [0.4]} for name in ("MEA", "late fusion GRU", "pairwise Transformer (MulT)")}
    figure = score_curves(dict.fromkeys(labels, curves), "R2")
    figure.draw_without_rendering()
    shown = [axis.xaxis.label for axis in figure.axes]
    assert [label.get_text().replace("\n", " ") for label in shown] == labels
    assert all(label.get_size() * 360 / (figure.get_figwidth() * 72) > 10 for label in shown)
    left, right = (label.get_window_extent() for label in shown[:2])
    assert left.x1 < right.x0
    whole = figure.bbox
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 for box in (left, right, figure.legends[0].get_window_extent()))


def test_map_writes_the_mean_into_each_cell_and_better_is_darker():
    scores = {(0.1, 1.0): [0.5, 0.7], (0.1, 2.0): [0.2], (0.3, 1.0): [0.9]}
    axis = score_map(scores, ("alpha", "beta"), "R2").axes[0]
    assert {text.get_text() for text in axis.texts} == {"0.600", "0.200", "0.900"}
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0.1", "0.3"]

    def grey(lower_is_better):
        drawn = score_map(scores, ("alpha", "beta"), "R2", lower_is_better).axes[0].images[0]
        return drawn.cmap(drawn.norm([0.2, 0.6, 0.9]))[:, 0]

    assert (np.diff(grey(False)) < 0).all()
    assert (np.diff(grey(True)) > 0).all()


def test_map_of_equal_numbers_is_of_one_shade():
    drawn = score_map({(1, 1): [0.50001], (1, 2): [0.50002]}, ("a", "b"), "R2").axes[0].images[0]
    assert np.ptp(drawn.cmap(drawn.norm(np.asarray(drawn.get_array())))[..., 0]) < 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_bars({}, "R2"), "expected at least one model"),
        (lambda: score_bars({"a": [float("nan")]}, "R2"), "a: expected finite values, one a seed"),
        (lambda: score_curves({}, "R2"), "panels: expected at least one"),
        (lambda: score_curves({"x": {"a": {0: []}}}, "R2"), "a: expected finite values at every place"),
        (lambda: score_curves({"x": {str(i): {0: [1]} for i in range(8)}}, "R2"), "at most 7 that can be distinguished"),
        (lambda: score_map({}, ("a", "b"), "R2"), "expected at least one pair"),
        (lambda: score_map({(1, 2): [float("inf")]}, ("a", "b"), "R2"), "expected finite values"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
