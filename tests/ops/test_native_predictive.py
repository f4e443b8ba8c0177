"""Predictive attention by the operators for a CPU: tensors of different types, runs that lie anywhere in memory, the rules of torch."""

import pytest
import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, Pointers, predictive_attention
from mea_graph.ops.native import library

from .predictive_cases import FLOAT64, SEQUENCES, make, run, truth

NATIVE = pytest.param("native", marks=pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}"))
every_backend = pytest.mark.parametrize("backend", ["cpu", NATIVE])
# Of the rows, the weight and the bias; one may be wider than the others, as autocast or a model of mixed precision has them.
TYPES = {
    "float64 bias": (torch.float32, torch.float32, FLOAT64),
    "float64 weight": (torch.float32, FLOAT64, torch.float32),
    "float32 bias of a weight in bfloat16": (torch.bfloat16, torch.bfloat16, torch.float32),
    "float32 parameters of rows in float16": (torch.float16, torch.float32, torch.float32),
}
every_type = pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)


@every_backend
@every_type
@pytest.mark.parametrize("windows", [False, True])
def test_the_operators_keep_the_rules_of_torch_library(backend: str, types: tuple[torch.dtype, ...], windows: bool) -> None:
    """Also what they promise of the types of results, statistics and gradients, before these are computed."""
    case = make([7, 0, 4], 2, 3, width_prior=4, width_value=2, windows=windows)
    rows, *parameters = types
    kinds = [*(rows for _ in SEQUENCES), *parameters]
    tensors = [t.to(kind).requires_grad_() for t, kind in zip(case.tensors.values(), kinds, strict=True)]
    runs = (None, None) if case.edges is None else (case.edges.begin[:, 0], case.edges.end[:, 0])
    rest = (case.layout.pointers.start, case.layout.pointers.length, *runs, 0.25)
    forward, backward = (getattr(torch.ops.mea_graph, f"predictive_attention_{backend}{end}").default for end in ("", "_backward"))
    torch.library.opcheck(forward, (*tensors, *rest))
    result, statistics = forward(*tensors, *rest)
    assert (result.dtype, statistics.dtype) == (rows, FLOAT64 if FLOAT64 in types else torch.float32)
    given = [t.detach() for t in (torch.randn_like(result), result, statistics, *tensors)]
    torch.library.opcheck(backward, (*given, *rest))
    assert [g.dtype for g in backward(*given, *rest)] == kinds


@every_backend
@pytest.mark.parametrize("wide", ["weight", "bias"])
def test_float64_anywhere_is_the_type_of_all_sums(backend: str, wide: str) -> None:
    """The result is then the exact one, rounded once."""
    case = make([70, 9], 2, 5)
    single = {n: t.float() if n != wide else t for n, t in case.tensors.items()}
    exact = truth(case._replace(tensors={n: t.double() for n, t in single.items()}))["result"]
    found = predictive_attention(**single, pointers=case.layout.pointers, mu=case.mu, backend=backend)
    assert found.dtype == torch.float32
    assert (found.double() - exact).abs().max() <= 2**-24 * exact.abs().max()


def columns(*vectors: Tensor) -> tuple[Tensor, ...]:
    """The same numbers with others between them."""
    return torch.stack([*vectors, torch.full_like(vectors[0], -7)], 1).unbind(1)[: len(vectors)]


@every_backend
@pytest.mark.parametrize("windows", [False, True])
def test_rows_and_runs_may_be_columns_of_a_matrix(backend: str, windows: bool) -> None:
    case = make([12, 0, 5], 2, 3, windows=windows)
    pointers, edges = Pointers(*columns(case.layout.pointers.start, case.layout.pointers.length), case.layout.steps), None
    if case.edges is not None:
        begin, end = columns(case.edges.begin[:, 0], case.edges.end[:, 0])
        edges = IntervalEdges([pointers], pointers, begin.unsqueeze(1), end.unsqueeze(1))
    leaves = {n: t.clone().requires_grad_() for n, t in case.tensors.items()}
    out = predictive_attention(**leaves, pointers=pointers, mu=case.mu, edges=edges, backend=backend)
    grad = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, leaves["query"], grad)
    again = {n: t.clone().requires_grad_() for n, t in case.tensors.items()}
    expected = predictive_attention(**again, pointers=case.layout.pointers, mu=case.mu, edges=case.edges, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found, torch.autograd.grad(expected, again["query"], grad)[0], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(run(case, backend)["result"], truth(case)["result"], rtol=1e-9, atol=1e-11)
