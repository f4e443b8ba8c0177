"""Mixed, coarse and fine reinforcement of every modality by the others, [MEA] Eq. 7-10."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch_geometric.nn.inits import reset

from mea_graph.nn._packed_steps import Steps, are_steps, can_pack, join, pack
from mea_graph.nn._sequences import check_modalities, check_sequences, zero_padding
from mea_graph.nn.modality_reinforcement_unit import ModalityReinforcementUnit


class CrossModalOutput(NamedTuple):
    """Sequences, and the attention maps by stage and arrow, such as `("fine", "audio", "text")` (empty unless asked for).

    >>> import torch
    >>> layer = HierarchicalCrossModalAttention(8, ["a", "b"], heads=2)
    >>> output = layer({"a": torch.randn(1, 3, 8), "b": torch.randn(1, 4, 8)}, return_attention_weights=True)
    >>> output.attention["fine", "b", "a"].shape
    torch.Size([1, 2, 3, 4])
    """

    x: dict[str, Tensor]  # (B, T_m, d) each
    attention: dict[tuple[str, str, str], Tensor]  # (stage, source or "all" or "others", target) -> (B, K, T_target, T_source)


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
        - x: dict of :math:`(B, T_m, d)`; mask: dict of :math:`(B, T_m)`, bool, or None
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
        self, x: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None = None, return_attention_weights: bool = False
    ) -> CrossModalOutput:
        """Returns the reinforced sequences."""
        if are_steps(x):  # how `CrossModalEncoder` calls it on a CPU
            return CrossModalOutput(self._on_steps(x), {})
        z, valid = check_sequences(x, mask, self.modalities, self.channels)
        maps: dict[tuple[str, str, str], Tensor] = {}
        if not return_attention_weights and all(can_pack(v) for v in z.values()):
            return CrossModalOutput(_padded(self._on_steps({m: pack(z[m], valid[m]) for m in self.modalities})), maps)

        def reinforce(unit: nn.Module, arrow: tuple[str, str, str], sources: list[str], target: Tensor) -> Tensor:
            t = arrow[2]
            result = unit([z[s] for s in sources], target, [valid[s] for s in sources], valid[t], return_attention_weights)
            if return_attention_weights:
                result, maps[arrow] = result
            return result

        out = {}
        for t in self.modalities:
            current, others = z[t], self._others(t)
            if self.mixed is not None:
                current = reinforce(self.mixed[t], ("mixed", "all", t), list(self.modalities), current)
            if self.coarse is not None:
                current = reinforce(self.coarse[t], ("coarse", "others", t), others, current)
            if self.fine is not None:
                present = torch.stack([valid[s].any(1) for s in others])[..., None, None]  # (M - 1, B, 1, 1)
                units = cast(nn.ModuleDict, self.fine[t])
                parts = torch.stack([reinforce(units[s], ("fine", s, t), [s], current) for s in others])
                current = _sum_of_present(parts, present, current)
            out[t] = zero_padding(current, valid[t])
        return CrossModalOutput(out, maps)

    def _on_steps(self, steps: Mapping[str, Steps]) -> dict[str, Any]:
        """The same without the padding."""
        everything = join([steps[m] for m in self.modalities]) if self.mixed is not None else None
        out = {}
        for t in self.modalities:
            current, others = steps[t], self._others(t)
            if self.mixed is not None:
                current = current._replace(x=self.mixed[t](everything, current))
            if self.coarse is not None:
                current = current._replace(x=self.coarse[t](join([steps[s] for s in others]), current))
            if self.fine is not None:
                units = cast(nn.ModuleDict, self.fine[t])
                parts = torch.stack([units[s](steps[s], current) for s in others])  # (M - 1, N, d)
                if all(min(steps[s].lengths, default=0) for s in others):  # no sample lacks any of them
                    current = current._replace(x=parts.sum(0))
                else:
                    there = torch.tensor([steps[s].lengths for s in others]) > 0  # (M - 1, B)
                    present = there[:, current.sample].unsqueeze(-1)  # (M - 1, N, 1)
                    current = current._replace(x=_sum_of_present(parts, present, current.x))
            out[t] = current
        return out


def _padded(steps: Mapping[str, Steps]) -> dict[str, Tensor]:
    return {m: s.padded() for m, s in steps.items()}


def _sum_of_present(parts: Tensor, present: Tensor, instead: Tensor) -> Tensor:
    """The sum over the sources that are there; `instead` where none is."""
    return torch.where(present.any(0), parts.masked_fill(~present, 0).sum(0), instead)


class CrossModalEncoder(nn.Module):
    r"""N layers of hierarchical cross-modal attention; each reads the one before, as sources and as targets (R4).

    Args:
        channels: Width d.
        modalities: Names of the modalities, at least two.
        heads: K, a divisor of `channels`.
        num_layers: N, at least 1.
        mixed, coarse, fine, residual, dropout: As for `HierarchicalCrossModalAttention`.

    Shape:
        - x: dict of :math:`(B, T_m, d)`; mask: dict of :math:`(B, T_m)`, bool, or None
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
        self, x: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None = None, return_attention_weights: bool = False
    ) -> tuple[dict[str, Tensor], list[dict[tuple[str, str, str], Tensor]]]:
        """Returns the sequences after the last layer and each layer's maps."""
        current: dict[str, Any] = dict(x)
        maps = []
        first = cast(HierarchicalCrossModalAttention, self.layers[0])
        packed = not return_attention_weights and all(can_pack(z) for z in x.values())
        if packed:
            clean, valid = check_sequences(x, mask, first.modalities, first.channels)
            current = {m: pack(clean[m], valid[m]) for m in first.modalities}
        for layer in self.layers:
            current, attention = layer(current, mask, return_attention_weights)
            if return_attention_weights:
                maps.append(attention)
        return (_padded(current) if packed else current), maps
