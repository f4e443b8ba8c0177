"""`EarlyFusionGRU`: modalities brought to one pace, side by side in one GRU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.baselines.parts import (
    BaselineModule,
    by_modality,
    mean_gru_state,
    prediction_head,
    sample_lengths,
    window_means,
)
from mea_graph.train.keyword_arguments import takes_arguments_of
from mea_graph.train.metrics import Task
from mea_graph.train.task_module import TaskModule


class EarlyFusionGRU(nn.Module):
    r"""Resamples the modalities of a sample to the length of its longest one and reads them side by side with one bidirectional GRU.

    Asynchronous sequences have no common step, so each is stretched evenly: step i of n reads step
    :math:`\lfloor (i + 1/2) \, T_m / n \rfloor` of modality m. A modality that is missing contributes zeros.

    Args:
        in_channels: Width of each modality.
        out_channels: Width of the prediction.
        hidden_channels: Width of each GRU direction and of the perceptron.
        dropout: Share of pooled values dropped in training, in [0, 1).
        stride: How many steps are read as one, their mean, before the stretching; one for all or by modality, >= 1.

    Shape:
        - x_dict: per modality `(sum T_m, in_channels[m])`, all samples one after the other; batch_dict: their sample numbers.
        - returns `(B, out_channels)`.

    >>> model = EarlyFusionGRU({"audio": 5, "text": 3}, out_channels=2)
    >>> x_dict = {"audio": torch.randn(7, 5), "text": torch.randn(2, 3)}
    >>> model(
    ...     x_dict,
    ...     {"audio": torch.tensor([0] * 4 + [1] * 3), "text": torch.tensor([1, 1])},
    ...     batch_size=2,
    ... ).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        in_channels: dict[str, int],
        out_channels: int,
        hidden_channels: int = 64,
        dropout: float = 0.0,
        stride: int | dict[str, int] = 1,
    ) -> None:
        super().__init__()
        self.strides = by_modality(stride, in_channels, "stride")
        self.modalities = tuple(in_channels)
        self.gru = nn.GRU(sum(in_channels.values()), hidden_channels, batch_first=True, bidirectional=True)
        self.head = prediction_head(2 * hidden_channels, hidden_channels, out_channels, dropout)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for part in self.children():
            reset(part)

    def forward(self, x_dict: dict[str, Tensor], batch_dict: dict[str, Tensor], batch_size: int) -> Tensor:
        """Returns the prediction of each sample."""
        shorter = {m: window_means(x_dict[m], batch_dict[m], batch_size, self.strides[m]) for m in self.modalities}
        x, batch = side_by_side({m: s[0] for m, s in shorter.items()}, {m: s[1] for m, s in shorter.items()}, batch_size)
        return self.head(mean_gru_state(self.gru, x, batch, batch_size, 2 * self.gru.hidden_size))


def side_by_side(x_dict: dict[str, Tensor], batch_dict: dict[str, Tensor], batch_size: int) -> tuple[Tensor, Tensor]:
    """Stretches the modalities of each sample to its longest and joins their channels.

    Args:
        x_dict: The steps of all samples, by modality.
        batch_dict: The sample number of each step, sorted.
        batch_size: Number of samples B.

    Shape:
        - `(sum T_m, d_m)` each; returns `(sum max T, sum d)` and the sample number of each row.

    >>> where = {"a": torch.tensor([0, 0, 0, 0]), "b": torch.tensor([0, 0])}
    >>> side_by_side(
    ...     {"a": torch.arange(4.0)[:, None], "b": torch.arange(2.0)[:, None]}, where, 1
    ... )[0][:, 1].tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    lengths = {m: sample_lengths(batch, batch_size) for m, batch in batch_dict.items()}
    longest = torch.stack(list(lengths.values())).amax(0)
    sample = torch.repeat_interleave(torch.arange(batch_size, device=longest.device), longest)  # of each row
    step = torch.arange(len(sample), device=longest.device) - (longest.cumsum(0) - longest)[sample]
    columns = []
    for m, x in x_dict.items():
        first = lengths[m].cumsum(0) - lengths[m]
        row = first[sample] + (2 * step + 1) * lengths[m][sample] // (2 * longest[sample])
        there = lengths[m][sample] > 0
        column = x.new_zeros(len(sample), x.size(1))
        column[there] = x[row[there]]
        columns.append(column)
    return torch.cat(columns, 1), sample


class EarlyFusionGRUModule(BaselineModule):
    """Trains `EarlyFusionGRU`.

    Args:
        in_channels: Width of each modality.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction.
        kwargs: Options of `EarlyFusionGRU` and `TaskModule`.

    >>> EarlyFusionGRUModule(
    ...     {"audio": 5, "text": 3}, "regression", 1, hidden_channels=8
    ... ).network.gru.input_size
    8
    """

    network_class = EarlyFusionGRU

    @takes_arguments_of(EarlyFusionGRU, TaskModule, skip=("network",))
    def __init__(self, in_channels: dict[str, int], task: Task, out_channels: int, **kwargs: Any) -> None:
        super().__init__(in_channels, task, out_channels, **kwargs)
