"""The traced LSTM and GRU are torch's own: the same draw, values and gradients."""

import pytest
import torch
from torch import Tensor, nn

from mea_graph.nn._recurrent import GRU, LSTM
from mea_graph.ops.recurrent.layers import GRU_OPERATOR, LSTM_OPERATOR

LAYERS = {"lstm": (LSTM, nn.LSTM, LSTM_OPERATOR), "gru": (GRU, nn.GRU, GRU_OPERATOR)}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS)
def layer(request: pytest.FixtureRequest) -> tuple:
    """Ours, torch's, the operator."""
    return request.param


@pytest.fixture
def inputs(layer: tuple) -> list[Tensor]:
    """A batch and the parameters of a layer."""
    tensors = [torch.randn(3, 7, 6), *layer[0](6, 4).parameters()]
    return [t.detach().double().requires_grad_() for t in tensors]


def test_one_seed_draws_the_weights_of_torch(layer: tuple) -> None:
    layers = []
    for build in layer[:2]:
        torch.manual_seed(3)
        layers.append(build(6, 4).state_dict())
    torch.testing.assert_close(*layers, rtol=0, atol=0)


def test_equals_torch_in_values_and_gradients(layer: tuple, inputs: list[Tensor]) -> None:
    ours, theirs = layer[0](6, 4).double(), layer[1](6, 4, batch_first=True).double()
    for module in (ours, theirs):
        for mine, parameter in zip(inputs[1:], module.parameters(), strict=True):
            parameter.data.copy_(mine)
    expected, actual = theirs(inputs[0])[0], layer[2](*inputs)
    assert torch.equal(actual, expected)
    assert torch.equal(ours(inputs[0]), expected)
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [inputs[0], *theirs.parameters()], cotangent)
    for found, grad in zip(torch.autograd.grad(actual, inputs, cotangent), wanted, strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-12, atol=1e-12)


def test_operator_keeps_the_rules_of_torch_library(layer: tuple, inputs: list[Tensor]) -> None:
    torch.library.opcheck(layer[2], inputs)


def test_operator_takes_a_narrower_input(layer: tuple, inputs: list[Tensor]) -> None:
    """As under autocast: computed in the parameters' type, returned in the input's, as is its gradient."""
    x, *weights = inputs
    narrow = x.detach().float().requires_grad_()
    out = layer[2](narrow, *weights)
    torch.testing.assert_close(out, layer[2](narrow.double(), *weights).float(), rtol=0, atol=0)
    grads = torch.autograd.grad(out.sum(), [narrow, *weights])
    assert [g.dtype for g in grads] == [torch.float32] + [torch.float64] * 4


def test_empty_batch(layer: tuple, inputs: list[Tensor]) -> None:
    assert layer[2](inputs[0][:0], *inputs[1:]).shape == (0, 7, 4)


def test_transforms_see_the_steps(layer: tuple, inputs: list[Tensor]) -> None:
    """Per-sample gradients, an ensemble, and forward-mode derivatives: equal to torch's own, one by one."""
    ours = layer[0](6, 4).double()
    names = [name for name, _ in ours.named_parameters()]
    x, own = inputs[0].detach(), dict(zip(names, (t.detach() for t in inputs[1:]), strict=True))

    def call(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(ours, parameters, (x,))

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return call(parameters, x.unsqueeze(0)).sin().sum()

    found = torch.func.vmap(torch.func.grad_and_value(loss), in_dims=(None, 0))(own, x)
    for b in range(len(x)):
        leaves = {name: p.clone().requires_grad_() for name, p in own.items()}
        value = loss(leaves, x[b])
        torch.testing.assert_close(found[1][b], value.detach(), rtol=1e-10, atol=1e-12)
        for name, grad in zip(names, torch.autograd.grad(value, list(leaves.values())), strict=True):
            torch.testing.assert_close(found[0][name][b], grad, rtol=1e-10, atol=1e-12)
    more = {name: torch.stack([p, 2 * p, -p]) for name, p in own.items()}
    one_by_one = [call({name: p[i] for name, p in more.items()}, x) for i in range(3)]
    torch.testing.assert_close(torch.func.vmap(call, in_dims=(0, None))(more, x), torch.stack(one_by_one), rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(x)
    _, along = torch.func.jvp(lambda t: call(own, t).sin().sum(), (x,), (direction,))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(call(own, leaf).sin().sum(), leaf)
    torch.testing.assert_close(along, (grad * direction).sum(), rtol=1e-10, atol=1e-12)
