"""The predictive branch: stacks of predictive self-attention with weighted attention between, [MEA] Eq. 2-6."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.nn._packed_steps import can_pack, pack
from mea_graph.nn._sequences import check_modalities, check_sequences
from mea_graph.nn.predictive_self_attention import PredictiveSelfAttention, Prior
from mea_graph.nn.weighted_attention import WeightedAttention


class PredictiveEncoderOutput(NamedTuple):
    """Sequences, the weights of the modalities after every layer, and the attention maps (empty unless asked for).

    >>> import torch
    >>> output = PredictiveEncoder(8, ["a", "b"], heads=2, num_layers=1)({"a": torch.randn(1, 3, 8), "b": torch.randn(1, 4, 8)})
    >>> len(output.modality_weights), output.attention
    (1, {})
    """

    x: dict[str, Tensor]  # (B, T_m, d) each
    modality_weights: list[Tensor]  # (B, M) a layer
    attention: dict[str, list[Tensor]]  # (B, K, T_m, T_m) a layer


class PredictiveEncoder(nn.Module):
    r"""M predictive self-attention layers per modality, with weighted attention across modalities after each ([MEA] Eq. 2-6).

    Args:
        channels: Width d.
        modalities: Names of the modalities.
        heads: K, a divisor of `channels`.
        num_layers: M, at least 1.
        mu: Share of the predicted map, in [0, 1].
        prediction_chain: Whether a layer's maps guide the next one's (Table V, "w/o prediction chain").
        weighted_attention: Whether the modalities are weighed after each layer (Table V, "w/o WAL").
        residual, dropout: As for `PredictiveSelfAttention`.

    Shape:
        - x: dict of :math:`(B, T_m, d)`; mask: dict of :math:`(B, T_m)`, bool, or None
        - result: `PredictiveEncoderOutput`

    Raises:
        ValueError: A wrong shape or other modalities than those named.

    >>> import torch
    >>> encoder = PredictiveEncoder(16, ["audio", "lips"], heads=4)
    >>> encoder({"audio": torch.randn(2, 9, 16), "lips": torch.randn(2, 5, 16)}).x["lips"].shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        channels: int,
        modalities: Iterable[str],
        heads: int = 8,
        num_layers: int = 3,
        mu: float = 0.25,
        prediction_chain: bool = True,
        weighted_attention: bool = True,
        residual: Literal["normalized", "input"] = "normalized",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
        self.channels, self.modalities = channels, check_modalities(modalities)
        self.attention = nn.ModuleDict(
            {
                m: nn.ModuleList(
                    PredictiveSelfAttention(channels, heads, mu, prediction_chain and i > 0, residual, dropout) for i in range(num_layers)
                )
                for m in self.modalities
            }
        )
        self.weighted = nn.ModuleList(WeightedAttention(channels, self.modalities) for _ in range(num_layers if weighted_attention else 0))
        self.num_layers, self.prediction_chain = num_layers, prediction_chain

    def reset_parameters(self) -> None:
        """Draws new weights."""
        reset(self.attention)
        reset(self.weighted)

    def forward(
        self, x: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None = None, return_attention_weights: bool = False
    ) -> PredictiveEncoderOutput:
        """Returns the sequences after the last layer."""
        clean, valid = check_sequences(x, mask, self.modalities, self.channels)
        packed = all(can_pack(z) for z in clean.values())
        current: dict[str, Any] = {m: pack(z, valid[m]) for m, z in clean.items()} if packed else clean
        weights = []
        priors: dict[str, Prior | None] = dict.fromkeys(self.modalities)
        maps: dict[str, list[Tensor]] = {m: [] for m in self.modalities} if return_attention_weights else {}
        for i in range(self.num_layers):
            for m in self.modalities:
                layer = cast(nn.ModuleList, self.attention[m])[i]
                result = layer(current[m], valid[m], priors[m], return_attention_weights)
                current[m] = result[0]
                priors[m] = result[1] if self.prediction_chain else None
                if return_attention_weights:
                    maps[m].append(result[2])
            if self.weighted:
                current, psi = self.weighted[i](current, valid)
                weights.append(psi)
        return PredictiveEncoderOutput({m: z.padded() for m, z in current.items()} if packed else current, weights, maps)
