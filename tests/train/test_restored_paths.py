"""A checkpoint may come from anyone: nothing in it names a path that is opened or removed."""

import copy
import shutil
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks

from mea_graph.data import DataError
from mea_graph.train.model_checkpoint import ModelCheckpoint
from mea_graph.train.restored_paths import keep_own_paths

from .commands import SMALL_GRU, data_of, run


@pytest.fixture
def words(classes_source):
    return [*data_of(classes_source), *SMALL_GRU]


@pytest.fixture
def fitted(words):
    run("fit", *words, "--trainer.max_epochs", 1, "--run_dir", "run")
    return Path("run")


@pytest.fixture
def treasure(tmp_path):
    """A folder and a file of somebody else's."""
    (tmp_path / "treasure").mkdir()
    (tmp_path / "treasure/gold.ckpt").write_text("gold")
    return tmp_path / "treasure"


def forge(source, target, paths):
    """Puts the paths where the state of every `ModelCheckpoint` names files."""
    checkpoint = torch.load(source, weights_only=True)
    path = paths[0]
    for key, state in checkpoint["callbacks"].items():
        if "ModelCheckpoint" in key:
            state.update(best_model_path=path, kth_best_model_path=path, last_model_path=path)
            state["best_k_models"] = {name: torch.tensor(9.0) for name in paths} if "'monitor': 'valid" in key else {}
    torch.save(checkpoint, target)


@pytest.mark.parametrize("named", ["last", "given.ckpt"])
def test_resuming_from_a_forged_checkpoint_removes_nothing(fitted, treasure, named):
    """Lightning removes the file before when a new one is written: whole folders, and anything that `..` reaches."""
    target = fitted / "checkpoints/last.ckpt" if named == "last" else Path(named)
    forge(
        fitted / "checkpoints/last.ckpt",
        target,
        [
            f"local://{treasure}",
            str(treasure),
            f"{fitted.resolve()}/checkpoints/../../treasure/gold.ckpt",
            "ftp://127.0.0.1:1/x.ckpt",
            f"{fitted.resolve()}/logs",
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that the best checkpoint is forgotten
        run("fit", "--config", fitted / "config.yaml", "--trainer.max_epochs", 2, "--run_dir", fitted, "--ckpt_path", named)
    assert (treasure / "gold.ckpt").read_text() == "gold"
    assert (fitted / "logs/version_0/metrics.csv").exists()
    assert sorted(path.name for path in (fitted / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluating_a_forged_checkpoint_removes_nothing(fitted, treasure, command):
    forge(fitted / "checkpoints/last.ckpt", "given.ckpt", ["ftp://127.0.0.1:1/x", str(treasure)])
    keep = ["--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"]  # so that its state is restored
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(command, "--config", fitted / "config.yaml", "--ckpt_path", "given.ckpt", *keep)
    assert (treasure / "gold.ckpt").exists()


FOREIGN = [
    "/etc/passwd",
    "local:///tmp",
    "ftp://127.0.0.1/x.ckpt",
    "../../x.ckpt",
    "a::b.ckpt",
    "C:\\x.ckpt",
    "~/x.ckpt",
    "\\\\host\\x.ckpt",
]


class Remembers(L.Callback):
    files = ()

    def state_dict(self):
        return {"files": self.files}

    def load_state_dict(self, state):
        self.files = state["files"]


class TestStates:
    @pytest.fixture
    def own(self, tmp_path):
        folder = tmp_path / "own"
        folder.mkdir()
        for name in ("a.ckpt", "b.ckpt"):
            (folder / name).touch()
        (folder / "folder.ckpt").mkdir()
        return folder

    @pytest.fixture
    def trainer(self, own):
        kinds = [ModelCheckpoint(own, monitor="valid/task", save_top_k=2), Remembers(), callbacks.EarlyStopping("valid/task")]
        return L.Trainer(callbacks=kinds, default_root_dir=own, logger=False, accelerator="cpu", enable_progress_bar=False)

    def restored(self, trainer, kind, **changes):
        callback = next(callback for callback in trainer.callbacks if isinstance(callback, kind))
        state = {**copy.deepcopy(callback.state_dict()), **changes}
        checkpoint = {"callbacks": {callback.state_key: state, "Gone": {"path": "/etc"}}}
        keep_own_paths(checkpoint, trainer)
        assert checkpoint["callbacks"].pop("Gone") == {}
        callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
        return callback

    @pytest.mark.parametrize("path", [*FOREIGN, "own/gone.ckpt", "folder.ckpt", "", None, 3])
    def test_what_is_not_there_is_forgotten_with_its_score(self, trainer, path):
        changes = {"best_k_models": {path: torch.tensor(0.1)}, "kth_value": torch.tensor(0.1), "best_model_score": torch.tensor(0.1)}
        changes |= {"best_model_path": path, "kth_best_model_path": path, "last_model_path": path, "dirpath": "/etc"}
        with pytest.warns(UserWarning, match="which the checkpoint ranks by valid/task: forgotten"):
            found = self.restored(trainer, callbacks.ModelCheckpoint, **changes)
        assert (found.best_model_path, found.kth_best_model_path, found.last_model_path, found.best_k_models) == ("", "", "", {})
        assert found.best_model_score is None
        assert found.kth_value == float("inf")

    @pytest.mark.parametrize("before", ["/elsewhere/own", "C:\\runs\\own", "relative"])
    def test_names_are_those_of_files_here_also_in_a_moved_run(self, trainer, own, before):
        sep = "\\" if "\\" in before else "/"
        a, b = f"{before}{sep}a.ckpt", f"{before}{sep}b.ckpt"
        changes = {"best_k_models": {a: torch.tensor(0.5), b: torch.tensor(0.2)}, "kth_value": torch.tensor(0.5), "dirpath": before}
        changes |= {
            "best_model_path": b,
            "kth_best_model_path": a,
            "best_model_score": torch.tensor(0.2),
        }
        found = self.restored(trainer, callbacks.ModelCheckpoint, **changes)
        assert found.best_k_models == {str(own / "a.ckpt"): torch.tensor(0.5), str(own / "b.ckpt"): torch.tensor(0.2)}
        assert (found.best_model_path, found.kth_best_model_path) == (str(own / "b.ckpt"), str(own / "a.ckpt"))
        assert (found.best_model_score, found.kth_value) == (torch.tensor(0.2), torch.tensor(0.5))
        assert found.dirpath == str(own.resolve())

    @pytest.mark.parametrize("path", FOREIGN)
    def test_other_callbacks_may_name_no_foreign_path(self, trainer, path):
        for files in ([path], {path: 1}, {"deep": [({"er": path},)]}):
            with pytest.raises(DataError, match="expected no path outside the run's folder"):
                self.restored(trainer, Remembers, files=files)

    def test_other_callbacks_keep_their_words_and_the_run_s_own_paths(self, trainer, own):
        files = ["valid/task", str(own / "a.ckpt"), "did not improve in the last 3 records. Best score: 0.5."]
        files.append(files)
        assert self.restored(trainer, Remembers, files=files).files == files
        assert self.restored(trainer, callbacks.EarlyStopping, wait_count=2).wait_count == 2

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"best_k_models": [1]}, "best_k_models: expected a dict of scores, got list"),
            ({"best_model_score": "x"}, "best_model_score: expected the score as a tensor with one number, got str"),
            ({"best_k_models": {"a.ckpt": torch.ones(2)}}, r"a.ckpt: expected the score as a tensor with one number, got \(2,\)"),
            ({"kth_value": torch.tensor(float("nan"))}, r"kth_value: expected .*, got \(\) \[nan\]"),
        ],
    )
    def test_scores_are_numbers(self, trainer, changes, message):
        with pytest.raises(DataError, match=message):
            self.restored(trainer, callbacks.ModelCheckpoint, **changes)


def test_a_moved_run_keeps_its_best_epoch(fitted):
    best = fitted / "checkpoints/best.ckpt"
    for path in (best, fitted / "checkpoints/last.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        for key, state in checkpoint["callbacks"].items():
            if "ModelCheckpoint" in key and "'monitor': 'valid" in key:  # no epoch to come is as good
                state["best_k_models"] = {name: torch.tensor(-1.0) for name in state["best_k_models"]}
        torch.save(checkpoint, path)
    before = best.read_bytes()
    shutil.move("run", "moved")
    run("fit", "--config", "moved/config.yaml", "--trainer.max_epochs", 2, "--ckpt_path", "last")
    assert torch.load("moved/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    assert Path("moved/checkpoints/best.ckpt").read_bytes() == before
    assert not Path("run").exists()
