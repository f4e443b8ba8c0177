"""Segment reductions: every path, by index and by pointers, against plain loops in float64, values and gradients."""

import math
import sys
import types
import warnings

import pytest
import torch
from torch import Tensor

from mea_graph.ops import segment, segment_max, segment_mean, segment_softmax, segment_sum
from mea_graph.ops.segment import has_torch_scatter

REDUCTIONS = [segment_sum, segment_mean, segment_max, segment_softmax]
SHAPES = [(), (3,), (2, 3), (0,)]
# Index, number of segments: unsorted with a gap, one segment, no row at all, no segment at all.
INDICES = [([4, 0, 1, 0, 4, 4, 1], 6), ([0, 0, 0], 1), ([], 3), ([], 0)]


POINTERS = [[0, 2, 2, 5, 7, 7], [0, 3], [0, 0, 0, 0], [0]]


@pytest.fixture(params=["torch", "torch_scatter", "traced"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once on each path."""
    if request.param == "torch_scatter":
        request.getfixturevalue("torch_scatter_installed")
    monkeypatch.setattr(segment, "_path", lambda src: request.param)
    return request.param


def loop(reduction, src: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """The definition, one segment at a time."""
    if reduction is segment_softmax:
        out = torch.zeros_like(src)
        for s in range(num_segments):
            rows = index == s
            if rows.any():
                out = out.index_put((rows,), src[rows].softmax(0))
        return out
    groups = [src[index == s] for s in range(num_segments)]
    reduce = {segment_sum: Tensor.sum, segment_mean: Tensor.mean, segment_max: Tensor.amax}[reduction]
    return torch.stack([reduce(g, dim=0) if len(g) else src.new_zeros(src.shape[1:]) for g in groups]) if groups else src[:0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("index", "num_segments"), INDICES)
def test_equals_the_loop_in_value_and_gradient(path, reduction, shape, index, num_segments):
    index = torch.tensor(index, dtype=torch.int64)
    src = torch.randn(len(index), *shape, dtype=torch.float64, requires_grad=True)
    out, expected = reduction(src, index, num_segments), loop(reduction, src, index, num_segments)
    torch.testing.assert_close(out, expected)
    if len(index):
        cotangent = torch.randn_like(out)
        torch.testing.assert_close(torch.autograd.grad(out, src, cotangent), torch.autograd.grad(expected, src, cotangent))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pointers", POINTERS)
def test_pointers_equal_the_loop_in_value_and_gradient(path, reduction, shape, pointers):
    ptr = torch.tensor(pointers)
    src = torch.randn(pointers[-1], *shape, dtype=torch.float64, requires_grad=True)
    index = torch.repeat_interleave(torch.arange(len(ptr) - 1), ptr.diff())
    out, expected = reduction(src, ptr=ptr), loop(reduction, src, index, len(ptr) - 1)
    torch.testing.assert_close(out, expected)
    if len(index):
        cotangent = torch.randn_like(out)
        torch.testing.assert_close(torch.autograd.grad(out, src, cotangent), torch.autograd.grad(expected, src, cotangent))


BOTH = pytest.mark.parametrize(
    "given", [{"index": torch.tensor([2, 0, 2, 0, 2]), "num_segments": 4}, {"ptr": torch.tensor([0, 2, 2, 5])}], ids=["index", "pointers"]
)


@BOTH
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(path, reduction, given):
    src = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: reduction(x, **given), src)
    if reduction is not segment_max or path != "traced":  # the gradient of torch's own amax has none
        assert torch.autograd.gradgradcheck(lambda x: reduction(x, **given), src)


@BOTH
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_transforms_of_torch_func(reduction, given):
    src, tangent = torch.randn(2, 5, 2, dtype=torch.float64).unbind()

    def total(x: Tensor) -> Tensor:
        return reduction(x, **given).square().sum()

    expected = torch.autograd.functional.jacobian(total, src)
    torch.testing.assert_close(torch.func.grad(total)(src), expected)
    torch.testing.assert_close(torch.func.vmap(total)(torch.stack([src, tangent])), torch.stack([total(src), total(tangent)]))
    torch.testing.assert_close(torch.func.jvp(total, (src,), (tangent,))[1], (expected * tangent).sum())
    if reduction is not segment_max:
        torch.testing.assert_close(torch.func.hessian(total)(src), torch.autograd.functional.hessian(total, src))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_bits_repeat(path, reduction):
    src, ptr = torch.randn(5000, 3), torch.tensor([0, 1700, 5000])
    assert torch.equal(reduction(src, ptr=ptr), reduction(src, ptr=ptr))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_dtype_is_kept_and_is_as_exact_as_it_can_be(path, reduction, dtype):
    index = torch.randint(4, (500,))
    src = torch.rand(500, 3, dtype=torch.float64).to(dtype)  # positive: a sum in bfloat16 would stall
    out = reduction(src, index, 5)
    assert out.dtype == dtype
    expected = loop(reduction, src.double(), index, 5)
    # Low precision is summed in float32 and rounded once; the others round at each of about a hundred rows.
    roundings = 1 if dtype in (torch.bfloat16, torch.float16) else 10
    torch.testing.assert_close(out.double(), expected, rtol=roundings * torch.finfo(dtype).eps, atol=0)


def test_rows_that_tie_share_the_gradient(path):
    src = torch.tensor([3.0, 3.0, 1.0, 2.0], requires_grad=True)
    segment_max(src, torch.tensor([1, 1, 1, 0]), 3).sum().backward()
    assert src.grad.tolist() == [0.5, 0.5, 0.0, 1.0]


@pytest.mark.parametrize("pointers", [False, True])
def test_the_maximum_of_values_that_are_not_finite(path, pointers):
    lowest = torch.finfo(torch.float32).min
    src = torch.tensor([-math.inf, -math.inf, lowest, 1.0, math.nan, math.inf, 0.0], requires_grad=True)
    given = {"ptr": torch.tensor([0, 2, 3, 5, 7, 7])} if pointers else {"index": torch.tensor([0, 0, 1, 2, 2, 3, 3]), "num_segments": 5}
    out = segment_max(src, **given)
    torch.testing.assert_close(out, torch.tensor([-math.inf, lowest, math.nan, math.inf, 0.0]), equal_nan=True, rtol=0, atol=0)
    out.sum().backward()
    torch.testing.assert_close(src.grad, torch.tensor([0.5, 0.5, 1.0, math.nan, math.nan, 1.0, 0.0]), equal_nan=True)


def test_softmax_does_not_overflow(path):
    weight = segment_softmax(torch.tensor([1e4, 1e4, -1e4, -2e4]), torch.tensor([0, 0, 1, 1]), 2)
    assert weight.tolist() == [0.5, 0.5, 1.0, 0.0]


def test_softmax_over_masked_rows_only_is_zero_with_zero_gradient(path):
    src = torch.tensor([-math.inf, -math.inf, 0.5, -math.inf], requires_grad=True)
    weight = segment_softmax(src, torch.tensor([0, 0, 1, 1]), 2)
    assert weight.tolist() == [0.0, 0.0, 1.0, 0.0]
    (weight * torch.tensor([1e30, -1e30, 1.0, 1.0])).sum().backward()
    assert src.grad.tolist() == [0.0] * 4


def test_a_nan_logit_is_not_hidden_and_stays_in_its_segment(path):
    weight = segment_softmax(torch.tensor([math.nan, 1.0, 2.0]), torch.tensor([0, 0, 1]), 2)
    assert weight.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_order_of_rows_does_not_matter(path, reduction):
    index, src = torch.randint(5, (40,)), torch.randn(40, 2, dtype=torch.float64)
    order = torch.randperm(40)
    out, shuffled = reduction(src, index, 5), reduction(src[order], index[order], 5)
    torch.testing.assert_close(shuffled, out[order] if reduction is segment_softmax else out)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_memory_order_does_not_matter(path, reduction):
    index, src = torch.randint(3, (8,)).repeat_interleave(2)[::2], torch.randn(4, 8, dtype=torch.float64).T
    ptr = torch.tensor([0, 3, 8]).repeat_interleave(2)[::2]
    torch.testing.assert_close(reduction(src, ptr=ptr), reduction(src.contiguous(), ptr=ptr.contiguous()))
    torch.testing.assert_close(reduction(src, index, 3), reduction(src.contiguous(), index.contiguous(), 3))


@BOTH
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiles_into_one_graph(reduction, given):
    src = torch.randn(5, 2, requires_grad=True)
    compiled = torch.compile(reduction, fullgraph=True, backend="aot_eager")
    out, expected = compiled(src, **given), reduction(src, **given)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), src), torch.autograd.grad(expected.square().sum(), src))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_meta_tensors_give_the_shape(reduction):
    src, index = torch.empty(4, 2, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    rows = 4 if reduction is segment_softmax else 3
    assert reduction(src, index, 3).shape == (rows, 2)
    assert reduction(src, ptr=index).shape == (rows, 2)


@pytest.mark.usefixtures("torch_scatter_installed")
def test_torch_scatter_is_what_runs_where_it_is_installed(monkeypatch):
    import torch_scatter

    calls, original = [], torch_scatter.segment_csr
    monkeypatch.setattr(torch_scatter, "segment_csr", lambda *a, **k: calls.append(k["reduce"]) or original(*a, **k))
    segment_softmax(torch.randn(3), ptr=torch.tensor([0, 1, 3]))
    assert calls == ["sum"]


def test_torch_does_the_work_where_torch_scatter_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    has_torch_scatter.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert segment_sum(torch.ones(3), ptr=torch.tensor([0, 2, 3])).tolist() == [2.0, 1.0]
            assert not has_torch_scatter()
    finally:
        has_torch_scatter.cache_clear()


def test_a_torch_scatter_that_cannot_be_loaded_is_named_in_a_warning(monkeypatch):
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torch_scatter":
                raise OSError("undefined symbol: built for another torch")

    monkeypatch.delitem(sys.modules, "torch_scatter", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    has_torch_scatter.cache_clear()
    try:
        with pytest.warns(UserWarning, match="cannot be loaded.*undefined symbol"):
            assert not has_torch_scatter()
    finally:
        has_torch_scatter.cache_clear()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_bad_input_is_named(reduction):
    src, index = torch.randn(3, 2), torch.tensor([0, 1, 0])
    with pytest.raises(TypeError, match=r"src: expected floating point values, got torch.int64"):
        reduction(src.long(), index, 2)
    with pytest.raises(TypeError, match=r"index: expected torch.int64, got torch.int32"):
        reduction(src, index.int(), 2)
    with pytest.raises(ValueError, match=r"index: expected one entry for each row of src, got shapes \(2,\) and \(3, 2\)"):
        reduction(src, index[:2], 2)
    with pytest.raises(ValueError, match="num_segments: expected at least 0, got -1"):
        reduction(src, index, -1)
    ptr = torch.tensor([0, 2, 3])
    by_index = {"index": index, "num_segments": 2}
    for wrong in ({}, {"index": index}, {"num_segments": 2}, {"ptr": ptr, **by_index}, {"ptr": ptr, "num_segments": 2}):
        with pytest.raises(ValueError, match="index, num_segments, ptr: expected the first two, or the last alone"):
            reduction(src, **wrong)
    with pytest.raises(TypeError, match=r"ptr: expected torch.int64, got torch.int32"):
        reduction(src, ptr=ptr.int())
    with pytest.raises(ValueError, match=r"ptr: expected \(S \+ 1,\), got \(0,\)"):
        reduction(src, ptr=ptr[:0])
    with pytest.raises(ValueError, match=r"ptr: expected numbers that never fall, got \[0, 900, 3\]"):  # its sum was that of other memory
        reduction(src, ptr=torch.tensor([0, 900, 3]))
    with pytest.raises(ValueError, match=r"ptr: expected 0 first and 3, the number of rows, last, got \(0, 2\)"):
        reduction(src, ptr=ptr[:2])


def test_the_module_lists_its_functions():
    public = {name for name, value in vars(segment).items() if isinstance(value, types.FunctionType) and not name.startswith("_")}
    assert (public - {"is_traced", "is_transformed"}) | {"has_torch_scatter"} == set(segment.__all__)
