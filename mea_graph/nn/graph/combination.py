"""Fusing without a graph: the alternatives of [MEA] Table V."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mea_graph.nn._sequences import check_keys, check_modalities, check_sizes

COMBINATIONS = ("concatenation", "addition", "multiplication")


class Combination(nn.Module):
    """Concatenates, adds or multiplies the representations of the modalities ([MEA] Table V); it has no parameter.

    A missing modality is zeros in a concatenation or a sum, and ones in a product, whatever `x` holds there.

    Args:
        how: "concatenation", "addition" or "multiplication".
        channels: Width d_h of the representations.
        modalities: Names of the modalities.

    Shape:
        - x: dict of :math:`(B, d_h)`; present: dict of :math:`(B,)`, bool
        - result: :math:`(B, d_h)`, or :math:`(B, M d_h)` of a concatenation

    Raises:
        ValueError: If `how` is unknown, a shape is wrong, or the modalities are not those named.

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
        check_keys(present, self.modalities, "present")
        samples = x[self.modalities[0]].size(0)
        for m in self.modalities:
            if x[m].shape != (samples, self.channels):
                raise ValueError(f"x[{m!r}]: expected {(samples, self.channels)}, got {tuple(x[m].shape)}")
            if present[m].shape != (samples,) or present[m].dtype != torch.bool:
                raise ValueError(f"present[{m!r}]: expected bool {(samples,)}, got {present[m].dtype} {tuple(present[m].shape)}")
        instead = 1 if self.how == "multiplication" else 0
        parts = [x[m].masked_fill(~present[m].unsqueeze(1), instead) for m in self.modalities]
        if self.how == "concatenation":
            return torch.cat(parts, 1)
        return torch.stack(parts).sum(0) if self.how == "addition" else torch.stack(parts).prod(0)
