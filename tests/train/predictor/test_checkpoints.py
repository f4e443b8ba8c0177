"""Which checkpoints a predictor takes: one of a folder, of Lightning alone, of a user's class; and which it refuses."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from mea_graph.data import DataError
from mea_graph.train import MEAModule, Predictor, SequenceDataModule, TaskModule

from .trained import QUIET, SMALL


class Own(TaskModule):
    def __init__(self, task, out_channels, saved=True):
        super().__init__(torch.nn.Module(), task, out_channels)
        self.network.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.network.forward = lambda x, batch, batch_size: self.network.weight.expand(batch_size, 1)
        if saved:
            self.save_hyperparameters()


class TestCheckpoints:
    def test_of_a_folder_it_is_the_best_one_or_the_last(self, run, data):
        state = torch.load("run/checkpoints/best.ckpt", weights_only=True)
        name = [name for name in state["state_dict"] if name.startswith("network.head.")][-1]
        state["state_dict"][name] += 1
        torch.save(state, "run/checkpoints/last.ckpt")
        best, last = Predictor.load("run"), Predictor.load("run", "last")
        assert [p.checkpoint for p in (best, last)] == [Path(f"run/checkpoints/{name}.ckpt") for name in ("best", "last")]
        np.testing.assert_allclose(last(data.dataset).output, best(data.dataset).output + 1, rtol=1e-4)
        Path("run/checkpoints/best.ckpt").unlink()
        with pytest.raises(DataError, match=r"there is no checkpoint run/checkpoints/best.ckpt; there is checkpoint='last'"):
            Predictor.load("run")
        with pytest.raises(DataError, match="the folder of a run is such as"):
            Predictor.load(".")

    def test_that_a_data_module_did_not_train(self, run, data):
        module = MEAModule(data.in_channels, data.task, data.out_channels, **SMALL)
        trainer = L.Trainer(max_epochs=1, **QUIET, enable_checkpointing=False)
        trainer.fit(module, DataLoader(data.dataset.standardize(), batch_size=20))
        trainer.save_checkpoint("own.ckpt")
        with pytest.raises(DataError, match="does not say how its features were scaled; give statistics="):
            Predictor.load("own.ckpt")
        statistics = data.dataset.standardize().statistics
        expected = Predictor.load("own.ckpt", statistics={})
        by_hand = {m: [(s[m].x.numpy() - statistics[m][0]) / statistics[m][1] for s in data.dataset] for m in data.in_channels}
        found = Predictor.load("own.ckpt", statistics=statistics)(data.dataset).output
        np.testing.assert_allclose(found, expected(by_hand).output, rtol=1e-4, atol=1e-6)
        with pytest.raises(DataError, match="statistics: expected none"):
            Predictor.load("run", statistics=statistics)

    def test_of_a_class_of_the_users(self, scores_source):
        data = SequenceDataModule(**scores_source)
        for saved in (True, False):
            trainer = L.Trainer(max_epochs=1, **QUIET, enable_checkpointing=False)
            trainer.fit(Own("regression", 1, saved), data)
            trainer.save_checkpoint(f"{saved}.ckpt")
        assert Predictor.load("True.ckpt").channels == {"audio": 4, "lips": 3}  # imported already
        with pytest.raises(DataError, match=r"Own cannot be made of the options.*save_hyperparameters"):
            Predictor.load("False.ckpt")
        found = Predictor.load("False.ckpt", module=Own("regression", 1))(data.source)
        assert found.values.tolist() == pytest.approx([trainer.model.network.weight.item()] * 60)
        state = torch.load("True.ckpt", weights_only=True)
        torch.save({**state, "module": "os.path.Own"}, "foreign.ckpt")
        with pytest.raises(DataError, match=r"was trained by 'os\.path\.Own', which is not known here; import it before"):
            Predictor.load("foreign.ckpt")
        assert len(Predictor.load("foreign.ckpt", module=Own)(data.source)) == 60
        for name in ("mea_graph.train.cli", "mea_graph.train.augment", "mea_graph.__main__.main", "mea_graph.train.TaskMetrics", None):
            torch.save({**state, "module": name}, "foreign.ckpt")
            with pytest.raises(DataError, match="module: "):
                Predictor.load("foreign.ckpt")

    def test_a_changed_one_is_told_in_one_error(self, run):
        state = torch.load("run/checkpoints/best.ckpt", weights_only=True)
        inner = state["SequenceDataModule"]
        for changed in (
            {**state, "hyper_parameters": {**state["hyper_parameters"], "heads": 3}},
            {**state, "hyper_parameters": {**state["hyper_parameters"], "channels": 16}},
            {**state, "state_dict": {}},
            {**state, "SequenceDataModule": {**inner, "statistics": None}},
            {**state, "SequenceDataModule": {**inner, "label_names": ["one"]}},
            {**state, "SequenceDataModule": {**inner, "standardize": ["one"]}},
        ):
            torch.save(changed, "changed.ckpt")
            with pytest.raises(DataError, match=r"changed\.ckpt"):
                Predictor.load("changed.ckpt")

    def test_one_that_holds_code_is_refused_and_not_run(self, run):
        class Trap:
            def __reduce__(self):
                return Path.touch, (Path("sprung"),)

        torch.save({**torch.load("run/checkpoints/best.ckpt", weights_only=True), "trap": Trap()}, "trap.ckpt")
        with pytest.raises(DataError, match="expected a checkpoint of plain tensors"):
            Predictor.load("trap.ckpt")
        assert not Path("sprung").exists()
