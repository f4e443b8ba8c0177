"""One sweep over all ops: gradients, meta tensors, strides, repeated bits, autocast, compilation, export for any sizes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mea_graph import ops

HEADS, WIDTH = 2, 4


class Case(NamedTuple):
    shapes: Callable[[int, int], dict[str, tuple[int, ...]]]  # of the floating tensors, for B samples of T steps
    call: Callable[..., Any]  # takes them by name, and the mask (B, T)


def sequences(*names: str) -> Callable[[int, int], dict[str, tuple[int, ...]]]:
    return lambda b, t: dict.fromkeys(names, (b, t, HEADS, WIDTH))


def prior(b: int, t: int) -> dict[str, tuple[int, ...]]:
    return {**sequences("q", "k", "v", "pq", "pk")(b, t), "weight": (HEADS, HEADS, 3, 3), "bias": (HEADS,)}


def rows(*tensors: Tensor) -> list[Tensor]:
    return [t.flatten(0, 1) for t in tensors]


def guide(pq: Tensor, pk: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    return {"prior_query": pq.flatten(0, 1), "prior_key": pk.flatten(0, 1), "weight": weight, "bias": bias}


def edges(mask: Tensor, x: Tensor) -> Tensor:
    """A ring over the nodes, and a node that hears nobody."""
    node = torch.arange(x.size(0) - 1, device=x.device)
    return torch.stack([node + 1, node])


def two_each(mask: Tensor) -> Tensor:
    """Every row hears itself and the row after it, and the last one itself."""
    row = torch.arange(mask.numel(), device=mask.device)
    return torch.stack([torch.cat([row, row[1:]]), torch.cat([row, row[:-1]])])


def complete(mask: Tensor, sources: int) -> ops.IntervalEdges:
    return ops.IntervalEdges.complete([ops.Pointers.from_mask(mask)] * sources, ops.Pointers.from_mask(mask))


def near(mask: Tensor) -> ops.IntervalEdges:
    pointers = ops.Pointers.from_mask(mask)
    return ops.IntervalEdges.window(pointers, pointers, steps=2)


def two_sources(mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = rows(q, k, v)
    return ops.interval_attention(q, torch.cat([k, v]), torch.cat([v, k]), complete(mask, 2))


def guided(mask: Tensor, q: Tensor, k: Tensor, v: Tensor, of: Any = None, **rest: Tensor) -> Tensor:
    return ops.predictive_attention(*rows(q, k, v), ops.Pointers.from_mask(mask), **guide(**rest), edges=of)


def guided_map(mask: Tensor, q: Tensor, k: Tensor, of: Any = None, **rest: Tensor) -> Tensor:
    return ops.predictive_attention_map(*rows(q, k), ops.Pointers.from_mask(mask), **guide(**rest), edges=of)


def nodes(b: int, t: int) -> dict[str, tuple[int, ...]]:
    return {"x": (t, HEADS, WIDTH), "score_dst": (t, HEADS), "score_src": (t, HEADS)}


def segments(name: str) -> Case:
    return Case(
        lambda b, t: {"src": (t, WIDTH)}, lambda mask, src: getattr(ops, name)(src, torch.arange(src.size(0), device=src.device) // 2, 9)
    )


def prior_without_value(b: int, t: int) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in prior(b, t).items() if name != "v"}


qkv = sequences("q", "k", "v")
CASES = {
    "edge_attention": Case(nodes, lambda mask, **t: ops.edge_attention(**t, edge_index=edges(mask, t["x"]))),
    "edge_attention, sort_edges": Case(
        nodes, lambda mask, x, **t: ops.edge_attention(x, **t, edge_index=ops.sort_edges(edges(mask, x), x.size(0), x.size(0)))
    ),
    "interval_attention to two sources": Case(qkv, two_sources),
    "interval_attention in windows": Case(qkv, lambda mask, **t: ops.interval_attention(*rows(*t.values()), near(mask))),
    "interval_attention on a list": Case(qkv, lambda mask, **t: ops.interval_attention(*rows(*t.values()), two_each(mask))),
    "interval_attention_map": Case(
        sequences("q", "k"), lambda mask, q, k: ops.interval_attention_map(q.flatten(0, 1), torch.cat(rows(k, k)), complete(mask, 2))
    ),
    "interval_attention_map in windows": Case(
        sequences("q", "k"), lambda mask, **t: ops.interval_attention_map(*rows(*t.values()), near(mask))
    ),
    "masked_softmax": Case(lambda b, t: {"logits": (b, 3, t)}, lambda mask, logits: ops.masked_softmax(logits, mask[:, None])),
    "predictive_attention": Case(prior, guided),
    "predictive_attention in windows": Case(prior, lambda mask, **t: guided(mask, **t, of=near(mask))),
    "predictive_attention on a list": Case(prior, lambda mask, **t: guided(mask, **t, of=two_each(mask))),
    "predictive_attention without a prior": Case(
        qkv, lambda mask, **t: ops.predictive_attention(*rows(*t.values()), ops.Pointers.from_mask(mask))
    ),
    "predictive_attention_map": Case(prior_without_value, guided_map),
    "predictive_attention_map in windows": Case(prior_without_value, lambda mask, **t: guided_map(mask, **t, of=near(mask))),
    "segment_max": segments("segment_max"),
    "segment_mean": segments("segment_mean"),
    "segment_softmax": segments("segment_softmax"),
    "segment_sum": segments("segment_sum"),
}
every_op = pytest.mark.parametrize("name", CASES)


class Called(nn.Module):
    """An op as a module from tensors to a list of tensors."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, mask: Tensor, tensors: dict[str, Tensor]) -> list[Tensor]:
        found = self.case.call(mask, **tensors)
        return [found] if isinstance(found, Tensor) else list(found)


def inputs(name: str, b: int = 3, t: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    mask = torch.arange(t) < torch.randint(1, t + 1, (b, 1))
    mask[0] = False  # a sample that has nothing
    return mask, {n: torch.randn(shape, dtype=dtype, requires_grad=True) for n, shape in CASES[name].shapes(b, t).items()}


def equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_the_table_holds_every_op_that_takes_numbers() -> None:
    others = {"explain", "has_torch_scatter", "record_calls", "use_backend"}
    functions = {name for name in ops.__all__ if not isinstance(getattr(ops, name), type)}
    assert {part.split(" ")[0] for name in CASES for part in name.split(", ")} == functions - others


@every_op
def test_gradcheck(name: str) -> None:
    mask, tensors = inputs(name, 2, 4)
    called = Called(CASES[name])
    assert torch.autograd.gradcheck(
        lambda *t: tuple(called(mask, dict(zip(tensors, t, strict=True)))), list(tensors.values()), fast_mode=True
    )


@every_op
def test_meta_tensors_give_the_shapes(name: str) -> None:
    mask, tensors = inputs(name)
    called = Called(CASES[name])
    on_meta = called(mask.to("meta"), {n: t.detach().to("meta").requires_grad_() for n, t in tensors.items()})
    for actual, wanted in zip(on_meta, called(mask, tensors), strict=True):
        assert (actual.device.type, actual.shape, actual.dtype) == ("meta", wanted.shape, wanted.dtype)


@every_op
def test_a_second_run_has_the_same_bits_and_other_strides_the_same_values(name: str) -> None:
    mask, tensors = inputs(name)
    called = Called(CASES[name])
    expected = called(mask, tensors)
    equal(called(mask, tensors), expected)
    strided = {n: t.detach().mT.contiguous().mT if t.dim() > 1 else t for n, t in tensors.items()}
    assert not any(t.is_contiguous() for t in strided.values() if t.dim() > 1)
    torch.testing.assert_close(called(mask, strided), [e.detach() for e in expected])


@every_op
def test_autocast_stays_near_float32(name: str) -> None:
    mask, tensors = inputs(name, dtype=torch.float32)
    called = Called(CASES[name])
    with torch.autocast("cpu", torch.bfloat16):
        low = called(mask, tensors)
    for actual, expected in zip(low, called(mask, tensors), strict=True):
        assert actual.isfinite().all()
        assert (actual.float() - expected).norm() <= 0.02 * expected.norm()


@every_op
def test_compiles_into_one_graph(name: str) -> None:
    torch.compiler.reset()
    mask, tensors = inputs(name)
    called = Called(CASES[name])
    results = []
    for f in (called, torch.compile(called, fullgraph=True, backend="aot_eager")):
        outputs = f(mask, tensors)
        results.append((outputs, torch.autograd.grad(sum(v.square().sum() for v in outputs), list(tensors.values()))))
    torch.testing.assert_close(results[1], results[0])


@every_op
def test_exports_for_any_sizes(name: str) -> None:
    mask, tensors = inputs(name)
    called = Called(CASES[name])
    auto = torch.export.Dim.DYNAMIC
    other = CASES[name].shapes(5, 11)
    sizes = {n: {axis: auto for axis, size in enumerate(t.shape) if size != other[n][axis]} for n, t in tensors.items()}
    exported = torch.export.export(called, (mask, tensors), dynamic_shapes=({0: auto, 1: auto}, sizes)).module()
    mask, tensors = inputs(name, 5, 11)
    torch.testing.assert_close(exported(mask, tensors), called(mask, tensors))
