import io

import matplotlib.image
import numpy as np
import pytest

from mea_graph.viz import learning_curves

CURVES = {"loss": {"MEA": [3.0, 2.0, 1.0], "GRU": [3.0, 2.5, 2.2]}, "accuracy": {"MEA": [0.1, 0.5, np.nan, 0.9]}}


def drawn(figure):
    """The curves by panel and model."""
    return {axis.get_ylabel(): {line.get_label(): line for line in axis.lines} for axis in figure.axes}


def test_every_value_is_drawn_at_its_epoch():
    lines = drawn(learning_curves(CURVES))
    assert {panel: set(models) for panel, models in lines.items()} == {"loss": {"MEA", "GRU"}, "accuracy": {"MEA"}}
    np.testing.assert_array_equal(lines["accuracy"]["MEA"].get_xydata(), np.column_stack([[1, 2, 3, 4], CURVES["accuracy"]["MEA"]]))


def test_models_are_told_apart_without_colour_and_alike_in_every_panel():
    lines = drawn(learning_curves({"loss": {str(i): [1.0, i] for i in range(7)}, "accuracy": {"3": [0.0, 1.0]}}))
    assert len({line.get_marker() for line in lines["loss"].values()}) == 7
    same = (lines["loss"]["3"], lines["accuracy"]["3"])
    assert same[0].get_marker() == same[1].get_marker()
    assert same[0].get_color() == same[1].get_color()


def test_one_epoch_is_visible_as_a_marker():
    assert drawn(learning_curves({"loss": {"a": [1.0], "b": [2.0]}}))["loss"]["b"].get_markevery() is not None
    figures = [learning_curves({"loss": {"a": [1.0], "b": values}}) for values in ([2.0], [np.nan])]
    images = []
    for figure in figures:
        figure.axes[0].set_ylim(0, 3)
        with io.BytesIO() as file:
            figure.savefig(file, format="png")
            file.seek(0)
            images.append(matplotlib.image.imread(file, format="png"))
    assert not np.array_equal(*images)


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({}, "expected at least one quantity"),
        ({"loss": {"a": []}}, r"a: expected one value per epoch, got shape \(0,\)"),
        ({"loss": {"a": [[1.0, 2.0]]}}, r"got shape \(1, 2\)"),
        ({"loss": {str(i): [1.0] for i in range(8)}}, "at most 7 that can be distinguished, got 8"),
    ],
)
def test_errors(panels, message):
    with pytest.raises(ValueError, match=message):
        learning_curves(panels)


@pytest.mark.parametrize(("panels", "got"), [("text", "str"), ([1.0], "list"), ({"loss": [1.0]}, "list"), (None, "NoneType")])
def test_what_is_no_dict_of_curves_is_told(panels, got):
    with pytest.raises(TypeError, match=f"panels: expected a dict of quantities, each a dict of curves by model, got {got}"):
        learning_curves(panels)
