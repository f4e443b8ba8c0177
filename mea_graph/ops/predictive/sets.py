"""Predictive attention of several sets of samples, each with a convolution of its own, in one call: few kernels on a device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.backends import is_forced
from mea_graph.ops.eager import PLAIN_TYPES
from mea_graph.ops.pointers import Pointers
from mea_graph.ops.predictive import _OP, _check, triton

_MOST_ADDED = 2**16  # steps that no sample has, which the copies that the loops read get: all sets are as long there as the longest


def predictive_attention_of_sets(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    mu: float,
    pointers: Sequence[Pointers],
    together: Pointers,
) -> Tensor | None:
    r"""`predictive_attention` of each set on its own part of the stacked rows; None where each set is to be computed alone.

    `together` are the joined pointers of the sets.

    Shape:
        - query, key: :math:`(N, K, D)`; prior_query, prior_key: :math:`(N, K, D_{pre})`; value: :math:`(N, K, D_v)`
        - weights[s]: :math:`(K, K, 3, 3)`; biases[s]: :math:`(K,)`
        - result: :math:`(N, K, D_v)`
    """
    heads, samples = query.size(1), pointers[0].num_samples
    if is_forced() or not samples or any(p.num_samples != samples for p in pointers):
        return None
    if not (_are_alike(weights, (heads, heads, 3, 3)) and (_are_alike(biases, (heads,)) or not any(b is not None for b in biases))):
        return None
    steps = [triton.pad(p.max_length) for p in pointers]
    if samples * (len(steps) * max(steps) - sum(steps)) > _MOST_ADDED:
        return None
    weight, bias = weights[0], biases[0]
    _check(query, key, value, together, prior_query, prior_key, weight, bias, mu, None)
    arguments: dict[str, Any] = {"query": query, "key": key, "value": value, "prior_query": prior_query, "prior_key": prior_key}
    arguments |= {"weight": weight, "bias": bias, "mu": mu, "pointers": together, "edges": None}
    if _OP.choose(query.device, arguments) != "triton":
        return None
    arguments["weight"] = torch.stack(list(weights))
    arguments["bias"] = None if bias is None else torch.stack([b for b in biases if b is not None])
    found: Tensor = _OP.run_on("triton", arguments)
    return found


def _are_alike(tensors: Sequence[Tensor | None], shape: tuple[int, ...]) -> bool:
    first = tensors[0]
    return first is not None and all(
        t is not None and type(t) in PLAIN_TYPES and t.shape == shape and t.dtype == first.dtype and t.device == first.device
        for t in tensors
    )
