"""The folded, blocked, recomputing backend against the formula in float64: values and gradients, layouts, tracing, memory."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mea_graph.ops import explain, predictive_attention
from mea_graph.ops.predictive_attention import cpu, layout, prediction

FLOAT64 = torch.float64


def make(
    batch: int, heads: int, length: int, width: int, width_prior: int | None = None, width_value: int | None = None, bias: bool = True
) -> dict[str, Any]:
    """Arguments of the op in float64, logits of the size that layers have."""
    draw = lambda d: torch.randn(batch, heads, length, d or width, dtype=FLOAT64)  # noqa: E731
    return {
        "query": draw(width),
        "key": draw(width),
        "value": draw(width_value),
        "prior_query": draw(width_prior),
        "prior_key": draw(width_prior),
        "weight": 0.3 * torch.randn(heads, heads, 3, 3, dtype=FLOAT64),
        "bias": torch.randn(heads, dtype=FLOAT64) if bias else None,
    }


def prefix(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def output_gradient(out: Tensor) -> Tensor:
    """The same at every call, and exact in every dtype."""
    drawn = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
    return drawn.bfloat16().half().double()


def run(backend: str, arguments: dict[str, Any], dtype: torch.dtype = FLOAT64, **rest: Any) -> dict[str, Tensor]:
    """The result and the gradient of every tensor."""
    leaves = {n: t.detach().to(dtype).requires_grad_() for n, t in arguments.items() if t is not None}
    out = predictive_attention(**leaves, **rest, backend=backend)
    grads = torch.autograd.grad(out, list(leaves.values()), output_gradient(out).to(dtype))
    return {"result": out.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_equal_to_reference(arguments: dict[str, Any], **rest: Any) -> None:
    found, expected = run("cpu", arguments, **rest), run("reference", arguments, **rest)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture(params=["folded", "stored"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to the predicted logits, whatever the length; the test fails unless it went that way alone."""
    monkeypatch.setattr(prediction, "SHORT", {"folded": 0, "stored": 10**6}[request.param])
    used = []
    for name in ("Folded", "Stored"):
        kind = getattr(prediction, name)
        monkeypatch.setattr(prediction, name, lambda *args, kind=kind: used.append(kind) or kind(*args))
    yield request.param
    assert {kind.__name__.lower() for kind in used} == {request.param}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("heads", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("width", [1, 4, 5, 8])
def test_equals_the_reference(heads: int, width: int) -> None:
    assert_equal_to_reference(make(3, heads, 13, width), mask=prefix([13, 6, 1], 13))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 127])
def test_equals_the_reference_at_any_length(length: int) -> None:
    assert_equal_to_reference(make(2, 4, length, 5))


@pytest.mark.parametrize("lengths", [[130, 1, 0, 64, 65], [9, 9, 9, 9, 9], [0, 0, 0, 0, 1], [17, 16, 15, 14, 13], [0] * 5])
def test_equals_the_reference_at_ragged_lengths(lengths: list[int]) -> None:
    assert_equal_to_reference(make(5, 2, 131, 5), mask=prefix(lengths, 131))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("mu", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_reference_with_other_widths(mu: float, bias: bool) -> None:
    assert_equal_to_reference(make(2, 3, 19, 4, width_prior=7, width_value=2, bias=bias), mu=mu, mask=prefix([19, 11], 19))


@pytest.mark.usefixtures("way")
def test_a_mask_may_have_holes() -> None:
    mask = torch.rand(6, 40) < 0.6
    mask[0], mask[1, :30], mask[2, -1], mask[3, 0] = False, False, True, False
    assert_equal_to_reference(make(6, 3, 40, 5), mask=mask)


@pytest.mark.parametrize("entries", [1, 700, 5000])
def test_the_size_of_the_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    """One row a block; some rows, with a shorter last block; some samples of similar length a block."""
    monkeypatch.setattr(layout, "BLOCK", entries)
    mask = prefix([23, 22, 21, 9, 8, 8, 1], 23)
    shapes = [(len(group.samples), group.length) for group in layout.groups(mask, 7, 23, 2)]
    alone = [(1, length) for length in (23, 22, 21, 9, 8, 8, 1)]
    assert shapes == {1: alone, 700: [(1, 23), (1, 22), (1, 21), (4, 9)], 5000: [(4, 23), (3, 8)]}[entries]
    assert_equal_to_reference(make(7, 2, 23, 5), mask=mask)


@pytest.mark.usefixtures("way")
def test_large_logits_neither_overflow_nor_vanish() -> None:
    arguments = make(2, 3, 21, 5)
    arguments["query"] *= 100
    arguments["prior_query"] *= 30
    assert_equal_to_reference(arguments, mask=prefix([21, 13], 21))
    found = run("cpu", arguments, torch.float32, mask=prefix([21, 13], 21))
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.usefixtures("way")
def test_logits_far_below_zero_at_every_real_key() -> None:
    """A hidden key has the logit zero before it is masked, which must not drown the real ones."""
    arguments = make(1, 2, 9, 3)
    arguments["query"], arguments["key"] = arguments["query"].abs() + 20, -arguments["key"].abs() - 20
    mask = prefix([6], 9)
    mask[0, 2] = False
    assert_equal_to_reference(arguments, mask=mask)
    assert run("cpu", arguments, torch.float32, mask=mask)["result"].isfinite().all()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("dtype", [FLOAT64, torch.float32, torch.bfloat16])
def test_junk_in_the_padding_reaches_nothing(junk: float, dtype: torch.dtype) -> None:
    arguments = make(4, 2, 12, 5)
    mask = prefix([12, 11, 3, 0], 12)
    mask[0, 4] = False
    dirty = {n: t.masked_fill(~mask[:, None, :, None], junk) if t.dim() == 4 and n != "weight" else t for n, t in arguments.items()}
    found, expected = run("cpu", dirty, dtype, mask=mask), run("cpu", arguments, dtype, mask=mask)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
        if value.dim() == 4 and name != "weight":
            assert not value.masked_select(~mask[:, None, :, None]).any(), name


@pytest.mark.usefixtures("way")
def test_gradcheck() -> None:
    arguments = make(3, 2, 6, 3, width_prior=2, width_value=4)
    names, mask = list(arguments), prefix([6, 4, 0], 6)
    leaves = tuple(t.requires_grad_() for t in arguments.values())
    assert torch.autograd.gradcheck(
        lambda *tensors: predictive_attention(**dict(zip(names, tensors, strict=True)), mask=mask, backend="cpu"), leaves, fast_mode=True
    )


def test_short_samples_store_their_map_and_long_ones_fold() -> None:
    used = lambda length, whole: type(prediction.predict(x[..., :length], x[..., :length], weight, bias, scratch, whole))  # noqa: E731
    x, weight, bias = torch.randn(2, 3, 99), torch.randn(2, 2, 3, 3), torch.randn(2)
    scratch = layout.Scratch([], 2, 3, 2, x)
    assert used(64, True) is prediction.Stored
    assert used(64, False) is used(65, True) is prediction.Folded


def test_one_sample_at_a_time_gives_the_same() -> None:
    arguments, lengths = make(4, 3, 20, 5), [20, 19, 7, 2]
    whole = run("cpu", arguments, mask=prefix(lengths, 20))["result"]
    for b, length in enumerate(lengths):
        alone = {n: t[b : b + 1, :, :length] if t.dim() == 4 and n != "weight" else t for n, t in arguments.items()}
        torch.testing.assert_close(whole[b : b + 1, :, :length], run("cpu", alone)["result"], rtol=1e-11, atol=1e-13)


# Relative error in the 2-norm, against the formula in float64 on the same rounded inputs.
@pytest.mark.parametrize(("dtype", "budget"), [(torch.float32, 2e-6), (torch.bfloat16, 5e-3), (torch.float16, 7e-4)])
@pytest.mark.parametrize("length", [prediction.SHORT, 100])  # the longest that is stored, and one that is folded
def test_error_budget(length: int, dtype: torch.dtype, budget: float) -> None:
    arguments = {n: t.to(dtype).double() for n, t in make(3, 8, length, 5).items()}
    mask = prefix([length, length - 10, 31], length)
    found, expected = run("cpu", arguments, dtype, mask=mask), run("reference", arguments, mask=mask)
    for name, value in found.items():
        assert value.dtype == dtype, name
        error = (value.double() - expected[name]).norm() / expected[name].norm()
        assert error < budget, f"{name}: {error:.1e}"


def test_mixed_dtypes_and_autocast() -> None:
    """Half-precision activations with float32 weights, as autocast makes them: computed in float32, also inside autocast."""
    arguments = {n: t.float() if n in ("weight", "bias") else t.bfloat16() for n, t in make(2, 4, 33, 5).items()}
    expected = predictive_attention(**{n: t.float() for n, t in arguments.items()}, backend="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        leaves = {n: t.detach().requires_grad_() for n, t in arguments.items()}
        found = predictive_attention(**leaves, backend="cpu")
        grads = torch.autograd.grad(found.float().square().sum(), list(leaves.values()))
    assert torch.equal(found, expected.bfloat16())
    assert [g.dtype for g in grads] == [t.dtype for t in arguments.values()]
    assert (
        torch.equal(predictive_attention(**(arguments | {"value": arguments["value"].double()}), backend="cpu").float(), expected) is False
    )


def test_views_of_any_strides() -> None:
    arguments = make(3, 4, 17, 5)
    mask = prefix([17, 10, 4], 17)
    expected = run("cpu", arguments, mask=mask)
    fused = torch.cat([arguments[n].transpose(1, 2).flatten(2) for n in ("query", "key", "value", "prior_query", "prior_key")], -1)
    parts = [t.unflatten(-1, (4, 5)).transpose(1, 2) for t in fused.chunk(5, -1)]
    views = dict(zip(("query", "key", "value", "prior_query", "prior_key"), parts, strict=True))
    views["weight"] = arguments["weight"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    views["bias"] = arguments["bias"].repeat_interleave(2)[::2]
    assert not any(t.is_contiguous() for t in views.values())
    out = predictive_attention(**views, mask=mask.repeat_interleave(2, 0)[::2], backend="cpu")
    assert torch.equal(out, expected["result"])
    leaves = [t.requires_grad_() for t in views.values()]
    out = predictive_attention(**dict(zip(views, leaves, strict=True)), mask=mask, backend="cpu")
    cotangent = output_gradient(out).mT.contiguous().mT
    for name, grad in zip(views, torch.autograd.grad(out, leaves, cotangent), strict=True):
        torch.testing.assert_close(grad, expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("way")
def test_the_same_bits_twice() -> None:
    arguments, mask = make(3, 8, 90, 5), prefix([90, 88, 12], 90)
    first, second = (run("cpu", arguments, torch.float32, mask=mask) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", [prefix([7, 0], 7), None])
def test_opcheck(bias: bool, mask: Tensor | None) -> None:
    arguments = make(2, 2, 7, 3, width_prior=4, width_value=2, bias=bias)
    tensors = [t if t is None else t.float().requires_grad_() for t in arguments.values()]
    torch.library.opcheck(torch.ops.mea_graph.predictive_attention_cpu.default, (*tensors, mask, 0.25))
    result, statistics = torch.ops.mea_graph.predictive_attention_cpu(*tensors, mask, 0.25)
    detached = [t if t is None else t.detach() for t in (torch.randn_like(result), result, statistics, *tensors)]
    torch.library.opcheck(torch.ops.mea_graph.predictive_attention_cpu_backward.default, (*detached, mask, 0.25))


class Attend(torch.nn.Module):
    """All arguments by position, as tracers like them."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, q_prior: Tensor, k_prior: Tensor, w: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        return predictive_attention(q, k, v, q_prior, k_prior, w, b, mask=mask)


def test_compile() -> None:
    compiled = torch.compile(Attend(), fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, length in ((2, 9), (3, 14)):
        arguments, mask = make(batch, 2, length, 3), prefix([length, 4, 0][:batch], length)
        eager, traced = ({n: t.float().requires_grad_() for n, t in arguments.items()} for _ in range(2))
        expected, found = Attend()(*eager.values(), mask), compiled(*traced.values(), mask)
        assert torch.equal(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        for name, leaf in traced.items():
            assert torch.equal(leaf.grad, eager[name].grad), name


def test_export() -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = [{0: batch, 2: length}] * 5 + [None, None, {0: batch, 1: length}]
    example = (*make(2, 2, 9, 3).values(), prefix([9, 4], 9))
    exported = torch.export.export(Attend(), example, dynamic_shapes=shapes).module()
    inputs = (*make(3, 2, 14, 3).values(), prefix([14, 5, 0], 14))
    assert torch.equal(exported(*inputs), Attend()(*inputs))


def test_second_derivatives_are_refused() -> None:
    arguments = {n: t.requires_grad_() for n, t in make(1, 2, 4, 3).items()}
    out = predictive_attention(**arguments, backend="cpu")
    (grad,) = torch.autograd.grad(out.sum(), arguments["query"], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, list | tuple) else [out]:
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return out


@pytest.mark.parametrize(("backend", "share"), [("cpu", 1 / 4), ("reference", None)])
def test_no_map_is_ever_stored(backend: str, share: float | None) -> None:
    heads, length = 4, 2000
    tensors = [t.float() for t in make(1, heads, length, 5).values()]
    out = predictive_attention(*tensors, backend="cpu")
    with LargestTensor() as largest:
        if backend == "reference":
            predictive_attention(*tensors, backend="reference")
        else:  # below autograd, where the operators' insides can be seen
            result, statistics = cpu._forward(*tensors, None, 0.25)
            cpu._backward(torch.ones_like(out), result, statistics, *tensors, None, 0.25)
    if share is None:
        assert largest.elements >= heads * length**2  # so the measurement sees maps where there are any
    else:
        assert largest.elements <= share * heads * length**2


def test_a_group_computes_little_in_vain() -> None:
    lengths = [3, 500, 60, 64, 3, 0, 58, 20]
    found = layout.groups(prefix(lengths, 500), 8, 500, 8)
    assert [(g.samples, g.length) for g in found] == [([1], 500), ([3, 2, 6], 64), ([7, 0, 4], 20)]
    for group in found:
        assert sum(8 * (group.length**2 - lengths[b] ** 2) for b in group.samples) <= layout._WASTE


@pytest.mark.parametrize(("lengths", "chosen"), [([4, 2], "cpu"), (None, "cpu")])
def test_it_is_what_runs_by_default(monkeypatch: pytest.MonkeyPatch, lengths: list[int] | None, chosen: str) -> None:
    arguments = make(2, 2, 4, 3) | {"mask": None if lengths is None else prefix(lengths, 4)}
    explanation = explain(predictive_attention, **arguments)
    assert explanation.chosen == chosen
    assert set(explanation.refused) == {"plain", "triton", "reference"}
    calls = []
    monkeypatch.setattr(cpu, "compute_dtype", lambda tensors: calls.append(1) or FLOAT64)
    arguments["query"].requires_grad_()  # what is only evaluated, and short, takes the formula itself
    predictive_attention(**arguments)
    assert calls


def test_without_a_prior_plain_attention_runs() -> None:
    q = torch.randn(1, 2, 3, 4)
    explanation = explain(predictive_attention, q, q, q)
    assert explanation.chosen == "plain"
    with pytest.raises(ValueError, match="'cpu' here: without a prior it is plain attention"):
        predictive_attention(q, q, q, backend="cpu")


def test_a_backend_that_cannot_run_is_named() -> None:
    arguments = make(1, 2, 4, 3)
    with pytest.raises(ValueError, match=r"backend: expected one of \['auto', 'plain', 'triton', 'cpu', 'reference'\], got 'cuda'"):
        predictive_attention(**arguments, backend="cuda")
    with pytest.raises(ValueError, match="'plain' here: a prior is given"):
        predictive_attention(**arguments, backend="plain")
