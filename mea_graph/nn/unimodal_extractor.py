"""From a raw modality to the common width, [MEA] Eq. 1."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mea_graph.nn._recurrent import LSTM, both_ways
from mea_graph.nn._sequences import check_prefix, check_sequence, check_sizes, zero_padding


def sinusoidal_positions(length: int, channels: int, like: Tensor) -> Tensor:
    """Sinusoidal position embedding (Vaswani et al. 2017, section 3.5), (length, channels), of the type and device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)  # in half precision the sine of a long sequence's angle means nothing
    position = torch.arange(length, device=like.device, dtype=dtype).unsqueeze(1)
    half = (channels + 1) // 2
    rate = torch.exp(torch.arange(half, device=like.device, dtype=dtype) * (-math.log(10000) * 2 / channels))  # 10000^(-2i/d)
    angle = position * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :channels].to(like.dtype)


class UnimodalExtractor(nn.Module):
    r"""Convolution, position embedding and Bi-LSTM: brings one modality to the common width ([MEA] Eq. 1).

    .. math:: Z = \mathrm{BiLSTM}\big(\mathrm{Conv1d}(X) + \mathrm{PE}\big)

    The two directions are two plain LSTMs; the second reads each sequence reversed within its own length.

    Args:
        in_channels: Width of the raw features.
        channels: Common width d; even, since each direction gives d / 2.
        kernel_size: Of the convolution, "same" padding.
        stride: Of the convolution; above 1 it shortens long signals: T becomes ceil(T / stride) (`output_mask`). The paper has 1.
        skip: Whether the LSTM's input is added to its output. The paper has no such path; with it, what a single step shows reaches the
            attention unmixed, and matching steps across modalities is learned many times faster.
        dropout: Probability, on the convolution's output.

    Shape:
        - x: :math:`(B, T, d_m)`; mask: :math:`(B, T)`, bool, real steps first
        - result: :math:`(B, \lceil T / \mathrm{stride} \rceil, d)`, zeros in the padding

    Raises:
        ValueError: Odd `channels`, a size below 1, a wrong shape, or a mask with padding before real steps (checked on the CPU only).

    >>> import torch
    >>> layer = UnimodalExtractor(300, 40)
    >>> mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    >>> layer(torch.randn(2, 6, 300), mask).shape
    torch.Size([2, 6, 40])
    """

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int = 3, stride: int = 1, skip: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels: expected an even number, half for each LSTM direction, got {channels}")
        check_sizes(in_channels=in_channels, kernel_size=kernel_size, stride=stride)
        self.in_channels, self.channels, self.kernel_size, self.stride, self.skip = in_channels, channels, kernel_size, stride, skip
        self.conv = nn.Conv1d(in_channels, channels, kernel_size, stride)
        self.forward_lstm = LSTM(channels, channels // 2)
        self.backward_lstm = LSTM(channels, channels // 2)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.conv.reset_parameters()
        self.forward_lstm.reset_parameters()
        self.backward_lstm.reset_parameters()

    def output_mask(self, mask: Tensor) -> Tensor:
        """The mask of the result: `mask` itself unless `stride` > 1."""
        return mask[:, :: self.stride]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the sequence at the common width."""
        x, mask = check_sequence(x, mask, self.in_channels)
        check_prefix(mask, "mask")
        if x.size(1) == 0:
            return F.linear(x, self.conv.weight[..., 0])  # as empty as x, and a gradient can flow
        left = (self.kernel_size - 1) // 2
        z = self.conv(F.pad(x.mT, (left, self.kernel_size - 1 - left))).mT  # (B, T, d)
        mask = self.output_mask(mask)
        z = self.dropout(z + sinusoidal_positions(z.size(1), self.channels, z))
        out = both_ways(self.forward_lstm, self.backward_lstm, z, mask)
        return zero_padding(out + z if self.skip else out, mask)
