"""The whole model, made only of the layers beside it."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn.inits import reset
from torch_geometric.typing import EdgeType

from mea_graph.nn._packed_steps import can_pack
from mea_graph.nn._sequences import check_keys, check_modalities, check_sequences, check_sizes
from mea_graph.nn.decoupled_graph_fusion import DecoupledGraphFusion
from mea_graph.nn.dense_sequences import dense_sequences
from mea_graph.nn.double_discriminator import Discrimination, DoubleDiscriminator
from mea_graph.nn.fusion_graph import fusion_graph
from mea_graph.nn.hierarchical_cross_modal_attention import CrossModalEncoder
from mea_graph.nn.modality_centering import ModalityCentering
from mea_graph.nn.predictive_encoder import PredictiveEncoder
from mea_graph.nn.sequence_encoder import AgnosticEncoder, ExclusiveEncoder
from mea_graph.nn.unimodal_extractor import UnimodalExtractor
from mea_graph.ops.eager import is_traced


class MEAOutput(NamedTuple):
    """What the model returns. A space that was switched off is None; the last four are empty unless asked for (or switched off).

    >>> import torch
    >>> model = MEA({"text": 5, "audio": 3}, out_channels=1, channels=8, heads=2, hidden_channels=16)
    >>> output = model.forward_dense({"text": torch.randn(2, 4, 5), "audio": torch.randn(2, 9, 3)})
    >>> output.exclusive["audio"].shape, output.graph["text_agnostic"].num_nodes
    (torch.Size([2, 16]), 2)
    """

    prediction: Tensor  # (B, out_channels)
    exclusive: dict[str, Tensor] | None  # h_e, (B, d_h) by modality
    agnostic: dict[str, Tensor] | None  # h_a, (B, d_h) by modality
    present: dict[str, Tensor]  # (B,) bool by modality
    graph: HeteroData  # the fusion graph of the batch
    discrimination: Discrimination
    transfer: dict[EdgeType, Tensor]  # transfer coefficients xi by edge type
    modality_weights: list[Tensor]  # psi, (B, M) a predictive layer
    predictive_attention: dict[str, list[Tensor]]  # maps by modality and layer
    cross_modal_attention: list[dict[tuple[str, str, str], Tensor]]  # maps by layer and (stage, source, target)


class MEA(nn.Module):
    r"""Fuses asynchronous sequences through modality-exclusive and modality-agnostic representations ([MEA], all of it).

    Per modality a `UnimodalExtractor`; then two branches: `PredictiveEncoder` with one `ExclusiveEncoder` per modality, and
    `CrossModalEncoder` with one `AgnosticEncoder` for all; `DoubleDiscriminator` looks at both; `DecoupledGraphFusion` passes messages in
    two graphs per sample, and a perceptron on :math:`[h_{fin}^e, h_{fin}^a]` predicts. Train it with `MEALoss`.

    Sequences may have any lengths, and a modality may be missing from a sample: it is then a node that is not in the fusion graph, takes
    part in nothing and gets zero gradient.

    Args:
        in_channels: Width of the features by modality, at least two modalities.
        out_channels: Number of predicted values: 1 for regression, else classes or labels.
        channels: Common width d.
        hidden_channels: Width d_h of the representations.
        heads: Attention heads K, a divisor of `channels`.
        kernel_size, stride: Of the extractor's convolution, one for all or by modality. The paper has stride 1; more shortens long signals.
        skip: Whether the extractors have a path around their Bi-LSTM; the paper has none.
        num_predictive_layers, num_cross_modal_layers: M and N.
        mu: Share of the predicted map, in [0, 1].
        exclusive, agnostic: Which of the two branches to have; at least one (Table V, "w/o exclusive", "w/o agnostic").
        predictive_attention: Without, the exclusive encoders read the extractors (Table V, "w/o PSA").
        prediction_chain: Without, plain self-attention (Table V, "w/o prediction chain").
        weighted_attention: Table V, "w/o WAL".
        cross_modal_attention: Without, the agnostic encoder reads the extractors (Table V, "w/o HCA").
        mixed, coarse, fine: Stages of the cross-modal attention (Table V, "w/o mixed", "w/o coarse", "w/o fine").
        importance: Whether the adversarial loss is weighed by omega (Table V, "w/o omega").
        fusion: "graph", or the alternatives of Table V to it: "concatenation", "addition", "multiplication" of the representations.
        self_loops: Whether the nodes of the fusion graph also hear themselves (R7).
        head_norm: Whether the fused vector is normalised before the head. The sum of sigmoids of Eq. 19 moves little around M / 2 while the
            weights are young; the norm makes that little visible, and training far faster. The paper has none.
        residual: What attention is added to: "normalized", LN(Z), as printed, or "input", Z.
        pooling, segments: Of the encoders, see `ExclusiveEncoder` (R5).
        reversal: Scale of the gradient reversal; without effect where the adversary is "confusion".
        adversary: "reversal", as printed, or "confusion", which has a bound; see `DoubleDiscriminator`.
        center_agnostic: Whether agnostic representations lose the mean of their modality, so that no linear classifier tells it; see
            `ModalityCentering`. The paper has none.
        dropout: Probability, in every block.

    Shape:
        - x_dict: by modality :math:`(\sum_b T_m, d_m)`; batch_dict: by modality :math:`(\sum_b T_m,)`, int64, sorted
        - result: `MEAOutput`, prediction :math:`(B, C)`

    Raises:
        ValueError: A wrong shape, other modalities than those named, or an option out of its range.

    >>> import torch
    >>> model = MEA({"text": 300, "audio": 5, "vision": 20}, out_channels=1)
    >>> x = {"text": torch.randn(7, 300), "audio": torch.randn(40, 5), "vision": torch.randn(30, 20)}
    >>> batch = {m: torch.zeros(len(v), dtype=torch.long) for m, v in x.items()}  # one sample
    >>> model(x, batch).prediction.shape
    torch.Size([1, 1])
    """

    def __init__(
        self,
        in_channels: dict[str, int],
        out_channels: int,
        channels: int = 40,
        hidden_channels: int = 64,
        heads: int = 8,
        kernel_size: int | dict[str, int] = 3,
        stride: int | dict[str, int] = 1,
        skip: bool = False,
        num_predictive_layers: int = 3,
        num_cross_modal_layers: int = 2,
        mu: float = 0.25,
        exclusive: bool = True,
        agnostic: bool = True,
        predictive_attention: bool = True,
        prediction_chain: bool = True,
        weighted_attention: bool = True,
        cross_modal_attention: bool = True,
        mixed: bool = True,
        coarse: bool = True,
        fine: bool = True,
        importance: bool = True,
        fusion: Literal["graph", "concatenation", "addition", "multiplication"] = "graph",
        self_loops: bool = False,
        head_norm: bool = False,
        residual: Literal["normalized", "input"] = "normalized",
        pooling: Literal["mean", "segments", "max", "gru"] = "mean",
        segments: int = 4,
        reversal: float = 1.0,
        adversary: Literal["reversal", "confusion"] = "reversal",
        center_agnostic: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = check_modalities(in_channels, at_least=2)
        if not (exclusive or agnostic):
            raise ValueError("exclusive, agnostic: expected at least one of them, got False twice")
        if fusion not in ("graph", "concatenation", "addition", "multiplication"):
            raise ValueError(f"fusion: expected 'graph', 'concatenation', 'addition' or 'multiplication', got {fusion!r}")
        check_sizes(**{f"in_channels[{m!r}]": width for m, width in in_channels.items()})
        check_sizes(out_channels=out_channels, hidden_channels=hidden_channels)
        self.in_channels, self.out_channels = dict(in_channels), out_channels
        self.fusion, self.self_loops = fusion, self_loops
        kernels, strides = self._per_modality(kernel_size, "kernel_size"), self._per_modality(stride, "stride")
        self.extractors = nn.ModuleDict(
            {m: UnimodalExtractor(in_channels[m], channels, kernels[m], strides[m], skip, dropout) for m in self.modalities}
        )
        self.predictive = self.cross_modal = self.exclusive_encoders = self.agnostic_encoder = self.centering = self.graph_fusion = None
        if exclusive:
            if predictive_attention:
                self.predictive = PredictiveEncoder(
                    channels, self.modalities, heads, num_predictive_layers, mu, prediction_chain, weighted_attention, residual, dropout
                )
            self.exclusive_encoders = nn.ModuleDict(
                {m: ExclusiveEncoder(channels, hidden_channels, pooling, segments, dropout) for m in self.modalities}
            )
        if agnostic:
            if cross_modal_attention:
                self.cross_modal = CrossModalEncoder(
                    channels, self.modalities, heads, num_cross_modal_layers, mixed, coarse, fine, residual, dropout
                )
            self.agnostic_encoder = AgnosticEncoder(channels, hidden_channels, pooling, segments, dropout)
            if center_agnostic:
                self.centering = ModalityCentering(hidden_channels, self.modalities)
        self.discriminator = DoubleDiscriminator(hidden_channels, self.modalities, importance and agnostic, reversal, adversary)
        spaces = [name for name, there in (("exclusive", exclusive), ("agnostic", agnostic)) if there]
        if fusion == "graph":
            self.graph_fusion = DecoupledGraphFusion(hidden_channels, spaces=spaces)
        fused = hidden_channels * len(spaces) * (len(self.modalities) if fusion == "concatenation" else 1)
        self.head = nn.Sequential(
            nn.LayerNorm(fused) if head_norm else nn.Identity(),
            nn.Linear(fused, hidden_channels),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_channels, out_channels),
        )

    def _per_modality(self, value: int | dict[str, int], name: str) -> dict[str, int]:
        if isinstance(value, int):
            return dict.fromkeys(self.modalities, value)
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}: expected an integer, or a dict of one by modality, got {value!r}")
        check_keys(value, self.modalities, name)
        return dict(value)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for part in self.children():
            reset(part)

    def forward(
        self,
        x_dict: Mapping[str, Tensor],
        batch_dict: Mapping[str, Tensor],
        batch_size: int | None = None,
        return_attention_weights: bool = False,
    ) -> MEAOutput:
        """Predicts for a PyG batch; `batch_size` is needed where the last samples have no modality at all."""
        check_keys(x_dict, self.modalities, "x_dict")
        x, mask = dense_sequences(x_dict, batch_dict, batch_size)
        return self.forward_dense(x, mask, return_attention_weights)

    def forward_dense(
        self, x: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None = None, return_attention_weights: bool = False
    ) -> MEAOutput:
        """Predicts for padded sequences, (B, T_m, d_m) by modality, and their masks, (B, T_m)."""
        features, real = check_sequences(x, mask, self.modalities, self.in_channels)
        if mask is not None and not return_attention_weights:  # maps are as wide as the caller's padding
            features, real = self._trim(features, real)
        z = {m: self.extractors[m](features[m], real[m]) for m in self.modalities}
        valid = {m: cast(UnimodalExtractor, self.extractors[m]).output_mask(real[m]) for m in self.modalities}
        present = {m: valid[m].any(1) for m in self.modalities}
        complete = mask is None and all(v.size(1) for v in valid.values())  # told by shapes alone: every sample has every modality

        exclusive = agnostic = None
        modality_weights, predictive_maps, cross_modal_maps = [], {}, []
        if self.exclusive_encoders is not None:
            z_e = z
            if self.predictive is not None:
                z_e, modality_weights, predictive_maps = self.predictive(z, valid, return_attention_weights)
            exclusive = {m: self.exclusive_encoders[m](z_e[m], valid[m]) for m in self.modalities}
        if self.agnostic_encoder is not None:
            z_a = z
            if self.cross_modal is not None:
                z_a, cross_modal_maps = self.cross_modal(z, valid, return_attention_weights)
            agnostic = {m: self.agnostic_encoder(z_a[m], valid[m]) for m in self.modalities}
            if self.centering is not None:
                agnostic = self.centering(agnostic, None if complete else present)

        graph = fusion_graph(exclusive, agnostic, None if complete else present, self.self_loops, keep_absent=is_traced())
        transfer: dict[EdgeType, Tensor] = {}
        spaces = [h for h in (exclusive, agnostic) if h is not None]
        if self.graph_fusion is not None:
            there = graph.collect("present", allow_empty=True)
            fused = self.graph_fusion(
                graph.x_dict, graph.edge_index_dict, graph.sample_dict, graph.num_samples, there, return_attention_weights
            )
            vectors, transfer = list(fused.x.values()), fused.transfer
        else:
            vectors = [self._combine(h, present) for h in spaces]
        return MEAOutput(
            self.head(torch.cat(vectors, 1)),
            exclusive,
            agnostic,
            present,
            graph,
            self.discriminator(exclusive, agnostic),
            transfer,
            modality_weights,
            predictive_maps,
            cross_modal_maps,
        )

    @staticmethod
    def _trim(features: dict[str, Tensor], real: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Without the steps that no sample has, where lengths can be read for nothing."""
        length: dict[str, int] = {}
        for m, mask in real.items():
            if can_pack(mask):
                steps = mask.any(0).nonzero()
                length[m] = int(steps[-1]) + 1 if len(steps) else 1  # one step left: parameters get a gradient of zero, not None
        return {m: x[:, : length.get(m)] for m, x in features.items()}, {m: mask[:, : length.get(m)] for m, mask in real.items()}

    def _combine(self, h: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """The alternatives to the graph; a missing modality's vector is zero, and one where it would be a factor."""
        if self.fusion == "concatenation":
            return torch.cat([h[m] for m in self.modalities], 1)
        if self.fusion == "addition":
            return torch.stack([h[m] for m in self.modalities]).sum(0)
        factors = [h[m].masked_fill(~present[m].unsqueeze(1), 1) for m in self.modalities]
        return torch.stack(factors).prod(0)
