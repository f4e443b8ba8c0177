"""The working tree against a git ref, alternately: `python -m benchmarks.compare REF [--rounds 6]` prints ratios with their spread.

Every measurement is a process of its own, with one tree's `mea_graph` and with the cases that the same tree builds: they call its ops as it
has them. The clock and the counter are the working tree's. A ratio is the ref's time over the working tree's, of two processes that ran
one after the other: above 1, the working tree is faster. Calls are those of one pass: operators outside and inside the engine of autograd,
and conversions of the layout of rows ("-": a library without pointers). Memory is the peak of one pass in a fresh process, in MB.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OURS = ("compare.py", "calls.py")  # what measures, in either tree
SELECTION = [
    ("ops", "predictive attention, full, float32, backward"),
    ("ops", "predictive attention, true lengths, float32, backward"),
    ("ops", "cross-modal attention, true lengths, float32, backward"),
    ("ops", "edge attention, 20k nodes, 400k edges, 1 heads, float32, backward"),
    ("layers", "GraphFusionConv, 32 graphs of 6 nodes, 1 heads"),
    ("model", "training step, MOSI, true lengths, alone"),
    ("model", "training step, MOSI, full padding"),
    ("model", "training step, MOSI, one long clip, leaders"),
    ("model", "prediction, MOSI, one sample"),
    ("data", "batching, batches of 32"),
]


def measure_here(suite: str, key: str, seconds: float, small: bool) -> dict[str, Any]:
    """Median seconds of a pass of the library's contender in this process, and what it calls."""
    from benchmarks.calls import count
    from benchmarks.catalogue import SUITES

    if key not in SUITES[suite]:
        raise SystemExit(f"this tree has no case {key!r} among its {suite}")
    entry = SUITES[suite][key]
    run = (entry.small if small else entry.build)().contenders["mea_graph"]
    run()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return {"seconds": statistics.median(taken), "calls": str(count(run))}


def trees(ref: str, folder: Path) -> dict[str, Path]:
    """Two folders to run in, each with the library and the cases of its tree, and with what measures of this one."""
    packed = subprocess.run(["git", "archive", "--format=tar", ref, "mea_graph", "benchmarks"], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        raise SystemExit(f"REF: expected a commit, branch or tag with benchmarks, got {ref!r}: {packed.stderr.decode().strip()}")
    found = {name: folder / name for name in ("ref", "tree")}
    for place in found.values():
        place.mkdir()
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(found["ref"], filter="data")
    for name in OURS:
        shutil.copyfile(ROOT / "benchmarks" / name, found["ref"] / "benchmarks" / name)
    for name in ("mea_graph", "benchmarks"):
        (found["tree"] / name).symlink_to(ROOT / name, target_is_directory=True)
    return found


def _elsewhere(place: Path, suite: str, key: str, options: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.compare", "--only", suite, key, *options]
    done = subprocess.run(command, cwd=place, env={**os.environ, "PYTHONPATH": str(place)}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    for part in ("mea_graph", "benchmarks"):
        if Path(found["from"][part]).resolve() != (place / part).resolve():
            raise RuntimeError(f"expected {part} of {place}, got {found['from'][part]}")
    return found


def _memory(place: Path, suite: str, key: str) -> str:
    """Peak memory of the library's contender, as the tree's own `benchmarks.memory` measures it."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", suite, key, "mea_graph"]
    done = subprocess.run(command, cwd=place, env={**os.environ, "PYTHONPATH": str(place)}, capture_output=True, text=True, check=False)
    return f"{int(done.stdout.split()[-1]) / 2**20:.0f}" if done.returncode == 0 else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=6, help="pairs of processes a case")
    parser.add_argument("--seconds", type=float, default=2.0, help="a process")
    parser.add_argument("--cases", nargs="+", help="only those whose key contains one of these")
    parser.add_argument("--small", action="store_true", help="little input: a trial of the comparison itself")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # this process measures
    args = parser.parse_args()
    if args.only:
        import mea_graph
        from benchmarks import catalogue

        places = {name: str(Path(of).parent) for name, of in (("mea_graph", mea_graph.__file__), ("benchmarks", catalogue.__file__))}
        print(json.dumps({**measure_here(*args.only, args.seconds, args.small), "from": places}))
        return
    options = ["--seconds", str(args.seconds), *["--small"] * args.small]
    chosen = [(s, k) for s, k in SELECTION if not args.cases or any(part in k for part in args.cases)]
    with tempfile.TemporaryDirectory(prefix="mea-graph-compare-") as folder:
        places = trees(args.ref, Path(folder))
        print(f"{args.ref} over the working tree; {args.rounds} pairs; above 1, the working tree is faster\n")
        print(f"{'':76}{'ratio':>7}{'quartiles':>14}{'ms':>10}{'calls':>15}{'ref':>15}{'MB':>7}{'ref':>7}")
        for suite, key in chosen:
            pairs: list[dict[str, dict[str, Any]]] = []
            try:
                for turn in range(args.rounds):
                    order = ("ref", "tree") if turn % 2 else ("tree", "ref")
                    pairs.append({name: _elsewhere(places[name], suite, key, options) for name in order})
            except RuntimeError as error:
                print(f"{key:76} not comparable: {error}", flush=True)
                continue
            peaks = "" if args.small else "".join(f"{_memory(places[name], suite, key):>7}" for name in ("tree", "ref"))
            print(line(key, pairs) + peaks, flush=True)


def line(key: str, pairs: list[dict[str, dict[str, Any]]]) -> str:
    """The row of a case, of what was measured of the ref and of the tree."""
    ratios = [pair["ref"]["seconds"] / pair["tree"]["seconds"] for pair in pairs]
    lower, _, upper = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    middle, spread = statistics.median(ratios), f"{lower:.2f}-{upper:.2f}"
    ours = 1e3 * statistics.median(pair["tree"]["seconds"] for pair in pairs)
    return f"{key:76}{middle:>7.2f}{spread:>14}{ours:>10.2f}{pairs[0]['tree']['calls']:>15}{pairs[0]['ref']['calls']:>15}"


if __name__ == "__main__":
    main()
