import numpy as np
import pytest

from mea_graph.baselines.scores import constant_scores
from mea_graph.train import SequenceDataModule

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
