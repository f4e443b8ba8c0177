"""`MEA(window=...)`: the model makes the edges that a caller would."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, HeteroData

from mea_graph.data import AsynchronousEvents
from mea_graph.nn import MEA
from mea_graph.nn._batches import first_of_strides
from mea_graph.ops import IntervalEdges, Pointers
from mea_graph.train import MEAModule

WIDTHS = {"text": 3, "audio": 2}
SMALL = {"channels": 8, "hidden_channels": 8, "heads": 2, "dropout": 0.0}


def model(window: Any, **options: Any) -> MEA:
    torch.manual_seed(0)
    return MEA(WIDTHS, 2, **SMALL, window=window, **options).double().eval()


def sample(words: int, frames: int) -> HeteroData:
    data = HeteroData()
    for m, length in (("text", words), ("audio", frames)):
        data[m].x = torch.randn(length, WIDTHS[m], dtype=torch.float64)
        data[m].time = (torch.rand(length) + 0.1).cumsum(0)
    return data


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(1)
    return Batch.from_data_list([sample(4, 9), sample(2, 0), sample(6, 5)])


def by_hand(batch: Batch, stride: int = 1, **options: Any) -> dict[tuple[str, str], IntervalEdges]:
    """Edges between the steps that a stride leaves."""
    place = {m: Pointers.from_ptr(batch[m].ptr) for m in WIDTHS}
    left = {m: p.strided(stride if m == "audio" else 1) for m, p in place.items()}
    time = {m: batch[m].time[place[m].position % (stride if m == "audio" else 1) == 0] for m in WIDTHS}
    found = {}
    for s in WIDTHS:
        for t in WIDTHS:
            timed = {"source_time": time[s], "target_time": time[t]} if "seconds" in options else {}
            found[s, t] = IntervalEdges.window(left[s], left[t], **options, **timed)
    return found


@pytest.mark.parametrize("window", [{"seconds": 0.8}, {"steps": 1}, {"seconds": 1.0, "causal": True}, {"steps": 2, "causal": True}])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_edges_made_by_hand(batch: Batch, window: dict[str, Any], stride: int) -> None:
    options = {"extractor": {"stride": {"text": 1, "audio": stride}, "kernel_size": 3}, "exclusive": {"num_layers": 2}}
    net, plain = model(window, **options), model(None, **options)
    plain.load_state_dict(net.state_dict())
    found, wanted = net(batch).prediction, plain(batch, edges=by_hand(batch, stride, **window)).prediction
    assert torch.equal(found, wanted)
    assert not torch.allclose(found, plain(batch).prediction)
    for number, one in enumerate(batch.to_data_list()):
        torch.testing.assert_close(net(one).prediction, wanted[number : number + 1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(net.fuse(net.embed(batch)).prediction, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("window", [{"seconds": 0.8}, {"steps": 1}])
def test_padding_is_the_same(batch: Batch, window: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    net = model(window, extractor={"stride": 2, "kernel_size": 3})
    wanted, graph = net(batch).prediction, net.embed(batch)
    pointers = {m: Pointers.from_ptr(batch[m].ptr) for m in WIDTHS}
    mask = {m: p.mask for m, p in pointers.items()}
    x: dict[str, Tensor] = {m: p.pad(batch[m].x).masked_fill(~mask[m][..., None], torch.nan) for m, p in pointers.items()}
    time = {m: p.pad(batch[m].time).masked_fill(~mask[m], torch.nan) for m, p in pointers.items()}
    torch.testing.assert_close(net(x, mask, time=time).prediction, wanted, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr("mea_graph.nn._sequences.is_traced", lambda: True)  # padded rows with gaps, as on a device
    torch.testing.assert_close(net(x, mask, time=time).prediction, wanted, rtol=1e-9, atol=1e-12)
    padded = net.embed(x, mask, time=time)
    near = [edge_type for edge_type in graph.edge_types if "interval" in graph[edge_type]]
    assert len(near) == 10  # two of themselves, four mixed, two coarse, two fine
    for edge_type in near:
        assert torch.equal(padded.interval_edges(edge_type).edge_index(), graph.interval_edges(edge_type).edge_index()), edge_type


@pytest.mark.parametrize("window", [{"steps": 1}, {"seconds": 0.5}, {"seconds": 0.5, "causal": True}])
@pytest.mark.parametrize("stride", [1, 2])
def test_meta_tensors_give_the_shapes(window: dict[str, Any], stride: int) -> None:
    """Nothing of a padded batch's sizes has to be read from tensors, not even how many steps a stride leaves."""
    with torch.device("meta"):
        network = MEA(WIDTHS, 2, **SMALL, window=window, extractor={"stride": stride, "kernel_size": 3})
        x = {m: torch.zeros(3, length, WIDTHS[m]) for m, length in (("text", 5), ("audio", 8))}
        mask = {m: v[..., 0] == 0 for m, v in x.items()}
        output = network(x, mask, time={m: v[..., 0] for m, v in x.items()})
    assert (output.prediction.device.type, output.prediction.shape) == ("meta", (3, 2))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_times_that_a_stride_keeps_are_those_of_its_first_steps(stride: int) -> None:
    padded = Pointers.from_mask(torch.arange(7) < torch.tensor([[7], [0], [4]]))
    time = torch.arange(21.0)
    found = first_of_strides(time, padded, stride)
    left = padded.strided(stride)
    assert found.shape == (left.num_rows,)
    rows = padded.start[left.sample] + left.position * stride
    assert torch.equal(found[left.real], time[rows[left.real]])


def test_given_edges_go_before_it(batch: Batch) -> None:
    net = model({"seconds": 0.5})
    whole = IntervalEdges.complete(*(Pointers.from_ptr(batch[m].ptr) for m in ("audio", "text")))
    edges = by_hand(batch, seconds=0.5) | {("audio", "text"): whole}
    assert torch.equal(net(batch, edges={("audio", "text"): whole}).prediction, net(batch, edges=edges).prediction)
    assert not torch.allclose(net(batch, edges=edges).prediction, net(batch).prediction)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ({}, "window: expected steps or seconds, got none"),
        ({"steps": 1, "seconds": 1.0}, "window: expected steps or seconds, got both"),
        ({"seconds": -1.0}, r"window.seconds: expected a number of at least 0, got -1.0"),
        ({"steps": True}, r"window.steps: expected an integer of at least 0, got True"),
        ({"second": 1.0}, r"window: expected a dict of steps or seconds, and causal, got \{'second': 1.0\}"),
        (1.5, "window: expected a dict of steps or seconds, and causal, got 1.5"),
    ],
)
def test_mistakes(window: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(window)


def test_a_window_in_seconds_needs_every_time(batch: Batch) -> None:
    net = model({"seconds": 1.0})
    assert net.timed_modalities == ("text", "audio")
    assert model({"steps": 3}).timed_modalities == ()
    del batch["audio"].time
    with pytest.raises(ValueError, match=r"batch\['audio'\].time: expected seconds"):
        net(batch)


def test_training_hands_the_times_on() -> None:
    events = AsynchronousEvents(num_samples=8, num_modalities=2)
    batch = Batch.from_data_list([events[n] for n in range(8)])
    module = MEAModule(events.channels, "regression", 1, window={"seconds": 0.3}, channels=8, heads=2, hidden_channels=8)
    assert module.hparams["window"] == {"seconds": 0.3}
    module.eval()
    found = module.run(batch).prediction
    batch["text"].time = batch["text"].time + 0.2
    assert not torch.allclose(module.run(batch).prediction, found)
