"""The grouped ops in C++ against the reference in float64, at widths of whole vectors and with parts of them; NaN, threads, refusals."""

import pytest
import torch
from torch import Tensor

from mea_graph.ops.grouped import grouped_layer_norm, grouped_linear
from mea_graph.ops.native import library

pytestmark = pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}")
GROUPS = {"apart": ([0, 12, 62], [12, 50, 60], 122), "shared": ([0, 0, 5], [130, 130, 40], 130), "in turn": ([9, 2], [41, 33], 50)}
Parts = list[list[Tensor]]


def draw(case: str, width: int, wide: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Parts]:
    """Rows, and weights, biases, scales and shifts."""
    starts, _, rows = GROUPS[case]
    shapes = [(wide, width), (wide,), (width,), (width,)]
    parts = [[(scale * torch.randn(*shape, dtype=dtype)).requires_grad_() for _ in starts] for shape in shapes]
    return torch.randn(rows, width, dtype=dtype).requires_grad_(), parts


def outcome(case: str, x: Tensor, parts: Parts, norm: bool, steps_last: bool, backend: str) -> list[Tensor]:
    """The result and the gradients."""
    starts, sizes, _ = GROUPS[case]
    weights, biases, scales, shifts = parts
    out = grouped_linear(x, weights, biases, starts, sizes, *((scales, shifts) if norm else ((), ())), 1e-3, steps_last, backend)
    leaves = [x, *weights, *biases, *(scales + shifts if norm else ())]
    weighing = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).sin().view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weighing).sum(), leaves)]


@pytest.mark.parametrize("case", GROUPS)
@pytest.mark.parametrize(("width", "wide"), [(40, 160), (160, 40), (17, 1), (33, 70), (1, 9), (256, 256)])
@pytest.mark.parametrize("norm", [False, True])
def test_equals_the_reference_at_any_width(case: str, width: int, wide: int, norm: bool) -> None:
    x, parts = draw(case, width, wide)
    for steps_last in (False, True):
        found, expected = (outcome(case, x, parts, norm, steps_last, backend) for backend in ("native", "reference"))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", GROUPS)
@pytest.mark.parametrize("width", [1, 15, 16, 40, 100])
def test_a_normalisation_equals_the_reference_at_any_width(case: str, width: int) -> None:
    starts, sizes, _ = GROUPS[case]
    x, (_, _, scales, shifts) = draw(case, width, 1)
    results = []
    for backend in ("native", "reference"):
        out = grouped_layer_norm(x, scales, shifts, starts, sizes, 1e-3, backend)
        results.append([out, *torch.autograd.grad(out.sin().sum(), [x, *scales, *shifts])])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("norm", [False, True])
def test_float32_rounds_no_more_than_it_must(norm: bool) -> None:
    x, parts = draw("shared", 40, 160, torch.float32)
    wide = [[t.detach().double().requires_grad_() for t in kind] for kind in parts]
    found = outcome("shared", x, parts, norm, True, "native")
    expected = outcome("shared", x.detach().double().requires_grad_(), wide, norm, True, "reference")
    for f, e in zip(found, expected, strict=True):
        assert (f.double() - e).norm() <= 3e-6 * e.norm()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(norm: bool, junk: float) -> None:
    x, parts = draw("apart", 40, 17, torch.float32)
    with torch.no_grad():
        x[20, 39] = junk
    out = outcome("apart", x, parts, norm, False, "native")[0]
    rows = torch.arange(len(out)) == 20
    assert not out[rows].isfinite().any()
    assert out[~rows].isfinite().all()


@pytest.mark.parametrize("norm", [False, True])
def test_threads_change_no_bit(norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    starts, sizes = [0, 0, 100], [4000, 4000, 3000]
    monkeypatch.setitem(GROUPS, "long", (starts, sizes, 4000))
    x, parts = draw("long", 40, 160, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(outcome("long", x, parts, norm, False, "native"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_refuses_what_it_cannot_read() -> None:
    x, w = torch.randn(4, 300), torch.randn(6, 300)
    with pytest.raises(ValueError, match="cannot run on 'native' here: it is for 1 to 256 channels"):
        grouped_linear(x, [w], [], [0], [4], backend="native")
    turned = torch.randn(300, 6).t()
    with pytest.raises(ValueError, match="cannot run on 'native' here: a parameter is not in one piece of memory"):
        grouped_linear(x[:, :200], [turned[:, :200]], [], [0], [4], backend="native")


@pytest.mark.parametrize("norm", [False, True])
def test_a_view_of_negative_rows_in_one_piece_is_negative(norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory holds the numbers with the other sign, and it has the strides that the loops read."""
    monkeypatch.delenv("MEA_GRAPH_NATIVE")
    x, ((weight,), _, (scale,), (shift,)) = torch.randn(5, 4), [[torch.randn(*s)] for s in ((3, 4), (3,), (4,), (4,))]
    view = torch._neg_view(-x)
    assert view.is_neg()
    assert view.is_contiguous()
    with torch.no_grad():
        if norm:
            found, expected = (grouped_layer_norm(rows, [scale], [shift], [0], [5]) for rows in (view, x))
        else:
            found, expected = (grouped_linear(rows, [weight], [], [0], [5], [scale], [shift]) for rows in (view, x))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["joined", "native"])
def test_second_derivatives_have_the_eps_that_was_given(backend: str) -> None:
    x, (_, _, scales, shifts) = draw("apart", 4, 3)
    starts, sizes, _ = GROUPS["apart"]
    found = []
    for own in (backend, "reference"):
        out = grouped_layer_norm(x, scales, shifts, starts, sizes, eps=0.3, backend=own)
        first = torch.autograd.grad(out.sin().sum(), [x, *scales, *shifts], create_graph=True)
        found.append([out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), [x, *scales, *shifts])])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-11)
