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
# By kernel: the functions that hold its loops over tiles, with the number of loops of each. The first that was compiled counts, in the
# forward pass that of bounded logits. And what such a loop steps over: keys (the columns of a tile) or queries (its rows).
PASSES = {
    "predictive_fwd": ({"attend_once": 1, "_attend_bounded": 2, "_attend": 2}, "columns"),
    "predictive_bwd_query": ({"predictive_attention_bwd_query_kernel": 1}, "columns"),
    "predictive_bwd_key": ({"predictive_attention_bwd_key_kernel": 1}, "rows"),
}


def compiled(capability: int, shape: str, dtypes: Iterable[str], only: str = "predictive") -> list[dict[str, Any]]:
    """One record for each kernel whose name has `only` in it."""
    command = [sys.executable, str(SCRIPT), str(capability), shape, *dtypes, f"--only={only}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def tile_loops(record: dict[str, Any]) -> list[tuple[int, int]]:
    """Instructions and special functions that a warp issues for a tile, by loop over tiles.

    Loops are told apart by the function of the source that they come from, and by how far they step. A loop of two turns has no counter to
    tell: what it multiplies does.

    Raises:
        ValueError: If the loops are not those of the source, as where the compiler unrolled one or made one of two.
    """
    passes, over = PASSES[record["kernel"]]
    rows, columns, *chunk = record["tiles"]
    step = columns if over == "columns" else rows
    for name, expected in passes.items():
        within = [loop for loop in record["loops"] if name in loop["functions"] and loop["MUFU"]]
        if not within:
            continue
        found = []
        for i, loop in enumerate(record["loops"]):
            if loop in within:
                if step not in loop["steps"]:
                    raise ValueError(f"{record['kernel']}: a loop of {name} does not step by {step}, its tile, but by {loop['steps']}")
                found.append((loop["instructions"], loop["MUFU"]))
                for inner in record["loops"][i + 1 :]:  # over channels of the folded width
                    if inner["depth"] <= loop["depth"]:
                        break
                    if not chunk or (chunk[0] not in inner["steps"] and _channels(record, inner) != chunk[0]):
                        raise ValueError(f"{record['kernel']}: a loop inside one of {name} does not step by {chunk} channels")
                    instructions, special = found[-1]
                    times = record["folded"] // chunk[0]
                    found[-1] = (instructions + times * inner["instructions"], special + times * inner["MUFU"])
        if len(found) != expected:
            raise ValueError(f"{record['kernel']}: {name} has {expected} loops over tiles, and the machine code {len(found)}")
        return found
    raise ValueError(f"{record['kernel']}: no loop over tiles comes from {' or '.join(passes)}")


def _channels(record: dict[str, Any], loop: dict[str, Any]) -> float:
    """How many channels a loop multiplies in a turn, where each warp multiplies numbers of its own. Float32 takes three products."""
    rows, columns, _ = record["tiles"]
    return loop["products"] * record["warps"] / (rows * columns * (3 if record["dtype"] == "float32" else 1))


def slots(record: dict[str, Any]) -> tuple[float, float]:
    """Instructions and special functions of a thread for one pair. Raises a ValueError where `tile_loops` does."""
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
        if r["kernel"] in PASSES:
            try:
                each, (issued, special) = " + ".join(str(n) for n, _ in tile_loops(r)), slots(r)
            except ValueError as reason:
                lines.append(f"{head} | {' x '.join(map(str, r['tiles']))}, {r['warps']} | not counted: {reason} | | | {tail}")
                continue
            lines.append(f"{head} | {' x '.join(map(str, r['tiles']))}, {r['warps']} | {each} | {issued:.1f} | {special:.1f} | {tail}")
        else:
            inside = ", ".join(f"{loop['instructions']} in a loop" for loop in r["loops"])
            lines.append(f"{head} | {r['warps']} warps | {r['instructions']} in all{inside and ', of them '}{inside} | | | {tail}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(compiled(int(sys.argv[1]), sys.argv[2], sys.argv[3:] or ["bfloat16"])))
