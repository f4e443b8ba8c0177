"""Edge attention in C++ against the reference in float64: widths, nodes of many edges, steep scores, NaN, threads, edges that are wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric import EdgeIndex

from mea_graph.nn import DecoupledGraphFusion, GraphFusionConv, fusion_graph
from mea_graph.nn.graph import graph_fusion_conv
from mea_graph.ops import InEdges, edge_attention, explain, record_calls, sort_edges, use_backend
from mea_graph.ops.edge import counting_sort, edges, native
from mea_graph.ops.native import library

from .test_edge_attention import EDGES, random_case, results, wide

pytestmark = pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}")
WIDTHS = [(3, 1), (8, 8), (2, 15), (1, 16), (2, 17), (1, 33), (1, 40), (2, 63), (1, 65), (1, 130), (1, 300)]  # whole vectors, and parts


@pytest.mark.parametrize(("heads", "channels"), WIDTHS)
def test_equals_the_reference_at_any_width(heads: int, channels: int) -> None:
    case = random_case(heads, channels, torch.float64)
    torch.testing.assert_close(results(case, "native"), results(case, "reference"), rtol=1e-10, atol=1e-12)
    single = {n: t.float() if t.is_floating_point() else t for n, t in case.items()}
    for found, expected in zip(results(single, "native"), results(wide(single), "reference"), strict=True):
        assert (found.double() - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nodes_of_many_edges(dtype: torch.dtype) -> None:
    """More edges than are summed at once and than a task has, from one source and to one destination."""
    case = random_case(2, 20, dtype, 300, 200, 12_000)
    case["edge_index"][0, ::2] = 7
    case["edge_index"][1, 1::2] = 9
    truth, unit = wide(case), 1e-13 if dtype == torch.float64 else 2e-6
    *several, by_source = [(f.double() - e).abs() for f, e in zip(results(case, "native"), results(truth, "reference"), strict=True)]
    for error, expected in zip(several, results(truth, "reference"), strict=False):
        assert error.max() <= unit * max(1, expected.abs().max())
    # The gradients of source 7 add up to almost nothing. Its error is measured by what is added: by edge, each has a source of its own.
    source, target = case["edge_index"]
    apart = truth | {n: truth[n][source] for n in ("x", "score_src")} | {"edge_index": torch.stack([torch.arange(len(source)), target])}
    added = torch.zeros_like(truth["score_src"]).index_add_(0, source, results(apart, "reference")[-1].abs())
    assert added[7].max() > 10 * results(truth, "reference")[-1][7].abs().max()
    assert (by_source <= unit * added.clamp(min=1)).all()


@pytest.mark.parametrize("scale", [1e-3, 8.0, 1e3, 1e6])
def test_scores_of_any_size(scale: float) -> None:
    """Where the GELU is flat, where it bends, and where a softmax has zeros and ones only."""
    case = random_case(2, 5, torch.float32, edges=4000)
    case |= {n: case[n] * scale for n in ("score_dst", "score_src")}
    for found, expected in zip(results(case, "native"), results(wide(case), "reference"), strict=True):
        assert (found.double() - expected).abs().max() <= 4e-6 * max(1, expected.abs().max())
    torch.testing.assert_close(results(wide(case), "native"), results(wide(case), "reference"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
def test_nan_reaches_those_who_hear_it_alone(channels: int, junk: float) -> None:
    """Lanes past the end of a row belong to the next one: what stands there must not leak."""
    case = random_case(1, channels, torch.float32)
    clean = results(case, "native")
    hearers = case["edge_index"][1, case["edge_index"][0] == 20].unique()
    heard = torch.isin(torch.arange(30), hearers)
    assert heard.any()
    for name in ("x", "score_src"):
        dirty = {**case, name: case[name].clone()}
        dirty[name][20] = junk
        y = results(dirty, "native")[0]
        assert torch.equal(y[~heard], clean[0][~heard])
        assert not y[heard].isfinite().any()
    x = case["x"].clone().requires_grad_()
    y, _ = edge_attention(x, case["score_dst"], case["score_src"], case["edge_index"], backend="native")
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (without,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    grad[0] = junk  # of node 0, which hears about half of all
    (found,) = torch.autograd.grad(y, x, grad)
    speakers = torch.isin(torch.arange(40), case["edge_index"][0, case["edge_index"][1] == 0])
    assert torch.equal(found[~speakers], without[~speakers])
    assert not found[speakers].isfinite().any()


@pytest.mark.parametrize("heads", [1, 4])
def test_threads_change_no_bit(heads: int) -> None:
    case = random_case(heads, 64, torch.float32, 700, 900, 60_000)  # work for several threads
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found.append(results(case, "native"))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("edge", [(-1, 0), (4, 0), (0, -1), (0, 5), (2**31 - 1, 0)])
def test_edges_of_nodes_that_are_not_there_are_refused(edge: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = torch.cat([EDGES, torch.tensor(edge).view(2, 1)], 1).to(dtype)
    name, nodes, index = ("sources", 4, edge[0]) if edge[0] not in (0, 3) else ("destinations", 5, edge[1])
    text = rf"edge_index: expected {name} in \[0, {nodes}\), got {min(index, 0)} to {max(index, nodes - 1)}"
    with pytest.raises(ValueError, match=text):
        edge_attention(torch.randn(4, 2, 3), torch.randn(5, 2), torch.randn(4, 2), bad, backend="native")
    for choice in ("1", "0"):
        monkeypatch.setenv("MEA_GRAPH_NATIVE", choice)
        with pytest.raises(ValueError, match=text):
            sort_edges(bad, 4, 5)


GOOD = sort_edges(EDGES, 4, 5)
SPOILT = {
    "source": GOOD.source + 4 * (GOOD.source == 3),
    "target": GOOD.target.flip(0),
    "order": GOOD.order + 1,
    "start": torch.tensor([0, 1, 4, 3, 5, 7]),
    "by_source": GOOD.by_source - 1,
    "source_start": torch.tensor([0, 2, 4, 5, 8]),
}
TWICE = torch.tensor([0, 1, 2, 3, 4, 5, 5])
WRONG = [
    *((field, {field: value}) for field, value in SPOILT.items()),
    ("order", {"order": TWICE}),  # one result would be left as memory was
    ("by_source", {"by_source": GOOD.by_source[TWICE]}),  # one edge would have no gradient, and another would have its own twice
    ("by_source", {"by_source": GOOD.by_source.flip(0)}),  # edges would be counted for the wrong sources
    ("by_source", {"by_source": torch.arange(7)}),
]
OTHER = [
    *((field, {field: getattr(GOOD, field)[:-1]}) for field in ("target", "order", "start", "by_source", "source_start")),
    *((field, {field: getattr(GOOD, field).int()}) for field in InEdges._fields[1:]),
    ("target", {"source": GOOD.source[:-1]}),  # the first field says how many edges there are
    ("target", {"source": GOOD.source.int()}),
    ("source", {n: t.short() for n, t in GOOD._asdict().items()}),
    ("start", {n: getattr(GOOD, n)[:4] for n in ("source", "target", "order", "by_source")}),
]


@pytest.mark.parametrize(("field", "change"), [*WRONG, *OTHER])
def test_sorted_edges_that_do_not_fit_together_are_refused(field: str, change: dict[str, Tensor]) -> None:
    """With the field that is wrong."""
    inputs = (torch.randn(4, 2, 3), torch.randn(5, 2), torch.randn(4, 2))
    message = rf"edge_index\.{field}: expected .*, as sort_edges gives (it|them), got "
    if change.keys() <= {"start", "source_start"} and len(change[field]) != len(getattr(GOOD, field)):
        message = r"edge_index: expected edges sorted for \(4, 5\) nodes, got"
    with pytest.raises(ValueError, match=message):
        edge_attention(*inputs, GOOD._replace(**change), backend="native")
    weights = edge_attention(*inputs, GOOD, backend="native")[1]
    backward = torch.ops.mea_graph.edge_attention_native_backward
    with pytest.raises(ValueError, match=rf"edge_index\.{field}: expected"):  # the operator by itself looks too
        backward(torch.randn(5, 2, 3), None, *inputs, weights, *GOOD._replace(**change))


def test_edges_sorted_by_hand_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `sort_edges` never, and those that were changed since again; a few cost nothing, and are looked at in any case."""
    looked, call = [], library.call_addresses

    def watched(name: str, dtype: torch.dtype, fields: list[int]) -> None:
        if name != "edge_sort":
            looked.append(fields[-8])
        call(name, dtype, fields)

    monkeypatch.setattr(library, "call_addresses", watched)
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((4, 2, 3), (5, 2), (4, 2))]

    def run(edges: Tensor | InEdges) -> list[bool]:
        looked.clear()
        edge_attention(*inputs, edges, backend="native")[0].sum().backward()
        return [bool(foreign) for foreign in looked]

    monkeypatch.delenv("MEA_GRAPH_NATIVE")
    sort = sort_edges(EDGES, 4, 5)
    assert run(EDGES) == [False, False]
    assert run(sort) == [True, True]
    monkeypatch.setattr(native, "_FEW", 0)
    assert run(EDGES) == [False, False]
    assert run(sort) == [False, False]
    by_hand = InEdges(*(t.clone() for t in sort))
    assert run(by_hand) == [True, False]
    assert run(by_hand) == [False, False]
    assert run(by_hand._replace(by_source=sort.by_source)) == [True, False]
    by_hand.order.copy_(by_hand.order.flip(0))  # another order of the edges: a legal one
    assert run(by_hand) == [True, False]
    by_hand.order.fill_(0)
    with pytest.raises(ValueError, match=r"edge_index\.order: expected each number in \[0, E\) once"):
        run(by_hand)
    with torch.inference_mode():  # tensors that count no changes are looked at each time
        made = InEdges(*(t.clone() for t in sort))
        assert [edge_attention(*inputs, made, backend="native")[0].shape for _ in range(2)] == [(5, 2, 3)] * 2
        assert [bool(foreign) for foreign in looked[-2:]] == [True, True]
        made.order.fill_(0)
        with pytest.raises(ValueError, match=r"edge_index\.order: expected each number in \[0, E\) once"):
            edge_attention(*inputs, made, backend="native")


def test_what_is_known_of_sorted_edges_is_forgotten_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEA_GRAPH_NATIVE")
    before, made = len(edges._vouched), [sort_edges(EDGES, 4, 5) for _ in range(3)]
    edges.vouch_for(*made[0])  # again: it is known once
    assert len(edges._vouched) == before + 3
    del made
    assert len(edges._vouched) == before


def test_edges_of_which_one_field_counts_no_changes_are_looked_at() -> None:
    """In inference mode that is any field which was made there."""
    with torch.inference_mode():
        start = GOOD.start.clone()
    mixed = GOOD._replace(start=start)
    edges.vouch_for(*mixed)
    assert not edges.is_vouched_for(*mixed)
    inputs = (torch.randn(4, 2, 3), torch.randn(5, 2), torch.randn(4, 2))
    for found, expected in zip(*(edge_attention(*inputs, e, backend="native") for e in (mixed, GOOD)), strict=True):
        assert torch.equal(found, expected)


def test_sorted_edges_of_32_bits_are_taken() -> None:
    case = random_case(2, 5, torch.float32)
    narrow = InEdges(*(t.int() for t in sort_edges(case["edge_index"], 40, 30)))
    assert all(map(torch.equal, results(case, "native"), results({**case, "edge_index": narrow}, "native")))


def shapes_of_edges() -> dict[str, Tensor]:
    drawn = torch.stack([torch.randint(50, (800,)), torch.randint(60, (800,))])
    return {
        "plain": drawn,
        "of 32 bits": drawn.int(),
        "strided": drawn.T.contiguous().T,
        "none": drawn[:, :0],
        "of PyG": EdgeIndex(drawn, sparse_size=(50, 60)),
        "of PyG, sorted": EdgeIndex(drawn, sparse_size=(50, 60)).sort_by("col").values,
        "of PyG, sorted by source": EdgeIndex(drawn, sparse_size=(50, 60)).sort_by("row").values,
    }


@pytest.mark.parametrize("shape", shapes_of_edges())
def test_the_sort_is_that_of_torch(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = shapes_of_edges()[shape]
    expected, plain = sort_edges(given, 50, 60), torch.stack([row.as_subclass(Tensor) for row in given]).long()
    order, by_source = (torch.sort(plain[1], stable=True).indices, torch.sort(plain[0][expected.order], stable=True).indices)
    starts = [torch.cat([torch.zeros(1).long(), plain[i].bincount(minlength=nodes).cumsum(0)]) for i, nodes in ((1, 60), (0, 50))]
    assert all(map(torch.equal, expected, (*plain[:, order], order, starts[0], by_source, starts[1])))
    monkeypatch.delenv("MEA_GRAPH_NATIVE")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "sort", None)  # it would be an error to call it
        found = sort_edges(given, 50, 60)
    assert all(f.dtype == torch.int64 and torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    call = lambda x: edge_attention(x, torch.ones(60, 1), torch.ones(50, 1), given, backend="native")  # noqa: E731
    assert call(torch.randn(50, 1, 4))[1].size(0) == given.size(1)


def test_a_sort_that_is_watched_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEA_GRAPH_NATIVE")
    assert counting_sort.takes(EDGES)
    assert not counting_sort.takes(EDGES.to("meta"))
    with FlopCounterMode(display=False):
        assert not counting_sort.takes(EDGES)
        assert all(map(torch.equal, sort_edges(EDGES, 4, 5), GOOD))
    seen = []
    torch.func.grad(lambda x: seen.append(counting_sort.takes(EDGES)) or x)(torch.ones(()))
    assert seen == [False]


def test_who_runs_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(1, 3, torch.float32)
    assert explain(edge_attention, **case).refused["native"] == "MEA_GRAPH_NATIVE=0 keeps 'auto' from it"
    monkeypatch.delenv("MEA_GRAPH_NATIVE")
    assert explain(edge_attention, **case).chosen == "native"
    assert explain(edge_attention, **case).refused["cpu"] == "could run, but 'native' is preferred"
    with pytest.raises(ValueError, match="edge_attention cannot run on 'native' here: the tensors are on meta"):
        edge_attention(**{n: t.to("meta") for n, t in case.items()}, backend="native")
    with pytest.raises(ValueError, match="cannot run on 'native' here: torch\\.func and forward-mode differentiation"):
        torch.func.grad(lambda x: edge_attention(**{**case, "x": x}, backend="native")[0].sum())(case["x"])
    with record_calls() as calls:
        grads = torch.func.grad(lambda x: edge_attention(**{**case, "x": x})[0].sum())(case["x"])
    assert (dict(calls), grads.shape) == ({("edge_attention", "reference"): 1}, case["x"].shape)


def operators(record: Callable[[torch.nn.Module, tuple[Tensor, ...]], Any]) -> list[str]:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, score_dst: Tensor, score_src: Tensor, edge_index: Tensor) -> Tensor:
            return edge_attention(x, score_dst, score_src, edge_index)[0]

    return [str(node.target) for node in record(Layer(), tuple(random_case(2, 5, torch.float32).values())).graph.nodes]


def test_torch_compile_takes_it_and_an_export_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEA_GRAPH_NATIVE")

    def compiled(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        graphs: list[Any] = []
        torch.compiler.reset()
        torch.compile(module, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)(*inputs)
        return graphs[0]

    assert any("edge_attention_native" in name for name in operators(compiled))
    names = operators(lambda module, inputs: torch.export.export(module, inputs))
    assert any("edge_attention_cpu" in name for name in names)
    assert not any("native" in name for name in names)


@pytest.mark.parametrize("heads", [1, 3])
def test_a_layer_gives_the_same(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_fusion_conv, "_LARGE", 0)
    conv = GraphFusionConv(6, 5, heads).double()
    x, edge_index = torch.randn(40, 6, dtype=torch.float64), torch.randint(40, (2, 300))
    found = {}
    for backend in ("native", "reference"):
        leaf = x.clone().requires_grad_()
        with use_backend(backend), record_calls() as calls:
            out = conv(leaf, edge_index)
        assert dict(calls) == {("edge_attention", backend): 1}
        found[backend] = [out.detach(), *torch.autograd.grad(out.sin().sum(), [leaf, *conv.parameters()])]
    torch.testing.assert_close(found["native"], found["reference"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("edge_count", "fused"), [(2047, False), (2048, True)])
def test_a_layer_takes_it_for_graphs_of_some_size(edge_count: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x, edge_index = GraphFusionConv(6, 5), torch.randn(300, 6), torch.randint(300, (2, edge_count))
    with record_calls() as calls:
        expected = conv(x, edge_index)
        assert not calls
        monkeypatch.delenv("MEA_GRAPH_NATIVE")
        torch.testing.assert_close(conv(x, edge_index), expected, rtol=1e-5, atol=1e-6)
    assert dict(calls) == ({("edge_attention", "native"): 1} if fused else {})


def test_fusion_graphs_of_many_samples_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    spaces, present = ("exclusive", "agnostic"), torch.rand(300, 3) < 0.9
    vectors = [{m: torch.randn(300, 8, dtype=torch.float64).requires_grad_() for m in "tav"} for _ in spaces]
    fusion = DecoupledGraphFusion(8).double()

    def outcome() -> list[Tensor]:
        graph = fusion_graph(*vectors, {m: present[:, i] for i, m in enumerate("tav")})
        out = fusion(graph.x_dict, graph.edge_index_dict, graph.sample_dict, graph.num_samples)
        of_spaces = [out.x[space] for space in spaces]
        leaves = [t for v in vectors for t in v.values()]
        return [*of_spaces, *torch.autograd.grad(sum(t.sin().sum() for t in of_spaces), [*leaves, *fusion.parameters()])]

    expected = outcome()
    monkeypatch.delenv("MEA_GRAPH_NATIVE")
    with record_calls() as calls:
        found = outcome()
    assert calls["edge_attention", "native"] == 1
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_it_takes_less_memory_than_the_other_backends() -> None:
    """In what torch allocates: the numbers of edges are of 32 bits, and nothing is copied by head."""
    case = random_case(4, 64, torch.float32, 500, 500, 20_000)
    held = {}
    for backend in ("native", "cpu"):
        with profile(profile_memory=True) as recorded:
            results(case, backend)
        held[backend] = sum(max(event.self_cpu_memory_usage, 0) for event in recorded.function_events)
    assert held["native"] < held["cpu"] / 2
