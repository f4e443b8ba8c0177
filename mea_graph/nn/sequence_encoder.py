"""From a sequence to one vector: the exclusive and the agnostic encoder, [MEA] Eq. 11-12."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.nn._recurrent import GRU, both_ways
from mea_graph.nn._sequences import check_prefix, check_sequence, check_sizes


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real steps, (B, T, d) -> (B, d); zeros where there is none."""
    total = x.masked_fill(~mask.unsqueeze(-1), 0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1).to(x.dtype)


def segment_means(x: Tensor, mask: Tensor, segments: int) -> Tensor:
    """Means over equal, ordered parts of each sequence's real steps, (B, T, d) -> (B, segments * d); an empty part gives zeros."""
    length = mask.sum(1, keepdim=True)  # (B, 1)
    step = torch.arange(x.size(1), device=x.device)
    part = (step * segments).div(length.clamp(min=1), rounding_mode="floor")  # (B, T), below `segments` at real steps
    member = (part.unsqueeze(1) == torch.arange(segments, device=x.device)[:, None]) & mask.unsqueeze(1)  # (B, S, T)
    share = member.to(x.dtype) / member.sum(-1, keepdim=True).clamp(min=1).to(x.dtype)
    return (share @ x).flatten(1)


class ExclusiveEncoder(nn.Module):
    r"""Pools a sequence and maps it to the representation width: one instance per modality ([MEA] Eq. 11).

    .. math:: h = W_2 \, \mathrm{GELU}(W_1 \, \mathrm{pool}_t(z_t) + b_1) + b_2

    Args:
        channels: Width d of the sequence.
        out_channels: Width d_h of the representation.
        pooling: "mean" over the real steps (R5); "segments": means of `segments` equal parts in order, which keeps a coarse order; "max";
            "gru": the mean over the states of a Bi-GRU, `out_channels` wide in each direction, which carries the order along.
        segments: Number of parts, at least 1, with `pooling="segments"`.
        dropout: Probability, between the two layers.

    Shape:
        - x: :math:`(B, T, d)`; mask: :math:`(B, T)`, bool; with "gru" real steps first
        - result: :math:`(B, d_h)`, zeros for a sample without a real step

    Raises:
        ValueError: A wrong shape, a size below 1, an unknown pooling, or a mask with padding before real steps (with "gru", checked on the
            CPU only).

    >>> import torch
    >>> ExclusiveEncoder(40, 64)(torch.randn(2, 9, 40)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        pooling: Literal["mean", "segments", "max", "gru"] = "mean",
        segments: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "segments", "max", "gru"):
            raise ValueError(f"pooling: expected 'mean', 'segments', 'max' or 'gru', got {pooling!r}")
        check_sizes(channels=channels, out_channels=out_channels, segments=segments)
        self.channels, self.out_channels, self.pooling, self.segments = channels, out_channels, pooling, segments
        self.forward_gru = self.backward_gru = None
        if pooling == "gru":
            self.forward_gru, self.backward_gru = GRU(channels, out_channels), GRU(channels, out_channels)
        width = {"segments": segments * channels, "gru": 2 * out_channels}.get(pooling, channels)
        self.hidden = nn.Linear(width, out_channels)
        self.out = nn.Linear(out_channels, out_channels)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for part in (self.forward_gru, self.backward_gru, self.hidden, self.out):
            reset(part)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns one vector per sample."""
        x, mask = check_sequence(x, mask, self.channels)
        present = mask.any(1, keepdim=True)
        if self.pooling == "mean":
            pooled = masked_mean(x, mask)
        elif self.pooling == "segments":
            pooled = segment_means(x, mask, self.segments)
        elif self.forward_gru is not None and self.backward_gru is not None:
            check_prefix(mask, "mask")
            if x.size(1) == 0:  # a GRU refuses it
                pooled = x.new_zeros(x.size(0), self.hidden.in_features)
            else:
                pooled = masked_mean(both_ways(self.forward_gru, self.backward_gru, x, mask), mask)
        else:
            lowest = torch.finfo(x.dtype).min
            filled = torch.cat([x.masked_fill(~mask.unsqueeze(-1), lowest), x.new_full((x.size(0), 1, x.size(2)), lowest)], 1)
            pooled = filled.amax(1).masked_fill(~present, 0)  # the extra step makes T = 0 legal
        h = self.out(self.dropout(self.activation(self.hidden(pooled))))
        return h.masked_fill(~present, 0)


class AgnosticEncoder(ExclusiveEncoder):
    r"""Pools a sequence and maps it to the representation width: ONE instance for all modalities ([MEA] Eq. 12).

    The arithmetic is that of `ExclusiveEncoder`; what makes a representation agnostic is that every modality passes through the same
    weights and that the `DoubleDiscriminator` works against telling them apart.

    Args:
        channels, out_channels, pooling, segments, dropout: As for `ExclusiveEncoder`.

    Shape:
        - x: :math:`(B, T, d)`; mask: :math:`(B, T)`, bool
        - result: :math:`(B, d_h)`, zeros for a sample without a real step

    Raises:
        ValueError: As for `ExclusiveEncoder`.

    >>> import torch
    >>> encoder = AgnosticEncoder(40, 64)
    >>> [encoder(torch.randn(2, length, 40)).shape for length in (50, 375)]
    [torch.Size([2, 64]), torch.Size([2, 64])]
    """
