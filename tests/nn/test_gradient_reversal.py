"""The gradient reversal is the identity forward and turns the gradient round backward."""

import pytest
import torch
from torch import nn

from mea_graph.nn import GradientReversal


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_identity_forward_negated_gradient_backward(scale: float) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y, cotangent = GradientReversal(scale)(x), torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    assert torch.equal(gradient, -scale * cotangent)


def test_what_follows_is_trained_and_what_precedes_is_trained_against() -> None:
    """The discriminator gets the gradient of its loss, the encoder the negated one."""
    encoder, discriminator = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    x, target = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])

    def gradients(between: nn.Module) -> list[torch.Tensor]:
        loss = nn.functional.cross_entropy(discriminator(between(encoder(x))), target)
        return list(torch.autograd.grad(loss, [encoder.weight, encoder.bias, discriminator.weight, discriminator.bias]))

    plain, turned = gradients(nn.Identity()), gradients(GradientReversal(0.5))
    for i in (0, 1):
        assert plain[i].any()
        torch.testing.assert_close(turned[i], -0.5 * plain[i], rtol=1e-12, atol=0)
    for i in (2, 3):
        assert torch.equal(turned[i], plain[i])


def test_compiles_into_one_graph() -> None:
    torch.compiler.reset()
    x = torch.randn(3, requires_grad=True)
    compiled = torch.compile(GradientReversal(2.0), fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
    assert gradient.tolist() == [-2, -2, -2]


@pytest.mark.parametrize("scale", [-1, float("nan"), float("inf")])
def test_a_scale_that_is_no_strength_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale: expected a finite number of at least 0, got {scale}"):
        GradientReversal(scale)
