"""What a process of its own finds out: an op's backends, the whole model, or what is installed. Each finding is sent as it comes."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

import mea_graph
from mea_graph.check import model, plan, segments
from mea_graph.check.cases import BFLOAT16, FLOAT16, FLOAT32, REPEATS, REPEATS_ON_CPU, Build, OpCase, bound, dtype_name, error, exact
from mea_graph.check.machine import processor
from mea_graph.check.names import ENVIRONMENT, MODEL, Task
from mea_graph.ops import has_torch_scatter, record_calls
from mea_graph.ops.native import library

Record = dict[str, Any]
Send = Callable[[Record], None]
PACKAGES = ("torch", "torch-geometric", "numpy", "triton", "torch-scatter")


class LostError(Exception):
    """The device can be used no more by this process."""


def work(task: Task, send: Send) -> None:
    """Does a task.

    Args:
        task: What to do.
        send: Takes each finding.
    """
    os.environ.update(task.variables)
    if "OMP_NUM_THREADS" not in os.environ:  # as every command: threads that wait for one another take minutes on a busy machine
        torch.set_num_threads(1)
    torch.manual_seed(0)
    if task.name == ENVIRONMENT:
        send({"kind": ENVIRONMENT, **environment(task.device)})
    elif task.name == MODEL:
        check_model(task, send)
    else:
        check_op(task, send)


class Compared:
    """A case of an op on a device, made when it is first needed. The truth comes from the CPU, whatever the device.

    Args:
        build: Makes it.
        dtype: Of the inputs.
        device: Where tensors are.
    """

    def __init__(self, build: Build, dtype: torch.dtype, device: str) -> None:
        self._build, self._dtype, self._device = build, dtype, device
        self._promised = REPEATS_ON_CPU if device == "cpu" else REPEATS

    @functools.cached_property
    def case(self) -> OpCase:
        """The case."""
        return self._build(self._dtype, self._device)

    @functools.cached_property
    def truth(self) -> list[Tensor]:
        """What is right."""
        case = self.case if self._device == "cpu" else self._build(self._dtype, "cpu")
        return case.truth()

    @functools.cached_property
    def bound(self) -> float:
        """The largest error that is right."""
        return bound(self._dtype, self._error(self.case.run("reference")) if self._dtype in (BFLOAT16, FLOAT16) else 0.0)

    def by(self, backend: str) -> Record:
        """Returns how far a backend is from the truth, or why it did not run.

        Args:
            backend: Its name.
        """
        name = "a case that could not be made"
        try:
            with exact():
                name = self.case.name
                first = self.case.run(backend)
                away, again = self._error(first), None
                if backend == "native":
                    away = max(away, self._error(_on_two_threads(self.case, backend)))
                if backend in self._promised:
                    again = _same_bits(first, self.case.run(backend))
                most = self.bound
        except Exception as raised:
            reason = _refusal(raised, backend)
            return {"case": name, "verdict": "failed" if reason is None else "refused", "reason": reason or first_line(raised)}
        right = away <= most < float("inf")
        found = {"case": name, "error": away, "bound": most, "same_bits": again}
        if right and again is False:
            return {**found, "verdict": "wrong", "reason": "a second run gave other bits"}
        return {**found, "verdict": "ok" if right else "wrong"}

    def _error(self, found: list[Tensor]) -> float:
        return error([t.cpu() for t in found], self.truth)


def check_op(task: Task, send: Send) -> None:
    """Compares every backend of an op with the reference in float64, in each dtype on each case."""
    cases = [[Compared(build, dtype, task.device) for build in plan.CASES[task.name]] for dtype in plan.DTYPES]
    for name, left_out in plan.candidates(task.name, task.device):
        if name in task.skipped:
            continue
        if left_out is not None:
            send({"kind": "left out", "backend": name, "reason": left_out})
            continue
        for dtype, made in zip(plan.DTYPES, cases, strict=True):
            reason = plan.unheld(task.name, name, dtype, task.device)
            if reason is not None:
                send({"kind": "left out", "backend": name, "dtype": dtype_name(dtype), "reason": reason})
                continue
            send({"kind": "begun", "backend": name, "dtype": dtype_name(dtype)})
            for case in made:
                begin, found = time.monotonic(), case.by(name)
                took = round(time.monotonic() - begin, 3)
                send({"kind": "case", "backend": name, "dtype": dtype_name(dtype), "took": took, **found})
                if found["verdict"] == "failed" and (lost := device_lost(task.device)):
                    raise LostError(lost)
            send({"kind": "ended", "backend": name, "dtype": dtype_name(dtype)})
    if not task.skipped:  # what ended a process would end this one too
        send({"kind": "begun", "backend": "auto", "dtype": "float32"})
        send({"kind": "auto", "chosen": _chosen(task, cases[plan.DTYPES.index(FLOAT32)])})


def _on_two_threads(case: OpCase, backend: str) -> list[Tensor]:
    """As C++ shares the work, which is wrong in its own ways."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return case.run(backend)
    finally:
        torch.set_num_threads(threads)


def _refusal(raised: Exception, backend: str) -> str | None:
    """Why the backend does not take the case, in its own words; None where it took it and failed."""
    start, found, reason = str(raised).partition(f" cannot run on {backend!r} here: ")
    return reason if found and isinstance(raised, ValueError) and start.startswith("backend: ") else None


def _same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    """NaN where NaN was is the same."""
    return all(torch.equal(a.nan_to_num(nan=1.5e4), b.nan_to_num(nan=1.5e4)) for a, b in zip(first, second, strict=True))


def _chosen(task: Task, made: list[Compared]) -> list[str]:
    """The backends that "auto" takes in float32; those of ops that it calls itself do not count."""
    if task.name == segments.NAME:
        return [next(name for name, left_out in plan.candidates(task.name, task.device) if left_out is None)]
    with record_calls() as calls:
        for each in made:
            try:
                each.case.run("auto")
            except Exception:  # it has been told of by name
                device_lost(task.device)
    return sorted({backend for op, backend in calls if op == task.name})


def check_model(task: Task, send: Send) -> None:
    """Compares the whole model with float64; its parts have been checked one by one."""
    name = task.backend or "auto"
    send({"kind": "begun", "backend": name, "dtype": "float32"})
    try:
        for found in model.results(task.device, task.backend):
            verdict = "ok" if found["error"] <= found["bound"] < float("inf") else "wrong"
            send({"kind": "case", "backend": name, **found, "dtype": dtype_name(found["dtype"]), "verdict": verdict})
    except Exception as raised:
        send({"kind": "case", "backend": name, "case": "MEA", "calls": [], "verdict": "failed", "reason": first_line(raised)})


def device_lost(device: str) -> str | None:
    """Why this process can use a device no more, or None: after an illegal access every call fails."""
    if not device.startswith("cuda"):
        return None
    try:
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).sum().item()
    except Exception as raised:
        return first_line(raised)
    return None


def first_line(raised: BaseException) -> str:
    """The error in one line, and its type where the message is empty."""
    return f"{type(raised).__name__}: {str(raised).strip().splitlines()[0]}" if str(raised).strip() else type(raised).__name__


def environment(device: str) -> Record:
    """What is installed and what the machine is; builds the C++ library, or loads it."""
    found: Record = {"device": device, "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= {"mea_graph": mea_graph.__version__, **{name: _version(name) for name in PACKAGES}}
    found["torch_scatter_loads"] = has_torch_scatter()
    found["gpus"] = [_gpu(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    found |= {"cuda": torch.version.cuda, "processor": processor(), "cores": os.cpu_count()}
    compiler = library.compiler()
    found["compiler"] = None if compiler is None else _first_words([compiler, "--version"])
    return {**found, "native": _library()}


def _library() -> Record:
    """How the C++ library came to be, and where it lies."""
    if library.is_switched_off():
        return {"how": "switched off", "reason": "MEA_GRAPH_NATIVE=0"}
    begin, compiler = time.monotonic(), library.compiler()
    path = library.library_path(compiler) if compiler else None
    there = path is not None and path.exists()
    reason = library.refuse()
    if reason is not None:
        return {"how": "absent", "reason": reason}
    kept = str(path) if path is not None and path.exists() else None  # None: no folder to write to
    return {"how": "loaded" if there else "built", "took": round(time.monotonic() - begin, 1), "path": kept}


def _gpu(index: int) -> Record:
    major, minor = torch.cuda.get_device_capability(index)
    return {"name": torch.cuda.get_device_name(index), "capability": f"{major}.{minor}"}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_words(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return next(iter(done.stdout.splitlines()), command[0])
