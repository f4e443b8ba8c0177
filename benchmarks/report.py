"""Makes docs/performance.md of the JSON files in benchmarks/results: `python -m benchmarks.report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import Timing, ratio

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

HEAD = """# Performance

<!-- Made by `python -m benchmarks.report` from the files in benchmarks/results. Do not edit. -->

Every figure is one forward and backward pass. The library's result was compared with float64 first; one that is wrong is not timed.
Rivals ran in the same process, in turn, so that what disturbs one disturbs the others: trust ratios more than times. A ratio is that of
the medians; in brackets, the least and the most that the quartiles allow. Memory is the peak beyond what the inputs take.
[How the kernels work](kernels.md) says what bounds them.
"""
NO_GPU = """
## GPU

No figure: no kernel of the library has run on a GPU yet. Without one, Triton's interpreter and a host build of the CUDA C++ check the
numbers, and compilation for sm_80 and sm_90 checks the resources. On a machine with a GPU, `python -m benchmarks.gpu_check` checks every
kernel against float64, times it beside its rivals and writes the file that this page is made of.
"""


class Aim(NamedTuple):
    """A figure to reach, and how to read it off the cases of a run; None where the run lacks the case."""

    what: str
    aim: str
    found: Callable[[dict[str, Any]], float | None]
    reached: Callable[[float], bool]


def _quotient(case: str, field: str, over: str, under: str) -> Callable[[dict[str, Any]], float | None]:
    def read(run: dict[str, Any]) -> float | None:
        for c in run["cases"]:
            if c["case"].startswith(case) and over in c["contenders"] and under in c["contenders"]:
                return c["contenders"][over][field] / c["contenders"][under][field]
        return None

    return read


def _times(what: str, case: str, rival: str, least: float) -> Aim:
    return Aim(
        f"{what}: times faster than {rival}", f"at least {least:g}", _quotient(case, "median", rival, "mea_graph"), lambda x: x >= least
    )


def _memory(what: str, case: str, rival: str, most: float) -> Aim:
    return Aim(
        f"{what}: share of the memory of {rival}",
        f"at most {most:g}",
        _quotient(case, "peak_bytes", "mea_graph", rival),
        lambda x: x <= most,
    )


_FULL, _TRUE = "predictive attention, B 8, K 8, T 500, d 40", "predictive attention, B 32, K 8, T 500, d 40, true lengths"
_SMALL, _LARGE = "graph layer, 32 graphs of 6 nodes", "graph layer, 20k nodes, 400k edges"
CPU_AIMS = [
    _times("predictive attention, B 8, T 500", _FULL, "eager formula", 4),
    _memory("predictive attention, B 8, T 500", _FULL, "eager formula", 0.1),
    _times("predictive attention, true lengths", _TRUE, "eager formula", 10),
    Aim(
        "predictive attention: time at T 2000 over that at T 1000",
        "at most 4.4",
        _quotient("predictive attention, B 1, growth", "median", "T 2000", "T 1000"),
        lambda x: x <= 4.4,
    ),
    *(_times(f"{case}, {heads} head(s)", f"{case}, {heads} x", "GATConv", 2) for case in (_SMALL, _LARGE) for heads in (1, 4)),
    *(_memory(f"{case}, {heads} head(s)", f"{case}, {heads} x", "GATConv", 0.5) for case in (_SMALL, _LARGE) for heads in (1, 4)),
]
_GPU = "predictive attention, B 32, K 8, T 500, d 40"
GPU_AIMS = [
    _times("predictive attention, B 32, T 500", _GPU, "eager formula", 6),
    _times("predictive attention, B 32, T 500", _GPU, "torch.compile of the formula", 2),
    _times("graph layer, 20k nodes, 400k edges", _LARGE, "GATConv", 5),
]


def page(files: list[Path]) -> str:
    """The whole page, from the newest file of each device."""
    newest = {path.stem[:-11]: json.loads(path.read_text(encoding="utf-8")) for path in sorted(files)}
    parts = [HEAD]
    if not any(name != "cpu" for name in newest):
        parts.append(NO_GPU)
    for name, found in sorted(newest.items(), key=lambda item: item[0] == "cpu"):
        aims = CPU_AIMS if name == "cpu" else GPU_AIMS
        for run in found["runs"]:
            parts.append(_section(run, found["command"], aims))
    return "\n".join(parts)


def _section(run: dict[str, Any], command: str, aims: list[Aim]) -> str:
    threads = f", {run['threads']} thread{'s' * (run['threads'] > 1)}" if "cuda" not in run else ""
    versions = ", ".join(f"{n} {run[n]}" for n in ("python", "torch", "torch_geometric", "triton", "cuda", "mea_graph") if n in run)
    lines = [
        f"\n## {run['device']}{threads}\n",
        f"`{command}`, {run['date']} UTC; {versions}; {run['cores']} cores, load {run['load'][0]} at the end.\n",
    ]
    rows = [(a, a.found(run)) for a in aims]
    lines += ["| Aim | asked | found | reached |", "|---|---|---|---|"]
    lines += [f"| {a.what} | {a.aim} | {x:.2f} | {'yes' if a.reached(x) else '**no**'} |" for a, x in rows if x is not None]
    lines += ["", "| Case | contender | ms (quartiles) | times ours | peak MB | error |", "|---|---|---|---|---|---|"]
    for case in run["cases"]:
        if "not_timed" in case:
            lines.append(f"| {case['case']}, {case['dtype']} | not timed: {case['not_timed'].splitlines()[-1]} | | | | |")
        first = None
        for name, c in case["contenders"].items():
            timing = Timing(*(c[field] for field in Timing._fields))
            first = first or timing
            label = f"{case['case']}, {case['dtype']}" if timing is first else ""
            lines.append(f"| {label} | {name} | {_row(c, timing, first)} |")
    return "\n".join(lines) + "\n"


def _row(c: dict[str, Any], timing: Timing, first: Timing) -> str:
    middle, least, most = ratio(timing, first)
    times = "1" if timing is first else f"{middle:.2f} ({least:.2f}-{most:.2f})"
    peak = f"{c['peak_bytes'] / 1e6:.1f}" if "peak_bytes" in c else ""
    error = "" if c.get("error") is None else f"{c['error']:.0e}"
    return f"{1e3 * timing.median:.2f} ({1e3 * timing.lower:.2f}-{1e3 * timing.upper:.2f}) | {times} | {peak} | {error}"


def main() -> None:
    PAGE.write_text(page(list(RESULTS.glob("*.json"))), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
