"""The traced LSTM is torch's own: the same draw, values and gradients."""

import pytest
import torch
from torch import Tensor, nn

from mea_graph.nn._lstm import LSTM, OPERATOR


@pytest.fixture
def inputs() -> list[Tensor]:
    """A batch and the parameters of a layer."""
    tensors = [torch.randn(3, 7, 6), *LSTM(6, 4).parameters()]
    return [t.detach().double().requires_grad_() for t in tensors]


def test_one_seed_draws_the_weights_of_torch() -> None:
    layers = []
    for build in (LSTM, nn.LSTM):
        torch.manual_seed(3)
        layers.append(build(6, 4).state_dict())
    torch.testing.assert_close(*layers, rtol=0, atol=0)


def test_equals_torch_in_values_and_gradients(inputs: list[Tensor]) -> None:
    theirs = nn.LSTM(6, 4, batch_first=True).double()
    with torch.no_grad():
        for mine, parameter in zip(inputs[1:], theirs.parameters(), strict=True):
            parameter.copy_(mine)
    expected, actual = theirs(inputs[0])[0], OPERATOR(*inputs)
    assert torch.equal(actual, expected)
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [inputs[0], *theirs.parameters()], cotangent)
    for found, grad in zip(torch.autograd.grad(actual, inputs, cotangent), wanted, strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-12, atol=1e-12)


def test_operator_keeps_the_rules_of_torch_library(inputs: list[Tensor]) -> None:
    torch.library.opcheck(OPERATOR, inputs)


def test_empty_batch(inputs: list[Tensor]) -> None:
    assert OPERATOR(inputs[0][:0], *inputs[1:]).shape == (0, 7, 4)
