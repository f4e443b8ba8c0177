"""Interval attention on rows, for the CPU: no map is stored, and blocks of rows outside each other's runs are never visited.

Inside, rows lie along the last dimension, (K, D, N): a run of rows is then a view, and products with heads of a few numbers still fill a
CPU's vector lanes. A block is some rows of one sample and the source rows that they hear, all heads at once, by plain matrix products over
maps that stay in the cache; the backward pass computes the maps again. Powers of two replace exponentials: `exp2` is inlined and
vectorised, `exp` is a library call at many times its cost. Sums over a row, and what is subtracted from one, are a further row of the
factors:

    [q, -lse]^T [k, 1] = logits - lse        [v, 1] P^T = [out, sum]        [d_out, -delta]^T [v, 1] = dP - delta
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mea_graph.ops.dtypes import wide_dtype
from mea_graph.ops.eager import only_evaluated
from mea_graph.ops.interval.padded import run_reference
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.library import register, through_reference
from mea_graph.ops.pointers import Pointers

_BLOCK = 2**18  # entries of a map that are computed at once: a map that leaves the cache costs half as much again
_ROWS = 64  # target rows of a block where each has a run of its own: wasted work grows with them
_FEW = 12  # samples (of all arrows together) that are evaluated by plain calls
_LOG2E = math.log2(math.e)
_STEEP = 60.0  # base-2 logits up to this size need no shift before they become powers of two


class Block(NamedTuple):
    """Target rows and the source rows that they hear, computed at once."""

    rows: slice  # of the target
    runs: list[tuple[int, int]]  # of source rows, first and after the last, apart from each other
    bounds: list[tuple[Tensor, Tensor]] | None  # by run, first and after the last that each row hears, (rows, 1); None: each hears all

    def hidden(self) -> Tensor:
        """(rows, source rows of all runs), bool: True where a row does not hear. Made when used: for all blocks it would be large."""
        parts = []
        for (a, z), (begin, end) in zip(self.runs, self.bounds or [], strict=True):
            source = torch.arange(a, z)
            parts.append((source < begin) | (source >= end))
        return torch.cat(parts, 1)


def blocks(
    heads: int, start: Tensor, length: Tensor, source_start: Tensor, source_length: Tensor, begin: Tensor | None, end: Tensor | None
) -> Iterator[Block]:
    """Cuts the samples into blocks of equal parts, with maps of at most `_BLOCK` entries. Rows that hear nothing are left out."""
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
    used = [s for s, (a, z) in enumerate(zip(low, high, strict=True)) if a < z]
    if not used:
        return None
    bounds = [(begin[:, s : s + 1], end[:, s : s + 1]) for s in used]
    return Block(rows, [(low[s], high[s]) for s in used], bounds)


def _merge(runs: Any) -> list[tuple[int, int]]:
    """Drops empty runs and merges those that touch."""
    merged: list[tuple[int, int]] = []
    for a, z in runs:
        if a == z:
            continue
        if merged and merged[-1][1] == a:
            merged[-1] = (merged[-1][0], z)
        else:
            merged.append((a, z))
    return merged


def _row_views(x: Tensor, plan: Sequence[Block]) -> Sequence[Tensor]:
    """The target rows of each block, from (K, D, N)."""
    return _views(x, [(b.rows.start, b.rows.stop) for b in plan])


def _run_views(x: Tensor, plan: Sequence[Block]) -> Sequence[Tensor]:
    """The source rows of each block, from (K, D, N): views, or copies where a block has several runs."""
    if all(len(b.runs) == 1 for b in plan):
        return _views(x, [b.runs[0] for b in plan])
    views = ([x[..., a:z] for a, z in b.runs] for b in plan)
    return [parts[0] if len(parts) == 1 else torch.cat(parts, 2) for parts in views]


def _views(x: Tensor, bounds: Sequence[tuple[int, int]]) -> Sequence[Tensor]:
    """`x[..., a:z]` for each, by one split where the bounds rise: a slice costs as much as a small product."""
    sizes: list[int] = []
    picked: list[int] = []
    end = 0
    for i, (a, z) in enumerate(bounds):
        if i and (a, z) == bounds[i - 1]:
            picked.append(picked[-1])
            continue
        if a < end:
            return [x[..., a:z] for a, z in bounds]
        if a > end:
            sizes.append(a - end)
        picked.append(len(sizes))
        sizes.append(z - a)
        end = z
    parts = x.split_with_sizes([*sizes, x.size(2) - end], 2)
    return [parts[i] for i in picked]


def _add_columns(x: Tensor, runs: Sequence[tuple[int, int]], part: Tensor) -> None:
    """Adds to the source rows of a block: the adjoint of what `_run_views` copies."""
    column = 0
    for a, z in runs:
        x[..., a:z].add_(part[..., column : column + z - a])
        column += z - a


class _Maps:
    """Memory for the maps of a block, which every block reuses: fresh memory costs more time than filling it."""

    def __init__(self, count: int, like: Tensor, plan: Sequence[Block]) -> None:
        self.heads = like.size(0)
        sizes = ((b.rows.stop - b.rows.start) * sum(z - a for a, z in b.runs) for b in plan)
        self.memory = like.new_empty(count, self.heads * max(sizes, default=0))

    def __call__(self, i: int, rows: int, columns: int) -> Tensor:
        return self.memory[i, : self.heads * rows * columns].view(self.heads, rows, columns)


def rows_last(x: Tensor, dtype: torch.dtype, scale: float = 1.0, row: Tensor | float | None = None) -> Tensor:
    """(N, K, D) to (K, D, N), scaled; with `row` one more row, (K, N) or filled with that number."""
    flat = x.flatten(1).to(dtype)
    if scale != 1.0:
        flat = flat * scale
    flat = flat.t()
    if not flat.is_contiguous():
        flat = flat.t().contiguous().t().contiguous()  # torch transposes only dense matrices in blocks, which is faster
    flat = flat.view(*x.shape[1:], -1)
    if row is None:
        return flat
    if isinstance(row, float):
        row = flat.new_full((flat.size(0), flat.size(2)), row)  # torch 2.9 cannot pad an empty tensor
    return torch.cat([flat, row.unsqueeze(1)], 1)


def _steep(query: Tensor, key: Tensor) -> bool:
    """Whether a power of two of their products could overflow, by the longest query and key; gaps may hold anything, hence `not`."""
    if query.numel() == 0 or key.numel() == 0:
        return False
    longest = [torch.linalg.vecdot(x, x, dim=1).max() for x in (query, key)]
    return not float(longest[0] * longest[1]) <= _STEEP**2


def _run(query: Tensor, key: Tensor, value: Tensor, *edges: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result (N_t, K, D_v) in the dtype of the values, and what the backward pass recomputes the maps from, (K, N_t)."""
    (steps, heads, width), dtype = query.shape, wide_dtype(query, key, value)
    q_all, k_all = rows_last(query, dtype, _LOG2E * width**-0.5), rows_last(key, dtype)
    v_all = rows_last(value, dtype, row=1.0)
    plan = list(blocks(heads, *edges))  # type: ignore[arg-type]
    out, shift = q_all.new_zeros(heads, value.size(2) + 1, steps), q_all.new_zeros(heads, 1, steps)
    maps, steep = _Maps(1, q_all, plan), _steep(q_all, k_all)
    rows = (_row_views(x, plan) for x in (q_all, out, shift))
    sources = (_run_views(x, plan) for x in (k_all, v_all))
    for block, q, o, top, k, v in zip(plan, *rows, *sources, strict=True):
        p = torch.bmm(k.mT, q, out=maps(0, k.size(2), q.size(2)))  # keys first, so that the product with the values needs no transpose
        if block.bounds is not None:
            p.masked_fill_(block.hidden().mT, -torch.inf)
        if steep:
            p.sub_(top.copy_(p.amax(1, keepdim=True).clamp_(min=torch.finfo(dtype).min)))
        o.copy_(torch.bmm(v, p.exp2_()))
    total = out[:, -1:]
    total.masked_fill_(total == 0, 1)
    result = _rows_first(out[:, :-1] / total, value.dtype)
    return result, shift.add_(total.log2_()).squeeze(1)


def _run_backward(
    grad: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, *edges: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `query`, `key` and `value`."""
    dtype, heads, scale = wide_dtype(query, key, value), query.size(1), query.size(2) ** -0.5
    plan = list(blocks(heads, *edges))  # type: ignore[arg-type]
    delta = torch.linalg.vecdot(grad.to(dtype), out.to(dtype)).mT.neg_()
    g_all, q_all = rows_last(grad, dtype, row=delta), rows_last(query, dtype, _LOG2E * scale, row=logsumexp.neg())
    k_all, v_all = rows_last(key, dtype, row=1.0), rows_last(value, dtype, row=1.0)
    d_query, d_key, d_value = (x.new_zeros(x.size(0), x.size(1) - 1, x.size(2)) for x in (q_all, k_all, v_all))
    maps, joined = _Maps(2, q_all, plan), any(len(b.runs) > 1 for b in plan)
    rows = (_row_views(x, plan) for x in (g_all, g_all[:, :-1], q_all, q_all[:, :-1], d_query))
    sources = (_run_views(x, plan) for x in (k_all, k_all[:, :-1], v_all))
    sums = ([x] * len(plan) if joined else _run_views(x, plan) for x in (d_key, d_value))
    for block, g, g_main, q, q_main, d_q, k, k_main, v, d_k, d_v in zip(plan, *rows, *sources, *sums, strict=True):
        p, d_logits = (maps(i, q.size(2), k.size(2)) for i in range(2))
        torch.bmm(q.mT, k, out=p)
        if block.bounds is not None:
            p.masked_fill_(block.hidden(), -torch.inf)
        torch.bmm(g.mT, v, out=d_logits).mul_(p.exp2_())
        if joined:
            _add_columns(d_v, block.runs, torch.bmm(g_main, p))
            _add_columns(d_k, block.runs, torch.bmm(q_main, d_logits))
        else:
            d_v.add_(torch.bmm(g_main, p))
            d_k.add_(torch.bmm(q_main, d_logits))
        d_q.copy_(torch.bmm(k_main, d_logits.mT))
    scaled = ((d_query, scale, query), (d_key, 1 / _LOG2E, key), (d_value, 1.0, value))
    return tuple(_rows_first(d if factor == 1.0 else d.mul_(factor), like.dtype) for d, factor, like in scaled)  # type: ignore[return-value]


def _rows_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(K, D, N) as (N, K, D), rows along the last dimension in memory as before."""
    return x.contiguous().to(dtype).permute(2, 0, 1)


def fake(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    sums = query.new_empty(query.size(1), query.size(0), dtype=wide_dtype(query, key, value))
    return _like(value, query.size(0)), sums


def fake_backward(grad: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(_like(t, t.size(0)) for t in (query, key, value))


def _like(x: Tensor, rows: int) -> Tensor:
    """Memory for (rows, K, D), laid out as results are."""
    return x.new_empty(x.size(1), x.size(2), rows).permute(2, 0, 1)


def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*output, *inputs)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def backward_by(differentiate: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward pass of an operator whose gradients `differentiate` computes."""

    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        if torch.is_grad_enabled():
            return tuple(through_reference(_again, ctx.saved_tensors[2:], grad))
        return *differentiate(grad, *ctx.saved_tensors), *(None,) * 6

    return backward


def _again(query: Tensor, key: Tensor, value: Tensor, start: Any, length: Any, source_start: Any, source_length: Any, *runs: Any) -> Tensor:
    """Recomputes the result by the reference, for a second derivative."""
    target = Pointers._unchecked(start, length, query.size(0))
    return run_reference(query, key, value, IntervalEdges.of_runs(source_start, source_length, key.size(0), target, *runs))


_EDGES = "Tensor start, Tensor length, Tensor source_start, Tensor source_length, Tensor? begin, Tensor? end"
TENSORS = f"Tensor query, Tensor key, Tensor value, {_EDGES}"
_differentiate = register(
    "interval_attention_cpu_backward",
    f"(Tensor grad, Tensor out, Tensor logsumexp, {TENSORS}) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    fake_backward,
)
_backward = backward_by(_differentiate)
_operator = register("interval_attention_cpu", f"({TENSORS}) -> (Tensor, Tensor)", _run, fake, setup_context, _backward)


def run(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges) -> Tensor:
    tensors = (edges.target.start, edges.target.length, edges.source_start, edges.source_length)
    if edges.is_complete and only_evaluated(query, key, value):
        plan = _few(query.size(1), *tensors)
        if plan is not None:
            return _evaluate(query, key, value, plan)
    begin, end = (None, None) if edges.is_complete else (edges.begin, edges.end)
    return _operator(query, key, value, *tensors, begin, end)[0]


def _few(heads: int, start: Tensor, length: Tensor, source_start: Tensor, source_length: Tensor) -> list[Block] | None:
    """The blocks, if they are whole samples and so few that the calls take most of the time; else None."""
    if len(start) > _FEW:
        return None
    plan = list(blocks(heads, start, length, source_start, source_length, None, None))
    whole = len(plan) <= _FEW and len({b.rows.start for b in plan} - set(start.tolist())) == 0
    return plan if whole and all(len(b.runs) == 1 for b in plan) else None


def _evaluate(query: Tensor, key: Tensor, value: Tensor, plan: Sequence[Block]) -> Tensor:
    """The formula as it stands, without copies: a fifth of the operator's calls."""
    scale = query.size(2) ** -0.5
    out = value.new_zeros(query.size(0), query.size(1), value.size(2))
    for rows, ((a, z),), _ in plan:
        logits = torch.bmm(query[rows].transpose(0, 1), key[a:z].permute(1, 2, 0)).mul_(scale)
        out[rows] = torch.bmm(torch.softmax(logits, -1), value[a:z].transpose(0, 1)).transpose(0, 1)
    return out


def refuse(query: Tensor, **_: Any) -> str | None:
    if query.device.type != "cpu":
        return f"it reads the lengths on the CPU, which would wait for the tensors on {query.device.type}"
    return None
