"""Parts of attention layers in one call of compiled C++, where nobody differentiates or watches."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mea_graph.ops.backends import is_unwatched
from mea_graph.ops.grouped import native
from mea_graph.ops.native import library

Layers = tuple[list[Tensor], list[Tensor]]  # weights and biases, one of each for every group; no biases where no layer has one


class Blocks(NamedTuple):
    """The layers at the end of attention."""

    out: Layers  # (C, inner)
    norm: Layers  # (C,)
    expand: Layers  # (C', C)
    contract: Layers  # (C, C')


def blocks_at_once(carried: Tensor, attended: Tensor, blocks: Blocks, sizes: Sequence[int], eps: float) -> Tensor | None:
    r"""The end of an attention layer, for groups of consecutive rows; None where it is to be computed layer by layer.

    .. math:: z = \mathrm{carried} + W_o a + b_o, \qquad y = z + W_c \, \mathrm{ReLU}(W_e \, \mathrm{LN}(z) + b_e) + b_c

    On few rows, the calls of single layers take longer than their products. It is computed by the same loops as those.

    Shape:
        - carried: :math:`(N, C)`; attended, a: :math:`(N, \mathrm{inner})`; sizes: rows of each group, N in all
        - result: :math:`(N, C)`
    """
    if not is_unwatched():
        return None
    groups, shape, dtype = len(sizes), blocks.expand[0][0].shape, carried.dtype
    if len(shape) != 2 or attended.dim() != 2 or attended.dtype is not dtype or not _is_read(attended) or not _is_read(carried):
        return None
    (wide, width), (rows, inner) = shape, attended.shape
    if (
        carried.shape != (rows, width)
        or sum(sizes) != rows
        or min(sizes) < 0
        or not 0 < min(wide, width, inner) <= max(wide, width, inner) <= native.WIDEST
    ):
        return None
    if dtype not in (torch.float32, torch.float64) or library.is_switched_off() or library.refuse() is not None:
        return None
    fields = []
    for (weights, biases), expected in zip(blocks, ((width, inner), (width,), shape, (width, wide)), strict=True):
        if len(weights) != groups or not native.fit(weights, expected, dtype) or not native.fit(biases, expected[:1], dtype):
            return None
        fields += [native.addresses(weights, groups), native.addresses(biases, groups)]
    a = attended if 1 in attended.stride() else attended.contiguous()
    carried = carried if carried.stride(1) == 1 else carried.contiguous()
    out = torch.empty((rows, width), dtype=dtype, device="cpu")
    call = [a.data_ptr(), *a.stride(), carried.data_ptr(), carried.stride(0), out.data_ptr(), inner, width, wide, groups]
    call.append(torch.get_num_threads())
    for block in zip(*fields, sizes, strict=True):
        call += block
    library.call_addresses("grouped_blocks_forward", dtype, call, eps)
    return out


def norm_and_linear(
    x: Tensor, linear: Layers, groups: tuple[Sequence[int], Sequence[int]], norm: Layers, eps: float, steps_last: bool
) -> tuple[Tensor, Tensor] | None:
    r"""The normalised rows of each group and their linear map; None where norm and map are to be computed one after the other.

    .. math:: n_g = \mathrm{LN}_g(x_{[s_g, s_g + n_g)}), \qquad y_g = n_g W_g^T + b_g

    Shape:
        - x: :math:`(N, C)`; groups: first rows and numbers of rows
        - result: :math:`(\sum_g n_g, C)` and :math:`(\sum_g n_g, C')`, the latter with rows last in memory if `steps_last`
    """
    if not is_unwatched() or x.dim() != 2:
        return None
    starts, sizes = groups
    normal = torch.empty((sum(sizes), x.size(1)), dtype=x.dtype, device=x.device)
    found = native.linear_at_once(x, *linear, starts, sizes, *norm, eps, steps_last, None, normal)
    return None if found is None else (normal, found)


def _is_read(x: Tensor) -> bool:
    return x.is_cpu and type(x) in native.PLAIN_TYPES and not x.is_neg()
