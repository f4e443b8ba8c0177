"""Tells ops when they may take a short cut: where nothing is traced or differentiated. On little data every saved call counts."""

import torch
from torch import Tensor


def is_traced() -> bool:
    """Whether a graph is being recorded, in which Python must not decide by values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]  # an export to ONNX traces too


def is_transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jvp) or forward-mode differentiation is at work, which the package's operators lack."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def only_evaluated(*tensors: Tensor | None) -> bool:
    """Whether these are plain float32 or float64 tensors on a CPU, all of one dtype, none of which needs a gradient."""
    given = [t for t in tensors if t is not None]
    first = given[0]
    if first.device.type != "cpu" or first.dtype not in (torch.float32, torch.float64):
        return False
    if any(t.dtype != first.dtype or type(t) not in (Tensor, torch.nn.Parameter) for t in given):
        return False
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    return not (differentiated or torch.is_autocast_enabled("cpu") or is_traced())
