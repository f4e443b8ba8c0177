"""One sequence reinforced by others, [MEA] Eq. 7."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from mea_graph.nn._dropout import make_dropout
from mea_graph.nn._sequences import Layout, check_edges, check_heard, check_sizes, enter, weight_dtype
from mea_graph.nn._side_by_side import Groups, linear, norm_then_linear, of_all
from mea_graph.nn.attention.feed_forward import FeedForward, end_of_attention
from mea_graph.nn.attention.options import inner_channels, probability
from mea_graph.ops import IntervalEdges, interval_attention, interval_attention_map


class ModalityReinforcementUnit(nn.Module):
    r"""Lets a target sequence attend to one source or several, then transforms it step by step ([MEA] Eq. 7).

    .. math::
        Q &= W_Q \mathrm{LN}(Z_t), \qquad [K, V] = W_{KV} \mathrm{LN}(Z_s) \\
        Z_t' &= \mathrm{LN}(Z_t) + W_O \, \mathrm{softmax}(Q K^T / \sqrt{D}) V \\
        Z_t &\leftarrow \mathrm{FFN}(\mathrm{LN}(Z_t')) + Z_t'

    Nothing needs to be aligned: source and target have lengths of their own. Several sources are read as one concatenated sequence.
    A sample whose sources are all missing keeps the residual path and the biases.

    Args:
        channels: Width d of target and sources.
        heads: Number of heads K, a divisor of `channels`, unless `head_channels` is given.
        residual: "normalized" adds LN(Z_t), as in the paper; "input" adds Z_t, the usual pre-norm residual.
        dropout: Probability, on the attention's output and in the feed-forward block.
        source_channels: Width of the sources; None means d.
        head_channels: Width D of one head; None means d / K.
        feed_forward_channels: Width inside the feed-forward block; None means 4 d.
        attention_dropout: Probability with which a weight of the map is dropped in training, the others scaled up. The weights are then
            stored: those of the padded map, or, with windows and lists of edges, those of the edges.

    Shape:
        - target: rows :math:`(N_t, d)` with ptr :math:`(B + 1,)`, or :math:`(B, T, d)` with a mask :math:`(B, T)`, bool, True at real steps
        - source: the same at its own lengths and width, or a list of such
        - edges: `IntervalEdges` from the sources' rows to the target's, or edge_index :math:`(2, E)`
        - result: as target, zeros in the padding

    Raises:
        ValueError: If a shape is wrong, a source has no layout, or source and target differ in their number of samples.

    >>> import torch
    >>> unit = ModalityReinforcementUnit(40)
    >>> unit(torch.randn(2, 50, 40), source=torch.randn(2, 375, 40)).shape
    torch.Size([2, 50, 40])
    """

    __constants__ = ["heads", "residual"]

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        residual: Literal["normalized", "input"] = "normalized",
        dropout: float = 0.0,
        *,
        source_channels: int | None = None,
        head_channels: int | None = None,
        feed_forward_channels: int | None = None,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = inner_channels(channels, heads, head_channels, feed_forward_channels)
        source_channels = channels if source_channels is None else source_channels
        check_sizes(source_channels=source_channels)
        if residual not in ("normalized", "input"):
            raise ValueError(f"residual: expected 'normalized' or 'input', got {residual!r}")
        self.channels, self.source_channels, self.heads, self.residual = channels, source_channels, heads, residual
        self.norm_target = nn.LayerNorm(channels)
        self.norm_source = nn.LayerNorm(source_channels)
        self.query = nn.Linear(channels, width)
        self.key_value = nn.Linear(source_channels, 2 * width)
        self.out = nn.Linear(width, channels)
        self.attention_dropout = make_dropout(attention_dropout, "attention_dropout")
        self.dropout = make_dropout(dropout)
        self.feed_forward = FeedForward(channels, feed_forward_channels, dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for module in (self.norm_target, self.norm_source, self.query, self.key_value, self.out, self.feed_forward):
            module.reset_parameters()

    @overload
    def forward(
        self,
        target: Tensor,
        layout: Layout = None,
        *,
        source: Tensor | Sequence[Tensor],
        source_layout: Layout | Sequence[Layout] = None,
        edges: IntervalEdges | Tensor | None = None,
        return_attention_weights: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        target: Tensor,
        layout: Layout = None,
        *,
        source: Tensor | Sequence[Tensor],
        source_layout: Layout | Sequence[Layout] = None,
        edges: IntervalEdges | Tensor | None = None,
        return_attention_weights: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        target: Tensor,
        layout: Layout = None,
        *,
        source: Tensor | Sequence[Tensor],
        source_layout: Layout | Sequence[Layout] = None,
        edges: IntervalEdges | Tensor | None = None,
        return_attention_weights: bool,
    ) -> Tensor | tuple[Tensor, Tensor]: ...

    def forward(
        self,
        target: Tensor,
        layout: Layout = None,
        *,
        source: Tensor | Sequence[Tensor],
        source_layout: Layout | Sequence[Layout] = None,
        edges: IntervalEdges | Tensor | None = None,
        return_attention_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the reinforced target; on request also the map, (B, K, T, sum of T_s), as it is before any weight is dropped.

        The layouts are the ptr of rows or the mask of a padded batch, one for each source. `edges` say which target rows hear which
        stacked source rows; None: all of their sample.
        """
        entered = enter(target, layout, self.channels, "target", dtype=weight_dtype(self, "query"))
        sources = [source] if isinstance(source, Tensor) else list(source)
        if not sources:
            raise ValueError("source: expected at least one, got none")
        several = isinstance(source_layout, (list, tuple))  # torch 2.9 compiles no `list | tuple`
        layouts: list[Layout] = list(source_layout) if several else [source_layout] * len(sources)  # type: ignore[arg-type,list-item]
        if len(layouts) != len(sources) or (not several and source_layout is not None and len(sources) > 1):
            got = len(layouts) if several else 1
            raise ValueError(f"source_layout: expected one for each of the {len(sources)} sources, got {got}")
        dtype = weight_dtype(self, "key_value")
        given = enumerate(zip(sources, layouts, strict=True))
        parts = [enter(s, p, self.source_channels, f"source[{i}]", dtype=dtype) for i, (s, p) in given]
        for part in (entered, *parts):
            check_edges(edges, part)
        pointers = [part.pointers for part in parts]
        if edges is None:
            edges = IntervalEdges.complete(pointers, entered.pointers)
        else:
            check_heard(edges, pointers, entered.pointers)
        rows = parts[0].x if len(parts) == 1 else torch.cat([part.x for part in parts])
        whole = Groups([0], [entered.x.size(0)])
        z, query, key = reinforce([self], entered.x, whole, rows, [Part(0, 0, rows.size(0))], edges)
        if not return_attention_weights:
            return entered.leave(z)
        if isinstance(edges, Tensor):
            raise ValueError("return_attention_weights: expected interval edges, got an edge_index, whose map is no image")
        return entered.leave(z), interval_attention_map(query, key, edges)


class Part(NamedTuple):
    """Source rows that a unit reads; `unit` is its place among the units."""

    unit: int
    start: int
    size: int


def reinforce(
    units: Sequence[ModalityReinforcementUnit],
    target: Tensor,
    targets: Groups,
    source: Tensor,
    parts: Sequence[Part],
    edges: IntervalEdges | Tensor,
    memory: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs each unit on its own target and source rows and stacks the results. Also returns queries, (N_t, K, D), and keys, (N_s, K, D).

    `targets` says which rows of `target` (N, d) each unit reads, and `parts` which rows of `source`. The edges number the
    target rows as the units read them, stacked, and the source rows as the parts do. `memory` holds their keys and values, if
    `remember` has made them.
    """
    first = units[0]
    placed = targets.placed()
    norms, queries, outs, blocks = (of_all(units, name) for name in ("norm_target", "query", "out", "feed_forward"))
    memory = remember([(units, parts)], source) if memory is None else memory
    key, value = memory.unflatten(1, (2, first.heads, -1)).unbind(1)  # (N_s, K, D)
    normalized, query = norm_then_linear(norms, queries, target, targets, steps_last=True)
    query = query.unflatten(1, (first.heads, -1))
    attended = interval_attention(query, key, value, edges, probability(first.attention_dropout))
    carried = normalized if first.residual == "normalized" else target
    if carried is target and placed != targets:
        carried = torch.cat([target[s : s + n] for s, n in zip(*targets, strict=True)])
    return end_of_attention(carried, first.dropout, outs, blocks, attended.flatten(1), placed), query, key


def remember(stages: Sequence[tuple[Sequence[ModalityReinforcementUnit], Sequence[Part]]], source: Tensor) -> Tensor:
    """Keys and values side by side, (N_s, 2 K D), of the parts that the units of some stages read; those of the stages stacked."""
    readers = [units[part.unit] for units, parts in stages for part in parts]
    norms, key_values = of_all(readers, "norm_source"), of_all(readers, "key_value")
    groups = Groups([part.start for _, parts in stages for part in parts], [part.size for _, parts in stages for part in parts])
    return linear(key_values, source, groups, norms, steps_last=True)
