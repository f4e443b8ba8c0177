"""The Bi-LSTM and the Bi-GRU over rows against torch's own layer on one sample after the other, in float64."""

from typing import Any

import pytest
import torch

from mea_graph.ops import Pointers, explain, record_calls
from mea_graph.ops.recurrent import bigru, bilstm, layers
from mea_graph.ops.recurrent.layers import LSTM_OPERATOR

from .layouts import FORMS, Layout
from .recurrent_cases import CASES, GRUS, Case, outcome, truth

RAGGED = Case(3, (4, 2), ((5, 0, 1), (2, 3, 0)))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", (CASES | GRUS).values(), ids=CASES | GRUS)
def test_equals_torch_sample_by_sample(case: Case, backend: str) -> None:
    inputs = case.inputs()
    with record_calls() as calls:
        found = outcome(case, inputs, backend=backend)
    assert calls == {("bilstm" if case.layer is torch.nn.LSTM else "bigru", backend): 1}
    torch.testing.assert_close(found, truth(case, inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU])
def test_what_stands_in_gaps_changes_nothing(layer: Any, form: str, backend: str) -> None:
    case = RAGGED._replace(layer=layer)
    inputs = case.inputs()
    at = [Layout(lengths, form) for lengths in case.lengths]
    placed = inputs | {f"x{m}": where.place(inputs[f"x{m}"], 1e3) for m, where in enumerate(at)}
    parts = inputs["grad"].split([where.steps for where in at])
    placed["grad"] = torch.cat([where.place(part, 0) for where, part in zip(at, parts, strict=True)])
    found = outcome(case, placed, [where.pointers for where in at], backend)
    results = found["result"].split([where.pointers.num_rows for where in at])
    found["result"] = torch.cat([result[where.rows] for result, where in zip(results, at, strict=True)])
    found |= {f"x{m}": where.collect(found[f"x{m}"]) for m, where in enumerate(at)}
    torch.testing.assert_close(found, truth(case, inputs), rtol=1e-10, atol=1e-12)


def test_a_graph_has_one_operator_a_direction_whatever_the_length() -> None:
    inputs = RAGGED.inputs(torch.float32)
    torch.compiler.reset()
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    weights = [[inputs[f"w{m}.{w}"] for w in range(8)] for m in range(2)]
    pointers = [Pointers.full(1, sum(lengths), torch.device("cpu")) for lengths in RAGGED.lengths]
    compiled = torch.compile(lambda *x: bilstm(x, weights, pointers), backend=backend, fullgraph=True)
    x = (inputs["x0"], inputs["x1"])
    torch.testing.assert_close(compiled(*x), bilstm(x, weights, pointers))
    assert seen.count(str(LSTM_OPERATOR)) == 4
    assert len(seen) < 60


def test_transforms_and_second_derivatives_take_the_steps() -> None:
    case = Case(2, (3,), ((3, 1),))
    inputs = case.inputs()
    weights = [inputs[f"w0.{w}"] for w in range(8)]
    pointers = Pointers.from_ptr(torch.tensor([0, 3, 4]))
    seen = []

    def loss(x: torch.Tensor) -> torch.Tensor:
        with record_calls() as calls:
            (out,) = bilstm([x], [weights], [pointers])
        seen.extend(calls)
        return out.sin().sum()

    found = torch.func.hessian(lambda s: loss(inputs["x0"] * s))(torch.ones((), dtype=torch.float64))
    assert set(seen) == {("bilstm", "reference")}
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (out,) = bilstm([inputs["x0"] * scale], [weights], [pointers], backend="reference")
    (grad,) = torch.autograd.grad(out.sin().sum(), scale, create_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(grad, scale)[0], rtol=1e-9, atol=1e-11)


def test_a_cpu_takes_torch_and_a_gpu_the_kernel_where_it_fits() -> None:
    case = Case(2, (3,), ((3,),))
    inputs = case.inputs(torch.float32)
    given = ([inputs["x0"]], [[inputs[f"w0.{w}"] for w in range(8)]], [Pointers.full(1, 3, torch.device("cpu"))])
    found = explain("bilstm", *given)
    assert found.chosen == "torch"
    assert set(found.refused) == {"triton", "native", "reference"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": []}, r"x, weights, pointers: expected one of each for every set of rows, got \(0, 1, 1\)"),
        ({"x": [torch.zeros(2, 3)]}, r"x\[0\]: expected \(3, C\), got \(2, 3\)"),
        ({"weights": [[torch.zeros(8, 3)] * 3]}, r"weights\[0\]: expected eight tensors, four of each direction, got 3"),
        ({"x": [torch.zeros(3, 5)]}, r"weights\[0\]: expected tensors of the shapes \[\(8, 5\), \(8, 2\), .*got \[\(8, 3\)"),
        ({"backend": "gpu"}, r"backend: expected one of \['auto', 'triton', 'native', 'torch', 'reference'\], got 'gpu'"),
    ],
)
def test_says_what_is_wrong(change: dict[str, Any], said: str) -> None:
    weights = [torch.zeros(8, 3), torch.zeros(8, 2), torch.zeros(8), torch.zeros(8)] * 2
    given = {"x": [torch.zeros(3, 3)], "weights": [weights], "pointers": [Pointers.full(1, 3, torch.device("cpu"))]}
    with pytest.raises(ValueError, match=said):
        bilstm(**(given | change))


def test_a_gru_is_told_what_is_wrong_too() -> None:
    weights = [torch.zeros(8, 3), torch.zeros(8, 2), torch.zeros(8), torch.zeros(8)] * 2  # an LSTM's
    with pytest.raises(ValueError, match=r"weights\[0\]: expected tensors of the shapes \[\(6, 3\), \(6, 2\), .*got \[\(8, 3\)"):
        bigru([torch.zeros(3, 3)], [weights], [Pointers.full(1, 3, torch.device("cpu"))])


@pytest.mark.parametrize(("kind", "gates"), [("lstm", 4), ("gru", 3)])
def test_a_device_keeps_what_the_backward_pass_needs(kind: str, gates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass of cuDNN raises where the forward pass was called without the flag `train`."""
    told: list[bool] = []
    layer = getattr(torch, kind)
    monkeypatch.setattr(torch, kind, lambda *given: told.append(given[6]) or layer(*given))
    for device in ("meta", "cpu"):
        weights = [torch.randn(gates * 4, n, device=device) for n in (3, 4)] + [torch.randn(gates * 4, device=device)] * 2
        x = torch.randn(2, 5, 3, device=device)
        getattr(layers, f"_{kind}")(x, *weights)
        with torch.no_grad():
            getattr(layers, f"_{kind}")(x, *weights)
    assert told == [True, False, False, False]
