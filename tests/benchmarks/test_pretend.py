"""Nothing in a training step waits for a device: held on a device that has no numbers to read."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import pretend
from benchmarks.pretend import META, HostRead, Pretended
from mea_graph.nn import fusion_graph


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
    ],
    ids=["item", "tolist", "bool", "int", "nonzero", "by bools", "masked_select", "cpu", "repeats", "from the host", "put by bools"],
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


@pytest.mark.parametrize("layout", ["padded", "rows"])
def test_a_training_step_waits_for_nothing_but_the_longest_length(layout: str) -> None:
    """Rows with ptr do not say how long the longest sample is, a padded batch does. Launches as they are; one more is a step back."""
    seen = pretend.training_step(layout, answer=None if layout == "padded" else 500)
    assert seen.reads == ({} if layout == "padded" else {"_local_scalar_dense in ops/pointers.py, max_length": 3})
    assert 1000 < seen.launches.total() <= 2809
    assert seen.launches["predictive_attention_triton"] == 2 * seen.launches["predictive_attention_triton_backward"] / 9 > 0
    assert seen.launches["interval_attention_triton"] == seen.launches["interval_attention_triton_backward"] / 2 > 0


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
