"""A loss that is not finite is found on any device, and no step of one waits for it."""

import pytest
import torch
from torch_geometric.data import Batch, HeteroData

from benchmarks.pretend import META, HostRead, Pretended
from mea_graph.train import NonFiniteLossError
from mea_graph.train.finite_loss import FiniteLoss

NAN = {"loss": torch.tensor(float("nan")), "task": torch.tensor(2.0)}
FINE = {"loss": torch.tensor(1.0), "task": torch.tensor(float("inf"))}


def test_on_a_cpu_the_step_itself_raises():
    watch = FiniteLoss()
    watch.see(FINE, ["a"], "train")
    with pytest.raises(NonFiniteLossError, match="train loss: expected a finite number, got loss nan, task 2; samples of the batch: b, c"):
        watch.see(NAN, ["b", "c"], "train")
    watch.end()  # said once


def test_on_a_device_no_step_reads_a_number_until_some_are_read_together():
    watch = FiniteLoss(steps=3)
    terms = {"loss": torch.zeros((), device=META), "task": torch.zeros((), device=META)}
    with Pretended() as seen:
        for _ in range(2):
            watch.see(terms, ["a"], "train")
        assert not seen.reads
        with pytest.raises(HostRead):
            watch.see(terms, ["a"], "train")
    assert seen.reads.total() == 1


def test_steps_that_were_put_off_name_their_own_samples(monkeypatch):
    watch = FiniteLoss()
    monkeypatch.setattr(FiniteLoss, "_looks_at_once", staticmethod(lambda values: False))
    for terms, ids in ((FINE, ["a"]), (NAN, ["b", "c"]), (NAN, ["d"])):
        watch.see(terms, ids, "train")
    with pytest.raises(NonFiniteLossError, match=r"got loss nan, task 2; samples of the batch: b, c$"):
        watch.end()
    watch.end()


def samples(**changes):
    """Three samples, whose second has no audio; `changes` are made to the third."""
    made = []
    for steps, name in ((5, "a"), (0, "b"), (3, "c")):
        audio = {"x": torch.ones(steps, 2), "time": torch.arange(float(steps))}
        made.append(HeteroData(audio=audio, text={"x": torch.ones(4, 3)}, y=torch.ones(1), id=name))
    for name, (place, value) in changes.items():
        field = made[2].y if name == "y" else made[2][name.partition("_")[0]][name.partition("_")[2]]
        field[place] = value
    return made


@pytest.mark.parametrize("at_once", [True, False], ids=["cpu", "device"])
@pytest.mark.parametrize(
    ("changes", "told", "channel"),
    [
        ({"audio_x": ((1, 1), float("nan"))}, "audio.x: sample 'c': expected finite numbers, got nan in step 1", ", channel 1"),
        ({"text_x": ((3, 0), float("inf"))}, "text.x: sample 'c': expected finite numbers, got inf in step 3", ", channel 0"),
        ({"audio_time": (2, float("nan"))}, "audio.time: sample 'c': expected finite numbers, got nan in step 2", ""),
        ({"y": (0, float("nan"))}, "y: sample 'c': expected finite numbers, got nan", ""),
    ],
)
def test_the_value_that_is_not_finite_is_named(changes, told, channel, at_once, monkeypatch):
    """All samples of the batch were named, of which one had it."""
    monkeypatch.setattr(FiniteLoss, "_looks_at_once", staticmethod(lambda values: at_once))
    watch = FiniteLoss(steps=2)
    batch = Batch.from_data_list(samples(**changes))
    if not at_once:
        watch.see(FINE, ["x"], "train", Batch.from_data_list(samples()))
    with pytest.raises(NonFiniteLossError) as caught:
        watch.see(NAN, batch.id, "train", batch)
    assert str(caught.value) == f"train loss: expected a finite number, got loss nan, task 2; {told}{channel if at_once else ''}"


def test_without_such_a_value_the_batch_is_named_whatever_its_names_are():
    batch = Batch.from_data_list(samples())
    with pytest.raises(NonFiniteLossError, match=r"samples of the batch: a, b, c$"):
        FiniteLoss().see(NAN, batch.id, "train", batch)
    with pytest.raises(NonFiniteLossError, match=r"samples of the batch: 7, 8$"):
        FiniteLoss().see(NAN, torch.tensor([7, 8]), "train")
    unnamed = samples(audio_x=((0, 0), float("nan")))
    for sample in unnamed:
        del sample.id
    with pytest.raises(NonFiniteLossError, match=r"audio\.x: sample 2 of the batch: .* in step 0, channel 0"):
        FiniteLoss().see(NAN, None, "train", Batch.from_data_list(unnamed))


def test_what_a_device_keeps_is_a_number_a_row_and_reads_none():
    batch = Batch.from_data_list(samples()).to(META)
    watch = FiniteLoss(steps=3)
    with Pretended() as seen:
        watch.see({"loss": torch.zeros((), device=META)}, batch.id, "train", batch)
    assert not seen.reads
    assert {name: tuple(values.shape) for name, (values, _) in watch._seen[0].given.items()} == {
        "audio.x": (8,),
        "audio.time": (8,),
        "text.x": (12,),
        "y": (3,),
    }


def test_training_names_the_sample_of_pyg():
    from lightning import Trainer
    from torch_geometric.loader import DataLoader

    from mea_graph.train import MEAModule

    loader = DataLoader(samples(audio_x=((2, 0), float("nan"))), batch_size=3)
    module = MEAModule({"audio": 2, "text": 3}, "regression", 1, channels=8, heads=2, learning_rate=1e-3, warmup=0.0, cosine_decay=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with pytest.raises(NonFiniteLossError, match=r"audio\.x: sample 'c': expected finite numbers, got nan in step 2, channel 0"):
        Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(module, loader)


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_epoch_end", "on_test_epoch_end", "on_save_checkpoint"])
def test_no_epoch_ends_and_no_checkpoint_is_written_before_a_look(hook, monkeypatch):
    from mea_graph.train import TaskModule

    module = TaskModule(torch.nn.Identity(), "regression", 1)
    monkeypatch.setattr(FiniteLoss, "_looks_at_once", staticmethod(lambda values: False))
    module._watch.see(NAN, ["a"], "train")
    with pytest.raises(NonFiniteLossError, match="samples of the batch: a"):
        getattr(module, hook)(*[{}] * (hook == "on_save_checkpoint"))
