"""The Triton kernels of the grouped ops, interpreted, against the formulas in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mea_graph.ops import explain, record_calls
from mea_graph.ops.grouped import grouped_layer_norm, grouped_linear
from mea_graph.ops.grouped import triton as backend

Tensors = dict[str, Tensor]
Errors = Callable[[Tensors, Tensors], dict[str, float]]


class Case(NamedTuple):
    """Groups of `rows` rows; `groups / ranges` of them share theirs."""

    channels: int
    width: int  # 0: a normalisation alone
    groups: int = 3
    ranges: int = 3
    rows: int = 50
    bias: bool = True
    norm: bool = False
    onto: bool = False

    def inputs(self) -> Tensors:
        draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
        found = {"x": draw(self.ranges * self.rows, self.channels), "grad": draw(self.groups * self.rows, self.width or self.channels)}
        for g in range(self.groups):
            if self.width:
                found[f"weight{g}"] = draw(self.width, self.channels) / self.channels**0.5
            if self.width and self.bias:
                found[f"bias{g}"] = draw(self.width)
            if self.norm:
                found[f"scale{g}"], found[f"shift{g}"] = draw(self.channels), draw(self.channels)
        return found | ({"onto": draw(self.groups * self.rows, self.width)} if self.onto else {})

    def call(self, t: Tensors, name: str) -> Tensor:
        weights, biases, scales, shifts = (
            [t[f"{kind}{g}"] for g in range(self.groups) if f"{kind}{g}" in t] for kind in ("weight", "bias", "scale", "shift")
        )
        shared = self.groups // self.ranges
        starts, sizes = [g // shared * self.rows for g in range(self.groups)], [self.rows] * self.groups
        if self.width:
            return grouped_linear(t["x"], weights, biases, starts, sizes, scales, shifts, backend=name, onto=t.get("onto"))
        return grouped_layer_norm(t["x"], scales, shifts, starts, sizes, backend=name)

    def outcome(self, inputs: Tensors, dtype: torch.dtype, name: str = "triton") -> Tensors:
        """The result and all gradients."""
        t = {n: v.detach().to(dtype).requires_grad_(n != "grad") for n, v in inputs.items()}
        out = self.call(t, name)
        leaves = {n: v for n, v in t.items() if v.requires_grad}
        grads = torch.autograd.grad(out, list(leaves.values()), t["grad"].to(out.dtype))
        return {"result": out.detach(), **dict(zip(leaves, grads, strict=True))}

    def truth(self, inputs: Tensors) -> Tensors:
        return self.outcome(inputs, torch.float64, "reference")


CASES = {
    "all": Case(40, 40, norm=True, onto=True),
    "plain": Case(16, 24, bias=False),
    "shared rows": Case(20, 70, groups=4, ranges=2, rows=33, norm=True),
    "all share": Case(5, 3, groups=3, ranges=1, rows=70, onto=True),
    "to one": Case(40, 1, bias=False),
    "from one": Case(1, 3, rows=3),
    "wide": Case(130, 40, groups=2, ranges=2, rows=10, norm=True),
    "wide, not normalised": Case(150, 33, groups=2, ranges=2, rows=10),
    "rows in splits": Case(8, 8, groups=2, ranges=1, rows=600, norm=True),
    "norm": Case(40, 0, norm=True),
    "norm, shared": Case(5, 0, groups=4, ranges=2, rows=70, norm=True),
    "norm, one group": Case(3, 0, groups=1, ranges=1, rows=1, norm=True),
}
HALF = [n for n in CASES if n in ("all", "shared rows", "wide, not normalised", "norm")]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
half_cases = pytest.mark.parametrize("case", [CASES[n] for n in HALF], ids=HALF)


@every_case
def test_equals_float64(case: Case, errors: Errors) -> None:
    inputs = case.inputs()
    with record_calls() as calls:
        found = case.outcome(inputs, torch.float32)
    assert calls == {("grouped_linear" if case.width else "grouped_layer_norm", "triton"): 1}
    assert not {n: e for n, e in errors(found, case.truth(inputs)).items() if not e < 2e-6}


@half_cases
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str)
def test_half_precision(case: Case, dtype: torch.dtype, bound: float, errors: Errors) -> None:
    """A few roundings of 2^-9 (bfloat16) or 2^-12 (float16) from the rounded inputs on."""
    inputs = {n: v.to(dtype).double() for n, v in case.inputs().items()}
    found = case.outcome(inputs, dtype)
    assert {t.dtype for t in found.values()} == {dtype}
    assert not {n: e for n, e in errors(found, case.truth(inputs)).items() if not e < bound}


@half_cases
def test_autocast_rounds_the_product_and_nothing_that_stays(case: Case, errors: Errors) -> None:
    """As torch's own layers: maps in bfloat16, a normalisation and a residual in float32; gradients are of the parameters' dtype."""
    inputs = case.inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found = case.outcome(inputs, torch.float32)
    assert found.pop("result").dtype == (torch.float32 if case.onto or not case.width else torch.bfloat16)
    assert {t.dtype for t in found.values()} == {torch.float32}
    expected = case.truth(inputs)
    assert not {n: e for n, e in errors(found, {n: expected[n] for n in found}).items() if not e < 2e-2}


@every_case
def test_no_address_is_wrong_and_no_two_programs_meet(
    case: Case, checked_memory: list[Tensor], monkeypatch: pytest.MonkeyPatch, errors: Errors
) -> None:
    tables = backend.addresses

    def note(kinds: Any, device: torch.device) -> Tensor:
        checked_memory[:] = [t for kind in kinds for t in kind]
        return tables(kinds, device)

    monkeypatch.setattr(backend, "addresses", note)
    inputs = case.inputs()
    assert not {n: e for n, e in errors(case.outcome(inputs, torch.float32), case.truth(inputs)).items() if not e < 2e-6}


def test_a_wrong_address_is_seen(checked_memory: list[Tensor], memory_fault: type[AssertionError], monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would fail if a kernel read beside the parameters."""
    tables = backend.addresses
    monkeypatch.setattr(backend, "addresses", lambda kinds, device: tables(kinds, device) + 8)
    case = CASES["plain"]
    inputs = {n: v.float() for n, v in case.inputs().items()}
    checked_memory[:] = inputs.values()
    with pytest.raises(Exception, match="out of bounds") as raised:
        case.call(inputs, "triton")
    assert memory_fault.__name__ in repr(raised.value) or isinstance(raised.value, memory_fault)


@pytest.mark.parametrize("name", ["all", "norm, shared", "rows in splits"])
def test_two_runs_have_the_same_bits(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs()
    first, second = (case.outcome(inputs, torch.float32) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("name", ["all", "norm, shared"])
def test_rows_and_gradients_that_are_views(name: str) -> None:
    """Columns of a wider tensor, and a gradient that is one number for all."""
    case = CASES[name]
    inputs = {n: v.float() for n, v in case.inputs().items()}
    found = []
    for whole in (False, True):
        x = torch.zeros(len(inputs["x"]), case.channels + 3)
        x[:, 2:-1] = inputs["x"]
        x = x.requires_grad_()
        view = x[:, 2:-1].contiguous() if whole else x[:, 2:-1]
        out = case.call(inputs | {"x": view}, "triton")
        grad = torch.ones(1).expand(out.shape)
        found.append((out, *torch.autograd.grad(out, x, grad.contiguous() if whole else grad)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["all", "norm, shared"])
def test_second_derivatives_are_those_of_the_formula(name: str) -> None:
    case = CASES[name]._replace(channels=4, width=CASES[name].width and 3, rows=5)
    inputs, found = case.inputs(), []
    for dtype, by in ((torch.float32, "triton"), (torch.float64, "reference")):
        t = {n: v.to(dtype).requires_grad_() for n, v in inputs.items()}
        leaves = [v for n, v in t.items() if n != "grad"]
        out = case.call(t, by)
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    torch.testing.assert_close([g.double() for g in found[0]], list(found[1]), rtol=1e-4, atol=1e-4)


def test_parameters_that_were_replaced_are_found() -> None:
    """A table of addresses is kept; it must not outlive them."""
    case = CASES["plain"]
    inputs = {n: v.float() for n, v in case.inputs().items()}
    for _ in range(3):
        inputs = {n: v.clone() * 1.5 if n.startswith("weight") else v for n, v in inputs.items()}
        torch.testing.assert_close(case.call(inputs, "triton"), case.call(inputs, "reference"))
        with torch.no_grad():
            inputs["weight0"].add_(1)
        torch.testing.assert_close(case.call(inputs, "triton"), case.call(inputs, "reference"))


@pytest.mark.parametrize(
    ("case", "change", "why"),
    [
        (Case(257, 4, rows=2), {}, "the kernels are for 1 to 256 channels"),
        (Case(4, 257, rows=2), {}, "the kernels are for 1 to 256 channels"),
        (Case(4, 3), {"weight1": torch.randn(4, 3).t()}, "a parameter is on another device, or not in one piece of memory"),
        (Case(4, 3), {"x": torch.randn(150, 4).double()}, "the tensors are of different types"),
        (Case(4, 3, ranges=3), {"x": torch.randn(151, 4)}, "the groups differ in size"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused(case: Case, change: Tensors, why: str) -> None:
    inputs = {n: v.float() for n, v in case.inputs().items()} | change
    with pytest.raises(ValueError, match=f"cannot run on 'triton' here: .*{why}"):
        case.call(inputs, "triton")


def test_a_cpu_never_takes_it() -> None:
    x = torch.randn(4, 3)
    told = explain(grouped_linear, x, [torch.randn(2, 3)] * 2, [], [0, 2], [2, 2])
    assert told.refused["triton"] == "taken only by name, because the tensors are on cpu"


@pytest.mark.parametrize("name", ["all", "plain", "shared rows", "norm, shared"])
def test_the_operators_are_sound_and_counted(name: str) -> None:
    case = CASES[name]._replace(rows=7)
    t = {n: v.float() for n, v in case.inputs().items()}
    weights, biases, scales, shifts = (
        [t[f"{kind}{g}"] for g in range(case.groups) if f"{kind}{g}" in t] for kind in ("weight", "bias", "scale", "shift")
    )
    shared, ops = case.groups // case.ranges, torch.ops.mea_graph
    tests = ("test_schema", "test_faketensor")
    if case.width:
        given = (weights, biases, scales, shifts)
        inputs = (t["x"], *given, t.get("onto"), 7, shared, 1e-5, torch.float32, True)
        torch.library.opcheck(ops.grouped_linear_triton.default, inputs, test_utils=tests)
        _, moments = ops.grouped_linear_triton(*inputs)
        back = (t["grad"], t["x"], moments, *given, 7, shared, torch.float32)
        torch.library.opcheck(ops.grouped_linear_triton_backward.default, back, test_utils=tests)
        for by in ("triton", "reference"):
            with FlopCounterMode(display=False) as counter:
                case.outcome(t, torch.float32, by)
            assert counter.get_total_flops() == 3 * 2 * case.groups * 7 * case.channels * case.width
    else:
        given = (scales, shifts)
        inputs = (t["x"], *given, 7, shared, 1e-5, torch.float32, True)
        torch.library.opcheck(ops.grouped_layer_norm_triton.default, inputs, test_utils=tests)
        _, moments = ops.grouped_layer_norm_triton(*inputs)
        back = (t["grad"], t["x"], moments, *given, 7, shared)
        torch.library.opcheck(ops.grouped_layer_norm_triton_backward.default, back, test_utils=tests)
