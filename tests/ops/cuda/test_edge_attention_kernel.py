"""The CUDA kernels of edge attention, run as plain C++ on the CPU and held to the reference in float64."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from mea_graph.ops import sort_edges
from mea_graph.ops.edge import cuda, reference

DEGREES = [0, 1, 2, 31, 32, 33, 0, 257, 1100]
FEW = [0, 1, 2, 33, 0, 0, 0, 0, 650]  # for slow sanitizers; a long row is still there, on both sides
SOURCES = 23  # the last of them has no out-edge, and the first has more than a long row


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """torch fills new memory with NaN, so that what no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(100).isnan().all()
    assert torch.empty_like(torch.ones(100)).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def graph(degrees: list[int] = DEGREES) -> Tensor:
    target = torch.repeat_interleave(torch.tensor(degrees))
    source = torch.randint(SOURCES - 1, target.shape)
    source[torch.randperm(len(source))[: len(source) * 2 // 5]] = 0
    edge_index = torch.stack([source, target])
    return edge_index[:, torch.randperm(len(target))]


def inputs(heads: int, channels: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        "x": torch.randn(SOURCES, heads, channels).to(dtype),
        "score_dst": torch.randn(len(DEGREES), heads).to(dtype) * 2,
        "score_src": torch.randn(SOURCES, heads).to(dtype) * 2,
    }


def results(run: Callable, tensors: dict[str, Tensor], edge_index: Tensor, with_weights: bool = True) -> list[Tensor]:
    """y, the weights, and the three gradients for given gradients of y and, on request, of the weights."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    outputs = run(**leaves, edge_index=edge_index)[: 2 if with_weights else 1]
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(o.shape, generator=generator).bfloat16().to(o.dtype) for o in outputs]  # exact in every dtype
    grads = torch.autograd.grad(outputs, list(leaves.values()), given)
    return [*(o.detach() for o in outputs), *grads]


def compare(found: list[Tensor], expected: list[Tensor], budget: float) -> None:
    names = ["y", "weights", "grad x", "grad score_dst", "grad score_src"]
    for name, f, e in zip(names if len(found) == 5 else names[:1] + names[2:], found, expected, strict=True):
        error = (f.double() - e).abs().max() / e.abs().max()
        assert error < budget, f"{name}: {error:.1e}"  # NaN fails too


# By dtype: what sums of up to 1100 terms cost in float32 (the reference itself is off by 7e-6), or the rounding of results to bfloat16.
BUDGET = {torch.float32: 5e-6, torch.bfloat16: 8e-3}
CASES = [  # heads, channels, dtype: reads of 16, 8, 4 and 2 bytes, rows of one lane to several tiles
    (1, 64, torch.float32),
    (3, 1, torch.float32),
    (2, 5, torch.float32),
    (1, 70, torch.float32),
    (4, 64, torch.bfloat16),
    (2, 33, torch.bfloat16),
]


@pytest.mark.parametrize(("heads", "channels", "dtype"), CASES)
@pytest.mark.parametrize("with_weights", [False, True])
def test_equals_the_reference(host_kernels, heads: int, channels: int, dtype: torch.dtype, with_weights: bool) -> None:
    tensors, edge_index = inputs(heads, channels, dtype), graph()
    found = results(cuda.run, tensors, edge_index, with_weights)
    assert [f.dtype for f in found] == [dtype] * (5 if with_weights else 4)
    assert host_kernels["used"].launched[-3:] == [
        "edge_attention_fwd_kernel",
        "edge_attention_bwd_target_kernel",
        "edge_attention_bwd_source_kernel",
    ]
    wide = {name: t.double() for name, t in tensors.items()}
    compare(found, results(reference.edge_attention, wide, edge_index, with_weights), BUDGET[dtype])
    assert not found[0][[0, 6]].any()  # nobody sends to these
    assert not found[-3][-1].any()  # this one sends to nobody
    again = results(cuda.run, tensors, sort_edges(edge_index, SOURCES, len(DEGREES)), with_weights)
    assert all(map(torch.equal, found, again))


def test_the_order_of_threads_does_not_matter(host_kernels) -> None:
    tensors, edge_index = inputs(2, 5, torch.float32), graph()
    found = results(cuda.run, tensors, edge_index)
    host_kernels["used"].reversed = True
    turned = results(cuda.run, tensors, edge_index)
    host_kernels["used"].reversed = False
    assert all(map(torch.equal, found, turned))


@pytest.mark.parametrize(("sources", "targets", "edges"), [(0, 0, 0), (0, 3, 0), (3, 0, 0), (3, 2, 0)])
def test_without_edges(host_kernels, sources: int, targets: int, edges: int) -> None:
    tensors = {"x": torch.randn(sources, 2, 5), "score_dst": torch.randn(targets, 2), "score_src": torch.randn(sources, 2)}
    found = results(cuda.run, tensors, torch.zeros(2, edges, dtype=torch.long))
    assert [tuple(f.shape) for f in found] == [(targets, 2, 5), (0, 2), (sources, 2, 5), (targets, 2), (sources, 2)]
    assert not any(f.any() for f in found)


def test_mixed_types_slices_and_one_sided_gradients(host_kernels) -> None:
    edge_index = graph()
    tensors = inputs(2, 8, torch.float32)
    tensors["x"] = torch.randn(SOURCES, 2, 18).bfloat16()[:, :, 1::2][:, :, :8]
    found = results(cuda.run, tensors, edge_index)
    assert [f.dtype for f in found] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, torch.float32]
    compare(found, results(reference.edge_attention, {n: t.double() for n, t in tensors.items()}, edge_index), BUDGET[torch.bfloat16])
    shifted = torch.randn(SOURCES * 2 * 8 + 1)[1:].view(SOURCES, 2, 8)  # not where a read of 16 bytes may begin
    assert shifted.data_ptr() % 16
    compare(
        results(cuda.run, {**tensors, "x": shifted}, edge_index),
        results(reference.edge_attention, {n: t.double() for n, t in {**tensors, "x": shifted}.items()}, edge_index),
        BUDGET[torch.float32],
    )
    leaf = tensors["score_src"].requires_grad_()
    _, weights = cuda.run(**tensors, edge_index=edge_index)
    (alone,) = torch.autograd.grad(weights.square().sum(), leaf)
    _, weights = reference.edge_attention(**{n: t.double() for n, t in tensors.items()}, edge_index=edge_index)
    (expected,) = torch.autograd.grad(weights.square().sum(), leaf)
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("node", [-1, SOURCES, 2**40])
def test_an_edge_from_nowhere_gives_nan_and_reads_nothing(host_kernels, node: int) -> None:
    edge_index = torch.tensor([[0, node, 1], [0, 1, 2]])
    y, weights = cuda.run(torch.randn(SOURCES, 1, 64), torch.randn(3, 1), torch.randn(SOURCES, 1), edge_index)
    assert y.isnan().flatten(1).all(1).tolist() == [False, True, False]
    assert weights.isnan().flatten().tolist() == [False, True, False]


@pytest.mark.parametrize(("heads", "channels", "dtype"), [(1, 64, torch.float32), (2, 33, torch.bfloat16)])
def test_no_access_is_out_of_bounds(sanitized_kernels, heads: int, channels: int, dtype: torch.dtype) -> None:
    tensors, edge_index = inputs(heads, channels, dtype), graph(FEW)
    found = results(cuda.run, tensors, edge_index)
    assert len(sanitized_kernels["used"].launched) == 3
    compare(found, results(reference.edge_attention, {n: t.double() for n, t in tensors.items()}, edge_index), BUDGET[dtype])


def test_an_overrun_would_be_seen(planted_overrun) -> None:
    tensors = inputs(1, 5, torch.float32)
    with pytest.raises(RuntimeError, match=r"AddressSanitizer: heap-buffer-overflow(?s:.*)in edge_attention_fwd_kernel"):
        cuda.run(**tensors, edge_index=graph(FEW))


@pytest.mark.parametrize("node", [-1, len(DEGREES), 2**40])
def test_an_edge_to_nowhere_gives_nan_and_reads_nothing(sanitized_kernels, node: int) -> None:
    """Whatever memory was before: nothing is summed for such an edge, and yet it has a weight and its source a gradient."""
    edge_index = torch.tensor([[0, 3, 1], [0, node, 2]])
    tensors = {name: t.requires_grad_() for name, t in inputs(2, 8, torch.float32).items()}
    y, weights = cuda.run(**tensors, edge_index=edge_index)
    assert y.isfinite().all()
    assert weights.isnan().all(1).tolist() == [False, True, False]
    torch.use_deterministic_algorithms(False)  # memory with numbers in it, not with NaN
    grad_x, grad_dst, grad_src = torch.autograd.grad(y.sum() + weights.sum(), list(tensors.values()))
    speaks = torch.arange(SOURCES) == 3
    assert grad_dst.isfinite().all()
    assert grad_x.isnan().flatten(1).all(1).equal(speaks)
    assert grad_src.isnan().all(1).equal(speaks)


@pytest.mark.parametrize(("sources", "targets"), [(0, 3), (3, 0), (0, 0)])
def test_edges_between_no_nodes_are_refused(host_kernels, sources: int, targets: int) -> None:
    with pytest.raises(ValueError, match=rf"edge_index: expected no edges between {sources} sources and {targets} destinations, got 1"):
        cuda.run(torch.randn(sources, 1, 4), torch.randn(targets, 1), torch.randn(sources, 1), torch.zeros(2, 1, dtype=torch.long))
    assert not host_kernels
