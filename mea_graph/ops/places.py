"""Refuses, by name, what a kernel that is given addresses would read wrongly: other devices, and samples outside of the rows."""

import torch
from torch import Tensor

from mea_graph.ops.eager import is_traced, is_transformed


def check_device(name: str, tensor: Tensor, device: torch.device, beside: str) -> None:
    """Refuses a tensor that does not lie where `beside`, what it is used with, does."""
    if tensor.device != device:
        raise ValueError(f"{name}: expected tensors on {device}, where {beside} is, got some on {tensor.device}")


def check_samples(start: Tensor, length: Tensor, num_rows: int, steps: int | None, packed: bool) -> None:
    """Refuses samples that are not as `Pointers` says; their numbers are looked at on a CPU only."""
    if start.dim() != 1 or start.shape != length.shape or start.dtype != torch.int64 or length.dtype != torch.int64:
        got = f"{start.dtype} {tuple(start.shape)} and {length.dtype} {tuple(length.shape)}"
        raise ValueError(f"start, length: expected int64 (B,) twice, got {got}")
    if start.device.type != "cpu" or type(start) is not Tensor or is_traced() or is_transformed():
        return
    free = torch.cat([start.new_zeros(1), start + length])  # the first row that the samples before have left
    gaps = start - free[:-1]
    expected, wrong = f"samples one after the other in {num_rows} rows", (gaps < 0) | (length < 0) | (free[1:] > num_rows)
    if packed:
        expected, wrong = f"samples without gaps that fill {num_rows} rows", wrong | (gaps != 0) | (free[-1] != num_rows)
    if steps is not None:
        expected = f"samples of up to {steps} steps, one each {steps} of {num_rows} rows"
        own = steps * torch.arange(len(start), device=start.device)  # whatever the default device is
        wrong = wrong | (start != own) | (length > steps) | (num_rows != steps * len(start))
    if bool(wrong.any()):
        b = int(wrong.nonzero()[0])
        raise ValueError(f"start, length: expected {expected}, got {int(length[b])} rows from {int(start[b])} on for sample {b}")


def check_prefix(mask: Tensor, name: str) -> None:
    """Refuses a mask with padding before real steps, such as an inverted one. Only a CPU checks."""
    if mask.device.type != "cpu" or type(mask) is not Tensor or is_traced() or not mask.size(1):
        return
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        row = int((mask[:, 1:] & ~mask[:, :-1]).any(1).nonzero()[0])
        raise ValueError(
            f"{name}: expected a mask that is True at real steps, which come before padding, got a gap in row {row} (is the mask inverted?)"
        )
