"""One layer of predictive self-attention, [MEA] Eq. 2-4."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from mea_graph.nn._dropout import make_dropout
from mea_graph.nn._sequences import Layout, check_edges, check_heard, enter, weight_dtype
from mea_graph.nn._side_by_side import Groups, norm_then_linear, of_all, saves_launches
from mea_graph.nn.attention.feed_forward import FeedForward, end_of_attention
from mea_graph.nn.attention.options import inner_channels, probability
from mea_graph.nn.attention.prediction import is_its_weights, prediction
from mea_graph.ops import IntervalEdges, Pointers, interval_attention, predictive_attention, predictive_attention_map
from mea_graph.ops.predictive.sets import predictive_attention_of_sets


class Prior(NamedTuple):
    """The queries and keys of a layer's rows, (N, K, D), from which the next layer predicts its map.

    Their product is the logit map of the layer; the factors take O(T) memory, the map O(T^2). Give it to the next layer with the same mask
    or ptr.

    >>> import torch
    >>> _, prior = PredictiveSelfAttention(8, heads=2)(torch.randn(1, 5, 8))
    >>> prior.query.shape
    torch.Size([5, 2, 4])
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
        heads: Number of heads K, a divisor of `channels`, unless `head_channels` is given.
        mu: Share of the predicted map, in [0, 1]; 0 leaves the prediction out.
        prediction: Whether the layer owns a convolution, and so can use a prior. The first layer of a stack needs none; where there is no
            prior, the convolution's gradient is zero.
        residual: "normalized" adds LN(Z), as in the paper; "input" adds Z, the usual pre-norm residual.
        dropout: Probability, on the attention's output and in the feed-forward block.
        head_channels: Width D of one head; None means d / K.
        feed_forward_channels: Width inside the feed-forward block; None means 4 d.
        attention_dropout: Probability with which a weight of the map is dropped in training, the others scaled up. The weights are then
            stored: those of the padded map, or, with windows and lists of edges, those of the edges.

    Shape:
        - x: rows :math:`(N, d)` with ptr :math:`(B + 1,)`, or :math:`(B, T, d)` with a mask :math:`(B, T)`, bool, True at real steps
        - prior: a `Prior` of the same rows; edges: `IntervalEdges` of the rows with themselves, or edge_index :math:`(2, E)`
        - result: as x, zeros in the padding, and the `Prior` for the next layer

    Raises:
        ValueError: If a shape is wrong, the prior is one of other rows, or a layer built with `prediction=False` gets a prior.

    >>> import torch
    >>> first = PredictiveSelfAttention(40, prediction=False)
    >>> second = PredictiveSelfAttention(40)
    >>> x, mask = torch.randn(2, 50, 40), torch.arange(50) < torch.tensor([[50], [12]])
    >>> x, prior = first(x, mask)
    >>> x, prior = second(x, mask, prior)
    >>> x.shape
    torch.Size([2, 50, 40])
    """

    __constants__ = ["heads", "residual"]

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        mu: float = 0.25,
        prediction: bool = True,
        residual: Literal["normalized", "input"] = "normalized",
        dropout: float = 0.0,
        *,
        head_channels: int | None = None,
        feed_forward_channels: int | None = None,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = inner_channels(channels, heads, head_channels, feed_forward_channels)
        if not 0 <= mu <= 1:
            raise ValueError(f"mu: expected a number in [0, 1], got {mu}")
        if residual not in ("normalized", "input"):
            raise ValueError(f"residual: expected 'normalized' or 'input', got {residual!r}")
        self.channels, self.heads, self.mu, self.residual = channels, heads, mu, residual
        self.norm = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * width)
        self.out = nn.Linear(width, channels)
        self.predictor = nn.Conv2d(heads, heads, 3, padding=1) if prediction else None
        self.attention_dropout = make_dropout(attention_dropout, "attention_dropout")
        self.dropout = make_dropout(dropout)
        self.feed_forward = FeedForward(channels, feed_forward_channels, dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.norm.reset_parameters()
        self.query_key_value.reset_parameters()
        self.out.reset_parameters()
        if self.predictor is not None:
            self.predictor.reset_parameters()
        self.feed_forward.reset_parameters()

    @overload
    def forward(
        self,
        x: Tensor,
        layout: Layout = None,
        prior: Prior | None = None,
        edges: IntervalEdges | Tensor | None = None,
        return_attention_weights: Literal[False] = False,
    ) -> tuple[Tensor, Prior]: ...

    @overload
    def forward(
        self,
        x: Tensor,
        layout: Layout = None,
        prior: Prior | None = None,
        edges: IntervalEdges | Tensor | None = None,
        *,
        return_attention_weights: Literal[True],
    ) -> tuple[Tensor, Prior, Tensor]: ...

    @overload
    def forward(
        self,
        x: Tensor,
        layout: Layout = None,
        prior: Prior | None = None,
        edges: IntervalEdges | Tensor | None = None,
        return_attention_weights: bool = False,
    ) -> tuple[Tensor, Prior] | tuple[Tensor, Prior, Tensor]: ...

    def forward(
        self,
        x: Tensor,
        layout: Layout = None,
        prior: Prior | None = None,
        edges: IntervalEdges | Tensor | None = None,
        return_attention_weights: bool = False,
    ) -> tuple[Tensor, Prior] | tuple[Tensor, Prior, Tensor]:
        """Returns the sequence and the prior for the next layer; on request also the map A, (B, K, T, T), before any weight is dropped.

        `layout` is the ptr of rows or the mask of a padded batch; None: one sequence, or no padding. `edges` say which rows hear
        which; None: all of their sample.
        """
        if prior is not None and self.predictor is None:
            raise ValueError("prior: expected None, since the layer was built with prediction=False, got a Prior")
        if prior is not None and not isinstance(prior, Prior):
            raise TypeError(f"prior: expected the Prior that the layer before returned, got {type(prior).__name__}")
        entered = enter(x, layout, self.channels, dtype=weight_dtype(self, "query_key_value"))
        check_edges(edges, entered)
        if edges is not None:
            check_heard(edges, [entered.pointers], entered.pointers)
        if prior is not None and prior.query.size(0) != entered.x.size(0):
            raise ValueError(f"prior: expected that of {entered.x.size(0)} rows, as the layer before had, got {prior.query.size(0)}")
        rows, own, maps = attend([self], entered.x, [entered.pointers], entered.pointers, prior, [edges], return_attention_weights)
        result = entered.leave(rows), own
        return (*result, maps[0]) if return_attention_weights else result


def attend(
    layers: Sequence[PredictiveSelfAttention],
    x: Tensor,
    pointers: Sequence[Pointers],
    together: Pointers,
    prior: Prior | None,
    edges: Sequence[IntervalEdges | Tensor | None],
    maps: bool = False,
) -> tuple[Tensor, Prior, list[Tensor]]:
    """Runs each layer on its own part of the stacked rows x (N, d); also returns each layer's map, if requested.

    `together` are the joined pointers; `prior` is that of all rows.
    """
    sizes = [p.num_rows for p in pointers]
    groups = Groups.below_each_other(sizes)
    first = layers[0]
    normalized, projected = norm_then_linear(of_all(layers, "norm"), of_all(layers, "query_key_value"), x, groups)
    query, key, value = projected.unflatten(1, (3, first.heads, -1)).unbind(1)  # (N, K, D)
    dropout = probability(first.attention_dropout)
    own = Prior(query, key)
    intervals = [e for e in edges if not isinstance(e, Tensor)]
    attended = None
    if len(layers) > 1 and len(intervals) == len(layers) and prior is None:
        if all(e is None for e in intervals):
            whole = IntervalEdges.complete(together, together)
        else:
            complete = [IntervalEdges.complete(p, p) if e is None else e for p, e in zip(pointers, intervals, strict=True)]
            whole = IntervalEdges.below_each_other(complete)
        attended = interval_attention(query, key, value, whole, dropout)
    elif len(layers) > 1 and not dropout and not maps and all(e is None for e in edges) and saves_launches(x):
        attended = _attend_together(layers, own, value, pointers, together, prior)
    each: list[_OfLayer] = []
    if attended is None or maps:
        each = _of_layers(layers, own, value, pointers, prior)
    if attended is None:
        parts = [
            predictive_attention(*of.own, of.value, of.pointers, edges=edges[i], dropout=dropout, backend=of.backend, **of.guide)
            for i, of in enumerate(each)
        ]
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
    carried = normalized if first.residual == "normalized" else x
    z = end_of_attention(carried, first.dropout, of_all(layers, "out"), of_all(layers, "feed_forward"), attended.flatten(1), groups)
    idle = [p for layer in layers if prior is None and layer.predictor is not None for p in layer.predictor.parameters()]
    if idle and torch.is_grad_enabled():  # adds an exact zero that reaches idle parameters: DDP waits for each
        z = z + torch.stack([p.flatten()[:0].sum() for p in idle]).sum()
    drawn = []
    if maps:
        for of, of_layer in zip(each, edges, strict=True):
            if isinstance(of_layer, Tensor):
                raise ValueError("return_attention_weights: expected interval edges, got an edge_index, whose map is no image")
            drawn.append(predictive_attention_map(*of.own, of.pointers, edges=of_layer, **of.guide))
    return z, own, drawn


class _OfLayer(NamedTuple):
    """What predictive attention is given for one layer."""

    own: Prior
    value: Tensor
    pointers: Pointers
    guide: dict[str, Any]  # what stems from the layer before
    backend: str


def _of_layers(
    layers: Sequence[PredictiveSelfAttention], own: Prior, value: Tensor, pointers: Sequence[Pointers], prior: Prior | None
) -> list[_OfLayer]:
    sizes = [p.num_rows for p in pointers]
    tensors = [*own, value, *(prior or ())]
    by_layer = [tensors] if len(layers) == 1 else list(zip(*(t.split(sizes) for t in tensors), strict=True))
    found = []
    for layer, (q, k, v, *before), p in zip(layers, by_layer, pointers, strict=True):
        found.append(_OfLayer(Prior(q, k), v, p, *_guide(layer, Prior(*before) if before else None, p)))
    return found


def _attend_together(
    layers: Sequence[PredictiveSelfAttention],
    own: Prior,
    value: Tensor,
    pointers: Sequence[Pointers],
    together: Pointers,
    prior: Prior | None,
) -> Tensor | None:
    """Attention guided by a prior, of all layers in one call; None where each is to be called alone."""
    predictors = [layer.predictor for layer in layers]
    if prior is None or len({layer.mu for layer in layers}) > 1 or not all(map(is_its_weights, predictors)):
        return None
    weights, biases = ([getattr(p, name) for p in predictors] for name in ("weight", "bias"))
    return predictive_attention_of_sets(*own, value, *prior, weights, biases, layers[0].mu, pointers, together)


def _guide(layer: PredictiveSelfAttention, prior: Prior | None, pointers: Pointers) -> tuple[dict[str, Any], str]:
    """The arguments of the op that stem from the layer before, and the backend to take."""
    if prior is None or layer.predictor is None:
        return {"mu": layer.mu}, "auto"
    guide, backend = prediction(layer.predictor, *prior, pointers)
    return {**guide, "mu": layer.mu}, backend
