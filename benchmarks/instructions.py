"""What the Triton kernels of predictive attention issue, read off their machine code: `python -m benchmarks.instructions 90 8x5 bfloat16`.

Compiled for a GPU that need not be here, by `tests/ops/triton/compile_kernels.py`: compute capability, heads x channels, dtypes. A loop
over tiles issues `instructions` for a warp and tile; `slots` is what a thread issues for each pair of a query and a key of one head, all
passes together. A special function (MUFU) holds its unit for eight issue slots of a warp: where more than one in eight is one, they bound
the loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "tests/ops/triton/compile_kernels.py"
DEPTH = {
    "predictive_fwd": 0,
    "predictive_bwd_query": 0,
    "predictive_bwd_key": 1,
}  # of the loops over tiles; the third's lies in one over heads


def compiled(capability: int, shape: str, dtypes: Iterable[str], only: str = "predictive") -> list[dict[str, Any]]:
    """One record for each kernel whose name has `only` in it."""
    command = [sys.executable, str(SCRIPT), str(capability), shape, *dtypes, f"--only={only}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def tile_loops(record: dict[str, Any]) -> list[tuple[int, int]]:
    """Instructions and special functions that a warp issues for a tile, by loop over tiles."""
    depth = min(DEPTH[record["kernel"]], max(loop["depth"] for loop in record["loops"] if loop["MUFU"]))  # not in each form there is one
    rows, columns, *chunk = record["tiles"]
    chunks = record["folded"] // chunk[0] if chunk else 1  # the loop inside, over channels of the folded width
    found: list[tuple[int, int]] = []
    for loop in record["loops"]:
        if loop["depth"] == depth:
            found.append((loop["instructions"], loop["MUFU"]))
        elif loop["depth"] == depth + 1:
            found[-1] = (found[-1][0] + chunks * loop["instructions"], found[-1][1] + chunks * loop["MUFU"])
    # Without those that look for the longest row, and jumps back from what seldom runs: at least an exponential for each pair.
    found = [loop for loop in found if loop[1] >= rows * columns / (32 * record["warps"])]
    if record["kernel"] != "predictive_fwd" or len(found) < 4:
        return found
    if len(found) == 5:
        return found[:1]  # in one pass, for bounded logits; then its two loops for larger ones, and for those of any size
    return min(found[:2], found[2:])  # it has both its loops twice; the shorter ones are those of bounded logits


def slots(record: dict[str, Any]) -> tuple[float, float]:
    """Instructions and special functions of a thread for one pair."""
    threads = 32 * record["warps"] / (record["tiles"][0] * record["tiles"][1])
    instructions, special = (threads * sum(n) for n in zip(*tile_loops(record), strict=True))
    return instructions, special


def table(records: Iterable[dict[str, Any]]) -> str:
    lines = [
        "| Kernel | dtype | tile, warps | instructions, by loop | slots a pair | MUFU a pair | registers | spills |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        head = f"| {r['kernel'].removeprefix('predictive_')} | {r['dtype']}"
        tail = f"{r['registers']} | {'none' if r['stack'] == r['LDL'] == r['STL'] == 0 else r['stack']} |"
        if r["kernel"] in DEPTH:
            each, (issued, special) = " + ".join(str(n) for n, _ in tile_loops(r)), slots(r)
            lines.append(f"{head} | {' x '.join(map(str, r['tiles']))}, {r['warps']} | {each} | {issued:.1f} | {special:.1f} | {tail}")
        else:
            inside = ", ".join(f"{loop['instructions']} in a loop" for loop in r["loops"])
            lines.append(f"{head} | {r['warps']} warps | {r['instructions']} in all{inside and ', of them '}{inside} | | | {tail}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(compiled(int(sys.argv[1]), sys.argv[2], sys.argv[3:] or ["bfloat16"])))
