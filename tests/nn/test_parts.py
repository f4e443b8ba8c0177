"""MEA from parts: modules of one's own in the place of each, a model of one modality, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

from mea_graph.nn import MEA, DecoupledGraphFusion, ExclusiveBranch, MEALoss
from mea_graph.nn._parts import PARTS
from mea_graph.nn.model_options import PUBLISHED, RECOMMENDED

WIDTHS = {"text": 5, "audio": 3}
PTR = {"text": torch.tensor([0, 3, 5]), "audio": torch.tensor([0, 4, 4])}  # the second sample has no audio
SMALL: dict[str, Any] = {"channels": 8, "hidden_channels": 6, "heads": 2, "dropout": 0.0}


class Projection(nn.Module):
    """An extractor without any context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 8)

    def forward(self, x: Tensor, pointers: Any) -> Tensor:
        return self.linear(x)


def rows() -> dict[str, Tensor]:
    return {m: torch.randn(int(PTR[m][-1]), d) for m, d in WIDTHS.items()}


OWN: dict[str, Any] = {
    "extractor": lambda: nn.ModuleDict({m: Projection(d) for m, d in WIDTHS.items()}),
    "exclusive": lambda: ExclusiveBranch(8, 6, WIDTHS, heads=1, num_layers=1),
    "fusion": lambda: DecoupledGraphFusion(6, conv=SAGEConv, aggr="max"),
    "head": lambda: nn.Linear(12, 2),
}


@pytest.mark.parametrize("part", OWN)
def test_a_module_of_ones_own_is_used_and_trained(part: str) -> None:
    own = OWN[part]()
    model = MEA(WIDTHS, 2, **SMALL, **{part: own})
    assert any(child is own for child in model.children())
    output = model(rows(), PTR)
    assert output.prediction.shape == (2, 2)
    MEALoss("classification")(output, torch.tensor([0, 1])).total.backward()
    assert any(p.grad is not None and p.grad.any() for p in own.parameters())


def test_an_extractor_of_ones_own_gives_what_the_branches_read() -> None:
    model = MEA(WIDTHS, 2, **SMALL, extractor=OWN["extractor"]())
    x = rows()
    graph = model.embed(x, PTR)
    torch.testing.assert_close(graph["text"].x, model.extractors["text"].linear(x["text"]))


def test_one_modality_alone() -> None:
    model = MEA({"audio": 3}, 1, **SMALL, agnostic=None, discriminator=None)
    output = model({"audio": torch.randn(5, 3)}, {"audio": torch.tensor([0, 2, 5])})
    MEALoss("regression")(output, torch.randn(2)).total.backward()
    assert output.prediction.shape == (2, 1)
    assert all(p.grad is not None for p in model.parameters())


def test_options_that_are_not_named_keep_their_recommended_values() -> None:
    model = MEA(WIDTHS, 1, **SMALL, exclusive={"num_layers": 2})
    assert model.exclusive.attention.num_layers == 2
    assert model.exclusive.encoders["text"].pooling == RECOMMENDED["exclusive"]["pooling"]
    assert MEA(WIDTHS, 1, dropout=0.25).exclusive.encoders["text"].dropout.p == 0.25
    assert MEA(WIDTHS, 1, dropout=0.25, exclusive={"dropout": 0.5}).exclusive.encoders["text"].dropout.p == 0.5


def test_both_forms_name_the_same_options_so_that_none_of_the_other_is_left() -> None:
    for part in PARTS:
        assert set(RECOMMENDED[part]) == set(PUBLISHED[part]), part


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclusive": {"poling": "gru"}}, r"exclusive: expected options of ExclusiveBranch, .*got 'poling' \(did you mean 'pooling'\?\)"),
        ({"agnostic": {"channels": 4}}, "agnostic: expected options of AgnosticBranch, .*got 'channels'"),
        ({"head": 3}, "head: expected a dict of options of PredictionHead, a module or None, got 3"),
        ({"exclusive": {"num_layers": 1.5}}, "exclusive.num_layers: expected int, got 1.5"),
        ({"agnostic": {"coarse": 1}}, "agnostic.coarse: expected bool, got 1"),
        ({"fusion": {"self_loop": True}}, "fusion: expected options of DecoupledGraphFusion, .*self_loops, got 'self_loop'"),
    ],
)
def test_options_of_no_part_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        MEA(WIDTHS, 1, **SMALL, **options)
