"""Where the times of steps lie among those of other steps."""

from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.eager import is_traced
from mea_graph.ops.pointers import Pointers


def place_in_time(source: Pointers, target: Pointers, source_time: Any, target_time: Any, shift: float, right: bool) -> Tensor:
    """(N_t,): how many source steps of the sample are earlier than the target step's time and `shift` (or not later, with `right`)."""
    for name, time, pointers in (("source_time", source_time, source), ("target_time", target_time, target)):
        rows = pointers.num_rows
        if time.shape != (rows,) or not time.is_floating_point():
            raise ValueError(f"{name}: expected floating ({rows},), got {time.dtype} {tuple(time.shape)}")
        if time.device.type == "cpu" and not is_traced() and rows and bool((time.isnan() & pointers.real).any()):
            raise ValueError(f"{name}: expected times, got NaN at a step")
    if source_time.device.type == "cpu" and not is_traced() and source.num_rows:
        follows = (source.sample[1:] == source.sample[:-1]) & source.real[1:] & source.real[:-1]
        if bool(((source_time[1:] < source_time[:-1]) & follows).any()):
            raise ValueError("source_time: expected times that rise within each sample, got some that fall")
    times = source.pad(source_time.double()).masked_fill(~source.mask, torch.inf).contiguous()
    wanted = target.pad(target_time.double() + shift).contiguous()
    return target.unpad(torch.searchsorted(times, wanted, right=right))
