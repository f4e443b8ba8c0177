"""Reductions over the segments of a flat tensor: `segment_sum`, `segment_max`, `segment_softmax`.

A segment is the set of rows of `src` that share a value of `index`. torch_scatter does the work wherever it is installed and can run
(`has_torch_scatter`), torch's own scatter operations do it otherwise; values and gradients are the same from both.
"""

import functools
import warnings

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

functions = ["has_torch_scatter", "segment_max", "segment_softmax", "segment_sum"]
__all__ = functions

_LOW_PRECISION = (torch.float16, torch.bfloat16)


@functools.cache
def has_torch_scatter() -> bool:
    """Says whether torch_scatter can be used here.

    It is optional: it ships no wheels, and building it takes minutes. One that is installed but cannot be loaded (built for another torch,
    say) gives a warning and counts as absent.

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


def segment_sum(src: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sums the rows of each segment.

    The number of segments is given, not read from `index`, so that no value travels back from the device. Sums of float16 and bfloat16 are
    taken in float32.

    `out[s] = sum of src[i] over the rows i with index[i] == s`; a segment without rows gives 0.

    Args:
        src: floating point values.
        index: the segment of each row, int64 in `[0, num_segments)`, in any order.
        num_segments: the number of segments S, at least 0.

    Shape:
        - src: :math:`(N, *)`
        - index: :math:`(N,)`
        - result: :math:`(S, *)`, in the dtype of `src`

    Raises:
        ValueError: the shapes do not fit together, or `num_segments` is negative.
        TypeError: `src` is not floating point, or `index` is not int64.

    >>> import torch
    >>> from mea_graph.ops import segment_sum
    >>> segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), num_segments=3)
    tensor([2., 0., 5.])
    """
    _check(src, index, num_segments)
    wide = src.float() if src.dtype in _LOW_PRECISION else src
    if _path(src) == "torch_scatter":
        import torch_scatter

        total = torch_scatter.scatter_sum(wide, index, dim=0, dim_size=num_segments)
    else:
        total = wide.new_zeros((num_segments, *wide.shape[1:])).scatter_add(0, _like(index, wide), wide)
    return total.to(src.dtype)


def segment_max(src: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Takes the maximum over the rows of each segment.

    A NaN in a segment makes its maximum NaN. Rows that tie for the maximum share its gradient equally.

    `out[s] = max of src[i] over the rows i with index[i] == s`; a segment without rows gives 0.

    Args:
        src: floating point values.
        index: the segment of each row, int64 in `[0, num_segments)`, in any order.
        num_segments: the number of segments S, at least 0.

    Shape:
        - src: :math:`(N, *)`
        - index: :math:`(N,)`
        - result: :math:`(S, *)`, in the dtype of `src`

    Raises:
        ValueError: the shapes do not fit together, or `num_segments` is negative.
        TypeError: `src` is not floating point, or `index` is not int64.

    >>> import torch
    >>> from mea_graph.ops import segment_max
    >>> segment_max(torch.tensor([-1.0, -2.0, 4.0]), torch.tensor([2, 0, 2]), num_segments=3)
    tensor([-2.,  0.,  4.])
    """
    _check(src, index, num_segments)
    if _path(src) == "torch_scatter":
        return _TorchScatterMax.apply(src, index, num_segments)
    empty = src.new_zeros((num_segments, *src.shape[1:]))
    return empty.scatter_reduce(0, _like(index, src), src, "amax", include_self=False)


def segment_softmax(src: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Normalises the rows of each segment to weights that sum to one.

    The maximum of each segment is taken off first, so that large logits do not overflow. A segment whose logits are all `-inf` (everything
    in it is masked) gives zeros, and zero gradient. float16 and bfloat16 are computed in float32.

    `out[i] = exp(src[i]) / sum of exp(src[j]) over the rows j with index[j] == index[i]`.

    Args:
        src: logits, floating point.
        index: the segment of each row, int64 in `[0, num_segments)`, in any order.
        num_segments: the number of segments S, at least 0.

    Shape:
        - src: :math:`(N, *)`
        - index: :math:`(N,)`
        - result: :math:`(N, *)`, in the dtype of `src`

    Raises:
        ValueError: the shapes do not fit together, or `num_segments` is negative.
        TypeError: `src` is not floating point, or `index` is not int64.

    >>> import torch
    >>> from mea_graph.ops import segment_softmax
    >>> segment_softmax(torch.tensor([3.0, 7.0, 3.0]), torch.tensor([2, 0, 2]), num_segments=3)
    tensor([0.5000, 1.0000, 0.5000])
    """
    _check(src, index, num_segments)
    wide = src.float() if src.dtype in _LOW_PRECISION else src
    top = segment_max(wide.detach(), index, num_segments)
    top = torch.where(top.isfinite(), top, 0.0)  # -inf - -inf would be NaN
    weight = (wide - top[index]).exp()
    total = segment_sum(weight, index, num_segments)
    total = torch.where(total == 0, 1.0, total)
    return (weight / total[index]).to(src.dtype)


class _TorchScatterMax(torch.autograd.Function):
    """`segment_max` by torch_scatter.

    Its own gradient goes to one of the rows that tie, and which one differs between devices; here they share it, as in torch.
    """

    @staticmethod
    def forward(src: Tensor, index: Tensor, num_segments: int) -> Tensor:
        import torch_scatter

        # torch_scatter would start from the lowest finite number, which hides a segment of -inf, and it skips NaN.
        out = src.new_full((num_segments, *src.shape[1:]), -torch.inf)
        out, _ = torch_scatter.scatter_max(src, index, dim=0, out=out)
        out = out + torch_scatter.scatter_sum(torch.where(src.isnan(), src, 0.0), index, dim=0, dim_size=num_segments)
        filled = torch.zeros(num_segments, dtype=torch.bool, device=src.device).index_fill(0, index, True)
        return torch.where(filled.view(-1, *[1] * (src.dim() - 1)), out, 0.0)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        src, index, _ = inputs
        ctx.save_for_backward(src, index, output)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        src, index, output = ctx.saved_tensors  # type: ignore[attr-defined]
        wins = (src == output[index]).to(src.dtype)
        ties = segment_sum(wins, index, output.size(0))  # 0 where the maximum is NaN: so is its gradient, as in torch
        return wins * (grads[0] / ties)[index], None, None


def _path(src: Tensor) -> str:
    """Which library does the work; tests replace this function to take each path in turn."""
    if torch.compiler.is_compiling() or type(src) not in (Tensor, torch.nn.Parameter) or src.device.type not in ("cpu", "cuda"):
        return "torch"  # torch_scatter's kernels know neither tracing nor tensor subclasses nor other devices
    if not has_torch_scatter() or (src.is_cuda and torch.ops.torch_scatter.cuda_version() == -1):
        return "torch"
    return "torch_scatter"


def _like(index: Tensor, src: Tensor) -> Tensor:
    return index.view(-1, *[1] * (src.dim() - 1)).expand_as(src)


def _check(src: Tensor, index: Tensor, num_segments: int) -> None:
    if not src.is_floating_point():
        raise TypeError(f"src: expected floating point values, got {src.dtype}")
    if index.dtype != torch.int64:
        raise TypeError(f"index: expected torch.int64, got {index.dtype}")
    if src.dim() == 0 or index.dim() != 1 or index.size(0) != src.size(0):
        raise ValueError(f"index: expected one entry for each row of src, got shapes {tuple(index.shape)} and {tuple(src.shape)}")
    if num_segments < 0:
        raise ValueError(f"num_segments: expected at least 0, got {num_segments}")
