"""Fusing without a graph: the alternatives of [MEA] Table V."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mea_graph.nn._sequences import check_keys, check_modalities, check_sizes

COMBINATIONS = ("concatenation", "addition", "multiplication")


class Combination(nn.Module):
    """Concatenates, adds or multiplies the representations of the modalities ([MEA] Table V); it has no parameter.

    A missing modality is zeros in a concatenation or a sum, and ones in a product.

    Args:
        how: "concatenation", "addition" or "multiplication".
        channels: Width d_h of the representations.
        modalities: Names of the modalities.

    Shape:
        - x: dict of :math:`(B, d_h)`, zeros where a modality is missing; present: dict of :math:`(B,)`, bool
        - result: :math:`(B, d_h)`, or :math:`(B, M d_h)` of a concatenation

    Raises:
        ValueError: If `how` is unknown, or the modalities are not those named.

    >>> import torch
    >>> x, present = (
    ...     {"a": torch.full((1, 2), 3.0), "b": torch.full((1, 2), 4.0)},
    ...     dict.fromkeys("ab", torch.tensor([True])),
    ... )
    >>> Combination("multiplication", 2, ["a", "b"])(x, present)
    tensor([[12., 12.]])
    """

    def __init__(self, how: Literal["concatenation", "addition", "multiplication"], channels: int, modalities: Iterable[str]) -> None:
        super().__init__()
        if how not in COMBINATIONS:
            raise ValueError(f"how: expected 'concatenation', 'addition' or 'multiplication', got {how!r}")
        check_sizes(channels=channels)
        self.how, self.channels, self.modalities = how, channels, check_modalities(modalities)
        self.out_channels = channels * (len(self.modalities) if how == "concatenation" else 1)

    def forward(self, x: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns one vector per sample."""
        check_keys(x, self.modalities, "x")
        if self.how == "concatenation":
            return torch.cat([x[m] for m in self.modalities], 1)
        if self.how == "addition":
            return torch.stack([x[m] for m in self.modalities]).sum(0)
        return torch.stack([x[m].masked_fill(~present[m].unsqueeze(1), 1) for m in self.modalities]).prod(0)
