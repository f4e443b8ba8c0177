"""`SharedPrivateEncoders`: one shared and one private vector per modality, as in MISA."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.baselines.parts import BaselineModule, by_modality, mean_gru_state, prediction_head, sample_lengths
from mea_graph.nn import ModalityReinforcementUnit
from mea_graph.ops import Pointers
from mea_graph.ops.pointers import put_rows
from mea_graph.option_types import check_types
from mea_graph.train.keyword_arguments import takes_arguments_of
from mea_graph.train.metrics import Task
from mea_graph.train.task_module import TaskModule

MOMENTS = 5


class SharedPrivateOutput(NamedTuple):
    """A prediction and the inputs of the auxiliary losses; every tensor but the first two is `(B, M, hidden_channels)`.

    >>> SharedPrivateOutput._fields
    ('prediction', 'present', 'whole', 'private', 'shared', 'rebuilt')
    """

    prediction: Tensor  # (B, out_channels)
    present: Tensor  # (B, M) bool
    whole: Tensor  # what was read of each modality
    private: Tensor
    shared: Tensor
    rebuilt: Tensor  # the whole, rebuilt from private and shared


class SharedPrivateEncoders(nn.Module):
    """Splits each modality's vector into a shared and a private one, after MISA (Hazarika et al. 2020, arXiv 2005.03545).

    A bidirectional GRU reads each modality; its mean state is projected. One encoder for all modalities makes the shared vector, one for
    each the private vector; a decoder rebuilds the projection from both. A Transformer block over the 2 M vectors and a perceptron predict.
    A modality that is missing takes part in nothing.

    Args:
        in_channels: Width of each modality.
        out_channels: Width of the prediction.
        hidden_channels: Width of each GRU direction, of the vectors and of the perceptron; even.
        fusion_heads: Attention heads of the block, a divisor of `hidden_channels`.
        dropout: Share of values dropped in training, in [0, 1).
        stride: How many steps a GRU reads as one, their mean; one for all or by modality, >= 1.

    Shape:
        - x_dict: per modality `(sum T_m, in_channels[m])`, all samples one after the other; batch_dict: their sample numbers.
        - returns `SharedPrivateOutput`.

    >>> model = SharedPrivateEncoders({"audio": 5, "text": 3}, out_channels=2)
    >>> x_dict = {"audio": torch.randn(7, 5), "text": torch.randn(2, 3)}
    >>> model(
    ...     x_dict,
    ...     {"audio": torch.tensor([0] * 4 + [1] * 3), "text": torch.tensor([1, 1])},
    ...     batch_size=2,
    ... ).shared.shape
    torch.Size([2, 2, 64])
    """

    def __init__(
        self,
        in_channels: dict[str, int],
        out_channels: int,
        hidden_channels: int = 64,
        fusion_heads: int = 2,
        dropout: float = 0.0,
        stride: int | dict[str, int] = 1,
    ) -> None:
        super().__init__()
        if hidden_channels % fusion_heads:
            raise ValueError(f"fusion_heads: expected a divisor of hidden_channels = {hidden_channels}, got {fusion_heads}")
        self.strides = by_modality(stride, in_channels, "stride")
        self.modalities = tuple(in_channels)
        self.pooled_channels = 2 * hidden_channels
        self.grus = nn.ModuleDict({m: nn.GRU(d, hidden_channels, batch_first=True, bidirectional=True) for m, d in in_channels.items()})
        self.projections = nn.ModuleDict(
            {
                m: nn.Sequential(nn.Linear(self.pooled_channels, hidden_channels), nn.ReLU(), nn.LayerNorm(hidden_channels))
                for m in in_channels
            }
        )
        self.private = nn.ModuleDict({m: nn.Linear(hidden_channels, hidden_channels) for m in in_channels})
        self.shared = nn.Linear(hidden_channels, hidden_channels)
        self.decoders = nn.ModuleDict({m: nn.Linear(hidden_channels, hidden_channels) for m in in_channels})
        self.fusion = ModalityReinforcementUnit(hidden_channels, fusion_heads, "input", dropout)
        self.head = prediction_head(2 * hidden_channels * len(in_channels), hidden_channels, out_channels, dropout)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for part in self.children():
            reset(part)

    def forward(self, x_dict: dict[str, Tensor], batch_dict: dict[str, Tensor], batch_size: int) -> SharedPrivateOutput:
        """Returns the prediction of each sample, and its vectors."""
        whole = torch.stack(
            [
                self.projections[m](mean_gru_state(gru, x_dict[m], batch_dict[m], batch_size, self.pooled_channels, self.strides[m]))
                for m, gru in self.grus.items()
            ],
            1,
        )
        present = torch.stack([sample_lengths(batch_dict[m], batch_size) > 0 for m in self.modalities], 1)
        private = torch.stack([self.private[m](whole[:, i]) for i, m in enumerate(self.modalities)], 1).sigmoid()
        shared = self.shared(whole).sigmoid()
        rebuilt = torch.stack([self.decoders[m](private[:, i] + shared[:, i]) for i, m in enumerate(self.modalities)], 1)
        vectors, there = torch.cat([private, shared], 1), torch.cat([present, present], 1)  # (B, 2 M, h)
        rows = there.flatten().nonzero().squeeze(1)
        known = vectors.flatten(0, 1)[rows]
        pointers = Pointers.from_batch(rows // there.size(1), batch_size)
        fused = put_rows(self.fusion(known, pointers, source=known, source_layout=pointers), rows, there.numel())
        return SharedPrivateOutput(self.head(fused.view(batch_size, -1)), present, whole, private, shared, rebuilt)


class SharedPrivateEncodersModule(BaselineModule):
    """Trains `SharedPrivateEncoders` with the losses of MISA: difference, similarity and reconstruction.

    The difference loss makes shared and private vectors, and private vectors of two modalities, orthogonal over the batch; the similarity
    loss brings the first five central moments of the modalities' shared vectors together.

    Args:
        in_channels: Width of each modality.
        task: The kind of target: `regression`, `classification` or `multilabel`.
        out_channels: Width of the prediction.
        difference_weight: Weight of the difference loss, >= 0.
        similarity_weight: Weight of the similarity loss, >= 0.
        reconstruction_weight: Weight of the reconstruction loss, >= 0.
        kwargs: Options of `SharedPrivateEncoders` and `TaskModule`.

    >>> module = SharedPrivateEncodersModule(
    ...     {"audio": 5, "text": 3},
    ...     "regression",
    ...     1,
    ...     difference_weight=0.1,
    ...     hidden_channels=8,
    ... )
    >>> module.weights["difference"]
    0.1
    """

    network_class = SharedPrivateEncoders

    @takes_arguments_of(SharedPrivateEncoders, TaskModule, skip=("network",))
    def __init__(
        self,
        in_channels: dict[str, int],
        task: Task,
        out_channels: int,
        difference_weight: float = 0.3,
        similarity_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        weights = (difference_weight, similarity_weight, reconstruction_weight)
        for name, weight in zip(("difference_weight", "similarity_weight", "reconstruction_weight"), weights, strict=True):
            check_types({name: weight}, SharedPrivateEncodersModule)
            if weight < 0:
                raise ValueError(f"{name}: expected at least 0, got {weight}")
        super().__init__(in_channels, task, out_channels, **kwargs)
        self.weights = {"difference": difference_weight, "similarity": similarity_weight, "reconstruction": reconstruction_weight}
        self.hparams.update({f"{name}_weight": weight for name, weight in self.weights.items()})

    def loss_terms(self, output: SharedPrivateOutput, target: Tensor) -> dict[str, Tensor]:
        """Returns the objective as `loss` and each of its terms, unweighted, by name."""
        terms = super().loss_terms(output, target)
        auxiliary = auxiliary_losses(output)
        terms["loss"] = terms["task"] + sum(self.weights[name] * term for name, term in auxiliary.items())
        return terms | auxiliary


def auxiliary_losses(output: SharedPrivateOutput) -> dict[str, Tensor]:
    """Returns MISA's losses over the samples that have the modalities concerned.

    Args:
        output: The output of the network.
    """
    present, pairs = output.present, list(combinations(range(output.present.size(1)), 2))
    zero = output.prediction.new_zeros(()).float()
    difference = [_correlation(output.private[:, m], output.shared[:, m], present[:, m]) for m in range(present.size(1))]
    difference += [_correlation(output.private[:, a], output.private[:, b], present[:, a] & present[:, b]) for a, b in pairs]
    similarity = [_moment_distance(output.shared[present[:, a], a], output.shared[present[:, b], b]) for a, b in pairs]
    error = F.mse_loss(output.rebuilt[present].float(), output.whole[present].float()) if present.any() else zero
    return {
        "difference": torch.stack(difference).sum(),
        "similarity": torch.stack(similarity).mean() if similarity else zero,
        "reconstruction": error,
    }


def _correlation(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """Mean square of the products of centred, normalised vectors."""
    x, y = (v[rows].float() for v in (x, y))
    if not len(x):
        return x.sum()
    x, y = (F.normalize(v - v.mean(0), dim=1) for v in (x, y))
    return (x.mT @ y).square().mean()


def _moment_distance(x: Tensor, y: Tensor) -> Tensor:
    """Central moment discrepancy of two sets of vectors in [0, 1]."""
    x, y = x.float(), y.float()
    if not len(x) or not len(y):
        return x.sum() * 0 + y.sum() * 0
    means = x.mean(0), y.mean(0)
    centred = x - means[0], y - means[1]
    gaps = [means[0] - means[1]] + [centred[0].pow(k).mean(0) - centred[1].pow(k).mean(0) for k in range(2, MOMENTS + 1)]
    return sum((_length(gap) for gap in gaps), x.new_zeros(()))


def _length(gap: Tensor) -> Tensor:
    """Euclidean length, with a gradient at zero."""
    return gap.square().sum().clamp(min=1e-12).sqrt()
