"""Checks the CPU paths against float64, times them beside their baselines, and writes JSON.

python -m benchmarks.cpu_check                 # one thread, then two; about ten minutes
python -m benchmarks.cpu_check --seconds 3     # a quick look
python -m benchmarks.report                    # makes docs/performance.md of what was written
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, measure
from benchmarks.results import called

RESULTS = Path(__file__).parent / "results"
BUDGET = 1e-5  # relative error of float32 against float64, output and every gradient

MOSI = cases.mosi_lengths(32)
TEXT, AUDIO, VISION = cases.mosi_lengths(32, 50, 12), cases.mosi_lengths(32, 375, 50), MOSI

# by key: the case, and one of the same kind on little input, which warms a process up
CASES: dict[str, tuple[Callable[[], cases.Case], Callable[[], cases.Case]]] = {
    "predictive": (lambda: cases.predictive(8, 500), lambda: cases.predictive(1, 8)),
    "predictive, short": (lambda: cases.predictive(32, 50), lambda: cases.predictive(1, 8)),
    "predictive, lengths": (lambda: cases.predictive(32, 500, MOSI), lambda: cases.predictive(2, 8, [8, 5])),
    "edges, small": (lambda: cases.edges("32 graphs of 6 nodes", 1), lambda: cases.edges("32 graphs of 6 nodes", 1, 2)),
    "edges, small, 4 heads": (lambda: cases.edges("32 graphs of 6 nodes", 4), lambda: cases.edges("32 graphs of 6 nodes", 4, 2)),
    "edges, large": (lambda: cases.edges("20k nodes, 400k edges", 1), lambda: cases.edges("32 graphs of 6 nodes", 1)),
    "edges, large, 4 heads": (lambda: cases.edges("20k nodes, 400k edges", 4), lambda: cases.edges("32 graphs of 6 nodes", 4)),
    "crossing, lengths": (
        lambda: cases.crossing(32, VISION, [TEXT, AUDIO], [500, 50, 375]),
        lambda: cases.crossing(2, [3, 2], [[2, 1]], [3, 2]),
    ),
    "crossing, full": (
        lambda: cases.crossing(8, [500] * 8, [[50] * 8, [375] * 8], [500, 50, 375]),
        lambda: cases.crossing(2, [3, 2], [[2, 1]], [3, 2]),
    ),
}


def check(case: cases.Case) -> dict[str, float]:
    """The relative error of every checked contender; the library's own being above the budget ends the run."""
    errors = case.errors()
    if not errors["mea_graph"] <= BUDGET:
        raise SystemExit(f"{case.name}: error {errors['mea_graph']:.1e} is above {BUDGET:g}, so nothing is timed")
    return errors


def run(key: str, seconds: float) -> dict[str, Any]:
    case = CASES[key][0]()
    errors = check(case)
    timings = measure.interleave(case.contenders, seconds)
    results = {}
    for name, timing in timings.items():
        peak = int(_again("--memory-of", key, name, threads=torch.get_num_threads()))
        results[name] = {**timing._asdict(), "error": errors.get(name), "peak_bytes": peak}
    return {"case": case.name, "dtype": "float32", "contenders": results}


def growth(seconds: float) -> dict[str, Any]:
    """How the time of predictive attention grows with the length, T 1000 and 2000 in turn."""
    found = {n: cases.predictive(1, n) for n in (500, 1000, 2000)}
    for case in found.values():
        check(case)
    timings = measure.interleave({f"T {n}": case.contenders["mea_graph"] for n, case in found.items()}, seconds)
    return {
        "case": "predictive attention, B 1, growth with T",
        "dtype": "float32",
        "contenders": {n: t._asdict() for n, t in timings.items()},
    }


def _again(*arguments: str, threads: int) -> str:
    """The last line that this module prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cpu_check", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, cwd=RESULTS.parent.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="to spend on timing each case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "growth"], default=[*CASES, "growth"])
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)  # this very process does the work and prints JSON
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        key, name = args.memory_of
        big, small = (build() for build in CASES[key])
        print(measure.peak_cpu_memory(big.contenders[name], small.contenders[name]))
        return
    if args.only:
        torch.set_num_threads(args.threads[0])
        found = [growth(args.seconds) if key == "growth" else run(key, args.seconds) for key in args.cases]
        print(json.dumps({**measure.environment(), "cases": found}))
        return
    runs = []
    for threads in args.threads:
        options = ["--only", "--threads", str(threads), "--seconds", str(args.seconds), "--cases", *args.cases]
        runs.append(json.loads(_again(*options, threads=threads)))
        show(runs[-1])
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"cpu-{datetime.now(timezone.utc):%Y-%m-%d}.json"
    command = shlex.join(["python", "-m", "benchmarks.cpu_check", *sys.argv[1:]])
    path.write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


def show(found: dict[str, Any]) -> None:
    """Prints a run as a table: the ratio is to the case's first contender, which is the library."""
    print(f"\n{found['device']}, {found['threads']} thread(s), torch {found['torch']}, load {found['load'][0]}, {found['date']}")
    print(f"{'':48}{'ms':>10}{'quartiles':>18}{'times as long':>15}{'peak MB':>9}{'error':>10}")
    for case in found["cases"]:
        print(case["case"])
        first = next(iter(case["contenders"].values()))["median"]
        for name, c in case["contenders"].items():
            spread = f"{1e3 * c['lower']:.2f}-{1e3 * c['upper']:.2f}"
            peak = f"{c['peak_bytes'] / 1e6:.1f}" if "peak_bytes" in c else ""
            error = f"{c['error']:.0e}" if c.get("error") is not None else ""
            print(f"  {called(name):46}{1e3 * c['median']:>10.2f}{spread:>18}{c['median'] / first:>15.2f}{peak:>9}{error:>10}")


if __name__ == "__main__":
    main()
