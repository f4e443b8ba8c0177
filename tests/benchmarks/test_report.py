"""docs/performance.md says what the committed files say, no more."""

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import figures, report, report_device
from benchmarks.report_numbers import memory, number, span, time
from benchmarks.report_summary import summary
from benchmarks.results import load

README = Path(__file__).parents[2] / "README.md"


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


README_ROWS = {
    "training step at the lengths of real clips, batch 16": ("MEA, training step, MOSI, B 16, true lengths", "median", 1e3),
    "memory of a training step, all sequences at full length": ("MEA, training step, MOSI, B 16, full padding", "peak_bytes", 1e-6),
    "graph layer, 20,000 nodes, 400,000 edges": ("GraphFusionConv, 20k nodes, 400k edges, 1 x 64", "median", 1e3),
    "training step, all sequences at full length": ("MEA, training step, MOSI, B 16, full padding", "median", 1e3),
    "prediction for one sample": ("MEA, prediction, MOSI, B 1, true lengths", "median", 1e3),
}


@pytest.mark.parametrize("row", README_ROWS)
def test_the_readme_says_what_the_newest_run_says_of_the_library_and_the_best_baseline(row):
    name, field, unit = README_ROWS[row]
    (line,) = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {row} |")]
    ours, best = (float(cell.split()[0].replace(",", "")) for cell in line.split(" | ")[1:3])
    newest = load(max(report.RESULTS.glob("quick-1-thread-*.json")))
    (case,) = [case for case in newest["runs"][0]["cases"] if case["case"] == name]
    measured = {contender: float(f"{found[field] * unit:.3g}") for contender, found in case["contenders"].items()}
    assert measured.pop("mea_graph") == ours
    assert min(measured.values()) == best


def test_ratios_carry_their_spread_and_a_figure_its_machine(tmp_path):
    text = report.page([written(tmp_path, "cpu-2026-01-02", run(**{"mea_graph": 0.1, "eager formula": 0.5}))])
    assert "| eager formula | 500 ms (450-550) | 5 (4.09-6.11) | 1 MB | 1e-07 |" in text
    assert "## Kernels alone: Processor X, 1 thread\n" in text
    assert "python 3.11, torch 2.13; 2 cores, load 0.5" in text


def test_numbers_have_three_digits_at_most_and_their_unit():
    assert [number(x) for x in (0.04592, 0.654, 3.359, 27.86, 999.7, 14080)] == ["0.0459", "0.654", "3.36", "27.9", "1,000", "14,100"]
    assert span(14.08, 13.97, 14.26) == "14.1 s (14-14.3)"
    assert [time(x) for x in (0.9999, 0.0245, 2e-5)] == ["1 s", "24.5 ms", "20 µs"]
    assert [memory(x) for x in (516.3e6, 999.8e6, 3954.5e6)] == ["516 MB", "1 GB", "3.95 GB"]


def test_every_number_of_the_committed_tables_has_three_digits_at_most():
    long = set()
    for line in report.PAGE.read_text(encoding="utf-8").splitlines():
        cells = line.strip("|").split("|")[2:] if line.startswith("|") else []
        found = (digits for cell in cells for digits in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.])", cell))
        long |= {digits for digits in found if len(digits.replace(",", "").replace(".", "").strip("0")) > 3}
    assert not long


def test_a_run_from_before_the_cpp_says_so(tmp_path):
    old, new = run(mea_graph=0.1), run(mea_graph=0.1) | {"date": "2026-12-01 00:00"}
    assert report.page([written(tmp_path, "cpu-2026-12-01", old, new)]).count(report.OLDER) == 1


def test_no_heading_stands_twice(tmp_path):
    one = run(**{"mea_graph": 0.1, "eager formula": 0.5})
    for text in (report.PAGE.read_text(encoding="utf-8"), report.page([written(tmp_path, "cpu-2026-01-02", one, one)])):
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert len(set(headings)) == len(headings)


def test_what_all_rows_have_in_common_is_said_once(tmp_path):
    found = run(mea_graph=0.1)
    found["cases"].append(found["cases"][0] | {"case": "predictive attention, B 32, K 8, T 50, d 40"})
    text = report.page([written(tmp_path, "cpu-2026-01-02", found)])
    assert "All rows: predictive attention, K 8, d 40, float32." in text
    assert "| B 8, T 500 | this library |" in text
    assert "| B 32, T 50 | this library |" in text


def test_the_page_calls_the_library_by_a_name_that_a_newcomer_understands():
    cells = [line.split("|")[2].strip() for line in report.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert "this library" in cells
    assert "mea_graph" not in cells
    drawn = "".join(path.read_text(encoding="utf-8") for path in (report.PAGE.parent / "figures").glob("performance-*.svg"))
    assert "this library" in drawn
    assert "mea_graph" not in drawn


def test_a_long_command_is_folded_where_a_shell_reads_on():
    command = "A=1 python -m pytest 'a file.py::test[growth of the step, T 125]' " + " ".join(f"--option-{n}=value" for n in range(9))
    folded = report._folded(command)
    assert max(map(len, folded.splitlines())) <= 90
    assert shlex.split(folded.replace("\\\n", "")) == shlex.split(command)
    assert report._folded("make bench") == "make bench"
    assert report._folded("python a.py --rounds 1 and python a.py --rounds 2") == "python a.py --rounds 1\npython a.py --rounds 2"
    assert report._folded("python -m pytest -k 'growth and window'") == "python -m pytest -k 'growth and window'"


def step(**times: float) -> dict:
    return {"case": "MEA, training step, MOSI, B 16, true lengths", "contenders": {n: {"median": t} for n, t in times.items()}}


def test_the_first_screen_says_who_is_ahead_whoever_that_is(monkeypatch):
    monkeypatch.setattr(figures, "captions", lambda run: [])
    ahead, behind = {"cases": [step(mea_graph=1.0, MulT=27.86, LinMulT=1.1)]}, {"cases": [step(mea_graph=2.0, MulT=1.0)]}
    assert "is 27.9 times as fast as MulT and level with LinMulT (1.1 times as fast)" in "".join(summary({"quick": ahead}))
    assert "is 2 times slower than MulT" in "".join(summary({"quick": behind}))
    assert summary({"quick": {"cases": []}}) == [""]


def test_the_first_screen_says_that_small_nets_predict_faster_and_why(monkeypatch):
    monkeypatch.setattr(figures, "captions", lambda run: [])
    times = {"mea_graph": 0.02, "MulT": 0.1, "MMSA MISA": 0.004, "MMSA SELF_MM": 0.001}
    case = step(**times) | {"case": "MEA, prediction, MOSI, B 1, true lengths"}
    said = "".join(summary({"quick": {"cases": [case]}}))
    assert "MISA is 5 times and Self-MM 20 times as fast as MEA: both are small recurrent nets and compute no attention" in said
    case["contenders"]["MMSA MISA"]["median"] = 0.04
    assert "recurrent nets" not in "".join(summary({"quick": {"cases": [case]}}))


def test_only_the_newest_file_of_a_device_counts_and_a_missing_gpu_is_said(tmp_path):
    old = written(tmp_path, "cpu-2026-01-01", run(**{"mea_graph": 9.0, "eager formula": 9.0}))
    new = written(tmp_path, "cpu-2026-01-02", run(**{"mea_graph": 0.1, "eager formula": 0.5}))
    text = report.page([new, old])
    assert "9 s" not in text
    assert "100 ms" in text
    assert "no kernel of the library has run on a GPU yet" in text


def test_a_kernel_that_was_not_timed_is_named(tmp_path):
    found = run(**{"mea_graph": 0.1, "eager formula": 0.5})
    found["cases"].append({"case": "broken", "dtype": "float32", "contenders": {}, "not_timed": "Traceback\nRuntimeError: launch failed"})
    text = report.page([written(tmp_path, "nvidia-x-2026-01-02", found)])
    assert "| broken | not timed: RuntimeError: launch failed |" in text
    assert "no kernel of the library has run" not in text


def test_each_clock_of_a_device_has_its_column_and_ratios_are_of_one_clock():
    ours = {"median": 4e-3, "events": 2e-3, "graph": 1e-3, "peak_bytes": 3e6, "error": 2e-7}
    rival = {"median": 6e-3, "events": 5e-3, "graph_refused": "it waits", "peak_bytes": 7e6, "error": None}
    case = {"stage": "times", "case": "x", "dtype": "float32", "contenders": {"mea_graph": ours, "GATConv": rival}}
    (_, (title, lines)) = report_device.sections({"cases": [case]}, lambda case, common: case["case"], lambda cases: [])
    assert title == "Ops"
    assert lines[1:5] == [
        "| Case | what runs | device | graph | wall | times as long | peak | error |",
        "|---|---|---|---|---|---|---|---|",
        "| x | this library | 2 ms | 1 ms | 4 ms | 1 | 3 MB | 2e-07 |",
        "|  | GATConv | 5 ms | none | 6 ms | 2.5 | 7 MB |  |",
    ]
