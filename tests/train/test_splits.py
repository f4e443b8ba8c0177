import numpy as np
import pytest

from mea_graph.data import DataError, MultimodalDataset
from mea_graph.train import SplitPolicy

SUBJECT = np.repeat(np.arange(11), [3, 9, 1, 4, 7, 2, 8, 5, 6, 3, 2])
FIELDS = {"subject": SUBJECT, "rep": np.tile([1, 2, 3], 17)[: len(SUBJECT)]}
Y = np.random.default_rng(0).choice(4, len(SUBJECT), p=[0.5, 0.3, 0.1, 0.1])


def check_partition(parts, count):
    """Every sample in at most one part."""
    together = np.concatenate(list(parts.values()))
    assert len(np.unique(together)) == len(together)
    assert set(together) <= set(range(count))


def test_own_splits():
    parts = SplitPolicy().apply(4, ["train", "test", "valid", "train"])
    assert {name: part.tolist() for name, part in parts.items()} == {"train": [0, 3], "valid": [2], "test": [1]}


@pytest.mark.parametrize(
    ("names", "ids", "message"),
    [
        (
            ["train", "trian", "test"],
            None,
            r"split: sample 1: expected train, valid or test, got 'trian' \(did you mean 'train'\?\); split.by=",
        ),
        (
            ["train", "test", "tset", "x"],
            list("abcd"),
            r"split: sample 'c': .* got 'tset' \(did you mean 'test'\?\) \(one of 2 samples in no part\)",
        ),
        (["train", "Train"], None, "split: sample 1: expected train, valid or test, got 'Train'"),
        (["fold 1", "fold 2"], None, "split: sample 0: expected train, valid or test, got 'fold 1'"),
        (["train", "extra", "test2"], list("abc"), r"split: sample 'c': .* got 'test2' \(did you mean 'test'\?\)"),  # there is no "test"
        (["train", "test", "Dev-clean"], None, "split: sample 2: expected train, valid or test, got 'Dev-clean'"),
        (["train", "valid", "dev"], None, "split: sample 2: expected train, valid or test, got 'dev'"),  # two names of one part
    ],
)
def test_a_name_that_is_none_puts_no_sample_in_no_part(names, ids, message):
    with pytest.raises(DataError, match=message):
        SplitPolicy().apply(len(names), names, ids=ids)


def test_further_splits_are_left_out_with_one_warning():
    names = ["train", "test2", "valid", "extra", "test", "test2", ""]
    with pytest.warns(UserWarning, match="^split: ") as warned:
        parts = SplitPolicy().apply(len(names), names)
    assert {name: part.tolist() for name, part in parts.items()} == {"train": [0], "valid": [2], "test": [4]}
    (warning,) = warned
    told = "split: 3 samples are left out, whose splits are neither train, valid nor test: 'extra' (1), 'test2' (2); split.by='split'"
    assert str(warning.message).startswith(told)
    with pytest.warns(UserWarning, match=r": 'e0' \(1\), .*, 'e4' \(1\) and 4 more; split.by="):
        SplitPolicy().apply(10, ["train", *(f"e{i}" for i in range(9))])
    assert SplitPolicy(by="split", train=["train", "extra"], test=["test2"]).apply(7, names)["train"].tolist() == [0, 3]


def test_a_field_called_split_that_is_not_read_as_one_is_named():
    fields = {"split": np.array(["train", "test", "extra", "train"])}
    with pytest.raises(DataError, match=r"; its field 'split' \(extra, test, train\) becomes them by the reader's option split='split'"):
        SplitPolicy().apply(4, None, fields)


def test_names_of_ones_own_are_divided_as_a_field_is():
    names = ["first", "second", "extra", "second"]
    parts = SplitPolicy(by="split", train=["second"], test=["first"]).apply(4, names)
    assert {name: part.tolist() for name, part in parts.items()} == {"train": [1, 3], "test": [0]}
    parts = SplitPolicy(by="split", folds=3, fold=0).apply(4, names)
    assert parts["test"].tolist() == [1, 3]
    field = {"split": np.array(list("xyxy"))}  # a field of that name counts
    assert SplitPolicy(by="split", train=["x"], test=["y"]).apply(4, names, field)["train"].tolist() == [0, 2]
    left_out = SplitPolicy().apply(4, ["train", "", "test", "train"])
    assert {name: part.tolist() for name, part in left_out.items()} == {"train": [0, 3], "test": [2]}


def test_values_of_a_field_are_compared_as_text():
    for values in (FIELDS["rep"], FIELDS["rep"].astype(str)):
        parts = SplitPolicy(by="rep", train=[1, "2"], test=[3]).apply(len(values), fields={"rep": values})
        assert (FIELDS["rep"][parts["test"]] == 3).all()
        assert (FIELDS["rep"][parts["train"]] < 3).all()
        assert len(parts["test"]) + len(parts["train"]) == len(values)


def test_folds_cover_every_sample_once_and_never_cut_a_group():
    tested = []
    for fold in range(4):
        parts = SplitPolicy(by="subject", folds=4, fold=fold).apply(len(SUBJECT), fields=FIELDS)
        check_partition(parts, len(SUBJECT))
        assert not set(SUBJECT[parts["train"]]) & set(SUBJECT[parts["test"]])
        assert abs(len(parts["test"]) - len(SUBJECT) / 4) <= 2
        tested.append(parts["test"])
    assert np.array_equal(np.sort(np.concatenate(tested)), np.arange(len(SUBJECT)))


@pytest.mark.parametrize("names", [("Rene\u0301", "Ren\u00e9"), ("ann", "ann "), ("bob", "Bob")])
def test_names_that_can_hardly_be_told_apart_are_told(names):
    """One speaker under two names trains and tests."""
    fields = {"speaker": np.array([*names, "cat", "dan"])}
    with pytest.warns(UserWarning, match="of 'speaker' differ in nothing but spaces, capitals or the form of letters"):
        SplitPolicy(by="speaker", folds=2).apply(4, fields=fields)
    dataset = MultimodalDataset.from_arrays({"a": [np.ones((2, 1))] * 4}, fields=fields)
    with pytest.warns(UserWarning, match="standardize: .* of 'speaker' differ in nothing but spaces"):
        dataset.standardize(by="speaker")


def test_folds_do_not_depend_on_the_seed():
    first, second = (SplitPolicy(by="subject", folds=3, fold=1, seed=seed).apply(len(SUBJECT), fields=FIELDS) for seed in (0, 1))
    assert np.array_equal(first["test"], second["test"])


@pytest.mark.parametrize("seed", range(5))
def test_validation_by_group_keeps_groups_together(seed):
    policy = SplitPolicy(by="subject", folds=4, fold=2, valid_fraction=0.25, valid_by="subject", seed=seed)
    parts = policy.apply(len(SUBJECT), fields=FIELDS, y=Y)
    check_partition(parts, len(SUBJECT))
    groups = [set(SUBJECT[part]) for part in parts.values()]
    assert len(set.union(*groups)) == sum(len(group) for group in groups)
    share = len(parts["valid"]) / (len(parts["valid"]) + len(parts["train"]))
    assert 0.1 < share < 0.4


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.75])
def test_validation_is_stratified_by_the_target(fraction):
    y = np.random.default_rng(1).choice(3, 400, p=[0.6, 0.3, 0.1])
    parts = SplitPolicy(valid_fraction=fraction).apply(400, ["train"] * 400, y=y)
    check_partition(parts, 400)
    assert len(parts["valid"]) == round(400 * fraction)
    for label in range(3):
        assert abs((y[parts["valid"]] == label).sum() - fraction * (y == label).sum()) <= 1


def test_validation_depends_on_its_seed_only():
    def valid(seed):
        return SplitPolicy(valid_fraction=0.2, seed=seed).apply(len(Y), ["train"] * len(Y), y=Y)["valid"].tolist()

    assert valid(0) == valid(0)
    assert valid(0) != valid(1)


def test_test_samples_never_become_validation_samples():
    policy = SplitPolicy(by="rep", train=[1, 2], test=[3], valid_fraction=0.3)
    parts = policy.apply(len(SUBJECT), fields=FIELDS, y=Y)
    check_partition(parts, len(SUBJECT))
    assert (FIELDS["rep"][parts["test"]] == 3).all()
    assert (FIELDS["rep"][parts["test"]] == 3).sum() == (FIELDS["rep"] == 3).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": [1]}, "split.by: expected a field name"),
        ({"folds": 3}, "split.by: expected a field name"),
        ({"by": "rep"}, "expected split.train and split.test"),
        ({"by": "rep", "folds": 3, "test": [1]}, "got both"),
        ({"by": "rep", "folds": 3, "fold": 3}, "0 <= fold < folds"),
        ({"by": "rep", "folds": 1}, "folds >= 2"),
        ({"valid_fraction": 1.0}, r"share in \(0, 1\)"),
        ({"by": "rep", "train": [1], "test": [2], "valid": [3], "valid_fraction": 0.5}, "split.valid or split.valid_fraction"),
        ({"valid_by": "rep"}, "expected split.valid_fraction with it"),
    ],
)
def test_contradicting_options(options, message):
    with pytest.raises(DataError, match=message):
        SplitPolicy(**options)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (SplitPolicy(), "the data has no splits of its own"),
        (SplitPolicy(by="speaker", folds=2), "expected a field of the data .rep, subject., got 'speaker'"),
        (SplitPolicy(by="rep", train=[1], test=[4]), "rep has no value '4'; it has 1, 2, 3"),
        (SplitPolicy(by="rep", train=[1, 2], test=[2]), "given for train and for test"),
        (SplitPolicy(by="rep", folds=4), "at most 3 folds"),
        (SplitPolicy(by="rep", train=[1], test=[3], valid_fraction=0.001), "leaves one of the two parts empty"),
    ],
)
def test_policies_that_the_data_does_not_allow(policy, message):
    with pytest.raises(DataError, match=message):
        policy.apply(len(SUBJECT), None, FIELDS, Y)


def test_a_validation_split_of_the_file_is_not_silently_replaced():
    with pytest.raises(DataError, match="has a valid split of its own"):
        SplitPolicy(valid_fraction=0.5).apply(4, ["train", "train", "valid", "test"])


def test_validation_by_groups_takes_training_samples_alone():
    """A speaker of the training part may be in the test part too: those samples stay there."""
    split, speaker = np.array(["train"] * 8 + ["test"] * 4), np.array([0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3])
    for seed in range(5):
        parts = SplitPolicy(valid_fraction=0.25, valid_by="who", seed=seed).apply(12, split, {"who": speaker})
        assert parts["test"].tolist() == [8, 9, 10, 11]
        assert sorted([*parts["train"], *parts["valid"]]) == list(range(8))
        assert len(set(speaker[parts["valid"]]) & set(speaker[parts["train"]])) == 0
