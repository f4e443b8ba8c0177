import numpy as np
import pytest

from mea_graph.baselines.scores import baseline_scores, constant_scores
from mea_graph.data import MultimodalDataset
from mea_graph.train import SequenceDataModule, SplitPolicy

PARTS = np.array(["train"] * 4 + ["valid"] * 4 + ["test"] * 4)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_the_constant_knows_the_training_targets_alone(tmp_path, part):
    """What is measured says otherwise: whoever looked at it would score better."""

    def scores(name, label):
        np.savez(tmp_path / name, audio=np.ones((12, 3, 2)), lips=np.ones((12, 3, 2)), label=label, split=PARTS)
        return constant_scores(SequenceDataModule(str(tmp_path / name), reader={"split": "split"}), part)

    assert scores("classes.npz", np.array([0, 0, 0, 1] + [1, 1, 1, 0] * 2))["accuracy"] == 0.25
    assert scores("values.npz", np.array([0.0] * 4 + [3.0, 3.0, 3.0, 7.0] * 2))["mae"] == 4.0
    labels = np.array([[0, 1], [0, 1], [0, 1], [1, 0]] + [[1, 0], [1, 0], [1, 0], [0, 1]] * 2, dtype=np.float32)
    assert scores("labels.npz", labels)["accuracy"] == 0.25


@pytest.mark.parametrize("by", ["split", "site"])
def test_what_divides_the_data_may_have_one_value_in_training(by):
    """`test` ended with a KeyError where the file's own splits divide the data; of one site no fold was made, and no penalty chosen."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=90)
    sequences = {"audio": [value + 0.1 * rng.normal(size=(3, 2)) for value in y]}
    names = ["seen"] * 60 + ["held"] * 10 + ["new"] * 20
    known = {"split": names} if by == "split" else {"fields": {"site": names}}
    dataset = MultimodalDataset.from_arrays(sequences, y, **known)
    split = SplitPolicy(by=by, train=["seen"], valid=["held"], test=["new"])
    found = baseline_scores(SequenceDataModule(dataset, split=split), "test")
    assert found["pooled linear"]["r2"] > 0.95
