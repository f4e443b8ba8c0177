"""`mea-graph predict`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mea_graph.data import DataError
from mea_graph.train import Predictor

from ..commands import error_of, read_csv, run


def test_a_checkpoint_and_a_file_are_enough(expected, classes_source, capsys):
    arrays = dict(np.load(classes_source["source"]))
    np.savez("new.npz", **{name: array for name, array in arrays.items() if name not in ("label", "split")})
    run("predict", "--ckpt", "run/checkpoints/best.ckpt", "--data", "new.npz", "--output", "out.csv", "--embeddings", "out.npz")
    rows = read_csv("out.csv")
    assert list(rows[0]) == ["id", "prediction", "probability_rest", "probability_stress"]
    logits = torch.from_numpy(np.stack([expected[row["id"]] for row in rows]))
    assert [float(row["probability_stress"]) for row in rows] == pytest.approx(logits.softmax(1)[:, 1].tolist(), abs=1e-6)
    assert {row["prediction"] for row in rows} <= {"rest", "stress"}
    assert np.load("out.npz")["fused"].shape == (60, 12)
    assert "written: out.csv (60 samples, run/checkpoints/best.ckpt)" in capsys.readouterr().out


def test_samples_that_trained_the_model_are_marked(expected, classes_source, capsys):
    run("predict", "--ckpt", "run", "--data", classes_source["source"], "--output", "out.csv")
    parts = [row["part"] for row in read_csv("out.csv")]
    assert parts == np.load(classes_source["source"])["split"].tolist()
    assert "36 of these 60 samples trained the model" in capsys.readouterr().out


@pytest.mark.usefixtures("run")
def test_mistakes_are_told_in_one_line(capsys):
    np.savez("other.npz", audio=np.ones((3, 4, 5)))
    for words, message in (
        (["--ckpt", "nix", "--data", "other.npz"], "error: ckpt: there is no checkpoint nix"),
        (["--ckpt", "other.npz", "--data", "other.npz"], "error: ckpt: expected a checkpoint of plain tensors and containers, got"),
        (["--ckpt", ".", "--data", "other.npz"], "error: ckpt: there is no checkpoint checkpoints/best.ckpt; the folder of a run is"),
        (["--ckpt", "run", "--data", "nix.npz"], "nix.npz: no such file"),
        (["--ckpt", "run", "--data", "other.npz"], "audio: expected width 4, as in training, got 5"),
        (["--ckpt", "run", "--data", "other.npz", "--module", "os.path"], "module: expected a subclass of TaskModule"),
        (["--ckpt", "run", "--data", "other.npz", "--module", "nix.Nix"], "module: expected the name of a class"),
    ):
        assert message in error_of(capsys, "predict", *words, "--output", "out.csv")
    assert not Path("out.csv").exists()


@pytest.mark.usefixtures("run")
def test_what_is_to_be_written_is_checked_before_anything_is_computed(capsys, monkeypatch):
    """A table in `out.txt` was CSV, and vectors could take the place of the data, without a word."""
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: pytest.fail("the checkpoint was opened"))
    monkeypatch.setattr(Predictor, "_of", lambda *_, **__: pytest.fail("the checkpoint was opened"))
    np.savez("new.npz", audio=np.ones((3, 4, 4)))
    before = Path("new.npz").read_bytes()
    Path("folder.csv").mkdir()
    for words, message in (
        (["out.txt"], "output: expected a name that ends in .csv, the form that is written, got out.txt"),
        (["predictions"], "output: expected a name that ends in .csv, the form that is written, got predictions"),
        (["new.npz"], "output: expected a name that ends in .csv, the form that is written, got new.npz"),
        (["folder.csv"], "output: expected a file to write, got the folder folder.csv"),
        (["new.npz/out.csv"], "output: expected a file in a folder that can be written, got new.npz/out.csv"),
        (["out.csv", "--embeddings", "out.npy"], "embeddings: expected a name that ends in .npz, the form that is written, got out.npy"),
        (["out.csv", "--embeddings", "./new.npz"], "embeddings: expected another file than --data, which it would replace, got new.npz"),
    ):
        assert message in error_of(capsys, "predict", "--ckpt", "run", "--data", "new.npz", "--output", *words)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    refused = ["predict", "--ckpt", "run", "--data", "new.npz", "--output", "deep/down/out.csv"]
    assert "output: expected a file in a folder that can be written, got deep/down/out.csv" in error_of(capsys, *refused)
    assert Path("new.npz").read_bytes() == before
    assert not Path("deep").exists()


@pytest.mark.usefixtures("run")
def test_a_run_without_a_best_epoch_names_the_checkpoint_that_it_has(capsys):
    Path("other/checkpoints").mkdir(parents=True)
    Path("other/checkpoints/last.ckpt").write_bytes(Path("run/checkpoints/best.ckpt").read_bytes())
    np.savez("new.npz", audio=np.ones((3, 4, 4)))
    last = "other/checkpoints/last.ckpt"
    message = f"ckpt: there is no checkpoint other/checkpoints/best.ckpt; there is --ckpt {last}"
    assert error_of(capsys, "predict", "--ckpt", "other", "--data", "new.npz", "--output", "out.csv") == f"mea-graph: error: {message}\n"
    run("predict", "--ckpt", last, "--data", "new.npz", "--output", "out.csv")


@pytest.mark.usefixtures("run")
def test_only_the_name_of_the_option_differs_from_python(capsys):
    """A name of a folder with the words of another option in it stays what it is, in the command and in Python."""
    place = Path("ckpt_path: old") / "best"
    place.parent.mkdir()
    np.savez("new.npz", audio=np.ones((3, 4, 4)))
    for content, message in ((None, f"there is no checkpoint {place}"), (b"no checkpoint", f"got {place}: ")):
        if content is not None:
            place.write_bytes(content)
        said = error_of(capsys, "predict", "--ckpt", str(place), "--data", "new.npz", "--output", "out.csv")
        assert said.startswith("mea-graph: error: ckpt: ")
        assert message in said
        with pytest.raises(DataError, match=rf"^path: .*{message}"):
            Predictor.load(place)
