"""From a sequence to one vector: the exclusive and the agnostic encoder, [MEA] Eq. 11-12."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.inits import reset
from torch_geometric.nn.resolver import aggregation_resolver

from mea_graph.nn._dropout import make_dropout
from mea_graph.nn._recurrent import GRU, op_of_both
from mea_graph.nn._sequences import Layout, check_sizes, enter, weight_dtype
from mea_graph.nn._side_by_side import Groups, can_join, linear
from mea_graph.ops import Pointers
from mea_graph.ops.pooling import max_rows, mean_rows, mean_steps, segment_means
from mea_graph.ops.recurrent.layers import both_ways

Pooling = Literal["mean", "segments", "max", "gru"]


class ExclusiveEncoder(nn.Module):
    r"""Pools a sequence and maps it to the representation width; each modality has its own ([MEA] Eq. 11).

    .. math:: h = W_2 \, \mathrm{GELU}(W_1 \, \mathrm{pool}_t(z_t) + b_1) + b_2

    Args:
        channels: Width d of the sequence.
        out_channels: Width d_h of the representation.
        pooling: "mean" over the real steps (R5); "segments": means of `segments` equal parts in order, which keeps a coarse order; "max";
            "gru": the mean over the states of a Bi-GRU, `out_channels` wide in each direction, which carries the order along; or any
            `torch_geometric.nn.Aggregation`, as a module (copied with its weights) or by PyG's name for it, such as "std".
        segments: Number of parts, at least 1, with `pooling="segments"`.
        dropout: Probability, between the two layers.

    Shape:
        - x: rows :math:`(N, d)` with ptr :math:`(B + 1,)`, or :math:`(B, T, d)` with a mask :math:`(B, T)`, bool, True at real steps
        - result: :math:`(B, d_h)`, zeros for a sample without a step

    Raises:
        ValueError: If a shape is wrong, a size is below 1, the pooling is unknown, or a mask has padding before real steps (checked on the
            CPU only).

    >>> import torch
    >>> ExclusiveEncoder(40, 64)(torch.randn(2, 9, 40)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        pooling: Pooling | Aggregation | str = "mean",
        segments: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, out_channels=out_channels, segments=segments)
        self.channels, self.out_channels, self.pooling, self.segments = channels, out_channels, pooling, segments
        self.forward_gru = self.backward_gru = self.aggregation = None
        width = {"segments": segments * channels, "gru": 2 * out_channels}.get(pooling if isinstance(pooling, str) else "", channels)
        if pooling == "gru":
            self.forward_gru, self.backward_gru = GRU(channels, out_channels), GRU(channels, out_channels)
        elif pooling not in ("mean", "segments", "max"):
            self.aggregation = _aggregation(pooling)
            width = _width_of(self.aggregation, channels)
        self.hidden = nn.Linear(width, out_channels)
        self.out = nn.Linear(out_channels, out_channels)
        self.activation = nn.GELU()
        self.dropout = make_dropout(dropout)
        self._draw()

    def _draw(self) -> None:
        for part in (self.forward_gru, self.backward_gru, self.hidden, self.out):
            reset(part)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self._draw()
        reset(self.aggregation)  # only on request: a module of the caller's may have learned

    def forward(self, x: Tensor, layout: Layout = None) -> Tensor:
        """Returns one vector per sample; `layout` is the ptr of rows or the mask of a padded batch."""
        x, pointers, *_ = enter(x, layout, self.channels, dtype=dtype_of(self))
        h = self.out(self.dropout(self.activation(self.hidden(self._pool(x, pointers)))))
        return h.masked_fill(pointers.absent.unsqueeze(1), 0)

    def _pool(self, x: Tensor, pointers: Pointers) -> Tensor:
        """(N, d) to (B, d'); zeros for a sample without a step."""
        if self.pooling == "mean":
            return mean_rows(x, pointers)
        if self.pooling == "segments":
            return segment_means(x, pointers, self.segments)
        if self.pooling == "max":
            return max_rows(x, pointers)
        if self.aggregation is not None:
            if pointers.packed:
                return self.aggregation(x, pointers.sample, dim_size=pointers.num_samples)
            last = pointers.num_samples  # gaps form one more sample, which is cut off
            sample = pointers.sample.masked_fill(~pointers.real, last)
            return self.aggregation(x, sample, dim_size=last + 1)[:last]
        assert self.forward_gru is not None
        assert self.backward_gru is not None
        op = op_of_both(self.forward_gru, self.backward_gru)
        if op is not None:
            weights = [*self.forward_gru.weights, *self.backward_gru.weights]
            return mean_rows(op([x], [weights], [pointers])[0], pointers)
        padded = pointers.pad(x)
        if padded.size(1) == 0:  # a GRU refuses it
            return x.new_zeros(padded.size(0), self.hidden.in_features)
        states = both_ways(self.forward_gru, self.backward_gru, padded, pointers.length)
        return mean_steps(states, pointers)


def dtype_of(encoder: Any) -> torch.dtype | None:
    """The dtype of the weights that read what was pooled; an aggregation of the user's may change that of the sequence."""
    return weight_dtype(encoder, "hidden") if getattr(encoder, "aggregation", None) is None else None


def encode_all(encoders: nn.ModuleDict, x: Mapping[str, Tensor], pointers: Mapping[str, Pointers]) -> dict[str, Tensor]:
    """Encodes each modality by its encoder; all at once where they take means and differ in their weights alone."""
    each: list[Any] = [encoders[m] for m in x]
    if len(each) == 1 or any(getattr(e, "pooling", None) != "mean" for e in each) or not can_join(each):
        return {m: encoders[m](x[m], pointers[m]) for m in x}
    first, together = each[0], Pointers.join([pointers[m] for m in x])
    groups = Groups.below_each_other([p.num_samples for p in pointers.values()])
    pooled = mean_rows(torch.cat([x[m] for m in x]), together)
    hidden = first.dropout(first.activation(linear([e.hidden for e in each], pooled, groups)))
    h = linear([e.out for e in each], hidden, groups).masked_fill(together.absent.unsqueeze(1), 0)
    return dict(zip(x, h.split(groups.sizes), strict=True))


def _aggregation(pooling: Aggregation | str) -> Aggregation:
    if isinstance(pooling, Aggregation):
        return copy.deepcopy(pooling)
    try:
        return aggregation_resolver(pooling)
    except (ValueError, TypeError) as error:
        expected = "'mean', 'segments', 'max', 'gru', a torch_geometric.nn.Aggregation or the name of one"
        raise ValueError(f"pooling: expected {expected}, got {pooling!r}") from error


def _width_of(aggregation: Aggregation, channels: int) -> int:
    """The width of what it makes of a sequence, by a trial that leaves the caller's weights and running statistics as they are."""
    modes = [(module, module.training) for module in aggregation.modules()]
    with torch.no_grad():
        made = aggregation.eval()(torch.zeros(2, channels), torch.zeros(2, dtype=torch.int64), dim_size=1)
    for module, training in modes:
        module.training = training
    return made.size(-1)


class AgnosticEncoder(ExclusiveEncoder):
    r"""Pools a sequence and maps it to the representation width; all modalities share one ([MEA] Eq. 12).

    It computes what `ExclusiveEncoder` computes. A representation becomes agnostic because every modality passes through the same
    weights and the `DoubleDiscriminator` trains them against telling modalities apart.

    Args:
        channels, out_channels, pooling, segments, dropout: As for `ExclusiveEncoder`.

    Shape:
        - x, layout, result: as for `ExclusiveEncoder`

    Raises:
        ValueError: If `ExclusiveEncoder` would raise it.

    >>> import torch
    >>> encoder = AgnosticEncoder(40, 64)
    >>> [encoder(torch.randn(2, length, 40)).shape for length in (50, 375)]
    [torch.Size([2, 64]), torch.Size([2, 64])]
    """
