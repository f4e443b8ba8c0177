"""Mixed, coarse and fine reinforcement of every modality by the others, [MEA] Eq. 7-10."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset
from typing_extensions import Unpack

from mea_graph.nn._sequences import Layout, apart, check_modalities, enter_all, leave_all, weight_dtype
from mea_graph.nn._side_by_side import can_join, is_watched
from mea_graph.nn.attention.arrows import Arrows, Edges
from mea_graph.nn.attention.modality_reinforcement_unit import ModalityReinforcementUnit, reinforce, remember
from mea_graph.nn.attention.options import AttentionOptions, check_layers
from mea_graph.ops import Pointers

Arrow = tuple[str, str, str]  # stage, source, target
_Units = list[tuple[Arrow, Any, list[str]]]  # of a stage: its arrows, their units and sources


class CrossModalOutput(NamedTuple):
    """Sequences, and the attention maps by stage and arrow, such as `("fine", "audio", "text")` (empty unless requested).

    >>> import torch
    >>> layer = HierarchicalCrossModalAttention(8, ["a", "b"], heads=2)
    >>> output = layer(
    ...     {"a": torch.randn(1, 3, 8), "b": torch.randn(1, 4, 8)},
    ...     return_attention_weights=True,
    ... )
    >>> output.attention["fine", "b", "a"].shape
    torch.Size([1, 2, 3, 4])
    """

    x: dict[str, Tensor]  # as the input: (N_m, d) or (B, T_m, d)
    attention: dict[Arrow, Tensor]  # (stage, source or "all" or "others", target) -> (B, K, T_target, T_source)


class HierarchicalCrossModalAttention(nn.Module):
    r"""Lets each modality read all, then the others together, then each other one ([MEA] Eq. 7-10).

    .. math::
        \hat Z_t &= \mathrm{MRU}([Z_1, \dots, Z_M], Z_t) \\
        \check Z_t &= \mathrm{MRU}([Z_s]_{s \neq t}, \hat Z_t) \\
        Z_t &\leftarrow \sum_{s \neq t} \mathrm{MRU}_{st}(Z_s, \check Z_t)

    Every arrow is a `ModalityReinforcementUnit` of its own. A source that a sample lacks takes no part in that sample's sum; a target
    that has no other modality at all passes the fine stage unchanged.

    Args:
        channels: Width d.
        modalities: Names of the modalities, at least two.
        heads: Number of heads K, a divisor of `channels`.
        mixed, coarse, fine: Which stages to run (Table V, "w/o mixed", "w/o coarse", "w/o fine"); at least one.
        residual, dropout, options: As for `ModalityReinforcementUnit`; options are `head_channels`, `feed_forward_channels` and
            `attention_dropout`.

    Shape:
        - x: dict of rows :math:`(N_m, d)` with ptr :math:`(B + 1,)` each, or of :math:`(B, T_m, d)` with masks :math:`(B, T_m)`
        - edges: `IntervalEdges` or edge_index :math:`(2, E)` by pair (source, target), in all stages, each in the rows of its pair; a pair
          that is not named hears all of its sample
        - result: `CrossModalOutput`

    Raises:
        ValueError: If a shape is wrong, the modalities are not those named, or there is no stage.

    >>> import torch
    >>> layer = HierarchicalCrossModalAttention(40, ["text", "audio", "vision"])
    >>> steps = {"text": 5, "audio": 9, "vision": 7}
    >>> layer({m: torch.randn(2, t, 40) for m, t in steps.items()}).x["audio"].shape
    torch.Size([2, 9, 40])
    """

    def __init__(
        self,
        channels: int,
        modalities: Iterable[str],
        heads: int = 8,
        mixed: bool = True,
        coarse: bool = True,
        fine: bool = True,
        residual: Literal["normalized", "input"] = "normalized",
        dropout: float = 0.0,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        self.channels, self.modalities = channels, check_modalities(modalities, at_least=2)
        if not (mixed or coarse or fine):
            raise ValueError("mixed, coarse, fine: expected at least one stage, got none")

        def units(names: Iterable[str]) -> nn.ModuleDict:
            return nn.ModuleDict({m: ModalityReinforcementUnit(channels, heads, residual, dropout, **options) for m in names})

        self.mixed = units(self.modalities) if mixed else None
        self.coarse = units(self.modalities) if coarse else None
        self.fine = nn.ModuleDict({t: units(self._others(t)) for t in self.modalities}) if fine else None

    def _others(self, target: str) -> list[str]:
        return [m for m in self.modalities if m != target]

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for units in (self.mixed, self.coarse, self.fine):
            reset(units)

    def forward(
        self,
        x: Mapping[str, Tensor],
        layout: Mapping[str, Layout] | None = None,
        edges: Mapping[tuple[str, str], Edges] | None = None,
        return_attention_weights: bool = False,
    ) -> CrossModalOutput:
        """Returns the reinforced sequences."""
        entered = enter_all(x, layout, self.modalities, self.channels, edges, dtype=self._dtype)
        arrows = Arrows({m: e.pointers for m, e in entered.items()}, edges)
        rows, maps = self.reinforced({m: e.x for m, e in entered.items()}, arrows, return_attention_weights)
        return CrossModalOutput(apart(leave_all(entered, (rows[m] for m in entered)), layout), maps)

    def _dtype(self, modality: str) -> torch.dtype | None:
        first = next(units for units in (self.mixed, self.coarse, self.fine) if units is not None)
        unit = first[modality]
        return weight_dtype(next(iter(unit.values())) if isinstance(unit, nn.ModuleDict) else unit, "query")

    def reinforced(self, x: Mapping[str, Tensor], arrows: Arrows, maps: bool = False) -> tuple[dict[str, Tensor], dict[Arrow, Tensor]]:
        """Computes `forward` on rows (N_m, d)."""
        stages = self._stages()
        if maps or arrows.listed or not can_join([unit for stage in stages for _, unit, _ in stage]):
            return self._in_turn(x, stages, arrows, maps)
        sizes = [arrows.pointers[m].num_rows for m in self.modalities]
        rows = self._joined(torch.cat([x[m] for m in self.modalities]), stages, arrows)
        return dict(zip(self.modalities, rows.split(sizes), strict=True)), {}

    def _stages(self) -> "list[_Units]":
        """The units of each stage, with their arrows and sources, coarser ones first."""
        stages: list[_Units] = []
        for name, units in (("mixed", self.mixed), ("coarse", self.coarse)):
            if units is not None:
                others = {t: list(self.modalities) if name == "mixed" else self._others(t) for t in self.modalities}
                stages.append([((name, "all" if name == "mixed" else "others", t), units[t], others[t]) for t in self.modalities])
        if self.fine is not None:
            fine = self.fine
            stages.append([(("fine", s, t), cast(nn.ModuleDict, fine[t])[s], [s]) for t in self.modalities for s in self._others(t)])
        return stages

    def _joined(self, source: Tensor, stages: "list[_Units]", arrows: Arrows) -> Tensor:
        """Runs all units of a stage at once, on the stacked rows of all modalities."""
        current = source
        read = [arrows.of_stage(source, [(arrow[2], names) for arrow, _, names in stage]) for stage in stages]
        units = [[unit for _, unit, _ in stage] for stage in stages]
        memories: dict[int, Tensor] = {}
        alike = [i for i, (_, parts, _) in enumerate(read) if parts == read[0][1]]
        if arrows.level and len(alike) > 1:  # on a device, stages that read the same rows remember them in one product
            together = remember([(units[i], read[i][1]) for i in alike], source)
            memories = dict(zip(alike, together.chunk(len(alike)), strict=True))
        for i, (stage, (rows, parts, edges)) in enumerate(zip(stages, read, strict=True)):
            targets = arrows.groups([arrow[2] for arrow, _, _ in stage])
            rows, *_ = reinforce(units[i], current, targets, rows, parts, edges, memories.pop(i, None))
            current = arrows.sum_of_present(rows, current) if stage[0][0][0] == "fine" else rows
        return current

    def _in_turn(
        self, x: Mapping[str, Tensor], stages: "list[_Units]", arrows: Arrows, maps: bool
    ) -> tuple[dict[str, Tensor], dict[Arrow, Tensor]]:
        """Runs unit by unit: for maps, for lists of edges, for units with hooks, and while a graph is recorded."""
        drawn: dict[Arrow, Tensor] = {}
        current = dict(x)
        parts: dict[str, list[Tensor]] = {t: [] for t in self.modalities}
        for stage in stages:
            for arrow, unit, names in stage:
                t = arrow[2]
                result = unit(
                    current[t],
                    arrows.pointers[t],
                    source=[x[s] for s in names],
                    source_layout=[arrows.pointers[s] for s in names],
                    edges=arrows.heard(t, names),
                    return_attention_weights=maps,
                )
                if maps:
                    result, drawn[arrow] = result
                if arrow[0] == "fine":
                    parts[t].append(result)
                else:
                    current[t] = result
        if self.fine is not None:
            for t in self.modalities:
                sources = [arrows.pointers[s] for s in self._others(t)]
                current[t] = self._sum_of_present(parts[t], sources, arrows.pointers[t], current[t])
        return current, drawn

    @staticmethod
    def _sum_of_present(parts: list[Tensor], sources: Sequence[Pointers], target: Pointers, instead: Tensor) -> Tensor:
        """Sums over the sources that a sample has; `instead` where it has none."""
        if all(s.packed and s.steps for s in sources):  # known from shapes alone: no sample lacks any
            return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        there = torch.stack([s.present for s in sources])  # (M - 1, B)
        present = there.index_select(1, target.sample).unsqueeze(-1)  # (M - 1, N, 1)
        total = torch.stack(parts).masked_fill(~present, 0).sum(0)
        return torch.where(present.any(0), total, instead)


class CrossModalEncoderOutput(NamedTuple):
    """Sequences, and each layer's attention maps, as in `CrossModalOutput` (empty unless requested).

    >>> import torch
    >>> encoder = CrossModalEncoder(8, ["a", "b"], heads=2, num_layers=3)
    >>> output = encoder(
    ...     {"a": torch.randn(1, 3, 8), "b": torch.randn(1, 4, 8)},
    ...     return_attention_weights=True,
    ... )
    >>> len(output.attention), output.attention[0]["fine", "b", "a"].shape
    (3, torch.Size([1, 2, 3, 4]))
    """

    x: dict[str, Tensor]  # as the input: (N_m, d) or (B, T_m, d)
    attention: list[dict[Arrow, Tensor]]  # (stage, source or "all" or "others", target) -> (B, K, T_target, T_source), a layer


class CrossModalEncoder(nn.Module):
    r"""Stacks layers of `HierarchicalCrossModalAttention`; each takes sources and targets from the one before (R4).

    Args:
        channels: Width d.
        modalities: Names of the modalities, at least two.
        heads: Number of heads K, a divisor of `channels`.
        num_layers: Number of layers (the paper's N), at least 1.
        mixed, coarse, fine, residual, dropout, options: As for `HierarchicalCrossModalAttention`.

    Shape:
        - x, layout, edges: as for `HierarchicalCrossModalAttention`
        - result: `CrossModalEncoderOutput`

    Raises:
        ValueError: If there is no layer or only one modality, a shape is wrong, or the modalities are not those named.

    >>> import torch
    >>> encoder = CrossModalEncoder(8, ["a", "b"], heads=2)
    >>> encoder({"a": torch.randn(1, 3, 8), "b": torch.randn(1, 4, 8)}).x["a"].shape
    torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        channels: int,
        modalities: Iterable[str],
        heads: int = 8,
        num_layers: int = 2,
        mixed: bool = True,
        coarse: bool = True,
        fine: bool = True,
        residual: Literal["normalized", "input"] = "normalized",
        dropout: float = 0.0,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        check_layers(num_layers)
        self.channels, self.modalities = channels, check_modalities(modalities, at_least=2)
        self.layers = nn.ModuleList(
            HierarchicalCrossModalAttention(channels, self.modalities, heads, mixed, coarse, fine, residual, dropout, **options)
            for _ in range(num_layers)
        )
        self.stages = [name for name, there in (("mixed", mixed), ("coarse", coarse), ("fine", fine)) if there]

    def reset_parameters(self) -> None:
        """Draws new weights."""
        reset(self.layers)

    def forward(
        self,
        x: Mapping[str, Tensor],
        layout: Mapping[str, Layout] | None = None,
        edges: Mapping[tuple[str, str], Edges] | None = None,
        return_attention_weights: bool = False,
    ) -> CrossModalEncoderOutput:
        """Returns the sequences after the last layer and each layer's maps."""
        dtype = getattr(self.layers[0], "_dtype", None)
        entered = enter_all(x, layout, self.modalities, self.channels, edges, dtype=dtype)
        arrows = Arrows({m: e.pointers for m, e in entered.items()}, edges)
        current, maps = {m: e.x for m, e in entered.items()}, []
        for layer in self.layers:
            if type(layer) is HierarchicalCrossModalAttention and not is_watched(layer):
                current, drawn = layer.reinforced(current, arrows, return_attention_weights)
            else:
                current, drawn = layer(current, arrows.pointers, arrows.edges, return_attention_weights)
            if return_attention_weights:
                maps.append(drawn)
        return CrossModalEncoderOutput(apart(leave_all(entered, (current[m] for m in entered)), layout), maps)
