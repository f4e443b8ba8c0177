"""The whole model, made only of the layers beside it."""

import warnings
from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.nn.inits import reset
from torch_geometric.typing import EdgeType

from mea_graph.nn._sequences import Layout, check_keys, check_modalities, check_sizes, enter_all
from mea_graph.nn.attention.hierarchical_cross_modal_attention import Arrow, Arrows, CrossModalEncoder
from mea_graph.nn.attention.predictive_encoder import PredictiveEncoder
from mea_graph.nn.graph.decoupled_graph_fusion import DecoupledGraphFusion
from mea_graph.nn.graph.fusion_graph import SPACES, FusionGraph, fusion_graph
from mea_graph.nn.objective.double_discriminator import Discrimination, DoubleDiscriminator
from mea_graph.nn.objective.modality_centering import ModalityCentering
from mea_graph.nn.sequence_encoder import AgnosticEncoder, ExclusiveEncoder, Pooling
from mea_graph.nn.unimodal_extractor import UnimodalExtractor
from mea_graph.ops import IntervalEdges, Pointers
from mea_graph.ops.eager import is_traced
from mea_graph.ops.pointers import put_rows


class MEAOutput(NamedTuple):
    """What the model returns. A space that was switched off is None; the last four are empty unless asked for (or switched off).

    >>> import torch
    >>> model = MEA({"text": 5, "audio": 3}, out_channels=1, channels=8, heads=2, hidden_channels=16)
    >>> output = model({"text": torch.randn(2, 4, 5), "audio": torch.randn(2, 9, 3)})
    >>> output.exclusive["audio"].shape, output.graph["text_agnostic"].num_nodes
    (torch.Size([2, 16]), 2)
    """

    prediction: Tensor  # (B, out_channels)
    exclusive: dict[str, Tensor] | None  # h_e, (B, d_h) by modality
    agnostic: dict[str, Tensor] | None  # h_a, (B, d_h) by modality
    present: dict[str, Tensor]  # (B,) bool by modality
    graph: FusionGraph  # what was fused
    discrimination: Discrimination
    transfer: dict[EdgeType, Tensor]  # transfer coefficients xi by edge type
    modality_weights: list[Tensor]  # psi, (B, M) a predictive layer
    predictive_attention: dict[str, list[Tensor]]  # maps by modality and layer
    cross_modal_attention: list[dict[Arrow, Tensor]]  # maps by layer and (stage, source, target)


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
        - batch: a PyG batch whose node types hold `x` :math:`(\sum_b T_m, d_m)`; or dicts of rows, or of padded sequences, see `forward`
        - result: `MEAOutput`, prediction :math:`(B, C)`

    Raises:
        ValueError: A wrong shape, other modalities than those named, a batch whose rows do not belong to their samples, or an option out
            of its range.

    >>> import torch
    >>> from torch_geometric.data import Batch, HeteroData
    >>> model = MEA({"text": 300, "audio": 5}, out_channels=1)
    >>> sample = HeteroData(text={"x": torch.randn(7, 300)}, audio={"x": torch.randn(40, 5)})
    >>> batch = Batch.from_data_list([sample, sample])
    >>> model(batch).prediction.shape
    torch.Size([2, 1])
    >>> model.embed(batch).node_types
    ['text_exclusive', 'audio_exclusive', 'text_agnostic', 'audio_agnostic', 'text', 'audio']
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
        pooling: Pooling | Aggregation | str = "mean",
        segments: int = 4,
        reversal: float = 1.0,
        adversary: Literal["reversal", "confusion"] = "reversal",
        center_agnostic: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.modalities = check_modalities(in_channels, at_least=2)
        taken = [m for m in self.modalities if m.endswith(tuple(f"_{space}" for space in SPACES))]
        if taken:
            raise ValueError(f"in_channels: expected names that end in no space of {SPACES}, whose nodes are called so, got {taken}")
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
        self.spaces = tuple(spaces)
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
        x: HeteroData | Mapping[str, Tensor],
        layout: Mapping[str, Layout] | None = None,
        batch_size: int | None = None,
        edges: Mapping[tuple[str, str], IntervalEdges] | None = None,
        return_attention_weights: bool = False,
    ) -> MEAOutput:
        """Predicts for a PyG batch, or for sequences by modality: `fuse(embed(...))`.

        `model(batch)` takes a batch as PyG's loader makes it. `model(x_dict, layout)` takes rows (N_m, d_m) with a ptr (B + 1) each, or
        padded sequences (B, T_m, d_m) with masks (B, T_m); `model(x_dict, batch_dict, num_graphs)` rows with the sample number of each.
        `edges` narrow attention by pair (source, target) of modalities, as the extractors' results count their rows; None: all of the
        sample.
        """
        steps = self._steps(x, layout, batch_size, edges)
        embedded = self._representations(steps, edges, return_attention_weights)
        fused = self._fused(embedded.exclusive, embedded.agnostic, embedded.present, None, return_attention_weights)
        return fused._replace(
            modality_weights=embedded.modality_weights,
            predictive_attention=embedded.predictive_attention,
            cross_modal_attention=embedded.cross_modal_attention,
        )

    def embed(
        self,
        x: HeteroData | Mapping[str, Tensor],
        layout: Mapping[str, Layout] | None = None,
        batch_size: int | None = None,
        edges: Mapping[tuple[str, str], IntervalEdges] | None = None,
    ) -> FusionGraph:
        """Turns a batch into the graph whose messages `fuse` passes; takes what `forward` takes.

        Node types: `<modality>`, its steps as the extractor gives them (`x`, `sample`, and `time` where the batch has it);
        `<modality>_exclusive` and `<modality>_agnostic`, one node for each sample that has the modality. Edge types: `(m, "self", m)` of
        predictive attention and `(s, "mixed" | "coarse" | "fine", t)` of cross-modal attention, as intervals
        (`FusionGraph.interval_edges`); `(<s>_<space>, "to", <t>_<space>)` between representations.
        """
        steps = self._steps(x, layout, batch_size, edges)
        embedded = self._representations(steps, edges, False)
        graph = fusion_graph(embedded.exclusive, embedded.agnostic, embedded.present, self.self_loops)
        for m, z in steps.x.items():
            pointers = steps.pointers[m]
            real = None if pointers.packed else pointers.real
            graph[m].x, graph[m].sample = (z, pointers.sample) if real is None else (z[real], pointers.sample[real])
            if isinstance(x, HeteroData) and "time" in x[m]:
                stride = cast(UnimodalExtractor, self.extractors[m]).stride
                graph[m].time = x[m].time[steps.entered[m].position % stride == 0]
        arrows = Arrows({m: p.compact() for m, p in steps.pointers.items()}, edges)
        if self.predictive is not None:
            for m in self.modalities:
                graph[m, "self", m].interval = arrows.of(m, [m]).relative()
        for stage in self.cross_modal.stages if self.cross_modal is not None else ():
            for s in self.modalities:
                for t in self.modalities:
                    if s != t or stage == "mixed":
                        graph[s, stage, t].interval = arrows.of(t, [s]).relative()
        return graph

    def fuse(self, graph: FusionGraph, return_attention_weights: bool = False) -> MEAOutput:
        """Passes messages between representations, reads out and predicts; takes what `embed` or `fusion_graph` makes.

        Where the representations come from does not matter: a graph of your own needs node types `<modality>_<space>` with `x` and
        `sample`.
        """
        samples = graph.num_samples
        spaces: dict[str, dict[str, Tensor] | None] = {"exclusive": None, "agnostic": None}
        present: dict[str, Tensor] = {}
        for space in self.spaces:
            missing = [f"{m}_{space}" for m in self.modalities if f"{m}_{space}" not in graph.node_types]
            if missing:
                raise ValueError(f"graph: expected the node types {missing}, got {graph.node_types}")
            spaces[space] = {}
            for m in self.modalities:
                node = graph[f"{m}_{space}"]
                spaces[space][m] = put_rows(node.x, node.sample, samples)  # type: ignore[index]
                there = torch.zeros(samples, dtype=torch.bool, device=node.x.device)
                present[m] = there.index_fill(0, node.sample, True)
        return self._fused(spaces["exclusive"], spaces["agnostic"], present, graph, return_attention_weights)

    def _steps(
        self, x: HeteroData | Mapping[str, Tensor], layout: Mapping[str, Layout] | None, batch_size: int | None, edges: object
    ) -> "_Steps":
        """The extracted sequences, rows by modality."""
        if isinstance(x, HeteroData):
            x, layout = _of_batch(x, self.modalities)
        elif batch_size is not None:
            check_keys(x, self.modalities, "x_dict")
            check_keys(layout or {}, self.modalities, "batch_dict")
            of_batch = cast(Mapping[str, Tensor], layout)
            layout = {m: Pointers.from_batch(of_batch[m], batch_size) for m in self.modalities}
        given = enter_all(x, layout, self.modalities, self.in_channels, edges)
        entered = {m: e.pointers for m, e in given.items()}
        if not any(p.num_rows for p in entered.values()) and entered[self.modalities[0]].num_samples and not is_traced():
            warnings.warn("no sample has a step in any modality (all masks are False, or all rows are missing)", stacklevel=4)
        extractors = {m: cast(UnimodalExtractor, self.extractors[m]) for m in self.modalities}
        z = {m: extractors[m](given[m].x, entered[m]) for m in self.modalities}
        return _Steps(z, {m: entered[m].strided(extractors[m].stride) for m in self.modalities}, entered)

    def _representations(self, steps: "_Steps", edges: Mapping[tuple[str, str], IntervalEdges] | None, maps: bool) -> "_Representations":
        """Both branches, from sequences to one vector for each modality."""
        pointers = steps.pointers
        complete = all(p.packed and p.steps for p in pointers.values())  # told by shapes alone: every sample has every modality
        present = {m: p.present for m, p in pointers.items()}
        exclusive = agnostic = None
        weights, predictive_maps, cross_modal_maps = [], {}, []
        if self.exclusive_encoders is not None:
            z = steps.x
            if self.predictive is not None:
                own = None if edges is None else {m: edges[m, m] for m in self.modalities if (m, m) in edges}
                z, weights, predictive_maps = self.predictive(z, pointers, own, maps)
            exclusive = {m: self.exclusive_encoders[m](z[m], pointers[m]) for m in self.modalities}
        if self.agnostic_encoder is not None:
            z = steps.x
            if self.cross_modal is not None:
                z, cross_modal_maps = self.cross_modal(z, pointers, edges, maps)
            if is_traced():
                agnostic = {m: self.agnostic_encoder(z[m], pointers[m]) for m in self.modalities}
            else:
                together = Pointers.join([pointers[m] for m in self.modalities])
                h = self.agnostic_encoder(torch.cat([z[m] for m in self.modalities]), together)
                agnostic = dict(zip(self.modalities, h.unflatten(0, (len(self.modalities), -1)).unbind(), strict=True))
            if self.centering is not None:
                agnostic = self.centering(agnostic, None if complete else present)
        return _Representations(exclusive, agnostic, present if not complete else None, weights, predictive_maps, cross_modal_maps)

    def _fused(
        self,
        exclusive: dict[str, Tensor] | None,
        agnostic: dict[str, Tensor] | None,
        present: dict[str, Tensor] | None,
        graph: FusionGraph | None,
        return_attention_weights: bool,
    ) -> MEAOutput:
        spaces = [h for h in (exclusive, agnostic) if h is not None]
        if graph is None:
            graph = fusion_graph(exclusive, agnostic, present, self.self_loops, keep_absent=is_traced())
        if present is None:
            like = spaces[0][self.modalities[0]]
            present = dict.fromkeys(self.modalities, torch.ones(like.size(0), dtype=torch.bool, device=like.device))
        transfer: dict[EdgeType, Tensor] = {}
        if self.graph_fusion is not None:
            nodes = {f"{m}_{space}" for m in self.modalities for space in self.spaces}
            x_dict = {t: graph[t].x for t in graph.node_types if t in nodes}
            edge_index = {t: graph[t].edge_index for t in graph.edge_types if t[0] in nodes and t[2] in nodes}
            sample = {t: graph[t].sample for t in x_dict}
            there = graph.collect("present", allow_empty=True)
            fused = self.graph_fusion(x_dict, edge_index, sample, graph.num_samples, there, return_attention_weights)
            vectors, transfer = list(fused.x.values()), fused.transfer
        else:
            vectors = [self._combine(h, present) for h in spaces]
        prediction = self.head(torch.cat(vectors, 1))
        discrimination = self.discriminator(exclusive, agnostic)
        return MEAOutput(prediction, exclusive, agnostic, present, graph, discrimination, transfer, [], {}, [])

    def _combine(self, h: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """The alternatives to the graph; a missing modality's vector is zero, and one where it would be a factor."""
        if self.fusion == "concatenation":
            return torch.cat([h[m] for m in self.modalities], 1)
        if self.fusion == "addition":
            return torch.stack([h[m] for m in self.modalities]).sum(0)
        factors = [h[m].masked_fill(~present[m].unsqueeze(1), 1) for m in self.modalities]
        return torch.stack(factors).prod(0)


class _Steps(NamedTuple):
    x: dict[str, Tensor]  # (N_m, d)
    pointers: dict[str, Pointers]
    entered: dict[str, Pointers]  # before the extractors' strides


class _Representations(NamedTuple):
    exclusive: dict[str, Tensor] | None
    agnostic: dict[str, Tensor] | None
    present: dict[str, Tensor] | None  # None: every sample has every modality
    modality_weights: list[Tensor]
    predictive_attention: dict[str, list[Tensor]]
    cross_modal_attention: list[dict[Arrow, Tensor]]


def _of_batch(batch: HeteroData, modalities: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Layout]]:
    """The rows of each modality and where each sample's are; of one sample where the data are no batch."""
    remedy = "mea_graph.data.AddMissingModalities gives samples the node types that they lack"
    for m in modalities:
        if m not in batch.node_types or "x" not in batch[m]:
            raise ValueError(f"batch: expected the node types {list(modalities)} with x, got {batch.node_types}; {remedy}")
    samples = getattr(batch, "num_graphs", 1)
    layout: dict[str, Layout] = {}
    for m in modalities:
        node = batch[m]
        if "ptr" in node:
            if node.ptr.numel() != samples + 1:
                # PyG leaves out the samples that lack a node type, and gives their places to the next ones.
                raise ValueError(f"batch[{m!r}]: expected rows of {samples} samples, got those of {node.ptr.numel() - 1}; {remedy}")
            layout[m] = Pointers.from_ptr(node.ptr, node.x.size(0))
        else:
            layout[m] = Pointers.from_batch(node.batch, samples) if "batch" in node else None
    return {m: batch[m].x for m in modalities}, layout
