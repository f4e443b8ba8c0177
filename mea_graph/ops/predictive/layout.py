"""Cuts a ragged batch up for the CPU: groups of samples of similar length, blocks of their rows, memory in the order that products read."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LOG2E = math.log2(math.e)
BLOCK = 2**19  # entries of a block's map: all heads, some rows, all columns
ROWS = 64  # rows of a tile where each hears a run of its own: wasted work grows with them
_HIDDEN = -1e30  # the logit of a hidden key, whose power of two is zero
_WASTE = 2**15  # entries that a group may waste: about the cost of the calls of one more group


class Group(NamedTuple):
    """Samples of similar length that are computed together."""

    starts: list[int]  # first row of each sample
    lengths: list[int]
    length: int  # the longest


class Tile(NamedTuple):
    """Some rows of a group's maps and the columns that they hear, computed at once."""

    rows: slice
    columns: slice
    bounds: tuple[Tensor, Tensor] | None  # first column that each row hears, and the one after the last, (rows, 1); None: each hears all

    def hidden(self) -> Tensor | None:
        """(rows, columns), bool: True where a row does not hear. Made when used: for all tiles together it would be large."""
        if self.bounds is None:
            return None
        low, high = self.bounds
        step = torch.arange(self.columns.start, self.columns.stop, device=low.device)
        return (step < low) | (step >= high)


def tiles(group: Group, heads: int, begin: Tensor | None = None, end: Tensor | None = None) -> list[Tile]:
    """Cuts a group's maps into equal parts of at most `BLOCK` entries; with `begin` and `end`, (N,), the group is one sample."""
    if begin is None or end is None:
        rows = max(1, BLOCK // (len(group.starts) * heads * group.length))
        return [Tile(part, slice(0, group.length), None) for part in _parts(group.length, rows)]
    (start,) = group.starts
    found = []
    for part in _parts(group.length, ROWS):
        low, high = (t[start + part.start : start + part.stop, None] - start for t in (begin, end))
        heard = low < high
        if bool(heard.any()):
            columns = slice(int(low[heard].min()), int(high[heard].max()))
            found.append(Tile(part, columns, (low, high)))
    return found


def _parts(length: int, size: int) -> list[slice]:
    size = math.ceil(length / math.ceil(length / size))
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


def groups(starts: list[int], lengths: list[int], heads: int) -> list[Group]:
    """Splits a batch by length. Samples without any step are in no group."""
    found: list[Group] = []
    waste = 0  # of the last group
    for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]):  # a stable sort: a batch of equal lengths keeps its order
        if lengths[b] == 0:
            break
        if found:
            last = found[-1]
            waste += heads * (last.length**2 - lengths[b] ** 2)
            if waste <= _WASTE and (len(last.starts) + 1) * heads * last.length**2 <= BLOCK:
                last.starts.append(starts[b])
                last.lengths.append(lengths[b])
                continue
        found.append(Group([starts[b]], [lengths[b]], lengths[b]))
        waste = 0
    return found


def one_by_one(starts: list[int], lengths: list[int]) -> list[Group]:
    """A group for each sample."""
    return [Group([start], [length], length) for start, length in zip(starts, lengths, strict=True) if length]


class Rows:
    """Takes a group's rows out of matrices of rows (N, K, D), and puts results back."""

    def __init__(self, group: Group, device: torch.device) -> None:
        self.count, self.length = len(group.starts), group.length
        first, equal = group.starts[0], group.lengths.count(group.length) == self.count
        self.hidden: Tensor | None = None  # (n, L), True beyond a sample's end
        self.rows: Tensor | None = None  # (n L,); None where the samples follow each other without gaps
        if equal and group.starts == [first + i * group.length for i in range(self.count)]:
            self.whole = slice(first, first + self.count * group.length)
            return
        step = torch.arange(group.length, device=device)
        rows = torch.tensor(group.starts, device=device).unsqueeze(1) + step
        if not equal:
            lengths = torch.tensor(group.lengths, device=device).unsqueeze(1)
            self.hidden = step >= lengths
            rows = torch.where(self.hidden, rows[:, :1], rows)  # its first row again: what lies beyond may be NaN
            self.real = self.hidden.logical_not().flatten().nonzero().squeeze(1)
        self.rows = rows.flatten()

    def take(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, K, D) to (n K, D, L), zeros beyond a sample's end."""
        x = x[self.whole] if self.rows is None else x.index_select(0, self.rows)
        x = x.unflatten(0, (self.count, self.length)).permute(0, 2, 3, 1)  # (n, K, D, L)
        if self.hidden is not None:
            x = x.masked_fill(self.hidden[:, None, None], 0)
        return x.to(dtype).contiguous().flatten(0, 1)

    def put(self, x: Tensor, result: Tensor) -> None:
        """Writes (n K, D, L) to the group's rows of (N, K, D)."""
        heads = result.size(1)
        x = x.unflatten(0, (self.count, heads)).permute(0, 3, 1, 2).to(result.dtype)  # (n, L, K, D)
        if self.rows is None:
            result[self.whole].unflatten(0, (self.count, self.length)).copy_(x)
        elif self.hidden is None:
            result.index_copy_(0, self.rows, x.flatten(0, 1))
        else:
            result.index_copy_(0, self.rows[self.real], x.flatten(0, 1)[self.real])


class Inputs:
    """A group's tensors in the dtype of the computation, laid out so that every product is a plain GEMM."""

    def __init__(self, rows: Rows, tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        query, prior_query = tensors[0], tensors[3]
        q, k, v, q_prior, k_prior = (rows.take(t, dtype) for t in tensors)
        self.hidden = None if rows.hidden is None else rows.hidden.repeat_interleave(query.size(1), 0)[:, None]  # (n K, 1, L)
        ones = k.new_ones(len(k), 1, rows.length)
        visible = ones if self.hidden is None else ones.masked_fill(self.hidden, 0)
        self.q_and_one = torch.cat([q * (LOG2E / math.sqrt(query.size(2))), ones], 1)  # (n K, D + 1, L)
        self.k_and_hidden = torch.cat([k, (1 - visible) * _HIDDEN, ones], 1)  # (n K, D + 2, L), the last row for a shift
        self.v_and_one = torch.cat([v, visible], 1)  # (n K, D_v + 1, L)
        self.q_prior, self.k_prior = q_prior / math.sqrt(prior_query.size(2)), k_prior


class Scratch:
    """One piece of memory for the maps of a block, which every block reuses: fresh memory costs more time than filling it.

    It is one piece because an allocator returns many large ones to the system at every call.
    """

    def __init__(self, plan: Sequence[tuple[Group, list[Tile]]], heads: int, width: int, maps: int, like: Tensor) -> None:
        """Takes room for `maps` maps of any tile and, for every two of them, folded queries of width 3 K D."""
        self.heads, self.width = heads, width
        sizes = [maps * cells + maps // 2 * folded for cells, folded in (self._most(*part) for part in plan)]
        self.memory = like.new_empty(max(sizes, default=0))

    def _most(self, group: Group, cut: list[Tile]) -> tuple[int, int]:
        """The entries of the largest map of a group's tiles, and of the largest folded queries."""
        rows = len(group.starts) * self.heads * max((t.rows.stop - t.rows.start for t in cut), default=0)
        columns = max((t.columns.stop - t.columns.start for t in cut), default=0)
        return rows * columns, rows * 3 * self.heads * self.width

    def clear(self, group: Group, cut: list[Tile]) -> None:
        """Starts the tiles of a group: forgets all names."""
        self.cells, self.folded = self._most(group, cut)
        self.places: dict[str, int] = {}
        self.used = 0

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Memory of this name, the same until `clear`, with room for a map of every tile, or for folded queries if the name says so."""
        if name not in self.places:
            self.places[name], self.used = self.used, self.used + (self.folded if name.endswith("q_hat") else self.cells)
        start = self.places[name]
        return self.memory[start : start + math.prod(shape)].view(shape)
