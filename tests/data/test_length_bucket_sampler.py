import numpy as np
import pytest
from torch_geometric.loader import DataLoader

from mea_graph.data import LengthBucketBatchSampler


def lengths(total: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"audio": rng.integers(0, 80, total), "video": rng.integers(1, 40, total)}


@pytest.mark.parametrize("total", [1, 2, 7, 32, 33, 101])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_sample_comes_once_and_every_rank_has_as_many_batches(total, ranks, shuffle):
    samplers = [LengthBucketBatchSampler(lengths(total), 4, shuffle, num_replicas=ranks, rank=r, bucket_multiplier=3) for r in range(ranks)]
    batches = [list(s) for s in samplers]
    assert {len(b) for b in batches} == {len(samplers[0])}
    seen = [i for rank in batches for batch in rank for i in batch]
    assert all(1 <= len(batch) <= 4 + 1 for rank in batches for batch in rank)  # one more where a left-over joins
    assert set(seen) == set(range(total))
    assert len(seen) == max(total, ranks)  # only where there are fewer samples than ranks does one come twice


@pytest.mark.parametrize("total", [2, 7, 8, 24, 25, 26, 33])
@pytest.mark.parametrize("shuffle", [True, False])
def test_two_ranks_have_the_batches_of_one(total, shuffle):
    """A single sample that was left over came twice, once for each rank, and trained other weights."""
    one = list(LengthBucketBatchSampler(lengths(total), 8, shuffle))
    two = [list(LengthBucketBatchSampler(lengths(total), 4, shuffle, num_replicas=2, rank=rank)) for rank in range(2)]
    assert [sorted(batch) for batch in one] == [sorted(first + second) for first, second in zip(*two, strict=True)]
    assert len(one) == len(LengthBucketBatchSampler(lengths(total), 8, shuffle))
    assert total < 9 or min(map(len, one)) > 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_drop_last_leaves_full_batches_only(ranks):
    batches = [list(LengthBucketBatchSampler(lengths(30), 4, drop_last=True, num_replicas=ranks, rank=r)) for r in range(ranks)]
    assert all(len(batch) == 4 for rank in batches for batch in rank)
    assert len({i for rank in batches for batch in rank for i in batch}) == 30 // (4 * ranks) * 4 * ranks
    assert len(batches[0]) == len(LengthBucketBatchSampler(lengths(30), 4, drop_last=True, num_replicas=ranks))


def test_batches_depend_on_seed_and_epoch_only():
    def batches(seed, epoch):
        sampler = LengthBucketBatchSampler(lengths(200), 8, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(3, 5) == batches(3, 5)
    assert batches(3, 5) != batches(3, 6)
    assert batches(3, 5) != batches(4, 5)


def test_unshuffled_is_longest_first_in_every_epoch():
    sampler = LengthBucketBatchSampler(lengths(50), 8, shuffle=False)
    first = list(sampler)
    steps = sum(lengths(50).values())
    flat = [steps[i] for batch in first for i in batch]
    assert flat == sorted(flat, reverse=True)
    sampler.set_epoch(1)
    assert list(sampler) == first


def test_padding_is_what_the_batches_need():
    data = lengths(300)
    sampler = LengthBucketBatchSampler(data, 16, bucket_multiplier=10)
    real = sum(int(v.sum()) for v in data.values())
    padded = sum(int(v[batch].max()) * len(batch) for batch in sampler for v in data.values())
    assert sampler.padding.left == pytest.approx(1 - real / padded)


def test_sorting_saves_padding():
    one = {"audio": lengths(2000)["audio"]}
    left, random = LengthBucketBatchSampler(one, 32).padding
    assert random > 0.4  # uniform lengths waste nearly half
    assert left < 0.1
    plain = LengthBucketBatchSampler(one, 32, bucket_multiplier=1).padding
    assert plain.left == plain.random


def test_no_samples_and_no_steps():
    assert list(LengthBucketBatchSampler({"a": np.zeros(0, int)}, 4)) == []
    assert LengthBucketBatchSampler({"a": np.zeros(5, int)}, 4).padding == (0, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lengths": {}},
        {"lengths": [1, 2]},
        {"lengths": {"a": np.ones(3), "b": np.ones(4)}},
        {"batch_size": 0},
        {"num_replicas": 0},
        {"rank": 2, "num_replicas": 2},
        {"bucket_multiplier": 0},
        {"batches": 0},
        {"batches": 1, "lengths": {"a": np.zeros(0, int)}},
        {"batches": 1, "batch_size": 8, "drop_last": True},
        {"classes": np.zeros(4, int)},
        {"classes": np.zeros(5, int), "shuffle": False},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="expected"):
        LengthBucketBatchSampler(**{"lengths": lengths(5), "batch_size": 2, **arguments})


def test_feeds_a_data_loader(dataset):
    loader = DataLoader(dataset, batch_sampler=LengthBucketBatchSampler(dataset.lengths, batch_size=4))
    assert len(loader) == 2
    assert sorted(i for batch in loader for i in batch.id) == list("abcdef")


def test_lightning_finds_set_epoch(dataset):
    data = pytest.importorskip("lightning.fabric.utilities.data")
    sampler = LengthBucketBatchSampler(dataset.lengths, batch_size=2, seed=1)
    before = list(sampler)
    data._set_sampler_epoch(DataLoader(dataset, batch_sampler=sampler), 1)
    expected = LengthBucketBatchSampler(dataset.lengths, batch_size=2, seed=1)
    expected.set_epoch(1)
    assert list(sampler) == list(expected) != before


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("batches", [3, 7, 19])  # a pass has 11 batches of one rank, 6 of two
def test_epochs_of_any_number_of_batches_are_pieces_of_passes_in_a_row(batches, ranks):
    def sampler(rank, epoch, batches=None):
        sampler = LengthBucketBatchSampler(lengths(41), 4, num_replicas=ranks, rank=rank, batches=batches, bucket_multiplier=2)
        sampler.set_epoch(epoch)
        return sampler

    for rank in range(ranks):
        passes = [batch for number in range(12) for batch in sampler(rank, number)]
        epochs = [list(sampler(rank, epoch, batches)) for epoch in range(3)]
        assert [len(epoch) for epoch in epochs] == [batches] * 3
        assert len(sampler(rank, 0, batches)) == batches
        assert [batch for epoch in epochs for batch in epoch] == passes[: 3 * batches]
    assert 0 < sampler(0, 1, batches).padding.left < 1


def test_balanced_passes_have_as_many_of_each_class_and_come_round_to_every_sample():
    classes = np.array([0] * 30 + [1] * 7 + [2] * 4)
    sampler = LengthBucketBatchSampler(lengths(41), 4, classes=classes)
    seen, fewest = [], set()
    for epoch in range(12):
        sampler.set_epoch(epoch)
        drawn = [i for batch in sampler for i in batch]
        assert len(drawn) == 41
        assert sorted(np.bincount(classes[drawn])) == [13, 14, 14]
        fewest.add(int(np.bincount(classes[drawn]).argmin()))
        times = np.bincount(drawn, minlength=41)
        assert times[classes == 0].max() == 1
        assert {1, 2} >= set(times[classes == 1])
        assert {3, 4} >= set(times[classes == 2])
        seen.append(tuple(drawn))
    assert len(set(seen)) == 12
    assert fewest == {0, 1, 2}  # what is left over goes to no class more often than to others
    assert {i for drawn in seen for i in drawn} == set(range(41))


def test_balanced_batches_of_all_ranks_are_those_of_one():
    classes = np.arange(24) % 5 // 4
    whole = list(LengthBucketBatchSampler(lengths(24), 6, classes=classes))
    parts = [list(LengthBucketBatchSampler(lengths(24), 3, classes=classes, num_replicas=2, rank=rank)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
