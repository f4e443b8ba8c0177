"""Batched products over stacked weights: what they refuse, and dtypes under autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.grouped import grouped_layer_norm, grouped_linear

STARTS, SIZES = [0, 3, 6], [3, 3, 3]
FLOAT64 = torch.float64


def draw(dtype: torch.dtype = FLOAT64) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Rows, and weights and biases of each group."""
    return torch.randn(9, 4, dtype=dtype), [torch.randn(3, 4, dtype=dtype) for _ in SIZES], [torch.randn(3, dtype=dtype) for _ in SIZES]


def by_hand(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return torch.cat([F.linear(rows, w, b) for rows, w, b in zip(x.split(SIZES), weights, biases, strict=True)])


@pytest.mark.parametrize(
    ("starts", "sizes"), [([0, 3], [3, 3]), ([0, 0], [3, 3]), ([6], [3])], ids=["a piece in none", "one piece", "last"]
)
def test_pieces_that_no_group_reads_are_refused(starts: list[int], sizes: list[int]) -> None:
    x, weights, biases = (t if isinstance(t, Tensor) else t[: len(starts)] for t in draw())
    with pytest.raises(ValueError, match="cannot run on 'batched' here: the groups differ in size, or do not read each piece"):
        grouped_linear(x, weights, biases, starts, sizes, backend="batched")
    with pytest.raises(ValueError, match="cannot run on 'batched' here: the groups differ in size, or do not read each piece"):
        grouped_layer_norm(
            x, [torch.ones(4, dtype=FLOAT64)] * len(starts), [torch.ones(4, dtype=FLOAT64)] * len(starts), starts, sizes, backend="batched"
        )


def test_a_bias_takes_the_dtype_of_what_it_is_added_to_under_autocast() -> None:
    """A residual in bfloat16 meets biases that autocast has left in float32."""
    x, weights, biases = draw(torch.float32)
    onto = torch.randn(9, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = grouped_linear(x, weights, biases, STARTS, SIZES, onto=onto.clone(), backend="batched")
    assert found.dtype == torch.bfloat16
    expected = onto.double() + by_hand(x.double(), [w.double() for w in weights], [b.double() for b in biases])
    assert (found.double() - expected).abs().max() <= 0.02 * expected.abs().max()
