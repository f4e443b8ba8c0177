"""Batched products over weights that are stacked once for several calls: which lists may share a copy, and for how long."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mea_graph.ops.grouped import batched, grouped_layer_norm, grouped_linear, stacked_together

STARTS, SIZES = [0, 3, 6], [3, 3, 3]
FLOAT64 = torch.float64


def draw(dtype: torch.dtype = FLOAT64) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Rows, and weights and biases of each group."""
    return torch.randn(9, 4, dtype=dtype), [torch.randn(3, 4, dtype=dtype) for _ in SIZES], [torch.randn(3, dtype=dtype) for _ in SIZES]


def by_hand(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return torch.cat([F.linear(rows, w, b) for rows, w, b in zip(x.split(SIZES), weights, biases, strict=True)])


def test_a_copy_ends_with_its_block() -> None:
    """An optimiser changes weights in their place: a copy of before must serve no later call, in this block or after an error."""
    x, weights, biases = draw()
    for fails in (False, True):
        try:
            with stacked_together([weights, biases]):
                found = grouped_linear(x, weights, biases, STARTS, SIZES, backend="batched")
                torch.testing.assert_close(found, by_hand(x, weights, biases), rtol=1e-12, atol=1e-13)
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert batched._TOGETHER.get() is None
        for tensor in (*weights, *biases):
            tensor.add_(1)
        found = grouped_linear(x, weights, biases, STARTS, SIZES, backend="batched")
        torch.testing.assert_close(found, by_hand(x, weights, biases), rtol=1e-12, atol=1e-13)


def test_a_block_inside_a_block_gives_way_to_it_again() -> None:
    x, weights, biases = draw()
    with stacked_together([weights, biases]):
        outer = batched._TOGETHER.get()
        with stacked_together([]):
            grouped_linear(x, weights, biases, STARTS, SIZES, backend="batched")
        assert batched._TOGETHER.get() is outer
        assert outer is not None
        assert not outer.made
        grouped_linear(x, weights, biases, STARTS, SIZES, backend="batched")
        assert len(outer.made) == 2


@pytest.mark.parametrize("first", [torch.float32, FLOAT64])
def test_lists_of_two_types_have_no_copy_in_common(first: torch.dtype) -> None:
    """Joined, both would be of the wider type."""
    of = {dtype: draw(dtype) for dtype in (torch.float32, FLOAT64)}
    kinds = [kind for _, *own in sorted(of.values(), key=lambda own: own[0].dtype != first) for kind in own]
    with stacked_together(kinds):
        for dtype, given in of.items():
            found = grouped_linear(*given, STARTS, SIZES, backend="batched")
            assert found.dtype == dtype
            torch.testing.assert_close(found, by_hand(*given))


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
