"""Predictive attention in compiled C++: row by row, all heads at once, with the convolution itself; stores no map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.dtypes import wide_dtype
from mea_graph.ops.eager import only_evaluated
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.library import register
from mea_graph.ops.native import library
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.predictive import cpu


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: Tensor,
    length: Tensor,
    begin: Tensor | None,
    end: Tensor | None,
    mu: float,
) -> tuple[Tensor, Tensor]:
    """Takes and returns what the operator of "cpu" does."""
    tensors = (query, key, value, prior_query, prior_key)
    dtype = wide_dtype(*tensors, weight, bias)
    out = value.new_zeros(value.shape, dtype=dtype)
    statistics = query.new_zeros(query.size(0), query.size(1), 2, dtype=dtype)
    others, runs = (weight, bias, statistics, None), (start, length, begin, end)
    _call("predictive_forward", tensors, (out, *(None,) * 6), others, runs, mu, dtype)
    return (out if dtype == value.dtype else out.to(value.dtype)), statistics


def _backward(grad: Tensor, result: Tensor, statistics: Tensor, *given: Any) -> tuple[Tensor, ...]:
    *tensors, weight, bias, start, length, begin, end, mu = given
    heads = weight.size(0)
    dtype = wide_dtype(*tensors, weight, bias)
    grads = [t.new_zeros(t.shape, dtype=dtype) for t in tensors]
    of_parameters = weight.new_zeros(start.size(0), weight.numel() + heads, dtype=dtype)
    others, runs = (weight, bias, statistics, of_parameters), (start, length, begin, end)
    _call("predictive_backward", tensors, (result, grad, *grads), others, runs, mu, dtype)
    d_weight, d_bias = of_parameters.sum(0).split([weight.numel(), heads])
    d_bias = d_bias.to((weight if bias is None else bias).dtype, copy=True)  # results of an operator must not share memory
    return *(d.to(t.dtype) for d, t in zip(grads, tensors, strict=True)), d_weight.view(weight.shape).to(weight.dtype), d_bias


def _call(
    name: str,
    inputs: Sequence[Tensor],
    results: Sequence[Tensor | None],
    others: Sequence[Tensor | None],
    runs: Sequence[Any],
    mu: float,
    dtype: torch.dtype,
) -> None:
    """`others` are the weight, the bias, the statistics and the gradient of the parameters."""
    query, _, value, prior_query, _ = given = [t if t.dtype == dtype else t.to(dtype) for t in inputs]
    grads = [t if t is None or t.dtype == dtype else t.to(dtype) for t in results]
    held = [None if t is None else t.to(dtype).contiguous() for t in others] + [None if t is None else t.contiguous() for t in runs]
    sizes = (runs[0].size(0), query.size(1), query.size(2), value.size(2), prior_query.size(2), torch.get_num_threads())
    fields = [field for t in (*given, *grads) for field in library.rows(t)]
    library.call(name, dtype, [*fields, *held, *sizes], mu)


_BACKWARD = register(
    "predictive_attention_native_backward",
    f"(Tensor grad, Tensor result, Tensor statistics, {cpu.INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    cpu.fake_backward,
)
_autograd = cpu.backward_by(_BACKWARD)
_FORWARD = register(
    "predictive_attention_native", f"({cpu.INPUTS}) -> (Tensor, Tensor)", _forward, cpu.fake_forward, cpu.setup_context, _autograd
)


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mu: float,
    pointers: Pointers,
    edges: IntervalEdges | None,
) -> Tensor:
    tensors = (query, key, value, prior_query, prior_key, weight, bias)
    begin, end = (None, None) if edges is None or edges.is_complete else (edges.begin[:, 0], edges.end[:, 0])
    return (_forward if only_evaluated(*tensors) else _FORWARD)(*tensors, pointers.start, pointers.length, begin, end, mu)[0]


def refuse(query: Tensor, **_: Any) -> str | None:
    if query.device.type != "cpu":
        return f"the tensors are on {query.device.type}"
    return library.refuse()
