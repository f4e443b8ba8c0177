"""The part of docs/performance.md that is of a GPU: what `gpu_check` found, whole or as far as it came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.report_numbers import memory, number, time
from benchmarks.results import called

Record = dict[str, Any]
_TITLES = {"times": "Ops", "compilers": "Ops beside a compiler", "layers": "Layers", "whole model": "Whole models"}
READING = """A time is that of one forward and backward pass, unless the row says otherwise. "device" is the GPU's own clock around passes
that are queued one behind the other; "graph" is the same for a CUDA graph, in which the host does nothing; "wall" has the host in it and is
a median. "times as long" compares the times of the device: above 1, the library is faster. "peak" is the memory that a pass takes; a CUDA
graph holds its memory for good, and has none here. "error" is that of the pass as it is timed: in float32 cuDNN rounds to TF32, unless
PyTorch is told otherwise.
"""


def sections(run: Record, name: Callable[[Record, Sequence[str]], str], shared: Callable[[Sequence[Record]], list[str]]) -> list[Any]:
    """Titles with their lines; `name` and `shared` say what a row of a table is called and what all rows have in common."""
    made = [("Checks", _checks(run))]
    for stage, title in _TITLES.items():
        cases = [c for c in run.get("cases", []) if c.get("stage") == stage and (c["contenders"] or "not_timed" in c)]
        if cases:
            made.append((title, [READING] * (len(made) == 1) + _times(cases, name, shared(cases))))
    kernels = [k for k in run.get("kernels", []) if k.get("kernels")]
    if kernels:
        made.append(("Kernel by kernel", _kernels(kernels)))
    left = _left(run)
    return [*made, ("What did not run", left)] if left else made


def _checks(run: Record) -> list[str]:
    checks, manners = run.get("checks", []), run.get("manners", [])
    passed = sum(bool(c.get("passed")) for c in checks)
    lines = [f"{passed} of {len(checks)} checks against float64 passed.\n"]
    lines += [f"- failed: {c.get('what', c['case'])}, {c.get('dtype', '')}: {why(c)}" for c in checks if not c.get("passed")]
    for one in manners:
        said = f"skipped: {one['skipped']}" if "skipped" in one else "passed" if one.get("passed") else f"failed: {why(one)}"
        lines.append(f"- {one['case']}: {said}")
    return [*lines, ""]


def why(record: Record) -> str:
    """Why a check failed, in one line."""
    if record.get("raised"):
        return _cell(str(record["raised"]).strip().splitlines()[-1])
    ran = f"; ran on {record['backend']}, expected {record['expected_backend']}" if "expected_backend" in record else ""
    told = ", ".join(f"{n} {e:.0e}" for n, e in record.get("errors", {}).items())
    return f"{told}; same bits twice: {record.get('same_bits_twice')}{ran}" if told else "see the file"


def _cell(text: str) -> str:
    return text.replace("|", "/")[:300]


def _times(cases: Sequence[Record], name: Callable[[Record, Sequence[str]], str], common: Sequence[str]) -> list[str]:
    lines = [f"All rows: {', '.join(common)}.\n"] if common else []
    lines += ["| Case | what runs | device | graph | wall | times as long | peak | error |", "|---|---|---|---|---|---|---|---|"]
    suite = "model" if cases[0].get("stage") == "whole model" else ""
    for case in cases:
        label, first = name(case, common), next(iter(case["contenders"].values()), {})
        if "not_timed" in case:
            why = str(case["not_timed"]).strip().splitlines()[-1:] or [""]
            lines.append(f"| {label} | not timed: {_cell(why[0])} | | | | | | |")
        for contender, c in case["contenders"].items():
            graph = time(c["graph"]) if "graph" in c else "none" if "graph_refused" in c else ""
            device, own = c.get("events", c["median"]), first.get("events", first["median"])
            error = "" if c.get("error") is None else f"{c['error']:.0e}"
            cells = [label, called(contender, suite), time(device), graph, time(c["median"]), "1" if c is first else number(device / own)]
            lines.append("| " + " | ".join([*cells, memory(c["peak_bytes"]) if "peak_bytes" in c else "", error]) + " |")
            label = ""
        lines += [f"| | {contender} | not timed: {_cell(why)} | | | | | |" for contender, why in (case.get("refused") or {}).items()]
    return [*lines, ""]


def _kernels(passes: Sequence[Record], most: int = 12) -> list[str]:
    lines = ["| Pass | kernel | launches | time | share of its bound |", "|---|---|---|---|---|"]
    for one in passes:
        precision = f", {one['dtype']}" if one.get("dtype") else ""
        label = f"{one.get('what', one['case'])}{precision}, {one.get('launches')} launches"
        for k in one["kernels"][:most]:
            share = f"{k['share']:.0%}" if "share" in k else ""
            lines.append(f"| {label} | {_cell(k['kernel'][:60])} | {k['launches']:.1f} | {time(k['us'] / 1e6)} | {share} |")
            label = ""
    return [*lines, ""]


def _left(run: Record) -> list[str]:
    lines = [f"- {j['stage']}, {j['job']}: {_cell(j['how'])}" for j in run.get("jobs", []) if j["how"] not in ("done", "begun anew")]
    alike: dict[tuple[str, str], list[str]] = {}  # one line for all cases of a job that one reason left out
    for c in run.get("left_out", []):
        alike.setdefault((c.get("job", ""), _cell(c.get("why", ""))), []).append(_cell(c.get("case", "a line that is torn")))
    lines += [f"- {job}, {len(cases)} left out ({reason}): {'; '.join(cases)}" for (job, reason), cases in alike.items()]
    return [*lines, *(f"- {one['name']}: {_cell(one['why'])}" for one in run.get("absent", []))]
