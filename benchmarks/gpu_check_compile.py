"""Compiles the Triton kernels before anything is checked: in as many processes as there are cores, since one after the other takes minutes.

Triton keeps what it has compiled on the disk, where the jobs after this one find it. A kernel that does not compile, or not run, is told of
here and fails its own check later.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check_grouped import LINEAR, NORM
from benchmarks.gpu_check_ops import CHECKS, DTYPES, Build
from benchmarks.gpu_check_recurrent import BILSTM
from benchmarks.gpu_check_run import Run
from mea_graph.check.cases import dtype_name, exact

# Of the checks, one for each set of kernels: its compile-time sizes are its own.
FORMS: dict[str, Build] = {
    "predictive attention, 8 x 5": CHECKS["predictive_attention"][1],
    "predictive attention, 1 x 64": CHECKS["predictive_attention"][13],
    "predictive attention, 4 x 20": CHECKS["predictive_attention"][14],
    "predictive attention, 8 x 8": CHECKS["predictive_attention"][15],
    "interval attention": CHECKS["interval_attention"][1],
    "interval attention, gaps": CHECKS["interval_attention"][8],
    "interval attention, windows": CHECKS["interval_attention"][9],
    "edge attention": CHECKS["edge_attention"][0],
    "grouped linear": LINEAR[2],
    "grouped linear, plain": LINEAR[4],
    "grouped layer norm": NORM[0],
    "Bi-LSTM, 20": BILSTM[1],
    "Bi-LSTM, 33": BILSTM[8],
    "Bi-LSTM, 64": BILSTM[9],
}


CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def compile_all(run: Run) -> None:
    """How long each form took, with others beside it."""
    builds = {f"{name}, {dtype_name(dtype)}": partial(_once, name, dtype, run.device) for name in FORMS for dtype in DTYPES}
    if run.small:
        builds = {name: build for name, build in builds.items() if name.endswith("x 5, float32") or name.startswith("edge")}
    context = multiprocessing.get_context("fork" if run.forks else "spawn")  # this process leads the group that ends with it
    most = 2 if run.small else cores()
    waiting, going = dict(builds), dict[str, tuple[Any, float]]()
    run.emit("plan", cases=list(builds))
    while going or (waiting and run.left() > 0):
        while waiting and len(going) < most and run.left() > 0:
            name = next(iter(waiting))
            process = context.Process(target=waiting.pop(name))
            process.start()
            going[name] = process, time.monotonic()
        time.sleep(0.05)
        for name, (process, start) in list(going.items()):
            over = process.is_alive() and run.left() <= 0
            if over or not process.is_alive():
                process.kill()
                process.join()
                how = "the time of this job was over" if over else f"exit code {process.exitcode}" if process.exitcode else "done"
                run.emit("compiled", key=name, case=name, took=round(time.monotonic() - start, 1), how=how)
                del going[name]
    for name in waiting:
        run.emit("left_out", key=name, case=name, why="the time of this job was over")


def cores() -> int:
    """How many processes run at once: a container may have fewer than the machine. More would all end late, and then none in time."""
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_MAX.read_text().split()
        return max(1, min(most, int(quota) // int(period)))
    except (OSError, ValueError):  # there is no limit, or none is told
        return most


def _once(form: str, dtype: torch.dtype, device: str) -> None:
    with exact():
        FORMS[form](dtype, device).contenders["mea_graph"]()
        if device == "cuda":
            torch.cuda.synchronize()
