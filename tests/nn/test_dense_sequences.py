"""From a PyG batch to padded sequences: every step stands where its sample and its place say."""

from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.loader import DataLoader

from mea_graph.nn import dense_sequences

LENGTHS = {"text": [2, 0, 4], "audio": [1, 5, 0]}


def sample(b: int) -> HeteroData:
    data = HeteroData()
    for m, n in LENGTHS.items():
        data[m].x = torch.randn(n[b], 3)
    return data


def test_every_step_is_in_its_place() -> None:
    samples = [sample(b) for b in range(3)]
    batch = next(iter(DataLoader(samples, batch_size=3)))
    x, mask = dense_sequences(batch.x_dict, batch.batch_dict, batch.num_graphs)
    for m, n in LENGTHS.items():
        assert x[m].shape == (3, max(n), 3)
        assert mask[m].tolist() == [[t < steps for t in range(max(n))] for steps in n]
        for b in range(3):
            assert torch.equal(x[m][b, : n[b]], samples[b][m].x)
            assert not x[m][b, n[b] :].any()


def test_a_modality_missing_everywhere_has_one_step_of_padding() -> None:
    x, mask = dense_sequences(
        {"a": torch.ones(2, 3), "b": torch.ones(0, 5)}, {"a": torch.tensor([0, 1]), "b": torch.zeros(0, dtype=torch.int64)}
    )
    assert x["b"].shape == (2, 1, 5)
    assert not x["b"].any()
    assert mask["b"].tolist() == [[False], [False]]


def test_the_batch_size_is_one_more_than_the_last_sample_of_any_modality() -> None:
    x = {"a": torch.ones(2, 3), "b": torch.ones(1, 5)}
    batch = {"a": torch.tensor([0, 1]), "b": torch.tensor([3])}
    assert {m: v.size(0) for m, v in dense_sequences(x, batch)[0].items()} == {"a": 4, "b": 4}
    assert {m: v.size(0) for m, v in dense_sequences(x, batch, 6)[0].items()} == {"a": 6, "b": 6}
    empty = {m: v[:0] for m, v in x.items()}, {m: v[:0] for m, v in batch.items()}
    assert {m: v.shape for m, v in dense_sequences(*empty)[0].items()} == {"a": (0, 1, 3), "b": (0, 1, 5)}


def test_gradients_return_to_the_steps() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    batch = torch.tensor([0, 2, 2, 3])
    assert torch.autograd.gradcheck(lambda x: dense_sequences({"a": x}, {"a": batch})[0]["a"], x)


@pytest.mark.parametrize(
    ("x", "batch", "message"),
    [
        ({"a": torch.ones(2, 3)}, {"b": torch.tensor([0, 1])}, r"batch_dict: expected the modalities \['a'\], got \['b'\]"),
        ({"a": torch.ones(2)}, {"a": torch.tensor([0, 1])}, r"a: expected x \(N, d\) and batch \(N,\), got \(2,\) and \(2,\)"),
        ({"a": torch.ones(2, 3)}, {"a": torch.tensor([0])}, r"a: expected x \(N, d\) and batch \(N,\), got \(2, 3\) and \(1,\)"),
        ({"a": torch.ones(2, 3)}, {"a": torch.tensor([1, 0])}, "a: expected sorted sample indices in batch, got unsorted ones"),
    ],
)
def test_bad_input_is_named(x: Any, batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dense_sequences(x, batch)
