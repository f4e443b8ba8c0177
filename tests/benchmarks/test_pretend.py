"""Nothing in a training step waits for a device: held on a device that has no numbers to read."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, HeteroData

from benchmarks import pretend
from benchmarks.pretend import META, HostRead, Pretended
from benchmarks.samples import SHAPES, draw
from mea_graph.nn import MEA, fusion_graph
from mea_graph.nn._batches import known_layout
from mea_graph.ops import Pointers
from mea_graph.train import MEAModule


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).any()),
        lambda x: int(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.cpu(),
        lambda x: torch.repeat_interleave(torch.ones(3, device=META), x.long()),
        lambda x: x + torch.ones(3).to(META),
        lambda x: x.index_put((x > 0,), torch.zeros(3, device=META)),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=META),
        lambda x: x[[0, 2]],
    ],
    ids=[
        "item",
        "tolist",
        "bool",
        "int",
        "nonzero",
        "by bools",
        "masked_select",
        "cpu",
        "repeats",
        "from the host",
        "put by bools",
        "tensor",
        "by a list",
    ],
)
def test_every_way_to_wait_is_seen(read: Callable[[Tensor], object]) -> None:
    with Pretended() as seen, pytest.raises(HostRead):
        read(torch.ones(3, device=META))
    assert seen.reads.total() == 1


def test_what_does_not_wait_is_counted() -> None:
    with Pretended() as seen:
        x = torch.ones(3, 4, device=META)
        y = (x.t().reshape(2, 6) @ x.new_zeros(6, 5)).view(-1).softmax(0)
        torch.where(y > 0, y, 0.0)
    assert seen.launches["mm"] == seen.launches["_softmax"] == seen.launches["where"] == 1
    assert {"t", "view", "empty"}.isdisjoint(seen.launches)


@pytest.mark.parametrize(("layout", "most"), [("padded", 649), ("rows", 637)])
def test_a_training_step_waits_for_nothing(layout: str, most: int) -> None:
    """Launches as they are; one more is a step back."""
    seen = pretend.training_step(layout)
    assert not seen.reads
    assert 500 < seen.launches.total() <= most
    assert seen.launches["grouped_linear_triton"] == seen.launches["grouped_linear_triton_backward"] / 2 > 0
    assert "addmm_" not in seen.launches  # no product of one group
    assert seen.launches["predictive_attention_triton"] / 3 == seen.launches["predictive_attention_triton_backward"] / 7 > 0
    assert seen.launches["interval_attention_triton"] == seen.launches["interval_attention_triton_backward"] / 2 > 0


def test_a_training_step_by_the_module_waits_for_nothing() -> None:
    """As `mea_graph fit` trains: the batch that a loader makes knows its lengths on the host."""
    samples = draw(SHAPES["MOSI"], 4, "true lengths")
    graphs = []
    for i in range(samples.size):
        graph = HeteroData(y=samples.y[i : i + 1], id=str(i))
        for m, x in samples.x_dict.items():
            graph[m].x = x[samples.batch_dict[m] == i]
        graphs.append(graph)
    module = MEAModule(dict(pretend.CHANNELS), "regression", 1, form="published").to(META)
    module.log_dict = lambda *_, **__: None
    batch = Batch.from_data_list(graphs).to(META)
    with pretend.kernels_accept_meta(), Pretended() as seen:
        module.training_step(batch, 0).backward()
    assert not seen.reads
    assert seen.launches.total() < 1000
    batch["text"].x = batch["text"].x[:-1]  # other rows than the batch was made of: what it kept says nothing of them
    assert known_layout(batch, tuple(pretend.CHANNELS)) is None


def test_a_ptr_alone_does_not_say_how_long_the_longest_sample_is() -> None:
    """The extractors read padded batches: each modality waits once, unless `max_length` says it."""
    x = {m: torch.randn(6, width, device=META) for m, width in pretend.CHANNELS.items()}
    ptr = torch.tensor([0, 2, 6]).to(META)
    network = MEA.published(pretend.CHANNELS, 1).to(META)
    with pretend.kernels_accept_meta(), Pretended(answer=4) as seen:
        network(x, dict.fromkeys(x, ptr))
    assert seen.reads == {"_local_scalar_dense in ops/pointers.py, max_length": 3}
    with pretend.kernels_accept_meta(), Pretended() as seen:
        network(x, {m: Pointers.from_ptr(ptr, 6, max_length=4) for m in x})
    assert not seen.reads


def test_inference_on_padded_batches_can_be_captured() -> None:
    """A CUDA graph replays what was launched: nothing may be read, or sent by the host; sizes follow from those of the batch alone."""
    seen = pretend.inference({"text": 16, "audio": 64, "vision": 64})
    assert not seen.reads
    assert 200 < seen.launches.total() <= 264


def test_the_fusion_graph_of_samples_that_lack_a_modality_reads_nothing() -> None:
    h = {m: torch.randn(4, 8, device=META, requires_grad=True) for m in ("a", "b", "c")}
    present = {m: torch.ones(4, dtype=torch.bool, device=META) for m in h}
    with Pretended() as seen:
        graph = fusion_graph(h, h, present, keep_absent=None)
        sum(graph[t].x.sum() for t in graph.node_types).backward()
        with pytest.raises(HostRead, match="nonzero in nn/graph/fusion_graph"):
            fusion_graph(h, h, present)
    assert seen.reads.total() == 1
    assert graph["a_exclusive", "to", "b_exclusive"].present.shape == (4,)
