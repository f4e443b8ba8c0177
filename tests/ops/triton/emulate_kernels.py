"""Compiles every kernel that a call launches, for GPUs that are not here, runs the PTX on a CPU, and prints errors against float64.

Runs in a process of its own, without TRITON_INTERPRET, as `compile_kernels` does. The launches are the operators' own.

    python -m tests.ops.triton.emulate_kernels 90 predictive 2x5 float32    # compute capability 9.0; 2 heads of 5 channels
"""

import inspect
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from mea_graph.ops import IntervalEdges, Pointers, interval_attention, predictive_attention
from mea_graph.ops.grouped import grouped_layer_norm, grouped_linear
from mea_graph.ops.grouped import triton as groups
from mea_graph.ops.interval import triton as gpu
from mea_graph.ops.predictive import triton as prediction
from mea_graph.ops.recurrent import triton as recurrence

from . import compile_kernels
from .ptx import translate

LENGTHS = (37, 5, 0, 20)
Errors = dict[str, float]


def errors(found: Sequence[Tensor], truth: Sequence[Tensor], names: Sequence[str]) -> Errors:
    """By the largest number of each tensor."""
    pairs = [(f.detach().double(), t.detach().reshape(f.shape)) for f, t in zip(found, truth, strict=True)]
    return {n: float((f - t).abs().max() / t.abs().max()) for n, (f, t) in zip(names, pairs, strict=True)}


def exact(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.double().requires_grad_() for t in tensors]


def with_gradients(out: Tensor, tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out, list(tensors), grad.double().reshape(out.shape))]


def grouped(channels: int, dtype: torch.dtype, known: list[Tensor]) -> dict[str, Errors]:
    """Two groups of 40 rows: with all that the map can do, the map alone on shared rows, and the norm."""
    rows, found = 40, {}
    vectors = [[torch.randn(channels, dtype=dtype) for _ in range(2)] for _ in range(3)]
    maps = [torch.randn(channels, channels, dtype=dtype) / channels**0.5 for _ in range(2)]
    known[:] = [t for kind in (maps, *vectors) for t in kind]
    for name, shared, lists in (("all", 1, (maps, *vectors)), ("map", 2, (maps, [], [], []))):
        x, onto = torch.randn(rows * 2 // shared, channels, dtype=dtype), torch.randn(rows * 2, channels, dtype=dtype)
        added = onto if name == "all" else None
        out, moments = groups._linear(x, *lists, added, rows, shared, 1e-5, dtype, True)
        grad = torch.randn_like(out)
        d_x, *stacked = groups._linear_backward(grad, x, moments, *lists, rows, shared, dtype)
        leaves = exact([x, *(t for kind in lists for t in kind)])
        given = iter(leaves[1:])
        again = [[next(given) for _ in kind] for kind in lists]
        y = grouped_linear(leaves[0], *again[:2], [rows * (g // shared) for g in range(2)], [rows] * 2, *again[2:], backend="reference")
        flat = [out, d_x, *(d for kind in stacked for d in kind)]
        names = [
            "result",
            "x",
            *(f"{kind} {i}" for kind, of in zip(("weight", "bias", "scale", "shift"), lists, strict=True) for i in range(len(of))),
        ]
        found[name] = errors(flat, with_gradients(y if added is None else y + onto.double(), leaves, grad), names)
    x = torch.randn(rows * 2, channels, dtype=dtype)
    out, moments = groups._norm(x, *vectors[:2], rows, 1, 1e-5, dtype, True)
    grad = torch.randn_like(out)
    d_x, stacked = groups._norm_backward(grad, x, moments, *vectors[:2], rows, 1)
    leaves = exact([x, *vectors[0], *vectors[1]])
    y = grouped_layer_norm(leaves[0], leaves[1:3], leaves[3:], [0, rows], [rows] * 2, backend="reference")
    names = ["result", "x", "scale 0", "scale 1", "shift 0", "shift 1"]
    return found | {"norm": errors([out, d_x, *stacked.flatten(0, 1)], with_gradients(y, leaves, grad), names)}


def predictive(heads: int, width: int, dtype: torch.dtype) -> dict[str, Errors]:
    """One set of samples, and two with a convolution each."""
    found = {}
    names = ("query", "key", "value", "prior_query", "prior_key", "weight", "bias")
    for sets in (1, 2):
        pointers = Pointers.from_ptr(torch.tensor([0, *LENGTHS]).cumsum(0))
        rows = [torch.randn(pointers.num_rows, 2, heads, width, dtype=dtype)[:, 1] for _ in range(5)]
        shape = (sets,) if sets > 1 else ()
        weights = [0.3 * torch.randn(*shape, heads, heads, 3, 3), torch.randn(*shape, heads)]
        rest = (*weights, pointers.start, pointers.length, max(LENGTHS), pointers.packed, 0.25)
        out, statistics = prediction._forward(*rows, *rest)
        grad = torch.randn_like(out)
        gradients = prediction._backward(grad, out, statistics, *rows, *rest)
        leaves = exact([*rows, *weights])
        if sets == 1:
            y = predictive_attention(**dict(zip(names, leaves, strict=True)), pointers=pointers, mu=0.25, backend="reference")
        else:
            half = len(LENGTHS) // 2
            parts, begin = [], 0
            for s in range(sets):
                own = Pointers.from_ptr(torch.tensor([0, *LENGTHS[s * half : (s + 1) * half]]).cumsum(0))
                mine = [t[s] if n in names[5:] else t[begin : begin + own.num_rows] for n, t in zip(names, leaves, strict=True)]
                parts.append(predictive_attention(**dict(zip(names, mine, strict=True)), pointers=own, mu=0.25, backend="reference"))
                begin += own.num_rows
            y = torch.cat(parts)
        found[f"{sets} sets"] = errors([out, *gradients], with_gradients(y, leaves, grad), ["result", *names])
    return found


def interval(heads: int, width: int, dtype: torch.dtype) -> dict[str, Errors]:
    found = {}
    pointers = Pointers.from_ptr(torch.tensor([0, *LENGTHS]).cumsum(0))
    windows = IntervalEdges.join([IntervalEdges.window(pointers, pointers, steps=2)] * 2)
    for name, edges in (("windows", windows), ("complete", IntervalEdges.complete(pointers, pointers))):
        sizes = [pointers.num_rows, *[pointers.num_rows * len(edges.sources)] * 2]
        rows = [torch.randn(n, heads, width, dtype=dtype) for n in sizes]
        runs = (None, None) if edges.is_complete else (edges.begin, edges.end)
        where = (pointers.start, pointers.length, edges.source_start, edges.source_length, *runs, pointers.packed)
        out, logsumexp = gpu._forward(*rows, *where)
        grad = torch.randn_like(out)
        gradients = gpu._backward(grad, out, logsumexp, *rows, *where)
        leaves = exact(rows)
        y = interval_attention(*leaves, edges, backend="reference")
        found[name] = errors([out, *gradients], with_gradients(y, leaves, grad), ["result", "query", "key", "value"])
    return found


def recurrent(hidden: int, dtype: torch.dtype) -> dict[str, Errors]:
    pointers = Pointers.from_ptr(torch.tensor([0, *LENGTHS]).cumsum(0))
    gates, weight = torch.randn(pointers.num_rows, 2, 4, hidden, dtype=dtype), 0.3 * torch.randn(1, 2, 4, hidden, hidden)
    rest = (weight, pointers.start, pointers.length, [pointers.num_rows], pointers.packed)
    out, states = recurrence.RECURRENCE.forward(gates, *rest)
    grad = torch.randn_like(out)
    gradients = recurrence.RECURRENCE.backward(grad, states, *rest)
    leaves = exact([gates, weight])
    y = step_by_step(*leaves, pointers)
    return {"bilstm": errors([out, *gradients], with_gradients(y, leaves, grad), ["result", "gates", "weight"])}


def step_by_step(gates: Tensor, weight: Tensor, pointers: Pointers) -> Tensor:
    found = {}
    for begin, length in zip(pointers.start.tolist(), pointers.length.tolist(), strict=True):
        for direction in range(2):
            hidden = cell = gates.new_zeros(gates.size(-1))
            for row in (range(begin, begin + length), reversed(range(begin, begin + length)))[direction]:
                i, f, g, o = gates[row, direction] + weight[0, direction] @ hidden
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                hidden = found[row, direction] = o.sigmoid() * cell.tanh()
    return torch.stack([torch.stack([found[row, direction] for direction in range(2)]) for row in range(len(gates))])


def main(capability: int, op: str, heads: int, width: int, dtype: torch.dtype) -> None:
    known: list[Tensor] = []  # whose addresses are in a table
    kernels: dict[tuple[str, str], Any] = {}
    order = {"backwards": False, "late": True}

    def launch(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in kwargs}
        special = compile_kernels.specialize(self, args, kwargs)
        key = self.__name__, str(special)
        if key not in kernels:
            kernels[key] = triton.compile(ASTSource(self, **special), target=GPUTarget("cuda", capability, 32), options=options)
        bound = inspect.signature(self.fn).bind(*args, **kwargs).arguments
        given = [v for name, v in bound.items() if special["signature"][name] != "constexpr"]
        tensors = [v for v in given if isinstance(v, Tensor)]
        numbers = [v.data_ptr() if isinstance(v, Tensor) else v for v in given]
        compiled = kernels[key]
        translate(compiled.asm["ptx"]).run(grid, numbers, [*tensors, *known], compiled.metadata.shared, **order)

    torch.use_deterministic_algorithms(True)  # which fills memory that nobody has written with NaN
    JITFunction.run = launch
    gpu.capability = lambda x: divmod(capability, 10)
    for order["backwards"], order["late"] in ((False, True), (True, False)):
        torch.manual_seed(0)
        found = {
            "grouped": lambda: grouped(heads * width, dtype, known),
            "predictive": lambda: predictive(heads, width, dtype),
            "interval": lambda: interval(heads, width, dtype),
            "recurrent": lambda: recurrent(heads * width, dtype),
        }[op]()
        print(json.dumps(order | {"errors": found, "kernels": sorted({name for name, _ in kernels})}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3].split("x")), getattr(torch, sys.argv[4]))
