"""Predictive attention of several sets of samples in one call, interpreted, against the reference in float64, set by set."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mea_graph.ops import Pointers, predictive_attention, record_calls, use_backend
from mea_graph.ops.predictive import _OP, sets
from mea_graph.ops.predictive.sets import predictive_attention_of_sets

ROWS = ("query", "key", "value", "prior_query", "prior_key")
Layout = Callable[[str, tuple[int, ...]], Pointers]
Errors = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, float]]


class Sets(NamedTuple):
    """Three sets of two samples, each with a convolution of its own."""

    pointers: list[Pointers]
    rows: dict[str, Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]

    def leaves(self) -> list[Tensor]:
        return [*self.rows.values(), *self.weights, *(b for b in self.biases if b is not None)]

    def to(self, dtype: torch.dtype) -> "Sets":
        cast = lambda t: None if t is None else t.detach().to(dtype).requires_grad_()  # noqa: E731
        rows = {n: cast(t) for n, t in self.rows.items()}
        return Sets(self.pointers, rows, [cast(w) for w in self.weights], [cast(b) for b in self.biases])

    def together(self, mu: float = 0.25) -> Tensor | None:
        return predictive_attention_of_sets(*self.rows.values(), self.weights, self.biases, mu, self.pointers, Pointers.join(self.pointers))

    def alone(self, mu: float = 0.25) -> Tensor:
        sizes = [p.num_rows for p in self.pointers]
        parts = zip(*(t.split(sizes) for t in self.rows.values()), strict=True)
        found = [
            predictive_attention(q, k, v, p, q_prior, k_prior, weight, bias, mu, backend="reference")
            for (q, k, v, q_prior, k_prior), p, weight, bias in zip(parts, self.pointers, self.weights, self.biases, strict=True)
        ]
        return torch.cat(found)


def draw(lay_out: Layout, layout: str, width: int = 5, bias: bool = True, heads: int = 2, lengths: Sequence[tuple[int, ...]] = ()) -> Sets:
    pointers = [lay_out(layout, of_set) for of_set in lengths or ((9, 3), (0, 6), (4, 1))]
    count = sum(p.num_rows for p in pointers)
    rows = {name: torch.randn(count, heads, width) for name in ROWS}
    weights = [0.3 * torch.randn(heads, heads, 3, 3) for _ in pointers]
    return Sets(pointers, rows, weights, [torch.randn(heads) if bias else None for _ in pointers])


class Marked(Tensor): ...


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(_OP, "choose", lambda device, arguments: "triton")


@pytest.mark.parametrize(
    ("width", "bias", "layout"),
    [(5, True, "packed"), (5, False, "padded"), (6, True, "padded")],
    ids=["halves", "without a bias", "TF32"],
)
@pytest.mark.usefixtures("coarse_tiles")
def test_equals_each_set_alone(width: int, bias: bool, layout: str, lay_out: Layout, errors: Errors) -> None:
    given = draw(lay_out, layout, width, bias)
    found, truth = given.to(torch.float32), given.to(torch.float64)
    out, expected = found.together(), truth.alone()
    assert out is not None
    grad = torch.randn_like(out)
    names = ["result", *map(str, range(len(found.leaves())))]
    got = dict(zip(names, [out.detach(), *torch.autograd.grad(out, found.leaves(), grad)], strict=True))
    wanted = dict(zip(names, [expected.detach(), *torch.autograd.grad(expected, truth.leaves(), grad.double())], strict=True))
    # As in `test_predictive_attention.py`: the gradient of a bias is a sum of many terms of both signs.
    bounds = {n: 1e-5 if bias and n in names[-3:] else 2e-6 for n in names}
    assert not {n: e for n, e in errors(got, wanted).items() if not e < bounds[n]}


@pytest.mark.usefixtures("coarse_tiles")
def test_second_derivatives_are_those_of_each_set_alone(lay_out: Layout) -> None:
    given = draw(lay_out, "packed", 4, lengths=((3, 1), (0, 2)))

    def second(of: Sets, run: Callable[[Sets], Tensor | None]) -> tuple[Tensor, ...]:
        out = run(of)
        assert out is not None
        grads = torch.autograd.grad(out.square().sum(), of.leaves(), create_graph=True)
        return torch.autograd.grad(torch.stack([g.square().sum() for g in grads]).sum(), of.leaves())

    pairs = zip(second(given.to(torch.float32), Sets.together), second(given.to(torch.float64), Sets.alone), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("coarse_tiles", "checked_memory")
def test_no_wrong_address_and_no_race(lay_out: Layout) -> None:
    for width in (5, 6):
        given = draw(lay_out, "packed", width, lengths=((2, 1), (0, 3), (1, 1))).to(torch.float32)
        out = given.together()
        assert out is not None
        torch.autograd.grad(out.sum(), given.leaves())


def test_the_operators_are_well_defined(lay_out: Layout) -> None:
    given, where = draw(lay_out, "packed", 4, heads=1, lengths=((1,), (2,))), Pointers.from_ptr(torch.tensor([0, 1, 3]))
    weight, bias = torch.stack(given.weights), torch.stack([b for b in given.biases if b is not None])
    tensors = [t.requires_grad_() for t in (*given.rows.values(), weight, bias)]
    rest = (where.start, where.length, 2, True, 0.25)
    torch.library.opcheck(torch.ops.mea_graph.predictive_attention_triton.default, (*tensors, *rest))


def test_sets_that_are_to_be_computed_alone(lay_out: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    given = draw(lay_out, "packed")
    assert given._replace(weights=[*given.weights[:2], torch.randn(2, 2, 1, 1)]).together() is None
    assert given._replace(weights=[*given.weights[:2], given.weights[2].double()]).together() is None
    assert given._replace(weights=[*given.weights[:2], given.weights[2].to("meta")]).together() is None
    assert given._replace(weights=[*given.weights[:2], given.weights[2].as_subclass(Marked)]).together() is None
    assert given._replace(biases=[*given.biases[:2], None]).together() is None
    assert draw(lay_out, "packed", lengths=((2, 1), (3,), (1, 1))).together() is None
    with use_backend("triton"):
        assert given.together() is None
    with monkeypatch.context() as patch:
        long = draw(lay_out, "packed", lengths=((200, 1), (3, 1), (1, 1)))
        patch.setattr(sets, "_MOST_ADDED", 2 * 2 * 128 - 1)  # two samples of two sets are longer by a tile of 128 steps
        assert long.together() is None
        patch.setattr(sets, "_MOST_ADDED", 2 * 2 * 128)
        patch.setattr(_OP, "run_on", lambda name, arguments: "called")
        assert long.together() == "called"
    with monkeypatch.context() as patch:
        patch.setattr(_OP, "choose", lambda device, arguments: "reference")
        assert given.together() is None
    with pytest.raises(ValueError, match=r"mu: expected a number in \[0, 1\], got 2"):
        given.together(mu=2.0)


@pytest.mark.usefixtures("coarse_tiles")
def test_is_one_call(lay_out: Layout) -> None:
    with record_calls() as calls, torch.no_grad():
        draw(lay_out, "packed").together()
    assert dict(calls) == {("predictive_attention", "triton"): 1}
