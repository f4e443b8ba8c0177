"""One vector for each sample from its rows: rows and pointers by the reductions of `mea_graph.ops.segment`, padding by sums over steps."""

import torch
from torch import Tensor

from mea_graph.ops.pointers import Pointers
from mea_graph.ops.segment import _sum_unchecked, segment_max, segment_mean

__all__ = ["max_rows", "mean_rows", "mean_steps", "segment_means", "sum_rows"]


def mean_steps(x: Tensor, pointers: Pointers) -> Tensor:
    """The mean over each sample's steps of a padded batch, (B, T, d) -> (B, d); zeros where there is none."""
    return (_sum_steps(_wide(x), pointers) / pointers.count).to(x.dtype)


def _sum_steps(x: Tensor, pointers: Pointers) -> Tensor:
    return x.masked_fill(~pointers.mask.unsqueeze(-1), 0).sum(1)


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32: a sum of 1400 steps of 50 is infinite in float16, and so is a divisor of 70,000."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def sum_rows(x: Tensor, pointers: Pointers) -> Tensor:
    """The sum over each sample's rows, (N, d) -> (B, d); zeros where there is none."""
    if pointers.steps is not None:
        x = pointers.pad(x)
        return x.sum(1) if pointers.packed else _sum_steps(x, pointers)
    if pointers.packed:
        return _sum_unchecked(x, ptr=pointers.ptr)
    return _sum_unchecked(x, pointers.segment, pointers.num_samples + 1)[:-1]  # gaps are a segment of their own


def mean_rows(x: Tensor, pointers: Pointers) -> Tensor:
    """The mean over each sample's rows, (N, d) -> (B, d); zeros where there is none."""
    return (sum_rows(_wide(x), pointers) / pointers.count).to(x.dtype)


def max_rows(x: Tensor, pointers: Pointers) -> Tensor:
    """The maximum over each sample's rows, (N, d) -> (B, d); zeros where there is none."""
    if pointers.packed and pointers.steps is None:
        return segment_max(x, ptr=pointers.ptr)
    lowest = torch.finfo(x.dtype).min
    x = pointers.pad(x).masked_fill(~pointers.mask.unsqueeze(-1), lowest)
    x = torch.cat([x, x.new_full((x.size(0), 1, x.size(2)), lowest)], 1)  # the extra step makes T = 0 legal
    return x.amax(1).masked_fill(~pointers.present.unsqueeze(1), 0)


def segment_means(x: Tensor, pointers: Pointers, segments: int) -> Tensor:
    """Means over equal, ordered parts of each sample's rows, (N, d) -> (B, segments * d); an empty part gives zeros."""
    length = pointers.length.unsqueeze(1)  # (B, 1)
    if pointers.packed and pointers.steps is None:
        # a step t is in part floor(t * segments / length), so part k begins at ceil(k * length / segments)
        begin = (length * torch.arange(segments, device=x.device) + segments - 1).div(segments, rounding_mode="floor")  # (B, S)
        ptr = torch.cat([(pointers.start.unsqueeze(1) + begin).flatten(), pointers.ptr[-1:]])
        return segment_mean(x, ptr=ptr).unflatten(0, (pointers.num_samples, segments)).flatten(1)
    step = torch.arange(pointers.max_length, device=x.device)
    part = (step * segments).div(length.clamp(min=1), rounding_mode="floor")  # (B, T), below `segments` at real steps
    member = (part.unsqueeze(1) == torch.arange(segments, device=x.device)[:, None]) & pointers.mask.unsqueeze(1)  # (B, S, T)
    padded = _wide(pointers.pad(x))
    share = member.to(padded.dtype) / member.sum(-1, keepdim=True).clamp(min=1).to(padded.dtype)
    if not pointers.packed:
        padded = padded.masked_fill(~pointers.mask.unsqueeze(-1), 0)
    return (share @ padded).flatten(1).to(x.dtype)
