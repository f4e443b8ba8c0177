"""Times contenders side by side, and reads how much memory each takes. Nothing here is timed before it has been checked."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mea_graph.check.cases import error as error
from mea_graph.check.machine import processor

Pass = Callable[[], list[Tensor]]  # one forward and backward pass; returns the output and the gradients


class Timing(NamedTuple):
    """Seconds a pass: the median, the quartiles, and how many passes were timed."""

    median: float
    lower: float
    upper: float
    passes: int


def interleave(contenders: Mapping[str, Pass], seconds: float, at_least: int = 5, at_most: int = 200) -> dict[str, Timing]:
    """Times all contenders in turn, again and again, until `seconds` are over: what disturbs one disturbs the others too.

    The order turns round by one each time. On CUDA each time is taken between two synchronisations.
    """
    for run in contenders.values():  # warm up
        run()
    names, taken = list(contenders), {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    for turn in range(at_most):
        if turn >= at_least and time.perf_counter() > end:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            synchronize()
            start = time.perf_counter()
            contenders[name]()
            synchronize()
            taken[name].append(time.perf_counter() - start)
    return {name: summary(times) for name, times in taken.items()}


def summary(times: list[float]) -> Timing:
    lower, _, upper = statistics.quantiles(times, n=4)
    return Timing(statistics.median(times), lower, upper, len(times))


def ratio(slow: Timing, fast: Timing) -> tuple[float, float, float]:
    """How many times faster: by the medians, and the least and most that the quartiles allow."""
    return slow.median / fast.median, slow.lower / fast.upper, slow.upper / fast.lower


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_cuda_memory(run: Pass) -> int:
    """Bytes a pass takes at its peak, beyond what is there before it."""
    run()
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_cpu_memory(run: Pass, small: Pass) -> int:
    """Bytes of resident memory that the first pass of this process takes at its peak, beyond what is there before it.

    Linux only. Call it in a process of its own: memory that an earlier pass gave back to the allocator would hide a peak. `small` is a
    pass of the same kind on a little input, which loads whatever code is needed.
    """
    small()
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is resident now
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status: expected a line {field}")


def environment() -> dict[str, Any]:
    """What a figure must name: device, threads, versions, load, date."""
    import torch_geometric

    import mea_graph

    found: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
        "mea_graph": mea_graph.__version__,
    }
    if torch.cuda.is_available():
        found |= {"triton": _triton(), "cuda": torch.version.cuda, "capability": list(torch.cuda.get_device_capability())}
    return found


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return triton.__version__


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
