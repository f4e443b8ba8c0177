"""`ConcatenationTransformer`: all modalities one after the other in one Transformer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.baselines.parts import BaselineModule, Projection, by_modality, prediction_head
from mea_graph.nn import ExclusiveEncoder, ModalityReinforcementUnit
from mea_graph.nn.attention.options import check_layers
from mea_graph.ops import Pointers
from mea_graph.ops.pointers import put_rows
from mea_graph.train.keyword_arguments import takes_arguments_of
from mea_graph.train.metrics import Task
from mea_graph.train.task_module import TaskModule


class ConcatenationTransformer(nn.Module):
    """Projects the modalities to one width, marks the modality of each step and attends over their concatenation in time.

    Pre-norm Transformer blocks over all steps of a sample; then each modality's steps are pooled, and a perceptron predicts from all of
    them. A modality that is missing has no step.

    Args:
        in_channels: Width of each modality.
        out_channels: Width of the prediction.
        channels: Width of the Transformer.
        hidden_channels: Width of each modality's pooled vector and of the perceptron.
        heads: Attention heads, a divisor of `channels`.
        num_layers: Transformer blocks, >= 1.
        kernel_size: The kernel size of the convolution that projects, one for all or by modality.
        stride: The stride of that convolution, one for all or by modality.
        pooling: `mean`, `segments`, `max` or `gru`, as of `mea_graph.nn.ExclusiveEncoder`.
        segments: Number of parts with `segments`, >= 1.
        dropout: Share of values dropped in training, in [0, 1).

    Shape:
        - x_dict: per modality `(sum T_m, in_channels[m])`, all samples one after the other; batch_dict: their sample numbers.
        - returns `(B, out_channels)`.

    Raises:
        ValueError: If an argument is out of its range.

    >>> model = ConcatenationTransformer(
    ...     {"audio": 5, "text": 3}, out_channels=2, channels=8, heads=2
    ... )
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
        channels: int = 40,
        hidden_channels: int = 64,
        heads: int = 8,
        num_layers: int = 3,
        kernel_size: int | dict[str, int] = 3,
        stride: int | dict[str, int] = 1,
        pooling: Literal["mean", "segments", "max", "gru"] = "mean",
        segments: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kernels, strides = by_modality(kernel_size, in_channels, "kernel_size"), by_modality(stride, in_channels, "stride")
        check_layers(num_layers)
        self.projections = nn.ModuleDict(
            {m: Projection(width, channels, kernels[m], strides[m], dropout) for m, width in in_channels.items()}
        )
        self.origin = nn.Embedding(len(in_channels), channels)  # what marks each modality's steps
        # a unit whose source is its target is a Transformer block
        self.blocks = nn.ModuleList(ModalityReinforcementUnit(channels, heads, "input", dropout) for _ in range(num_layers))
        self.encoders = nn.ModuleDict({m: ExclusiveEncoder(channels, hidden_channels, pooling, segments, dropout) for m in in_channels})
        self.head = prediction_head(hidden_channels * len(in_channels), hidden_channels, out_channels, dropout)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for part in self.children():
            reset(part)

    def forward(self, x_dict: dict[str, Tensor], batch_dict: dict[str, Tensor], batch_size: int) -> Tensor:
        """Returns the prediction of each sample."""
        parts = [projection(x_dict[m], batch_dict[m], batch_size) for m, projection in self.projections.items()]
        samples = [real.nonzero()[:, 0] for _, real in parts]
        # The steps of all modalities, sample by sample: one sequence of each sample.
        sample, order = torch.cat(samples).sort(stable=True)
        steps = torch.cat([x[real] + mark for (x, real), mark in zip(parts, self.origin.weight, strict=True)])
        z, pointers = steps[order], Pointers.from_batch(sample, batch_size)
        for block in self.blocks:
            z = block(z, pointers, source=z, source_layout=pointers)
        pieces = put_rows(z, order, len(z)).split([len(own) for own in samples])
        pooled = [
            encoder(x, Pointers.from_batch(own, batch_size))
            for encoder, x, own in zip(self.encoders.values(), pieces, samples, strict=True)
        ]
        return self.head(torch.cat(pooled, 1))


class ConcatenationTransformerModule(BaselineModule):
    """Trains `ConcatenationTransformer`.

    Args:
        in_channels: Width of each modality.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction.
        kwargs: Options of `ConcatenationTransformer` and `TaskModule`.

    >>> module = ConcatenationTransformerModule(
    ...     {"audio": 5, "text": 3}, "regression", 1, channels=8, heads=2, num_layers=2
    ... )
    >>> len(module.network.blocks)
    2
    """

    network_class = ConcatenationTransformer

    @takes_arguments_of(ConcatenationTransformer, TaskModule, skip=("network",))
    def __init__(self, in_channels: dict[str, int], task: Task, out_channels: int, **kwargs: Any) -> None:
        super().__init__(in_channels, task, out_channels, **kwargs)
