"""The backends of interval attention against the frozen reference in float64; "cpu" through every door that a model opens."""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, Pointers, explain, interval_attention, record_calls
from mea_graph.ops.interval import cpu, reference

from .layouts import FORMS, Layout, Run, heard, random_runs, windowed

# By case: K, D, D_v, the target's lengths, and each source's.
CASES = {
    "ragged": (2, 5, 5, [3, 70, 1, 20], [[60, 80, 2, 0], [5, 63, 0, 90]]),
    "one length": (2, 5, 5, [40] * 3, [[60] * 3]),
    "one short length": (2, 5, 5, [4] * 3, [[3] * 3, [2] * 3]),
    "wide heads": (1, 24, 24, [5, 90], [[100, 3]]),
    "values wider": (2, 3, 7, [2, 64], [[65, 1], [0, 50]]),
    "values narrower": (2, 9, 1, [2, 4], [[6, 1]]),
    "empty sources": (2, 4, 4, [2, 0, 5], [[0, 0, 0], [3, 4, 0]]),
    "a source without steps": (2, 4, 4, [2, 3], [[0, 0], [3, 4]]),
    "no source at all": (2, 4, 4, [2, 3], [[0, 0]]),
    "no target": (2, 4, 4, [0, 0], [[3, 4]]),
    "no sample": (2, 4, 4, [], [[], []]),
}


class Inputs(NamedTuple):
    """Steps without gaps, those of the sources one source below the other."""

    target: Layout
    sources: list[Layout]
    runs: list[list[Run]] | None
    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        return [self.query, self.key, self.value]

    @property
    def edges(self) -> IntervalEdges:
        if self.runs is None:
            return IntervalEdges.complete([s.pointers for s in self.sources], self.target.pointers)
        return windowed(self.sources, self.target, self.runs)

    @property
    def real(self) -> tuple[Tensor, Tensor]:
        """Which rows are no gaps, of the target and of all sources."""
        return ~self.target.gaps, torch.cat([~s.gaps for s in self.sources])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        return self._replace(query=change(self.query), key=change(self.key), value=change(self.value))

    def rows(self, junk: float = torch.nan) -> list[Tensor]:
        """The tensors as the op takes them."""
        return [place(t, real, junk) for t, real in zip(self.tensors, (self.real[0], self.real[1], self.real[1]), strict=True)]


def place(x: Tensor, real: Tensor, junk: float = torch.nan) -> Tensor:
    return x.new_full((len(real), *x.shape[1:]), junk).index_copy(0, real.nonzero().squeeze(1), x)


def collect(x: Tensor, real: Tensor) -> Tensor:
    assert not x[~real].any(), "something stands in a gap"
    return x[real]


def draw(case: str, form: str = "packed", dtype: torch.dtype = torch.float64, windows: bool = False) -> Inputs:
    heads, width, width_value, lengths, of_sources = CASES[case]
    target, sources = Layout(lengths, form), [Layout(n, form) for n in of_sources]
    rows = sum(s.steps for s in sources)
    tensors = [torch.randn(n, heads, d, dtype=dtype) for n, d in ((target.steps, width), (rows, width), (rows, width_value))]
    return Inputs(target, sources, random_runs(sources, target) if windows else None, *tensors)


def gradient_for(inputs: Inputs) -> Tensor:
    return torch.randn(*inputs.query.shape[:2], inputs.value.size(-1)).to(inputs.value.dtype)


def outcome(inputs: Inputs, backend: str, grad: Tensor, junk: float = torch.nan) -> list[Tensor]:
    """The result and every gradient, in steps without gaps."""
    target, source = inputs.real
    leaves = [t.requires_grad_() for t in inputs.rows(junk)]
    edges = inputs.edges.edge_index() if backend == "listed" else inputs.edges
    out = interval_attention(*leaves, edges, backend=backend)
    grads = torch.autograd.grad(out, leaves, place(grad, target, junk))
    return [collect(t, real) for t, real in zip([out.detach(), *grads], (target, target, source, source), strict=True)]


def truth(inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """One sample after the other, by the reference in float64."""
    query, key, value = wide = [t.detach().double().requires_grad_() for t in inputs.tensors]
    sizes = [s.steps for s in inputs.sources]
    rows = []
    for b, own in enumerate(inputs.target.slices):
        k, v = (torch.cat([x[s.slices[b]] for x, s in zip(t.split(sizes), inputs.sources, strict=True)]) for t in (key, value))
        q, k, v = (t.transpose(0, 1)[None] for t in (query[own], k, v))
        rows.append(reference.interval_attention(q, k, v, heard(inputs.sources, inputs.target, inputs.runs, b)[None])[0].transpose(0, 1))
    if not rows:
        return [torch.zeros_like(grad), *(torch.zeros_like(t) for t in inputs.tensors)]
    out = torch.cat(rows)
    return [out.detach(), *torch.autograd.grad(out, wide, grad.double(), materialize_grads=True)]


WINDOWS = pytest.mark.parametrize("windows", [False, True], ids=["complete", "windows"])


@WINDOWS
@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference", "listed"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_on_each_sample_alone(case: str, form: str, backend: str, windows: bool) -> None:
    inputs = draw(case, form, windows=windows)
    grad = gradient_for(inputs)
    torch.testing.assert_close(outcome(inputs, backend, grad), truth(inputs, grad), rtol=1e-10, atol=1e-12)


@WINDOWS
@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference", "listed"])
@pytest.mark.parametrize("junk", [float("inf"), 1e30])
@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("case", ["ragged", "empty sources"])
def test_gaps_are_never_read(case: str, form: str, junk: float, backend: str, windows: bool) -> None:
    inputs = draw(case, form, windows=windows)
    grad = gradient_for(inputs)
    torch.testing.assert_close(outcome(inputs, backend, grad, junk), outcome(inputs, backend, grad), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", ["ragged", "one length", "values wider"])
@pytest.mark.parametrize("form", ["packed", "padded"])
@pytest.mark.parametrize(
    ("dtype", "value_budget", "gradient_budget"),
    [(torch.float32, 2e-6, 4e-6), (torch.bfloat16, 4e-3, 8e-3), (torch.float16, 5e-4, 1e-3)],
)
def test_rounds_no_more_than_the_dtype_does(case: str, form: str, dtype: torch.dtype, value_budget: float, gradient_budget: float) -> None:
    """Half precision is read and written, but computed in float32: the error is that of rounding the result (and `out`, read again)."""
    inputs = draw(case, form, dtype)
    grad = gradient_for(inputs)
    for i, (found, expected) in enumerate(zip(outcome(inputs, "cpu", grad), truth(inputs, grad), strict=True)):
        assert found.dtype == dtype
        assert (found.double() - expected).norm() <= (gradient_budget if i else value_budget) * expected.norm()


@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference", "listed"])
def test_dtypes_may_differ(backend: str) -> None:
    inputs = draw("ragged", "padded")
    mixed = inputs._replace(query=inputs.query.bfloat16(), key=inputs.key.float(), value=inputs.value.bfloat16())
    grad = gradient_for(mixed)
    found, expected = outcome(mixed, backend, grad), truth(mixed, grad)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16]
    for f, e in zip(found, expected, strict=True):
        assert (f.double() - e).norm() <= 6e-3 * e.norm()


@WINDOWS
@pytest.mark.parametrize("case", ["ragged", "one length"])
def test_autocast_changes_nothing(case: str, windows: bool) -> None:
    inputs = draw(case, dtype=torch.float32, windows=windows)
    grad = gradient_for(inputs)
    expected = outcome(inputs, "cpu", grad)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(inputs, "cpu", grad)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def scattered(t: Tensor) -> Tensor:
    """The same numbers, on strides that no layer makes."""
    return torch.stack([t.transpose(0, 2).contiguous(), torch.zeros_like(t.transpose(0, 2))], -1)[..., 0].transpose(0, 2)


@pytest.mark.parametrize("arrange", [scattered, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)], ids=["scattered", "heads first"])
@pytest.mark.parametrize("case", ["ragged", "one length"])
def test_strides_do_not_matter(case: str, arrange: Callable[[Tensor], Tensor]) -> None:
    inputs = draw(case)
    grad = gradient_for(inputs)
    expected = outcome(inputs, "cpu", grad)
    leaves = [arrange(t).detach().requires_grad_() for t in inputs.tensors]
    assert not any(t.is_contiguous() for t in leaves)
    out = interval_attention(*leaves, inputs.edges, backend="cpu")
    found = [out.detach(), *torch.autograd.grad(out, leaves, arrange(grad))]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_expanded_tensors_are_legal(axis: int) -> None:
    """Strides of zero, as the gradient of a sum has them."""
    inputs = draw("one length")
    flat = inputs.map(lambda t: t.select(axis, 0).unsqueeze(axis).expand_as(t))
    grad = torch.ones(()).double().expand(inputs.query.shape)
    leaves = [t.detach().requires_grad_() for t in flat.tensors]
    assert all(0 in t.stride() for t in leaves)
    out = interval_attention(*leaves, flat.edges, backend="cpu")
    found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    torch.testing.assert_close(found, truth(flat, grad), rtol=1e-10, atol=1e-12)


@WINDOWS
@pytest.mark.parametrize("case", ["ragged", "one length"])
def test_same_bits_twice(case: str, windows: bool) -> None:
    inputs = draw(case, dtype=torch.float32, windows=windows)
    grad = gradient_for(inputs)
    torch.testing.assert_close(outcome(inputs, "cpu", grad), outcome(inputs, "cpu", grad), rtol=0, atol=0)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_gradients_may_be_wanted_of_some_only(needed: int) -> None:
    inputs = draw("ragged")
    expected = outcome(inputs, "cpu", torch.ones_like(inputs.query))
    leaf = inputs.tensors[needed].requires_grad_()
    (found,) = torch.autograd.grad(interval_attention(*inputs.tensors, inputs.edges, backend="cpu").sum(), [leaf])
    torch.testing.assert_close(found, expected[1 + needed], rtol=0, atol=0)


def operator_arguments(inputs: Inputs) -> list[Any]:
    edges = inputs.edges
    runs = (None, None) if edges.is_complete else (edges.begin, edges.end)
    return [edges.target.start, edges.target.length, edges.source_start, edges.source_length, *runs]


@WINDOWS
@pytest.mark.parametrize("case", ["one short length", "empty sources", "values wider"])
def test_operators_keep_the_rules_of_torch_library(case: str, windows: bool) -> None:
    inputs = draw(case, dtype=torch.float32, windows=windows)
    edges, tensors = operator_arguments(inputs), [t.requires_grad_() for t in inputs.tensors]
    torch.library.opcheck(torch.ops.mea_graph.interval_attention_cpu.default, (*tensors, *edges))
    out, sums = (t.detach() for t in torch.ops.mea_graph.interval_attention_cpu(*tensors, *edges))
    backward = (torch.randn_like(out), out, sums, *(t.detach() for t in tensors), *edges)
    torch.library.opcheck(torch.ops.mea_graph.interval_attention_cpu_backward.default, backward)


@WINDOWS
@pytest.mark.parametrize("form", ["packed", "padded"])
def test_compiles_into_one_graph(form: str, windows: bool) -> None:
    torch.compiler.reset()
    inputs = draw("one short length", form, torch.float32, windows)
    rows, edges = inputs.rows(junk=0.0), inputs.edges
    compiled = torch.compile(lambda *a: interval_attention(*a, edges).tanh(), fullgraph=True, backend="aot_eager")
    for arguments in (rows, [t.sin() for t in rows]):
        leaves = [t.detach().requires_grad_() for t in arguments]
        expected, found = interval_attention(*leaves, edges).tanh(), compiled(*leaves)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        pairs = (torch.autograd.grad(out.square().sum(), leaves) for out in (found, expected))
        torch.testing.assert_close(*pairs, rtol=1e-6, atol=1e-7)


def test_exports_for_any_batch_and_lengths() -> None:
    class Module(torch.nn.Module):
        def forward(self, query: Tensor, source: Tensor, query_ptr: Tensor, source_ptr: Tensor) -> Tensor:
            target, of = Pointers.from_ptr(query_ptr, query.size(0)), Pointers.from_ptr(source_ptr, source.size(0))
            return interval_attention(query, source, source, IntervalEdges.complete(of, target))

    def arguments(target: list[int], source: list[int]) -> tuple[Tensor, ...]:
        ptr = [torch.tensor([0, *n]).cumsum(0) for n in (target, source)]
        return torch.randn(sum(target), 2, 5), torch.randn(sum(source), 2, 5), *ptr

    auto = torch.export.Dim.DYNAMIC
    program = torch.export.export(Module(), arguments([3, 1], [4, 7]), dynamic_shapes=({0: auto},) * 4)
    assert any("interval_attention_cpu" in str(node.target) for node in program.graph.nodes)
    for target, source in (([3, 1], [4, 7]), ([5, 0, 2, 9], [1, 3, 30, 12])):
        given = arguments(target, source)
        torch.testing.assert_close(program.module()(*given), Module()(*given), rtol=1e-6, atol=1e-7)


def test_auto_takes_cpu_on_a_cpu_and_listed_for_a_list() -> None:
    inputs = draw("ragged")
    explanation = explain(interval_attention, *inputs.tensors, inputs.edges)
    assert (explanation.chosen, set(explanation.refused)) == ("cpu", {"native", "listed", "triton", "sdpa", "reference"})
    with record_calls() as calls:
        interval_attention(*inputs.tensors, inputs.edges)
        interval_attention(*inputs.tensors, inputs.edges.edge_index())
    assert calls == {("interval_attention", "cpu"): 1, ("interval_attention", "listed"): 1}
    for name in ("cpu", "sdpa"):
        with pytest.raises(ValueError, match=f"cannot run on '{name}' here: the edges are a list"):
            interval_attention(*inputs.tensors, inputs.edges.edge_index(), backend=name)
    with pytest.raises(ValueError, match="cannot run on 'listed' here: the edges are intervals"):
        interval_attention(*inputs.tensors, inputs.edges, backend="listed")


def test_other_devices_take_sdpa_and_refuse_cpu() -> None:
    inputs = draw("one length")
    tensors = [t.to("meta") for t in inputs.tensors]
    edges = IntervalEdges.complete(Pointers.full(3, 60, torch.device("meta")), Pointers.full(3, 40, torch.device("meta")))
    assert explain(interval_attention, *tensors, edges).chosen == "sdpa"
    assert interval_attention(*tensors, edges).shape == inputs.query.shape
    with pytest.raises(ValueError, match=r"cannot run on 'cpu' here: .* the tensors on meta"):
        interval_attention(*tensors, edges, backend="cpu")
    with pytest.raises(ValueError, match=r"backend: expected one of \['auto', 'native', 'cpu', .*\], got 'cuda'"):
        interval_attention(*inputs.tensors, inputs.edges, backend="cuda")


def maps(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> list[tuple[int, int]]:
    """How many target and source rows each map has that `run` computes, a block each."""
    seen, blocks = [], cpu.blocks

    def watched(*args: Any) -> Iterator[cpu.Block]:
        for block in blocks(*args):
            seen.append((block.rows.stop - block.rows.start, sum(z - a for a, z in block.runs)))
            yield block

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "blocks", watched)
        run()
    return seen


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_computed_on_gaps(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    inputs = draw("ragged", form, torch.float32)
    expected = [(3, 65), (70, 143), (1, 2), (20, 90)]
    assert maps(monkeypatch, lambda: outcome(inputs, "cpu", gradient_for(inputs))) == expected * 2  # both passes
    empty = draw("empty sources", form)
    assert maps(monkeypatch, lambda: outcome(empty, "cpu", gradient_for(empty))) == [(2, 3)] * 2


def test_nothing_is_computed_far_from_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of 50 rows with 1 step on each side reads 52 source rows, and those at the ends 51."""
    layout = Layout([150], "packed")
    edges = IntervalEdges.window(layout.pointers, layout.pointers, steps=1)
    x = torch.randn(150, 2, 4)
    assert maps(monkeypatch, lambda: interval_attention(x, x, x, edges)) == [(50, 51), (50, 52), (50, 51)]


@WINDOWS
def test_a_long_map_is_computed_in_blocks(monkeypatch: pytest.MonkeyPatch, windows: bool) -> None:
    inputs = draw("ragged", windows=windows)
    grad = gradient_for(inputs)
    expected = truth(inputs, grad)
    monkeypatch.setattr(cpu, "_BLOCK", 2 * 143 * 31)
    monkeypatch.setattr(cpu, "_ROWS", 24)
    found = maps(monkeypatch, lambda: outcome(inputs, "cpu", grad))
    if windows:
        assert [n for n, _ in found] == [3, 24, 24, 22, 20] * 2  # the sample of one step happens to hear nothing
    else:
        assert found == [(3, 65), (24, 143), (24, 143), (22, 143), (1, 2), (20, 90)] * 2
    torch.testing.assert_close(outcome(inputs, "cpu", grad), expected, rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(cpu, "_BLOCK", 1)  # less than one row
    monkeypatch.setattr(cpu, "_ROWS", 1)
    torch.testing.assert_close(outcome(inputs, "cpu", grad), expected, rtol=1e-10, atol=1e-12)


@WINDOWS
@pytest.mark.parametrize("form", ["packed", "padded"])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_logits_may_be_of_any_size(scale: float, form: str, windows: bool) -> None:
    """Powers of two need a shift where they could overflow, whatever stands in gaps: from thousands on, a map has zeros and ones only."""
    inputs = draw("ragged", form, windows=windows)
    steep = inputs._replace(query=inputs.query * scale)
    grad = gradient_for(inputs)
    assert cpu._steep(cpu.rows_last(steep.query, torch.float64), cpu.rows_last(steep.key, torch.float64)) == (scale > 1)
    expected = truth(steep, grad)
    torch.testing.assert_close(outcome(steep, "cpu", grad), expected, rtol=1e-8, atol=1e-8 * scale)
    narrow = outcome(steep.map(Tensor.float), "cpu", grad.float())
    assert all(t.isfinite().all() for t in narrow)
    assert (narrow[0].double() - expected[0]).norm() <= 1e-6 * scale * narrow[0].norm()


def test_a_steepness_that_is_no_number_counts_as_steep() -> None:
    """Squares that overflow times squares that vanish are NaN, though the products would only overflow a power of two."""
    query, key = torch.full((3, 1, 1), 1e25), torch.tensor([1.2e-23, 0.0, -1e-23]).view(3, 1, 1)
    value = torch.randn(3, 1, 2)
    pointers = Pointers.from_ptr(torch.tensor([0, 3]))
    leaves = [t.requires_grad_() for t in (query, key, value)]
    found = interval_attention(*leaves, IntervalEdges.complete(pointers, pointers), backend="cpu")
    logits = query.double()[:, 0] @ key.double()[:, 0].mT
    torch.testing.assert_close(found[:, 0].double(), logits.softmax(-1) @ value[:, 0].double(), rtol=1e-5, atol=1e-6)


def peak(run: Callable[[], Any]) -> int:
    """Bytes that `run` has allocated and not yet given back, at the worst moment."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@WINDOWS
def test_no_map_is_ever_stored(windows: bool) -> None:
    length, heads, width = 1500, 2, 8
    layout = Layout([length], "padded")
    leaves = [torch.randn(length + 2, heads, width, requires_grad=True) for _ in range(3)]
    edges = IntervalEdges.complete(layout.pointers, layout.pointers)
    if windows:
        edges = IntervalEdges.window(layout.pointers, layout.pointers, causal=True)

    def step(backend: str) -> None:
        torch.autograd.grad(interval_attention(*leaves, edges, backend=backend).sum(), leaves)

    one_map, one_input = 4 * heads * length**2, 4 * heads * length * width
    assert peak(lambda: step("reference")) > one_map
    assert peak(lambda: step("cpu")) < 40 * one_input < one_map / 4
