"""Every fault of the issue's list, by the command line: one line that names file, field, expected and found; exit code 2; nothing written.

The readers' and the data set's own refusals are tested one by one in `tests/data`, a full disk in `test_faults.py`, a loss that is not
finite in `tests/train/test_task_module.py`.
"""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mea_graph.__main__ import main


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused, and returns its one line."""

    def run(*words):
        before = set(Path().rglob("*"))
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("mea-graph: error: ")
        assert error.count("\n") == 1
        # a file that can be read is converted, whole, before it turns out that a protocol does not fit it
        new = {path for path in set(Path().rglob("*")) - before if ".mea-cache" not in str(path) or ".writing" in path.name}
        assert not new, new
        assert all((entry / "meta.json").exists() for entry in Path().glob("*.mea-cache/*/"))
        return error

    return run


def with_(**changes):
    return lambda arrays: {**arrays, **changes}


def at(name, place, value):
    def change(arrays):
        array = arrays[name].copy()
        array[place] = value
        return {**arrays, name: array}

    return change


FAULTS = {
    "no array of steps": (with_(audio=np.ones((40, 4)), lips=np.ones((40, 3))), [], "expected an array of shape (N, T, d)"),
    "other samples": (
        with_(lips=np.ones((39, 5, 3))),
        [],
        "lips_len: expected integers in [0, 5] of shape (39,), got int64 of shape (40,)",
    ),
    "words instead of numbers": (with_(lips=np.full((40, 5, 3), "x")), [], "lips: sample '0': expected numbers of shape (T, d), got <U1"),
    "NaN": (at("audio", (3, 1, 2), np.nan), [], "audio: sample '3': expected finite numbers, got nan in step 1, channel 2"),
    "length beyond T": (at("audio_len", 5, 99), [], "audio_len: expected integers in [0, 8] of shape (40,), got some from"),
    "no training sample": (at("part", slice(None), "test"), [], "no sample is in part 'train'; there are test"),
    "no validation sample": (
        lambda a: at("part", a["part"] == "valid", "test")(a),
        [],
        "no sample is in part 'valid'; there are train, test",
    ),
    "label out of range": (at("label", 7, 5), ["--data.classes", 2], "y: expected classes in [0, 2), got 0 to 5"),
    "negative label": (at("label", 7, -1), [], "y: sample '7': expected a class number >= 0"),
    "unknown modality": (
        with_(),
        ["--data.modalities", "[audio, gaze]"],
        "expected a list of different names among ['audio', 'lips'], got ['audio', 'gaze']",
    ),
    "same id twice": (with_(id=np.array(["a"] * 40)), [], "ids: expected unique names, got 'a' more than once"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_the_data(refused, small_fit, source, arrays, fault):
    change, words, message = FAULTS[fault]
    np.savez(source, **change(arrays))
    assert message in refused(*small_fit, *words)


def splits(**change):
    part = {"text": np.ones((2, 4, 3)), "audio": np.ones((2, 5, 2)), "vision": np.ones((2, 3, 2)), "labels": np.ones((2, 1, 1)), **change}
    return {"train": part, "valid": part, "test": part}


class Spring:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


FILES = {
    "truncated pickle": (pickle.dumps(splits())[:-40], "a.pkl: not a whole pickle of arrays and plain containers"),
    "corrupt pickle": (pickle.dumps(splits()).replace(b"audio", b"\xff\xfe\xfd\xfc\xfb", 1), "a.pkl: not a whole pickle"),
    "malicious pickle": (pickle.dumps({**splits(), "dev": Spring()}), "a.pkl: refused: the pickle asks for pathlib."),
    "not a data file": (b"MZ\x90\x00", "a.pkl: its format is not plain from its first bytes"),
}


@pytest.mark.parametrize("fault", FILES)
def test_faults_of_a_file(refused, fault):
    contents, message = FILES[fault]
    Path("a.pkl").write_bytes(contents)
    assert message in refused("fit", "--data.source", "a.pkl")
    assert not Path("sprung").exists()


def test_hdf5_with_missing_keys(refused):
    h5py = pytest.importorskip("h5py")
    Path("folder").mkdir()
    for name in ("COVAREP", "labels"):
        with h5py.File(f"folder/{name}.csd", "w") as file:
            file[f"{name}/data/video/features"] = np.ones((4, 1))
            if name == "labels":
                file[f"{name}/data/video/intervals"] = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    assert "COVAREP.csd: 'video': expected features and intervals, got ['features']" in refused("fit", "--data.source", "folder")


class TestCheckpoints:
    @pytest.fixture
    def fitted(self, small_fit):
        assert main([*small_fit, "--run_dir", "run", "--trainer.max_epochs", "1"]) == 0
        return Path("run")

    def test_of_another_width_version_or_truncated(self, refused, fitted, source, arrays):
        """One test, so that the run is made once."""
        path = fitted / "checkpoints/best.ckpt"
        state = torch.load(path, weights_only=True)
        test = ["test", "--config", fitted / "config.yaml", "--ckpt_path", "other.ckpt"]
        torch.save({**state, "mea_graph_version": "9.0", "hyper_parameters": {**state["hyper_parameters"], "warp": 3}}, "other.ckpt")
        error = refused(*test)
        assert "the checkpoint other.ckpt has an option 'warp', MEAModule has none" in error
        assert "or mea-graph 9.0, which wrote the checkpoint (this is 0." in error
        weights = {name: value for name, value in state["state_dict"].items() if not name.startswith("network.head")}
        torch.save({**state, "state_dict": weights}, "other.ckpt")
        assert "ckpt_path: the checkpoint other.ckpt has network.head.1.bias None, MEAModule (8,)" in refused(*test)
        Path("other.ckpt").write_bytes(path.read_bytes()[:2000])
        assert "ckpt_path: expected a checkpoint of plain tensors and containers, got other.ckpt" in refused(*test)
        np.savez(source, **{**arrays, "audio": np.ones((40, 8, 7))})
        error = refused("test", "--config", fitted / "config.yaml")
        assert "model.in_channels: the checkpoint run/checkpoints/best.ckpt has {'audio': 4, 'lips': 3}" in error
        assert "the configuration {'audio': 7, 'lips': 3}" in error
