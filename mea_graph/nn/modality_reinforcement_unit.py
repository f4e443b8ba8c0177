"""One sequence reinforced by others, [MEA] Eq. 7."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from mea_graph.nn._packed_steps import Steps, can_pack, join, linear_steps_last, pack, unpack
from mea_graph.nn._sequences import check_batch, check_heads, check_sequence, merge_heads, split_heads, zero_padding
from mea_graph.nn.feed_forward import FeedForward
from mea_graph.ops import cross_modal_attention, cross_modal_attention_map
from mea_graph.ops.cross_modal_attention.packed import packed_attention


class ModalityReinforcementUnit(nn.Module):
    r"""Cross-modal attention block: a target sequence attends to one or several sources ([MEA] Eq. 7).

    .. math::
        Z_t' &= \mathrm{LN}(Z_t) + W_O \, \mathrm{softmax}(Q K^T / \sqrt{D}) V, \qquad Q = W_Q \mathrm{LN}(Z_t), \;
        [K, V] = W_{KV} \mathrm{LN}(Z_s) \\
        Z_t &\leftarrow \mathrm{FFN}(\mathrm{LN}(Z_t')) + Z_t'

    Nothing needs to be aligned: source and target have lengths of their own. Several sources are read as one concatenated sequence.
    A sample whose sources are all missing keeps the residual path and the biases.

    Args:
        channels: Width d of target and sources.
        heads: K, a divisor of `channels`.
        residual: "normalized" adds LN(Z_t), as printed; "input" adds Z_t.
        dropout: Probability, on the attention's output and in the feed-forward block.

    Shape:
        - target: :math:`(B, T, d)`; source: :math:`(B, T_s, d)` or a list of such
        - target_mask: :math:`(B, T)`, bool; source_mask: :math:`(B, T_s)`, bool, or a list of such, as `source`
        - result: :math:`(B, T, d)`, zeros in the padding

    Raises:
        ValueError: A wrong shape, or not one mask per source.

    >>> import torch
    >>> unit = ModalityReinforcementUnit(40)
    >>> unit(source=torch.randn(2, 375, 40), target=torch.randn(2, 50, 40)).shape
    torch.Size([2, 50, 40])
    """

    def __init__(
        self, channels: int, heads: int = 8, residual: Literal["normalized", "input"] = "normalized", dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        if residual not in ("normalized", "input"):
            raise ValueError(f"residual: expected 'normalized' or 'input', got {residual!r}")
        self.channels, self.heads, self.residual = channels, heads, residual
        self.norm_target = nn.LayerNorm(channels)
        self.norm_source = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(channels, dropout=dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for module in (self.norm_target, self.norm_source, self.query, self.key_value, self.out, self.feed_forward):
            module.reset_parameters()

    def forward(
        self,
        source: Tensor | Sequence[Tensor],
        target: Tensor,
        source_mask: Tensor | Sequence[Tensor] | None = None,
        target_mask: Tensor | None = None,
        return_attention_weights: bool = False,
    ):
        """Returns the reinforced target; on request also the map, (B, K, T, sum of T_s)."""
        if isinstance(source, Steps) and isinstance(target, Steps):  # how `HierarchicalCrossModalAttention` calls it
            return self._on_steps(source, target)
        target, target_mask = check_sequence(target, target_mask, self.channels, "target")
        sources = [source] if isinstance(source, Tensor) else list(source)
        masks = [source_mask] * len(sources) if source_mask is None or isinstance(source_mask, Tensor) else list(source_mask)
        if len(masks) != len(sources) or (isinstance(source_mask, Tensor) and len(sources) > 1):
            raise ValueError(f"source_mask: expected one mask for each of the {len(sources)} sources, got {len(masks)}")
        if not sources:
            raise ValueError("source: expected at least one, got none")
        checked = [check_sequence(s, m, self.channels, f"source[{i}]") for i, (s, m) in enumerate(zip(sources, masks, strict=True))]
        sources, masks = [s for s, _ in checked], [m for _, m in checked]
        check_batch({"target": target, **{f"source[{i}]": s for i, s in enumerate(sources)}}, "target, source")
        if can_pack(target):
            result = unpack(self._on_steps(join([pack(*c) for c in checked]), pack(target, target_mask)), target_mask)
        else:
            result = self._on_padded(sources, target, masks, target_mask)
        if return_attention_weights:
            query = split_heads(self.query(self.norm_target(target)), self.heads)
            return result, cross_modal_attention_map(query, [self._key_value(s)[0] for s in sources], masks)
        return result

    def _on_steps(self, source: Steps, target: Steps) -> Tensor:
        """The reinforced steps, (N, d)."""
        by_head = (self.heads, self.channels // self.heads)
        normalized = self.norm_target(target.x)
        query = linear_steps_last(self.query, normalized).unflatten(0, by_head)
        key, value = linear_steps_last(self.key_value, self.norm_source(source.x)).unflatten(0, (2, *by_head)).unbind()
        attended = packed_attention(query, key, value, target.lengths, source.lengths)
        return self._add(target.x, normalized, attended.flatten(0, 1).mT)

    def _on_padded(self, sources: Sequence[Tensor], target: Tensor, masks: Sequence[Tensor], target_mask: Tensor) -> Tensor:
        """The reinforced sequences, (B, T, d)."""
        normalized = self.norm_target(target)
        keys, values = zip(*map(self._key_value, sources), strict=True)
        attended = cross_modal_attention(split_heads(self.query(normalized), self.heads), keys, values, masks, target_mask)
        return zero_padding(self._add(target, normalized, merge_heads(attended)), target_mask)

    def _key_value(self, source: Tensor) -> list[Tensor]:
        return [split_heads(t, self.heads) for t in self.key_value(self.norm_source(source)).chunk(2, -1)]

    def _add(self, target: Tensor, normalized: Tensor, attended: Tensor) -> Tensor:
        carried = normalized if self.residual == "normalized" else target
        return self.feed_forward(carried + self.dropout(self.out(attended)))
