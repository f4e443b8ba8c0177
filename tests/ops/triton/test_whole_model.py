"""The whole model and its loss as a GPU would compute them, with every Triton kernel interpreted, against float64 on the plain way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from mea_graph.nn import MEA, MEALoss, _side_by_side
from mea_graph.ops import record_calls, use_backend

CHANNELS = {"text": 5, "audio": 3, "vision": 4}
LENGTHS = {"text": [3, 0, 2], "audio": [0, 0, 4], "vision": [5, 2, 0]}
KERNELS = ("bilstm", "predictive_attention", "interval_attention", "grouped_linear", "grouped_layer_norm")
Errors = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, float]]


@contextmanager
def on_a_device() -> Iterator[None]:
    """Here, but as it would run there: modalities of equal size, few launches, and Triton, which raises where it cannot run."""
    levels = patch.object(_side_by_side, "_levels", lambda device, added: added > 0)
    launches = patch.object(_side_by_side, "_launches", lambda device: True)
    with levels, launches, use_backend("triton"), record_calls() as calls:
        yield
    assert {op for op, backend in calls if backend == "triton"} == set(KERNELS)
    assert not [call for call in calls if call[0] in KERNELS and call[1] != "triton"]


def outcome(network: MEA, dtype: torch.dtype, padded: bool) -> dict[str, Tensor]:
    """Predictions, loss and the gradients of inputs and weights."""
    draw = torch.Generator().manual_seed(1)
    rows = {m: torch.randn(sum(n), CHANNELS[m], dtype=torch.float64, generator=draw).to(dtype) for m, n in LENGTHS.items()}
    leaves = {m: x.clone().requires_grad_() for m, x in rows.items()}
    if padded:
        mask = {m: torch.arange(max(n) + 1) < torch.tensor(n)[:, None] for m, n in LENGTHS.items()}
        x = {m: leaves[m].new_zeros(*mask[m].shape, CHANNELS[m]).masked_scatter(mask[m].unsqueeze(2), leaves[m]) for m in leaves}
        output = network(x, mask)
    else:
        output = network(leaves, {m: torch.tensor([0, *n]).cumsum(0) for m, n in LENGTHS.items()})
    target = torch.linspace(-1, 1, len(LENGTHS["text"]), dtype=dtype)
    total = MEALoss("regression").to(target)(output, target).total
    parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
    total.backward(inputs=[*leaves.values(), *parameters.values()])
    found = {"prediction": output.prediction.detach(), "loss": total.detach(), **{m: x.grad for m, x in leaves.items()}}
    every = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values()]
    network.zero_grad()
    return {n: t for n, t in found.items() if t is not None} | {"weights": torch.cat([g.flatten() for g in every])}


@pytest.mark.parametrize("padded", [False, True], ids=["rows", "padded"])
@pytest.mark.usefixtures("coarse_tiles")
@pytest.mark.filterwarnings("ignore:divide by zero encountered in log2")  # minus infinity, as it should be
def test_equals_float64(padded: bool, errors: Errors) -> None:
    layers = {"exclusive": {"num_layers": 2}, "agnostic": {"num_layers": 1}}  # the interpreter's time goes with the launches
    network = MEA.published(CHANNELS, 1, channels=8, hidden_channels=6, heads=2, **layers).eval()
    with on_a_device():
        found = outcome(network, torch.float32, padded)
    expected = outcome(network.double(), torch.float64, padded)
    assert not {n: e for n, e in errors(found, expected).items() if not e < 1e-5}
