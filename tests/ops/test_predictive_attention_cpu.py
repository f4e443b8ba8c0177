"""The folded, blocked, recomputing backend against the formula in float64: values and gradients, layouts, tracing, memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mea_graph.nn import PredictiveSelfAttention
from mea_graph.ops import IntervalEdges, Pointers, explain, predictive_attention, record_calls, use_backend
from mea_graph.ops.predictive import cpu, layout, prediction

from .layouts import FORMS, Layout
from .predictive_cases import FLOAT64, SEQUENCES, WINDOWS, Case, assert_true, every_form, make, output_gradient, run, truth


@pytest.mark.usefixtures("way")
@every_form
@pytest.mark.parametrize("heads", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("width", [1, 4, 5, 8])
def test_equals_the_reference(heads: int, width: int, form: str) -> None:
    assert_true(make([13, 6, 1], heads, width, form))


@every_form
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("mu", [0.0, 0.25, 1.0])
def test_windows_equal_the_reference(heads: int, mu: float, form: str) -> None:
    assert_true(make([130, 1, 0, 64, 65, 3], heads, 5, form, width_prior=4, width_value=2, mu=mu, windows=True))


@every_form
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mu", [0.0, 0.25, 1.0])
def test_listed_edges_equal_the_reference(mu: float, bias: bool, form: str) -> None:
    assert_true(make([9, 1, 0, 14], 3, 5, form, width_prior=4, width_value=2, mu=mu, bias=bias, windows=True), "listed")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 127])
def test_equals_the_reference_at_any_length(length: int) -> None:
    assert_true(make([length, length], 4, 5))


@every_form
@pytest.mark.parametrize("lengths", [[130, 1, 0, 64, 65], [9, 9, 9, 9, 9], [0, 0, 0, 0, 1], [17, 16, 15, 14, 13], [0] * 5, []])
def test_equals_the_reference_at_ragged_lengths(lengths: list[int], form: str) -> None:
    assert_true(make(lengths, 2, 5, form))
    assert_true(make(lengths, 2, 5, form), "reference")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("mu", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_reference_with_other_widths(mu: float, bias: bool) -> None:
    assert_true(make([19, 11], 3, 4, width_prior=7, width_value=2, bias=bias, mu=mu))


@pytest.mark.parametrize("entries", [1, 700, 5000])
def test_the_size_of_the_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    """One row a block; some rows, with a shorter last block; some samples of similar length a block."""
    monkeypatch.setattr(layout, "BLOCK", entries)
    lengths = [23, 22, 21, 9, 8, 8, 1]
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
    shapes = [(len(group.starts), group.length) for group in layout.groups(starts, lengths, 2)]
    alone = [(1, length) for length in lengths]
    assert shapes == {1: alone, 700: [(1, 23), (1, 22), (1, 21), (4, 9)], 5000: [(4, 23), (3, 8)]}[entries]
    assert_true(make(lengths, 2, 5))


@pytest.mark.parametrize("rows", [1, 7])
def test_the_size_of_the_tiles_of_a_window_changes_nothing(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(layout, "ROWS", rows)
    assert_true(make([23, 9, 1], 2, 5, windows=True))


@WINDOWS
@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("junk", [torch.inf, 1e30])
@pytest.mark.parametrize("dtype", [FLOAT64, torch.float32, torch.bfloat16])
def test_junk_in_the_gaps_reaches_nothing(junk: float, dtype: torch.dtype, form: str, windows: bool) -> None:
    case = make([12, 11, 3, 0], 2, 5, form, windows=windows)
    found, expected = run(case, dtype=dtype, junk=junk), run(case, dtype=dtype)  # without a word, junk is NaN
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.usefixtures("way")
def test_gradcheck() -> None:
    case = make([6, 4, 0], 2, 3, width_prior=2, width_value=4)
    names = list(case.tensors)
    call = lambda *t: predictive_attention(**dict(zip(names, t, strict=True)), pointers=case.layout.pointers, backend="cpu")  # noqa: E731
    assert torch.autograd.gradcheck(call, tuple(t.requires_grad_() for t in case.tensors.values()), fast_mode=True)


def test_short_samples_store_their_map_and_long_ones_fold() -> None:
    used = lambda length, whole: type(prediction.predict(x[..., :length], x[..., :length], weight, bias, scratch, whole))  # noqa: E731
    x, weight, bias = torch.randn(2, 3, 99), torch.randn(2, 2, 3, 3), torch.randn(2)
    scratch = layout.Scratch([], 2, 3, 2, x)
    assert used(64, True) is prediction.Stored
    assert used(64, False) is used(65, True) is prediction.Folded


@every_form
@WINDOWS
def test_one_sample_at_a_time_gives_the_same(form: str, windows: bool) -> None:
    case = make([20, 19, 7, 2], 3, 5, form, windows=windows)
    whole = run(case)["result"]
    for length, part in zip(case.layout.lengths, case.layout.slices, strict=True):
        tensors = {n: t[part] if n in SEQUENCES else t for n, t in case.tensors.items()}
        alone = Case(Layout([length], "packed"), tensors, case.mu, None if case.runs is None else case.runs[part])
        torch.testing.assert_close(whole[part], run(alone)["result"], rtol=1e-11, atol=1e-13)


# Relative error in the 2-norm, against the formula in float64 on the same rounded inputs.
@WINDOWS
@pytest.mark.parametrize(("dtype", "budget"), [(torch.float32, 2e-6), (torch.bfloat16, 5e-3), (torch.float16, 7e-4)])
@pytest.mark.parametrize("length", [prediction.SHORT, 100])  # the longest that is stored, and one that is folded
def test_error_budget(length: int, dtype: torch.dtype, budget: float, windows: bool) -> None:
    case = make([length, length - 10, 31], 8, 5, "padded", windows=windows)
    case = case._replace(tensors={n: t.to(dtype).double() for n, t in case.tensors.items()})
    expected = truth(case)
    for name, value in run(case, dtype=dtype).items():
        assert value.dtype == dtype, name
        error = (value.double() - expected[name]).norm() / expected[name].norm()
        assert error < budget, f"{name}: {error:.1e}"


def test_mixed_dtypes_and_autocast() -> None:
    """Half-precision activations with float32 weights, as autocast makes them: computed in float32, also inside autocast."""
    case = make([33, 33], 4, 5)
    arguments = {n: t.float() if n in ("weight", "bias") else t.bfloat16() for n, t in case.tensors.items()}
    call = lambda given: predictive_attention(**given, pointers=case.layout.pointers, backend="cpu")  # noqa: E731
    expected = call({n: t.float() for n, t in arguments.items()})
    with torch.autocast("cpu", torch.bfloat16):
        leaves = {n: t.detach().requires_grad_() for n, t in arguments.items()}
        found = call(leaves)
        grads = torch.autograd.grad(found.float().square().sum(), list(leaves.values()))
    assert torch.equal(found, expected.bfloat16())
    assert [g.dtype for g in grads] == [t.dtype for t in arguments.values()]
    wide = call(arguments | {"value": arguments["value"].double()})  # float64 anywhere: computed in float64
    assert wide.dtype == FLOAT64
    assert not torch.equal(wide.float(), expected)


@every_form
def test_views_of_any_strides(form: str) -> None:
    case = make([17, 10, 4], 4, 5, form)
    expected, at = run(case), case.layout
    fused = torch.cat([at.place(case.tensors[n]).flatten(1) for n in SEQUENCES], -1)
    views = {n: t.unflatten(-1, (4, 5)) for n, t in zip(SEQUENCES, fused.chunk(5, -1), strict=True)}
    views["weight"] = case.tensors["weight"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    views["bias"] = case.tensors["bias"].repeat_interleave(2)[::2]
    assert not any(t.is_contiguous() for t in views.values())
    leaves = [t.requires_grad_() for t in views.values()]
    out = predictive_attention(**dict(zip(views, leaves, strict=True)), pointers=at.pointers, backend="cpu")
    assert torch.equal(at.collect(out), expected["result"])
    cotangent = at.place(output_gradient(case)).transpose(0, 2).contiguous().transpose(0, 2)
    for name, grad in zip(views, torch.autograd.grad(out, leaves, cotangent), strict=True):
        torch.testing.assert_close(at.collect(grad) if name in SEQUENCES else grad, expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("way")
def test_the_same_bits_twice() -> None:
    case = make([90, 88, 12], 8, 5)
    first, second = (run(case, dtype=torch.float32) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_the_same_bits_twice_in_windows() -> None:
    case = make([90, 88, 12], 8, 5, windows=True)
    first, second = (run(case, dtype=torch.float32) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(("bias", "form", "windows"), [(True, "padded", False), (False, "packed", True)])
def test_opcheck(bias: bool, form: str, windows: bool) -> None:
    case = make([7, 0, 4], 2, 3, form, width_prior=4, width_value=2, bias=bias, windows=windows)
    at, edges = case.layout, case.edges
    tensors = [at.place(t, 0.0) if n in SEQUENCES else t for n, t in case.tensors.items()] + ([] if bias else [None])
    tensors = [t if t is None else t.float().requires_grad_() for t in tensors]
    runs = (None, None) if edges is None else (edges.begin[:, 0], edges.end[:, 0])
    rest = (at.pointers.start, at.pointers.length, *runs, 0.25)
    torch.library.opcheck(torch.ops.mea_graph.predictive_attention_cpu.default, (*tensors, *rest))
    result, statistics = torch.ops.mea_graph.predictive_attention_cpu(*tensors, *rest)
    detached = [t if t is None else t.detach() for t in (torch.randn_like(result), result, statistics, *tensors)]
    torch.library.opcheck(torch.ops.mea_graph.predictive_attention_cpu_backward.default, (*detached, *rest))


class Attend(torch.nn.Module):
    """All arguments by position, as tracers like them."""

    def __init__(self, steps: int | None = None) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, q: Tensor, k: Tensor, v: Tensor, q_prior: Tensor, k_prior: Tensor, w: Tensor, b: Tensor, ptr: Tensor) -> Tensor:
        pointers = Pointers.from_ptr(ptr, q.size(0))
        edges = None if self.steps is None else IntervalEdges.window(pointers, pointers, steps=self.steps)
        return predictive_attention(q, k, v, pointers, q_prior, k_prior, w, b, edges=edges)


def ptr_of(case: Case) -> Tensor:
    return torch.tensor([0, *case.layout.lengths]).cumsum(0)


@pytest.mark.parametrize("steps", [None, 2])
def test_compile(steps: int | None) -> None:
    torch.compiler.reset()
    compiled = torch.compile(Attend(steps), fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([9, 4], [14, 5, 3]):
        case = make(lengths, 2, 3)
        eager, traced = ({n: t.float().requires_grad_() for n, t in case.tensors.items()} for _ in range(2))
        expected, found = Attend(steps)(*eager.values(), ptr_of(case)), compiled(*traced.values(), ptr_of(case))
        assert torch.equal(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        for name, leaf in traced.items():
            assert torch.equal(leaf.grad, eager[name].grad), name


@pytest.mark.parametrize("steps", [None, 2])
def test_export(steps: int | None) -> None:
    auto = torch.export.Dim.DYNAMIC
    shapes = [{0: auto}] * 5 + [None, None, {0: auto}]
    example, other = make([9, 4], 2, 3), make([14, 5, 0], 2, 3)
    exported = torch.export.export(Attend(steps), (*example.tensors.values(), ptr_of(example)), dynamic_shapes=shapes)
    assert any("predictive_attention_cpu" in str(node.target) for node in exported.graph.nodes)
    given = (*other.tensors.values(), ptr_of(other))
    assert torch.equal(exported.module()(*given), Attend(steps)(*given))


class LargestTensor(TorchDispatchMode):
    """Notes how many bytes the largest tensor has that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, list | tuple) else [out]:
            if isinstance(t, Tensor):
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(("backend", "windows"), [("cpu", False), ("cpu", True), ("reference", False)])
def test_no_map_is_ever_stored(backend: str, windows: bool) -> None:
    heads, length = 4, 2000
    at = Layout([length], "packed")
    tensors = [torch.randn(length, heads, 5) for _ in SEQUENCES] + [torch.randn(heads, heads, 3, 3), torch.randn(heads)]
    runs = None if not windows else IntervalEdges.window(at.pointers, at.pointers, causal=True)
    rest = (at.pointers.start, at.pointers.length, *((None, None) if runs is None else (runs.begin[:, 0], runs.end[:, 0])), 0.25)
    one_map = 4 * heads * length**2
    with LargestTensor() as largest:
        if backend == "reference":
            predictive_attention(*tensors[:3], at.pointers, *tensors[3:], backend="reference")
        else:  # below autograd, where the operators' insides can be seen
            result, statistics = cpu._forward(*tensors, *rest)
            cpu._backward(torch.ones_like(result), result, statistics, *tensors, *rest)
    if backend == "reference":
        assert largest.bytes >= one_map  # so the measurement sees maps where there are any
    else:
        assert largest.bytes <= one_map / 4


def test_tiles_of_a_window_hold_no_more_than_rows() -> None:
    """Which step hears which is made tile by tile: of all tiles together it would be a map."""
    at = Layout([2000], "packed")
    edges = IntervalEdges.window(at.pointers, at.pointers, causal=True)
    (group,) = layout.one_by_one([0], [2000])
    found = layout.tiles(group, 4, edges.begin[:, 0], edges.end[:, 0])
    assert len(found) == 32
    assert sum(t.numel() for tile in found for t in tile.bounds) == 2 * 2000
    assert found[-1].hidden().shape == (found[-1].rows.stop - found[-1].rows.start, 2000)


def test_a_window_is_computed_in_what_it_hears() -> None:
    """Of 150 steps in tiles of 50, with 1 step on each side, a tile has 52 columns, and those at the ends 51."""
    at = Layout([4, 150, 2], "loose")
    edges = IntervalEdges.window(at.pointers, at.pointers, steps=1)
    _, group, _ = layout.one_by_one(at.pointers.start.tolist(), at.lengths)
    found = layout.tiles(group, 2, edges.begin[:, 0], edges.end[:, 0])
    assert [(t.rows, t.columns) for t in found] == [
        (slice(0, 50), slice(0, 51)),
        (slice(50, 100), slice(49, 101)),
        (slice(100, 150), slice(99, 150)),
    ]


def test_a_group_computes_little_in_vain() -> None:
    lengths = [3, 500, 60, 64, 3, 0, 58, 20]
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
    found = layout.groups(starts, lengths, 8)
    assert [(g.starts, g.length) for g in found] == [
        ([starts[1]], 500),
        ([starts[b] for b in (3, 2, 6)], 64),
        ([starts[b] for b in (7, 0, 4)], 20),
    ]
    for group in found:
        assert sum(8 * (group.length**2 - n**2) for n in group.lengths) <= layout._WASTE


@WINDOWS
def test_it_is_what_runs_by_default(windows: bool) -> None:
    case = make([4, 2], 2, 3, windows=windows)
    given: Any = {**case.tensors, "pointers": case.layout.pointers, "edges": case.edges}
    explanation = explain(predictive_attention, **given)
    assert explanation.chosen == "cpu"
    assert set(explanation.refused) == {"plain", "native", "listed", "triton", "reference"}
    with record_calls() as calls:
        predictive_attention(**given)
    assert calls == {("predictive_attention", "cpu"): 1}


def test_listed_edges_run_listed_and_nothing_else() -> None:
    case = make([4, 2], 2, 3, windows=True)
    given: Any = {**case.tensors, "pointers": case.layout.pointers, "edges": case.edges.edge_index()}
    assert explain(predictive_attention, **given).chosen == "listed"
    with pytest.raises(ValueError, match="'cpu' here: the edges are a list"):
        predictive_attention(**given, backend="cpu")
    windows = given | {"edges": case.edges}
    assert torch.equal(predictive_attention(**windows, backend="listed"), predictive_attention(**given))
    assert explain(predictive_attention, **windows).refused["listed"] == "could run, but 'cpu' is preferred"
    with pytest.raises(ValueError, match="'listed' here: the edges are intervals"):
        predictive_attention(**(given | {"edges": None}), backend="listed")


def test_without_a_prior_plain_attention_runs() -> None:
    q, pointers = torch.randn(3, 2, 4), Layout([3], "packed").pointers
    assert explain(predictive_attention, q, q, q, pointers).chosen == "plain"
    with record_calls() as calls:
        predictive_attention(q, q, q, pointers)
    assert calls == {("predictive_attention", "plain"): 1, ("interval_attention", "cpu"): 1}
    with pytest.raises(ValueError, match="'listed' here: the edges are intervals"):
        predictive_attention(q, q, q, pointers, backend="listed")


def test_a_forced_backend_serves_attention_without_a_prior() -> None:
    """The first layer has none: a block that forced "cpu" raised there, though `interval_attention` runs on it."""
    layer, x = PredictiveSelfAttention(8, 2).eval(), torch.randn(5, 8)
    expected = layer(x)[0]
    for name in ("cpu", "triton", "reference"):
        with use_backend(name), record_calls() as calls:
            torch.testing.assert_close(layer(x)[0], expected)
        assert calls["predictive_attention", name] == 1
    q, pointers = torch.randn(3, 2, 4), Layout([3], "packed").pointers
    listed = torch.tensor([[0, 1, 2], [0, 0, 2]])
    with use_backend("cpu"), pytest.raises(ValueError, match="predictive_attention cannot run on 'cpu' here: the edges are a list"):
        predictive_attention(q, q, q, pointers, edges=listed)
    with use_backend("listed"):
        found = predictive_attention(q, q, q, pointers, edges=listed)
    torch.testing.assert_close(found, predictive_attention(q, q, q, pointers, edges=listed, backend="reference"))


def test_a_backend_that_cannot_run_is_named() -> None:
    case = make([4], 2, 3)
    given: Any = {**case.tensors, "pointers": case.layout.pointers}
    with pytest.raises(
        ValueError, match=r"expected one of \['auto', 'plain', 'triton', 'native', 'cpu', 'listed', 'reference'\], got 'cuda'"
    ):
        predictive_attention(**given, backend="cuda")
    with pytest.raises(ValueError, match="'plain' here: a prior is given"):
        predictive_attention(**given, backend="plain")
