"""What data a checkpoint is resumed and tested with: its own, or others that mean the same."""

import numpy as np
import pytest
from lightning.pytorch.trainer.states import TrainerFn

from mea_graph.data import DataError, MultimodalDataset
from mea_graph.train import Sampling, SequenceDataModule, SplitPolicy

from .commands import attach


class TestResuming:
    @pytest.mark.parametrize(("option", "value"), [("batches", 5), ("balanced", True)])
    def test_with_samples_drawn_another_way_is_refused(self, classes_source, option, value):
        state = SequenceDataModule(**classes_source).state_dict()
        with pytest.raises(DataError, match=rf"data.sampling.{option}: the checkpoint was trained with (None|False), this run has {value}"):
            attach(SequenceDataModule(**classes_source, sampling=Sampling(**{option: value}))).load_state_dict(state)
        older = {name: kept for name, kept in state.items() if name != f"sampling.{option}"}
        attach(SequenceDataModule(**classes_source)).load_state_dict(older)

    @pytest.mark.parametrize("now", [{"non_finite": "drop"}, {"label": "mood"}, {}], ids=str)
    def test_with_a_file_that_is_read_another_way_is_refused(self, classes_source, now):
        """The hash of the file is the same, its targets and steps are not."""
        arrays = dict(np.load(classes_source["source"]))
        np.savez("moods.npz", **arrays, mood=arrays["label"][::-1])

        def data(**reader):
            return attach(SequenceDataModule(**classes_source | {"source": "moods.npz", "reader": classes_source["reader"] | reader}))

        state = data(non_finite="zero", cache_dir="one").state_dict()
        with pytest.raises(DataError, match=r"data.reader: the checkpoint was trained with {'non_finite': 'zero', .*}, this run has {"):
            data(**now).load_state_dict(state)
        data(cache_dir="two", non_finite="zero").load_state_dict(state)
        data(**now).load_state_dict({name: kept for name, kept in state.items() if name != "reader"})  # as before there were such

    def test_on_other_data_is_refused(self, classes_source, scores_source):
        state = SequenceDataModule(**classes_source).state_dict()
        attach(SequenceDataModule(**classes_source)).load_state_dict(state)
        for other in (scores_source, {**classes_source, "split": SplitPolicy(by="subject", folds=2)}):
            with pytest.raises(DataError, match="expected the data and split that the checkpoint was trained on"):
                attach(SequenceDataModule(**other)).load_state_dict(state)

    def test_with_other_samples_to_validate_on_is_refused(self, classes_source):
        """The best epoch would be chosen among numbers of other samples."""

        def data(valid):
            split = SplitPolicy(by="subject", train=[0, 1, 2], valid=valid, test=[8, 9])
            return attach(SequenceDataModule(**classes_source, split=split))

        state = data([3, 4]).state_dict()
        data([4, 3]).load_state_dict(state)
        for valid in ([3], [3, 5], None):
            with pytest.raises(DataError, match="expected the data and split that the checkpoint was trained on"):
                data(valid).load_state_dict(state)

    @pytest.mark.parametrize("fn", [TrainerFn.TESTING, TrainerFn.VALIDATING])
    def test_classes_of_other_data_have_the_numbers_of_training(self, fn):
        """Strings are numbered in their alphabetical order, which is another one where a class is not there."""

        def data(*names):
            x = {"audio": [np.ones((2, 2))] * 6}
            dataset = MultimodalDataset.from_arrays(x, y=[names[i % len(names)] for i in range(6)], split=["train", "valid", "test"] * 2)
            return attach(SequenceDataModule(dataset), fn=fn)

        state = data("calm", "sad").state_dict()
        data("sad", "calm").load_state_dict(state)
        with pytest.raises(
            DataError, match=r"label_names: the checkpoint was trained with calm, sad, this data has angry, sad; label_names="
        ):
            data("angry", "sad").load_state_dict(state)
        attach(data("angry", "sad"), fn=TrainerFn.PREDICTING).load_state_dict(state)

    def test_testing_on_what_was_trained_is_refused(self, classes_source):
        def fold(number, fn):
            return attach(SequenceDataModule(**classes_source, split=SplitPolicy(by="subject", folds=5, fold=number)), fn=fn)

        state = fold(0, TrainerFn.FITTING).state_dict()
        fold(0, TrainerFn.TESTING).load_state_dict(state)
        with pytest.raises(DataError, match="12 of 12 test samples trained this checkpoint"):
            fold(1, TrainerFn.TESTING).load_state_dict(state)

    def test_other_data_are_scaled_by_the_statistics_of_the_training_samples(self, classes_source, scores_source):
        trained = SequenceDataModule(**classes_source, standardize="train")
        state = trained.state_dict()
        data = attach(SequenceDataModule(**scores_source, standardize="train", batch_size=100), fn=TrainerFn.PREDICTING)
        next(iter(data.predict_dataloader()))  # scaled before the checkpoint is known: must not matter
        data.load_state_dict(state)
        (batch,) = data.predict_dataloader()
        steps = np.concatenate([trained.dataset[i]["audio"].x.numpy() for i in trained.parts["train"]]).astype(np.float64)
        place = {id_: i for i, id_ in enumerate(data.dataset.ids)}
        raw = np.concatenate([data.dataset[place[id_]]["audio"].x.numpy() for id_ in batch.id])
        assert np.allclose(batch["audio"].x.numpy(), (raw - steps.mean(0)) / steps.std(0), atol=1e-5)

    def test_a_checkpoint_without_its_statistics_cannot_scale_other_data(self, classes_source, scores_source):
        state = {**SequenceDataModule(**classes_source, standardize="train").state_dict(), "statistics": None}
        data = attach(SequenceDataModule(**scores_source, standardize="train"), fn=TrainerFn.PREDICTING)
        with pytest.raises(DataError, match="lacks the statistics of its training samples"):
            data.load_state_dict(state)

    @pytest.mark.parametrize(("trained", "now"), [("train", None), (None, "train"), ("subject", "train")])
    def test_another_scaling_than_the_checkpoints_is_refused(self, classes_source, trained, now):
        state = SequenceDataModule(**classes_source, standardize=trained).state_dict()
        data = attach(SequenceDataModule(**classes_source, standardize=now), fn=TrainerFn.PREDICTING)
        with pytest.raises(DataError, match=f"the checkpoint was trained with {trained!r}, the configuration has {now!r}"):
            data.load_state_dict(state)
