"""Predictive attention on NVIDIA GPUs: launches the Triton kernels and registers them as operators.

Memory beyond the inputs is O(B K T (D + 3 K D)); no map is stored. A sample costs what its true length costs, and no length is ever read
by the host. Triton itself is imported at the first call.
"""

import contextlib
import functools
import importlib.util
import math
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mea_graph.ops.library import register

_INSTALLED = importlib.util.find_spec("triton") is not None
_HALF = (torch.bfloat16, torch.float16)
_WIDEST, _WIDEST_FOLDED = 64, 256  # columns that a tile of queries and one of folded queries may have
_FOLD_ROWS, _UNFOLD_ROWS = 32, 16
_PROGRAMS = 512  # the loop over queries is split by heads into at least so many programs, to fill the largest GPUs


class Tiles(NamedTuple):
    """How a loop is cut."""

    rows: int  # queries
    columns: int  # keys
    chunk: int  # channels of the folded width that are multiplied at once
    warps: int
    stages: int


# By loop, precision and whether the tiles are narrow: heads of at most 16 channels, and a folded width 3 K D of at most 128. Chosen so that
# nothing spills, with Triton 3.6 and 3.9, and so that shared memory stays below 99 KiB, what a block may have on the smallest GPUs (sm_86,
# sm_89): see tests/ops/triton/test_compiled.py.
HOPPER = {
    ("forward", "half", "narrow"): Tiles(64, 64, 128, 4, 2),
    ("forward", "half", "wide"): Tiles(64, 32, 64, 4, 2),
    ("forward", "float", "narrow"): Tiles(64, 32, 32, 4, 2),
    ("forward", "float", "wide"): Tiles(64, 16, 32, 4, 1),
    ("query", "half", "narrow"): Tiles(64, 32, 128, 4, 2),
    ("query", "half", "wide"): Tiles(32, 16, 64, 4, 1),
    ("query", "float", "narrow"): Tiles(64, 16, 32, 4, 1),
    ("query", "float", "wide"): Tiles(16, 16, 32, 4, 1),
    ("key", "half", "narrow"): Tiles(32, 64, 128, 4, 1),
    ("key", "half", "wide"): Tiles(16, 32, 64, 4, 1),
    ("key", "float", "narrow"): Tiles(16, 64, 32, 4, 1),
    ("key", "float", "wide"): Tiles(16, 16, 32, 4, 1),
}
AMPERE = HOPPER | {
    ("query", "half", "narrow"): Tiles(32, 32, 128, 4, 2),
    ("query", "float", "narrow"): Tiles(32, 16, 32, 4, 1),
    ("key", "half", "narrow"): Tiles(32, 32, 128, 4, 2),
    ("key", "float", "narrow"): Tiles(16, 32, 32, 4, 1),
}


def refuse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor | None,
    prior_key: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mu: float,
    pointers: object,
    edges: object,
) -> str | None:
    """Why these kernels cannot run on these tensors, or None."""
    if not _INSTALLED:
        return "triton is not installed"
    if prior_query is None or prior_key is None or weight is None:
        return "there is no prior, and plain attention needs no kernel of ours"
    if query.dim() == 3:
        return "the kernels do not take rows yet"
    if query.device.type == "cuda":
        if torch.version.hip is not None:
            return "the kernels are made for NVIDIA GPUs"
        major, minor = _capability(query)
        if major < 8:
            return f"the GPU's compute capability is {major}.{minor}, below 8.0"
    elif not (query.device.type == "cpu" and _interpreted()):
        return f"the tensors are on {query.device.type}, not on cuda"
    for name, tensor in _named(query, key, value, prior_query, prior_key, weight, bias).items():
        if tensor.dtype not in (torch.float32, *_HALF):
            return f"{name} is {str(tensor.dtype).removeprefix('torch.')}; expected float32, bfloat16 or float16"
    width = max(query.size(3), value.size(3))
    if width > _WIDEST:
        return f"a head is {width} wide, and the kernels hold at most {_WIDEST}"
    folded = 3 * prior_query.size(1) * prior_query.size(3)
    if folded > _WIDEST_FOLDED:
        return f"the folded prior is 3 K D = {folded} wide, and the kernels hold at most {_WIDEST_FOLDED}"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _capability(x: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)  # interpreted, as the newest


def _named(
    query: Tensor, key: Tensor, value: Tensor, prior_query: Tensor, prior_key: Tensor, weight: Tensor, bias: Tensor | None
) -> dict[str, Tensor]:
    tensors = {"query": query, "key": key, "value": value, "prior_query": prior_query, "prior_key": prior_key, "weight": weight}
    return tensors if bias is None else tensors | {"bias": bias}


class _Call:
    """What forward and backward share: sizes, the mask, and the aligned copies that the loops read."""

    def __init__(self, tensors: tuple[Tensor, ...], bias: Tensor | None, mask: Tensor | None, mu: float) -> None:
        from mea_graph.ops.predictive_attention import triton_fold

        self.query, self.key, self.value, self.prior_query, self.prior_key = map(_dense_rows, tensors[:5])
        self.weight, self.mu = tensors[5].contiguous(), float(mu)
        self.bias = self.weight if bias is None else bias.contiguous()  # never read without a bias
        self.batch, self.heads, self.steps, self.width = self.query.shape
        self.value_width, self.prior_width = self.value.size(3), self.prior_query.size(3)
        self.scale = math.log2(math.e) / math.sqrt(self.width)
        self.prior_scale = 1 / math.sqrt(self.prior_width)
        self.steps_padded = _cdiv(self.steps, triton_fold.BLOCK) * triton_fold.BLOCK
        self.mask = self.lengths = self.query  # never read without a mask
        if mask is not None:
            places = torch.arange(1, self.steps + 1, dtype=torch.int32, device=mask.device)
            self.mask, self.lengths = mask.contiguous().view(torch.uint8), (mask * places).amax(1)
        dtypes = {t.dtype for t in tensors[:5]}
        self.dtype = self.query.dtype if len(dtypes) == 1 else torch.float32
        self.tiles = {"WIDTH": _power_of_2(self.width), "VALUE_WIDTH": _power_of_2(self.value_width)}
        self.tiles["FOLDED"] = _power_of_2(3 * self.heads * self.prior_width)
        self.flags: dict[str, Any] = {"HAS_MASK": mask is not None}
        self.loop_flags = self.flags | {"HAS_BIAS": bias is not None, "EXACT": self.dtype == torch.float32}

    def copies(self, out: Tensor | None = None, grad: Tensor | None = None) -> dict[str, Tensor]:
        """Query, key, value, the folded query and key (and the result's gradient): aligned, zero where no step exists."""
        from mea_graph.ops.predictive_attention.triton_fold import BLOCK, predictive_attention_fold_kernel

        copies = {
            "query_copy": self.empty("WIDTH"),
            "key_copy": self.empty("WIDTH"),
            "value_copy": self.empty("VALUE_WIDTH"),
            "folded_query": self.empty("FOLDED"),
            "folded_key": self.empty("FOLDED", per_head=False),
            "grad_copy": self.empty("VALUE_WIDTH") if grad is not None else self.query,
            "delta": self.rows() if grad is not None else self.query,
        }
        backward = out is not None and grad is not None
        grad = _dense_rows(self.value if grad is None else grad)
        sources = [self.query, self.key, self.value, self.prior_query, self.prior_key]
        strided = [a for t in sources for a in (t, *t.stride()[:3])]
        predictive_attention_fold_kernel[(self.steps_padded // _FOLD_ROWS, self.batch * (self.heads + 1))](
            *strided, self.weight, self.mask, self.lengths, self.value if out is None else out, grad, *grad.stride()[:3], *copies.values(),
            self.heads, self.steps, self.steps_padded, self.width, self.value_width, self.prior_width, self.prior_scale,
            **self.flags, **self.tiles, BACKWARD=backward, ROWS=_FOLD_ROWS, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
        return copies

    def loop(self, name: str) -> tuple[Tiles, dict[str, Any]]:
        """How a loop is cut, and its compile-time arguments."""
        kind = "float" if self.dtype == torch.float32 else "half"
        narrow = max(self.tiles["WIDTH"], self.tiles["VALUE_WIDTH"]) <= 16 and self.tiles["FOLDED"] <= 128
        table = HOPPER if _capability(self.query) >= (9, 0) else AMPERE
        tiles = table[name, kind, "narrow" if narrow else "wide"]
        sizes = {"ROWS": tiles.rows, "COLUMNS": tiles.columns, "CHUNK": min(tiles.chunk, self.tiles["FOLDED"])}
        return tiles, self.loop_flags | self.tiles | sizes | {"num_warps": tiles.warps, "num_stages": tiles.stages}

    def empty(self, width: str, per_head: bool = True) -> Tensor:
        heads = self.heads if per_head else 1
        return self.query.new_empty(self.batch, heads, self.steps_padded, self.tiles[width], dtype=self.dtype)

    def rows(self) -> Tensor:
        return self.query.new_empty(self.batch, self.heads, self.steps_padded, dtype=torch.float32)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    mu: float,
) -> tuple[Tensor, Tensor]:
    out, statistics = _fake_forward(query, key, value)
    if out.numel() == 0:
        return out, statistics.zero_()
    from mea_graph.ops.predictive_attention.triton_kernels import predictive_attention_fwd_kernel

    with _on(query):
        call = _Call((query, key, value, prior_query, prior_key, weight), bias, mask, mu)
        copies = list(call.copies().values())[:5]
        tiles, constants = call.loop("forward")
        predictive_attention_fwd_kernel[(_cdiv(call.steps, tiles.rows), call.batch * call.heads)](
            *copies, call.bias, call.mask, call.lengths, out, statistics[0], statistics[1],
            call.heads, call.steps, call.steps_padded, call.value_width, call.scale, call.mu, **constants,
        )  # fmt: skip
    return out, statistics


def _backward(
    grad: Tensor,
    out: Tensor,
    statistics: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    mu: float,
) -> tuple[Tensor, ...]:
    grads = _fake_backward(grad, out, statistics, query, key, value, prior_query, prior_key, weight, bias)
    if out.numel() == 0:
        return tuple(g.zero_() for g in grads)
    from mea_graph.ops.predictive_attention import triton_fold, triton_kernels

    d_query, d_key, d_value, d_prior_query, d_prior_key, d_weight, d_bias = grads
    with _on(query):
        call = _Call((query, key, value, prior_query, prior_key, weight), bias, mask, mu)
        *copies, delta = call.copies(out, grad).values()
        shared = (*copies, call.bias, call.mask, call.lengths, statistics[0], statistics[1], delta)
        empty = functools.partial(torch.empty, dtype=torch.float32, device=query.device)

        tiles, constants = call.loop("query")
        blocks = _cdiv(call.steps, tiles.rows)
        # The largest tensor of all. In bfloat16 it is rounded, as the folded queries are; in float16 it would underflow.
        folded_query_grad = empty(copies[3].shape, dtype=torch.bfloat16 if call.dtype == torch.bfloat16 else torch.float32)
        bias_parts = empty((call.batch, call.heads, blocks))
        inner_delta = call.rows()
        triton_kernels.predictive_attention_bwd_query_kernel[(blocks, call.batch * call.heads)](
            *shared, d_query, folded_query_grad, bias_parts, inner_delta,
            call.heads, call.steps, call.steps_padded, call.width, call.scale, call.mu, **constants,
        )  # fmt: skip

        tiles, constants = call.loop("key")
        blocks = _cdiv(call.steps, tiles.columns)
        groups = min(call.heads, _cdiv(_PROGRAMS, call.batch * blocks))
        folded_key_grad = empty((call.batch, groups, *copies[3].shape[2:]))
        triton_kernels.predictive_attention_bwd_key_kernel[(blocks, call.batch * groups)](
            *shared, inner_delta, d_key, d_value, folded_key_grad,
            call.heads, groups, call.steps, call.steps_padded, call.width, call.value_width, call.scale, call.mu, **constants,
        )  # fmt: skip

        channels = _power_of_2(call.heads * call.prior_width)
        blocks = _cdiv(call.steps, _UNFOLD_ROWS)
        weight_parts = empty((call.batch * blocks, call.heads, 3, 3, channels))
        triton_fold.predictive_attention_bwd_fold_kernel[(blocks, call.batch)](
            call.prior_query, *call.prior_query.stride()[:3], call.weight, call.mask, call.lengths,
            folded_query_grad, folded_key_grad, d_prior_query, d_prior_key, weight_parts,
            call.heads, groups, call.steps, call.steps_padded, call.prior_width, call.prior_scale,
            **call.flags, FOLDED=call.tiles["FOLDED"], CHANNELS=channels, ROWS=_UNFOLD_ROWS, num_warps=8,
        )  # fmt: skip
        used = weight_parts.sum(0)[..., : call.heads * call.prior_width]
        d_weight.copy_(used.unflatten(3, (call.heads, call.prior_width)).sum(4).movedim(3, 1))
        d_bias.copy_(bias_parts.sum((0, 2)))
    return grads


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The result, and log2 of the sums of both softmaxes."""
    return torch.empty_like(value, memory_format=torch.contiguous_format), query.new_empty(2, *query.shape[:3], dtype=torch.float32)


def _fake_backward(grad: Tensor, out: Tensor, statistics: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weight, bias = rest[5:7]
    grads = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in rest[:6])
    return *grads, weight.new_empty(weight.size(0), dtype=weight.dtype if bias is None else bias.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.mu = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, *tensors)


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    out, statistics, *tensors = ctx.saved_tensors
    *grads, d_bias = _BACKWARD(grad, out, statistics, *tensors, ctx.mu)
    return *grads, None if tensors[6] is None else d_bias, None, None


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _power_of_2(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())  # 16 is the least that a tensor core's product takes


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def _on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


_TENSORS = "Tensor query, Tensor key, Tensor value, Tensor prior_query, Tensor prior_key, Tensor weight, Tensor? bias, Tensor? mask"
_BACKWARD = register(
    "predictive_attention_triton_backward",
    f"(Tensor grad, Tensor out, Tensor statistics, {_TENSORS}, float mu) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_FORWARD = register(
    "predictive_attention_triton",
    f"({_TENSORS}, float mu) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _setup_context,
    _autograd,
)


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior_query: Tensor,
    prior_key: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mu: float,
    mask: Tensor | None,
) -> Tensor:
    """See `mea_graph.ops.predictive_attention`."""
    return _FORWARD(query, key, value, prior_query, prior_key, weight, bias, mask, mu)[0]
