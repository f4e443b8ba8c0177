"""Rows belong to their sample however a batch is made."""

import itertools

import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Batch, HeteroData
from torch_geometric.loader import DataLoader

from mea_graph.data import AddMissingModalities, DataError, check_batch

STEPS = {"ann": {"a": 3, "b": 2}, "bob": {"a": 1, "b": 0}, "eve": {"a": 2, "b": 3}}
CHANNELS = {"a": 4, "b": 2}


def sample(name, number):
    """A sample whose rows all hold its number; where it has no rows of a modality it lacks the node type altogether."""
    data = HeteroData(id=name, y=torch.tensor([number]))
    for modality, steps in STEPS[name].items():
        if steps:
            data[modality].x = torch.full((steps, CHANNELS[modality]), float(number))
            data[modality].time = torch.arange(steps) / 10
    return data


def samples(order=("ann", "bob", "eve")):
    return [sample(name, number) for number, name in enumerate(order)]


@pytest.mark.parametrize("order", list(itertools.permutations(STEPS)))
def test_rows_of_filled_samples_belong_to_their_sample(order):
    fill = AddMissingModalities(CHANNELS, time=["a", "b"])
    (batch,) = DataLoader([fill(data) for data in samples(order)], batch_size=3)
    check_batch(batch)
    for modality in CHANNELS:
        owner = batch.batch_dict[modality]
        assert torch.equal(batch.x_dict[modality][:, 0], owner.float())
        assert torch.bincount(owner, minlength=3).tolist() == [STEPS[name][modality] for name in order]
        assert batch[modality].time.shape == owner.shape


@pytest.mark.parametrize("order", list(itertools.permutations(STEPS)))
def test_a_batch_with_misplaced_rows_is_refused(order):
    (batch,) = DataLoader(samples(order), batch_size=3)
    with pytest.raises(DataError, match=r"node type 'b': expected all 3 samples .*'bob'.* to have it.*AddMissingModalities"):
        check_batch(batch, CHANNELS)
    if order[0] != "bob":  # otherwise PyG has dropped the node type, and only the model's modalities tell
        with pytest.raises(DataError, match=r"'b'.*, got 2; "):
            check_batch(batch)


def test_samples_are_refused_by_name():
    with pytest.raises(DataError, match=r"sample 'bob': expected the node types \['a', 'b'\], got none 'b'; .*AddMissingModalities"):
        check_batch(samples())
    check_batch([samples()[1]])
    with pytest.raises(DataError, match="sample 'bob'"):
        check_batch([samples()[1]], CHANNELS)
    with pytest.raises(DataError, match="sample 'bob'"):
        check_batch(samples()[1], CHANNELS)
    with pytest.raises(DataError, match="sample 1: "):
        check_batch([HeteroData(a={"x": torch.ones(1, 1)}), HeteroData()])


def test_a_node_type_that_was_only_asked_for_is_lacking():
    first, second, third = samples()
    assert second["b"].get("x") is None  # PyG makes an empty node type here
    with pytest.raises(DataError, match="sample 'bob'"):
        check_batch([first, second, third])
    assert AddMissingModalities(CHANNELS)(second)["b"].x.shape == (0, 2)


def test_good_batches_pass():
    check_batch(Batch.from_data_list([samples()[0], samples()[2]]), CHANNELS)
    by_hand = HeteroData(a={"x": torch.ones(2, 4), "batch": torch.tensor([0, 1])}, num_graphs=2)
    check_batch(by_hand)


def test_filling_leaves_the_sample_alone_and_follows_its_dtype():
    before = samples()[1]
    before["a"].x = before["a"].x.double()
    after = T.Compose([AddMissingModalities(CHANNELS)])(before)
    assert before.node_types == ["a"]
    assert after["b"].x.dtype == torch.float64
    assert "time" not in after["b"]
    assert AddMissingModalities(CHANNELS)(HeteroData())["a"].x.dtype == torch.float32


def test_what_does_not_fit_is_refused():
    wide = samples()[0]
    wide["b"].x = torch.ones(2, 5)
    with pytest.raises(DataError, match=r"sample 'ann': b: expected x of shape \(T, 2\), got \(2, 5\)"):
        AddMissingModalities(CHANNELS)(wide)
    del wide["b"].x
    with pytest.raises(DataError, match=r"sample 'ann': b: expected x .* got none beside \['time'\]"):
        AddMissingModalities(CHANNELS)(wide)
    with pytest.raises(DataError, match=r"time: expected modalities among \['a', 'b'\], got \['c'\]"):
        AddMissingModalities(CHANNELS, time="c")
