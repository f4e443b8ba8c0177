"""What `torch.compile` makes of the model, and of the formula of predictive attention: each case compiles for half a minute and more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch._inductor.config

from benchmarks import cases, models
from benchmarks.gpu_check_clock import clocks
from benchmarks.gpu_check_models import batches_to_time, case_title, model_shape
from benchmarks.gpu_check_ops import predictive_sizes, time_case, true_formula
from benchmarks.gpu_check_run import Record, Run
from benchmarks.gpu_check_turns import in_turns
from benchmarks.samples import Kind, Shape, draw
from mea_graph.check.cases import FLOAT32, dtype_name, exact

TIMING = 3.0  # seconds that the timing of one takes beyond those of its clock


def model_compiled(run: Run) -> None:
    """`torch.compile`, as it is and with CUDA graphs, each a case; a compiled pass that differs from the eager one is not timed.

    What is compiled reads the batch padded to its own longest, as docs/runtimes.md has it: of rows it would be several graphs."""
    batches = [(*b, how) for b in batches_to_time(run) for how in models.COMPILERS]
    seconds = run.clock / 2
    finds = {
        case_title(*b[:3], f", padded, {b[3].removeprefix('MEA, ')}"): partial(_model, run.device, model_shape(run), run.small, seconds, *b)
        for b in (batches[:1] if run.small else batches)
    }
    in_turns(run, "time", finds, TIMING + seconds)


def _model(
    device: str, shape: Shape, small: bool, seconds: float, kind: Kind, size: int, mode: models.Mode, how: str, turn: Callable[[], None]
) -> Record:
    torch._inductor.config.compile_threads = 1  # others compile beside this one
    samples = draw(shape, size, kind, device=device)
    network = models.mea().to(device)
    chosen = {n: options for n, options in models.COMPILERS.items() if n == how and not small}  # a rehearsal has no time for it
    with exact():
        passes, refused = models.compiled(network, samples, mode, chosen, padded=True)
    contenders = {"mea_graph": models.passes_of_mea(network, samples, mode), **passes}
    for one in contenders.values():
        one()  # as it is timed: with cuDNN's own rounding, for which it may compile again
    turn()
    found = clocks(contenders, seconds, device, graphs=False)
    return {"dtype": "float32", "contenders": found, "refused": refused}


def predictive_compiled(batch: int, length: int, lengths: Sequence[int] | None, dtype: torch.dtype, device: str) -> cases.Case:
    """Beside what `torch.compile` makes of the formula in the same precision, which takes it half a minute a size."""
    case = cases.predictive(batch, length, lengths, dtype, device, dtype == FLOAT32)
    contenders = {name: run for name, run in case.contenders.items() if name != "eager formula"}
    if dtype != FLOAT32:
        contenders[f"torch.compile of the formula in {dtype_name(dtype)}"] = true_formula(case, device, True)
    return case._replace(contenders=contenders, checked=[name for name in case.checked if name in contenders])


def time_compiled(run: Run) -> None:
    """A rehearsal has no time for it."""
    sizes = {} if run.small else predictive_sizes(run)
    finds = {f"predictive attention beside a compiler, {n}": partial(_predictive, run.clock, size) for n, size in sizes.items()}
    in_turns(run, "time", finds, TIMING + run.clock)


def _predictive(seconds: float, size: tuple[Any, ...], turn: Callable[[], None]) -> Record:
    torch._inductor.config.compile_threads = 1
    return time_case(partial(predictive_compiled, *size), seconds, size[-1], turn)
