"""One layer of predictive self-attention, [MEA] Eq. 2-4."""

from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn

from mea_graph.nn._packed_steps import Steps, can_pack, take, unpack
from mea_graph.nn._sequences import check_heads, check_sequence, merge_heads, split_heads, zero_padding
from mea_graph.nn.feed_forward import FeedForward
from mea_graph.ops import predictive_attention, predictive_attention_map


class Prior(NamedTuple):
    """What a layer's prediction needs of the layer before: its queries and keys, (B, K, T, D), zeros in the padding.

    Their product is the previous layer's logit map; keeping the factors costs O(T) memory instead of O(T^2).

    >>> import torch
    >>> _, prior = PredictiveSelfAttention(8, heads=2)(torch.randn(1, 5, 8))
    >>> prior.query.shape
    torch.Size([1, 2, 5, 4])
    """

    query: Tensor
    key: Tensor


class PredictiveSelfAttention(nn.Module):
    r"""Self-attention whose map is guided by a convolution over the previous layer's maps ([MEA] Eq. 2-4).

    Attention patterns of neighbouring layers resemble each other; a 3 x 3 convolution over the previous layer's logit maps (heads as
    channels) predicts this layer's, and the two are mixed:

    .. math::
        A &= \mathrm{softmax}\big(\mu \, \mathrm{GELU}(\mathrm{conv}(A_{pre})) + (1 - \mu) \, \mathrm{softmax}(Q K^T / \sqrt{D})\big) \\
        Z' &= \mathrm{LN}(Z) + W_O \, A V, \qquad Z_e = \mathrm{FFN}(\mathrm{LN}(Z')) + Z'

    Without a prior (the first layer) the map is plain softmax attention.

    Args:
        channels: Width d.
        heads: K, a divisor of `channels`.
        mu: Share of the prediction, in [0, 1].
        prediction: Whether the layer owns a convolution, and so can use a prior. The first layer of a stack needs none.
        residual: "normalized" adds LN(Z), as printed in Eq. 3; "input" adds Z, the usual pre-norm residual.
        dropout: Probability, on the attention's output and in the feed-forward block.

    Shape:
        - x: :math:`(B, T, d)`; mask: :math:`(B, T)`, bool; prior: a `Prior` of the same B, K, T
        - result: :math:`(B, T, d)`, zeros in the padding, and the `Prior` for the next layer

    Raises:
        ValueError: A wrong shape; a prior for a layer built with `prediction=False`.

    >>> import torch
    >>> first, second = PredictiveSelfAttention(40, prediction=False), PredictiveSelfAttention(40)
    >>> x, mask = torch.randn(2, 50, 40), torch.arange(50) < torch.tensor([[50], [12]])
    >>> x, prior = first(x, mask)
    >>> x, prior = second(x, mask, prior)
    >>> x.shape
    torch.Size([2, 50, 40])
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        mu: float = 0.25,
        prediction: bool = True,
        residual: Literal["normalized", "input"] = "normalized",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(channels, heads)
        if not 0 <= mu <= 1:
            raise ValueError(f"mu: expected a number in [0, 1], got {mu}")
        if residual not in ("normalized", "input"):
            raise ValueError(f"residual: expected 'normalized' or 'input', got {residual!r}")
        self.channels, self.heads, self.mu, self.residual = channels, heads, mu, residual
        self.norm = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.predictor = nn.Conv2d(heads, heads, 3, padding=1) if prediction else None
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(channels, dropout=dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.norm.reset_parameters()
        self.query_key_value.reset_parameters()
        self.out.reset_parameters()
        if self.predictor is not None:
            self.predictor.reset_parameters()
        self.feed_forward.reset_parameters()

    def forward(self, x: Tensor, mask: Tensor | None = None, prior: Prior | None = None, return_attention_weights: bool = False):
        """Returns the sequence and the prior for the next layer; on request also the map A, (B, K, T, T)."""
        if prior is not None and self.predictor is None:
            raise ValueError("prior: expected None, since the layer was built with prediction=False, got a Prior")
        if isinstance(x, Steps):  # how `PredictiveEncoder` calls it on a CPU
            rows, *further = self._attend(x.x, cast(Tensor, x.mask), prior, return_attention_weights)
            return x._replace(x=rows), *further
        x, mask = check_sequence(x, mask, self.channels)
        if can_pack(x):
            rows, *further = self._attend(take(x, mask), mask, prior, return_attention_weights)
            return unpack(rows, mask), *further
        z, *further = self._attend(x, mask, prior, return_attention_weights)
        return zero_padding(z, mask), *further

    def _attend(self, x: Tensor, mask: Tensor, prior: Prior | None, return_attention_weights: bool) -> tuple[Any, ...]:
        """Of real steps alone, (N, d), or of the padded batch, (B, T, d); the attention itself always reads the padded batch."""
        packed = x.dim() == 2
        fill = unpack if packed else zero_padding
        normalized = self.norm(x)
        query, key, value = (split_heads(t, self.heads) for t in fill(self.query_key_value(normalized), mask).chunk(3, -1))
        guide: dict[str, Any] = {}
        if prior is not None and self.predictor is not None:
            guide = {"prior_query": prior.query, "prior_key": prior.key, "weight": self.predictor.weight, "bias": self.predictor.bias}
        attended = merge_heads(predictive_attention(query, key, value, mu=self.mu, mask=mask, **guide))
        carried = normalized if self.residual == "normalized" else x
        z = carried + self.dropout(self.out(take(attended, mask) if packed else attended))
        result = self.feed_forward(z), Prior(query, key)
        if return_attention_weights:
            return *result, predictive_attention_map(query, key, mu=self.mu, mask=mask, **guide)
        return result
