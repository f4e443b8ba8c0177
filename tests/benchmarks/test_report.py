"""docs/performance.md says what the committed files say, no more."""

import json

from benchmarks import report


def run(**times: float) -> dict:
    contenders = {
        n: {"median": t, "lower": 0.9 * t, "upper": 1.1 * t, "passes": 7, "error": 1e-7, "peak_bytes": 10**6} for n, t in times.items()
    }
    case = {"case": "predictive attention, B 8, K 8, T 500, d 40", "dtype": "float32", "contenders": contenders}
    head = {"device": "Processor X", "threads": 1, "cores": 2, "load": [0.5], "date": "2026-01-02 03:04", "python": "3.11", "torch": "2.13"}
    return {**head, "cases": [case]}


def written(folder, name, *runs):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"command": "python -m benchmarks.cpu_check", "runs": runs}))
    return path


def test_the_page_is_what_the_report_makes_of_the_committed_files():
    assert report.PAGE.read_text(encoding="utf-8") == report.page(list(report.RESULTS.glob("*.json")))


def test_an_aim_that_is_missed_is_shown_as_missed(tmp_path):
    fast = written(tmp_path, "cpu-2026-01-02", run(**{"mea_graph": 0.1, "eager formula": 0.5}))
    assert "| at least 4 | 5.00 | yes |" in report.page([fast])
    slow = written(tmp_path, "cpu-2026-01-02", run(**{"mea_graph": 0.2, "eager formula": 0.5}))
    assert "| at least 4 | 2.50 | **no** |" in report.page([slow])


def test_ratios_carry_their_spread_and_a_figure_its_machine(tmp_path):
    text = report.page([written(tmp_path, "cpu-2026-01-02", run(**{"mea_graph": 0.1, "eager formula": 0.5}))])
    assert "| eager formula | 500.00 (450.00-550.00) | 5.00 (4.09-6.11) | 1.0 | 1e-07 |" in text
    assert "## Processor X, 1 thread\n" in text
    assert "python 3.11, torch 2.13; 2 cores, load 0.5" in text


def test_only_the_newest_file_of_a_device_counts_and_a_missing_gpu_is_said(tmp_path):
    old = written(tmp_path, "cpu-2026-01-01", run(**{"mea_graph": 9.0, "eager formula": 9.0}))
    new = written(tmp_path, "cpu-2026-01-02", run(**{"mea_graph": 0.1, "eager formula": 0.5}))
    text = report.page([new, old])
    assert "9000.00" not in text
    assert "no kernel of the library has run on a GPU yet" in text


def test_a_kernel_that_was_not_timed_is_named(tmp_path):
    found = run(**{"mea_graph": 0.1, "eager formula": 0.5})
    found["cases"].append({"case": "broken", "dtype": "float32", "contenders": {}, "not_timed": "Traceback\nRuntimeError: launch failed"})
    text = report.page([written(tmp_path, "nvidia-x-2026-01-02", found)])
    assert "| broken, float32 | not timed: RuntimeError: launch failed |" in text
    assert "no kernel of the library has run" not in text
