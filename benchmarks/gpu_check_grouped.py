"""The grouped ops on a device: against float64, and their times beside one batched product a step."""

from __future__ import annotations

import torch

from benchmarks import cases
from benchmarks.gpu_check_ops import beside_the_formula, check_all, time_all
from benchmarks.gpu_check_run import Run
from mea_graph.check import grouped
from mea_graph.check.cases import BFLOAT16, FLOAT32, draws, dtype_name
from mea_graph.check.grouped import Groups

LINEAR, NORM = ([beside_the_formula(build) for build in builds] for builds in (grouped.LINEAR, grouped.NORM))
# A layer of the model on a batch of 32 samples: of true lengths, and padded to 500 steps.
TIMED = [
    Groups((rows,) * 3, *widths, norm=norm, onto=not norm and widths[1] > 0)
    for rows in (1920, 16000)
    for widths, norm in (((40, 160), True), ((160, 40), False), ((40, 0), True))
]


def times(groups: Groups, dtype: torch.dtype, device: str) -> cases.Case:
    """Beside the backend "batched"."""
    case, draw = beside_the_formula(groups.case)(dtype, device), draws(device)
    inputs = {n: t.to(dtype).requires_grad_() for n, t in groups.inputs(draw).items()}
    grad = draw(sum(groups.rows), groups.width or groups.channels).to(dtype)
    run = cases.step(lambda *tensors: groups.call("batched", **dict(zip(inputs, tensors, strict=True))), list(inputs.values()), grad)
    return case._replace(contenders={"mea_graph": case.contenders["mea_graph"], "batched products of torch": run}, checked=["mea_graph"])


def check_grouped(run: Run) -> None:
    check_all(run, "grouped_linear", LINEAR, (0, 1))
    check_all(run, "grouped_layer_norm", NORM, (2,))


def time_grouped(run: Run) -> None:
    timed = [Groups((5,) * 3, 8, 8, norm=True)] if run.small else TIMED
    dtypes = (FLOAT32,) if run.small else (FLOAT32, BFLOAT16)
    time_all(run, {f"{g.name}, {dtype_name(d)}": lambda g=g, d=d: times(g, d, run.device) for g in timed for d in dtypes})
