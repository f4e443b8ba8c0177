"""Predictive attention, [MEA] Eq. 2: attention whose map is guided by a convolution over the previous layer's maps."""

from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.backends import Backend, Op
from mea_graph.ops.predictive_attention import cpu, padded, reference, triton

__all__ = ["predictive_attention", "predictive_attention_map"]


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    prior_query: Tensor | None,
    prior_key: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mu: float,
    mask: Tensor | None,
) -> None:
    if query.dim() != 4:
        raise ValueError(f"query: expected (B, K, T, D), got {tuple(query.shape)}")
    batch, heads, length, _ = query.shape
    if key.shape != query.shape:
        raise ValueError(f"key: expected {tuple(query.shape)} as query, got {tuple(key.shape)}")
    if value is not None and (value.dim() != 4 or value.shape[:3] != query.shape[:3]):
        raise ValueError(f"value: expected ({batch}, {heads}, {length}, any), got {tuple(value.shape)}")
    if not 0 <= mu <= 1:
        raise ValueError(f"mu: expected a number in [0, 1], got {mu}")
    if mask is not None and (mask.shape != (batch, length) or mask.dtype != torch.bool):
        raise ValueError(f"mask: expected bool ({batch}, {length}), got {mask.dtype} {tuple(mask.shape)}")
    given = [prior_query is not None, prior_key is not None, weight is not None]
    if any(given) and not all(given):
        raise ValueError("prior_query, prior_key and weight: expected all of them or none")
    if prior_query is None or prior_key is None or weight is None:
        return
    if prior_query.shape != prior_key.shape or prior_query.shape[:3] != query.shape[:3]:
        raise ValueError(
            f"prior_query, prior_key: expected ({batch}, {heads}, {length}, any), got {tuple(prior_query.shape)}, {tuple(prior_key.shape)}"
        )
    if weight.shape != (heads, heads, 3, 3):
        raise ValueError(f"weight: expected ({heads}, {heads}, 3, 3), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (heads,):
        raise ValueError(f"bias: expected ({heads},), got {tuple(bias.shape)}")


def predictive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor | None = None,
    prior_key: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mu: float = 0.25,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Attention guided by the previous layer's logits ([MEA] Eq. 2, times V).

    .. math::
        A = \mathrm{softmax}\big(\mu \, \mathrm{GELU}(\mathrm{conv}_{3 \times 3}(A_{pre}))
            + (1 - \mu) \, \mathrm{softmax}(Q K^T / \sqrt{D})\big), \qquad
        A_{pre} = Q_{pre} K_{pre}^T / \sqrt{D_{pre}}

    The convolution mixes the K heads as channels of a T x T image that is zero outside the sample's valid block (R1); both softmaxes run
    over the keys that exist. Without a prior the result is plain attention.

    The backends other than the reference never store a map: the convolution is folded into one more dot product of width 3 K D, rows are
    computed block by block, and again in the backward pass. They take O(B K T D) memory, and time that follows the true lengths (a sample
    ends with its last real step). Sums are taken in float32, or in float64 where an input is float64, and repeat bit for bit. One
    exception: sequences of up to 64 steps without padding, on a CPU, that no gradient is asked of take the formula itself, whose maps then
    fit a block.

    Args:
        query, key, value: This layer's projections, split into heads.
        prior_query, prior_key: The previous layer's query and key; both or neither.
        weight, bias: Of the convolution, as `torch.nn.Conv2d(K, K, 3)` holds them; `weight` goes with the prior.
        mu: Share of the prediction, in [0, 1].
        mask: True at real steps; the others give zeros, and what stands there reaches no result and no gradient. None: all are real.
        backend: "auto", "plain" (without a prior: `cross_modal_attention` of the sequence over itself), "triton" (CUDA), "cpu" (plain
            torch, on any device) or "reference" (stores the maps; the only one with second derivatives).

    Shape:
        - query, key: :math:`(B, K, T, D)`; prior_query, prior_key: :math:`(B, K, T, D_{pre})`; value: :math:`(B, K, T, D_v)`
        - weight: :math:`(K, K, 3, 3)`; bias: :math:`(K,)`; mask: :math:`(B, T)`, bool
        - result: :math:`(B, K, T, D_v)`, of the dtype of `value`

    Raises:
        ValueError: A shape, `mu` or the type of the mask is not as above, or the backend cannot run.

    >>> import torch
    >>> q, k, v = torch.randn(3, 2, 4, 6, 5).unbind()  # B = 2, K = 4, T = 6, D = 5
    >>> weight, bias = torch.randn(4, 4, 3, 3), torch.zeros(4)
    >>> predictive_attention(q, k, v, prior_query=q, prior_key=k, weight=weight, bias=bias).shape
    torch.Size([2, 4, 6, 5])
    """
    _check(query, key, value, prior_query, prior_key, weight, bias, mu, mask)
    arguments = {
        "query": query,
        "key": key,
        "value": value,
        "prior_query": prior_query,
        "prior_key": prior_key,
        "weight": weight,
        "bias": bias,
        "mu": mu,
        "mask": mask,
    }
    return _OP.select(backend, query.device, arguments)(**arguments)


def predictive_attention_map(
    query: Tensor,
    key: Tensor,
    prior_query: Tensor | None = None,
    prior_key: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mu: float = 0.25,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The attention map A of `predictive_attention`, for figures; stores all of it: O(B K T^2) memory.

    Args:
        query, key, prior_query, prior_key, weight, bias, mu, mask: As for `predictive_attention`.

    Shape:
        - result: :math:`(B, K, T, T)`; rows of real steps sum to one over the real keys, columns of padding are zero.

    Raises:
        ValueError: As for `predictive_attention`.

    >>> import torch
    >>> q, k = torch.randn(2, 1, 2, 3, 4).unbind()
    >>> predictive_attention_map(q, k).sum(-1).allclose(torch.ones(1, 2, 3))
    True
    """
    _check(query, key, None, prior_query, prior_key, weight, bias, mu, mask)
    if query.size(2) == 0:
        return query @ key.mT
    return reference.attention_map(query, key, prior_query, prior_key, weight, bias, mu, mask)


def _accept(**_: Any) -> None:
    """For the backend that runs on anything."""


def _refuse_cpu(prior_query: Tensor | None, **_: Any) -> str | None:
    return "without a prior it is plain attention" if prior_query is None else None


_OP = Op(
    predictive_attention,
    {
        "plain": Backend(padded.run_plain, padded.refuse_plain),
        "triton": Backend(triton.run, triton.refuse, prefers="cuda"),
        "cpu": Backend(cpu.run, _refuse_cpu),
        "reference": Backend(padded.run_reference, _accept),
    },
)
