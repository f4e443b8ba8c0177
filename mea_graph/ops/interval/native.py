"""Interval attention by compiled C++: forward and backward in one loop each, query rows along a processor's vector lanes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.dtypes import wide_dtype
from mea_graph.ops.eager import only_evaluated
from mea_graph.ops.interval import cpu
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.library import register
from mea_graph.ops.native import library

_WIDEST = 16  # channels of a head that the loops hold in registers; for wider ones plain products are as fast


def _run(query: Tensor, key: Tensor, value: Tensor, *edges: Tensor | None) -> tuple[Tensor, Tensor]:
    """Takes and returns what the operator of "cpu" does."""
    dtype = wide_dtype(query, key, value)
    out, sums = _space(value, query.size(0), dtype), query.new_zeros(query.size(1), query.size(0), dtype=dtype)
    _call("interval_forward", (query, key, value), (out, None, None, None, None), (sums, None), edges, dtype)
    return _finished(out, value), sums


def _run_backward(
    grad: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, *edges: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = wide_dtype(query, key, value)
    grad = grad.to(dtype)
    delta = torch.linalg.vecdot(grad, out.to(dtype)).mT.neg().contiguous()
    inputs = (query, key, value)
    grads = [_space(t, t.size(0), dtype) for t in inputs]
    _call("interval_backward", inputs, (None, grad, *grads), (logsumexp.contiguous(), delta), edges, dtype)
    return tuple(_finished(d, t) for d, t in zip(grads, inputs, strict=True))  # type: ignore[return-value]


def _space(like: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Zeros for (rows, K, D), rows along the last dimension in memory, as layers read it."""
    return like.new_zeros(like.size(1), like.size(2), rows, dtype=dtype).permute(2, 0, 1)


def _finished(x: Tensor, like: Tensor) -> Tensor:
    return x if x.dtype == like.dtype else x.permute(1, 2, 0).to(like.dtype).permute(2, 0, 1)


def _call(
    name: str,
    inputs: Sequence[Tensor],
    results: Sequence[Tensor | None],
    sums: Sequence[Tensor | None],
    edges: Sequence[Any],
    dtype: torch.dtype,
) -> None:
    query, _, value = given = [t if t.dtype == dtype else t.to(dtype) for t in inputs]
    held: list[Any] = [None if t is None else t.contiguous() for t in edges]
    start, _, source_start, *_ = held
    sizes = (start.size(0), source_start.size(1), query.size(1), query.size(2), value.size(2), query.size(0), torch.get_num_threads())
    fields = [field for t in (*given, *results) for field in library.rows(t)]
    library.call(name, dtype, [*fields, *sums, *held, *sizes])


_differentiate = register(
    "interval_attention_native_backward",
    f"(Tensor grad, Tensor out, Tensor logsumexp, {cpu.TENSORS}) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    cpu.fake_backward,
)
_backward = cpu.backward_by(_differentiate)
_operator = register("interval_attention_native", f"({cpu.TENSORS}) -> (Tensor, Tensor)", _run, cpu.fake, cpu.setup_context, _backward)


def run(query: Tensor, key: Tensor, value: Tensor, edges: IntervalEdges) -> Tensor:
    begin, end = (None, None) if edges.is_complete else (edges.begin, edges.end)
    tensors = (query, key, value, edges.target.start, edges.target.length, edges.source_start, edges.source_length, begin, end)
    return (_run if only_evaluated(query, key, value) else _operator)(*tensors)[0]


def refuse(query: Tensor, value: Tensor, **_: Any) -> str | None:
    if query.device.type != "cpu":
        return f"the tensors are on {query.device.type}"
    if max(query.size(2), value.size(2)) > _WIDEST:
        return f"heads are wider than {_WIDEST} channels, for which plain products are as fast"
    return library.refuse()
