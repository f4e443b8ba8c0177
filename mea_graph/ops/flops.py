"""What `torch.utils.flop_counter.FlopCounterMode` counts for the package's operators; registered when `mea_graph.ops` is imported.

Only products count, 2 m n k each, as torch counts its own, and the same for every backend. Attention counts the published formula at the
edges that exist, so padding and steps outside a window count nothing; a backward pass counts the map again, because it recomputes it. The
lengths are read from the tensors. Fake tensors have none: all samples then count as equally long, and all edges as present.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from mea_graph.ops import edge, grouped, interval, predictive, recurrent  # noqa: F401 (they define the operators)
from mea_graph.ops.interval_edges import IntervalEdges
from mea_graph.ops.pointers import Pointers


def register(operator: Any, formula: Callable[..., int]) -> None:
    """Has `operator`, such as `torch.ops.mea_graph.lstm`, counted by a formula of its arguments."""

    def without_result(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return formula(*args, **kwargs)

    register_flop_formula(operator, get_raw=True)(without_result)


def _is_known(*tensors: Tensor) -> bool:
    return not any(isinstance(t, FakeTensor) or t.is_meta for t in tensors)


def _interval_edges(query: Tensor, key: Tensor, start: Tensor, length: Tensor, *runs: Any) -> int:
    source_start, source_length, begin, end, *packed = runs
    if not _is_known(query, length, source_length):
        return query.size(0) * key.size(0) // max(start.size(0), 1)
    target = Pointers._unchecked(start, length, query.size(0), packed=any(packed))
    if begin is None:
        return int((length.unsqueeze(1) * source_length).sum())
    return IntervalEdges.of_runs(source_start, source_length, key.size(0), target, begin, end).num_edges


def _interval(query: Tensor, key: Tensor, value: Tensor, *edges: Any) -> int:
    """Products q k^T and P v."""
    return 2 * _interval_edges(query, key, *edges) * query.size(1) * (query.size(2) + value.size(2))


def _interval_backward(grad: Tensor, out: Tensor, logsumexp: Tensor, query: Tensor, key: Tensor, value: Tensor, *edges: Any) -> int:
    """q k^T again; the gradients of query and key; those of map and value."""
    return 2 * _interval_edges(query, key, *edges) * query.size(1) * (3 * query.size(2) + 2 * value.size(2))


def _predictive_edges(query: Tensor, start: Tensor, length: Tensor, begin: Any, end: Any) -> int:
    """`begin` and `end` are tensors from the CPU's operator, numbers from the GPU's, which has no windows."""
    own = (start, length, start.unsqueeze(1), length.unsqueeze(1))
    if isinstance(begin, Tensor):
        return _interval_edges(query, query, *own, begin.unsqueeze(1), end.unsqueeze(1))
    return _interval_edges(query, query, *own, None, None)


def _predictive_times(map_products: int, value_products: int, inputs: Sequence[Any]) -> int:
    """`map_products` times q k^T, the prior's q k^T and the convolution (9 taps, K maps); `value_products` times P v."""
    query, _key, value, prior_query, _prior_key, _weight, _bias, start, length, begin, end, _mu = inputs
    heads, width = query.size(1), query.size(2) + prior_query.size(2) + 9 * query.size(1)
    edges = _predictive_edges(query, start, length, begin, end)
    return 2 * edges * heads * (map_products * width + value_products * value.size(2))


def _predictive(*inputs: Any) -> int:
    return _predictive_times(1, 1, inputs)


def _predictive_backward(grad: Tensor, result: Tensor, statistics: Tensor, *inputs: Any) -> int:
    """The map again and the gradients of both factors of its products; those of map and value."""
    return _predictive_times(3, 2, inputs)


def _edge(x: Tensor, score_dst: Tensor, score_src: Tensor, source: Tensor, *_: Any) -> int:
    """The weighted sum over the edges."""
    return 2 * source.size(0) * x.size(1) * x.size(2)


def _edge_backward(
    grad_y: Tensor | None, grad_weights: Any, x: Tensor, score_dst: Tensor, score_src: Tensor, weights: Tensor, source: Tensor, *_: Any
) -> int:
    """The gradients of the values and of the weights, if the sum was used."""
    return 0 if grad_y is None else 4 * source.size(0) * x.size(1) * x.size(2)


def _grouped(x: Tensor, weights: Sequence[Tensor], biases: Any, starts: Any, sizes: Sequence[int], *_: Any) -> int:
    return sum(2 * size * weight.numel() for weight, size in zip(weights, sizes, strict=True))


def _grouped_backward(grad: Tensor, x: Tensor, mean: Any, rstd: Any, weights: Any, bias: Any, starts: Any, sizes: Any, *_: Any) -> int:
    """The gradients of the rows and of the weights."""
    return 2 * _grouped(x, weights, bias, starts, sizes)


def _grouped_native_backward(grad: Tensor, *inputs: Any) -> int:
    """The gradients of the rows and of the weights."""
    return 2 * _grouped(*inputs)


def _grouped_triton(x: Tensor, weights: Sequence[Tensor], biases: Any, scales: Any, shifts: Any, onto: Any, rows: int, *_: Any) -> int:
    return sum(2 * rows * weight.numel() for weight in weights)


def _grouped_triton_backward(grad: Tensor, x: Tensor, moments: Any, weights: Sequence[Tensor], *rest: Any) -> int:
    """The gradients of the rows and of the weights."""
    _biases, _scales, _shifts, rows, *_ = rest
    return 2 * _grouped_triton(x, weights, None, None, None, None, rows)


def _one_way(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, *_: Any) -> int:
    """One direction of an LSTM or GRU, (B, T, C): every step meets both matrices."""
    return 2 * x.size(0) * x.size(1) * (weight_ih.numel() + weight_hh.numel())


def _one_way_backward(grad: Tensor, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, *_: Any) -> int:
    """The states again; the gradients of what the matrices multiply, and of the matrices."""
    return 3 * _one_way(x, weight_ih, weight_hh)


def _recurrence(driven: Tensor, weight: Tensor, start: Tensor, length: Tensor, *_: Any) -> int:
    """Of the recurrence alone, in both directions: every step meets its set's U, (2, G, H, H), beside which a GRU has a bias."""
    steps = int(length.sum()) if _is_known(driven, length) else driven.size(0)
    directions, gates, hidden = weight.shape[1:4]
    return 2 * steps * directions * gates * hidden * hidden


def _recurrence_backward(grad: Tensor, states: Tensor, *rest: Any) -> int:
    """The gradients of the state and of U."""
    return 2 * _recurrence(grad, *rest)


def _of_torch(x: Tensor, *weights: Any) -> int:
    """Torch's own recurrent layers, (*, C), which run untraced. Weights are a list, or come one by one before the states."""
    steps = x.numel() // max(x.size(-1), 1)
    matrices = weights[0] if isinstance(weights[0], list | tuple) else weights[:4]
    return 2 * steps * sum(weight.numel() for weight in matrices if weight.dim() == 2)


def _of_torch_backward(x: Tensor, *weights: Any) -> int:
    """The gradients of what the matrices multiply, and of the matrices; the states were kept."""
    return 2 * _of_torch(x, *weights)


_OURS = torch.ops.mea_graph
for _backend in ("cpu", "native", "triton"):
    register(getattr(_OURS, f"interval_attention_{_backend}"), _interval)
    register(getattr(_OURS, f"interval_attention_{_backend}_backward"), _interval_backward)
    register(getattr(_OURS, f"predictive_attention_{_backend}"), _predictive)
    register(getattr(_OURS, f"predictive_attention_{_backend}_backward"), _predictive_backward)
for _backend in ("cpu", "cuda", "native"):
    register(getattr(_OURS, f"edge_attention_{_backend}"), _edge)
    register(getattr(_OURS, f"edge_attention_{_backend}_backward"), _edge_backward)
register(_OURS.grouped_linear, _grouped)
register(_OURS.grouped_linear_backward, _grouped_backward)
register(_OURS.grouped_linear_native, _grouped)
register(_OURS.grouped_linear_native_backward, _grouped_native_backward)
register(_OURS.grouped_linear_triton, _grouped_triton)
register(_OURS.grouped_linear_triton_backward, _grouped_triton_backward)
for _name in ("lstm", "gru"):
    register(getattr(_OURS, _name), _one_way)
    register(getattr(_OURS, f"{_name}_backward"), _one_way_backward)
for _name in ("bilstm_triton", "bilstm_native", "bigru_native"):
    register(getattr(_OURS, _name), _recurrence)
    register(getattr(_OURS, f"{_name}_backward"), _recurrence_backward)
# Torch's own operators that `UnimodalExtractor` runs and torch does not count: a count without them would be wrong silently.
for _name in ("mkldnn_rnn_layer", "_cudnn_rnn"):
    for _operator, _formula in ((_name, _of_torch), (f"{_name}_backward", _of_torch_backward)):
        if getattr(torch.ops.aten, _operator) not in flop_registry:
            register(getattr(torch.ops.aten, _operator), _formula)
