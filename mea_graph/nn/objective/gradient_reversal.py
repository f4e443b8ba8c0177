"""Identity forward, negated gradient backward (Ganin and Lempitsky 2015)."""

import math
from typing import Any

import torch
from torch import Tensor, nn


class _Reverse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * -ctx.scale, None


class GradientReversal(nn.Module):
    r"""Reverses the gradient: layers behind it learn to lower the loss, layers before it to raise it.

    .. math:: y = x, \qquad \partial L / \partial x = -\lambda \, \partial L / \partial y

    Args:
        scale: :math:`\lambda`, finite and at least 0.

    Shape:
        - x: any; result: the same

    Raises:
        ValueError: If the scale is out of its range.

    >>> import torch
    >>> x = torch.ones(2, requires_grad=True)
    >>> GradientReversal(0.5)(x).sum().backward()
    >>> x.grad
    tensor([-0.5000, -0.5000])
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 <= scale < math.inf:
            raise ValueError(f"scale: expected a finite number of at least 0, got {scale}")
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x`."""
        return _Reverse.apply(x, self.scale)
