"""The two halves between the extractors and the fusion: sequences to exclusive and to agnostic representations, [MEA] Eq. 2-12."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.inits import reset

from mea_graph.nn._sequences import Layout, apart, check_modalities, check_pairs, check_sizes, enter_all
from mea_graph.nn._side_by_side import level
from mea_graph.nn.attention.arrows import Edges
from mea_graph.nn.attention.hierarchical_cross_modal_attention import Arrow, CrossModalEncoder
from mea_graph.nn.attention.predictive_encoder import PredictiveEncoder
from mea_graph.nn.objective.modality_centering import ModalityCentering
from mea_graph.nn.sequence_encoder import AgnosticEncoder, ExclusiveEncoder, Pooling, dtype_of, encode_all
from mea_graph.ops import Pointers
from mea_graph.ops.eager import is_traced


class ExclusiveOutput(NamedTuple):
    """One vector for each sample and modality, and the attention behind it.

    >>> import torch
    >>> output = ExclusiveBranch(8, 16, ["a", "b"], heads=2)(
    ...     {"a": torch.randn(2, 3, 8), "b": torch.randn(2, 4, 8)}
    ... )
    >>> output.x["a"].shape
    torch.Size([2, 16])
    """

    x: dict[str, Tensor]  # h_e, (B, d_h) by modality; zeros where it is missing
    modality_weights: list[Tensor]  # psi, (B, M) a layer
    attention: dict[str, list[Tensor]]  # maps by modality and layer, none unless requested


class ExclusiveBranch(nn.Module):
    r"""Represents each modality by itself: predictive self-attention, then an encoder for each modality ([MEA] Eq. 2-6, 11).

    Args:
        channels: Width d of the sequences.
        hidden_channels: Width d_h of the representations.
        modalities: Names of the modalities.
        heads: Number of heads K, a divisor of `channels`.
        num_layers: Number of predictive layers; 0 leaves attention out: the encoders read the extractors' output (Table V, "w/o PSA").
        mu: Share of the predicted map, in [0, 1]; 0 leaves the prediction out. It has no effect with one layer.
        prediction_chain: Whether a layer's maps guide the next one's; False is plain self-attention (Table V, "w/o prediction chain").
        weighted_attention: Whether the modalities of a sample are weighed against each other after each layer (Table V, "w/o WAL").
        residual: What attention is added to: "input", Z, the usual pre-norm residual; or "normalized", LN(Z), as in the paper.
        pooling, segments: How an encoder makes one vector of a sequence, see `ExclusiveEncoder` (R5).
        dropout: Probability, in every block.

    Shape:
        - x: dict of rows :math:`(N_m, d)` with ptr :math:`(B + 1,)` each, or of :math:`(B, T_m, d)` with masks :math:`(B, T_m)`
        - edges: by pair (source, target) of modalities, of which the pairs (m, m) are read; None: all of the sample
        - result: `ExclusiveOutput`

    Raises:
        ValueError: If a shape is wrong, the modalities are not those named, or an option is out of its range.

    >>> import torch
    >>> branch = ExclusiveBranch(
    ...     16, 32, ["audio", "lips"], heads=4, num_layers=2, pooling="gru"
    ... )
    >>> branch({"audio": torch.randn(2, 9, 16), "lips": torch.randn(2, 5, 16)}).x[
    ...     "lips"
    ... ].shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        modalities: Iterable[str],
        heads: int = 8,
        num_layers: int = 3,
        mu: float = 0.25,
        prediction_chain: bool = True,
        weighted_attention: bool = True,
        residual: Literal["normalized", "input"] = "normalized",
        pooling: Pooling | Aggregation | str = "mean",
        segments: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(hidden_channels=hidden_channels)
        self.channels, self.hidden_channels, self.modalities = channels, hidden_channels, check_modalities(modalities)
        self.attention = None
        if num_layers:
            self.attention = PredictiveEncoder(
                channels, self.modalities, heads, num_layers, mu, prediction_chain, weighted_attention, residual, dropout
            )
        self.encoders = nn.ModuleDict({m: ExclusiveEncoder(channels, hidden_channels, pooling, segments, dropout) for m in self.modalities})

    @property
    def stages(self) -> list[str]:
        """The edge types between steps that messages pass along."""
        return [] if self.attention is None else ["self"]

    def reset_parameters(self) -> None:
        """Draws new weights."""
        reset(self.attention)
        reset(self.encoders)

    def forward(
        self,
        x: Mapping[str, Tensor],
        layout: Mapping[str, Layout] | None = None,
        edges: Mapping[tuple[str, str], Edges] | None = None,
        return_attention_weights: bool = False,
    ) -> ExclusiveOutput:
        """Returns a representation of each modality."""
        check_pairs(edges, self.modalities)
        dtype = None if self.attention is not None else lambda m: dtype_of(self.encoders[m])
        entered = enter_all(x, layout, self.modalities, self.channels, edges, dtype=dtype)
        z, pointers = {m: e.x for m, e in entered.items()}, {m: e.pointers for m, e in entered.items()}
        if edges is None and not return_attention_weights:  # edges number rows, which `level` moves
            z, pointers = level(z, pointers)
        weights: list[Tensor] = []
        maps: dict[str, list[Tensor]] = {}
        if self.attention is not None:
            own = None if edges is None else {m: edges[m, m] for m in self.modalities if (m, m) in edges}
            z, weights, maps = self.attention(z, pointers, own, return_attention_weights)
        return ExclusiveOutput(apart(encode_all(self.encoders, z, pointers), layout), weights, maps)


class AgnosticOutput(NamedTuple):
    """One vector for each sample and modality, and the attention maps behind it.

    >>> import torch
    >>> output = AgnosticBranch(8, 16, ["a", "b"], heads=2)(
    ...     {"a": torch.randn(2, 3, 8), "b": torch.randn(2, 4, 8)}
    ... )
    >>> output.x["a"].shape
    torch.Size([2, 16])
    """

    x: dict[str, Tensor]  # h_a, (B, d_h) by modality; zeros where it is missing
    attention: list[dict[Arrow, Tensor]]  # maps by layer and (stage, source, target), none unless requested


class AgnosticBranch(nn.Module):
    r"""Represents what modalities share: cross-modal attention, then one encoder for all ([MEA] Eq. 7-10, 12).

    Args:
        channels: Width d of the sequences.
        hidden_channels: Width d_h of the representations.
        modalities: Names of the modalities, at least two.
        heads: Number of heads K, a divisor of `channels`.
        num_layers: Number of cross-modal layers; 0 leaves attention out: the encoder reads the extractors' output (Table V, "w/o HCA").
        mixed, coarse, fine: Whether a layer has this stage; at least one. With three modalities or more, fine alone may learn sooner
            (Table V, "w/o mixed", "w/o coarse", "w/o fine").
        residual: What attention is added to: "input", Z, the usual pre-norm residual; or "normalized", LN(Z), as in the paper.
        pooling, segments: How the encoder makes one vector of a sequence, see `AgnosticEncoder` (R5).
        center: Whether to subtract the mean of its modality from each representation, which hides the modality from linear
            classifiers; see `ModalityCentering`. The paper does not.
        dropout: Probability, in every block.

    Shape:
        - x: dict of rows :math:`(N_m, d)` with ptr :math:`(B + 1,)` each, or of :math:`(B, T_m, d)` with masks :math:`(B, T_m)`
        - edges: by pair (source, target) of modalities; None: all of the sample
        - result: `AgnosticOutput`

    Raises:
        ValueError: If a shape is wrong, the modalities are not those named, or an option is out of its range.

    >>> import torch
    >>> branch = AgnosticBranch(
    ...     16, 32, ["audio", "lips"], heads=4, num_layers=1, coarse=False
    ... )
    >>> branch({"audio": torch.randn(2, 9, 16), "lips": torch.randn(2, 5, 16)}).x[
    ...     "lips"
    ... ].shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        modalities: Iterable[str],
        heads: int = 8,
        num_layers: int = 2,
        mixed: bool = True,
        coarse: bool = True,
        fine: bool = True,
        residual: Literal["normalized", "input"] = "normalized",
        pooling: Pooling | Aggregation | str = "mean",
        segments: int = 4,
        center: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(hidden_channels=hidden_channels)
        self.channels, self.hidden_channels = channels, hidden_channels
        self.modalities = check_modalities(modalities, at_least=2)
        self.attention = None
        if num_layers:
            self.attention = CrossModalEncoder(channels, self.modalities, heads, num_layers, mixed, coarse, fine, residual, dropout)
        self.encoder = AgnosticEncoder(channels, hidden_channels, pooling, segments, dropout)
        self.centering = ModalityCentering(hidden_channels, self.modalities) if center else None

    @property
    def stages(self) -> list[str]:
        """The edge types between steps that messages pass along."""
        return [] if self.attention is None else self.attention.stages

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for part in self.children():
            reset(part)

    def forward(
        self,
        x: Mapping[str, Tensor],
        layout: Mapping[str, Layout] | None = None,
        edges: Mapping[tuple[str, str], Edges] | None = None,
        return_attention_weights: bool = False,
    ) -> AgnosticOutput:
        """Returns a representation of each modality."""
        dtype = None if self.attention is not None else lambda m: dtype_of(self.encoder)
        entered = enter_all(x, layout, self.modalities, self.channels, edges, dtype=dtype)
        z, pointers = {m: e.x for m, e in entered.items()}, {m: e.pointers for m, e in entered.items()}
        if edges is None and not return_attention_weights:  # edges number rows, which `level` moves
            z, pointers = level(z, pointers)
        maps: list[dict[Arrow, Tensor]] = []
        if self.attention is not None:
            z, maps = self.attention(z, pointers, edges, return_attention_weights)
        if is_traced():
            h = {m: self.encoder(z[m], pointers[m]) for m in self.modalities}
        else:
            rows, modalities = torch.cat([z[m] for m in self.modalities]), len(self.modalities)
            together = self.encoder(rows, Pointers.join([pointers[m] for m in self.modalities]))
            parts = rearrange(together, "(modality sample) width -> modality sample width", modality=modalities).unbind()
            h = dict(zip(self.modalities, parts, strict=True))
        if self.centering is not None:
            h = self.centering(h, None if all_present(pointers) else {m: p.present for m, p in pointers.items()})
        return AgnosticOutput(apart(h, layout), maps)


def all_present(pointers: Mapping[str, Pointers]) -> bool:
    """Whether every sample has every modality, as far as shapes alone tell."""
    return all(p.packed and p.steps for p in pointers.values())
