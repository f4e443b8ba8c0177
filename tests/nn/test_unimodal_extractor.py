"""Eq. 1: a "same" convolution, sinusoidal positions and a bidirectional LSTM, each from its definition."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mea_graph.nn import UnimodalExtractor
from mea_graph.nn.unimodal_extractor import sinusoidal_positions

C_IN, D, T = 3, 6, 7
LENGTHS = torch.tensor([4, 7, 1, 2])
MASK = torch.arange(T) < LENGTHS[:, None]


def vaswani(length: int, channels: int) -> Tensor:
    table = torch.zeros(length, channels, dtype=torch.float64)
    for position in range(length):
        for c in range(channels):
            angle = position / 10000 ** ((c - c % 2) / channels)
            table[position, c] = math.cos(angle) if c % 2 else math.sin(angle)
    return table


def same_convolution(x: Tensor, conv: nn.Conv1d, stride: int) -> Tensor:
    """One sequence (T, C_in), zeros around it, as many steps out as in (every `stride`-th of them)."""
    kernel = conv.weight.size(-1)
    left = (kernel - 1) // 2
    out = []
    for t in range(0, len(x), stride):
        taps = [conv.weight[:, :, k] @ x[t + k - left] for k in range(kernel) if 0 <= t + k - left < len(x)]
        out.append(conv.bias + torch.stack(taps).sum(0))
    return torch.stack(out)


def packed_bilstm(layer: UnimodalExtractor, z: Tensor, lengths: Tensor) -> Tensor:
    """torch's own bidirectional LSTM on packed sequences, with the layer's weights."""
    lstm = nn.LSTM(D, D // 2, batch_first=True, bidirectional=True).double()
    ahead, back = layer.forward_lstm.state_dict(), layer.backward_lstm.state_dict()
    lstm.load_state_dict(ahead | {name + "_reverse": v for name, v in back.items()})
    packed, _ = lstm(pack_padded_sequence(z, lengths, batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(packed, batch_first=True, total_length=z.size(1))[0]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5, 9])
def test_equals_convolution_positions_and_packed_bilstm(randomised, kernel_size: int, stride: int) -> None:
    layer = randomised(UnimodalExtractor(C_IN, D, kernel_size, stride))
    x = torch.randn(len(LENGTHS), T, C_IN, dtype=torch.float64)
    lengths = (LENGTHS + stride - 1) // stride
    z = torch.zeros(len(LENGTHS), -(-T // stride), D, dtype=torch.float64)
    for b, n in enumerate(LENGTHS.tolist()):
        z[b, : lengths[b]] = same_convolution(x[b, :n], layer.conv, stride)
    z = z + vaswani(z.size(1), D)
    expected = packed_bilstm(layer, z, lengths)
    torch.testing.assert_close(layer(x, MASK), expected, rtol=1e-9, atol=1e-12)
    layer.skip = True
    real = torch.arange(z.size(1)) < lengths[:, None]
    torch.testing.assert_close(layer(x, MASK), expected + z * real[..., None], rtol=1e-9, atol=1e-12)
    assert layer.output_layout(MASK).sum(1).tolist() == lengths.tolist()


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_the_convolution_is_the_same_padding_of_torch(randomised, kernel_size: int) -> None:
    layer = randomised(UnimodalExtractor(C_IN, D, kernel_size))
    x = torch.randn(2, T, C_IN, dtype=torch.float64)
    z = F.conv1d(x.mT, layer.conv.weight, layer.conv.bias, padding="same").mT
    expected = packed_bilstm(layer, z + vaswani(T, D), torch.tensor([T, T]))
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channels", [2, 5, 40])
def test_positions_are_those_of_vaswani(channels: int) -> None:
    expected = vaswani(500, channels)
    exact = sinusoidal_positions(500, channels, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-11)
    # Angles go up to 500, and float32 holds 500 to 3e-5.
    single = sinusoidal_positions(500, channels, torch.zeros(()))
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=5e-5)
    # bfloat16 rounds the result alone: it holds numbers up to 1 to 2e-3.
    half = sinusoidal_positions(500, channels, torch.zeros((), dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected, rtol=0, atol=2.1e-3)


def test_gradients_equal_those_of_the_packed_bilstm(randomised) -> None:
    layer = randomised(UnimodalExtractor(C_IN, D))
    x = torch.randn(len(LENGTHS), T, C_IN, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(len(LENGTHS), T, D, dtype=torch.float64)
    z = F.conv1d((x * MASK[..., None]).mT, layer.conv.weight, layer.conv.bias, padding="same").mT
    packed = packed_bilstm(layer, z + vaswani(T, D), LENGTHS)
    sources = [x, layer.conv.weight, layer.conv.bias]
    expected = torch.autograd.grad(packed, sources, cotangent)
    for actual, wanted in zip(torch.autograd.grad(layer(x, MASK), sources, cotangent), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)


def test_a_sample_without_steps_gives_zeros(randomised) -> None:
    layer = randomised(UnimodalExtractor(C_IN, D))
    x = torch.randn(2, T, C_IN, dtype=torch.float64)
    out = layer(x, torch.tensor([[False] * T, [True] * T]))
    assert not out[0].any()
    assert layer(x[:, :0]).shape == (2, 0, D)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 5}, "channels: expected an even number, half for each LSTM direction, got 5"),
        ({"channels": 0}, "channels: expected an even number.*got 0"),
        ({"kernel_size": 0}, "kernel_size: expected an integer of at least 1, got 0"),
        ({"stride": 0}, "stride: expected an integer of at least 1, got 0"),
        ({"stride": 1.5}, "stride: expected an integer of at least 1, got 1.5"),
        ({"in_channels": 0}, "in_channels: expected an integer of at least 1, got 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnimodalExtractor(**({"in_channels": C_IN, "channels": D} | options))


@pytest.mark.parametrize(
    ("x", "mask", "error", "message"),
    [
        (torch.zeros(2, 4, 5), None, ValueError, r"x: expected \(B, T, 3\), .*got \(2, 4, 5\)"),
        (torch.zeros(4, 2), None, ValueError, r"x: expected \(N, 3\), got \(4, 2\)"),
        (torch.zeros(2, 4, 3, dtype=torch.int64), None, TypeError, "x: expected a floating type, got torch.int64"),
        (
            torch.zeros(2, 4, 3),
            torch.ones(2, 5, dtype=torch.bool),
            ValueError,
            r"x: expected a bool mask \(2, 4\), .*got torch.bool \(2, 5\)",
        ),
        (torch.zeros(2, 4, 3), torch.ones(2, 4), ValueError, r"x: expected a bool mask \(2, 4\), .*got torch.float32 \(2, 4\)"),
        (
            torch.zeros(2, 4, 3),
            torch.tensor([[True] * 4, [True, False, True, False]]),
            ValueError,
            "x: expected a mask that is True at real steps, which come before padding, got a gap in row 1",
        ),
    ],
)
def test_bad_input_is_named(x: Tensor, mask: Tensor | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        UnimodalExtractor(C_IN, D)(x, mask)


@pytest.mark.parametrize("conv", [nn.Conv1d(4, D, 3, padding=1), nn.Conv1d(4, D, 5), nn.Conv1d(4, D, 1), nn.Conv1d(4, 2 * D, 3)])
@pytest.mark.parametrize("packed", [True, False])
def test_another_convolution_that_gives_other_sizes_is_refused(conv: nn.Module, packed: bool) -> None:
    """Rows of other sizes were read as those of other samples, or beyond the end of their memory."""
    layer = UnimodalExtractor(4, D)
    layer.conv = conv
    x = torch.randn(7, 4) if packed else torch.randn(2, 5, 4)
    with pytest.raises(ValueError, match=rf"conv: expected \(2, {D}, \d\) of a convolution whose input is padded by 2 steps"):
        layer(x, torch.tensor([0, 3, 7]) if packed else None)
    layer.conv = nn.Conv1d(4, D, 3, groups=2)
    torch.testing.assert_close(layer(torch.randn(7, 4), torch.tensor([0, 3, 7])).shape, torch.Size([7, D]))
