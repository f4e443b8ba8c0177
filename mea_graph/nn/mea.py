"""The whole model, put together from parts."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn.inits import reset
from torch_geometric.typing import EdgeType

from mea_graph.nn._batches import first_of_strides, given_times, of_batch, of_vectors, read_times, strided_time
from mea_graph.nn._parts import Part, check_needed, fusion_options, make_part
from mea_graph.nn._sequences import Entered, Layout, check_keys, check_sizes, check_widths, enter_all, weight_dtype
from mea_graph.nn._side_by_side import level
from mea_graph.nn.attention.arrows import Arrows, Edges, Window
from mea_graph.nn.attention.hierarchical_cross_modal_attention import Arrow
from mea_graph.nn.branches import AgnosticOutput, ExclusiveOutput, all_present
from mea_graph.nn.graph.combination import COMBINATIONS, Combination
from mea_graph.nn.graph.fusion_graph import SPACES, FusionGraph, by_sample, fusion_graph, make_graph
from mea_graph.nn.graph.within_samples import fused_within_samples
from mea_graph.nn.model_options import PUBLISHED, RECOMMENDED, merged
from mea_graph.nn.objective.double_discriminator import Discrimination
from mea_graph.nn.unimodal_extractor import UnimodalExtractor, extract_all, extract_level
from mea_graph.ops import Pointers
from mea_graph.ops.eager import is_traced
from mea_graph.option_types import plain_value

AS_RECOMMENDED: dict[str, Any] = {}


class MEAOutput(NamedTuple):
    """The result of `MEA`. A space that is switched off is None; maps that were not requested are empty.

    >>> import torch
    >>> model = MEA({"text": 5, "audio": 3}, 1, channels=8, hidden_channels=16, heads=2)
    >>> output = model({"text": torch.randn(2, 4, 5), "audio": torch.randn(2, 9, 3)})
    >>> output.exclusive["audio"].shape, output.graph["text_agnostic"].num_nodes
    (torch.Size([2, 16]), 2)
    """

    prediction: Tensor  # (B, out_channels)
    exclusive: dict[str, Tensor] | None  # h_e, (B, d_h) by modality
    agnostic: dict[str, Tensor] | None  # h_a, (B, d_h) by modality
    present: dict[str, Tensor]  # (B,) bool by modality
    graph: FusionGraph  # what was fused
    fused: Tensor  # h_fin of all spaces side by side, what the head reads
    discrimination: Discrimination
    transfer: dict[EdgeType, Tensor]  # transfer coefficients xi by edge type
    modality_weights: list[Tensor]  # psi, (B, M) a predictive layer
    predictive_attention: dict[str, list[Tensor]]  # maps by modality and layer
    cross_modal_attention: list[dict[Arrow, Tensor]]  # maps by layer and (stage, source, target)
    lengths: dict[str, Tensor]  # (B,) steps by modality, of which the maps are


class MEA(nn.Module):
    r"""Fuses asynchronous sequences through modality-exclusive and modality-agnostic representations ([MEA], all of it).

    A `UnimodalExtractor` for each modality feeds two branches: `PredictiveEncoder` with one `ExclusiveEncoder` for each modality, and
    `CrossModalEncoder` with one `AgnosticEncoder` for all. `DoubleDiscriminator` reads the representations of both,
    `DecoupledGraphFusion` passes messages in two graphs for each sample, and a perceptron on :math:`[h_{fin}^e, h_{fin}^a]` predicts.

    Sequences may have any lengths, and a sample may lack a modality: the modality then has no node in the fusion graph of the sample and
    gets no gradient from it.

    Give each part as a dict of options of the class named below, as a module of your own, or as None to leave it out. Options
    that you do not set keep their recommended values, `RECOMMENDED`; `MEA.published` has those of the paper.

    Args:
        in_channels: Width of the features by modality; one modality needs `agnostic=None, discriminator=None`.
        out_channels: Number of predicted values: regression targets, classes or labels.
        channels: Width d that every modality has after its extractor. A larger one fits more and costs more.
        hidden_channels: Width d_h of the representations that are fused. A larger one fits more and costs more.
        heads: Attention heads K, a divisor of `channels`.
        dropout: Probability in every part without a `dropout` of its own; None is the recommended 0.1. Raise it against overfitting.
        extractor: Options of `UnimodalExtractor`. `kernel_size`, `stride`, `skip` and `positions` are one value for all modalities or a
            dict by modality; `time_scale` is one value. Or an `nn.ModuleDict` by modality of modules f(rows (N, d_m), pointers) -> rows
            (N, d), which may read integers; one whose attribute `positions` is "seconds" also gets the times of its rows (N,).
        exclusive: Options of `ExclusiveBranch`; None leaves the branch out (Table V, "w/o exclusive").
        agnostic: Options of `AgnosticBranch`; None leaves the branch out (Table V, "w/o agnostic").
        discriminator: Options of `DoubleDiscriminator`.
        fusion: Options of `DecoupledGraphFusion`, and `self_loops`: whether nodes also hear themselves (R7). Or "concatenation",
            "addition" or "multiplication" to combine without a graph, see `Combination` (Table V).
        head: Options of `PredictionHead`.
        window: Which steps attention hears: None, all of the sample; `{"seconds": 1.5}`, those at most that far away in time, in every
            modality, which needs the times of all steps; `{"steps": 10}`, those at most so many steps away, see `IntervalEdges.window`.
            `"causal": True` with either also leaves out later steps.

    Shape:
        - batch: a PyG batch whose node types hold `x` :math:`(\sum_b T_m, d_m)`; or dicts of rows, or of padded sequences, see `forward`
        - result: `MEAOutput`, prediction :math:`(B, C)`

    Raises:
        ValueError: If a shape is wrong, the modalities are not those named, the rows of a batch do not belong to their samples, or an
            option is out of its range.
        TypeError: If a part does not have an option.

    >>> import torch
    >>> from torch_geometric.data import Batch, HeteroData
    >>> model = MEA({"text": 300, "audio": 5}, 1, exclusive={"num_layers": 2})
    >>> text, audio = {"x": torch.randn(7, 300)}, {"x": torch.randn(40, 5)}
    >>> batch = Batch.from_data_list([HeteroData(text=text, audio=audio)] * 2)
    >>> model(batch).prediction.shape
    torch.Size([2, 1])
    >>> model.embed(batch).node_types[:3]
    ['text_exclusive', 'audio_exclusive', 'text_agnostic']
    """

    def __init__(
        self,
        in_channels: dict[str, int],
        out_channels: int,
        channels: int = 40,
        hidden_channels: int = 64,
        heads: int = 8,
        dropout: float | None = None,
        extractor: Mapping[str, Any] | nn.ModuleDict = AS_RECOMMENDED,
        exclusive: Part = AS_RECOMMENDED,
        agnostic: Part = AS_RECOMMENDED,
        discriminator: Part = AS_RECOMMENDED,
        fusion: Mapping[str, Any] | str | nn.Module = AS_RECOMMENDED,
        head: Mapping[str, Any] | nn.Module = AS_RECOMMENDED,
        window: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        dropout = RECOMMENDED["dropout"] if dropout is None else dropout
        self.modalities = check_widths(in_channels)
        if len(self.modalities) == 1 and (agnostic is not None or discriminator is not None):
            raise ValueError(
                f"modalities: expected at least 2 different names, got {self.modalities}; "
                "agnostic=None, discriminator=None make a model of one modality"
            )
        taken = [m for m in self.modalities if m.endswith(tuple(f"_{space}" for space in SPACES))]
        if taken:
            raise ValueError(f"in_channels: expected names that end in no space of {SPACES}, whose nodes are called so, got {taken}")
        if exclusive is None and agnostic is None:
            raise ValueError("exclusive, agnostic: expected at least one of them, got None twice")
        check_needed(extractor=extractor, fusion=fusion, head=head)
        check_sizes(**{f"in_channels[{m!r}]": width for m, width in in_channels.items()})
        check_sizes(out_channels=out_channels, hidden_channels=hidden_channels)
        self.in_channels, self.out_channels = dict(in_channels), out_channels
        self.spaces = tuple(space for space, part in zip(SPACES, (exclusive, agnostic), strict=True) if part is not None)
        inner = {"channels": channels, "hidden_channels": hidden_channels, "modalities": self.modalities}
        common = {"heads": heads, "dropout": dropout}

        self.window = None if window is None else Window.of(window)
        self.extractors = self._extractors(extractor, channels, dropout)
        self.exclusive = make_part("exclusive", exclusive, inner, common)
        self.agnostic = make_part("agnostic", agnostic, inner, common)
        judged = {"channels": hidden_channels, "modalities": self.modalities}
        if isinstance(discriminator, Mapping) and agnostic is None:
            discriminator = {**discriminator, "importance": False}  # importance weighs agnostic representations, which are absent
        self.discriminator = make_part("discriminator", discriminator, judged, {})
        self.self_loops = False
        if isinstance(fusion, str):
            if fusion not in COMBINATIONS:
                raise ValueError(f"fusion: expected options, a module or one of {', '.join(COMBINATIONS)}, got {fusion!r}")
            self.fusion: nn.Module = Combination(cast(Any, fusion), hidden_channels, self.modalities)
        else:
            if isinstance(fusion, Mapping):
                self.self_loops, fusion = fusion_options(fusion)
            named = {"channels": hidden_channels, "spaces": list(self.spaces)}
            self.fusion = cast(nn.Module, make_part("fusion", fusion, named, {}, ("self_loops",)))
        width = getattr(self.fusion, "out_channels", hidden_channels) * len(self.spaces)
        sizes = {"in_channels": width, "hidden_channels": hidden_channels, "out_channels": out_channels}
        self.head = cast(nn.Module, make_part("head", head, sizes, {"dropout": dropout}))

    @classmethod
    def published(cls, in_channels: dict[str, int], out_channels: int, **options: Any) -> "MEA":
        """Makes the model of the paper: three predictive and two cross-modal layers, means over time, no dropout (`PUBLISHED`).

        Takes the options of `MEA`; those of a part that are not named have the paper's values.

        >>> model = MEA.published({"text": 300, "audio": 5, "vision": 20}, 1)
        >>> sum(p.numel() for p in model.parameters())
        788638
        """
        return cls(in_channels, out_channels, **merged(PUBLISHED, options))

    def _extractors(self, given: Mapping[str, Any] | nn.ModuleDict, channels: int, dropout: float) -> nn.ModuleDict:
        if isinstance(given, nn.Module):
            check_keys(cast(Mapping[str, object], given), self.modalities, "extractor")
            return given
        if not isinstance(given, Mapping):
            raise TypeError(f"extractor: expected a dict of options of UnimodalExtractor or an nn.ModuleDict, got {given!r}")
        options = {name: self._per_modality(value, name) for name, value in plain_value(dict(given)).items()}
        made = {}
        for m, width in self.in_channels.items():
            own = RECOMMENDED["extractor"] | {name: value[m] for name, value in options.items()}
            made[m] = make_part("extractor", own, {"in_channels": width, "channels": channels}, {"dropout": dropout})
            if own.get("stride", 1) > own["kernel_size"]:
                why = f"the stride, {own['stride']}, or more, so that no step is skipped, got {own['kernel_size']} for {m!r}"
                raise ValueError(f"extractor.kernel_size: expected {why}")
        return nn.ModuleDict(cast(Any, made))

    def _per_modality(self, value: Any, name: str) -> dict[str, Any]:
        if name == "time_scale" and isinstance(value, Mapping):
            raise ValueError(f"extractor.time_scale: expected one number, so that equal times have equal positions, got {value!r}")
        if isinstance(value, int | str) or (isinstance(value, float) and name in ("dropout", "time_scale")):
            return dict.fromkeys(self.modalities, value)
        if not isinstance(value, Mapping):
            raise ValueError(f"extractor.{name}: expected a number, or a dict of one by modality, got {value!r}")
        check_keys(value, self.modalities, f"extractor.{name}")
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
        edges: Mapping[tuple[str, str], Edges] | None = None,
        return_attention_weights: bool = False,
        time: Mapping[str, Tensor] | None = None,
    ) -> MEAOutput:
        """Predicts for a PyG batch, or for sequences by modality: `fuse(embed(...))`.

        `model(batch)` takes a batch as PyG's loader makes it. `model(x_dict, layout)` takes rows (N_m, d_m) with a ptr (B + 1) each, or
        padded sequences (B, T_m, d_m) with masks (B, T_m); `model(x_dict, batch_dict, num_graphs)` rows with the sample number of each.
        `edges` narrow attention by pair (source, target) of modalities, `IntervalEdges` or an edge_index (2, E), as the extractors' results
        count their rows; they replace the model's window. `time` holds the seconds of each step, (N_m,) or (B, T_m), for the modalities
        that have times; a PyG batch has its own, `batch[m].time`. A window in seconds and extractors with `positions="seconds"` read them.
        """
        steps = self._steps(x, layout, batch_size, edges, time, counted=return_attention_weights)
        exclusive, agnostic, present = self._representations(steps, return_attention_weights)
        fused = self._fused(exclusive and exclusive.x, agnostic and agnostic.x, present, None, return_attention_weights)
        if exclusive is not None:
            fused = fused._replace(modality_weights=exclusive.modality_weights, predictive_attention=exclusive.attention)
        if return_attention_weights:
            fused = fused._replace(lengths={m: p.length for m, p in steps.pointers.items()})
        return fused if agnostic is None else fused._replace(cross_modal_attention=agnostic.attention)

    def embed(
        self,
        x: HeteroData | Mapping[str, Tensor],
        layout: Mapping[str, Layout] | None = None,
        batch_size: int | None = None,
        edges: Mapping[tuple[str, str], Edges] | None = None,
        time: Mapping[str, Tensor] | None = None,
    ) -> FusionGraph:
        """Turns a batch into the graph whose messages `fuse` passes; takes what `forward` takes.

        Node types: `<modality>`, its steps as the extractor gives them (`x`, `sample`, and `time` where it is known);
        `<modality>_exclusive` and `<modality>_agnostic`, one node for each sample that has the modality. Edge types: `(m, "self", m)` of
        predictive attention and `(s, "mixed" | "coarse" | "fine", t)` of cross-modal attention, as intervals
        (`FusionGraph.interval_edges`), or as the edge_index that was given; `(<s>_<space>, "to", <t>_<space>)` between representations.
        """
        steps = self._steps(x, layout, batch_size, edges, time, counted=True)
        exclusive, agnostic, present = self._representations(steps, False)
        graph = fusion_graph(exclusive and exclusive.x, agnostic and agnostic.x, present, self.self_loops)
        for m, z in steps.x.items():
            pointers = steps.pointers[m]
            real = None if pointers.packed else pointers.real
            graph[m].x, graph[m].sample = (z, pointers.sample) if real is None else (z[real], pointers.sample[real])
            seconds, name = steps.times[m]
            if seconds is not None:
                graph[m].time = strided_time(seconds, steps.entered[m], self._stride(m), name)
        compact, heard_by = {m: p.compact() for m, p in steps.pointers.items()}, steps.edges
        if self.window is not None and not all(p.packed for p in steps.pointers.values()):
            heard_by = self.window.edges(compact, {m: graph[m].time for m in self.modalities if "time" in graph[m]})
        arrows = Arrows(compact, heard_by)
        for branch in (self.exclusive, self.agnostic):
            for stage in getattr(branch, "stages", ()):
                for s in self.modalities:
                    for t in self.modalities:
                        if stage == "mixed" or (s == t) == (stage == "self"):
                            heard = arrows.heard(t, [s])
                            if isinstance(heard, Tensor):
                                graph[s, stage, t].edge_index = heard
                            else:
                                graph[s, stage, t].interval = heard.relative()
        return graph

    def fuse(self, graph: FusionGraph, return_attention_weights: bool = False) -> MEAOutput:
        """Passes messages between representations, reads out and predicts; takes what `embed` or `fusion_graph` makes.

        Where the representations come from does not matter: a graph of your own needs node types `<modality>_<space>` with `x` and
        `sample`, of the same samples in every space.
        """
        spaces, present = by_sample(graph, self.modalities, self.spaces)
        return self._fused(spaces.get("exclusive"), spaces.get("agnostic"), present, graph, return_attention_weights)

    def _steps(
        self,
        x: HeteroData | Mapping[str, Tensor],
        layout: Mapping[str, Layout] | None,
        batch_size: int | None,
        edges: Mapping[tuple[str, str], Edges] | None,
        time: Mapping[str, Tensor] | None,
        counted: bool,
    ) -> "_Steps":
        """The extracted sequences, rows by modality; `counted`: somebody counts these, so that none may be added."""
        times = given_times(x, time, self.modalities)
        if isinstance(x, HeteroData):
            x, layout = of_batch(x, self.modalities)
        elif batch_size is not None:
            check_keys(x, self.modalities, "x_dict")
            check_keys(layout or {}, self.modalities, "batch_dict")
            layout = of_vectors(layout or {}, self.modalities, batch_size)
        floating = [m for m in self.modalities if isinstance(self.extractors[m], UnimodalExtractor)]  # others may read token ids
        dtypes = {m: weight_dtype(self.extractors[m], "conv") for m in floating}
        entered = enter_all(x, layout, self.modalities, self.in_channels, edges, floating, dtypes.get)
        pointers = {m: e.pointers for m, e in entered.items()}
        if not any(p.num_rows for p in pointers.values()) and pointers[self.modalities[0]].num_samples and not is_traced():
            warnings.warn("no sample has a step in any modality (all masks are False, or all rows are missing)", stacklevel=4)
        extractors = [self.extractors[m] for m in self.modalities]
        if self.window is None and edges is None and not counted:
            level = extract_level(extractors, [e.x for e in entered.values()], list(pointers.values()))
            if level is not None:
                rows, spaced = level
                by_name = dict(zip(self.modalities, spaced, strict=True))
                return _Steps(dict(zip(self.modalities, rows, strict=True)), by_name, edges, entered, times)
        seconds = read_times(self.timed_modalities, times, entered, self.extractors, getattr(self.window, "seconds", None))
        placed = [seconds[m] if self._places_in_time(m) else None for m in self.modalities]
        z = dict(zip(self.modalities, extract_all(extractors, entered.values(), placed), strict=True))
        left = {m: pointers[m].strided(self._stride(m)) for m in self.modalities}
        if self.window is not None:
            seconds = {m: first_of_strides(time, pointers[m], self._stride(m)) for m, time in seconds.items()}
            edges = {**self.window.edges(left, seconds), **(edges or {})}
        return _Steps(z, left, edges, entered, times)

    @property
    def timed_modalities(self) -> tuple[str, ...]:
        """The modalities whose steps need times. With a window in seconds all do, else those with extractors of `positions="seconds"`."""
        if self.window is not None and self.window.seconds is not None:
            return self.modalities
        return tuple(m for m in self.modalities if self._places_in_time(m))

    def _places_in_time(self, modality: str) -> bool:
        return getattr(self.extractors[modality], "positions", "steps") == "seconds"

    def _stride(self, modality: str) -> int:
        return getattr(self.extractors[modality], "stride", 1)

    def _representations(
        self, steps: "_Steps", maps: bool
    ) -> tuple[ExclusiveOutput | None, AgnosticOutput | None, dict[str, Tensor] | None]:
        """Runs both branches; also returns which samples have which modality, None if all have all."""
        given: tuple[Any, ...] = steps.x, steps.pointers
        if steps.edges is None and not maps:  # edges number rows, which `level` moves
            given = level(*given)
        exclusive, agnostic = (None if part is None else part(*given, steps.edges, maps) for part in (self.exclusive, self.agnostic))
        nothing_missing = all_present({m: e.pointers for m, e in steps.entered.items()})
        return exclusive, agnostic, None if nothing_missing else {m: p.present for m, p in steps.pointers.items()}

    def _fused(
        self,
        exclusive: dict[str, Tensor] | None,
        agnostic: dict[str, Tensor] | None,
        present: dict[str, Tensor] | None,
        graph: FusionGraph | None,
        return_attention_weights: bool,
    ) -> MEAOutput:
        spaces, is_whole, vectors = [h for h in (exclusive, agnostic) if h is not None], graph is None and present is None, None
        if graph is None:
            made = make_graph(exclusive, agnostic, present, self.self_loops)
            graph, vectors = made.graph, None if return_attention_weights else fused_within_samples(self.fusion, made, self.spaces)
        if present is None:
            like = spaces[0][self.modalities[0]]
            present = dict.fromkeys(self.modalities, torch.ones(like.size(0), dtype=torch.bool, device=like.device))
        transfer: dict[EdgeType, Tensor] = {}
        if vectors is None and isinstance(self.fusion, Combination):
            vectors = [self.fusion(h, present) for h in spaces]
        elif vectors is None:
            names = {f"{m}_{space}" for m in self.modalities for space in self.spaces}
            nodes = [(t, store) for t, store in graph.node_items() if t in names]
            x_dict, sample = ({t: store[name] for t, store in nodes} for name in ("x", "sample"))
            edge_index = {t: store["edge_index"] for t, store in graph.edge_items() if t[0] in names and t[2] in names}
            there = {} if is_whole else graph.collect("present", allow_empty=True)
            result = self.fusion(x_dict, edge_index, sample, graph.num_samples, there, return_attention_weights)
            vectors, transfer = list(result.x.values()), result.transfer
        h_fin = torch.cat(vectors, 1)
        seen = Discrimination(None, None, None, None) if self.discriminator is None else self.discriminator(exclusive, agnostic)
        return MEAOutput(self.head(h_fin), exclusive, agnostic, present, graph, h_fin, seen, transfer, [], {}, [], {})


class _Steps(NamedTuple):
    x: dict[str, Tensor]  # (N_m, d)
    pointers: dict[str, Pointers]
    edges: Mapping[tuple[str, str], Edges] | None
    entered: dict[str, Entered]  # before the extractors' strides
    times: dict[str, tuple[Tensor | None, str]]  # as given, with the name that errors use
