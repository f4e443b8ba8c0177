"""From the fused vector to the prediction."""

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.nn._dropout import make_dropout
from mea_graph.nn._sequences import check_dtype, check_sizes, weight_dtype


class PredictionHead(nn.Sequential):
    r"""A perceptron with one hidden layer on the fused vector, optionally normalised first.

    .. math:: \hat y = W_2 \, \mathrm{GELU}(W_1 \, \mathrm{LN}(h_{fin}) + b_1) + b_2

    Args:
        in_channels: Width of the fused vector.
        hidden_channels: Width of the hidden layer.
        out_channels: Number of predicted values.
        norm: Whether to normalise the fused vector. Early in training the sum of sigmoids of Eq. 19 hardly differs from M / 2; the norm
            enlarges the differences and makes training far faster. The paper has none.
        dropout: Probability, before the last layer.

    Shape:
        - input: :math:`(B, C_{in})`; output: :math:`(B, C_{out})`

    Raises:
        ValueError: If a size is below 1.
        TypeError: If the fused vector has another dtype than the weights.

    >>> import torch
    >>> PredictionHead(128, 64, 3, norm=True)(torch.randn(5, 128)).shape
    torch.Size([5, 3])
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, norm: bool = False, dropout: float = 0.0) -> None:
        check_sizes(in_channels=in_channels, hidden_channels=hidden_channels, out_channels=out_channels)
        super().__init__(
            nn.LayerNorm(in_channels) if norm else nn.Identity(),
            nn.Linear(in_channels, hidden_channels),
            nn.GELU(),
            make_dropout(dropout),
            nn.Linear(hidden_channels, out_channels),
        )

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for part in self:
            reset(part)

    def forward(self, input: Tensor) -> Tensor:
        """Returns the prediction."""
        if not torch.jit.is_scripting() and isinstance(input, Tensor):  # type: ignore[attr-defined]
            check_dtype(input, weight_dtype(self, "1"), "input")
        for part in self:  # TorchScript knows no `super`
            input = part(input)
        return input
