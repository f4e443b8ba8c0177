"""Edges sorted by hand are checked before a kernel reads them; those of `sort_edges` never are, since a look waits for the device."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.pretend import META, HostRead, Pretended
from mea_graph.ops import InEdges, sort_edges
from mea_graph.ops.edge import checks, cuda, edges

from ..test_native_edge import EDGES, GOOD, OTHER, WRONG


def inputs(device: str | torch.device = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(4, 2, 3, device=device), torch.randn(5, 2, device=device), torch.randn(4, 2, device=device)


def by_hand(edges: InEdges) -> InEdges:
    return InEdges(*(field.clone() for field in edges))


@pytest.mark.parametrize(("field", "change"), [*WRONG, *OTHER])
def test_sorted_edges_that_do_not_fit_together_are_refused(host_kernels, field: str, change: dict[str, Tensor]) -> None:
    """With the field that is wrong, as the C++ backend does; no kernel runs."""
    edges = GOOD._replace(**change)
    message = rf"edge_index\.{field}: expected .*, as sort_edges gives (it|them), got "
    with pytest.raises(ValueError, match=message):
        cuda._forward(*inputs(), *edges)
    with pytest.raises(ValueError, match=message):
        cuda._backward(torch.randn(5, 2, 3), None, *inputs(), torch.rand(7, 2), *edges)
    assert not host_kernels


@pytest.mark.parametrize("nodes", [(0, 0), (0, 3), (3, 0), (3, 2)])
def test_no_edges_are_a_sort(host_kernels, nodes: tuple[int, int]) -> None:
    checks.check_on_device(by_hand(sort_edges(torch.zeros(2, 0, dtype=torch.long), *nodes)))


def test_edges_sorted_by_hand_are_looked_at_once(host_kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, soundness = [], checks._soundness
    monkeypatch.setattr(checks, "_soundness", lambda *fields: (looked.append(1), soundness(*fields))[1])
    leaves = [t.requires_grad_() for t in inputs()]

    def looks(edges: Tensor | InEdges) -> int:
        looked.clear()
        cuda.run(*leaves, edges)[0].sum().backward()
        return len(looked)

    assert looks(EDGES) == looks(sort_edges(EDGES, 4, 5)) == 0
    with torch.inference_mode():
        made = sort_edges(EDGES.clone(), 4, 5)
    assert looks(made) == 0
    made = by_hand(made)
    assert [looks(made), looks(made)] == [1, 0]
    made.order.copy_(made.order.flip(0))  # another order of the edges: a legal one
    assert [looks(made), looks(made)] == [1, 0]
    made.order.fill_(0)
    with pytest.raises(ValueError, match=r"edge_index\.order"):
        looks(made)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_edges_sorted_inside_a_compiled_function_are_not_looked_at(host_kernels, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, soundness = [], checks._soundness
    monkeypatch.setattr(checks, "_soundness", lambda *fields: (looked.append(1), soundness(*fields))[1])
    monkeypatch.setattr(edges, "_is_far", lambda edge_index: True)  # as on a device
    leaves = [t.requires_grad_() for t in inputs()]

    def attend(*tensors: Tensor) -> Tensor:
        x, score_dst, score_src, edge_index = tensors
        return cuda.run(x + 1, score_dst, score_src, sort_edges(edge_index, 4, 5))[0]

    compiled = torch.compile(attend, backend=compiler, fullgraph=True)
    for edge_index in (EDGES, EDGES.flip(1)):
        expected = attend(*leaves, edge_index)
        found = compiled(*leaves, edge_index)
        pairs = zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (found, expected)), strict=True)
        for a, b in ((found, expected), *pairs):
            torch.testing.assert_close(a, b)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(*leaves, edge_index), expected)
    assert not looked
    torch.library.opcheck(torch.ops.mea_graph.sort_edges.default, (EDGES, 4, 5))


@pytest.fixture
def _kernels_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernels:
        def launch(self, *_: object) -> None: ...

    monkeypatch.setattr(cuda, "kernels", lambda variant, device: Kernels())


def call_both(edges: InEdges) -> None:
    _, weights = cuda._forward(*inputs(META), *edges)
    cuda._backward(torch.randn(5, 2, 3, device=META), None, *inputs(META), weights, *edges)


@pytest.mark.usefixtures("_kernels_on_meta")
def test_the_host_waits_for_edges_sorted_by_hand_only(monkeypatch: pytest.MonkeyPatch) -> None:
    edge_index = torch.empty(2, 7, dtype=torch.long, device=META)
    with Pretended():
        edges = sort_edges(edge_index, 4, 5)
        call_both(edges)
        with torch.inference_mode():
            call_both(sort_edges(edge_index, 4, 5))
        with pytest.raises(HostRead, match="check_on_device makes the host wait"):
            call_both(by_hand(edges))
    monkeypatch.setattr(checks, "_is_capturing", lambda tensor: True)
    with Pretended() as seen:
        call_both(by_hand(edges))
    assert seen.launches["_assert_async"] == 2


def test_a_captured_graph_asserts_that_its_edges_are_sorted(host_kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_is_capturing", lambda tensor: True)
    cuda._forward(*inputs(), *by_hand(GOOD))
    with pytest.raises(RuntimeError, match="expected edges as sort_edges gives them"):
        cuda._forward(*inputs(), *GOOD._replace(order=torch.zeros(7, dtype=torch.long)))


def test_sorted_edges_of_32_bits_are_taken(host_kernels) -> None:
    given = inputs()
    narrow = InEdges(*(field.int() for field in GOOD))
    assert all(map(torch.equal, cuda.run(*given, GOOD), cuda.run(*given, narrow)))


def test_tensors_of_other_devices_are_refused() -> None:
    """A kernel would read their addresses as those of its own device."""
    with FakeTensorMode():
        x, score_dst, score_src = inputs("cuda")
        given = {"score_dst": score_dst, "score_src": score_src, "edge_index": torch.empty(2, 7, dtype=torch.long, device="cuda")}
        for name, tensor in given.items():
            elsewhere = torch.empty(tensor.shape, dtype=tensor.dtype)
            assert cuda.refuse(x, **given | {name: elsewhere}) == f"{name} is on cpu, and x on cuda:0"
