"""What a suite's file becomes: rows, sentences and figures that show what was measured."""

import json

import pytest

from benchmarks import figures, report, results

pytest.importorskip("matplotlib")
STEP = "MEA, training step, MOSI, B 16, full padding"


def entry(case, ours, curve=None, group="model", peaks=None, **baselines):
    times = {n: {"median": t, "lower": 0.9 * t, "upper": 1.1 * t, "passes": 5} for n, t in baselines.items()}
    info = {"key": case, "case": case, "dtype": "float32", "errors": {"mea_graph": 1e-7}, "rivals": times, "curve": curve, "load": [0.1]}
    info |= {"samples": 16, "padding_share": 0.5, **({"peak_bytes": peaks} if peaks else {})}
    return {"group": group, "extra_info": info, "stats": {"median": ours, "q1": 0.9 * ours, "q3": 1.1 * ours, "rounds": 5}}


@pytest.fixture
def suite(tmp_path):
    head = {"device": "Processor X", "threads": 1, "cores": 2, "load": [0.5], "date": "2026-01-02 03:04", "python": "3.11", "torch": "2.13"}
    cases = [entry(STEP, 0.5, MulT=1.5, peaks={"mea_graph": 10**8, "MulT": 4 * 10**8})]
    cases += [entry(f"growth {n}", n / 1e3, ["steps", "T", n], MulT=n / 500) for n in (125, 250, 500)]
    found = {
        "benchmarks": cases,
        "machine_info": head,
        "datetime": "2026-01-02 03:04",
        "absent": {"ALMT": "not published"},
        "minutes": 3,
        "revision": "abcdef1",
        "clock": "wall time",
    }
    path = tmp_path / "quick-1-thread-2026-01-02.json"
    path.write_text(json.dumps(found | {"command": "make bench THREADS=1"}))
    return path


def test_a_suite_becomes_rows_sentences_and_figures(suite):
    text = report.page([suite])
    assert "A training step of MEA is 3 times as fast as MulT. It takes 100 MB of memory; MulT takes 400 MB." in text
    assert "| | MulT | 10.7 | 1.5 s (1.35-1.65) | 3 (2.45-3.67) | 400 MB |" in text.replace("|  |", "| |")
    assert "ALMT (not published)" in text
    assert "figures/performance-quick-1-thread-throughput.svg" in text


def test_a_full_run_takes_the_place_of_a_quick_one(suite, tmp_path):
    full = tmp_path / "full-1-thread-2026-01-01.json"
    full.write_text(suite.read_text().replace("make bench ", "make bench-full "))
    text = report.page([suite, full])
    assert "\nmake bench-full THREADS=1\n" in text
    assert "\nmake bench THREADS=1\n" not in text


def test_growth_curves_stand_beside_a_quick_run(suite, tmp_path):
    growth = tmp_path / "growth-1-thread-2026-01-01.json"
    growth.write_text(suite.read_text().replace("make bench ", "make bench-growth "))
    text = report.page([suite, growth])
    assert text.index("The suites: Processor X") < text.index("Longer runs: Processor X")
    assert "figures/performance-growth-1-thread-steps.svg" in text


def test_two_points_are_no_curve(suite):
    run = results.load(suite)["runs"][0]
    run["cases"] = [c for c in run["cases"] if not c["curve"] or c["curve"][2] < 500]
    assert figures._curves(run) == []


def test_every_figure_of_the_page_is_drawn_and_the_same_when_drawn_again(suite, tmp_path):
    newest = {suite.stem[:-11]: results.load(suite)}
    for folder in ("one", "two"):
        figures.draw(newest, tmp_path / folder)
    drawn = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert drawn == sorted(figures.file_name("quick-1-thread", key) for key, _ in figures.captions(newest["quick-1-thread"]["runs"][0]))
    assert len(drawn) == 3  # throughput, memory, one curve
    for name in drawn:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_curve_has_a_line_for_every_contender(suite):
    run = results.load(suite)["runs"][0]
    points = figures._points(run, "steps")
    assert [c["curve"][2] for c in points] == [125, 250, 500]
    assert [c["contenders"]["MulT"]["median"] for c in points] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("curve", "group", "label"),
    [
        ("ModalityReinforcementUnit over a window of 32 steps", "layers", "a window of 32 steps"),
        ("training step, one sample", "model", "MEA"),
        ("predictive attention, B 1", "ops", "this library"),
    ],
)
def test_the_legend_of_a_curve_names_what_the_library_computes(curve, group, label):
    assert figures._ours(curve, group) == label


def test_letters_and_lines_of_a_curve_can_be_seen_on_a_phone(suite, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    figures._draw_curve(results.load(suite)["runs"][0], "steps", False, tmp_path / "steps.svg")
    (axes,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    legend = drawn[0].legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= drawn[0].bbox.width
    assert legend.y0 >= axes.get_window_extent().y1  # over no line
    scale = 350 / 72 / drawn[0].get_figwidth()  # pixels a point, where the figure is 350 wide
    words = [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *drawn[0].legends[0].get_texts()]
    assert min(word.get_fontsize() for word in words) * scale >= 10
    assert min(line.get_linewidth() for line in axes.get_lines()) * scale >= 2


def test_every_figure_that_the_committed_page_shows_is_committed():
    text = report.PAGE.read_text(encoding="utf-8")
    for part in text.split("](figures/")[1:]:
        assert (report.PAGE.parent / "figures" / part.split(")")[0]).is_file()
