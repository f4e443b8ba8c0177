"""The predictive branch: stacks of predictive self-attention with weighted attention between, [MEA] Eq. 2-6."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset
from typing_extensions import Unpack

from mea_graph.nn._sequences import Layout, apart, check_heard, check_modalities, enter_all, leave_all, weight_dtype
from mea_graph.nn._side_by_side import can_join
from mea_graph.nn.attention.options import AttentionOptions, check_layers
from mea_graph.nn.attention.predictive_self_attention import PredictiveSelfAttention, Prior, attend
from mea_graph.nn.attention.weighted_attention import WeightedAttention
from mea_graph.ops import IntervalEdges, Pointers


class PredictiveEncoderOutput(NamedTuple):
    """Sequences, the weights of the modalities after every layer, and the attention maps (empty unless requested).

    >>> import torch
    >>> output = PredictiveEncoder(8, ["a", "b"], heads=2, num_layers=1)(
    ...     {"a": torch.randn(1, 3, 8), "b": torch.randn(1, 4, 8)}
    ... )
    >>> len(output.modality_weights), output.attention
    (1, {})
    """

    x: dict[str, Tensor]  # as the input: (N_m, d) or (B, T_m, d)
    modality_weights: list[Tensor]  # (B, M) a layer
    attention: dict[str, list[Tensor]]  # (B, K, T_m, T_m) a layer


class PredictiveEncoder(nn.Module):
    r"""Stacks predictive self-attention for each modality, with `WeightedAttention` after each layer ([MEA] Eq. 2-6).

    Args:
        channels: Width d.
        modalities: Names of the modalities.
        heads: Number of heads K, a divisor of `channels`.
        num_layers: Number of layers (the paper's M), at least 1.
        mu: Share of the predicted map, in [0, 1]; 0 leaves the prediction out.
        prediction_chain: Whether a layer's maps guide the next one's (Table V, "w/o prediction chain").
        weighted_attention: Whether the modalities are weighed after each layer (Table V, "w/o WAL").
        residual, dropout, options: As for `PredictiveSelfAttention`; options are `head_channels`, `feed_forward_channels` and
            `attention_dropout`.

    Shape:
        - x: dict of rows :math:`(N_m, d)` with ptr :math:`(B + 1,)` each, or of :math:`(B, T_m, d)` with masks :math:`(B, T_m)`
        - edges: by modality, as for `PredictiveSelfAttention`
        - result: `PredictiveEncoderOutput`

    Raises:
        ValueError: If a shape is wrong, or the modalities are not those named.

    >>> import torch
    >>> encoder = PredictiveEncoder(16, ["audio", "lips"], heads=4)
    >>> encoder({"audio": torch.randn(2, 9, 16), "lips": torch.randn(2, 5, 16)}).x[
    ...     "lips"
    ... ].shape
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
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        check_layers(num_layers)
        self.channels, self.modalities = channels, check_modalities(modalities)
        self.attention = nn.ModuleDict(
            {
                m: nn.ModuleList(
                    PredictiveSelfAttention(channels, heads, mu, prediction_chain and i > 0, residual, dropout, **options)
                    for i in range(num_layers)
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
        self,
        x: Mapping[str, Tensor],
        layout: Mapping[str, Layout] | None = None,
        edges: Mapping[str, IntervalEdges | Tensor] | None = None,
        return_attention_weights: bool = False,
    ) -> PredictiveEncoderOutput:
        """Returns the sequences after the last layer."""
        entered = enter_all(x, layout, self.modalities, self.channels, edges, dtype=self._dtype)
        pointers = [e.pointers for e in entered.values()]
        if edges is not None and not isinstance(edges, Mapping):
            raise TypeError(f"edges: expected a dict of edges by modality, got {type(edges).__name__}")
        given = {} if edges is None else edges
        for m, own in given.items():
            if m not in entered:
                raise ValueError(f"edges: expected some of the modalities {list(self.modalities)}, got {m!r}")
            check_heard(own, [entered[m].pointers], entered[m].pointers, f"edges[{m!r}]")
        heard = [given.get(m) for m in self.modalities]
        maps: dict[str, list[Tensor]] = {m: [] for m in self.modalities} if return_attention_weights else {}
        layers = [[cast(nn.ModuleList, self.attention[m])[i] for m in self.modalities] for i in range(self.num_layers)]
        weigh = [cast(WeightedAttention, w) for w in self.weighted]
        if all(map(can_join, layers)) and (not weigh or can_join(weigh)) and all(w.can_join() for w in weigh):
            rows, weights = self._joined(torch.cat([e.x for e in entered.values()]), pointers, heard, maps)
            parts: Sequence[Tensor] = rows.split([p.num_rows for p in pointers])
        else:
            parts, weights = self._in_turn([e.x for e in entered.values()], pointers, heard, maps)
        return PredictiveEncoderOutput(apart(leave_all(entered, parts), layout), weights, maps)

    def _dtype(self, modality: str) -> torch.dtype | None:
        return weight_dtype(cast(nn.ModuleList, self.attention[modality])[0], "query_key_value")

    def _joined(
        self,
        rows: Tensor,
        pointers: Sequence[Pointers],
        edges: Sequence[IntervalEdges | Tensor | None],
        maps: dict[str, list[Tensor]],
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs all modalities at once, on their stacked rows."""
        together, weights = Pointers.join(pointers), []
        prior: Prior | None = None
        stacks = [cast(nn.ModuleList, self.attention[m]) for m in self.modalities]
        layers = [[cast(PredictiveSelfAttention, stack[i]) for stack in stacks] for i in range(self.num_layers)]
        weigh = [cast(WeightedAttention, layer) for layer in self.weighted]
        for i, each in enumerate(layers):
            rows, own, drawn = attend(each, rows, pointers, together, prior, edges, bool(maps))
            prior = own if self.prediction_chain else None
            for m, drawing in zip(maps, drawn, strict=True):
                maps[m].append(drawing)
            if weigh:
                rows, psi = weigh[i].joined(rows, pointers, together)
                weights.append(psi)
        return rows, weights

    def _in_turn(
        self,
        current: list[Tensor],
        pointers: Sequence[Pointers],
        edges: Sequence[IntervalEdges | Tensor | None],
        maps: dict[str, list[Tensor]],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Runs modality by modality: for layers with hooks, and while a graph is recorded."""
        weights = []
        priors: list[Prior | None] = [None] * len(pointers)
        for i in range(self.num_layers):
            for j, m in enumerate(self.modalities):
                layer = cast(nn.ModuleList, self.attention[m])[i]
                current[j], own, *drawn = layer(current[j], pointers[j], priors[j], edges[j], bool(maps))
                priors[j] = own if self.prediction_chain else None
                if maps:
                    maps[m].append(drawn[0])
            if self.weighted:
                scaled, psi = self.weighted[i](*(dict(zip(self.modalities, part, strict=True)) for part in (current, pointers)))
                current = list(scaled.values())
                weights.append(psi)
        return current, weights
