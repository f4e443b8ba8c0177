"""`PairwiseTransformer`: every modality attends to every other one, as in MulT."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.baselines.parts import BaselineModule, Projection, by_modality, prediction_head
from mea_graph.nn import ExclusiveEncoder, ModalityReinforcementUnit
from mea_graph.nn.attention.options import check_layers
from mea_graph.train.keyword_arguments import takes_arguments_of
from mea_graph.train.metrics import Task
from mea_graph.train.task_module import TaskModule


class PairwiseTransformer(nn.Module):
    """A cross-modal Transformer for every ordered pair of modalities, after MulT (Tsai et al. 2019, arXiv 1906.00295).

    For a target modality, each other modality is the source of a stack of cross-attention blocks of its own, whose keys and values are
    the source's projected features in every layer. The results stand side by side, a self-attention block reads them, and their
    steps are pooled; a perceptron predicts from all targets. Ours differs from MulT in pooling over all real steps instead of taking the
    last one. A source that is missing leaves the target as it is.

    Args:
        in_channels: Width of each modality, at least two.
        out_channels: Width of the prediction.
        channels: Width of the cross-modal Transformers; the self-attention is (M - 1) times as wide.
        hidden_channels: Width of each modality's pooled vector and of the perceptron.
        heads: Attention heads, a divisor of `channels`.
        num_layers: Cross-attention blocks for each pair, >= 1.
        kernel_size: The kernel size of the convolution that projects, one for all or by modality.
        stride: The stride of that convolution, one for all or by modality.
        pooling: `mean`, `segments`, `max` or `gru`, as of `mea_graph.nn.ExclusiveEncoder`.
        segments: Number of parts with `segments`, >= 1.
        dropout: Share of values dropped in training, in [0, 1).

    Shape:
        - x_dict: per modality `(sum T_m, in_channels[m])`, all samples one after the other; batch_dict: their sample numbers.
        - returns `(B, out_channels)`.

    Raises:
        ValueError: If there is one modality only.

    >>> model = PairwiseTransformer(
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
        check_layers(num_layers)
        if len(in_channels) < 2:
            raise ValueError(f"in_channels: expected at least two modalities, got {', '.join(in_channels) or 'none'}")
        kernels, strides = by_modality(kernel_size, in_channels, "kernel_size"), by_modality(stride, in_channels, "stride")
        self.projections = nn.ModuleDict(
            {m: Projection(width, channels, kernels[m], strides[m], dropout) for m, width in in_channels.items()}
        )

        def stack() -> nn.ModuleList:
            return nn.ModuleList(ModalityReinforcementUnit(channels, heads, "input", dropout) for _ in range(num_layers))

        self.cross = nn.ModuleDict({t: nn.ModuleDict({s: stack() for s in in_channels if s != t}) for t in in_channels})
        wide = channels * (len(in_channels) - 1)
        self.own = nn.ModuleDict({t: ModalityReinforcementUnit(wide, heads, "input", dropout) for t in in_channels})
        self.encoders = nn.ModuleDict({t: ExclusiveEncoder(wide, hidden_channels, pooling, segments, dropout) for t in in_channels})
        self.head = prediction_head(hidden_channels * len(in_channels), hidden_channels, out_channels, dropout)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for part in self.children():
            reset(part)

    def forward(self, x_dict: dict[str, Tensor], batch_dict: dict[str, Tensor], batch_size: int) -> Tensor:
        """Returns the prediction of each sample."""
        projected = {m: projection(x_dict[m], batch_dict[m], batch_size) for m, projection in self.projections.items()}
        pooled = []
        for t, (target, mask) in projected.items():
            heard = []
            for s, blocks in self.cross[t].items():  # type: ignore[operator]
                z = target
                for block in blocks:
                    z = block(z, mask, source=projected[s][0], source_layout=projected[s][1])
                heard.append(z)
            joined = torch.cat(heard, -1)
            pooled.append(self.encoders[t](self.own[t](joined, mask, source=joined, source_layout=mask), mask))
        return self.head(torch.cat(pooled, 1))


class PairwiseTransformerModule(BaselineModule):
    """Trains `PairwiseTransformer`.

    Args:
        in_channels: Width of each modality.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction.
        kwargs: Options of `PairwiseTransformer` and `TaskModule`.

    >>> module = PairwiseTransformerModule(
    ...     {"audio": 5, "text": 3}, "regression", 1, channels=8, heads=2
    ... )
    >>> list(module.network.cross["audio"])
    ['text']
    """

    network_class = PairwiseTransformer

    @takes_arguments_of(PairwiseTransformer, TaskModule, skip=("network",))
    def __init__(self, in_channels: dict[str, int], task: Task, out_channels: int, **kwargs: Any) -> None:
        super().__init__(in_channels, task, out_channels, **kwargs)
