"""The door of sequence layers: what comes in, and what goes out."""

import pytest
import torch

from mea_graph.nn._sequences import Entered, enter
from mea_graph.ops.pointers import Pointers

MASK = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])


def test_what_leaves_is_zero_in_the_padding_where_rows_kept_their_gaps():
    """On a GPU, and while a graph is recorded: layers leave anything in the gaps, NaN even."""
    x = torch.arange(1.0, 19).view(9, 2)
    left = Entered(torch.where(MASK.view(9, 1), x, torch.nan), Pointers.from_mask(MASK), (3, 3), None).leave(x)
    assert torch.equal(left, torch.where(MASK.unsqueeze(-1), x.view(3, 3, 2), 0.0))
    assert torch.equal(Entered(x, Pointers.full(3, 3, x.device), (3, 3), None).leave(x), x.view(3, 3, 2))


@pytest.mark.parametrize("mask", [[True, False, True], [False, True, True], [False, True, False], [False, False, True]])
def test_a_gap_of_any_width_is_refused(mask):
    with pytest.raises(ValueError, match=r"x: expected a mask that is True at real steps, .* got a gap in row 1"):
        enter(torch.ones(2, 3, 4), torch.tensor([[True, False, False], mask]), 4)
