"""How much each modality counts for a sample, [MEA] Eq. 5-6."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.nn._packed_steps import Steps, are_steps
from mea_graph.nn._sequences import check_modalities, check_sequences, check_sizes
from mea_graph.nn.sequence_encoder import masked_mean
from mea_graph.ops import masked_softmax, segment_sum


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
        - x: dict of :math:`(B, T_m, d)`; mask: dict of :math:`(B, T_m)`, bool, or None
        - result: dict like `x`, and the weights :math:`\psi` :math:`(B, M)` in the order of `modalities`; summing to one over those present

    Raises:
        ValueError: A wrong shape or other modalities than those named.

    >>> import torch
    >>> layer = WeightedAttention(8, ["text", "audio"])
    >>> x, weights = layer({"text": torch.randn(2, 3, 8), "audio": torch.randn(2, 7, 8)})
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

    def forward(self, x: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the scaled sequences and the weights."""
        if are_steps(x):  # how `PredictiveEncoder` calls it on a CPU
            return self._on_steps(x)
        clean, valid = check_sequences(x, mask, self.modalities, self.channels)
        scores = [self.score[m](masked_mean(torch.tanh(self.transform[m](clean[m])), valid[m])) for m in self.modalities]  # (B, 1) each
        present = [valid[m].any(1) for m in self.modalities]
        weights = masked_softmax(torch.cat(scores, 1), torch.stack(present, 1))  # (B, M)
        return {m: clean[m] * weights[:, i, None, None] for i, m in enumerate(self.modalities)}, weights

    def _on_steps(self, steps: Mapping[str, Steps]) -> tuple[Any, Tensor]:
        """The same without the padding."""
        scores, present = [], []
        for m in self.modalities:
            own = steps[m]
            lengths = torch.tensor(own.lengths).unsqueeze(1)
            total = segment_sum(torch.tanh(self.transform[m](own.x)), own.sample, len(lengths))
            scores.append(self.score[m](total / lengths.clamp(min=1)))  # (B, 1)
            present.append(lengths > 0)
        weights = masked_softmax(torch.cat(scores, 1), torch.cat(present, 1))  # (B, M)
        of_steps = (weights.index_select(0, steps[m].sample)[:, i : i + 1] for i, m in enumerate(self.modalities))
        return {m: steps[m]._replace(x=steps[m].x * w) for m, w in zip(self.modalities, of_steps, strict=True)}, weights
