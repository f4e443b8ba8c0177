import csv
from pathlib import Path

import pytest
import torch

from mea_graph.train.prediction_writer import prediction_row, write_rows


def test_a_class_is_written_by_its_name_in_every_column():
    row = prediction_row("a", "classification", ["rest", "stress"], torch.tensor([0.0, 1.0]), "rest")
    assert list(row) == ["id", "target", "prediction", "probability_rest", "probability_stress"]
    assert (row["target"], row["prediction"]) == ("rest", "stress")
    assert [row["probability_rest"], row["probability_stress"]] == pytest.approx([1 / (1 + torch.e), torch.e / (1 + torch.e)])


def test_each_label_has_a_probability_of_its_own():
    """Labels are no classes: their probabilities do not sum to 1; and a logit of exactly 0 is no label."""
    row = prediction_row("a", "multilabel", ["sad", "happy", "angry"], torch.tensor([2.0, 1.0, 0.0]), [1.0, 0.0, 0.0])
    probabilities = [row[f"probability_{name}"] for name in ("sad", "happy", "angry")]
    assert probabilities == pytest.approx([0.880797, 0.731059, 0.5], abs=1e-6)
    assert [row[f"prediction_{name}"] for name in ("sad", "happy", "angry")] == [1, 1, 0]
    assert [row[f"target_{name}"] for name in ("sad", "happy", "angry")] == [1, 0, 0]


def test_a_file_is_written_in_one_piece():
    """What was there before is replaced when all of it is written."""
    Path("predictions.csv").write_text("before")
    write_rows(
        Path("predictions.csv"), [prediction_row(id_, "regression", [], torch.tensor([v]), v) for id_, v in (("a", 1.0), ("b", 2.0))]
    )
    with Path("predictions.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["id", "target", "prediction"], ["a", "1.0", "1.0"], ["b", "2.0", "2.0"]]
