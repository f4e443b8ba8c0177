import pytest

from mea_graph.viz import fusion_graph


def numbers(axis, names):
    return [float(text.get_text()) for text in axis.texts if text.get_text() not in names]


def test_the_coefficients_into_one_node_sum_to_one(output):
    exclusive, agnostic = fusion_graph(output).axes
    for axis in (exclusive, agnostic):
        assert len(axis.patches) == 6  # ordered pairs of three
        assert sum(numbers(axis, {"text", "audio", "vision"})) == pytest.approx(3, abs=0.03)


def test_each_coefficient_stands_at_its_arrow(output):
    axis = fusion_graph(output).axes[0]
    expected = {}
    for (source, _, target), weights in output.transfer.items():
        if source.endswith("exclusive"):
            mine = output.graph[target].sample[output.graph[source, "to", target].edge_index[1]] == 0
            if mine.any():
                expected[source.split("_")[0], target.split("_")[0]] = f"{weights[mine].item():.2f}"
    drawn = [text for text in axis.texts if text.get_text() not in output.present]
    place = {text.get_text(): text.get_position() for text in axis.texts if text.get_text() in output.present}
    for (source, target), text in zip(expected, drawn, strict=True):
        begin, end = place[source], place[target]
        along = (text.get_position()[0] - begin[0]) * (end[0] - begin[0]) + (text.get_position()[1] - begin[1]) * (end[1] - begin[1])
        share = along / ((end[0] - begin[0]) ** 2 + (end[1] - begin[1]) ** 2)
        assert 0 < share < 0.5  # nearer to where it comes from
        assert text.get_text() == expected[source, target]


def test_a_missing_modality_has_no_node(output):
    for axis in fusion_graph(output, sample=1).axes:
        assert {text.get_text() for text in axis.texts} == {"text", "audio", "1.00"}
        assert len(axis.patches) == 2


def test_a_lonely_modality_hears_itself(output):
    axis = fusion_graph(output, sample=3).axes[0]
    assert [text.get_text() for text in axis.texts] == ["1.00", "audio"]
    assert len(axis.patches) == 1


def test_one_space_and_no_coefficients(make_output):
    (axis,) = fusion_graph(make_output(exclusive=None, fusion="addition")).axes
    assert axis.get_title() == "agnostic"
    assert {text.get_text() for text in axis.texts} == {"text", "audio", "vision"}


def test_an_arrow_with_more_weight_is_thicker(output):
    axis = fusion_graph(output).axes[0]
    weights = numbers(axis, {"text", "audio", "vision"})
    widths = [arrow.get_linewidth() for arrow in axis.patches]
    assert max(widths) == widths[weights.index(max(weights))]
    assert min(widths) == widths[weights.index(min(weights))]


def test_errors(output):
    with pytest.raises(ValueError, match=r"sample: expected a number in \[0, 4\), got 9"):
        fusion_graph(output, sample=9)
    nothing = output._replace(present={m: there & False for m, there in output.present.items()})
    with pytest.raises(ValueError, match="expected one with a modality, got 0"):
        fusion_graph(nothing)
