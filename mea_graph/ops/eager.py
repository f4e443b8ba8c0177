"""Tells ops when they may take a short cut: where nothing is traced or differentiated. On little data every saved call counts."""

import torch
from torch import Tensor

PLAIN_TYPES = (torch.nn.Parameter, Tensor)


def is_traced() -> bool:
    """Whether a graph is being recorded, in which Python must not decide by values."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()  # an export to ONNX traces too


def is_transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jvp) or forward-mode differentiation is at work, which the package's operators lack."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def is_batched(grad: Tensor) -> bool:
    """Whether a gradient stands for several at once, as in `torch.autograd.grad(is_grads_batched=True)`: it has no memory to read."""
    return torch._C._functorch.is_legacy_batchedtensor(grad) or torch._C._functorch.is_batchedtensor(grad)


def is_observed() -> bool:
    """Whether a mode wants to see operators; where none does, the function behind one is called, which costs half as much."""
    return torch._C._len_torch_dispatch_stack() > 0


def is_unseen() -> bool:
    """Whether nothing is traced, transformed or observed, and autocast changes no dtype on a CPU: all of the above in one look."""
    if torch.compiler.is_compiling():
        return False
    seen = torch._C._is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None or torch._C._len_torch_dispatch_stack() > 0
    return not (seen or torch.autograd.forward_ad._current_level >= 0 or torch.is_autocast_enabled("cpu"))


def only_evaluated(*tensors: Tensor | None) -> bool:
    """Whether these are plain float32 or float64 tensors on a CPU, all of one dtype, which nobody differentiates, traces or watches.

    The function behind an operator may then be called in its place.
    """
    if not is_unseen():  # first: a compiler cannot trace the questions below
        return False
    learns, dtype = torch.is_grad_enabled(), None
    for t in tensors:
        if t is None:
            continue
        if dtype is None:
            dtype = t.dtype
        if type(t) not in PLAIN_TYPES or not t.is_cpu or t.dtype is not dtype or t.is_neg() or (learns and t.requires_grad):
            return False
    return dtype in (torch.float32, torch.float64)
