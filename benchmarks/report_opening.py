"""The table of docs/performance.md on opening large files."""

from __future__ import annotations

from typing import Any

from benchmarks.report_numbers import number, time

_HEAD = """Pickles in MulT's form with the widths and steps of CMU-MOSEI (which has 22,856 samples), each opened in a process of its own.
Times are the shortest of some rounds; in brackets, the processor time of all threads together, which other programs change less.
Memory is all that the process holds. It includes pages of the mapped file, which the system may take back at any time. Where the load
exceeds the number of cores, times say little: an opening also waits for the disk, and hashes in a second thread.

| File | GiB of arrays | `pickle.load` | first opening | times `pickle.load` | memory, times the arrays | from the cache |
|---|---|---|---|---|---|---|""".splitlines()


def opening(cases: list[dict[str, Any]]) -> list[str]:
    """The lines: the first opening of large files, and a later one, beside `pickle.load`."""
    lines = [*_HEAD]
    for case in cases:
        plain, first = case["pickle"], case["first"]
        cells = [
            ", ".join([f"{case['samples']} samples, {case['dtype']}", *([case["broken"]] if case["broken"] else [])]),
            number(case["arrays"] / 2**30),
            f"{time(plain['wall'])} ({time(plain['cpu'])})",
            f"{time(first['wall'])} ({time(first['cpu'])})",
            f"{number(first['wall'] / plain['wall'])} ({number(first['cpu'] / plain['cpu'])})",
            number(first["peak"] / case["arrays"]),
            time(case["cached"]["wall"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
