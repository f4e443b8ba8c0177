import csv
from pathlib import Path

import pytest
import torch

from mea_graph.train.prediction_writer import PredictionWriter


def writer(task, names=None):
    return PredictionWriter(Path("predictions.csv"), task, ["a", "b"], names)


def test_a_class_is_written_by_its_name_in_every_column():
    row = writer("classification", ["rest", "stress"]).row("a", torch.tensor([0.0, 1.0]), torch.tensor(0))
    assert list(row) == ["id", "target", "prediction", "probability_rest", "probability_stress"]
    assert (row["target"], row["prediction"]) == ("rest", "stress")
    assert [row["probability_rest"], row["probability_stress"]] == pytest.approx([1 / (1 + torch.e), torch.e / (1 + torch.e)])


def test_a_class_without_a_name_is_its_number():
    row = writer("classification").row("a", torch.tensor([0.0, 0.0, 1.0]), None)
    assert row["prediction"] == "2"
    assert list(row) == ["id", "prediction", "probability_0", "probability_1", "probability_2"]


def test_each_label_has_a_probability_of_its_own():
    """Labels are no classes: their probabilities do not sum to 1; and a logit of exactly 0 is no label."""
    row = writer("multilabel", ["sad", "happy", "angry"]).row("a", torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
    probabilities = [row[f"probability_{name}"] for name in ("sad", "happy", "angry")]
    assert probabilities == pytest.approx([0.880797, 0.731059, 0.5], abs=1e-6)
    assert [row[f"prediction_{name}"] for name in ("sad", "happy", "angry")] == [1, 1, 0]
    assert [row[f"target_{name}"] for name in ("sad", "happy", "angry")] == [1, 0, 0]


def test_rows_come_in_the_order_of_the_data():
    """And in one piece: what was there before stays until all of it is written."""
    Path("predictions.csv").write_text("before")
    writing = writer("regression")
    rows = [writing.row(id_, torch.tensor([value]), torch.tensor(value)) for id_, value in (("b", 2.0), ("a", 1.0))]
    writing._write(rows)
    with Path("predictions.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["id", "target", "prediction"], ["a", "1.0", "1.0"], ["b", "2.0", "2.0"]]
