"""Launches without Triton's own look at each argument, on a GPU that is not there: a kernel is compiled, and its launch noted."""

import os
import subprocess
import sys
from textwrap import dedent
from typing import Any

import pytest
import torch

from mea_graph.ops.launch import launch

pytest.importorskip("triton")

# In a process of its own: here kernels are interpreted.
PROGRAM = dedent(
    """
    import torch, triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    launched = []

    class Utils:
        def load_binary(self, *of):
            return 1, len(launched), 32, 0, 1024  # module, function, registers, spills, threads

        def unload_module(self, *of): ...

        def get_device_properties(self, device):
            return {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}

    class Launcher:
        def __init__(self, source, metadata):
            self.signature, self.aligned = dict(source.signature), {i: a for i, a in source.attrs.items() if a}

        def __call__(self, x, y, z, stream, function, metadata, told, enter, leave, *args):
            launched.append((id(self), (x, y, z), args, self.signature, self.aligned))

    class Driver(DriverBase):
        launcher_cls = Launcher

        def __init__(self):
            self.utils = Utils()

        is_active = classmethod(lambda cls: True)
        get_current_device = lambda self: 0
        get_current_stream = lambda self, device: 0
        get_current_target = lambda self: GPUTarget("cuda", 90, 32)
        get_active_torch_device = lambda self: torch.device("cpu")
        map_python_to_cpp_type = get_benchmarker = get_empty_cache_for_benchmark = clear_cache = lambda self, *of: None

    triton.runtime.driver.set_active(Driver())

    from mea_graph.ops.grouped.triton_kernels import grouped_layer_norm_fwd_kernel as kernel
    from mea_graph.ops import launch as module
    from mea_graph.ops.launch import launch

    def arguments(x, stride=40, channels=40, rows=64):
        table, scale, out, moments = torch.zeros(2, 1, dtype=torch.int64), torch.zeros(40), torch.zeros(64, 40), torch.zeros(64, 2)
        return x, stride, table, scale, out, moments, rows, 1, 1, channels, 1e-5

    def both(grid, args, named):
        '''What a launch by Triton and three by `launch` hand to the driver.'''
        del launched[:]
        kernel[grid](*args, **named)
        for _ in range(3):
            launch(kernel, grid, *args, **named)
        first, *others = launched
        assert len(others) == 3
        for other in others:
            assert other[0] == first[0], (first, other)  # one compiled kernel
            assert other[1] == first[1] == (*grid, 1, 1)[:3]
            assert all(a is b or a == b for a, b in zip(first[2], other[2], strict=True))
        return first

    named = {"SAVES": True, "CHANNELS": 64, "ROWS": 32, "num_warps": 4}
    x = torch.zeros(64 * 40 + 4)
    plain = both((2, 1), arguments(x[:-4]), named)
    kinds = {
        "another address that is a multiple": (arguments(x[4:]), named),
        "an address between": (arguments(x[1:-3]), named),
        "another dtype": (arguments(x[:-4].bfloat16()), named),
        "a stride that is a multiple of 16": (arguments(x[:-4], stride=48), named),
        "one": (arguments(x[:-4], channels=1), named),
        "a large number": (arguments(x[:-4], stride=2**31 + 8), named),
        "another number": (arguments(x[:-4], stride=41), named),
        "of no interest": (arguments(x[:-4], rows=48), named),
        "another constant": (arguments(x[:-4]), named | {"SAVES": False}),
        "another option": (arguments(x[:-4]), named | {"num_warps": 2}),
    }
    same = {name for name, (args, options) in kinds.items() if both((2, 1), args, options)[0] == plain[0]}
    assert same == {"another address that is a multiple", "another number", "of no interest"}, same
    both((2, 3), arguments(x[:-4]), named)
    both((2,), arguments(x[:-4]), named)
    print("agreed")
    """
)


def test_a_launch_hands_on_what_tritons_own_would() -> None:
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "agreed\n"


class Kernel:
    """Stands in for what `triton.jit` makes, and counts how often it is asked for a compiled kernel."""

    def __init__(self, compiled: Any = None) -> None:
        self.fn = self.__init__  # of its own
        self.arg_names = ["a", "b", "WIDTH"]
        self.pre_run_hooks: list[Any] = []
        self.asked, self.run = 0, 0
        self.compiled = self if compiled is None else compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            self.run += 1
            self.asked += len(args) < len(self.arg_names)  # to a compiled kernel go the constants as well, by their places
            return self.compiled

        return run

    def asked_for(self, *calls: tuple[Any, ...]) -> int:
        for args in calls:
            launch(self, (1,), *args, WIDTH=16)
        assert self.run == len(calls)
        return self.asked


class Elsewhere(torch.Tensor):
    def get_device(self) -> int:
        return 1


T = torch.zeros(32)


@pytest.mark.parametrize(
    ("calls", "kernels"),
    [
        ([(T, 5), (T, 7), (T, -5)], 1),
        ([(T, 5), (T.as_subclass(Elsewhere), 5)], 2),
        ([(T, 1), (T, True)], 2),
        ([(T, 0), (T, False)], 2),
        ([(None, 5), (5, None)], 2),
        ([(T[1:], 5), (5, T[1:])], 2),
        ([(T, 5), (T, 5.0), (T, None)], 3),
        ([(T, 5), (T[4:], 5), (T[1:], 5), (T[2:], 5), (T[:0], 5)], 2),
        ([(T, 2**31 - 1), (T, 2**31 + 1), (T, -(2**31) + 1), (T, -(2**31) - 1)], 2),
        ([(T, 32), (T, -32), (T, 2**31), (T, 0)], 2),
        ([(T, n) for n in range(2, 300)], 2),  # of any number of sizes: those that are multiples of 16, and the others
    ],
)
def test_a_compiled_kernel_is_for_arguments_of_its_kinds(calls: list[tuple[Any, ...]], kernels: int) -> None:
    assert Kernel().asked_for(*calls) == kernels


def test_a_hook_before_each_run_is_called_by_triton() -> None:
    kernel = Kernel()
    assert kernel.asked_for((T, 5), (T, 5)) == 1
    kernel.pre_run_hooks.append(print)
    launch(kernel, (1,), T, 5, WIDTH=16)
    assert kernel.asked == 2


def test_what_is_not_compiled_yet_is_not_kept() -> None:
    """With `triton.AsyncCompileMode` a launch returns a promise, which has no launches."""
    assert Kernel(object()).asked_for((T, 5), (T, 5)) == 2
