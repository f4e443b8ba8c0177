"""The state is one graph: `embed` makes it, `fuse` passes its messages, and it stays what it is in the hands of PyG."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import transforms
from torch_geometric.data import Batch, HeteroData
from torch_geometric.nn import GATConv, HeteroConv, SAGEConv, global_mean_pool

from mea_graph.nn import MEA, DecoupledGraphFusion, MEALoss, fusion_graph
from mea_graph.nn.model_options import merged
from mea_graph.ops import IntervalEdges, Pointers

WIDTHS = {"text": 5, "audio": 3, "vision": 4}
LENGTHS = {"text": [3, 2, 4], "audio": [5, 0, 2], "vision": [2, 3, 0]}  # audio and vision are missing once each
SMALL: dict[str, Any] = {"channels": 8, "hidden_channels": 6, "heads": 2, "exclusive": {"num_layers": 2}}


def sample(b: int) -> HeteroData:
    data = HeteroData()
    for m, width in WIDTHS.items():
        data[m].x = torch.randn(LENGTHS[m][b], width, dtype=torch.float64)
        data[m].time = torch.arange(LENGTHS[m][b]) * {"text": 0.5, "audio": 0.2, "vision": 0.4}[m]
    return data


@pytest.fixture
def batch() -> Batch:
    return Batch.from_data_list([sample(b) for b in range(3)])


def make(**options: Any) -> MEA:
    return MEA.published(WIDTHS, 2, **merged(SMALL, options)).double()


@pytest.mark.parametrize(
    "options",
    [{}, {"agnostic": None}, {"exclusive": None}, {"fusion": "addition"}, {"extractor": {"stride": 2}}, {"fusion": {"self_loops": True}}],
)
def test_fuse_of_embed_is_the_model(batch: Batch, options: dict[str, Any]) -> None:
    model = make(**options)
    whole, halves = model(batch), model.fuse(model.embed(batch))
    torch.testing.assert_close(halves.prediction, whole.prediction, rtol=1e-12, atol=1e-14)
    for space in ("exclusive", "agnostic"):
        torch.testing.assert_close(getattr(halves, space), getattr(whole, space), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(halves.present, whole.present)
    target = torch.tensor([0, 1, 1])
    loss = MEALoss("classification")
    wanted = torch.autograd.grad(loss(whole, target).total, list(model.parameters()), allow_unused=True)
    actual = torch.autograd.grad(loss(halves, target).total, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)


def test_a_batch_whose_rows_were_changed_is_what_it_holds(batch: Batch) -> None:
    """PyG keeps the lengths that the samples had when they were collated."""
    model, longer = make(), batch.clone()
    for m in WIDTHS:
        longer[m].x, longer[m].ptr = batch[m].x.repeat_interleave(3, 0), 3 * batch[m].ptr
        longer[m].batch = batch[m].batch.repeat_interleave(3)
    expected = model(longer.x_dict, {m: longer[m].ptr for m in WIDTHS})
    torch.testing.assert_close(model(longer).prediction, expected.prediction, rtol=1e-12, atol=1e-14)


def test_the_graph_holds_steps_representations_and_edges(batch: Batch) -> None:
    graph = make().embed(batch)
    assert set(graph.node_types) == {*WIDTHS, *(f"{m}_{space}" for m in WIDTHS for space in ("exclusive", "agnostic"))}
    for m, lengths in LENGTHS.items():
        assert graph[m].x.shape == (sum(lengths), 8)
        assert graph[m].sample.bincount(minlength=3).tolist() == lengths
        assert torch.equal(graph[m].time, batch[m].time)
        assert graph[f"{m}_exclusive"].sample.tolist() == [b for b in range(3) if lengths[b]]
    steps = {(s, stage, t) for s in WIDTHS for t in WIDTHS for stage in ("coarse", "fine") if s != t}
    steps |= {(s, "mixed", t) for s in WIDTHS for t in WIDTHS} | {(m, "self", m) for m in WIDTHS}
    assert {e for e in graph.edge_types if "interval" in graph[e]} == steps
    for s, _, t in steps:
        expected = [(i, j) for i, b in enumerate(graph[s].sample.tolist()) for j, c in enumerate(graph[t].sample.tolist()) if b == c]
        found = graph.expand()[s, _, t].edge_index
        assert sorted(map(tuple, found.T.tolist())) == sorted(expected)


def test_strides_thin_steps_and_their_times(batch: Batch) -> None:
    graph = make(extractor={"stride": {"text": 1, "audio": 2, "vision": 3}}).embed(batch)
    assert graph["audio"].sample.bincount(minlength=3).tolist() == [3, 0, 1]
    torch.testing.assert_close(graph["audio"].time, torch.tensor([0.0, 0.4, 0.8, 0.0]))
    assert graph["vision"].sample.tolist() == [0, 1]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("gaps", [False, True])
def test_the_graph_of_padded_sequences_is_that_of_rows(batch: Batch, stride: int, gaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step in a gap is no node: every node has its own sample, its time and its edges."""
    model = make(extractor={"stride": stride, "kernel_size": 3})
    wanted, pointers = model.embed(batch), {m: Pointers.from_ptr(batch[m].ptr) for m in WIDTHS}
    mask = {m: p.mask for m, p in pointers.items()}
    x = {m: p.pad(batch[m].x).masked_fill(~mask[m][..., None], torch.nan) for m, p in pointers.items()}
    time = {m: p.pad(batch[m].time).masked_fill(~mask[m], torch.nan) for m, p in pointers.items()}
    if gaps:
        monkeypatch.setattr("mea_graph.nn._sequences.is_traced", lambda: True)  # the rows keep their gaps, as on a device
    found = model.embed(x, mask, time=time)
    assert set(found.node_types) == set(wanted.node_types)
    for name in found.node_types:
        assert torch.equal(found[name].sample, wanted[name].sample), name
        torch.testing.assert_close(found[name].x, wanted[name].x, rtol=1e-9, atol=1e-12)
    for m in WIDTHS:
        torch.testing.assert_close(found[m].time, wanted[m].time)
    for edge_type in (e for e in wanted.edge_types if "interval" in wanted[e]):
        assert torch.equal(found.interval_edges(edge_type).edge_index(), wanted.interval_edges(edge_type).edge_index()), edge_type


def test_windows_stand_in_the_graph(batch: Batch) -> None:
    pointers = {m: Pointers.from_ptr(batch[m].ptr) for m in WIDTHS}
    edges = {
        (s, t): IntervalEdges.window(pointers[s], pointers[t], seconds=0.31, source_time=batch[s].time, target_time=batch[t].time)
        for s in WIDTHS
        for t in WIDTHS
    }
    model = make()
    graph = model.embed(batch, edges=edges)
    source, target = graph.expand()["audio", "fine", "text"].edge_index
    near = (batch["audio"].time[source] - batch["text"].time[target]).abs() <= 0.31
    assert near.all()
    everyone = graph["audio"].sample[:, None] == graph["text"].sample
    close = (batch["audio"].time[:, None] - batch["text"].time).abs() <= 0.31
    assert len(source) == int((everyone & close).sum()) < int(everyone.sum())
    windowed = model(batch, edges=edges).prediction
    torch.testing.assert_close(model.fuse(graph).prediction, windowed, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(windowed, model(batch).prediction)


def in_two_parts(model: MEA, batch: Batch) -> Any:
    first, second = Batch.from_data_list(batch.to_data_list()[:2]), Batch.from_data_list(batch.to_data_list()[2:])
    return Batch.from_data_list([model.embed(first), model.embed(second)])


def saved(graph: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(graph, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)  # a graph of this test's own making


SURVIVES: dict[str, Any] = {
    "copy": copy.copy,
    "save and load": saved,
    "to a device": lambda graph: graph.to("cpu"),
    "ToUndirected": transforms.ToUndirected(merge=False),
    "Constant": transforms.Constant(cat=True, node_types="nobody"),
    "RemoveIsolatedNodes is not asked for": lambda graph: graph,
    "contiguous": lambda graph: graph.contiguous(),
    "collated alone": lambda graph: Batch.from_data_list([graph]),
}


@pytest.mark.parametrize("name", SURVIVES)
def test_the_graph_survives(batch: Batch, name: str) -> None:
    model = make()
    graph = SURVIVES[name](model.embed(batch))
    torch.testing.assert_close(model.fuse(graph).prediction, model(batch).prediction, rtol=1e-12, atol=1e-14)
    assert graph["audio", "fine", "text"].interval.shape == (9, 2)


def test_collated_graphs_are_the_graph_of_all(batch: Batch) -> None:
    model = make()
    graph, together = in_two_parts(model, batch), model.embed(batch)
    assert graph.num_samples == 3
    torch.testing.assert_close(model.fuse(graph).prediction, model(batch).prediction, rtol=1e-12, atol=1e-14)
    for edge_type in together.edge_types:
        if "interval" in together[edge_type]:
            assert torch.equal(graph.interval_edges(edge_type).edge_index(), together.interval_edges(edge_type).edge_index())


def test_to_homogeneous_keeps_every_node_and_edge(batch: Batch) -> None:
    graph = make(channels=6, hidden_channels=6).embed(batch).expand()
    one = graph.to_homogeneous()
    assert one.num_nodes == sum(graph[t].num_nodes for t in graph.node_types)
    assert one.edge_index.size(1) == sum(graph[t].edge_index.size(1) for t in graph.edge_types)
    assert one.sample.bincount().tolist() == torch.cat([graph[t].sample for t in graph.node_types]).bincount().tolist()


class OwnFusion(nn.Module):
    """Another fusion over the same embeddings, of PyG's layers alone."""

    def __init__(self, edge_types: list[tuple[str, str, str]]) -> None:
        super().__init__()
        self.conv = HeteroConv({e: GATConv(6, 6, add_self_loops=False) if "exclusive" in e[0] else SAGEConv(6, 6) for e in edge_types})
        self.head = nn.Linear(6, 2)

    def forward(self, graph: Any) -> Tensor:
        x = self.conv(graph.x_dict, graph.edge_index_dict)
        pooled = [global_mean_pool(x[t], graph[t].sample, graph.num_samples) for t in x]
        return self.head(torch.stack(pooled).sum(0))


def test_the_fusion_may_be_another(batch: Batch) -> None:
    model = make()
    graph = model.embed(batch)
    own = OwnFusion([e for e in graph.edge_types if e[1] == "to"]).double()
    prediction = own(graph)
    prediction.sum().backward()
    assert prediction.shape == (3, 2)
    assert all(p.grad is not None for p in model.extractors.parameters())


def test_the_embeddings_may_be_others() -> None:
    model = make()
    h = {m: torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for m in WIDTHS}
    output = model.fuse(fusion_graph(h, h))
    output.prediction.sum().backward()
    assert output.prediction.shape == (4, 2)
    assert all(v.grad is not None for v in h.values())


def test_the_graph_fusion_may_be_of_any_convolution(batch: Batch) -> None:
    model = make()
    model.fusion = DecoupledGraphFusion(6, conv=SAGEConv, aggr="mean").double()
    assert model(batch).prediction.shape == (3, 2)


def test_who_is_present_in_a_graph_that_keeps_what_is_absent() -> None:
    """All were taken for present there, so that the loss was another one than for the same graph without them."""
    model = make().eval()
    present = {"text": torch.ones(4, dtype=torch.bool), "audio": torch.arange(4) != 2, "vision": torch.arange(4) > 1}
    h = {m: torch.randn(4, 6, dtype=torch.float64) for m in WIDTHS}
    outputs = [model.fuse(fusion_graph(h, h, present, keep_absent=keep)) for keep in (False, True)]
    for output in outputs:
        assert {m: there.tolist() for m, there in output.present.items()} == {m: there.tolist() for m, there in present.items()}
    losses = [MEALoss("classification")(output, torch.tensor([0, 1, 1, 0])).total for output in outputs]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("fusion", [{}, {"conv": SAGEConv}, "concatenation"])
def test_what_absent_nodes_hold_reaches_nothing(fusion: Any) -> None:
    """Layers of one's own may leave anything in them; NaN reached the gradients of weights, by a product with zeros."""
    model = MEA(WIDTHS, 3, channels=8, hidden_channels=6, heads=2, fusion=fusion).double().eval()
    present = {m: torch.arange(4) != i for i, m in enumerate(WIDTHS)}
    h = {m: torch.randn(4, 6, dtype=torch.float64) for m in WIDTHS}
    found = []
    for junk in (0.0, torch.nan):
        graph = fusion_graph(h, h, present, keep_absent=True)
        for name, there in graph.collect("present").items():
            if isinstance(name, str):
                graph[name].x = graph[name].x.masked_fill(~there.unsqueeze(1), junk)
        model.zero_grad()
        loss = MEALoss("classification")(model.fuse(graph), torch.tensor([0, 1, 1, 0])).total
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 10
    for with_junk, expected in zip(found[1], found[0], strict=True):
        assert torch.equal(with_junk, expected)


def test_spaces_that_differ_in_their_samples_are_refused() -> None:
    """Those of the last space were taken for all."""
    h = {m: torch.randn(4, 6, dtype=torch.float64) for m in WIDTHS}
    graph = fusion_graph(h, h, {m: torch.arange(4) != 3 for m in WIDTHS})
    graph["audio_agnostic"].x, graph["audio_agnostic"].sample = h["audio"][1:], torch.arange(1, 4)
    told = "same samples in every space, got some of others: audio_agnostic differs from audio_exclusive in samples \\[0, 3\\]"
    with pytest.raises(ValueError, match=told):
        make().fuse(graph)


@pytest.mark.parametrize("sample", [[0, 0, 1], [0, 1, 7], [-1, 0, 1], [0, 1], None])
def test_nodes_that_do_not_say_whose_they_are_are_refused(sample: list[int] | None) -> None:
    """Of two nodes of one sample the last one counted."""
    h = {m: torch.randn(3, 6, dtype=torch.float64) for m in WIDTHS}
    graph = fusion_graph(h, h)
    for space in ("exclusive", "agnostic"):
        graph[f"audio_{space}"].sample = None if sample is None else torch.tensor(sample)
    with pytest.raises(ValueError, match=r"graph: audio_exclusive: expected (x|one node for a sample at most, of samples in)"):
        make().fuse(graph)


def test_a_graph_of_ones_own_says_how_many_samples_it_has() -> None:
    model = make().eval()
    graph = fusion_graph(*[{m: torch.randn(3, 6, dtype=torch.float64) for m in WIDTHS}] * 2)
    own = HeteroData()
    for node_type in graph.node_types:
        own[node_type].x, own[node_type].sample = graph[node_type].x, graph[node_type].sample
    for edge_type in graph.edge_types:
        own[edge_type].edge_index = graph[edge_type].edge_index
    with pytest.raises(TypeError, match="graph: expected what `embed` or `fusion_graph` makes, or num_samples beside it, got HeteroData"):
        model.fuse(own)
    own.num_samples = 3
    torch.testing.assert_close(model.fuse(own).prediction, model.fuse(graph).prediction, rtol=0, atol=0)


def test_a_graph_without_the_model_s_nodes_is_refused() -> None:
    h = {m: torch.randn(4, 6, dtype=torch.float64) for m in ("text", "audio")}
    with pytest.raises(ValueError, match=r"graph: expected the node types \['vision_exclusive'\], got"):
        make().fuse(fusion_graph(h, h))


def test_a_sample_that_lacks_a_node_type_is_refused() -> None:
    """PyG gives its place to the next sample."""
    samples = [sample(b) for b in range(3)]
    del samples[1]["audio"]
    with pytest.raises(ValueError, match=r"batch\['audio'\]: expected rows of 3 samples, got those of 2; .*AddMissingModalities"):
        make()(Batch.from_data_list(samples))
    for data in samples:
        if "audio" in data.node_types:
            del data["audio"]
    with pytest.raises(ValueError, match=r"batch: expected the node types .* with x, got \['text', 'vision'\]; .*AddMissingModalities"):
        make()(Batch.from_data_list(samples))


def test_one_sample_needs_no_batch(batch: Batch) -> None:
    model = make()
    torch.testing.assert_close(model(batch[0]).prediction, model(batch).prediction[:1], rtol=1e-9, atol=1e-12)


def test_a_modality_may_not_be_called_like_a_space() -> None:
    with pytest.raises(ValueError, match=r"in_channels: expected names that end in no space"):
        MEA({"text": 3, "text_exclusive": 2}, 1)
