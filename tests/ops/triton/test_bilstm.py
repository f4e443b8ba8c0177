"""The Triton kernels of the Bi-LSTM, interpreted, against torch's own layer in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from mea_graph.ops import Pointers, explain, record_calls
from mea_graph.ops.recurrent import _BILSTM, bilstm
from mea_graph.ops.recurrent import triton as backend

from ..recurrent_cases import CASES, Case, Tensors, outcome, truth

Layout = Callable[[str, tuple[int, ...]], Pointers]
Errors = Callable[[Tensors, Tensors], dict[str, float]]
RAGGED = Case(20, (4, 2), ((5, 0, 1), (2, 3, 0)))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_float64(case: Case, errors: Errors) -> None:
    inputs = case.inputs(torch.float32)
    with record_calls() as calls:
        found = outcome(case, inputs, backend="triton")
    assert calls == {("bilstm", "triton"): 1}
    assert not {n: e for n, e in errors(found, truth(case, inputs)).items() if not e < 2e-6}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str)
def test_half_precision(dtype: torch.dtype, bound: float, errors: Errors) -> None:
    """A few roundings of 2^-9 (bfloat16) or 2^-12 (float16): of what the input adds to the gates, of the result, of the gradients."""
    inputs = RAGGED.inputs(dtype)
    found = outcome(RAGGED, inputs, backend="triton")
    assert {t.dtype for t in found.values()} == {dtype}
    assert not {n: e for n, e in errors(found, truth(RAGGED, inputs)).items() if not e < bound}


def test_autocast_keeps_the_weights_gradients_in_float32(errors: Errors) -> None:
    inputs = RAGGED.inputs(torch.float32)
    expected = truth(RAGGED, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(RAGGED, inputs | {"grad": inputs["grad"].bfloat16()}, backend="triton")
    assert {t.dtype for n, t in found.items() if n != "result"} == {torch.float32}
    assert found["result"].dtype == torch.bfloat16
    assert not {n: e for n, e in errors(found, expected).items() if not e < 2e-2}


def recurrence(case: Case, pointers: list[Pointers], driven: Tensor, weight: Tensor, grad: Tensor) -> Tensors:
    """The operator alone."""
    where = Pointers.join(pointers)
    driven, weight = driven.detach().requires_grad_(), weight.detach().requires_grad_()
    sizes = [p.num_rows for p in pointers]
    out, _ = torch.ops.mea_graph.bilstm_triton(driven, weight, where.start, where.length, sizes, where.packed)
    grads = torch.autograd.grad(out, [driven, weight], grad)
    return {"result": out.detach(), "driven": grads[0], "weight": grads[1]}


def recurrence_inputs(case: Case, rows: int) -> dict[str, Tensor]:
    h, sets = case.hidden, len(case.lengths)
    return {"driven": torch.randn(rows, 2, 4, h), "weight": torch.randn(sets, 2, 4, h, h) / h**0.5, "grad": torch.randn(rows, 2, h)}


@pytest.mark.parametrize("layout", ["padded", "scattered"])
@pytest.mark.usefixtures("checked_memory")
def test_gaps_are_not_read_and_hold_zeros_and_no_address_is_wrong(layout: str, lay_out: Layout) -> None:
    at = [lay_out(layout, lengths) for lengths in RAGGED.lengths]
    packed = [lay_out("packed", lengths) for lengths in RAGGED.lengths]
    inputs = recurrence_inputs(RAGGED, sum(p.num_rows for p in at))
    real = torch.cat([p.real for p in at])
    clean = recurrence(RAGGED, packed, inputs["driven"][real], inputs["weight"], inputs["grad"][real])
    junk = torch.tensor([torch.nan, torch.inf, 1e30]).repeat(len(real))[: len(real), None, None]
    dirty = torch.where(real[:, None, None, None], inputs["driven"], junk.unsqueeze(3))
    found = recurrence(RAGGED, at, dirty, inputs["weight"], torch.where(real[:, None, None], inputs["grad"], junk))
    for name in ("result", "driven"):
        assert torch.equal(found[name][real], clean[name])
        assert not found[name][~real].any()
    torch.testing.assert_close(found["weight"], clean["weight"], rtol=1e-5, atol=1e-6)


def test_a_sample_has_the_same_bits_on_every_run_and_in_any_company() -> None:
    case = Case(5, (3,), ((4, 6, 2),))
    inputs = case.inputs(torch.float32)
    first, second = (outcome(case, inputs, backend="triton") for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    bad = inputs | {"x0": inputs["x0"].clone()}
    bad["x0"][4:10] = torch.nan
    found = outcome(case, bad, backend="triton")
    mine = slice(4, 10)
    assert found["result"][mine].isnan().all()
    for n in ("result", "x0"):
        assert torch.equal(found[n][:4], first[n][:4])
        assert torch.equal(found[n][10:], first[n][10:])


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")  # infinity, as it should be
def test_gates_that_saturate_do_not_overflow() -> None:
    case = Case(5, (3,), ((4,),))
    inputs = case.inputs(torch.float32)
    inputs["x0"] = inputs["x0"] * 1e4
    found, expected = outcome(case, inputs, backend="triton"), truth(case, inputs)
    assert all(t.isfinite().all() for t in found.values())
    torch.testing.assert_close(found["result"].double(), expected["result"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", ["packed", "scattered"])
def test_second_derivatives_are_those_of_the_steps(layout: str, lay_out: Layout) -> None:
    case = Case(2, (3, 3), ((3, 0), (1, 2)))
    at = [lay_out(layout, lengths) for lengths in case.lengths]
    x = torch.randn(sum(p.num_rows for p in at), 3)
    inputs = case.inputs(torch.float32)

    def second(name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        weights = [[inputs[f"w{m}.{w}"].to(dtype).requires_grad_() for w in range(8)] for m in range(2)]
        leaves = [x.to(dtype).requires_grad_(), *weights[0], *weights[1]]
        results = bilstm(list(leaves[0].split([p.num_rows for p in at])), weights, at, backend=name)
        loss = sum(out[p.real].square().sum() for out, p in zip(results, at, strict=True))
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    for found, expected in zip(second("triton", torch.float32), second("reference", torch.float64), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_operators_are_well_defined(layout: str, lay_out: Layout) -> None:
    case = Case(3, (3, 3), ((2, 0), (1, 1)))
    at = [lay_out(layout, lengths) for lengths in case.lengths]
    where = Pointers.join(at)
    inputs = recurrence_inputs(case, where.num_rows)
    rest = (where.start, where.length, [p.num_rows for p in at], where.packed)
    leaves = (inputs["driven"].requires_grad_(), inputs["weight"].requires_grad_())
    torch.library.opcheck(torch.ops.mea_graph.bilstm_triton.default, (*leaves, *rest))
    _, states = torch.ops.mea_graph.bilstm_triton(*leaves, *rest)
    torch.library.opcheck(torch.ops.mea_graph.bilstm_triton_backward.default, (inputs["grad"], states, inputs["weight"].detach(), *rest))


def test_a_compiled_graph_has_one_operator_for_all_sets_directions_and_steps() -> None:
    torch.compiler.reset()
    inputs = RAGGED.inputs(torch.float32)
    weights = [[inputs[f"w{m}.{w}"].requires_grad_() for w in range(8)] for m in range(2)]
    x = [inputs[f"x{m}"].requires_grad_() for m in range(2)]
    pointers = [Pointers.full(2, len(rows) // 2, torch.device("cpu")) for rows in x]
    x = [rows[: p.num_rows] for rows, p in zip(x, pointers, strict=True)]
    leaves = [*x, *weights[0], *weights[1]]
    seen: list[str] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    whole = aot_autograd(fw_compiler=lambda g, e: make_boxed_func(compiler(g, e)), bw_compiler=lambda g, e: make_boxed_func(compiler(g, e)))

    def call(*x: Tensor) -> Tensor:
        return torch.cat(bilstm(x, weights, pointers, backend="triton"))

    results = []
    for run in (call, torch.compile(call, backend=whole, fullgraph=True)):
        out = run(*x)
        results.append((out, torch.autograd.grad(out.square().sum(), leaves)))
    torch.testing.assert_close(results[1], results[0])
    assert seen.count("mea_graph.bilstm_triton.default") == seen.count("mea_graph.bilstm_triton_backward.default") == 1
    assert len(seen) < 100


@pytest.mark.parametrize(
    ("hidden", "change", "reason"),
    [
        (64, {}, None),
        (65, {}, "the hidden state is 65 wide, and the kernel holds at most 64"),
        (4, {"x": [torch.zeros(3, 3, dtype=torch.float64)]}, "x[0] is float64; expected float32, bfloat16 or float16"),
        (4, {"x": [torch.zeros(3, 3, device="meta")]}, "the tensors are on meta, not on cuda"),
    ],
)
def test_says_why_it_cannot_run(hidden: int, change: dict[str, Any], reason: str | None) -> None:
    weights = [torch.zeros(4 * hidden, 3), torch.zeros(4 * hidden, hidden), torch.zeros(4 * hidden), torch.zeros(4 * hidden)] * 2
    given = {"x": [torch.zeros(3, 3)], "weights": [weights], "pointers": [Pointers.full(1, 3, torch.device("cpu"))]}
    said = backend.refuse(**(given | change))
    assert (said is None) if reason is None else reason in str(said)


def test_says_which_sets_do_not_go_together() -> None:
    def given(hidden: int, samples: int) -> tuple[Any, ...]:
        weights = [torch.zeros(4 * hidden, 3), torch.zeros(4 * hidden, hidden), torch.zeros(4 * hidden), torch.zeros(4 * hidden)] * 2
        return torch.zeros(samples, 3), weights, Pointers.full(samples, 1, torch.device("cpu"))

    for other, reason in (((5, 2), "of different widths: [4, 5]"), ((4, 3), "the sets have different numbers of samples")):
        said = backend.refuse(*(list(pair) for pair in zip(given(4, 2), given(*other), strict=True)))
        assert reason in str(said)


def test_a_gpu_takes_it_first_and_a_cpu_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(iter(_BILSTM.backends)) == "triton"
    assert _BILSTM.backends["triton"].prefers == "cuda"
    weights = [torch.zeros(8, 3), torch.zeros(8, 2), torch.zeros(8), torch.zeros(8)] * 2
    given = ([torch.zeros(3, 3)], [weights], [Pointers.full(1, 3, torch.device("cpu"))])
    assert explain("bilstm", *given).chosen == "torch"
    assert explain("bilstm", *given, backend="triton").chosen == "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="cannot run on 'triton' here: the tensors are on cpu, not on cuda"):
        bilstm(*given, backend="triton")
