"""Checks every kernel against float64 on a CUDA device, times it beside its rivals, prints one table and writes JSON.

    python -m benchmarks.gpu_check                 # at most eight minutes; needs no network
    python -m benchmarks.gpu_check --check-only    # correctness alone
    python -m benchmarks.report                    # makes docs/performance.md of what was written

Run it from the repository's root; the package need not be installed. A kernel that is wrong is not timed, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases, measure, roofline
from benchmarks.cpu_check import show
from mea_graph.ops import IntervalEdges, explain

RESULTS = Path(__file__).parent / "results"
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
TEXT, AUDIO, MOSI = cases.mosi_lengths(32, 50, 12), cases.mosi_lengths(32, 375, 50), cases.mosi_lengths(32)

# A budget is a relative error of output or gradient. bfloat16 keeps 8 bits: 2^-8 for a rounded result, a few of them through a chain.
BUDGET = {FLOAT32: 1e-4, BFLOAT16: 3e-2}

CHECKS: list[Callable[[torch.dtype, str], cases.Case]] = [
    *(lambda dtype, device, n=n: cases.predictive(2, n, None, dtype, device) for n in (1, 3, 63, 64, 65, 127, 500)),
    lambda dtype, device: cases.predictive(5, 130, [130, 1, 0, 64, 65], dtype, device),
    lambda dtype, device: cases.predictive(32, 500, MOSI, dtype, device),
    *(lambda dtype, device, h=h, c=c: cases.edges("32 graphs of 6 nodes", h, c, dtype, device) for h, c in ((1, 64), (4, 64), (3, 5))),
    *(lambda dtype, device, h=h: cases.edges("20k nodes, 400k edges", h, 64, dtype, device) for h in (1, 4)),
    lambda dtype, device: cases.crossing(4, [9, 0, 3, 70], [[5, 0, 2, 33], [0, 0, 1, 20]], [70, 33, 20], dtype, device),
]

TIMES: list[Callable[[str], cases.Case]] = [
    *(lambda device, dtype=dtype: cases.predictive(32, 500, None, dtype, device, True) for dtype in (FLOAT32, BFLOAT16)),
    *(lambda device, dtype=dtype: cases.predictive(32, 500, MOSI, dtype, device, True) for dtype in (FLOAT32, BFLOAT16)),
    lambda device: cases.predictive(4, 2000, None, BFLOAT16, device),
    *(
        lambda device, name=name, heads=heads, dtype=dtype: cases.edges(name, heads, 64, dtype, device)
        for name in ("32 graphs of 6 nodes", "20k nodes, 400k edges", "200k nodes, 4M edges")
        for heads, dtype in ((1, FLOAT32), (4, FLOAT32), (4, BFLOAT16))
    ),
    *(lambda device, dtype=dtype: cases.crossing(32, MOSI, [TEXT, AUDIO], [500, 50, 375], dtype, device) for dtype in (FLOAT32, BFLOAT16)),
]


def check(build: Callable[[torch.dtype, str], cases.Case], dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The errors of one case, beside those that the eager formula makes in the same dtype."""
    case = build(dtype, device)
    try:
        errors = case.errors()
        again = all(torch.equal(a, b) for a, b in zip(*(case.contenders["mea_graph"]() for _ in range(2)), strict=True))
        passed = _good(errors, dtype) and again
        return {"case": case.name, "dtype": _name(dtype), "errors": errors, "same_bits_twice": again, "passed": passed}
    except Exception:  # one kernel that fails must not hide what the others do
        return {"case": case.name, "dtype": _name(dtype), "passed": False, "raised": traceback.format_exc()}


def timed(build: Callable[[str], cases.Case], seconds: float, device: str) -> dict[str, Any]:
    case = build(device)
    try:
        errors = case.errors()
        if not _good(errors, case.dtype):
            return {"case": case.name, "dtype": _name(case.dtype), "contenders": {}, "not_timed": f"error {errors['mea_graph']:.1e}"}
        timings = measure.interleave(case.contenders, seconds)
        results = {
            name: {**timing._asdict(), "error": errors.get(name), "peak_bytes": measure.peak_cuda_memory(case.contenders[name])}
            for name, timing in timings.items()
        }
        return {"case": case.name, "dtype": _name(case.dtype), "contenders": results, **_share(case, timings["mea_graph"].median, device)}
    except Exception:
        return {"case": case.name, "dtype": _name(case.dtype), "contenders": {}, "not_timed": traceback.format_exc()}


def _share(case: cases.Case, seconds: float, device: str) -> dict[str, Any]:
    """What predictive attention achieves of the bound on paper, on a GPU whose figures are known."""
    if "attention" not in case.about or device != "cuda":
        return {}
    found = roofline.achieved(roofline.work(**case.about["attention"], dtype=case.dtype), measure.device_name(), case.dtype, seconds)
    return {} if found is None else {"roofline": found}


def _good(errors: dict[str, float], dtype: torch.dtype) -> bool:
    """Within the budget; in bfloat16 no worse than the eager formula, where that itself is beyond it (small differences of large sums)."""
    least = BUDGET[dtype] if dtype == FLOAT32 else max(BUDGET[dtype], errors.get("eager formula", 0.0))
    return errors["mea_graph"] <= least < float("inf")


def ceilings() -> dict[str, float]:
    """What this device reaches: bytes a second through a large copy, operations a second through a large bfloat16 product."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    copy = measure.interleave({"copy": lambda: [target.copy_(source)]}, 1.0)["copy"].median
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=BFLOAT16)
    product = measure.interleave({"product": lambda: [a @ b]}, 1.0)["product"].median
    return {"copy_bytes_per_second": 2 * source.nbytes / copy, "bfloat16_flops_per_second": 2 * 8192**3 / product}


def chosen() -> dict[str, str]:
    """What `auto` runs here, and why nothing else does."""
    q, pointers = torch.randn(128, 8, 5, device="cuda"), cases.pointers_of([64, 64], "cuda")
    weight, bias = torch.randn(8, 8, 3, 3, device="cuda"), torch.randn(8, device="cuda")
    x, score = torch.randn(4, 2, 8, device="cuda"), torch.randn(4, 2, device="cuda")
    return {
        "predictive_attention": str(explain("predictive_attention", q, q, q, pointers, q, q, weight, bias)),
        "edge_attention": str(explain("edge_attention", x, score, score, torch.tensor([[0, 1], [1, 2]], device="cuda"))),
        "interval_attention": str(explain("interval_attention", q, q, q, IntervalEdges.complete(pointers, pointers))),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="to spend on timing each case")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_check needs a CUDA device; torch sees none")
    start = time.monotonic()
    found: dict[str, Any] = {**measure.environment(), "chosen": chosen(), "ceilings": ceilings()}
    print(*found["chosen"].values(), sep="\n")
    found["checks"] = [check(build, dtype, "cuda") for build in CHECKS for dtype in (FLOAT32, BFLOAT16)]
    for c in found["checks"]:
        errors = ", ".join(f"{n} {e:.1e}" for n, e in c.get("errors", {}).items())
        print(f"{'ok  ' if c['passed'] else 'FAIL'} {c['case']}, {c['dtype']}: {errors}{c.get('raised', '')}")
    path = args.out / f"{re.sub('[^a-z0-9]+', '-', found['device'].lower()).strip('-')}-{datetime.now(UTC):%Y-%m-%d}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    found["cases"] = []
    for build in [] if args.check_only else TIMES:
        found["cases"].append(timed(build, args.seconds, "cuda"))
        path.write_text(json.dumps({"command": "python -m benchmarks.gpu_check", "runs": [found]}, indent=1) + "\n", encoding="utf-8")
    path.write_text(json.dumps({"command": "python -m benchmarks.gpu_check", "runs": [found]}, indent=1) + "\n", encoding="utf-8")
    show({**found, "cases": [c for c in found["cases"] if c["contenders"]]})
    for c in found["cases"]:
        if "roofline" in c:
            r = c["roofline"]
            print(f"{c['case']}, {c['dtype']}: {r['share']:.0%} of the roofline, {1e6 * r['bound']:.0f} us")
        if "not_timed" in c:
            print(f"not timed: {c['case']}, {c['dtype']}: {c['not_timed']}")
    print(f"wrote {path} after {time.monotonic() - start:.0f} s")
    sys.exit(not all(c["passed"] for c in found["checks"]) or any("not_timed" in c for c in found["cases"]))


if __name__ == "__main__":
    main()
