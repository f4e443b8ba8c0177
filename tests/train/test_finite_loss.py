"""A loss that is not finite is found on any device, and no step of one waits for it."""

import pytest
import torch

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


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_epoch_end", "on_test_epoch_end", "on_save_checkpoint"])
def test_no_epoch_ends_and_no_checkpoint_is_written_before_a_look(hook, monkeypatch):
    from mea_graph.train import TaskModule

    module = TaskModule(torch.nn.Identity(), "regression", 1)
    monkeypatch.setattr(FiniteLoss, "_looks_at_once", staticmethod(lambda values: False))
    module._watch.see(NAN, ["a"], "train")
    with pytest.raises(NonFiniteLossError, match="samples of the batch: a"):
        getattr(module, hook)(*[{}] * (hook == "on_save_checkpoint"))
