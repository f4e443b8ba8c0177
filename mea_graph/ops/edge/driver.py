"""Loads machine code into the CUDA driver and launches its kernels on torch's current stream."""

import contextlib
import ctypes
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Argument = Tensor | ctypes.c_int | ctypes.c_int64 | None


@functools.cache
def load() -> ctypes.CDLL | None:
    """The driver's library, or None where there is no driver."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


class Module:
    """Machine code loaded on one device, for blocks of `threads` threads.

    Raises:
        RuntimeError: If the driver refuses the machine code.
    """

    def __init__(self, cubin: bytes, device: int, threads: int) -> None:
        self._device, self._threads = device, threads
        self._module = ctypes.c_void_p()
        self._kernels: dict[str, ctypes.c_void_p] = {}
        with _context(device):
            _call("cuModuleLoadData", ctypes.byref(self._module), cubin)

    def launch(self, name: str, grid: tuple[int, int], arguments: Sequence[Argument]) -> None:
        """Starts a kernel, without waiting for it."""
        with _context(self._device):
            if name not in self._kernels:
                kernel = ctypes.c_void_p()
                _call("cuModuleGetFunction", ctypes.byref(kernel), self._module, name.encode())
                self._kernels[name] = kernel
            stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
            values, pointers = pack(arguments)  # `values` has to live until the call returns
            _call("cuLaunchKernel", self._kernels[name], *grid, 1, self._threads, 1, 1, 0, stream, pointers, None)
            del values


def pack(arguments: Sequence[Argument]) -> tuple[list[Any], Any]:
    """The arguments as C values (tensors as the address of their data, None as a null pointer), and an array of pointers to them."""
    values = [ctypes.c_void_p(a.data_ptr() if a is not None else None) if isinstance(a, Tensor | None) else a for a in arguments]
    return values, (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))


@contextlib.contextmanager
def _context(device: int) -> Iterator[None]:
    """Makes torch's context of the device the current one: autograd's threads may have none."""
    _call("cuCtxPushCurrent_v2", _primary_context(device))
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


@functools.cache
def _primary_context(device: int) -> ctypes.c_void_p:
    ordinal, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDeviceGet", ctypes.byref(ordinal), device)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ordinal)
    return context


def _call(name: str, *arguments: Any) -> None:
    driver = load()
    if driver is None:
        raise RuntimeError("libcuda.so.1, the CUDA driver, cannot be loaded")
    result = getattr(driver, name)(*arguments)
    if result:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"{name}: CUDA error {result}: {(text.value or b'unknown').decode()}")
