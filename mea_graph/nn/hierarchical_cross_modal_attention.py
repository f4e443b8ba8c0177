"""Mixed, coarse and fine reinforcement of every modality by the others, [MEA] Eq. 7-10."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.nn._sequences import Layout, check_modalities, enter_all
from mea_graph.nn._side_by_side import Groups, can_join
from mea_graph.nn.modality_reinforcement_unit import ModalityReinforcementUnit, reinforce
from mea_graph.ops import IntervalEdges, Pointers

Arrow = tuple[str, str, str]  # stage, source, target


class CrossModalOutput(NamedTuple):
    """Sequences, and the attention maps by stage and arrow, such as `("fine", "audio", "text")` (empty unless asked for).

    >>> import torch
    >>> layer = HierarchicalCrossModalAttention(8, ["a", "b"], heads=2)
    >>> output = layer({"a": torch.randn(1, 3, 8), "b": torch.randn(1, 4, 8)}, return_attention_weights=True)
    >>> output.attention["fine", "b", "a"].shape
    torch.Size([1, 2, 3, 4])
    """

    x: dict[str, Tensor]  # as the input: (N_m, d) or (B, T_m, d)
    attention: dict[Arrow, Tensor]  # (stage, source or "all" or "others", target) -> (B, K, T_target, T_source)


class HierarchicalCrossModalAttention(nn.Module):
    r"""Reinforces each modality by all, by the others together, then by each other one, finer and finer ([MEA] Eq. 7-10).

    .. math::
        \hat Z_t &= \mathrm{MRU}([Z_1, \dots, Z_M], Z_t) \\
        \check Z_t &= \mathrm{MRU}([Z_s]_{s \neq t}, \hat Z_t) \\
        Z_t &\leftarrow \sum_{s \neq t} \mathrm{MRU}_{st}(Z_s, \check Z_t)

    Every arrow is a `ModalityReinforcementUnit` of its own. A source that a sample lacks takes no part in that sample's sum; a target
    that has no other modality at all passes the fine stage unchanged.

    Args:
        channels: Width d.
        modalities: Names of the modalities, at least two.
        heads: K, a divisor of `channels`.
        mixed, coarse, fine: Which stages to run (Table V, "w/o mixed", "w/o coarse", "w/o fine"); at least one.
        residual, dropout: As for `ModalityReinforcementUnit`.

    Shape:
        - x: dict of rows :math:`(N_m, d)` with a dict of ptr :math:`(B + 1,)`, or of :math:`(B, T_m, d)` with masks :math:`(B, T_m)` or None
        - edges: `IntervalEdges` by pair (source, target), in all stages; a pair that is not named hears all of its sample
        - result: `CrossModalOutput`

    Raises:
        ValueError: A wrong shape, other modalities than those named, or no stage.

    >>> import torch
    >>> layer = HierarchicalCrossModalAttention(40, ["text", "audio", "vision"])
    >>> layer({"text": torch.randn(2, 5, 40), "audio": torch.randn(2, 9, 40), "vision": torch.randn(2, 7, 40)}).x["audio"].shape
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
    ) -> None:
        super().__init__()
        self.channels, self.modalities = channels, check_modalities(modalities, at_least=2)
        if not (mixed or coarse or fine):
            raise ValueError("mixed, coarse, fine: expected at least one stage, got none")

        def units(names: Iterable[str]) -> nn.ModuleDict:
            return nn.ModuleDict({m: ModalityReinforcementUnit(channels, heads, residual, dropout) for m in names})

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
        edges: Mapping[tuple[str, str], IntervalEdges] | None = None,
        return_attention_weights: bool = False,
    ) -> CrossModalOutput:
        """Returns the reinforced sequences."""
        entered = enter_all(x, layout, self.modalities, self.channels)
        arrows = Arrows({m: e.pointers for m, e in entered.items()}, edges)
        rows, maps = self.reinforced({m: e.x for m, e in entered.items()}, arrows, return_attention_weights)
        return CrossModalOutput({m: e.leave(rows[m]) for m, e in entered.items()}, maps)

    def reinforced(self, x: Mapping[str, Tensor], arrows: "Arrows", maps: bool = False) -> tuple[dict[str, Tensor], dict[Arrow, Tensor]]:
        """The same on rows (N_m, d)."""
        drawn: dict[Arrow, Tensor] = {}
        current, others = dict(x), {t: self._others(t) for t in self.modalities}
        if self.mixed is not None:
            stage = [(("mixed", "all", t), self.mixed[t], list(self.modalities)) for t in self.modalities]
            current = dict(zip(self.modalities, self._stage(stage, current, x, arrows, drawn, maps), strict=True))
        if self.coarse is not None:
            stage = [(("coarse", "others", t), self.coarse[t], others[t]) for t in self.modalities]
            current = dict(zip(self.modalities, self._stage(stage, current, x, arrows, drawn, maps), strict=True))
        if self.fine is not None:
            fine = self.fine
            stage = [(("fine", s, t), cast(nn.ModuleDict, fine[t])[s], [s]) for t in self.modalities for s in others[t]]
            parts = iter(self._stage(stage, current, x, arrows, drawn, maps))
            for t in self.modalities:
                of_target = [next(parts) for _ in others[t]]
                current[t] = self._sum_of_present(of_target, [arrows.pointers[s] for s in others[t]], arrows.pointers[t], current[t])
        return current, drawn

    def _stage(
        self,
        stage: Sequence[tuple[Arrow, nn.Module, list[str]]],
        current: Mapping[str, Tensor],
        x: Mapping[str, Tensor],
        arrows: "Arrows",
        drawn: dict[Arrow, Tensor],
        maps: bool,
    ) -> Sequence[Tensor]:
        """What each arrow makes of its target's current rows; sources are read as they came into the layer."""
        units = [cast(ModalityReinforcementUnit, unit) for _, unit, _ in stage]
        if not maps and can_join(units):
            target, targets = arrows.groups(current, [arrow[2] for arrow, _, _ in stage])
            source, sources = arrows.groups(x, [s for _, _, names in stage for s in names])
            of_unit, place = [], 0
            for _, _, names in stage:
                of_unit.append(Groups(*(part[place : place + len(names)] for part in sources)))
                place += len(names)
            rows, _ = reinforce(units, target, targets, source, of_unit, arrows.of_stage([(a[2], names) for a, _, names in stage]))
            return rows.split(targets.sizes)
        results = []
        for (arrow, _, names), unit in zip(stage, units, strict=True):
            result = unit(
                current[arrow[2]],
                arrows.pointers[arrow[2]],
                source=[x[s] for s in names],
                source_layout=[arrows.pointers[s] for s in names],
                edges=arrows.of(arrow[2], names),
                return_attention_weights=maps,
            )
            if maps:
                result, drawn[arrow] = result
            results.append(result)
        return results

    @staticmethod
    def _sum_of_present(parts: Sequence[Tensor], sources: Sequence[Pointers], target: Pointers, instead: Tensor) -> Tensor:
        """The sum over the sources that a sample has; `instead` where it has none."""
        if all(s.packed and s.steps is not None and s.steps > 0 for s in sources):  # told by shapes alone: no sample lacks any
            return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        there = torch.stack([s.present for s in sources])  # (M - 1, B)
        present = there.index_select(1, target.sample).unsqueeze(-1)  # (M - 1, N, 1)
        total = torch.stack(parts).masked_fill(~present, 0).sum(0)
        return torch.where(present.any(0), total, instead)


class Arrows:
    """The edges between the modalities of a batch, built once and used by every layer."""

    def __init__(self, pointers: Mapping[str, Pointers], edges: Mapping[tuple[str, str], IntervalEdges] | None = None) -> None:
        self.pointers, self.edges = dict(pointers), dict(edges or {})
        unknown = [pair for pair in self.edges if set(pair) - set(self.pointers)]
        if unknown:
            raise ValueError(f"edges: expected pairs of {list(self.pointers)}, got {unknown}")
        self._joined: dict[tuple[tuple[str, tuple[str, ...]], ...], IntervalEdges] = {}

    def of(self, target: str, sources: Sequence[str]) -> IntervalEdges:
        """From the rows of the sources, one below the other."""
        if not any((s, target) in self.edges for s in sources):
            return IntervalEdges.complete([self.pointers[s] for s in sources], self.pointers[target])
        own = self.pointers[target]
        return IntervalEdges.join([self.edges.get((s, target)) or IntervalEdges.complete(self.pointers[s], own) for s in sources])

    def of_stage(self, stage: Sequence[tuple[str, Sequence[str]]]) -> IntervalEdges:
        """Those of several arrows as one graph."""
        key = tuple((target, tuple(sources)) for target, sources in stage)
        if key not in self._joined:
            self._joined[key] = IntervalEdges.below_each_other([self.of(target, sources) for target, sources in stage])
        return self._joined[key]

    def groups(self, x: Mapping[str, Tensor], names: Sequence[str]) -> tuple[Tensor, Groups]:
        """The rows of all modalities one below the other, and where those of each name are."""
        starts, row = {}, 0
        for m, pointers in self.pointers.items():
            starts[m], row = row, row + pointers.num_rows
        rows = torch.cat([x[m] for m in self.pointers])
        return rows, Groups([starts[m] for m in names], [self.pointers[m].num_rows for m in names])


class CrossModalEncoder(nn.Module):
    r"""N layers of hierarchical cross-modal attention; each reads the one before, as sources and as targets (R4).

    Args:
        channels: Width d.
        modalities: Names of the modalities, at least two.
        heads: K, a divisor of `channels`.
        num_layers: N, at least 1.
        mixed, coarse, fine, residual, dropout: As for `HierarchicalCrossModalAttention`.

    Shape:
        - x, layout, edges: as for `HierarchicalCrossModalAttention`
        - result: the sequences, as `x`; and the maps of each layer, as of `HierarchicalCrossModalAttention`, none unless asked for

    Raises:
        ValueError: Less than one layer or two modalities; modalities or shapes other than those given.

    >>> import torch
    >>> encoder = CrossModalEncoder(8, ["a", "b"], heads=2)
    >>> x, maps = encoder({"a": torch.randn(1, 3, 8), "b": torch.randn(1, 4, 8)})
    >>> x["a"].shape
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
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
        names = check_modalities(modalities, at_least=2)
        self.layers = nn.ModuleList(
            HierarchicalCrossModalAttention(channels, names, heads, mixed, coarse, fine, residual, dropout) for _ in range(num_layers)
        )

    def reset_parameters(self) -> None:
        """Draws new weights."""
        reset(self.layers)

    def forward(
        self,
        x: Mapping[str, Tensor],
        layout: Mapping[str, Layout] | None = None,
        edges: Mapping[tuple[str, str], IntervalEdges] | None = None,
        return_attention_weights: bool = False,
    ) -> tuple[dict[str, Tensor], list[dict[Arrow, Tensor]]]:
        """Returns the sequences after the last layer and each layer's maps."""
        first = cast(HierarchicalCrossModalAttention, self.layers[0])
        entered = enter_all(x, layout, first.modalities, first.channels)
        arrows = Arrows({m: e.pointers for m, e in entered.items()}, edges)
        current, maps = {m: e.x for m, e in entered.items()}, []
        for layer in self.layers:
            if can_join([layer]):
                current, drawn = cast(HierarchicalCrossModalAttention, layer).reinforced(current, arrows, return_attention_weights)
            else:
                current, drawn = layer(current, arrows.pointers, arrows.edges, return_attention_weights)
            if return_attention_weights:
                maps.append(drawn)
        return {m: e.leave(current[m]) for m, e in entered.items()}, maps
