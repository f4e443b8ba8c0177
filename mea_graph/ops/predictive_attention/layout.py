"""How a ragged batch is cut up for the CPU: groups of samples of similar length, blocks of their rows, the order of their numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LOG2E = math.log2(math.e)
BLOCK = 2**19  # entries of a block's map: all heads, some rows, all columns
_HIDDEN = -1e30  # the logit of a hidden key, whose power of two is zero
_WASTE = 2**15  # entries: what a group may compute in vain, about what the calls of one more group would cost


class Group(NamedTuple):
    """Samples of similar length that are computed together."""

    samples: list[int]
    length: int

    def blocks(self, heads: int) -> list[slice]:
        """Rows that are computed together: as many as keep a map within `BLOCK` entries, in equal parts."""
        rows = max(1, BLOCK // (len(self.samples) * heads * self.length))
        rows = math.ceil(self.length / math.ceil(self.length / rows))
        return [slice(start, min(start + rows, self.length)) for start in range(0, self.length, rows)]


def groups(mask: Tensor | None, batch: int, length: int, heads: int) -> list[Group]:
    """Splits a batch by true length, the last real step's place. Samples without any are in no group."""
    lengths = [length] * batch
    if mask is not None:
        places = torch.arange(1, length + 1, device=mask.device)
        lengths = (mask * places).amax(1).tolist() if length else [0] * batch
    found: list[Group] = []
    waste = 0  # of the last group
    for b in sorted(range(batch), key=lambda b: -lengths[b]):  # a stable sort: a batch of equal lengths keeps its order
        if lengths[b] == 0:
            break
        if found:
            last = found[-1]
            waste += heads * (last.length**2 - lengths[b] ** 2)
            if waste <= _WASTE and (len(last.samples) + 1) * heads * last.length**2 <= BLOCK:
                last.samples.append(b)
                continue
        found.append(Group([b], lengths[b]))
        waste = 0
    return found


def _index(samples: list[int], device: torch.device) -> slice | Tensor:
    """Takes the samples out of a batch, by a view where they lie side by side."""
    if samples == list(range(samples[0], samples[0] + len(samples))):
        return slice(samples[0], samples[0] + len(samples))
    return torch.tensor(samples, device=device)


class Inputs:
    """A group's tensors in the dtype of the computation, with zeros in the padding, laid out so that every product is a plain GEMM."""

    def __init__(self, group: Group, tensors: Sequence[Tensor], mask: Tensor | None, dtype: torch.dtype) -> None:
        query, key, value, prior_query, prior_key = tensors
        self.dtype, self.length = dtype, group.length
        self.count, self.samples = len(group.samples), _index(group.samples, query.device)
        real = None if mask is None else mask[self.samples, : self.length]
        self.hidden = None if real is None or bool(real.all()) else ~real  # (n, L)
        self.heads = query.size(1)
        q, k, v, q_prior, k_prior = (self.take(t) for t in (query, key, value, prior_query, prior_key))
        ones = k.new_ones(len(k), 1, self.length)
        visible = ones
        if self.hidden is not None:
            visible = ones.masked_fill(self.hidden.repeat_interleave(self.heads, 0)[:, None], 0)
        self.q_and_one = torch.cat([q * (LOG2E / math.sqrt(query.size(3))), ones], 1)  # (n K, D + 1, L)
        self.k_and_hidden = torch.cat([k, (1 - visible) * _HIDDEN, ones], 1)  # (n K, D + 2, L), the last row for a shift
        self.v_and_one = torch.cat([v, visible], 1)  # (n K, D_v + 1, L)
        self.q_prior, self.k_prior = q_prior / math.sqrt(prior_query.size(3)), k_prior

    def take(self, x: Tensor) -> Tensor:
        """The group's samples of a (B, K, T, D) tensor: (n K, D, L), zeros in the padding."""
        x = x.mT[..., : self.length]
        x = x[self.samples] if isinstance(self.samples, slice) else x.index_select(0, self.samples)  # indexing takes twice as long
        x = x.to(self.dtype).contiguous()
        if self.hidden is not None:
            x = x.masked_fill(self.hidden[:, None, None], 0)
        return x.flatten(0, 1)

    def put(self, x: Tensor, result: Tensor) -> None:
        """Writes (n K, D, L) to the group's samples of a (B, K, T, D) tensor, with zeros in the padding."""
        x = x.unflatten(0, (-1, self.heads))
        if self.hidden is not None:
            x = x.masked_fill(self.hidden[:, None, None], 0)
        result, x = result.mT[..., : self.length], x.to(result.dtype)
        if isinstance(self.samples, slice):
            result[self.samples] = x
        else:
            result.index_copy_(0, self.samples, x)


class Scratch:
    """One piece of memory for the maps of a block, used again by every block: fresh memory costs more time than what is written to it.

    One piece and not several, since an allocator gives many large ones back to the system at every call.
    """

    def __init__(self, found: list[Group], heads: int, width: int, maps: int, like: Tensor) -> None:
        """Enough for `maps` maps of any block and, for every two of them, folded queries of width 3 K D."""
        rows = [len(group.samples) * heads * group.blocks(heads)[0].stop for group in found]
        sizes = [r * (maps * group.length + maps // 2 * 3 * heads * width) for r, group in zip(rows, found, strict=True)]
        self.memory = like.new_empty(max(sizes, default=0))
        self.places: dict[str, int] = {}
        self.used = 0

    def clear(self) -> None:
        self.places, self.used = {}, 0

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Memory that keeps its name until `clear`; a later shape under the same name must not be larger."""
        size = math.prod(shape)
        if name not in self.places:
            self.places[name], self.used = self.used, self.used + size
        start = self.places[name]
        return self.memory[start : start + size].view(shape)


def compute_dtype(tensors: Sequence[Tensor | None]) -> torch.dtype:
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32
