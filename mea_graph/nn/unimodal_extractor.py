"""From a raw modality to the common width, [MEA] Eq. 1."""

import math
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mea_graph.nn._batches import read_time
from mea_graph.nn._dropout import make_dropout
from mea_graph.nn._recurrent import LSTM, op_of_both
from mea_graph.nn._sequences import Entered, Layout, check_sizes, enter, weight_dtype
from mea_graph.nn._side_by_side import is_watched, levels
from mea_graph.ops import Pointers
from mea_graph.ops.eager import is_traced
from mea_graph.ops.recurrent import bilstm
from mea_graph.ops.recurrent.layers import both_ways


def sinusoidal_positions(length: int, channels: int, like: Tensor) -> Tensor:
    """Sinusoidal position embedding (Vaswani et al. 2017, section 3.5), (length, channels), of the type and device of `like`."""
    dtype = torch.promote_types(like.dtype, torch.float32)  # half precision is too coarse for the angles of a long sequence
    return _sinusoids(torch.arange(length, device=like.device, dtype=dtype), channels, dtype).to(like.dtype)


def _sinusoids(position: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Positions (*), which may be integers, to sines and cosines (*, channels)."""
    half = (channels + 1) // 2
    rate = torch.exp(torch.arange(half, device=position.device, dtype=dtype) * (-math.log(10000) * 2 / channels))  # 10000^(-2i/d)
    angle = position.unsqueeze(-1) * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., :channels]


class UnimodalExtractor(nn.Module):
    r"""Convolution, position embedding and Bi-LSTM: brings one modality to the common width ([MEA] Eq. 1).

    .. math:: Z = \mathrm{BiLSTM}\big(\mathrm{Conv1d}(X) + \mathrm{PE}\big)

    The two directions are two plain LSTMs; the second reads each sequence reversed within its own length. The position in
    :math:`\mathrm{PE}` is the step's number, as in the paper, or :math:`t / \tau`, its time in units of `time_scale`: steps of equal time
    then have equal positions, whatever the rates of their modalities.

    Args:
        in_channels: Width of the raw features.
        channels: Common width d; even, since each direction gives d / 2.
        kernel_size: Width of the convolution, which pads with zeros and keeps the length.
        stride: Step of the convolution. Raise it to shorten long signals: T becomes ceil(T / stride) (`output_layout`). The paper has 1.
        skip: Whether the LSTM's input is added to its output. The paper has no such path; with it, what a single step shows reaches the
            attention unmixed, and matching steps across modalities is learned many times faster.
        dropout: Probability, on the convolution's output.
        positions: What the position embedding encodes: the step's number ("steps"), or its time ("seconds"), which `forward` then needs.
            With a stride, the first of the steps that become one gives the time.
        time_scale: :math:`\tau`, the seconds from one position to the next; times closer than that have nearly the same position. Give all
            modalities the same.

    Shape:
        - x: rows :math:`(N, d_m)` with ptr :math:`(B + 1,)`, or :math:`(B, T, d_m)` with a mask :math:`(B, T)`, bool, True at real steps
        - time: as x without its last dimension, floating, seconds; of a nested tensor those of its rows, :math:`(N,)`. Nothing is
          subtracted and sines are taken in float64, so that times are as exact as their own type: float32 tells 0.1 ms apart at 1000 s,
          8 ms at a day, and two minutes in the seconds since 1970. Let such clocks begin near 0, one zero for all modalities of a sample.
        - result: the same at width d; with a stride above 1 each sequence has :math:`\lceil T / \mathrm{stride} \rceil` steps
          (`output_layout`); zeros in the padding

    Raises:
        ValueError: If `channels` is odd, a size is below 1, or a shape is wrong; if times are needed and absent, or given and not read; on
            a CPU also if a mask has padding before real steps, or a time is not finite.

    >>> import torch
    >>> layer = UnimodalExtractor(300, 40)
    >>> mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    >>> layer(torch.randn(2, 6, 300), mask).shape
    torch.Size([2, 6, 40])
    >>> UnimodalExtractor(300, 40, positions="seconds")(
    ...     torch.randn(2, 6, 300), mask, torch.rand(2, 6).cumsum(1)
    ... ).shape
    torch.Size([2, 6, 40])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        skip: bool = False,
        dropout: float = 0.0,
        positions: Literal["steps", "seconds"] = "steps",
        time_scale: float = 0.1,
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels: expected an even number, half for each LSTM direction, got {channels}")
        check_sizes(in_channels=in_channels, kernel_size=kernel_size, stride=stride)
        if positions not in ("steps", "seconds"):
            raise ValueError(f"positions: expected 'steps' or 'seconds', got {positions!r}")
        if not 0 < time_scale < math.inf:
            raise ValueError(f"time_scale: expected finite seconds above 0, got {time_scale!r}")
        self.positions, self.time_scale = positions, time_scale
        self.in_channels, self.channels, self.kernel_size, self.stride, self.skip = in_channels, channels, kernel_size, stride, skip
        self.conv = nn.Conv1d(in_channels, channels, kernel_size, stride)
        self.forward_lstm = LSTM(channels, channels // 2)
        self.backward_lstm = LSTM(channels, channels // 2)
        self.dropout = make_dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.conv.reset_parameters()
        self.forward_lstm.reset_parameters()
        self.backward_lstm.reset_parameters()

    @overload
    def output_layout(self, layout: Tensor) -> Tensor: ...

    @overload
    def output_layout(self, layout: Pointers) -> Pointers: ...

    def output_layout(self, layout: Tensor | Pointers) -> Tensor | Pointers:
        """Returns the mask, ptr or pointers of the result: those of the input unless `stride` > 1."""
        if self.stride == 1:
            return layout
        if isinstance(layout, Pointers):
            return layout.strided(self.stride)
        if layout.dim() == 2:
            return layout[:, :: self.stride]
        length = Pointers.from_ptr(layout).strided(self.stride).length
        return F.pad(length.cumsum(0), (1, 0))

    def forward(self, x: Tensor, layout: Layout = None, time: Tensor | None = None) -> Tensor:
        """Returns the sequence at the common width; `layout` is the ptr of rows or the mask of a padded batch, `time` its seconds."""
        read = self._read(x, layout, time)
        op = op_of_both(self.forward_lstm, self.backward_lstm)
        if op is None:
            return self._finish(read, both_ways(self.forward_lstm, self.backward_lstm, read.z, read.shorter.length))
        return self._finish(read, op([read.z.flatten(0, 1)], [self._weights()], [read.pointers()])[0])

    def _read(self, x: Tensor, layout: Layout, time: Tensor | None) -> "_Read":
        """What the Bi-LSTM is given."""
        entered = enter(x, layout, self.in_channels, dtype=weight_dtype(self, "conv"))
        pointers = entered.pointers
        if self.positions == "seconds":
            time = read_time(time, entered, "time", self.time_scale)
        elif time is not None:
            raise ValueError("time: expected None with positions='steps', which reads no time, got a tensor; positions='seconds' reads it")
        left = (self.kernel_size - 1) // 2
        # The convolution and the Bi-LSTM read a padded batch, of one step at least, so that no parameter is idle.
        padded = pointers.pad(entered.x)
        if not pointers.packed:
            padded = padded.masked_fill(~pointers.mask.unsqueeze(-1), 0)
        padded = F.pad(padded.mT, (left, self.kernel_size - 1 - left + (pointers.max_length == 0)))
        z = self.conv(padded).mT  # (B, T, d)
        if not is_traced():  # another convolution may have been put in its place, and rows of other sizes would be mixed up
            steps = (max(pointers.max_length, 1) + self.stride - 1) // self.stride
            expected = (pointers.num_samples, self.channels, steps)
            if z.dim() != 3 or (z.size(0), z.size(2), z.size(1)) != expected:
                added = f"whose input is padded by {self.kernel_size - 1} steps already, for kernel_size={self.kernel_size}"
                raise ValueError(f"conv: expected {expected} of a convolution {added}, got {tuple(z.mT.shape)}")
        z = self.dropout(z + (sinusoidal_positions(z.size(1), self.channels, z) if time is None else self._at(time, pointers, z)))
        return _Read(entered, z, pointers.strided(self.stride))

    def _finish(self, read: "_Read", out: Tensor) -> Tensor:
        """The result from the states of both directions, (B, T, d) or as rows."""
        entered, z, shorter = read
        out = out.view_as(z) if out.dim() == 2 else out
        out = out + z if self.skip else out
        if entered.pointers.max_length == 0:
            out = out[:, :0]
        return entered.leave_shorter(shorter.unpad(out), shorter, self.stride)

    def _weights(self) -> list[Tensor]:
        return [*self.forward_lstm.weights, *self.backward_lstm.weights]

    def _at(self, time: Tensor, pointers: Pointers, like: Tensor) -> Tensor:
        """Positions (B, ceil(T / stride), d) of the times (N,) of rows."""
        padded = pointers.pad(time.double())
        if not pointers.packed:
            padded = padded.masked_fill(~pointers.mask, 0)
        if pointers.max_length == 0:  # the convolution then reads one step of padding
            padded = F.pad(padded, (0, 1))
        return _sinusoids(padded[:, :: self.stride] / self.time_scale, self.channels, padded.dtype).to(like.dtype)


class _Read(NamedTuple):
    """A modality before its Bi-LSTM."""

    entered: Entered
    z: Tensor  # (B, T, d)
    shorter: Pointers  # of the result

    def pointers(self) -> Pointers:
        """Where each sample's rows are in z."""
        batch, steps, _ = self.z.shape
        start = torch.arange(batch, device=self.z.device) * steps if self.shorter.steps is None else self.shorter.start
        return Pointers._unchecked(start, self.shorter.length, batch * steps, steps)


def extract_all(extractors: Sequence[nn.Module], entered: Iterable[Entered], times: Sequence[Tensor | None]) -> list[Tensor]:
    """Each modality by its extractor; the Bi-LSTMs of all of them in one call, where that is the same."""
    each = [e for e in extractors if type(e) is UnimodalExtractor and not is_watched(e)]
    alike = len(each) == len(extractors) > 1 and not is_traced() and len({e.channels for e in each}) == 1
    if not alike or any(op_of_both(e.forward_lstm, e.backward_lstm) is not bilstm for e in each):
        given = zip(extractors, entered, times, strict=True)
        return [e(own.x, own.pointers, *([] if time is None else [time])) for e, own, time in given]
    read = [e._read(own.x, own.pointers, time) for e, own, time in zip(each, entered, times, strict=True)]
    out = bilstm([r.z.flatten(0, 1) for r in read], [e._weights() for e in each], [r.pointers() for r in read])
    return [e._finish(r, states) for e, r, states in zip(each, read, out, strict=True)]


def extract_level(
    extractors: Sequence[nn.Module], x: Sequence[Tensor], pointers: Sequence[Pointers]
) -> tuple[list[Tensor], list[Pointers]] | None:
    """Each modality by its extractor, positions and Bi-LSTM of all of them at once: few kernels on a device.

    The samples of a modality are stacked with as many rows of zeros between them as a window of the convolution reaches beyond a step: a
    window then sees one sample alone, and nothing is padded to the longest sample. The results have gaps in these rows, and equally many
    rows in each modality (`Pointers.level`). None where that would not be the same, or does not pay: see `level`.
    """
    if not levels(x[0].device, 1):
        return None
    each = [e for e in extractors if type(e) is UnimodalExtractor and _is_plain(e)]
    if len(each) < len(extractors) or len({_MANNER(e) for e in each}) > 1:
        return None
    first, samples = each[0], pointers[0].num_samples
    before, after = (first.kernel_size - 1) // 2, first.kernel_size // 2  # what a window reaches beyond its step
    rows = [p.num_rows for p in pointers]
    size = max(rows) + samples * after
    if first.stride > 1 or first.positions != "steps" or not min(rows) or not levels(x[0].device, size * len(x) - sum(rows)):
        return None
    spaced = Pointers.level(pointers, after)
    whole = Pointers.join(spaced)
    # The row that each row is made of, and whether it is a gap; by modality, with what windows see before the first and after the last.
    origin = torch.cat([p.start for p in pointers]).index_select(0, whole.sample) + whole.position
    origin = F.pad(origin.masked_fill(whole.gap.squeeze(1), 0).view(len(x), size), (before, after))
    gap = F.pad(whole.gap.view(len(x), size, 1), (0, 0, before, after), value=True)
    spread = [own.index_select(0, origin[i]).masked_fill(gap[i], 0) for i, own in enumerate(x)]
    z = torch.cat([e.conv(own.mT.unsqueeze(0)).squeeze(0).mT for e, own in zip(each, spread, strict=True)])
    positions = _sinusoids(whole.position, first.channels, torch.promote_types(z.dtype, torch.float32))
    z = first.dropout(z + positions.to(z.dtype))
    parts = z.split(size)
    out = bilstm(parts, [e._weights() for e in each], spaced)
    return [states + own if first.skip else states for states, own in zip(out, parts, strict=True)], spaced


_MANNER = attrgetter("channels", "kernel_size", "stride", "skip", "positions", "dropout.p", "dropout.training")
_WINDOW = attrgetter("kernel_size", "stride", "padding", "dilation")


def _is_plain(extractor: UnimodalExtractor) -> bool:
    """Whether calling each part does what its options and weights say."""
    parts = ((extractor.conv, nn.Conv1d), (extractor.dropout, nn.Dropout))
    plain = all(type(part) is kind and not is_watched(part) for part, kind in parts) and not is_watched(extractor)
    plain = plain and _WINDOW(extractor.conv) == ((extractor.kernel_size,), (extractor.stride,), (0,), (1,))
    return plain and op_of_both(extractor.forward_lstm, extractor.backward_lstm) is bilstm
