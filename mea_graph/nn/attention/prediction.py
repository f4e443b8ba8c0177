"""What the convolution of a predictive layer hands to the op of attention: its weights, or what it makes of the stored maps."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mea_graph.nn._side_by_side import has_own_call
from mea_graph.ops import Pointers
from mea_graph.ops.predictive.padded import padded_arguments


def prediction(predictor: nn.Module, query: Tensor, key: Tensor, pointers: Pointers) -> tuple[dict[str, Any], str]:
    """The arguments of the op for a prior (N, K, D), its query and key, and the backend to take.

    A convolution as the layer makes it is its weights. Anything else, one with hooks, pruned, parametrised or replaced, is called on the
    maps (B, K, T, T), which are stored for it. The op then reads the result as the product of a prior whose keys are the numbers of the
    steps, one hot, under a convolution that changes nothing.
    """
    if is_its_weights(predictor):
        return {"prior_query": query, "prior_key": key, "weight": predictor.weight, "bias": predictor.bias}, "auto"
    steps, heads = pointers.max_length, query.size(1)
    if steps == 0 or pointers.num_samples == 0:
        return {}, "auto"  # there is no map
    (q, k), *_ = padded_arguments((query, key), pointers, None, query.dtype)
    maps = q @ k.mT / math.sqrt(query.size(-1))  # zero outside a sample, since the padding is
    seen = predictor(maps)
    if not isinstance(seen, Tensor) or seen.shape != maps.shape:
        got = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
        raise ValueError(f"predictor: expected {tuple(maps.shape)}, as the maps that {type(predictor).__name__} was given, got {got}")
    rows = pointers.unpad(rearrange(seen, "sample head i j -> sample i head j"))
    numbers = F.one_hot(pointers.position.clamp(0, steps - 1), steps).to(seen.dtype)
    unchanged = F.pad(torch.eye(heads, dtype=seen.dtype, device=seen.device)[:, :, None, None], (1, 1, 1, 1))
    return {
        "prior_query": rows * math.sqrt(steps),
        "prior_key": numbers.unsqueeze(1).expand(-1, heads, -1),
        "weight": unchanged,
    }, "reference"


def is_its_weights(predictor: nn.Module | None) -> bool:
    """Whether the convolution is as the layer makes it, and nobody watches it."""
    return type(predictor) is nn.Conv2d and _is_as_built(predictor) and not has_own_call(predictor)


def _is_as_built(conv: nn.Conv2d) -> bool:
    window = conv.kernel_size == (3, 3) and conv.padding == conv.stride == conv.dilation == (1, 1)
    return window and conv.groups == 1 and conv.padding_mode == "zeros"
