"""`torch.compile` of a whole training step, loss included: the eager losses and gradients, from one graph."""

import pytest
import torch
from torch import Tensor

from mea_graph.nn import MEA, MEALoss

LENGTHS = {"audio": [5, 2, 0], "vision": [3, 6, 4]}


@pytest.mark.slow
def test_equals_the_eager_step() -> None:
    torch.compiler.reset()
    mask = {m: torch.arange(max(n)) < torch.tensor(n)[:, None] for m, n in LENGTHS.items()}
    x = {m: torch.randn(*v.shape, 3).double() for m, v in mask.items()}
    model = MEA(dict.fromkeys(LENGTHS, 3), 1, channels=4, hidden_channels=4, heads=2, dropout=0.0, exclusive={"num_layers": 2})
    model, loss, target = model.double(), MEALoss("regression", alpha=0.5, beta=0.5), torch.randn(3).double()

    def step(x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
        return list(loss(model(x, mask), target))

    results = []
    for f in (step, torch.compile(step, backend="eager", fullgraph=True)):
        model.zero_grad()
        terms = f(x, mask)
        terms[0].backward()
        results.append((terms, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0])
