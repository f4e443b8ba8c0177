import numpy as np
import pytest

from mea_graph.viz import embedding_scatter


def points(axis):
    return {group.get_label(): np.asarray(group.get_offsets()) for group in axis.collections}


def test_principal_components_keep_the_distances_that_fit_in_a_plane(output):
    flat = {m: h.detach() * 0 for m, h in output.exclusive.items()}
    for number, h in enumerate(flat.values()):
        h[:, 3] = number
        h[:, 7] = h.new_tensor([0.0, 1.0, 2.0, 5.0])
    drawn = points(embedding_scatter({"flat": output._replace(exclusive=flat, agnostic=None)}).axes[0])
    text, audio = drawn["text, exclusive"], drawn["audio, exclusive"]
    assert np.linalg.norm(text[0] - audio[0]) == pytest.approx(1)
    assert np.linalg.norm(text[0] - audio[3]) == pytest.approx(np.hypot(1, 5))


def test_only_modalities_that_are_there_are_drawn(output):
    drawn = points(embedding_scatter(output).axes[0])
    assert {label: len(place) for label, place in drawn.items()} == {
        "text, exclusive": 3,
        "audio, exclusive": 4,
        "vision, exclusive": 2,
        "text, agnostic": 3,
        "audio, agnostic": 4,
        "vision, agnostic": 2,
    }


def test_spaces_are_told_apart_by_filling_and_modalities_by_marker(output):
    groups = {group.get_label(): group for group in embedding_scatter(output).axes[0].collections}
    assert len(groups["text, exclusive"].get_facecolors()) == 1
    assert len(groups["text, agnostic"].get_facecolors()) == 0
    outlines = {tuple(groups[f"{m}, agnostic"].get_paths()[0].vertices.ravel()[:8]) for m in ("text", "audio", "vision")}
    assert len(outlines) == 3


def test_several_batches_and_panels(output):
    axes = embedding_scatter({"with": [output, output], "without": output}).axes
    assert [axis.get_title() for axis in axes] == ["with", "without"]
    assert len(points(axes[0])["audio, agnostic"]) == 8
    assert len(points(embedding_scatter([output] * 5, samples=3).axes[0])["audio, agnostic"]) == 3


@pytest.mark.parametrize("titles", [["one"], ["with", "without"], ["with", "without", "centred"]])
def test_letters_can_be_read_on_a_phone_and_the_legend_fits(output, titles):
    names = {"text": "text", "audio": "temperature", "vision": "acceleration of the wrist"}
    renamed = {f: {names[m]: h for m, h in getattr(output, f).items()} for f in ("exclusive", "agnostic", "present")}
    for shown in (output, output._replace(**renamed)):
        figure = embedding_scatter(dict.fromkeys(titles, shown))
        figure.draw_without_rendering()
        legend = figure.legends[0]
        inside = legend.get_window_extent()
        assert inside.x0 >= 0
        assert inside.x1 <= figure.bbox.width
        scale = 360 / 72 / figure.get_figwidth()  # pixels a point, where the figure is 360 wide
        words = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label)]
        assert min(text.get_fontsize() for text in words) * scale >= 10
        assert min(text.get_fontsize() for text in legend.get_texts()) * scale >= 9


@pytest.mark.parametrize("names", [["a", "b"], ["motion", "skin", "pulse", "breath", "temperature"], list("abcdefg")])
def test_the_two_entries_of_a_modality_stand_together_in_the_legend(output, names):
    shown = {f: dict.fromkeys(names, getattr(output, f)["audio"]) for f in ("exclusive", "agnostic", "present")}
    figure = embedding_scatter(output._replace(**shown))
    figure.draw_without_rendering()
    place = {text.get_text(): text.get_window_extent() for text in figure.legends[0].get_texts()}
    height = next(iter(place.values())).height
    for name in names:
        exclusive, agnostic = place[f"{name}, exclusive"], place[f"{name}, agnostic"]
        below = exclusive.x0 == pytest.approx(agnostic.x0) and 0 < exclusive.y0 - agnostic.y0 < 2 * height
        beside = exclusive.x1 < agnostic.x0 and exclusive.y0 == pytest.approx(agnostic.y0, abs=height / 2)
        assert below or beside


def test_neighbour_embedding_is_repeatable(output):
    first, again, other = (
        points(embedding_scatter([output] * 3, method="tsne", seed=seed).axes[0])["audio, exclusive"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all()
    assert first.shape == other.shape == (12, 2)


@pytest.mark.parametrize(
    ("panels", "options", "message"),
    [
        ({}, {}, "outputs: expected at least one, got none"),
        ({"": []}, {}, "expected at least one output in each"),
        ({"": None}, {"samples": 0}, "at least 1, got 'pca' and 0"),
        ({"": None}, {"method": "umap"}, "expected 'pca' or 'tsne'.*got 'umap'"),
    ],
)
def test_errors(output, panels, options, message):
    with pytest.raises(ValueError, match=message):
        embedding_scatter({name: output if value is None else value for name, value in panels.items()}, **options)
