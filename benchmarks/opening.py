"""Times the first opening of a MulT pickle of CMU-MOSEI's form beside `pickle.load`, each in a process of its own.

`python -m benchmarks.opening --samples 5700` makes files of a quarter of MOSEI in a temporary folder, removes them, and writes
`benchmarks/results/opening-DATE.json`; `--samples 22856` of the whole. What is measured on one day goes into one file.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import environment

RESULTS = Path(__file__).parent / "results"
SIZES = {"text": (50, 300), "audio": (500, 74), "vision": (500, 35)}  # steps and widths of CMU-MOSEI, unaligned
SHARES = {"train": 0.714, "valid": 0.082, "test": 0.204}
CASES = (
    ("float32", "", {}),
    ("float64", "", {}),
    ("float32", "-inf in every audio sample", {}),
    ("float64", "NaN in every audio sample", {"non_finite": "zero"}),
)
_CHILD = """
import json, sys, time
def most_memory():  # of this process alone: getrusage begins with that of the process it was started from
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
path, how, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
import pickle
import numpy
if how != "pickle":
    from mea_graph.data import open_dataset
before = most_memory()
wall, cpu = time.perf_counter(), time.process_time()
if how == "pickle":
    with open(path, "rb") as file:
        kept = pickle.load(file)
else:
    kept = open_dataset(path, **options)
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({"wall": wall, "cpu": cpu, "peak": most_memory() - before}))
"""


def make(path: Path, samples: int, dtype: str, broken: str) -> int:
    """Writes a file; returns the bytes of its arrays."""
    rng = np.random.default_rng(0)
    parts, total = {}, 0
    for split, share in SHARES.items():
        count = max(int(samples * share), 1)
        part: dict[str, Any] = {}
        for name, (steps, width) in SIZES.items():
            x = rng.standard_normal((count, steps, width), dtype=np.float32).astype(dtype, copy=False)
            for row, length in zip(x, rng.integers(steps // 5, steps + 1, count), strict=True):
                row[: steps - length] = 0
            if broken and name == "audio":
                x[:, -1, 3] = -np.inf if broken.startswith("-inf") else np.nan
            part[name] = x
            total += x.nbytes
        part["labels"] = rng.uniform(-3, 3, (count, 1, 1))
        part["id"] = np.array([[f"{split}{i}", "0.0", "1.0"] for i in range(count)])
        parts[split] = part
    with open(path, "wb") as file:
        pickle.dump(parts, file, protocol=4)
    return total


def measured(path: Path, how: str, options: dict[str, Any]) -> dict[str, float]:
    """Seconds, processor's seconds and peak of memory of a process that opens the file."""
    words = [sys.executable, "-c", _CHILD, str(path), how, json.dumps(options)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def case(folder: Path, samples: int, dtype: str, broken: str, options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The least of some rounds, in turn, of `pickle.load`, the first opening, and an opening from the cache."""
    path = folder / "mosei.pkl"
    arrays = make(path, samples, dtype, broken)
    found: dict[str, list[dict[str, float]]] = {"pickle": [], "first": [], "cached": []}
    measured(path, "pickle", {})  # so that the file is in the system's cache for all of them
    for _ in range(rounds):
        cache = path.with_name(path.name + ".mea-cache")
        if cache.exists():
            for file in sorted(cache.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
        for how in found:
            found[how].append(measured(path, how, options))
    best = {how: {name: min(one[name] for one in runs) for name in runs[0]} for how, runs in found.items()}
    return {"samples": samples, "dtype": dtype, "broken": broken, "options": options, "arrays": arrays, **best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5700, help="CMU-MOSEI has 22,856")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases")
    arguments = parser.parse_args()
    cases = []
    for i, (dtype, broken, options) in enumerate(CASES):
        if arguments.only and i not in arguments.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            cases.append(case(Path(folder), arguments.samples, dtype, broken, options, arguments.rounds))
        print(json.dumps(cases[-1]), flush=True)
    run = {**environment(), "cases": cases}
    only = f" --only {' '.join(map(str, arguments.only))}" if arguments.only else ""
    command = f"python -m benchmarks.opening --samples {arguments.samples} --rounds {arguments.rounds}{only}"
    path = RESULTS / f"opening-{run['date'][:10]}.json"
    if path.exists():  # another size, measured on the same day
        earlier = json.loads(path.read_text(encoding="utf-8"))
        command = f"{earlier['command']} and {command}"
        run["cases"] = earlier["runs"][0]["cases"] + cases
    path.write_text(json.dumps({"command": command, "runs": [run]}, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
