"""What the figures of `gpu_check` are of: the machine, what `auto` takes on it, and what it reaches."""

from __future__ import annotations

import torch

from benchmarks import cases, measure
from benchmarks.gpu_check_run import Run
from mea_graph.ops import IntervalEdges, explain


def device(run: Run) -> None:
    """The first job: without it no figure has a name."""
    run.each("environment", {"environment": lambda: {"found": measure.environment()}})
    run.each("chosen", {"chosen": lambda: {"found": chosen(run.device)}})
    if run.on_cuda:
        run.each("ceilings", {"ceilings": lambda: {"found": ceilings()}})


def ceilings() -> dict[str, float]:
    """What this device reaches: bytes a second through a large copy, operations a second through a large bfloat16 product."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    copy = measure.interleave({"copy": lambda: [target.copy_(source)]}, 1.0)["copy"].median
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = measure.interleave({"product": lambda: [a @ b]}, 1.0)["product"].median
    return {"copy_bytes_per_second": 2 * source.nbytes / copy, "bfloat16_flops_per_second": 2 * 8192**3 / product}


def chosen(device: str) -> dict[str, str]:
    """What `auto` runs here, and why nothing else does."""
    q, pointers = torch.randn(128, 8, 5, device=device), cases.pointers_of([64, 64], device)
    weight, bias = torch.randn(8, 8, 3, 3, device=device), torch.randn(8, device=device)
    x, score = torch.randn(4, 2, 8, device=device), torch.randn(4, 2, device=device)
    return {
        "predictive_attention": str(explain("predictive_attention", q, q, q, pointers, q, q, weight, bias)),
        "edge_attention": str(explain("edge_attention", x, score, score, torch.tensor([[0, 1], [1, 2]], device=device))),
        "interval_attention": str(explain("interval_attention", q, q, q, IntervalEdges.complete(pointers, pointers))),
    }
