"""`LateFusionGRU`: modalities that meet only after pooling; on one modality, the baseline that hears nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.baselines.parts import by_modality, check_network_options, chosen_modalities, mean_gru_state, prediction_head
from mea_graph.option_types import plain_value
from mea_graph.train.metrics import Task
from mea_graph.train.task_module import TaskModule


class LateFusionGRU(nn.Module):
    r"""One bidirectional GRU per modality, mean over the real steps, concatenation, two-layer perceptron.

    The plainest model that reads asynchronous sequences: modalities meet only after pooling, so whatever depends on which
    events coincide is lost to it. A modality that is missing contributes zeros.

    Args:
        in_channels: Width of each modality; the GRUs read the modalities named here and no other.
        out_channels: Width of the prediction.
        hidden_channels: Width of each GRU direction and of the perceptron.
        dropout: Share of pooled values dropped in training, in [0, 1).
        stride: How many steps a GRU reads as one, their mean; one for all or by modality. It shortens long signals, >= 1.

    Shape:
        - x_dict: per modality `(sum T_m, in_channels[m])`, all samples one after the other; batch_dict: their sample numbers.
        - returns `(B, out_channels)`.

    >>> model = LateFusionGRU({"audio": 5, "text": 3}, out_channels=2)
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
        self.pooled_channels = 2 * hidden_channels
        self.grus = nn.ModuleDict(
            {m: nn.GRU(width, hidden_channels, batch_first=True, bidirectional=True) for m, width in in_channels.items()}
        )
        self.head = prediction_head(self.pooled_channels * len(in_channels), hidden_channels, out_channels, dropout)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for part in self.children():
            reset(part)

    def forward(self, x_dict: dict[str, Tensor], batch_dict: dict[str, Tensor], batch_size: int) -> Tensor:
        """Returns the prediction of each sample."""
        pooled = [
            mean_gru_state(gru, x_dict[m], batch_dict[m], batch_size, self.pooled_channels, self.strides[m]) for m, gru in self.grus.items()
        ]
        return self.head(torch.cat(pooled, dim=-1))


class LateFusionGRUModule(TaskModule):
    """Trains `LateFusionGRU`, on all modalities or on those named: the rows a table of results is compared with.

    Args:
        in_channels: Width of each modality of the data.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction.
        modalities: The modalities to read; all if `None`.
        hidden_channels: Width of each GRU direction and of the perceptron.
        dropout: Share of pooled values dropped in training, in [0, 1).
        stride: How many steps a GRU reads as one, one for all or by modality, >= 1.
        kwargs: Options of `TaskModule`.

    Raises:
        ValueError: If `modalities` names one that the data does not have.

    >>> module = LateFusionGRUModule(
    ...     {"audio": 5, "text": 3}, "regression", 1, modalities=["text"]
    ... )
    >>> list(module.network.grus)
    ['text']
    """

    def __init__(
        self,
        in_channels: dict[str, int],
        task: Task,
        out_channels: int,
        modalities: Sequence[str] | None = None,
        hidden_channels: int = 64,
        dropout: float = 0.0,
        stride: int | dict[str, int] = 1,
        **kwargs: Any,
    ) -> None:
        in_channels, out_channels, modalities, kwargs = plain_value((in_channels, out_channels, modalities, kwargs))
        hidden_channels, dropout, stride = plain_value((hidden_channels, dropout, stride))
        chosen = chosen_modalities(in_channels, modalities)
        check_network_options(LateFusionGRU, {"hidden_channels": hidden_channels, "dropout": dropout, "stride": stride})
        network = LateFusionGRU(chosen, out_channels, hidden_channels, dropout, stride)
        super().__init__(network, task=task, out_channels=out_channels, **kwargs)
        self.save_hyperparameters()
