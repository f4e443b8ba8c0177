"""Rows on one device, and what says where they are on another: refused by name, since a kernel would read an address that means nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.pretend import META, kernels_accept_meta
from mea_graph.nn import UnimodalExtractor
from mea_graph.ops import (
    IntervalEdges,
    Pointers,
    edge_attention,
    interval_attention,
    predictive_attention,
    sort_edges,
)
from mea_graph.ops.recurrent import bigru, bilstm

PTR, EDGES, RUNS = torch.tensor([0, 2, 5]), torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0], [0], [2], [2], [2]])


def rows(device: torch.device) -> Tensor:
    return torch.zeros(5, 2, 4, device=device)


def at(device: torch.device) -> Pointers:
    return Pointers.from_ptr(PTR, 5, 3).to(device)


def weights(gates: int, device: torch.device) -> list[Tensor]:
    shapes = [(gates * 4, 3), (gates * 4, 4), (gates * 4,), (gates * 4,)] * 2
    return [torch.zeros(shape, device=device) for shape in shapes]


CALLS: dict[str, tuple[Callable[[torch.device, torch.device], object], str]] = {
    "predictive_attention": (
        lambda here, there: predictive_attention(
            *[rows(here)] * 3, at(there), rows(here), rows(here), torch.zeros(2, 2, 3, 3, device=here)
        ),
        "pointers: expected tensors on {here}, where query is, got some on {there}",
    ),
    "predictive_attention by edges": (
        lambda here, there: predictive_attention(*[rows(here)] * 3, at(here), edges=IntervalEdges.complete(at(there), at(there))),
        "edges: expected tensors on {here}, where query is, got some on {there}",
    ),
    "predictive_attention by a list": (
        lambda here, there: predictive_attention(*[rows(here)] * 3, at(here), edges=EDGES.to(there)),
        "edges: expected tensors on {here}, where query is, got some on {there}",
    ),
    "interval_attention": (
        lambda here, there: interval_attention(*[rows(here)] * 3, IntervalEdges.complete(at(there), at(there))),
        "edges: expected tensors on {here}, where query is, got some on {there}",
    ),
    "interval_attention by a list": (
        lambda here, there: interval_attention(*[rows(here)] * 3, EDGES.to(there)),
        "edges: expected tensors on {here}, where query is, got some on {there}",
    ),
    "edge_attention": (
        lambda here, there: edge_attention(rows(here), rows(here)[:, :, 0], rows(here)[:, :, 0], EDGES.to(there)),
        "edge_index: expected tensors on {here}, where x is, got some on {there}",
    ),
    "edge_attention, sorted": (
        lambda here, there: edge_attention(rows(here), rows(here)[:, :, 0], rows(here)[:, :, 0], sort_edges(EDGES.to(there), 5, 5)),
        "edge_index: expected tensors on {here}, where x is, got some on {there}",
    ),
    "bilstm": (
        lambda here, there: bilstm([rows(here)[:, 0, :3]] * 2, [weights(4, here)] * 2, [at(here), at(there)]),
        r"pointers\[1\]: expected tensors on {here}, where x\[1\] is, got some on {there}",
    ),
    "bigru": (
        lambda here, there: bigru([rows(here)[:, 0, :3]], [weights(3, here)], [at(there)]),
        r"pointers\[0\]: expected tensors on {here}, where x\[0\] is, got some on {there}",
    ),
    "a source": (
        lambda here, there: IntervalEdges.complete([at(here), at(there)], at(here)),
        r"sources\[1\]: expected tensors on {here}, where the target is, got some on {there}",
    ),
    "runs": (
        lambda here, there: IntervalEdges([at(here)], at(here), RUNS.to(there), RUNS.to(here)),
        "begin: expected tensors on {here}, where the target is, got some on {there}",
    ),
    "runs anywhere": (
        lambda here, there: IntervalEdges.of_runs(torch.zeros(2, 1, device=here), torch.zeros(2, 1, device=there), 5, at(here)),
        "source_length: expected tensors on {here}, where the target is, got some on {there}",
    ),
    "lengths": (
        lambda here, there: Pointers(torch.zeros(2, dtype=torch.int64, device=here), torch.zeros(2, dtype=torch.int64, device=there), 5),
        "length: expected tensors on {here}, where start is, got some on {there}",
    ),
    "a layer, pointers": (
        lambda here, there: UnimodalExtractor(4, 8).to(here)(rows(here)[:, 0], at(there)),
        "its layout of x: expected tensors on {here}, where x is, got some on {there}",
    ),
    "a layer, ptr": (
        lambda here, there: UnimodalExtractor(4, 8).to(here)(rows(here)[:, 0], PTR.to(there)),
        "its ptr of x: expected tensors on {here}, where x is, got some on {there}",
    ),
    "a layer, mask": (
        lambda here, there: UnimodalExtractor(4, 8).to(here)(rows(here), torch.ones(5, 2, dtype=torch.bool, device=there)),
        "its mask of x: expected tensors on {here}, where x is, got some on {there}",
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("here", "there"), [(META, torch.device("cpu")), (torch.device("cpu"), META)], ids=["of the host", "of a device"])
def test_pointers_of_another_place_are_refused_by_name(name: str, here: torch.device, there: torch.device) -> None:
    """The pretended device has no addresses; a kernel of a real one would have read those of the other place."""
    call, message = CALLS[name]
    with kernels_accept_meta(), pytest.raises(ValueError, match="^" + message.format(here=here, there=there)):
        call(here, there)
    if here != META:
        call(here, here)  # the other arguments are sound
