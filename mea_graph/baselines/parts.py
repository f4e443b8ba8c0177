"""What the baselines of MEA have in common: how they read a sequence and how they predict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.utils import to_dense_batch

from mea_graph.nn._dropout import make_dropout
from mea_graph.nn._sequences import check_sizes
from mea_graph.nn.unimodal_extractor import sinusoidal_positions
from mea_graph.option_types import check_types, parameters_of, plain_value
from mea_graph.train.keyword_arguments import arguments_for
from mea_graph.train.metrics import Task
from mea_graph.train.task_module import TaskModule


def chosen_modalities(in_channels: Mapping[str, int], modalities: Sequence[str] | None) -> dict[str, int]:
    """Returns the widths of the modalities to read, all where none are named.

    Args:
        in_channels: Width of each modality of the data.
        modalities: Some of them.

    Raises:
        ValueError: If `modalities` names one that the data does not have.

    >>> chosen_modalities({"audio": 5, "text": 3}, ["text"])
    {'text': 3}
    """
    if modalities is not None and (
        not isinstance(modalities, list | tuple) or not modalities or not all(isinstance(m, str) for m in modalities)
    ):
        raise ValueError(f"modalities: expected names among {', '.join(in_channels)}, at least one, or None; got {modalities!r}")
    unknown = sorted(set(modalities or ()) - set(in_channels))
    if unknown:
        raise ValueError(f"modalities: expected some of {', '.join(in_channels)}, got {', '.join(unknown)}")
    return {modality: width for modality, width in in_channels.items() if modalities is None or modality in modalities}


def by_modality(value: int | Mapping[str, int], modalities: Iterable[str], name: str) -> dict[str, int]:
    """Returns an option as a dict, one value for each modality.

    Args:
        value: One for all, or one for each.
        modalities: Names of the modalities.
        name: The name of the option, for the error.

    Raises:
        ValueError: If a modality has none, or the value is below 1.

    >>> by_modality(3, ["audio", "text"], "kernel_size")
    {'audio': 3, 'text': 3}
    """
    value = plain_value(value)
    found = {m: value if isinstance(value, int) else value.get(m, 0) for m in modalities}
    if any(number < 1 for number in found.values()):
        raise ValueError(f"{name}: expected a number of at least 1 for each of {', '.join(found)}, got {value}")
    return found


def check_network_options(network_class: type[nn.Module], options: Mapping[str, Any]) -> None:
    """Refuses options of a network that have another type, and sizes below 1.

    Args:
        network_class: The class of the network.
        options: Some of its options.

    Raises:
        TypeError: If an option has another type; the error names it.
        ValueError: If a size is below 1.

    >>> check_network_options(nn.Linear, {"in_features": 3})
    """
    check_types(options, network_class)
    known = parameters_of(network_class)
    check_sizes(**{name: value for name, value in options.items() if isinstance(value, int) and isinstance(known[name].default, int)})


def prediction_head(in_channels: int, hidden_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Returns the two-layer perceptron that every baseline predicts with.

    Args:
        in_channels: Width of what it reads.
        hidden_channels: Width between the layers.
        out_channels: Width of the prediction.
        dropout: Share of values dropped before each layer in training, in [0, 1).

    >>> prediction_head(8, 4, 2, 0.0)(torch.ones(3, 8)).shape
    torch.Size([3, 2])
    """
    return nn.Sequential(
        make_dropout(dropout),
        nn.Linear(in_channels, hidden_channels),
        nn.GELU(),
        make_dropout(dropout),
        nn.Linear(hidden_channels, out_channels),
    )


class Projection(nn.Module):
    """Brings a modality to a common width by a convolution over time and marks the positions, as Transformers need it.

    Args:
        in_channels: Width of the features.
        channels: Common width.
        kernel_size: The kernel size of the convolution, "same" padding, >= 1.
        stride: The stride of the convolution; above 1 it shortens long signals, as MEA's extractor does, >= 1.
        dropout: Share of values dropped in training, in [0, 1).

    Shape:
        - x `(sum T, in_channels)`, batch `(sum T,)`; returns `(B, ceil(T / stride), channels)` and its mask.

    >>> z, mask = Projection(3, 8, 3, 2, 0.0)(
    ...     torch.ones(5, 3), torch.tensor([0, 0, 0, 0, 2]), 3
    ... )
    >>> z.shape, mask.sum(1).tolist()
    (torch.Size([3, 2, 8]), [2, 0, 1])
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.in_channels, self.channels, self.kernel_size, self.stride = in_channels, channels, kernel_size, stride
        self.conv = nn.Conv1d(in_channels, channels, kernel_size, stride)
        self.dropout = make_dropout(dropout)

    def forward(self, x: Tensor, batch: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Returns the padded sequences and which of their steps are real."""
        if len(x) == 0:  # one step of padding, so that no parameter is idle
            dense, mask = x.new_zeros(batch_size, 1, self.in_channels), batch.new_zeros(batch_size, 1).bool()
        else:
            dense, mask = to_dense_batch(x, batch, batch_size=batch_size)
        left = (self.kernel_size - 1) // 2
        z = self.conv(F.pad(dense.mT, (left, self.kernel_size - 1 - left))).mT
        mask = mask[:, :: self.stride]
        z = self.dropout(z + sinusoidal_positions(z.size(1), self.channels, z))
        return z.masked_fill(~mask.unsqueeze(-1), 0), mask


def window_means(x: Tensor, batch: Tensor, batch_size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Returns sequences that are `stride` times shorter: the means of successive windows, of which a sample's last may be shorter.

    Args:
        x: The steps of all samples.
        batch: The sample number of each step, sorted.
        batch_size: Number of samples B.
        stride: Steps a window, >= 1.

    Shape:
        - `(sum T, d)` and `(sum T,)`; returns `(sum ceil(T / stride), d)` and its sample numbers.

    >>> x, batch = window_means(
    ...     torch.tensor([[1.0], [3.0], [5.0], [7.0]]), torch.tensor([0, 0, 0, 2]), 3, 2
    ... )
    >>> x.flatten().tolist(), batch.tolist()
    ([2.0, 5.0, 7.0], [0, 0, 2])
    """
    if stride == 1:
        return x, batch
    lengths = sample_lengths(batch, batch_size)
    windows = (lengths + stride - 1) // stride
    sample = torch.repeat_interleave(torch.arange(batch_size, device=x.device), windows)
    step = torch.arange(len(x), device=x.device) - (lengths.cumsum(0) - lengths)[batch]
    window = (windows.cumsum(0) - windows)[batch] + step // stride
    total = x.new_zeros(len(sample), x.size(1)).index_add_(0, window, x)
    return total / sample_lengths(window, len(sample)).unsqueeze(1).to(x.dtype), sample


def mean_gru_state(gru: nn.Module, x: Tensor, batch: Tensor, batch_size: int, width: int, stride: int = 1) -> Tensor:
    """Returns the mean GRU state over each sample's real steps; zeros where it has none.

    Packing keeps the backward direction out of the padding.

    Args:
        gru: A GRU or LSTM with `batch_first`.
        x: The steps of all samples.
        batch: The sample number of each step.
        batch_size: Number of samples B.
        width: The width of a state, both directions.
        stride: How many steps the GRU reads as one, their mean, >= 1.

    Shape:
        - x `(sum T, d)`, batch `(sum T,)`; returns `(B, width)`.
    """
    x, batch = window_means(x, batch, batch_size, stride)
    dense, mask = to_dense_batch(x, batch, batch_size=batch_size)  # (B, T, d), (B, T)
    lengths = mask.sum(1)
    present = lengths > 0
    pooled = x.new_zeros(batch_size, width)
    if not present.any():
        return pooled
    packed = nn.utils.rnn.pack_padded_sequence(dense[present], lengths[present].cpu(), batch_first=True, enforce_sorted=False)
    states, _ = nn.utils.rnn.pad_packed_sequence(gru(packed)[0], batch_first=True)  # (B', T, width), zeros in the padding
    pooled[present] = (states.float().sum(1) / lengths[present, None]).to(pooled.dtype)
    return pooled


def sample_lengths(batch: Tensor, batch_size: int) -> Tensor:
    """Returns how many steps each sample has.

    Args:
        batch: The sample number of each step.
        batch_size: Number of samples B.

    Shape:
        - `(sum T,)` to :math:`(B,)`.

    >>> sample_lengths(torch.tensor([0, 0, 2]), 3).tolist()
    [2, 0, 1]
    """
    return torch.bincount(batch, minlength=batch_size)


class BaselineModule(TaskModule):
    """Trains a baseline: its network's options and those of `TaskModule` together, as `MEAModule` takes them.

    Args:
        in_channels: Width of each modality.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction.
        kwargs: Options of `network_class` and of `TaskModule`.

    Raises:
        TypeError: If an option belongs to neither.
    """

    network_class: type[nn.Module]

    def __init__(self, in_channels: dict[str, int], task: Task, out_channels: int, **kwargs: Any) -> None:
        in_channels, task, out_channels, kwargs = plain_value((in_channels, task, out_channels, kwargs))
        network, training = arguments_for(self.network_class, kwargs), arguments_for(TaskModule, kwargs)
        unknown = sorted(set(kwargs) - set(network) - set(training))
        if unknown:
            owners = f"{self.network_class.__name__} and TaskModule"
            raise TypeError(f"{type(self).__name__}: unknown option {', '.join(unknown)}; options are those of {owners}")
        check_network_options(self.network_class, network)
        super().__init__(self.network_class(in_channels, out_channels, **network), task=task, out_channels=out_channels, **training)
        self.hparams.update(in_channels=in_channels, task=task, out_channels=out_channels, **kwargs)
