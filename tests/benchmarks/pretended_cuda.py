"""A CUDA device that is not there, for the rehearsal of `gpu_check`: its tensors lie on the CPU, and the branches of a GPU run.

Each op chooses its backend as on a device. What would be a kernel is computed on the CPU (Triton's interpreter, which tests/ops/triton has,
would take an hour); clocks, streams, graphs and the profiler are stand-ins. `work` of a job names a function of this module as
"pretended_cuda:<module>__<function>", by the names of the real one.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _OnCpu(TorchFunctionMode):
    """Sends what is meant for the device to the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = {n: _cpu(v) if n == "device" else v for n, v in (kwargs or {}).items()}
        return func(*(_cpu(a) if func is Tensor.to else a for a in args), **kwargs)


def _cpu(value: Any) -> Any:
    named = isinstance(value, str | torch.device) and str(value).startswith("cuda")
    return torch.device("cpu") if named else value


class _Event:
    def __init__(self, enable_timing: bool) -> None:
        self.at, self.waited_for = 0.0, False

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        self.waited_for = True

    def elapsed_time(self, other: _Event) -> float:
        if not other.waited_for:
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return 1e3 * (other.at - self.at)


class _Stream:
    cuda_stream = 0

    def wait_stream(self, other: _Stream) -> None: ...


class _Graph:
    """Replays nothing: what was computed when it was captured stays."""

    def replay(self) -> None: ...


@contextlib.contextmanager
def device() -> Iterator[None]:
    """In this process, for good: the jobs are processes of their own."""
    from mea_graph.ops import edge, interval, predictive, recurrent
    from mea_graph.ops.backends import Op
    from mea_graph.ops.grouped import layer_norm, linear
    from mea_graph.ops.native import library

    first, automatic = Op._first, Op._automatic
    told = SimpleNamespace(multi_processor_count=132)
    stand_ins: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "synchronize": lambda *_: None,
        "get_device_name": lambda *_: "NVIDIA H200",
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: told,
        "mem_get_info": lambda *_: (2**37, 2**37),
        "is_bf16_supported": lambda *_: True,
        "reset_peak_memory_stats": lambda *_: None,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 2**20,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda how: None,
        "Event": _Event,
        "Stream": _Stream,
        "current_stream": lambda *_: _Stream(),
        "stream": lambda *_: contextlib.nullcontext(),
        "CUDAGraph": _Graph,
        "graph": lambda *_: contextlib.nullcontext(),
    }
    values = [torch.float32, torch.bfloat16]
    refuse = lambda x, **_: None if x.dtype in values else "the kernels take no such values"  # noqa: E731
    computed = [(predictive._OP, "triton", "cpu"), (interval._OP, "triton", "cpu"), (recurrent._BILSTM, "triton", "torch")]
    computed += [(linear._LINEAR, "triton", "batched"), (layer_norm._NORM, "triton", "batched")]
    with contextlib.ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch.object(torch.cuda, name, stand_in))
        on_cuda = torch.device("cuda")
        stack.enter_context(patch.object(Op, "_first", lambda op, _, arguments: first(op, on_cuda, arguments)))
        stack.enter_context(patch.object(library, "refuse", lambda: "the tensors are on cuda"))
        stack.enter_context(patch.object(Op, "_automatic", lambda op, _, arguments: automatic(op, on_cuda, arguments)))
        stack.enter_context(patch.dict("os.environ", {"TRITON_INTERPRET": "1"}))  # then Triton's backends refuse no CPU
        of = edge._OP.backends
        stack.enter_context(patch.dict(of, {"cuda": of["cuda"]._replace(run=of["cpu"].run, refuse=refuse)}))
        for op, name, by in computed:
            stack.enter_context(patch.dict(op.backends, {name: op.backends[name]._replace(run=op.backends[by].run)}))
        stack.enter_context(patch("benchmarks.gpu_check_clock.kernels", _kernels))
        stack.enter_context(patch("benchmarks.gpu_check_ops.kernels", _kernels))
        stack.enter_context(patch("benchmarks.gpu_check_models.kernels", _kernels))
        stack.enter_context(patch("benchmarks.gpu_check_recurrent.kernels", _kernels))
        stack.enter_context(patch("benchmarks.gpu_check_models.captured", lambda run: run))
        stack.enter_context(patch("benchmarks.gpu_check_device.ceilings", lambda: {"copy_bytes_per_second": 4e12}))
        stack.enter_context(_OnCpu())
        yield


def _kernels(run: Callable[[], Any], device: str, passes: int = 3) -> list[dict[str, Any]]:
    """As the profiler tells them, of kernels that a bound is known of."""
    run()
    names = ["predictive_attention_fwd_kernel", "predictive_attention_bwd_key_kernel", "elementwise_kernel"]
    return [{"kernel": name, "launches": 1.0, "us": 3.0 - i} for i, name in enumerate(names)]


def __getattr__(name: str) -> Callable[[Any], None]:
    module, _, function = name.partition("__")
    if not function or not module:
        raise AttributeError(name)

    def run(job: Any) -> None:
        job.forks = True  # nothing here has used a device; a process that is spawned would find none
        with device():
            getattr(importlib.import_module(f"benchmarks.{module}"), function)(job)

    return run
