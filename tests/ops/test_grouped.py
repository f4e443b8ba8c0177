"""Linear maps and normalisations of groups of rows against one call a group, in float64."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mea_graph.ops import explain, record_calls, use_backend
from mea_graph.ops.grouped import grouped_layer_norm, grouped_linear
from mea_graph.ops.native import library

N, C, WIDE = 9, 4, 3
# By case, first row and number of rows of each group.
GROUPS = {
    "apart": ([0, 2, 5], [2, 3, 4]),
    "one": ([0], [N]),
    "overlapping": ([0, 3, 0], [5, 6, N]),
    "some rows in none": ([6, 1], [2, 3]),
    "empty": ([0, 4, 9], [4, 0, 0]),
    "nothing at all": ([0, 0], [0, 0]),
}
NATIVE = pytest.param("native", marks=pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}"))
JOINED = pytest.mark.parametrize("backend", ["joined", NATIVE])
OPS = {"grouped_linear": grouped_linear, "grouped_layer_norm": grouped_layer_norm}
every_op = pytest.mark.parametrize("name", OPS)
every_case = pytest.mark.parametrize("case", GROUPS)
Leaves = tuple[Tensor, list[Tensor], list[Tensor]]


def leaves(name: str, groups: int, dtype: torch.dtype = torch.float64, bias: bool = True) -> Leaves:
    shape, width = ((WIDE, C), WIDE) if name == "grouped_linear" else ((C,), C)
    draw = lambda *s: torch.randn(*s, dtype=dtype).requires_grad_()  # noqa: E731
    return draw(N, C), [draw(*shape) for _ in range(groups)], [draw(width) for _ in range(groups)] if bias else []


def by_hand(name: str, x: Tensor, weights: list[Tensor], biases: list[Tensor], starts: list[int], sizes: list[int]) -> Tensor:
    parts = []
    for g, (s, n) in enumerate(zip(starts, sizes, strict=True)):
        rows, weight, bias = x[s : s + n], weights[g], biases[g] if biases else 0
        if name == "grouped_linear":
            parts.append((rows[:, None] * weight).sum(-1) + bias)
        else:
            centred = rows - rows.mean(-1, keepdim=True)
            parts.append(centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias)
    return torch.cat(parts)


def gradients(out: Tensor, given: Leaves, grad: Tensor) -> list[Tensor]:
    x, weights, biases = given
    return list(torch.autograd.grad(out, [x, *weights, *biases], grad, materialize_grads=True))


@every_op
@every_case
@pytest.mark.parametrize("backend", ["joined", "reference", NATIVE])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_one_call_a_group(name: str, case: str, backend: str, bias: bool) -> None:
    if name == "grouped_layer_norm" and not bias:
        return  # refused, below
    starts, sizes = GROUPS[case]
    given = leaves(name, len(starts), bias=bias)
    out, expected = OPS[name](*given, starts, sizes, backend=backend), by_hand(name, *given, starts, sizes)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    grad = torch.randn_like(out)
    torch.testing.assert_close(gradients(out, given, grad), gradients(expected, given, grad), rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(OPS[name](*given, starts, sizes, backend=backend), expected, rtol=1e-11, atol=1e-12)


LEVEL = {"apart": ([0, 3, 6], [3, 3, 3]), "all read all": ([0, 0], [N, N]), "in pairs": ([0, 0, 3, 3, 6, 6], [3] * 6)}


@every_op
@pytest.mark.parametrize("case", LEVEL)
@pytest.mark.parametrize("bias", [True, False])
def test_groups_of_equal_size_in_batched_products(name: str, case: str, bias: bool) -> None:
    if name == "grouped_layer_norm" and not bias:
        return
    starts, sizes = LEVEL[case]
    given = leaves(name, len(starts), bias=bias)
    out, expected = OPS[name](*given, starts, sizes, backend="batched"), by_hand(name, *given, starts, sizes)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    grad = torch.randn_like(out)
    found = gradients(out, given, grad)
    torch.testing.assert_close(found, gradients(expected, given, grad), rtol=1e-9, atol=1e-11)
    assert all(g.stride() == t.stride() for g, t in zip(found[1:], [*given[1], *given[2]], strict=True))  # autograd copies others
    x, weights, biases = given
    n = len(weights)
    call = lambda x, *t: OPS[name](x, t[:n], t[n:], starts, sizes, backend="batched")  # noqa: E731
    assert torch.autograd.gradgradcheck(call, (x, *weights, *biases), fast_mode=True)


@pytest.mark.parametrize("case", LEVEL)
def test_a_normalisation_before_batched_products(case: str) -> None:
    starts, sizes = LEVEL[case]
    (x, weights, biases), (_, scales, shifts) = leaves("grouped_linear", len(starts)), leaves("grouped_layer_norm", len(starts))
    every = [x, *weights, *biases, *scales, *shifts]
    results = []
    for backend in ("reference", "batched"):
        out = grouped_linear(x, weights, biases, starts, sizes, scales, shifts, 1e-3, steps_last=True, backend=backend)
        results.append([out, *torch.autograd.grad(out.sin().sum(), every)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("backend", ["batched", "joined", "reference", NATIVE])
def test_a_result_may_be_added_to_a_residual(backend: str, bias: bool) -> None:
    starts, sizes = LEVEL["in pairs"]
    x, weights, biases = leaves("grouped_linear", len(starts), bias=bias)
    onto = torch.randn(sum(sizes), WIDE, dtype=torch.float64).requires_grad_()
    before = onto.detach().clone()

    def call(x: Tensor, onto: Tensor, *t: Tensor) -> Tensor:
        return grouped_linear(x, t[: len(weights)], t[len(weights) :], starts, sizes, backend=backend, onto=onto)

    every = (x, onto, *weights, *biases)
    out, expected = call(*every), onto + by_hand("grouped_linear", x, weights, biases, starts, sizes)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(onto.detach(), before, rtol=0, atol=0)
    grad = torch.randn_like(out)
    torch.testing.assert_close(torch.autograd.grad(out, every, grad), torch.autograd.grad(expected, every, grad), rtol=1e-9, atol=1e-11)
    assert torch.autograd.gradgradcheck(call, every, fast_mode=True)
    with pytest.raises(ValueError, match=r"onto: expected \(18, 3\) as the result, got \(9, 4\)"):
        call(x, x, *weights, *biases)


def test_batched_products_keep_to_autocast() -> None:
    starts, sizes = LEVEL["apart"]
    given = leaves("grouped_linear", 3, torch.float32)
    results = []
    for backend in ("reference", "batched"):
        with torch.autocast("cpu", torch.bfloat16):
            out = grouped_linear(*given, starts, sizes, backend=backend)
        assert out.dtype == torch.bfloat16
        results.append([out.float(), *gradients(out, given, torch.ones_like(out))])
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=5e-2)


@every_op
def test_batched_refuses_what_is_not_level(name: str) -> None:
    x, weights, biases = leaves(name, 3)
    for starts, sizes in [*(GROUPS[c] for c in ("apart", "overlapping")), ([0, 6, 3], [3, 3, 3]), ([0, 3, 3], [3, 3, 3])]:
        with pytest.raises(ValueError, match="cannot run on 'batched' here: the groups differ in size, or do not read each piece"):
            OPS[name](x, weights, biases, starts, sizes, backend="batched")
    reason = explain(name, x, weights, biases, *LEVEL["apart"]).refused["batched"]
    assert reason == "taken only by name, because the tensors are on cpu"
    with pytest.raises(ValueError, match="the tensors are of different types"):
        OPS[name](x, [weights[0].float(), *weights[1:]], biases, *LEVEL["apart"], backend="batched")


@every_op
@JOINED
@pytest.mark.parametrize("case", ["overlapping", "some rows in none", "empty"])
def test_derivatives_of_first_and_second_order(name: str, case: str, backend: str) -> None:
    starts, sizes = GROUPS[case]
    x, weights, biases = leaves(name, len(starts))
    n = len(weights)
    call = lambda x, *t: OPS[name](x, t[:n], t[n:], starts, sizes, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, *weights, *biases), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *weights, *biases), fast_mode=True)


@every_op
@JOINED
def test_one_weight_may_serve_several_groups(name: str, backend: str) -> None:
    """Each use adds its part, in first and in second derivatives."""
    starts, sizes = GROUPS["overlapping"]
    x, (weight, *_), (bias, *_) = leaves(name, 3)
    call = lambda x, w, b, backend: OPS[name](x, [w] * 3, [b] * 3, starts, sizes, backend=backend)  # noqa: E731
    for again in (False, True):
        results = []
        for own in (backend, "reference"):
            found = torch.autograd.grad(call(x, weight, bias, own).sin().sum(), [x, weight, bias], create_graph=again)
            if again:
                found = torch.autograd.grad(sum(g.square().sum() for g in found), [x, weight, bias])
            results.append(found)
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-11)


@every_op
@pytest.mark.parametrize("needed", range(3))
def test_gradients_may_be_wanted_of_some_only(name: str, needed: int) -> None:
    starts, sizes = GROUPS["apart"]
    given = leaves(name, 3)
    expected = gradients(OPS[name](*given, starts, sizes).sum(), given, torch.ones((), dtype=torch.float64))
    x, weights, biases = (t.detach() if isinstance(t, Tensor) else [w.detach() for w in t] for t in given)
    (wanted,) = [[x, weights[0], biases[0]][needed].requires_grad_()]
    (found,) = torch.autograd.grad(OPS[name](x, weights, biases, starts, sizes).sum(), [wanted])
    torch.testing.assert_close(found, expected[[0, 1, 4][needed]], rtol=0, atol=0)


@every_op
@JOINED
@pytest.mark.parametrize(("dtype", "budget"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_rounds_no_more_than_the_dtype_does(name: str, dtype: torch.dtype, budget: float, backend: str) -> None:
    if backend == "native" and dtype != torch.float32:
        with pytest.raises(ValueError, match="cannot run on 'native' here: it computes float32 and float64"):
            OPS[name](*leaves(name, 3, dtype), *GROUPS["apart"], backend=backend)
        return
    starts, sizes = GROUPS["apart"]
    given = leaves(name, 3, dtype)
    wide = tuple(
        [t.detach().double().requires_grad_() for t in p] if isinstance(p, list) else p.detach().double().requires_grad_() for p in given
    )
    out, expected = OPS[name](*given, starts, sizes, backend=backend), by_hand(name, *wide, starts, sizes)
    grad = torch.randn_like(out)
    found = zip([out, *gradients(out, given, grad)], [expected, *gradients(expected, wide, grad.double())], strict=True)
    for f, e in found:
        assert f.dtype == dtype
        assert (f.double() - e).norm() <= budget * e.norm()


@every_op
@JOINED
def test_same_bits_twice_whatever_the_strides(name: str, backend: str) -> None:
    starts, sizes = GROUPS["overlapping"]
    x, weights, biases = leaves(name, 3, torch.float32)
    grad = torch.randn(sum(sizes), WIDE if name == "grouped_linear" else C)
    runs = []
    for given in ((x, weights, biases), (x, weights, biases), (x.mT.contiguous().mT, weights, biases)):
        out = OPS[name](*given, starts, sizes, backend=backend)
        runs.append([out.detach(), *gradients(out, (x, weights, biases), grad)])
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=0)
    torch.testing.assert_close(runs[2], runs[0], rtol=1e-6, atol=1e-6)


@every_op
def test_autocast_takes_the_formula_in_its_own_precision(name: str) -> None:
    starts, sizes = GROUPS["apart"]
    given = leaves(name, 3, torch.float32)
    expected = OPS[name](*given, starts, sizes)
    with torch.autocast("cpu", torch.bfloat16), record_calls() as calls:
        low = OPS[name](*given, starts, sizes)
        reason = explain(name, *given, starts, sizes).refused["joined"]
    assert calls == {(name, "reference"): 1}
    assert reason == "autocast chooses the precision of each map"
    assert low.dtype == (torch.bfloat16 if name == "grouped_linear" else torch.float32)
    assert (low.float() - expected).norm() <= 0.01 * expected.norm()


class Other(nn.Parameter):
    """A parameter of another kind."""


@every_op
def test_joined_refuses_what_it_cannot_write_into_one_piece(name: str) -> None:
    starts, sizes = GROUPS["apart"]
    x, weights, biases = leaves(name, 3, torch.float32)
    assert explain(name, x, weights, biases, starts, sizes).chosen == "joined"
    assert explain(name, x, [nn.Parameter(w.detach()) for w in weights], biases, starts, sizes).chosen == "joined"
    other = [weights[0], Other(weights[1].detach()), weights[2]]
    for given in ((x, other, biases), (x.double(), weights, biases), (Other(x.detach()), weights, biases)):
        explanation = explain(name, *given, starts, sizes)
        assert explanation.chosen == "reference"
        assert explanation.refused["joined"] == "the tensors are of different types"
    with pytest.raises(ValueError, match=f"{name} cannot run on 'joined' here: the tensors are of different types"):
        OPS[name](x, other, biases, starts, sizes, backend="joined")
    with use_backend("reference"), record_calls() as calls:
        OPS[name](x, weights, biases, starts, sizes)
    assert calls == {(name, "reference"): 1}


@every_op
def test_compiles_into_one_graph(name: str) -> None:
    torch.compiler.reset()
    starts, sizes = GROUPS["overlapping"]
    given = leaves(name, 3)
    compiled = torch.compile(lambda x, w, b: OPS[name](x, w, b, starts, sizes).tanh(), fullgraph=True, backend="aot_eager")
    out, expected = compiled(*given), OPS[name](*given, starts, sizes).tanh()
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    grad = torch.randn_like(out)
    torch.testing.assert_close(gradients(out, given, grad), gradients(expected, given, grad), rtol=1e-10, atol=1e-11)


@every_op
@pytest.mark.parametrize("bias", [True, False])
def test_operators_keep_the_rules_of_torch_library(name: str, bias: bool) -> None:
    if name == "grouped_layer_norm" and not bias:
        return
    starts, sizes = GROUPS["overlapping"]
    x, weights, biases = (p.detach() if isinstance(p, Tensor) else [t.detach() for t in p] for p in leaves(name, 3, torch.float32, bias))
    checks = ("test_schema", "test_faketensor")  # the gradient is not registered with the operator
    grad = torch.randn(sum(sizes), WIDE if name == "grouped_linear" else C)
    if name == "grouped_linear":
        scales, shifts = [torch.randn(C) for _ in weights], [torch.randn(C) for _ in weights]
        for normalised, steps_last in ((False, False), (True, False), (True, True)):
            norms = (scales, shifts, 1e-5, steps_last) if normalised else ([], [], 1e-5, steps_last)
            given = (x, weights, biases, starts, sizes, *norms)
            torch.library.opcheck(torch.ops.mea_graph.grouped_linear.default, given, test_utils=checks)
            _, mean, rstd = torch.ops.mea_graph.grouped_linear(*given)
            backward = (grad.t().contiguous() if steps_last else grad, x, mean, rstd, weights, bias, starts, sizes, *norms)
            torch.library.opcheck(torch.ops.mea_graph.grouped_linear_backward.default, backward, test_utils=checks)
        return
    torch.library.opcheck(torch.ops.mea_graph.grouped_layer_norm.default, (x, weights, biases, starts, sizes, 1e-5), test_utils=checks)
    _, mean, rstd = torch.ops.mea_graph.grouped_layer_norm(x, weights, biases, starts, sizes, 1e-5)
    backward = (grad, x, mean, rstd, weights, starts, sizes)
    torch.library.opcheck(torch.ops.mea_graph.grouped_layer_norm_backward.default, backward, test_utils=checks)


def test_eps_is_added_to_the_variance() -> None:
    x, weights, biases = leaves("grouped_layer_norm", 2)
    out = grouped_layer_norm(x * 0.1, weights, biases, [0, 4], [4, 5], eps=0.3)
    parts = [F.layer_norm(rows, (C,), w, b, 0.3) for rows, w, b in zip((x * 0.1).split([4, 5]), weights, biases, strict=True)]
    torch.testing.assert_close(out, torch.cat(parts), rtol=1e-11, atol=1e-12)


X, W, B = torch.randn(N, C), torch.randn(WIDE, C), torch.randn(WIDE)
ONES, ZEROS = torch.ones(C), torch.zeros(C)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grouped_linear(X[0], [W], [B], [0], [1]), "x: expected (N, C), got (4,)"),
        (
            lambda: grouped_linear(X, [], [], [], []),
            "weights, biases, starts, sizes: expected one of each for every group, got (0, 0, 0, 0)",
        ),
        (lambda: grouped_linear(X, [W], [B, B], [0], [1]), "expected one of each for every group, got (1, 2, 1, 1)"),
        (lambda: grouped_linear(X, [W, W], [], [0], [1, 2]), "expected one of each for every group, got (2, 2, 1, 2)"),
        (lambda: grouped_linear(X, [W], [B], [5], [5]), "starts, sizes: expected rows of the 9 of x, got [5], [5]"),
        (lambda: grouped_linear(X, [W], [B], [-1], [2]), "starts, sizes: expected rows of the 9 of x, got [-1], [2]"),
        (lambda: grouped_linear(X, [W], [B], [1], [-1]), "starts, sizes: expected rows of the 9 of x, got [1], [-1]"),
        (lambda: grouped_linear(X, [W, torch.randn(5, C)], [], [0, 2], [2, 3]), "weights[1]: expected (3, 4), got (5, 4)"),
        (lambda: grouped_linear(X, [torch.randn(WIDE, 5)], [], [0], [2]), "weights[0]: expected (3, 4), got (3, 5)"),
        (lambda: grouped_linear(X, [W[0]], [], [0], [2]), "weights[0]: expected (C', 4), got (4,)"),
        (lambda: grouped_linear(X, [W], [B[:1]], [0], [2]), "biases[0]: expected (3,), got (1,)"),
        (lambda: grouped_layer_norm(X, [ONES], [], [0], [2]), "biases: expected 1, one a group, got none"),
        (lambda: grouped_layer_norm(X, [ONES[:1]], [ZEROS], [0], [2]), "weights[0]: expected (4,), got (1,)"),
        (lambda: grouped_layer_norm(X, [ONES, ONES], [ZEROS, ZEROS[:1]], [0, 1], [2, 2]), "biases[1]: expected (4,), got (1,)"),
    ],
)
def test_bad_input_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@JOINED
@pytest.mark.parametrize("steps_last", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("starts", "sizes"), [([0, 4], [4, 5]), ([0, 2, 0], [9, 3, 9]), ([3], [0])], ids=["apart", "shared", "empty"])
def test_a_map_after_a_normalisation(starts: list[int], sizes: list[int], biased: bool, steps_last: bool, backend: str) -> None:
    """Scale and shift of the normalisation are folded into the map: the same values, gradients and second derivatives."""
    groups, draw = len(starts), lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    x, weights, biases = draw(9, 4), [draw(3, 4) for _ in starts], [draw(3) for _ in starts] if biased else []
    scales, shifts = [draw(4) for _ in starts], [draw(4) for _ in starts]
    leaves = [x, *weights, *biases, *scales, *shifts]

    def split(tensors: tuple[torch.Tensor, ...]) -> tuple[object, ...]:
        x, *rest = tensors
        count = [groups, groups if biased else 0, groups, groups]
        parts, first = [], 0
        for n in count:
            parts.append(list(rest[first : first + n]))
            first += n
        return x, *parts

    def run(*tensors: torch.Tensor, backend: str = backend) -> torch.Tensor:
        x, weights, biases, scales, shifts = split(tensors)
        return grouped_linear(x, weights, biases, starts, sizes, scales, shifts, 1e-3, steps_last, backend)

    expected = run(*leaves, backend="reference")
    actual = run(*leaves)
    assert actual.shape == (sum(sizes), 3)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(run(*leaves), expected, rtol=1e-11, atol=1e-13)
    wanted = torch.autograd.grad(expected.sin().sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad(actual.sin().sum(), leaves), wanted, rtol=1e-9, atol=1e-11)
    if sum(sizes) < 12 and sum(sizes):
        assert torch.autograd.gradgradcheck(run, leaves)


def test_scales_and_shifts_go_together() -> None:
    x, w, s = torch.randn(3, 4), torch.randn(2, 4), torch.randn(4)
    with pytest.raises(ValueError, match="scales, shifts: expected none or 1 of each, got 1 and 0"):
        grouped_linear(x, [w], [], [0], [3], scales=[s])
    with pytest.raises(ValueError, match=r"shifts\[0\]: expected \(4,\), got \(3,\)"):
        grouped_linear(x, [w], [], [0], [3], scales=[s], shifts=[s[:3]])
