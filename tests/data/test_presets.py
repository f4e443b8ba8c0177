import numpy as np
import pytest

from mea_graph.data import IEMOCAP, MOSEI, MOSI, DataError, MultimodalDataset


def matching(preset, **changes):
    """A data set of the protocol's outline, with one step a sample except for the longest."""
    total = sum(preset.split_sizes.values())
    one = {name: np.ones((1, widths[0]), np.float32) for name, widths in preset.widths.items()}
    x = {name: [row] * total for name, row in one.items()}
    for name, longest in preset.max_lengths.items():
        x[name][0] = np.ones((longest, one[name].shape[1]), np.float32)
    labels = np.zeros((total, 4)) if preset.task == "multilabel" else np.linspace(-3, 3, total)
    split = np.repeat(list(preset.split_sizes), list(preset.split_sizes.values()))
    return MultimodalDataset.from_arrays(**{"x": x, "y": labels, "split": split, **changes})


@pytest.mark.parametrize("preset", [MOSI, IEMOCAP], ids=lambda p: p.name)
def test_data_of_the_protocol_pass(preset):
    data = matching(preset)
    assert preset.mismatches(data) == []
    preset.check(data)


def test_everything_that_differs_is_listed():
    data = MultimodalDataset.from_arrays(
        {"text": [np.ones((51, 300))] * 2, "audio": [np.ones((3, 74))] * 2, "gaze": [np.ones((1, 1))] * 2},
        y=[1, 0],
        split=["train", "test"],
    )
    assert MOSI.mismatches(data) == [
        "text: expected at most 50 steps, got 51",
        "audio: expected width 5, got 74",
        "vision: expected width 20, got no such modality",
        "modalities: expected ['text', 'audio', 'vision'], got ['gaze'] besides",
        "y: expected real numbers in [-3, 3], got int64 of shape (2,) from 0 to 1",
        "split train: expected 1284 samples, got 1",
        "split valid: expected 229 samples, got 0",
        "split test: expected 686 samples, got 1",
    ]
    with pytest.raises(DataError, match="CMU-MOSI: 8 differences"):
        MOSI.check(data)


def test_scores_out_of_range_missing_labels_and_missing_splits_are_seen():
    x = {"text": [np.ones((1, 300))], "audio": [np.ones((1, 5))], "vision": [np.ones((1, 20))]}
    assert "y: expected real numbers in [-3, 3], got float32 of shape (1,) from 3.5 to 3.5" in MOSI.mismatches(
        MultimodalDataset.from_arrays(x, y=[3.5])
    )
    found = MOSI.mismatches(MultimodalDataset.from_arrays(x))
    assert found[0] == "y: expected real numbers in [-3, 3], got none"
    assert found[-1] == "split: expected ['train', 'valid', 'test'], got none"
    assert any("label names" in line for line in IEMOCAP.mismatches(matching(IEMOCAP, label_names=["a", "b", "c", "d"])))


def test_the_numbers_are_those_of_the_paper():
    table = {preset.name: preset.hyperparameters for preset in (MOSI, MOSEI, IEMOCAP)}
    rows = {
        name: [(row | row["exclusive"])[k] for k in ("batch_size", "epochs", "learning_rate", "heads", "mu", "alpha", "beta")]
        for name, row in table.items()
    }
    assert rows == {
        "CMU-MOSI": [32, 60, 1e-3, 8, 0.25, 2e-2, 3e-2],
        "CMU-MOSEI": [64, 100, 2e-3, 10, 0.15, 3e-2, 5e-2],
        "IEMOCAP": [32, 60, 1e-3, 8, 0.2, 1e-2, 2e-2],
    }
    assert all(
        (row["channels"], row["hidden_channels"], row["exclusive"]["num_layers"], row["agnostic"]["num_layers"]) == (40, 64, 3, 2)
        for row in table.values()
    )
    assert [dict(row["extractor"]["kernel_size"]) for row in table.values()] == [
        {"text": 3, "audio": 3, "vision": 3},
        {"text": 3, "audio": 3, "vision": 3},
        {"text": 3, "audio": 5, "vision": 3},
    ]
    assert [list(p.split_sizes.values()) for p in (MOSI, MOSEI, IEMOCAP)] == [[1284, 229, 686], [16326, 1871, 4659], [2717, 798, 938]]


@pytest.mark.parametrize("preset", [MOSI, MOSEI, IEMOCAP], ids=lambda p: p.name)
def test_instructions_name_the_files_and_the_command(preset):
    text = preset.instructions("somewhere")
    assert all(f"somewhere/{file}" in text for file in preset.files)
    assert f"--config {preset.config} " in text
    assert preset.config in ("mosi", "mosei", "iemocap")


def test_a_preset_cannot_be_changed():
    with pytest.raises(TypeError):
        MOSI.hyperparameters["heads"] = 4
    with pytest.raises(AttributeError):
        MOSI.name = "other"
