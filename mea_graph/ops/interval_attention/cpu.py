"""Interval attention on rows, for the CPU: no map is stored, and blocks of rows outside each other's runs are never visited.

Inside, rows lie along the last dimension, (K, D, N): a run of rows is then a view, and products with heads of a few numbers still fill a
CPU's vector lanes. A block is some rows of one sample and the source rows that they hear, all heads at once, by plain matrix products over
maps that stay in the cache; the backward pass computes the maps again. Powers of two replace exponentials: `exp2` is inlined and
vectorised, `exp` is a library call at many times its cost. Sums over a row, and what is subtracted from one, are a further row of the
factors:

    [q, -lse]^T [k, 1] = logits - lse        [v, 1] P^T = [out, sum]        [d_out, -delta]^T [v, 1] = dP - delta
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.interval_attention.padded import run_reference
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.pointers import Pointers

_BLOCK = 2**18  # entries of a map that are computed at once: a map that leaves the cache costs half as much again
_ROWS = 64  # target rows of a block where each has a run of its own: what the block computes in vain grows with them
_LOG2E = math.log2(math.e)
_STEEP = 60.0  # base-2 logits up to this size need no shift before they become powers of two


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Of everything but the result."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


class Block(NamedTuple):
    """What is computed at once."""

    rows: slice  # of the target
    runs: list[tuple[int, int]]  # of source rows, first and after the last, apart from each other
    hidden: Tensor | None  # (rows, source rows of all runs), bool: True where a row does not hear; None: each hears all


def blocks(
    heads: int, start: Tensor, length: Tensor, source_start: Tensor, source_length: Tensor, begin: Tensor | None, end: Tensor | None
) -> Iterator[Block]:
    """Cuts the samples into blocks of equal parts, with maps of at most `_BLOCK` entries. What hears nothing is passed over."""
    samples = zip(start.tolist(), length.tolist(), source_start.tolist(), source_length.tolist(), strict=True)
    for first, n, source_first, source_n in samples:
        runs = _merge((a, a + m) for a, m in zip(source_first, source_n, strict=True))
        if not n or not runs:
            continue
        if begin is None or end is None:
            parts = math.ceil(n / max(_BLOCK // (heads * sum(z - a for a, z in runs)), 1))
            size = math.ceil(n / parts)
            for row in range(first, first + n, size):
                yield Block(slice(row, min(row + size, first + n)), runs, None)
            continue
        size = math.ceil(n / math.ceil(n / _ROWS))
        for row in range(first, first + n, size):
            rows = slice(row, min(row + size, first + n))
            block = _windowed(rows, begin[rows], end[rows])
            if block is not None:
                yield block


def _windowed(rows: slice, begin: Tensor, end: Tensor) -> Block | None:
    heard = begin < end  # (rows, S)
    low = begin.masked_fill(~heard, torch.iinfo(torch.int64).max).amin(0).tolist()
    high = end.masked_fill(~heard, 0).amax(0).tolist()
    runs = [(a, z) for a, z in zip(low, high, strict=True) if a < z]
    if not runs:
        return None
    hidden = []
    for s, (a, z) in enumerate(zip(low, high, strict=True)):
        if a < z:
            source = torch.arange(a, z)
            hidden.append((source < begin[:, s : s + 1]) | (source >= end[:, s : s + 1]))
    return Block(rows, runs, torch.cat(hidden, 1))


def _merge(runs: Any) -> list[tuple[int, int]]:
    """Without empty runs; those that touch become one."""
    merged: list[tuple[int, int]] = []
    for a, z in runs:
        if a == z:
            continue
        if merged and merged[-1][1] == a:
            merged[-1] = (merged[-1][0], z)
        else:
            merged.append((a, z))
    return merged


def _columns(x: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    """The source rows of (K, D, N) that a block reads."""
    if len(runs) == 1:
        return x[..., runs[0][0] : runs[0][1]]
    return torch.cat([x[..., a:z] for a, z in runs], 2)


def _add_columns(x: Tensor, runs: Sequence[tuple[int, int]], part: Tensor) -> None:
    """Adds to the same rows: the adjoint of `_columns`."""
    column = 0
    for a, z in runs:
        x[..., a:z].add_(part[..., column : column + z - a])
        column += z - a


class _Maps:
    """Memory for the maps of a block, used again by every block: fresh memory costs more time than what is written to it."""

    def __init__(self, count: int, like: Tensor, plan: Sequence[Block]) -> None:
        self.heads = like.size(0)
        sizes = ((b.rows.stop - b.rows.start) * sum(z - a for a, z in b.runs) for b in plan)
        self.memory = like.new_empty(count, self.heads * max(sizes, default=0))

    def __call__(self, i: int, rows: int, columns: int) -> Tensor:
        return self.memory[i, : self.heads * rows * columns].view(self.heads, rows, columns)


def rows_last(x: Tensor, dtype: torch.dtype, scale: float = 1.0, row: Tensor | float | None = None) -> Tensor:
    """(N, K, D) to (K, D, N), scaled; with `row` one more row, (K, N) or of that number."""
    size, heads, width = x.shape
    out = x.new_empty(heads, width + (row is not None), size, dtype=dtype)
    main = out[:, :width]
    if scale == 1.0:
        main.copy_(x.permute(1, 2, 0))
    else:
        torch.mul(x.permute(1, 2, 0), scale, out=main) if x.dtype == dtype else main.copy_(x.permute(1, 2, 0)).mul_(scale)
    if row is not None:
        out[:, width] = row
    return out


def _steep(query: Tensor, key: Tensor) -> bool:
    """Whether a power of two of their products could overflow, by the longest query and key; gaps may hold anything, hence `not`."""
    if query.numel() == 0 or key.numel() == 0:
        return False
    longest = [torch.linalg.vecdot(x, x, dim=1).max() for x in (query, key)]
    return not float(longest[0] * longest[1]) <= _STEEP**2


def _run(query: Tensor, key: Tensor, value: Tensor, *edges: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result (N_t, K, D_v) in the dtype of the values, and what the backward pass recomputes the maps from, (K, N_t)."""
    (steps, heads, width), dtype = query.shape, compute_dtype(query, key, value)
    q_all, k_all = rows_last(query, dtype, _LOG2E * width**-0.5), rows_last(key, dtype)
    v_all = rows_last(value, dtype, row=1.0)
    plan = list(blocks(heads, *edges))  # type: ignore[arg-type]
    out, shift = q_all.new_zeros(heads, value.size(2) + 1, steps), q_all.new_zeros(heads, 1, steps)
    maps, steep = _Maps(1, q_all, plan), _steep(q_all, k_all)
    for rows, runs, hidden in plan:
        q, k, v = q_all[..., rows], _columns(k_all, runs), _columns(v_all, runs)
        p = torch.bmm(k.mT, q, out=maps(0, k.size(2), q.size(2)))  # keys first: the values meet its rows as they lie
        if hidden is not None:
            p.masked_fill_(hidden.mT, -torch.inf)
        if steep:
            p.sub_(shift[..., rows].copy_(p.amax(1, keepdim=True).clamp_(min=torch.finfo(dtype).min)))
        out[..., rows] = torch.bmm(v, p.exp2_())
    total = out[:, -1:]
    total.masked_fill_(total == 0, 1)
    result = value.new_empty(steps, heads, value.size(2))
    result.permute(1, 2, 0).copy_(out[:, :-1].div_(total))
    return result, shift.add_(total.log2_()).squeeze(1)


def _run_backward(
    grad: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, *edges: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `query`, `key` and `value`."""
    dtype, heads, scale = compute_dtype(query, key, value), query.size(1), query.size(2) ** -0.5
    plan = list(blocks(heads, *edges))  # type: ignore[arg-type]
    delta = torch.linalg.vecdot(grad.to(dtype), out.to(dtype)).mT.neg_()
    g_all, q_all = rows_last(grad, dtype, row=delta), rows_last(query, dtype, _LOG2E * scale, row=logsumexp.neg())
    k_all, v_all = rows_last(key, dtype, row=1.0), rows_last(value, dtype, row=1.0)
    d_query, d_key, d_value = (x.new_zeros(x.size(0), x.size(1) - 1, x.size(2)) for x in (q_all, k_all, v_all))
    maps = _Maps(2, q_all, plan)
    for rows, runs, hidden in plan:
        g, q, k, v = g_all[..., rows], q_all[..., rows], _columns(k_all, runs), _columns(v_all, runs)
        p, d_logits = (maps(i, q.size(2), k.size(2)) for i in range(2))
        torch.bmm(q.mT, k, out=p)
        if hidden is not None:
            p.masked_fill_(hidden, -torch.inf)
        torch.bmm(g.mT, v, out=d_logits).mul_(p.exp2_())
        _add_columns(d_value, runs, torch.bmm(g[:, :-1], p))
        _add_columns(d_key, runs, torch.bmm(q[:, :-1], d_logits))
        d_query[..., rows] = torch.bmm(k[:, :-1], d_logits.mT)
    scaled = ((d_query, scale, query), (d_key, 1 / _LOG2E, key), (d_value, 1.0, value))
    return tuple(_rows_first(d, factor, like.dtype) for d, factor, like in scaled)  # type: ignore[return-value]


def _rows_first(x: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    out = x.new_empty(x.size(2), x.size(0), x.size(1), dtype=dtype)
    out.permute(1, 2, 0).copy_(x if factor == 1.0 else x.mul_(factor))
    return out


def _fake(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    sums = query.new_empty(query.size(1), query.size(0), dtype=compute_dtype(query, key, value))
    return value.new_empty(query.size(0), query.size(1), value.size(2)), sums


def _fake_backward(grad: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (query, key, value))


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output, *inputs)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    if torch.is_grad_enabled():
        return tuple(through_reference(_again, ctx.saved_tensors[2:], grad))
    return *_operator_backward(grad, *ctx.saved_tensors), *(None,) * 6


def _again(query: Tensor, key: Tensor, value: Tensor, start: Any, length: Any, source_start: Any, source_length: Any, *runs: Any) -> Tensor:
    """The same by the reference, for a second derivative."""
    target = Pointers(start, length, query.size(0))
    return run_reference(query, key, value, IntervalEdges.of_runs(source_start, source_length, key.size(0), target, *runs))


_TENSORS = (
    "Tensor query, Tensor key, Tensor value, Tensor start, Tensor length, Tensor source_start, Tensor source_length, Tensor? begin, Tensor? end"
)
_operator_backward = register(
    "interval_attention_cpu_backward",
    f"(Tensor grad, Tensor out, Tensor logsumexp, {_TENSORS}) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
_operator = register(
    "interval_attention_cpu", f"({_TENSORS}) -> (Tensor, Tensor)", _run, _fake, _setup_context, _backward
)


def run(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges) -> Tensor:
    begin, end = (None, None) if edges.is_complete else (edges.begin, edges.end)
    tensors = (edges.target.start, edges.target.length, edges.source_start, edges.source_length, begin, end)
    return _operator(query, key, value, *tensors)[0]


def refuse(query: Tensor, **_: Any) -> str | None:
    if query.device.type != "cpu":
        return f"it reads the lengths, for which a device would be waited for; the tensors are on {query.device.type}"
    return None
