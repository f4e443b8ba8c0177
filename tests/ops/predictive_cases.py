"""Cases of predictive attention in every form of rows, what a backend makes of them, and the truth."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, predictive_attention
from mea_graph.ops.predictive import reference

from .layouts import FORMS, Layout, Run, heard, random_runs, windowed

FLOAT64 = torch.float64
SEQUENCES = ("query", "key", "value", "prior_query", "prior_key")
WINDOWS = pytest.mark.parametrize("windows", [False, True], ids=["complete", "windows"])
every_form = pytest.mark.parametrize("form", FORMS)


class Case(NamedTuple):
    """Tensors without gaps, in float64, and where they lie."""

    layout: Layout
    tensors: dict[str, Tensor]
    mu: float
    runs: list[list[Run]] | None

    @property
    def edges(self) -> IntervalEdges | None:
        return None if self.runs is None else windowed([self.layout], self.layout, self.runs)


def make(
    lengths: Sequence[int],
    heads: int,
    width: int,
    form: str = "packed",
    width_prior: int | None = None,
    width_value: int | None = None,
    bias: bool = True,
    mu: float = 0.25,
    windows: bool = False,
) -> Case:
    """Logits of the size that layers have."""
    at = Layout(lengths, form)
    widths = (width, width, width_value or width, width_prior or width, width_prior or width)
    tensors = {n: torch.randn(at.steps, heads, d, dtype=FLOAT64) for n, d in zip(SEQUENCES, widths, strict=True)}
    tensors["weight"] = 0.3 * torch.randn(heads, heads, 3, 3, dtype=FLOAT64)
    if bias:
        tensors["bias"] = torch.randn(heads, dtype=FLOAT64)
    return Case(at, tensors, mu, random_runs([at], at) if windows else None)


def output_gradient(case: Case) -> Tensor:
    """The same at every call, and exact in every dtype."""
    drawn = torch.randn(case.tensors["value"].shape, generator=torch.Generator().manual_seed(7))
    return drawn.bfloat16().half().double()


def run(case: Case, backend: str = "cpu", dtype: torch.dtype = FLOAT64, junk: float = torch.nan) -> dict[str, Tensor]:
    """The result and the gradient of every tensor, in steps without gaps."""
    at, edges = case.layout, case.edges
    leaves = {n: t.detach().to(dtype) for n, t in case.tensors.items()}
    leaves = {n: (at.place(t, junk) if n in SEQUENCES else t).requires_grad_() for n, t in leaves.items()}
    given: Any = edges.edge_index() if backend == "listed" and edges is not None else edges
    out = predictive_attention(**leaves, pointers=at.pointers, mu=case.mu, edges=given, backend=backend)
    grads = torch.autograd.grad(out, list(leaves.values()), at.place(output_gradient(case).to(dtype), junk))
    found = {"result": out.detach(), **dict(zip(leaves, grads, strict=True))}
    return {n: at.collect(t) if n in (*SEQUENCES, "result") else t for n, t in found.items()}


def truth(case: Case) -> dict[str, Tensor]:
    """One sample after the other, by the reference in float64."""
    leaves = {n: t.detach().requires_grad_() for n, t in case.tensors.items()}
    rows, (weight, bias) = [leaves["value"][:0]], (leaves["weight"], leaves.get("bias"))
    for b, part in enumerate(case.layout.slices):
        if case.layout.lengths[b]:
            own = [leaves[n][part].transpose(0, 1)[None] for n in SEQUENCES]
            listens = None if case.runs is None else heard([case.layout], case.layout, case.runs, b)[None]
            rows.append(reference.predictive_attention(*own, weight, bias, case.mu, None, listens)[0].transpose(0, 1))
    out = torch.cat(rows)
    grads = torch.autograd.grad(out, list(leaves.values()), output_gradient(case), materialize_grads=True)
    return {"result": out.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_true(case: Case, backend: str = "cpu", rtol: float = 1e-9, atol: float = 1e-11) -> None:
    found, expected = run(case, backend), truth(case)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
