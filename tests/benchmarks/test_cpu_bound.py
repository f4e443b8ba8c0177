"""What the bound of a pass is made of, on passes whose costs are known."""

import pytest
import torch
from torch import Tensor

from benchmarks import cpu_bound
from benchmarks.cpu_bound import Cost, Rates
from mea_graph.ops import IntervalEdges, Pointers, interval_attention, predictive_attention
from mea_graph.ops.native import library
from mea_graph.ops.recurrent import bilstm


def test_counts_products_and_exponentials_of_attention() -> None:
    pointers = Pointers.from_ptr(torch.tensor([0, 3, 7]))
    q = torch.randn(7, 2, 5).requires_grad_()
    weight = torch.randn(2, 2, 3, 3)
    edges = 3 * 3 + 4 * 4

    def run() -> list[Tensor]:
        interval_attention(q, q, q, IntervalEdges.complete(pointers, pointers)).sum().backward()
        return [predictive_attention(q, q, q, pointers, q, q, weight)]

    found = cpu_bound.cost(run, repeats=2)
    assert found.exponentials == 2 * edges * (2 + 2)  # there and back; the last and its prediction
    assert found.products == 2 * edges * 2 * (10 + 25 + 5 + 5 + 9 * 2 + 5)
    assert found.operators > 0
    assert found.python > found.operators / 4
    assert len(found.seconds) == 2


@pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}")
def test_counts_the_gates_of_a_bilstm() -> None:
    lstm, pointers = torch.nn.LSTM(3, 4, bidirectional=True), Pointers.from_ptr(torch.tensor([0, 3, 7]))

    def run() -> list[Tensor]:
        bilstm([torch.randn(7, 3)], [list(lstm.parameters())], [pointers], backend="native")[0].sum().backward()
        return []

    assert cpu_bound.cost(run, repeats=1).exponentials == 7 * 2 * 4 * (5 + 1)  # three sigmoids, two tangents; one tangent going back


def test_the_bound_is_the_time_of_both_kinds_of_arithmetic() -> None:
    found = Cost(100, 1000, 4_000_000_000, 10_000_000, [0.5, 0.5, 0.5])
    best = Rates(products=100e9, exponentials=1e9, calls=1e6)
    assert found.bound(best) == 0.05
    assert cpu_bound.row("a pass", found, best) == "| a pass | 100 | 1,000 | 4 | 10 | 50 ms | 500 ms (500-500) | 10% | 0% |"


def test_rates_are_those_of_a_processor() -> None:
    best = cpu_bound.rates()
    assert 1e8 < best.products < 1e14
    assert 1e6 < best.exponentials < 1e13
    assert 1e3 < best.calls < 1e8
