"""What torch's FlopCounterMode counts for the package's operators, by hand and against what torch counts for the references."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mea_graph.nn import MEA, ExclusiveEncoder, UnimodalExtractor
from mea_graph.ops import IntervalEdges, Pointers, edge_attention, interval_attention, predictive_attention, use_backend
from mea_graph.ops.grouped import grouped_linear
from mea_graph.ops.native import library
from mea_graph.ops.recurrent.layers import GRU_OPERATOR, LSTM_OPERATOR

K, D, V, P = 2, 3, 5, 4  # heads; widths of query, value and prior


def counted(call: Callable[[], Any]) -> dict[str, int]:
    """FLOPs by operator."""
    with FlopCounterMode(display=False) as counter:
        call()
    return {str(op).partition(".")[2]: flops for op, flops in counter.get_flop_counts().get("Global", {}).items()}


def differentiable(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def pointers(*lengths: int) -> Pointers:
    return Pointers.from_ptr(torch.tensor([0, *lengths]).cumsum(0))


def test_every_operator_has_a_formula() -> None:
    names = {name.partition("::")[2].partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("mea_graph::")}
    without = {name for name in names if getattr(torch.ops.mea_graph, name) not in flop_registry}
    norms = {"grouped_layer_norm", "grouped_layer_norm_native", "grouped_layer_norm_triton"}  # no products; torch counts none for its own
    assert without == norms | {f"{name}_backward" for name in norms} | {"sort_edges"}


def test_interval_attention_counts_its_edges() -> None:
    target, source = pointers(3, 2), pointers(4, 5)
    q, k, v = differentiable((5, K, D), (9, K, D), (9, K, V))
    edges = IntervalEdges.complete(source, target)
    assert edges.num_edges == 3 * 4 + 2 * 5
    found = counted(lambda: interval_attention(q, k, v, edges).sum().backward())
    own = {"interval_attention_cpu": 2 * 22 * K * (D + V), "interval_attention_cpu_backward": 2 * 22 * K * (3 * D + 2 * V)}
    assert found == own
    with torch.no_grad():  # by plain products
        assert sum(counted(lambda: interval_attention(q, k, v, edges)).values()) == own["interval_attention_cpu"]
    near = IntervalEdges.window(source, target, steps=1)
    assert near.num_edges == (2 + 3 + 3) + (2 + 3)
    assert counted(lambda: interval_attention(q, k, v, near))["interval_attention_cpu"] == 2 * 13 * K * (D + V)


def test_padding_counts_nothing_and_the_reference_counts_the_same() -> None:
    q, k, v = differentiable((8, K, D), (8, K, D), (8, K, V))
    padded = Pointers.from_mask(torch.tensor([[True] * 4, [True] * 2 + [False] * 2]))
    edges = IntervalEdges.complete(padded, padded)
    assert counted(lambda: interval_attention(q, k, v, edges)) == {"interval_attention_cpu": 2 * (16 + 4) * K * (D + V)}
    whole = IntervalEdges.complete(pointers(4, 4), pointers(4, 4))
    with use_backend("reference"):
        reference = counted(lambda: interval_attention(q, k, v, whole))
    assert sum(reference.values()) == sum(counted(lambda: interval_attention(q, k, v, whole)).values())


@pytest.mark.parametrize("steps", [8, 70], ids=["stored", "folded"])
def test_predictive_attention_counts_what_its_formula_costs(steps: int) -> None:
    rows = pointers(steps, steps)
    q, k, v, prior_q, prior_k = differentiable(*[(2 * steps, K, width) for width in (D, D, V, P, P)])
    (weight,) = differentiable((K, K, 3, 3))

    def call(edges: IntervalEdges | None = None) -> Tensor:
        return predictive_attention(q, k, v, rows, prior_query=prior_q, prior_key=prior_k, weight=weight, edges=edges)

    found, maps = counted(lambda: call().sum().backward()), D + P + 9 * K
    own = {
        "predictive_attention_cpu": 2 * 2 * steps**2 * K * (maps + V),
        "predictive_attention_cpu_backward": 2 * 2 * steps**2 * K * (3 * maps + 2 * V),
    }
    assert found == own
    with use_backend("reference"):
        assert sum(counted(call).values()) == own["predictive_attention_cpu"]
    near = IntervalEdges.window(rows, rows, steps=1)
    assert counted(lambda: call(near)) == {"predictive_attention_cpu": 2 * 2 * (3 * steps - 2) * K * (maps + V)}


def test_edge_attention_counts_its_edges() -> None:
    x, dst, src = differentiable((6, K, V), (4, K), (6, K))
    edge_index = torch.stack([torch.randint(6, (11,)), torch.randint(4, (11,))])
    found = counted(lambda: edge_attention(x, dst, src, edge_index)[0].sum().backward())
    assert found == {"edge_attention_cpu": 2 * 11 * K * V, "edge_attention_cpu_backward": 4 * 11 * K * V}
    found = counted(lambda: edge_attention(x, dst, src, edge_index)[1].square().sum().backward())
    assert found["edge_attention_cpu_backward"] == 0


@pytest.mark.parametrize("norms", [False, True])
def test_grouped_linear_counts_a_product_a_group(norms: bool) -> None:
    x, a, b, scale = differentiable((9, 4), (5, 4), (5, 4), (4,))

    def call() -> Tensor:
        return grouped_linear(x, [a, b], [], [0, 3], [4, 6], [scale] * 2 * norms, [scale] * 2 * norms)

    assert counted(lambda: call().sum().backward()) == {"grouped_linear": 2 * 10 * 20, "grouped_linear_backward": 4 * 10 * 20}
    with torch.no_grad():
        assert sum(counted(call).values()) == 2 * 10 * 20


@pytest.mark.parametrize(("name", "operator", "gates"), [("lstm", LSTM_OPERATOR, 4), ("gru", GRU_OPERATOR, 3)])
def test_recurrent_operators_count_both_matrices_at_every_step(name: str, operator: Callable[..., Tensor], gates: int) -> None:
    x, w_ih, w_hh, b_ih, b_hh = differentiable((2, 7, 3), (gates * 4, 3), (gates * 4, 4), (gates * 4,), (gates * 4,))
    found = counted(lambda: operator(x, w_ih, w_hh, b_ih, b_hh).sum().backward())
    forward = 2 * 2 * 7 * gates * 4 * (3 + 4)
    assert found == {name: forward, f"{name}_backward": 3 * forward}


@pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}")
@pytest.mark.parametrize(("name", "gates", "columns"), [("bilstm", 4, 4), ("bigru", 3, 5)])
def test_recurrences_in_cpp_count_the_state_at_every_step(name: str, gates: int, columns: int) -> None:
    driven, weight = differentiable((7, 2, gates, 4), (1, 2, gates, 4, columns))
    operator = getattr(torch.ops.mea_graph, f"{name}_native")
    found = counted(lambda: operator(driven, weight, torch.tensor([0, 3]), torch.tensor([3, 4]), [7], True)[0].sum().backward())
    forward = 2 * 7 * 2 * gates * 4 * 4
    assert found == {f"{name}_native": forward, f"{name}_native_backward": 2 * forward}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrent_layers_count_the_same_whatever_torch_runs_for_them(dtype: torch.dtype) -> None:
    """In float32 torch has an operator on the CPU, which it leaves out of its own counts."""
    x = torch.randn(2, 7, 3, dtype=dtype)
    convolution, lstm = 2 * 14 * 3 * 3 * 8, 2 * 2 * 14 * 4 * 4 * (8 + 4)
    extractor, encoder = UnimodalExtractor(3, 8).to(dtype), ExclusiveEncoder(3, 8, pooling="gru").to(dtype)
    assert sum(counted(lambda: extractor(x)).values()) == convolution + lstm
    gru, perceptron = 2 * 2 * 14 * 3 * 8 * (3 + 8), 2 * 2 * (16 + 8) * 8
    assert sum(counted(lambda: encoder(x)).values()) == gru + perceptron
    back = counted(lambda: extractor(x).sum().backward())
    assert sum(back.values()) >= 2.4 * (convolution + lstm)  # the input asks for no gradient


def test_of_the_lengths_of_fake_tensors_nothing_is_known() -> None:
    with FakeTensorMode():
        q, start, length = torch.empty(12, K, D), torch.empty(3, dtype=torch.int64), torch.empty(3, dtype=torch.int64)
        where = (start, length, start.unsqueeze(1), length.unsqueeze(1), None, None)
        found = counted(lambda: torch.ops.mea_graph.interval_attention_triton(q, q, q, *where, True))
    assert found == {"interval_attention_triton": 2 * (3 * 4 * 4) * K * (D + D)}


def test_a_whole_model_counts_more_the_longer_its_sequences_are() -> None:
    model = MEA({"a": 3, "b": 2}, 1, channels=8, heads=2, hidden_channels=8, exclusive={"num_layers": 2}).eval()

    def flops(steps: int) -> dict[str, int]:
        return counted(lambda: model({"a": torch.randn(2, steps, 3), "b": torch.randn(2, steps, 2)}))

    few, many = flops(10), flops(20)
    assert many["predictive_attention_cpu"] == 4 * few["predictive_attention_cpu"] > 0
    assert many["interval_attention_cpu"] == 4 * few["interval_attention_cpu"] > 0
