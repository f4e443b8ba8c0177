"""The recurrent layers in C++ against torch's own in float64: values, gradients, gaps, half precision."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.ops import Pointers, record_calls
from mea_graph.ops.native import library
from mea_graph.ops.recurrent import bigru, bilstm

from .layouts import FORMS, Layout
from .recurrent_cases import CASES, GRUS, Case, outcome, truth

pytestmark = pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}")


@pytest.mark.parametrize("case", (CASES | GRUS).values(), ids=CASES | GRUS)
def test_equals_torch_sample_by_sample(case: Case) -> None:
    inputs = case.inputs()
    with record_calls() as calls:
        found = outcome(case, inputs, backend="native")
    assert calls == {("bilstm" if case.layer is torch.nn.LSTM else "bigru", "native"): 1}
    torch.testing.assert_close(found, truth(case, inputs), rtol=1e-10, atol=1e-12)


LSTM = Case(20, (4, 2), ((5, 0, 1), (2, 3, 0)))
LAYERS = pytest.mark.parametrize("case", [LSTM, LSTM._replace(layer=torch.nn.GRU)], ids=["LSTM", "GRU"])


@LAYERS
@pytest.mark.parametrize("junk", [1e3, 1e30])
@pytest.mark.parametrize("form", FORMS[1:])
def test_never_read_gaps(form: str, junk: float, case: Case) -> None:
    inputs = case.inputs(torch.float32)
    at = [Layout(lengths, form) for lengths in case.lengths]
    found = []
    for gap in (0.0, junk):
        placed = inputs | {f"x{m}": where.place(inputs[f"x{m}"], gap) for m, where in enumerate(at)}
        parts = inputs["grad"].split([where.steps for where in at])
        placed["grad"] = torch.cat([where.place(part, gap) for where, part in zip(at, parts, strict=True)])
        found.append(outcome(case, placed, [where.pointers for where in at], "native"))
        results = found[-1]["result"].split([where.pointers.num_rows for where in at])
        found[-1]["result"] = torch.cat([result[where.rows] for result, where in zip(results, at, strict=True)])
        found[-1] |= {f"x{m}": where.collect(found[-1][f"x{m}"]) for m, where in enumerate(at)}
    assert all(torch.equal(value, found[0][name]) for name, value in found[1].items())


@LAYERS
@pytest.mark.parametrize(("dtype", "budget"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_round_no_more_than_the_dtype_does(dtype: torch.dtype, budget: float, case: Case) -> None:
    inputs = case.inputs(dtype)
    expected = truth(case, inputs)
    for name, value in outcome(case, inputs, backend="native").items():
        assert value.dtype == dtype, name
        assert (value.double() - expected[name]).norm() <= budget * expected[name].norm(), name


@LAYERS
@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_with_gates_far_open_and_shut(scale: float, case: Case) -> None:
    inputs = case.inputs()
    inputs |= {name: t * scale for name, t in inputs.items() if name.startswith("x")}
    torch.testing.assert_close(outcome(case, inputs, backend="native"), truth(case, inputs), rtol=1e-8, atol=1e-8)


def recurrence(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Any, list[Tensor]]:
    inputs = Case(3, (2,), ((4, 2),), case.layer).inputs(dtype)
    pointers = Pointers.from_ptr(torch.tensor([0, 4, 6]))
    leaves = [t.requires_grad_() for name, t in inputs.items() if name != "grad"]
    op = bilstm if case.layer is torch.nn.LSTM else bigru
    return (lambda x, *weights: op([x], [weights], [pointers], backend="native")[0]), leaves


@LAYERS
def test_second_derivatives(case: Case) -> None:
    assert torch.autograd.gradgradcheck(*recurrence(case), fast_mode=True)


@LAYERS
@pytest.mark.parametrize("form", FORMS[1:])
def test_second_derivatives_never_read_gaps(form: str, case: Case) -> None:
    case = Case(3, (2,), ((4, 0, 2),), case.layer)
    inputs, where = case.inputs(torch.float32), Layout(case.lengths[0], form)
    op = bilstm if case.layer is torch.nn.LSTM else bigru
    weights = [inputs[f"w0.{w}"].requires_grad_() for w in range(8)]
    found = []
    for gap in (0.0, 3e38):  # sums of such numbers are infinite
        x = where.place(inputs["x0"], gap).requires_grad_()
        (out,) = op([x], [weights], [where.pointers], backend="native")
        first = torch.autograd.grad(out, [x, *weights], where.place(inputs["grad"], 0.0), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, *weights])
        found.append([*first[1:], *second[1:], *(where.collect(g) for g in (first[0], second[0]))])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@LAYERS
def test_nan_in_a_step_of_a_recurrent_layer_stays_in_its_sample(case: Case) -> None:
    call, leaves = recurrence(case, torch.float32)
    with torch.no_grad():
        leaves[0][1] = torch.nan
        out = call(*leaves)
    assert out[1].isnan().all()
    assert out[4:].isfinite().all()


@pytest.mark.parametrize("name", ["bilstm_native", "bigru_native"])
def test_recurrent_operators_keep_the_rules_of_torch_library(name: str) -> None:
    gates, columns = (4, 5) if name == "bilstm_native" else (3, 6)
    rest = (torch.tensor([0, 4, 6]), torch.tensor([4, 2, 3]), [9], False)
    driven, weight = torch.randn(9, 2, gates, 5).requires_grad_(), torch.randn(1, 2, gates, 5, columns).requires_grad_()
    operator = getattr(torch.ops.mea_graph, name)
    torch.library.opcheck(operator.default, (driven, weight, *rest))
    out, states = (t.detach() for t in operator(driven, weight, *rest))
    backward = getattr(torch.ops.mea_graph, f"{name}_backward").default
    torch.library.opcheck(backward, (torch.randn_like(out), states, weight.detach(), *rest))
