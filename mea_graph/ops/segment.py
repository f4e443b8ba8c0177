"""Reductions over the segments of a flat tensor: `segment_sum`, `segment_mean`, `segment_max`, `segment_softmax`.

A segment is the set of rows of `src` that share a value of `index`, in any order; or, with `ptr`, the rows from `ptr[s]` to `ptr[s + 1]`.
Rows and pointers are reduced in a fixed order, sums by torch_scatter wherever it is installed and can run (`has_torch_scatter`), the
rest by torch; `index` is left to torch's scatter operations. Values and gradients are the same from all, to rounding, and can be
differentiated again. Where a graph is traced, or `torch.func` transforms it, everything is scatter operations.
"""

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from mea_graph.ops.eager import is_traced, is_transformed

__all__ = ["has_torch_scatter", "segment_max", "segment_mean", "segment_softmax", "segment_sum"]

_LOW_PRECISION = (torch.float16, torch.bfloat16)


@functools.cache
def has_torch_scatter() -> bool:
    """Returns whether torch_scatter can be used.

    torch_scatter is optional: it has no wheels, and building it takes minutes. If it is installed but cannot be loaded (for example,
    because it was built for another torch), the function warns and returns False.

    >>> from mea_graph.ops.segment import has_torch_scatter
    >>> has_torch_scatter() in (True, False)
    True
    """
    try:
        import torch_scatter  # noqa: F401
    except ModuleNotFoundError:
        return False
    except (ImportError, OSError, RuntimeError) as error:
        warnings.warn(f"torch_scatter is installed but cannot be loaded, so torch's own operations are used: {error}", stacklevel=2)
        return False
    return True


def segment_sum(src: Tensor, index: Tensor | None = None, num_segments: int | None = None, ptr: Tensor | None = None) -> Tensor:
    """Sums the rows of each segment; sums of float16 and bfloat16 are taken in float32.

    `out[s] = sum of src[i] over the rows i of segment s`; a segment without rows gives 0.

    Args:
        src: Floating point values.
        index: The segment of each row, int64 in `[0, num_segments)`, in any order.
        num_segments: The number of segments S, at least 0; needed with `index`, so that no value travels back from the device.
        ptr: In place of both, where each segment begins and the last one ends, int64, from 0 to N and never falling.

    Shape:
        - src: :math:`(N, *)`
        - index: :math:`(N,)`; ptr: :math:`(S + 1,)`
        - result: :math:`(S, *)`, in the dtype of `src`

    Raises:
        ValueError: If shapes do not fit together, `num_segments` is negative, or `index` and `ptr` are both given or both absent.
        TypeError: If `src` is not floating point, or `index` or `ptr` is not int64.

    >>> import torch
    >>> from mea_graph.ops import segment_sum
    >>> segment_sum(
    ...     torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), num_segments=3
    ... )
    tensor([2., 0., 5.])
    >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), ptr=torch.tensor([0, 1, 1, 3]))
    tensor([1., 0., 6.])
    """
    _check(src, index, num_segments, ptr)
    return _sum_unchecked(src, index, num_segments, ptr)


def _sum_unchecked(src: Tensor, index: Tensor | None = None, num_segments: int | None = None, ptr: Tensor | None = None) -> Tensor:
    """`segment_sum` of segments that the library made, which need no check."""
    wide = src.float() if src.dtype in _LOW_PRECISION else src
    return _sum(wide, index, num_segments, ptr).to(src.dtype)


def segment_mean(src: Tensor, index: Tensor | None = None, num_segments: int | None = None, ptr: Tensor | None = None) -> Tensor:
    """Averages the rows of each segment; float16 and bfloat16 are summed in float32.

    `out[s] = mean of src[i] over the rows i of segment s`; a segment without rows gives 0.

    Args:
        src: Floating point values.
        index: The segment of each row, int64 in `[0, num_segments)`, in any order.
        num_segments: The number of segments S, at least 0; needed with `index`, so that no value travels back from the device.
        ptr: In place of both, where each segment begins and the last one ends, int64, from 0 to N and never falling.

    Shape:
        - src: :math:`(N, *)`
        - index: :math:`(N,)`; ptr: :math:`(S + 1,)`
        - result: :math:`(S, *)`, in the dtype of `src`

    Raises:
        ValueError: If shapes do not fit together, `num_segments` is negative, or `index` and `ptr` are both given or both absent.
        TypeError: If `src` is not floating point, or `index` or `ptr` is not int64.

    >>> import torch
    >>> from mea_graph.ops import segment_mean
    >>> segment_mean(torch.tensor([1.0, 2.0, 4.0]), ptr=torch.tensor([0, 1, 1, 3]))
    tensor([1., 0., 3.])
    """
    _check(src, index, num_segments, ptr)
    wide = src.float() if src.dtype in _LOW_PRECISION else src
    rows = _sum(wide.new_ones(src.size(0)), index, num_segments, None) if ptr is None else ptr.diff().to(wide.dtype)
    return (_sum(wide, index, num_segments, ptr) / rows.clamp(min=1).view(-1, *[1] * (src.dim() - 1))).to(src.dtype)


def segment_max(src: Tensor, index: Tensor | None = None, num_segments: int | None = None, ptr: Tensor | None = None) -> Tensor:
    """Takes the maximum over the rows of each segment.

    A NaN in a segment makes its maximum NaN. Rows that tie for the maximum share its gradient equally.

    `out[s] = max of src[i] over the rows i of segment s`; a segment without rows gives 0.

    Args:
        src: Floating point values.
        index: The segment of each row, int64 in `[0, num_segments)`, in any order.
        num_segments: The number of segments S, at least 0; needed with `index`, so that no value travels back from the device.
        ptr: In place of both, where each segment begins and the last one ends, int64, from 0 to N and never falling.

    Shape:
        - src: :math:`(N, *)`
        - index: :math:`(N,)`; ptr: :math:`(S + 1,)`
        - result: :math:`(S, *)`, in the dtype of `src`

    Raises:
        ValueError: If shapes do not fit together, `num_segments` is negative, or `index` and `ptr` are both given or both absent.
        TypeError: If `src` is not floating point, or `index` or `ptr` is not int64.

    >>> import torch
    >>> from mea_graph.ops import segment_max
    >>> segment_max(
    ...     torch.tensor([-1.0, -2.0, 4.0]), torch.tensor([2, 0, 2]), num_segments=3
    ... )
    tensor([-2.,  0.,  4.])
    """
    _check(src, index, num_segments, ptr)
    if src.requires_grad and _path(src) != "traced":
        return _Max.apply(src, index, num_segments, ptr)
    return _max(src, index, num_segments, ptr)


def segment_softmax(src: Tensor, index: Tensor | None = None, num_segments: int | None = None, ptr: Tensor | None = None) -> Tensor:
    """Normalises the rows of each segment to weights that sum to one.

    The maximum of each segment is taken off first, so that large logits do not overflow. A segment whose logits are all `-inf` (everything
    in it is masked) gives zeros, and zero gradient. float16 and bfloat16 are computed in float32.

    `out[i] = exp(src[i]) / sum of exp(src[j]) over the rows j of the segment of i`.

    Args:
        src: Logits, floating point.
        index: The segment of each row, int64 in `[0, num_segments)`, in any order.
        num_segments: The number of segments S, at least 0; needed with `index`, so that no value travels back from the device.
        ptr: In place of both, where each segment begins and the last one ends, int64, from 0 to N and never falling.

    Shape:
        - src: :math:`(N, *)`
        - index: :math:`(N,)`; ptr: :math:`(S + 1,)`
        - result: :math:`(N, *)`, in the dtype of `src`

    Raises:
        ValueError: If shapes do not fit together, `num_segments` is negative, or `index` and `ptr` are both given or both absent.
        TypeError: If `src` is not floating point, or `index` or `ptr` is not int64.

    >>> import torch
    >>> from mea_graph.ops import segment_softmax
    >>> segment_softmax(
    ...     torch.tensor([3.0, 7.0, 3.0]), torch.tensor([2, 0, 2]), num_segments=3
    ... )
    tensor([0.5000, 1.0000, 0.5000])
    """
    _check(src, index, num_segments, ptr)
    wide = src.float() if src.dtype in _LOW_PRECISION else src
    if _path(src) == "traced":
        index, num_segments = _as_index(src, index, num_segments, ptr)
        ptr = None
    range_ = torch.finfo(wide.dtype)
    top = _max(wide.detach(), index, num_segments, ptr).clamp(range_.min, range_.max)  # -inf - -inf would be NaN
    segment, _ = _as_index(src, index, num_segments, ptr)
    weight = (wide - top.index_select(0, segment)).exp()
    total = _sum(weight, index, num_segments, ptr).clamp(min=0.5)  # at least 1, the largest of them, or 0
    return (weight / total.index_select(0, segment)).to(src.dtype)


def _max(src: Tensor, index: Tensor | None, num_segments: int | None, ptr: Tensor | None) -> Tensor:
    if ptr is None or not src.numel() or _path(src) == "traced":
        index, num_segments = _as_index(src, index, num_segments, ptr)
        empty = src.new_zeros((num_segments, *src.shape[1:]))
        return empty.scatter_reduce(0, _like(index, src), src, "amax", include_self=False)
    # By torch in any case: torch_scatter skips NaN, and starts from the lowest finite number, which hides a segment of -inf.
    output = torch.segment_reduce(src.contiguous(), "max", offsets=ptr, axis=0, unsafe=True, initial=-torch.inf)
    return torch.where((ptr.diff() > 0).view(-1, *[1] * (src.dim() - 1)), output, 0.0)


def _sum(src: Tensor, index: Tensor | None, num_segments: int | None, ptr: Tensor | None) -> Tensor:
    if ptr is not None and _path(src) != "traced":
        return _PointerSum.apply(src, ptr) if src.requires_grad and torch.is_grad_enabled() else _sum_pointers(src, ptr)
    index, num_segments = _as_index(src, index, num_segments, ptr)
    return src.new_zeros((num_segments, *src.shape[1:])).scatter_add(0, _like(index, src), src)


def _sum_pointers(src: Tensor, ptr: Tensor) -> Tensor:
    if not src.numel():
        return src.new_zeros((ptr.size(0) - 1, *src.shape[1:]))
    if _path(src) == "torch_scatter":
        import torch_scatter

        return torch_scatter.segment_csr(src.contiguous(), ptr, reduce="sum")
    return torch.segment_reduce(src.contiguous(), "sum", offsets=ptr, axis=0, unsafe=True)


class _PointerSum(torch.autograd.Function):
    """The sums by `ptr`. Neither library's own gradient can be differentiated again; this one can."""

    @staticmethod
    def forward(ctx: Any, src: Tensor, ptr: Tensor) -> Tensor:
        ctx.save_for_backward(ptr)
        ctx.rows = src.size(0)
        return _sum_pointers(src, ptr)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (ptr,) = ctx.saved_tensors
        return grads[0].index_select(0, _segment_of(ptr, ctx.rows)), None


class _Max(torch.autograd.Function):
    """The maxima. torch's own gradient cannot be differentiated again, and torch_scatter gives all of it to one of the rows that tie."""

    @staticmethod
    def forward(ctx: Any, src: Tensor, index: Tensor | None, num_segments: int | None, ptr: Tensor | None) -> Tensor:
        output = _max(src, index, num_segments, ptr)
        ctx.save_for_backward(src, _as_index(src, index, num_segments, ptr)[0], output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        src, index, output = ctx.saved_tensors
        wins = (src == output.index_select(0, index)).to(src.dtype).detach()
        ties = _sum(wins, index, output.size(0), None)
        ties = ties.masked_fill((ties == 0) & ~output.isnan(), 1)  # 0 where the maximum is NaN: so is its gradient, as in torch
        return wins * (grads[0] / ties).index_select(0, index), None, None, None


def _path(src: Tensor) -> str:
    """Which library does the work; tests replace this function to take each path in turn."""
    plain = type(src) in (Tensor, torch.nn.Parameter) and src.device.type in ("cpu", "cuda")
    if is_traced() or is_transformed() or not plain:
        return "traced"
    if not has_torch_scatter() or (src.is_cuda and torch.ops.torch_scatter.cuda_version() == -1):
        return "torch"
    return "torch_scatter"


def _as_index(src: Tensor, index: Tensor | None, num_segments: int | None, ptr: Tensor | None) -> tuple[Tensor, int]:
    if ptr is not None:
        return _segment_of(ptr, src.size(0)), ptr.size(0) - 1
    assert index is not None
    assert num_segments is not None
    return index, num_segments


def _segment_of(ptr: Tensor, rows: int) -> Tensor:
    """The segment of each row."""
    return torch.repeat_interleave(ptr.diff(), output_size=rows)


def _like(index: Tensor, src: Tensor) -> Tensor:
    return index.view(-1, *[1] * (src.dim() - 1)).expand_as(src)


def _check(src: Tensor, index: Tensor | None, num_segments: int | None, ptr: Tensor | None) -> None:
    if not src.is_floating_point():
        raise TypeError(f"src: expected floating point values, got {src.dtype}")
    if (index is None) == (ptr is None) or (index is None) != (num_segments is None):
        raise ValueError("index, num_segments, ptr: expected the first two, or the last alone")
    for name, given in (("index", index), ("ptr", ptr)):
        if given is not None and given.dtype != torch.int64:
            raise TypeError(f"{name}: expected torch.int64, got {given.dtype}")
    if src.dim() == 0:
        raise ValueError(f"src: expected rows, got shape {tuple(src.shape)}")
    if index is not None and (index.dim() != 1 or index.size(0) != src.size(0)):
        raise ValueError(f"index: expected one entry for each row of src, got shapes {tuple(index.shape)} and {tuple(src.shape)}")
    if num_segments is not None and num_segments < 0:
        raise ValueError(f"num_segments: expected at least 0, got {num_segments}")
    if ptr is not None and (ptr.dim() != 1 or not ptr.size(0)):
        raise ValueError(f"ptr: expected (S + 1,), got {tuple(ptr.shape)}")
    if ptr is not None and ptr.device.type == "cpu" and not is_traced() and not is_transformed() and type(ptr) is Tensor:
        ends = ptr[0].item(), ptr[-1].item()  # elsewhere the look would wait for the device
        if ends != (0, src.size(0)):
            raise ValueError(f"ptr: expected 0 first and {src.size(0)}, the number of rows, last, got {ends}")
        if bool((ptr[1:] < ptr[:-1]).any()):
            raise ValueError(f"ptr: expected numbers that never fall, got {ptr.tolist() if len(ptr) < 20 else 'some that do'}")
