"""The Triton kernels of interval attention, interpreted, against the reference in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, Pointers, explain, interval_attention
from mea_graph.ops.interval import _OP
from mea_graph.ops.interval import triton as backend

NAMES = ("query", "key", "value")
Layout = Callable[[str, tuple[int, ...]], Pointers]
Errors = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, float]]


class Case(NamedTuple):
    heads: int
    widths: tuple[int, int]  # of query and key, of value
    target: tuple[int, ...]  # its samples' lengths
    sources: tuple[tuple[int, ...], ...]
    runs: int | str = "complete"  # a window of so many steps, or "any" runs, empty ones too
    layout: str = "packed"

    def edges(self, lay_out: Layout) -> IntervalEdges:
        target, sources = lay_out(self.layout, self.target), [lay_out(self.layout, lengths) for lengths in self.sources]
        if isinstance(self.runs, int):
            return IntervalEdges.join([IntervalEdges.window(source, target, steps=self.runs) for source in sources])
        edges = IntervalEdges.complete(sources, target)
        if self.runs == "complete":
            return edges
        begin, end = ((edges.begin + torch.rand(edges.end.shape) * (edges.end - edges.begin + 1)).long() for _ in range(2))
        return IntervalEdges(sources, target, begin, torch.maximum(begin, end))

    def tensors(self, edges: IntervalEdges) -> dict[str, Tensor]:
        """Slices of a wider projection, so that no tensor is contiguous."""
        rows = (edges.target.num_rows, edges.num_source_rows, edges.num_source_rows)
        widths = (self.widths[0], *self.widths)
        return {name: torch.randn(n, 2, self.heads, width)[:, 1] for name, n, width in zip(NAMES, rows, widths, strict=True)}


CASES = {
    "one step": Case(1, (4, 4), (1,), ((1,),)),
    "lengths of tiles": Case(1, (16, 16), (64, 65), ((63, 128),)),
    "ragged, empty samples": Case(2, (5, 7), (9, 0, 70, 3, 0), ((12, 4, 66, 0, 0),)),
    "three sources": Case(1, (5, 5), (20, 7, 33), ((3, 0, 40), (35, 1, 70), (0, 0, 9))),
    "padded": Case(1, (5, 5), (66, 0, 8), ((3, 5, 70),), layout="padded"),
    "scattered": Case(1, (5, 5), (66, 1, 0, 8), ((3, 5, 70, 2), (20, 1, 1, 90)), layout="scattered"),
    "window": Case(1, (5, 5), (140, 30), ((200, 30),), runs=3),
    "window on itself, padded": Case(1, (5, 5), (70, 12), ((70, 12),), runs=1, layout="padded"),
    "any runs": Case(1, (5, 5), (70, 0, 40), ((90, 3, 20), (5, 0, 70)), runs="any"),
    "any runs, scattered": Case(1, (5, 5), (70, 20, 40), ((90, 3, 20), (5, 0, 70)), runs="any", layout="scattered"),
    "no target": Case(2, (5, 5), (0, 0), ((3, 4),)),
    "no source": Case(2, (5, 5), (3, 4), ((0, 0),)),
    "many samples": Case(1, (4, 4), (1, *[0] * 128, 2), ((2, *[0] * 128, 3),)),  # more than are looked through at once
    "wide": Case(1, (64, 64), (70,), ((70,),), runs=20),
    "17 and 33 channels": Case(1, (17, 33), (34, 5), ((20, 40),)),
}
SHIPPED = {"narrow": Case(2, (5, 5), (66, 20), ((70, 5),), runs="any"), "wide": Case(1, (64, 40), (34,), ((66,),))}


def attend(tensors: dict[str, Tensor], edges: IntervalEdges, grad: Tensor, name: str = "triton") -> dict[str, Tensor]:
    """The result, and the gradient of every tensor."""
    leaves = {n: t.detach().requires_grad_() for n, t in tensors.items()}
    out = interval_attention(**leaves, edges=edges, backend=name)
    return {"result": out.detach()} | dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True))


def truth(tensors: dict[str, Tensor], edges: IntervalEdges, grad: Tensor) -> dict[str, Tensor]:
    return attend({n: t.double() for n, t in tensors.items()}, edges, grad.double(), "reference")


def spoil(x: Tensor, *pointers: Pointers) -> Tensor:
    """Junk in the gaps."""
    real = torch.cat([p.real for p in pointers])
    junk = torch.tensor([torch.nan, torch.inf, 1e30], dtype=x.dtype).repeat(len(x))[: len(x)]
    return torch.where(real[:, None, None], x, junk[:, None, None])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_float64(case: Case, lay_out: Layout, errors: Errors) -> None:
    edges = case.edges(lay_out)
    tensors, target = case.tensors(edges), edges.target
    grad = torch.randn(target.num_rows, case.heads, case.widths[1])
    expected = truth(tensors, edges, grad.where(target.real[:, None, None], 0))
    dirty = {n: spoil(t, *((target,) if n == "query" else edges.sources)) for n, t in tensors.items()}
    found = attend(dirty, edges, spoil(grad, target))
    assert not {n: e for n, e in errors(found, expected).items() if not e < 2e-6}
    assert not found["result"][~target.real].any()
    assert not found["query"][~target.real].any()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("case", SHIPPED.values(), ids=SHIPPED)
def test_half_precision(case: Case, dtype: torch.dtype, bound: float, lay_out: Layout, errors: Errors) -> None:
    """A few roundings of 2^-9 (bfloat16) or 2^-12 (float16)."""
    edges = case.edges(lay_out)
    tensors = {n: t.to(dtype) for n, t in case.tensors(edges).items()}
    grad = torch.randn(edges.target.num_rows, case.heads, case.widths[1], dtype=dtype)
    found = attend(tensors, edges, grad)
    assert {t.dtype for t in found.values()} == {dtype}
    assert not {n: e for n, e in errors(found, truth(tensors, edges, grad)).items() if not e < bound}


def test_mixed_precision_is_computed_in_float32(lay_out: Layout, errors: Errors) -> None:
    edges = SHIPPED["narrow"].edges(lay_out)
    tensors = SHIPPED["narrow"].tensors(edges)
    tensors["key"], tensors["value"] = tensors["key"].bfloat16(), tensors["value"].half()
    grad = torch.randn(edges.target.num_rows, 2, 5).half()
    found = attend(tensors, edges, grad)
    assert [t.dtype for t in found.values()] == [torch.float16, torch.float32, torch.bfloat16, torch.float16]
    # What has a dtype of half precision is rounded to it at the end; and the backward pass reads the result, which is rounded to float16.
    bounds = {torch.float32: 2**-11, torch.float16: 2**-11, torch.bfloat16: 2**-8}
    assert not {n: e for n, e in errors(found, truth(tensors, edges, grad)).items() if not e < bounds[found[n].dtype]}


def test_samples_may_share_source_rows(errors: Errors) -> None:
    target = Pointers.from_ptr(torch.tensor([0, 30, 30, 75]))
    edges = IntervalEdges.of_runs(torch.tensor([[0, 10], [60, 60], [0, 20]]), torch.tensor([[40, 7], [1, 3], [3, 50]]), 72, target)
    tensors = {n: torch.randn(75 if n == "query" else 72, 1, 5) for n in NAMES}
    grad = torch.randn(75, 1, 5)
    found = attend(tensors, edges, grad)
    assert not {n: e for n, e in errors(found, truth(tensors, edges, grad)).items() if not e < 2e-6}
    assert not found["key"][70:].any()  # nobody hears them


def test_large_logits_do_not_overflow(lay_out: Layout, errors: Errors) -> None:
    edges = SHIPPED["narrow"].edges(lay_out)
    tensors = SHIPPED["narrow"].tensors(edges)
    tensors["query"] = tensors["query"] * 1e3
    grad = torch.randn(edges.target.num_rows, 2, 5)
    assert errors(attend(tensors, edges, grad), truth(tensors, edges, grad))["result"] < 1e-3  # logits of 1e3 have an error of 1e-4


def test_runs_are_cut_to_the_sample() -> None:
    """As the reference does: what a run says beyond the sample's rows counts for nothing, forward and backward."""
    steps = Pointers.from_ptr(torch.tensor([0, 20, 50]))
    begin = torch.zeros(50, 1, dtype=torch.int64)
    start, length = steps.start.unsqueeze(1), steps.length.unsqueeze(1)
    wide = IntervalEdges.of_runs(start, length, 50, steps, begin, begin + 50)  # which trusts its caller
    tensors, grad = {n: torch.randn(50, 1, 4) for n in NAMES}, torch.randn(50, 1, 4)
    found, complete = attend(tensors, wide, grad), attend(tensors, IntervalEdges.complete(steps, steps), grad)
    assert all(torch.equal(found[n], complete[n]) for n in found)


def test_what_no_row_of_a_block_hears_is_not_read() -> None:
    """0 x NaN is NaN: a masked map would have spoilt every row."""
    steps = Pointers.from_ptr(torch.tensor([0, 200]))
    edges = IntervalEdges.window(steps, steps, steps=2)
    tensors = {n: torch.randn(200, 1, 4) for n in NAMES}
    tensors["key"][10], tensors["value"][10] = torch.nan, torch.nan
    found = attend(tensors, edges, torch.ones(200, 1, 4))
    assert found["result"][10].isnan().all()
    assert all(found[n][130:].isfinite().all() for n in found)


@pytest.mark.parametrize("runs", ["complete", "any"])
def test_a_sample_with_nan_spoils_no_other(runs: str, lay_out: Layout) -> None:
    case = Case(1, (5, 5), (20, 3, 9), ((10, 5, 9), (7, 2, 20)), runs=runs)
    edges = case.edges(lay_out)
    tensors, grad = case.tensors(edges), torch.randn(32, 1, 5)
    clean = attend(tensors, edges, grad)
    mine = {"query": edges.target.sample == 1, "key": torch.cat([s.sample for s in edges.sources]) == 1}
    mine |= {"result": mine["query"], "value": mine["key"]}
    bad = {n: t.masked_fill(mine[n][:, None, None], torch.nan) for n, t in tensors.items()}
    found = attend(bad, edges, grad.masked_fill(mine["query"][:, None, None], torch.nan))
    for n in found:
        assert torch.equal(found[n][~mine[n]], clean[n][~mine[n]]), n
    assert found["result"][mine["query"]].isnan().any()


def test_the_same_bits_on_every_run_and_in_any_company(lay_out: Layout) -> None:
    """A sample's result and gradients do not depend on the other samples: not even in the last bit."""
    edges = IntervalEdges.complete(lay_out("packed", (70, 33)), lay_out("packed", (41, 50)))
    tensors, grad = {n: torch.randn(91 if n == "query" else 103, 1, 5) for n in NAMES}, torch.randn(91, 1, 5)
    first, second = (attend(tensors, edges, grad) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    alone = {n: t[41:] if n == "query" else t[70:] for n, t in tensors.items()}
    single = attend(alone, IntervalEdges.complete(lay_out("packed", (33,)), lay_out("packed", (50,))), grad[41:])
    assert torch.equal(single["result"], first["result"][41:])
    assert torch.equal(single["query"], first["query"][41:])
    assert torch.equal(single["key"], first["key"][70:])
    assert torch.equal(single["value"], first["value"][70:])


@pytest.mark.parametrize(("runs", "layout"), [("complete", "packed"), ("any", "scattered")])
@pytest.mark.usefixtures("checked_memory")
def test_no_wrong_address_and_no_race(runs: str, layout: str, lay_out: Layout) -> None:
    case = Case(2, (5, 7), (66, 0, 3), ((5, 2, 7), (66, 0, 1)), runs=runs, layout=layout)
    edges = case.edges(lay_out)
    attend(case.tensors(edges), edges, torch.randn(edges.target.num_rows, 2, 7))


@pytest.mark.usefixtures("checked_memory")
def test_rows_before_the_first_sample_are_a_gap() -> None:
    x, one = torch.randn(150, 1, 4), torch.ones(1, 1, dtype=torch.int64)
    out, _ = torch.ops.mea_graph.interval_attention_triton(x, x, x, 140 * one[0], 3 * one[0], 5 * one, one, None, None, False)
    torch.testing.assert_close(out[140:143], x[5].expand(3, 1, 4))
    assert not out[:140].any()
    assert not out[143:].any()


@pytest.mark.parametrize("runs", ["complete", "any"])
def test_second_derivatives_are_those_of_the_reference(runs: str, lay_out: Layout) -> None:
    case = Case(1, (4, 3), (3, 2), ((4, 0), (1, 3)), runs=runs)
    edges = case.edges(lay_out)
    tensors = {n: t.detach() for n, t in case.tensors(edges).items()}

    def second(name: str) -> tuple[Tensor, ...]:
        leaves = {n: t.to(torch.float64 if name == "reference" else torch.float32).requires_grad_() for n, t in tensors.items()}
        out = interval_attention(**leaves, edges=edges, backend=name)
        grads = torch.autograd.grad(out.square().sum(), list(leaves.values()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), list(leaves.values()))

    for found, expected in zip(second("triton"), second("reference"), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("runs", "layout"), [("complete", "padded"), ("any", "packed")])
def test_the_operators_are_well_defined(runs: str, layout: str, lay_out: Layout) -> None:
    case = Case(1, (4, 5), (2,), ((3,),), runs=runs, layout=layout)
    edges = case.edges(lay_out)
    tensors = [t.detach() for t in case.tensors(edges).values()]
    begin, end = (None, None) if edges.is_complete else (edges.begin, edges.end)
    where = (edges.target.start, edges.target.length, edges.source_start, edges.source_length, begin, end, edges.target.packed)
    torch.library.opcheck(torch.ops.mea_graph.interval_attention_triton.default, (*(t.clone().requires_grad_() for t in tensors), *where))
    out, logsumexp = torch.ops.mea_graph.interval_attention_triton(*tensors, *where)
    arguments = (torch.randn_like(out), out, logsumexp, *tensors, *where)
    torch.library.opcheck(torch.ops.mea_graph.interval_attention_triton_backward.default, arguments)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"query": torch.zeros(3, 2, 64), "key": torch.zeros(3, 2, 64)}, None),
        ({"edges": torch.zeros(2, 1, dtype=torch.int64)}, "the edges are a list"),
        ({"key": torch.zeros(3, 2, 4, dtype=torch.float64)}, "key is float64; expected float32, bfloat16 or float16"),
        ({"query": torch.zeros(3, 2, 65)}, "a head is 65 wide, and the kernels hold at most 64"),
        ({"value": torch.zeros(3, 2, 128)}, "a head is 128 wide"),
        ({"value": torch.zeros(3, 2, 0)}, "heads without channels"),
        ({"query": torch.zeros(1, 1, 1).expand(2**31, 1, 1)}, "2147483648 rows, and the kernels count at most"),
        ({"query": torch.zeros(3, 2, 4, device="meta")}, "the tensors are on meta, not on cuda"),
    ],
)
def test_says_why_it_cannot_run(change: dict[str, Any], reason: str | None) -> None:
    steps = Pointers.from_ptr(torch.tensor([0, 3]))
    arguments = dict.fromkeys(NAMES, torch.zeros(3, 2, 4)) | {"edges": IntervalEdges.complete(steps, steps)}
    said = backend.refuse(**(arguments | change))
    assert (said is None) if reason is None else reason in str(said)


def test_a_gpu_takes_it_before_padding_and_a_cpu_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(_OP.backends)
    assert _OP.backends["triton"].prefers == "cuda"
    assert names.index("triton") < names.index("sdpa")
    x, steps = torch.randn(3, 2, 4), Pointers.from_ptr(torch.tensor([0, 3]))
    edges = IntervalEdges.complete(steps, steps)
    assert explain(interval_attention, x, x, x, edges).chosen == "cpu"
    assert explain(interval_attention, x, x, x, edges, backend="triton").chosen == "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="cannot run on 'triton' here: the tensors are on cpu, not on cuda"):
        interval_attention(x, x, x, edges, backend="triton")
