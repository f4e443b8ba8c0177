"""Launches Triton kernels with less work for the host: a second call like a former one does not ask Triton which compiled kernel it needs.

Triton looks at each argument anew, and builds a text of all of them, which takes some 25 microseconds; a small kernel runs for less.
"""

from typing import Any

from torch import Tensor

_LARGE = 2**31
_COMPILED: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **named: Any) -> None:
    """`kernel[grid](*args, **named)` on the current device; `named` are the kernel's compile-time arguments and Triton's options.

    A compiled kernel fits whatever Triton would compile it for: the same types of numbers and tensors; addresses that all are, or are not,
    multiples of 16 bytes; whole numbers that are 1, multiples of 16, or too large for 32 bits.
    """
    kinds: list[Any] = []
    numbers, device = 1, -1
    for a in args:
        if isinstance(a, Tensor):
            device = a.get_device()
            kinds.append(a.dtype)
            numbers = 8 * numbers + (7 if a.data_ptr() % 16 == 0 else 3)
        elif type(a) is int:  # to Triton, True is no number
            numbers = 8 * numbers + (1 if a == 1 else 2 if a % 16 == 0 else 0) + 4 * (not -_LARGE <= a < _LARGE)
        else:
            kinds.append(type(a))
            numbers = 8 * numbers + 3  # so that the places of what has a kind are known
    key = (kernel.fn, device, numbers, *kinds, *named.items())
    found = _COMPILED.get(key)
    if found is not None and not kernel.pre_run_hooks:
        compiled, constants = found
        compiled[(*grid, 1, 1)[:3]](*args, *constants)
        return
    compiled = kernel[grid](*args, **named)
    if hasattr(type(compiled), "__getitem__"):  # not so what the interpreter returns, nor what is still being compiled
        _COMPILED[key] = compiled, tuple(named[name] for name in kernel.arg_names[len(args) :])
