"""What a pass takes on a device: on the wall, between events, as a CUDA graph without its host, kernel by kernel; and its peak memory."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure
from benchmarks.gpu_check_run import is_spoilt, spoil
from benchmarks.measure import Pass
from mea_graph.ops import record_calls

GRAPHS = ("MEA, captured", "MEA, CUDA graphs")  # contenders that are CUDA graphs themselves
_REPEATS, _LONG_ENOUGH = (3, 20), 0.3  # passes between two events, and the seconds for which more than three are worth while


def clocks(contenders: Mapping[str, Pass], seconds: float, device: str, graphs: bool = True) -> dict[str, dict[str, Any]]:
    """By contender, in seconds: on the wall with quartiles, taken in turn; on a GPU also `events`, between two events of the device with
    passes queued one behind the other, and `graph`, the same as a CUDA graph, without its host; `peak_bytes` beyond what was there, but of
    a CUDA graph, which has its memory for good."""
    found = {name: dict(timing._asdict()) for name, timing in measure.interleave(contenders, seconds).items()}
    if device != "cuda":
        return found
    for name, run in contenders.items():
        found[name]["events"] = between_events(run, found[name]["median"])
        if name not in GRAPHS:
            found[name]["peak_bytes"] = measure.peak_cuda_memory(run)
    broken = ""
    for name, run in contenders.items() if graphs else ():  # last: a capture that fails spoils the process
        why = broken or waits(run)
        if why is None:
            try:
                found[name]["graph"] = between_events(captured(run), found[name]["events"])
                continue
            except Exception as refused:
                why = first_line(refused)
                broken = f"not tried, since {name} could not be captured"
                spoil(f"{name} was not captured: {why}")
        found[name]["graph_refused"] = why
    return found


def waits(run: Callable[[], Any]) -> str | None:
    """Why a pass cannot be captured, before that is tried: the host waits for the device in it. None if torch sees no such wait."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except Exception as refused:
        return first_line(refused)
    finally:
        torch.cuda.set_sync_debug_mode(before)
        measure.synchronize()
    return None


def between_events(run: Callable[[], Any], about: float) -> float:
    """Seconds a pass between two events of the device, of many passes queued one behind the other; each takes `about` so many."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    repeats = int(min(max(_LONG_ENOUGH / max(about, 1e-6), _REPEATS[0]), _REPEATS[1]))
    run()
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def captured(run: Callable[[], Any]) -> Callable[[], list[Tensor]]:
    """The pass as a CUDA graph: what it returns is overwritten by each replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> list[Tensor]:
        graph.replay()
        return out

    return replay


def kernels(run: Callable[[], Any], device: str, passes: int = 3) -> list[dict[str, Any]]:
    """By kernel (on a CPU by operator): how often a pass launches it, and the microseconds a pass it takes; the longest first."""
    on_cuda = device == "cuda"
    passes = passes if on_cuda else 1
    # CUPTI that was taken down after a profile crashes when it is wanted again in a process that has had a CUDA graph.
    os.environ.setdefault("TEARDOWN_CUPTI", "0")
    run()
    measure.synchronize()
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as seen:
        for _ in range(passes):
            run()
        measure.synchronize()
    launches: dict[str, int] = defaultdict(int)
    took: dict[str, float] = defaultdict(float)
    for event in seen.events() or []:
        if on_cuda != (str(event.device_type).endswith("CUDA")) or getattr(event, "is_user_annotation", False):
            continue
        name = re.sub(r"\s+", " ", event.name)[:120]
        launches[name] += 1
        took[name] += event.self_device_time_total if on_cuda else event.self_cpu_time_total
    if not launches:
        raise RuntimeError("the profiler saw nothing: it may not be allowed to read the device here")
    return [
        {"kernel": n, "launches": launches[n] / passes, "us": round(took[n] / passes, 2)} for n in sorted(took, key=took.__getitem__)[::-1]
    ]


def launches(run: Callable[[], Any], device: str) -> float | None:
    """Kernels, copies and fills that a pass starts on a GPU; None where the profiler sees none. After the clocks: it may slow a process."""
    if device != "cuda" or is_spoilt():
        return None
    try:
        return round(sum(k["launches"] for k in kernels(run, device)), 1)
    except Exception as refused:  # its number must not cost the times
        print(f"launches were not counted: {first_line(refused)}", flush=True)
        return None


def backends(run: Pass) -> dict[str, list[str]]:
    """By op, which backends a pass runs: a time says little where a kernel was expected and the formula ran."""
    with record_calls() as calls:
        run()
    return {op: sorted(name for known, name in calls if known == op) for op, _ in calls}


def first_line(raised: BaseException) -> str:
    return f"{type(raised).__name__}: {(str(raised).splitlines() or [''])[0]}"
