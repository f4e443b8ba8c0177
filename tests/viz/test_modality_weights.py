import numpy as np
import pytest

from mea_graph.viz import modality_weights


def bars(figure):
    """Weights as drawn, (samples, modalities), and where each bar begins."""
    containers = figure.axes[0].containers
    return np.array([[(bar.get_width(), bar.get_x()) for bar in bars] for bars in containers]).transpose(2, 1, 0)


def test_each_bar_is_a_weight_and_they_stand_end_to_end(output):
    width, left = bars(modality_weights(output, layer=0))
    expected = output.modality_weights[0].detach().numpy()
    np.testing.assert_allclose(width, expected, rtol=1e-5)
    np.testing.assert_allclose(left, np.cumsum(expected, 1) - expected, atol=1e-6)
    np.testing.assert_allclose(width.sum(1), 1, rtol=1e-5)
    assert width[1, 2] == 0  # no vision there


def test_chosen_samples_and_their_names(output):
    figure = modality_weights(output, samples=[2, 0], names=["second", "first"])
    np.testing.assert_allclose(bars(figure)[0], output.modality_weights[-1].detach().numpy()[[2, 0]], rtol=1e-5)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["second", "first"]


def test_modalities_are_told_apart_without_colour(output):
    containers = modality_weights(output).axes[0].containers
    assert len({container.patches[0].get_hatch() for container in containers}) == 3
    assert [container.get_label() for container in containers] == ["text", "audio", "vision"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, r"layer: expected a number in \[-3, 3\), got 3"),
        ({"samples": [4]}, r"sample: expected a number in \[0, 4\), got 4"),
        ({"samples": []}, "samples: expected 1 to 24, got 0"),
        ({"names": ["one"]}, r"names: expected 4 \(one a sample\), got 1"),
    ],
)
def test_errors(output, options, message):
    with pytest.raises(ValueError, match=message):
        modality_weights(output, **options)


def test_a_model_without_weighted_attention(make_output):
    with pytest.raises(ValueError, match="expected one of a model with weighted attention"):
        modality_weights(make_output(exclusive={"weighted_attention": False}))
