"""How much each modality counts for a sample, [MEA] Eq. 5-6."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.nn._sequences import Layout, apart, check_modalities, check_sizes, enter_all, leave_all, weight_dtype
from mea_graph.nn._side_by_side import Groups, can_join, linear
from mea_graph.ops import Pointers, masked_softmax
from mea_graph.ops.pooling import mean_rows


class WeightedAttention(nn.Module):
    r"""Weighs the modalities of each sample against each other and scales them ([MEA] Eq. 5-6).

    .. math::
        \gamma_m = \frac{1}{T_m} \sum_t p_m^T \tanh(W_m z_{m,t} + b_m), \qquad
        \psi = \mathrm{softmax}_m(\gamma), \qquad Z_m \leftarrow \psi_m Z_m

    The paper's matrix over the whole flattened sequence would fix T; here it is tied along time (R3). A missing modality gets weight 0.

    Args:
        channels: Width d.
        modalities: Names of the modalities.

    Shape:
        - x: dict of rows :math:`(N_m, d)` with ptr :math:`(B + 1,)` each, or of :math:`(B, T_m, d)` with masks :math:`(B, T_m)`
        - result: dict like `x`, and the weights :math:`\psi` :math:`(B, M)` in the order of `modalities`; summing to one over those present

    Raises:
        ValueError: If a shape is wrong, or the modalities are not those named.

    >>> import torch
    >>> layer = WeightedAttention(8, ["text", "audio"])
    >>> x, weights = layer(
    ...     {"text": torch.randn(2, 3, 8), "audio": torch.randn(2, 7, 8)}
    ... )
    >>> weights.sum(1).detach().allclose(torch.ones(2))
    True
    """

    def __init__(self, channels: int, modalities: Iterable[str]) -> None:
        super().__init__()
        check_sizes(channels=channels)
        self.channels, self.modalities = channels, check_modalities(modalities)
        self.transform = nn.ModuleDict({m: nn.Linear(channels, channels) for m in self.modalities})
        self.score = nn.ModuleDict({m: nn.Linear(channels, 1, bias=False) for m in self.modalities})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        reset(self.transform)
        reset(self.score)

    def forward(self, x: Mapping[str, Tensor], layout: Mapping[str, Layout] | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the scaled sequences and the weights."""
        entered = enter_all(x, layout, self.modalities, self.channels, dtype=partial(weight_dtype, self.transform))
        pointers = [e.pointers for e in entered.values()]
        if self.can_join():
            rows, weights = self.joined(torch.cat([e.x for e in entered.values()]), pointers, Pointers.join(pointers))
            parts = rows.split([p.num_rows for p in pointers])
        else:
            layers = ((self.transform[m], self.score[m], entered[m]) for m in self.modalities)
            scores = [mean_rows(score(torch.tanh(transform(e.x))), e.pointers) for transform, score, e in layers]
            weights = masked_softmax(torch.cat(scores, 1), torch.stack([p.present for p in pointers], 1))
            of_row = (weights[:, i : i + 1].index_select(0, p.sample) for i, p in enumerate(pointers))
            parts = tuple(e.x * w for e, w in zip(entered.values(), of_row, strict=True))
        return apart(leave_all(entered, parts), layout), weights

    def can_join(self) -> bool:
        """Returns whether all modalities may be scored at once."""
        return all(map(can_join, self.parts()))

    def parts(self) -> list[list[nn.Module]]:
        """Returns the layers with weights, each kind of all modalities."""
        return [[of[m] for m in self.modalities] for of in (self.transform, self.score)]

    def joined(self, rows: Tensor, pointers: Sequence[Pointers], together: Pointers) -> tuple[Tensor, Tensor]:
        """Computes `forward` on the stacked rows of all modalities; `together` are their joined pointers."""
        groups = Groups.below_each_other([p.num_rows for p in pointers])
        transform, score = self.parts()
        gamma = mean_rows(linear(score, torch.tanh(linear(transform, rows, groups)), groups), together)  # (M B, 1)
        with torch.no_grad():  # the score of an absent modality is the mean of nothing, a constant: there is no gradient to cut off
            gamma.masked_fill_(together.absent.unsqueeze(1), torch.finfo(gamma.dtype).min)
        weights = gamma.view(len(pointers), -1).softmax(0)
        scaled = rows * weights.view(-1, 1).index_select(0, together.sample)
        # Only now, for those who look: a sample without any modality has no row that its weights would scale.
        return scaled, weights.masked_fill(together.absent.view_as(weights), 0).mT
