"""What MEA has to beat: a late-fusion GRU, its single-modality form, and a constant prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.utils import to_dense_batch

from mea_graph.train.metrics import Task
from mea_graph.train.task_module import TaskModule


class LateFusionGRU(nn.Module):
    r"""One bidirectional GRU per modality, mean over the real steps, concatenation, two-layer perceptron.

    The plainest model that reads asynchronous sequences: modalities meet only after pooling, so whatever depends on which
    events coincide is lost to it. A modality that is missing contributes zeros.

    Args:
        in_channels: width of each modality; the GRUs read the modalities named here and no other.
        out_channels: width of the prediction.
        hidden_channels: width of each GRU direction and of the perceptron.
        dropout: share of pooled values dropped in training, in [0, 1).

    Shape:
        - x_dict: per modality ``(sum T_m, in_channels[m])``, all samples one after the other; batch_dict: their sample numbers.
        - returns ``(B, out_channels)``.

    Example:
        >>> model = LateFusionGRU({"audio": 5, "text": 3}, out_channels=2)
        >>> x_dict = {"audio": torch.randn(7, 5), "text": torch.randn(2, 3)}
        >>> model(x_dict, {"audio": torch.tensor([0] * 4 + [1] * 3), "text": torch.tensor([1, 1])}, batch_size=2).shape
        torch.Size([2, 2])
    """

    def __init__(self, in_channels: dict[str, int], out_channels: int, hidden_channels: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.pooled_channels = 2 * hidden_channels
        self.grus = nn.ModuleDict(
            {m: nn.GRU(width, hidden_channels, batch_first=True, bidirectional=True) for m, width in in_channels.items()}
        )
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(self.pooled_channels * len(in_channels), hidden_channels),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_channels, out_channels),
        )

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for module in self.modules():
            if isinstance(module, nn.GRU | nn.Linear):
                module.reset_parameters()

    def forward(self, x_dict: dict[str, Tensor], batch_dict: dict[str, Tensor], batch_size: int) -> Tensor:
        """Returns the prediction of each sample."""
        pooled = [_mean_state(gru, x_dict[m], batch_dict[m], batch_size, self.pooled_channels) for m, gru in self.grus.items()]
        return self.head(torch.cat(pooled, dim=-1))


class LateFusionGRUModule(TaskModule):
    """Trains `LateFusionGRU`, on all modalities or on those named: the rows a table of results is compared with.

    Args:
        in_channels: width of each modality of the data.
        task: what the target is.
        out_channels: width of the prediction.
        modalities: the modalities to read; all where it is ``None``.
        hidden_channels: width of each GRU direction and of the perceptron.
        dropout: share of pooled values dropped in training, in [0, 1).
        kwargs: options of `TaskModule`.

    Raises:
        ValueError: where ``modalities`` names one that the data does not have.

    Example:
        >>> module = LateFusionGRUModule({"audio": 5, "text": 3}, "regression", 1, modalities=["text"])
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
        **kwargs: Any,
    ) -> None:
        unknown = sorted(set(modalities or ()) - set(in_channels))
        if unknown:
            raise ValueError(f"modalities: expected some of {', '.join(in_channels)}, got {', '.join(unknown)}")
        chosen = {modality: width for modality, width in in_channels.items() if modalities is None or modality in modalities}
        super().__init__(LateFusionGRU(chosen, out_channels, hidden_channels, dropout), task=task, out_channels=out_channels, **kwargs)
        self.save_hyperparameters()


def constant_prediction(y: Tensor, task: Task, out_channels: int) -> Tensor:
    """Returns the one prediction that fits the training targets best without looking at the input.

    The mean for regression, the log class frequencies for classification (so the majority class wins), and the log odds of
    each label for several labels.

    Args:
        y: training targets.
        task: what the target is.
        out_channels: width of the prediction.

    Shape: ``y`` is ``(N,)`` or ``(N, K)``; returns ``(out_channels,)`` float64.

    Example:
        >>> constant_prediction(torch.tensor([0, 1, 1]), "classification", 2).argmax().item()
        1
    """
    if task == "regression":
        return y.double().mean().reshape(1)
    if task == "classification":
        return torch.bincount(y.long(), minlength=out_channels).double().div(len(y)).log()
    return torch.logit(y.double().mean(0))


def _mean_state(gru: nn.Module, x: Tensor, batch: Tensor, batch_size: int, width: int) -> Tensor:
    """Mean GRU state of each sample's real steps (B, width); packing keeps the backward direction out of the padding."""
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
