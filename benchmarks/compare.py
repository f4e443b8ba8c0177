"""The working tree against a git ref, alternately: `python -m benchmarks.compare REF [--rounds 6]` prints ratios with their spread.

Every measurement is a process of its own with this tree's benchmarks and one of the two trees' `mea_graph`. A ratio is the ref's time over
the working tree's, of two processes that ran one after the other: above 1, the working tree is faster.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SELECTION = [
    ("ops", "predictive attention, full, float32, backward"),
    ("ops", "predictive attention, true lengths, float32, backward"),
    ("ops", "cross-modal attention, true lengths, float32, backward"),
    ("ops", "edge attention, 20k nodes, 400k edges, 1 heads, float32, backward"),
    ("layers", "GraphFusionConv, 32 graphs of 6 nodes, 1 heads"),
    ("model", "training step, MOSI, true lengths, alone"),
    ("data", "batching, batches of 32"),
]


def measure_here(suite: str, key: str, seconds: float, small: bool) -> float:
    """Median seconds of a pass of the library's contender in this process."""
    from benchmarks.catalogue import SUITES

    entry = SUITES[suite][key]
    run = (entry.small if small else entry.build)().contenders["mea_graph"]
    run()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def trees(ref: str, folder: Path) -> dict[str, Path]:
    """Two folders to run in: the benchmarks of this tree beside the library of either."""
    packed = subprocess.run(["git", "archive", "--format=tar", ref, "mea_graph"], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        raise SystemExit(f"REF: expected a commit, branch or tag of this repository, got {ref!r}: {packed.stderr.decode().strip()}")
    found = {name: folder / name for name in ("ref", "tree")}
    for place in found.values():
        place.mkdir()
        (place / "benchmarks").symlink_to(ROOT / "benchmarks", target_is_directory=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(found["ref"], filter="data")
    (found["tree"] / "mea_graph").symlink_to(ROOT / "mea_graph", target_is_directory=True)
    return found


def _elsewhere(place: Path, suite: str, key: str, options: list[str]) -> float:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.compare", "--only", suite, key, *options]
    done = subprocess.run(command, cwd=place, env={**os.environ, "PYTHONPATH": str(place)}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    if Path(found["library"]).resolve() != (place / "mea_graph").resolve():
        raise RuntimeError(f"expected the library of {place}, got {found['library']}")
    return found["seconds"]


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

        seconds = measure_here(*args.only, args.seconds, args.small)
        print(json.dumps({"seconds": seconds, "library": str(Path(mea_graph.__file__).parent)}))
        return
    options = ["--seconds", str(args.seconds), *["--small"] * args.small]
    chosen = [(s, k) for s, k in SELECTION if not args.cases or any(part in k for part in args.cases)]
    with tempfile.TemporaryDirectory(prefix="mea-graph-compare-") as folder:
        places = trees(args.ref, Path(folder))
        print(f"{args.ref} over the working tree; {args.rounds} pairs; above 1, the working tree is faster\n")
        print(f"{'':68}{'ratio':>7}{'quartiles':>14}{'ms':>10}")
        for suite, key in chosen:
            ratios, ours = [], []
            try:
                for turn in range(args.rounds):
                    order = ("ref", "tree") if turn % 2 else ("tree", "ref")
                    taken = {name: _elsewhere(places[name], suite, key, options) for name in order}
                    ratios.append(taken["ref"] / taken["tree"])
                    ours.append(taken["tree"])
            except RuntimeError as error:
                print(f"{key:68} not comparable: {error}")
                continue
            lower, _, upper = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
            middle, spread = statistics.median(ratios), f"{lower:.2f}-{upper:.2f}"
            print(f"{key:68}{middle:>7.2f}{spread:>14}{1e3 * statistics.median(ours):>10.2f}", flush=True)


if __name__ == "__main__":
    main()
