import numpy as np
import pytest
import torch

from mea_graph.nn import MEA
from mea_graph.ops import IntervalEdges, Pointers
from mea_graph.viz import attention_map

WORDS = ["what", "a", "fine", "film", "this", "is", "indeed", "today"]


def image(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def test_the_map_is_the_mean_of_the_heads_without_the_padding(output):
    drawn = image(attention_map(output, "text", layer=1, sample=2))
    np.testing.assert_allclose(drawn, output.predictive_attention["text"][1][2].mean(0)[:5, :5].detach())
    np.testing.assert_allclose(drawn.sum(1), 1, rtol=1e-5)


def test_one_head(output):
    np.testing.assert_allclose(
        image(attention_map(output, "audio", head=1)), output.predictive_attention["audio"][-1][0, 1, :20, :20].detach()
    )


def test_the_map_of_a_reinforcement_unit_names_source_and_target(output):
    figure = attention_map(output, ("fine", "vision", "audio"), sample=2)
    assert image(figure).shape == (30, 25)
    assert figure.axes[0].get_xlabel() == "vision (step)"
    assert figure.axes[0].get_ylabel() == "audio (step)"


@pytest.mark.parametrize(
    ("arrow", "sample", "expected"),
    [
        (("mixed", "all", "text"), 0, {"text": 8, "audio": 20, "vision": 11}),
        (("coarse", "others", "text"), 0, {"audio": 20, "vision": 11}),
        (("mixed", "all", "text"), 1, {"text": 3, "audio": 9}),  # it has no vision
    ],
)
def test_sources_together_stand_side_by_side_with_a_line_between(output, arrow, sample, expected):
    axis = attention_map(output, arrow, layer=0, sample=sample).axes[0]
    edges = np.cumsum(list(expected.values()))
    assert image(axis.figure).shape[1] == edges[-1]
    assert [line.get_xdata()[0] for line in axis.lines] == (edges[:-1] - 0.5).tolist()
    assert [text.get_text() for text in axis.get_xticklabels()] == list(expected)


@pytest.mark.parametrize("stages", [{}, {"fine": False}, {"mixed": False, "fine": False}])
def test_the_padding_is_cut_without_predictive_attention_too(make_output, stages):
    output = make_output(exclusive={"num_layers": 0}, agnostic=stages)
    stage, source, _ = arrow = next(a for a in output.cross_modal_attention[0] if a[2] == "audio")
    expected = 3 + 9 * (source == "all")  # audio and text; the sample has no vision
    assert image(attention_map(output, arrow, sample=1)).shape == (9, expected), stage


def test_words_stand_on_the_axis_of_their_modality(output):
    axis = attention_map(output, ("fine", "audio", "text"), words={"text": WORDS}).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == WORDS
    assert axis.get_xlabel() == "audio (step)"


def test_steps_that_nobody_hears_keep_their_place():
    model = MEA({"text": 2, "audio": 2}, 1, channels=4, heads=2).eval()
    steps = {m: Pointers.from_ptr(torch.tensor([0, length])) for m, length in (("text", 3), ("audio", 9))}
    times = {"source_time": torch.arange(9.0), "target_time": torch.tensor([0.0, 4.0, 8.0])}
    near = {("audio", "text"): IntervalEdges.window(steps["audio"], steps["text"], seconds=0.5, **times)}
    x = {m: torch.randn(p.num_rows, 2) for m, p in steps.items()}
    ptr = {m: torch.tensor([0, p.num_rows]) for m, p in steps.items()}
    output = model(x, ptr, edges=near, return_attention_weights=True)
    drawn = image(attention_map(output, ("fine", "audio", "text")))
    np.testing.assert_array_equal(drawn, np.eye(9)[[0, 4, 8]])


def test_seconds_stand_on_the_axis_of_their_modality(output):
    axis = attention_map(output, ("fine", "audio", "text"), time={"audio": torch.arange(20) / 8, "vision": [0.0]}).axes[0]
    assert axis.get_xlabel() == "audio (second)"
    assert axis.get_ylabel() == "text (step)"
    assert axis.xaxis.get_major_formatter()(10, 0) == "1.25"
    assert axis.xaxis.get_major_formatter()(20, 0) == ""


def test_a_map_that_is_nearly_even_is_drawn_from_its_least(output):
    even = output.predictive_attention["text"][-1].clone()
    even[0] = 0.125 + torch.arange(8) * 1e-4
    drawn = attention_map(output._replace(predictive_attention={"text": [even]}), "text").axes[0].images[0]
    assert drawn.norm.vmin == pytest.approx(0.125)
    assert drawn.norm.vmax == pytest.approx(0.1257)


def test_more_weight_is_darker(output):
    figure = attention_map(output, "text")
    drawn = figure.axes[0].images[0]
    grey = drawn.cmap(drawn.norm(np.linspace(drawn.norm.vmin, drawn.norm.vmax, 20)))[:, :3].mean(1)
    assert (np.diff(grey) < 0).all()
    assert (grey[0], grey[-1]) == (1, 0)  # the least attention is white, the most is black


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"which": "pulse"}, r"which: expected one of \['text', 'audio', 'vision'\], got 'pulse'"),
        ({"which": ("fine", "text", "text")}, "which: expected one of .*'fine', 'audio', 'text'.*, got"),
        ({"which": "text", "layer": 3}, r"layer: expected a number in \[-3, 3\), got 3"),
        ({"which": "text", "sample": 4}, r"sample: expected a number in \[0, 4\), got 4"),
        ({"which": "text", "head": 2}, r"head: expected a number in \[0, 2\), got 2"),
        ({"which": "text", "words": {"text": WORDS[1:]}}, r"words: expected 8 for text \(one a step\), got 7"),
        ({"which": "text", "time": {"text": [0.5]}}, r"time: expected 8 for text \(one a step\), got 1"),
        ({"which": "text", "sample": 3}, "sample: expected one in which text attends to something, got 3"),
    ],
)
def test_errors(output, options, message):
    with pytest.raises(ValueError, match=message):
        attention_map(output, **options)


def test_an_output_without_maps_says_how_to_get_them(make_output):
    without = make_output()._replace(predictive_attention={"text": []}, cross_modal_attention=[])
    for which in ("text", ("fine", "audio", "text")):
        with pytest.raises(ValueError, match="return_attention_weights=True"):
            attention_map(without, which)
