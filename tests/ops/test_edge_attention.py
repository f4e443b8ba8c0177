"""The edge attention of Eq. 18-19 against a loop over the edges of each node."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.ops import edge_attention

H, C, N_SRC, N_DST = 2, 3, 4, 5
EDGES = torch.tensor([[0, 3, 1, 1, 2, 0, 3], [1, 1, 0, 4, 1, 4, 3]])  # bipartite, unsorted; destination 2 hears nobody


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {
        "x": torch.randn(N_SRC, H, C, dtype=torch.float64),
        "score_dst": torch.randn(N_DST, H, dtype=torch.float64),
        "score_src": torch.randn(N_SRC, H, dtype=torch.float64),
    }


def loop(x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.zeros(score_dst.size(0), *x.shape[1:], dtype=torch.float64)
    weights = torch.zeros(edge_index.size(1), x.size(1), dtype=torch.float64)
    edges = list(enumerate(edge_index.T.tolist()))
    for i in range(score_dst.size(0)):
        for h in range(x.size(1)):
            scores = {}
            for e, (s, t) in edges:
                if t == i:
                    delta = score_dst[i, h].item() + score_src[s, h].item()
                    scores[e] = math.exp(delta * 0.5 * (1 + math.erf(delta / math.sqrt(2))))
            for e, (s, _) in edges:
                if e in scores:
                    weights[e, h] = scores[e] / sum(scores.values())
                    out[i, h] += weights[e, h] * x[s, h]
    return out, weights


@pytest.mark.parametrize(
    "edge_index",
    [EDGES, EDGES[:, :1], EDGES[:, :0], torch.cat([EDGES, EDGES[:, :2], EDGES[:, :1]], 1)],
    ids=["bipartite", "one edge", "no edge", "parallel edges"],
)
def test_equals_the_loop(inputs: dict[str, Tensor], edge_index: Tensor) -> None:
    for actual, expected in zip(edge_attention(**inputs, edge_index=edge_index), loop(**inputs, edge_index=edge_index), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_the_weights_of_a_node_sum_to_one(inputs: dict[str, Tensor]) -> None:
    _, weights = edge_attention(**inputs, edge_index=EDGES)
    for i in EDGES[1].unique().tolist():
        torch.testing.assert_close(weights[EDGES[1] == i].sum(0), torch.ones(H, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_node_that_hears_nobody_gets_zeros(inputs: dict[str, Tensor]) -> None:
    out, _ = edge_attention(**inputs, edge_index=EDGES)
    assert not out[2].any()
    assert all(out[i].any() for i in (0, 1, 3, 4))


def test_the_order_of_the_edges_does_not_matter(inputs: dict[str, Tensor]) -> None:
    order = torch.randperm(EDGES.size(1))
    out, weights = edge_attention(**inputs, edge_index=EDGES)
    turned_out, turned_weights = edge_attention(**inputs, edge_index=EDGES[:, order])
    torch.testing.assert_close(turned_out, out, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(turned_weights, weights[order], rtol=1e-12, atol=1e-14)


def test_gradcheck(inputs: dict[str, Tensor]) -> None:
    leaves = tuple(v.requires_grad_() for v in inputs.values())
    assert torch.autograd.gradcheck(lambda *tensors: edge_attention(*tensors, EDGES), leaves)


def test_large_scores_do_not_overflow(inputs: dict[str, Tensor]) -> None:
    out, weights = edge_attention(**(inputs | {"score_dst": inputs["score_dst"] * 0 + 1e6}), edge_index=EDGES)
    assert out.isfinite().all()
    torch.testing.assert_close(weights[EDGES[1] == 1].sum(0), torch.ones(H, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(N_SRC, C)}, r"x: expected \(N, H, C\), got \(4, 3\)"),
        ({"score_src": torch.zeros(N_DST, H)}, r"score_src: expected \(4, 2\), got \(5, 2\)"),
        ({"score_dst": torch.zeros(N_DST, H + 1)}, r"score_dst: expected \(N, 2\), got \(5, 3\)"),
        ({"edge_index": EDGES.T}, r"edge_index: expected integers \(2, E\), got torch.int64 \(7, 2\)"),
        ({"edge_index": EDGES.double()}, r"edge_index: expected integers \(2, E\), got torch.float64 \(2, 7\)"),
    ],
)
def test_bad_input_is_named(inputs: dict[str, Tensor], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edge_attention(**({**inputs, "edge_index": EDGES} | change))
