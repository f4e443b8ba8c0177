"""Lists of edges by pair of modalities: the same as runs where runs can say them, any graph where they cannot."""

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from mea_graph import nn as mea
from mea_graph.ops import IntervalEdges, Pointers, record_calls

D, HEADS = 4, 2
LENGTHS = {"text": [3, 1, 0, 2], "audio": [5, 4, 2, 0], "vision": [2, 2, 3, 1]}
ROWS = {m: sum(n) for m, n in LENGTHS.items()}
PTR = {m: torch.tensor([0, *itertools.accumulate(n)]) for m, n in LENGTHS.items()}
PAIRS = list(itertools.product(LENGTHS, repeat=2))
NAMED = {"all pairs": PAIRS, "one pair": [("audio", "text")], "within": [("text", "text"), ("audio", "vision")]}
PAIR = r"^edges\['audio', 'text'\]: "
LAYERS: dict[str, tuple[Any, Any]] = {
    "HierarchicalCrossModalAttention": (
        lambda: mea.HierarchicalCrossModalAttention(D, LENGTHS, HEADS),
        lambda layer, x, edges: layer(x, PTR, edges).x,
    ),
    "CrossModalEncoder": (
        lambda: mea.CrossModalEncoder(D, LENGTHS, HEADS, num_layers=2),
        lambda layer, x, edges: layer(x, PTR, edges)[0],
    ),
    "MEA": (
        lambda: mea.MEA(dict.fromkeys(LENGTHS, D), 2, D, 6, HEADS, dropout=0.0),
        lambda layer, x, edges: {"prediction": layer(x, PTR, edges=edges).prediction},
    ),
}


@pytest.fixture
def x() -> dict[str, Tensor]:
    return {m: torch.randn(n, D, dtype=torch.float64, requires_grad=True) for m, n in ROWS.items()}


@pytest.fixture
def windows() -> dict[tuple[str, str], IntervalEdges]:
    pointers = {m: Pointers.from_ptr(p) for m, p in PTR.items()}
    return {(s, t): IntervalEdges.window(pointers[s], pointers[t], steps=1) for s, t in PAIRS}


def lists(edges: dict[tuple[str, str], IntervalEdges]) -> dict[tuple[str, str], Tensor]:
    """The same edges in an order of their own."""
    found = {pair: e.edge_index() for pair, e in edges.items()}
    return {pair: e[:, torch.randperm(e.size(1))] for pair, e in found.items()}


def gradients(layer: nn.Module, out: dict[str, Tensor], x: dict[str, Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(sum(o.sin().sum() for o in out.values()), [*x.values(), *layer.parameters()], allow_unused=True))


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize("name", LAYERS)
def test_lists_equal_runs(randomised: Any, x: Any, windows: Any, name: str, named: str) -> None:
    build, call = LAYERS[name]
    layer = randomised(build())
    runs = {pair: windows[pair] for pair in NAMED[named]}
    expected = call(layer, x, runs)
    assert not all(torch.allclose(call(layer, x, None)[m], v) for m, v in expected.items()), "the windows changed nothing"
    wanted = gradients(layer, expected, x)
    half = dict(itertools.islice(lists(runs).items(), (len(runs) + 1) // 2))
    for edges in (lists(runs), runs | half):
        with record_calls() as calls:
            out = call(layer, x, edges)
        assert calls["interval_attention", "listed"] > 0
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients(layer, out, x), wanted, rtol=1e-9, atol=1e-11)


def test_any_graph_says_who_is_heard(randomised: Any, x: Any) -> None:
    """No run says that a step hears every other step of its sample: what it does not hear changes nothing."""
    layer = randomised(mea.HierarchicalCrossModalAttention(D, LENGTHS, HEADS, mixed=False, coarse=False))
    pointers = {m: Pointers.from_ptr(p) for m, p in PTR.items()}
    every = IntervalEdges.complete(pointers["audio"], pointers["text"]).edge_index()
    even = every[:, pointers["audio"].position[every[0]] % 2 == 0]
    out = layer(x, PTR, {("audio", "text"): even}).x["text"]
    odd = (pointers["audio"].position % 2 == 1).unsqueeze(1)
    changed = layer(x | {"audio": x["audio"] + odd}, PTR, {("audio", "text"): even}).x["text"]
    torch.testing.assert_close(changed, out, rtol=0, atol=0)
    assert not torch.allclose(layer(x, PTR).x["text"], out)
    nothing = layer(x, PTR, {("audio", "text"): every[:, :0]}).x["text"]
    quiet = layer(x | {"audio": x["audio"] + 1}, PTR, {("audio", "text"): every[:, :0]}).x["text"]
    torch.testing.assert_close(quiet, nothing, rtol=0, atol=0)


def test_arrows_without_a_list_keep_their_runs(x: Any, windows: Any) -> None:
    layer = mea.HierarchicalCrossModalAttention(D, LENGTHS, HEADS, mixed=False, coarse=False).double()
    with record_calls() as calls:
        layer(x, PTR, windows | {("audio", "text"): windows["audio", "text"].edge_index()})
    assert calls["interval_attention", "listed"] == 1
    assert calls["interval_attention", "cpu"] == 5


@pytest.mark.parametrize("name", ["HierarchicalCrossModalAttention", "CrossModalEncoder", "MEA"])
@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (torch.zeros(2, 3), "expected IntervalEdges or an int64 edge_index (2, E), got torch.float32 (2, 3)"),
        (torch.zeros(3, 2, dtype=torch.int64), "expected IntervalEdges or an int64 edge_index (2, E), got torch.int64 (3, 2)"),
        ([[0], [0]], "expected IntervalEdges or an int64 edge_index (2, E), got list"),
        (torch.tensor([[0, 11], [0, 1]]), "expected sources among 11 rows, got numbers from 0 to 11"),
        (torch.tensor([[0, 1], [0, -1]]), "expected targets among 6 rows, got numbers from -1 to 0"),
        (torch.tensor([[0, 5], [0, 0]]), "expected edges between steps of one sample, got one from row 5 to row 0"),
    ],
)
def test_a_wrong_list_is_named_by_its_pair(x: Any, name: str, edges: Any, message: str) -> None:
    build, call = LAYERS[name]
    with pytest.raises(ValueError, match=PAIR + re.escape(message)):
        call(build().double(), x, {("audio", "text"): edges})


def test_edges_of_other_rows_are_named(x: Any, windows: Any) -> None:
    layer = mea.HierarchicalCrossModalAttention(D, LENGTHS, HEADS).double()
    with pytest.raises(ValueError, match=PAIR + "expected 6 target and 11 source rows, got 11 and 6"):
        layer(x, PTR, {("audio", "text"): windows["text", "audio"]})
    with pytest.raises(ValueError, match=r"return_attention_weights: expected interval edges, got an edge_index"):
        layer(x, PTR, {("audio", "text"): windows["audio", "text"].edge_index()}, return_attention_weights=True)


def test_lists_of_one_layer_are_looked_at_too(x: Any) -> None:
    wrong = torch.tensor([[0, 9], [1, 1]])
    with pytest.raises(ValueError, match="edges: expected sources among 6 rows, got numbers from 0 to 9"):
        mea.PredictiveSelfAttention(D, HEADS).double()(x["text"], PTR["text"], edges=wrong)
    with pytest.raises(ValueError, match="edges: expected edges between steps of one sample, got one from row 9 to row 1"):
        mea.ModalityReinforcementUnit(D, HEADS).double()(x["text"], PTR["text"], source=x["audio"], source_layout=PTR["audio"], edges=wrong)
    encoder = mea.PredictiveEncoder(D, LENGTHS, HEADS).double()
    with pytest.raises(ValueError, match=r"edges\['text'\]: expected sources among 6 rows"):
        encoder(x, PTR, {"text": wrong})
    with pytest.raises(ValueError, match=r"edges: expected some of the modalities \['text', 'audio', 'vision'\], got 'txt'"):
        encoder(x, PTR, {"txt": wrong})


def test_a_step_of_the_padding_is_no_step() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    with pytest.raises(ValueError, match="edges: expected edges between steps of one sample, got one from row 2 to row 0"):
        mea.PredictiveSelfAttention(D, HEADS)(torch.randn(6, D), Pointers.from_mask(mask), edges=torch.tensor([[1, 2], [0, 0]]))


def test_the_graph_of_embed_stores_a_list_as_it_was_given(x: Any, windows: Any) -> None:
    model = LAYERS["MEA"][0]().double()
    listed = windows["audio", "text"].edge_index()
    graph = model.embed(x, PTR, edges={("audio", "text"): listed})
    assert torch.equal(graph["audio", "fine", "text"].edge_index, listed)
    assert "interval" in graph["text", "fine", "audio"]
    given = model(x, PTR, edges={("audio", "text"): listed})
    torch.testing.assert_close(model.fuse(graph).prediction, given.prediction, rtol=1e-12, atol=1e-14)
    twice = Batch.from_data_list([graph, graph]).expand()
    source, target = twice["audio", "fine", "text"].edge_index
    assert torch.equal(twice["audio"].sample[source], twice["text"].sample[target])
    assert len(source) == 2 * listed.size(1)
