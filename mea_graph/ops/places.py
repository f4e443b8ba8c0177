"""Refuses tensors that lie on another device, by name: a kernel is given addresses, which mean nothing there."""

import torch
from torch import Tensor


def check_device(name: str, tensor: Tensor, device: torch.device, beside: str) -> None:
    """Refuses a tensor that does not lie where `beside`, what it is used with, does."""
    if tensor.device != device:
        raise ValueError(f"{name}: expected tensors on {device}, where {beside} is, got some on {tensor.device}")
