"""The state of an optimiser that belongs to it is restored, whatever its class keeps; one that does not is refused."""

import math
from contextlib import nullcontext

import lightning as L
import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader

from mea_graph.data import DataError
from mea_graph.train.restoring import Restoring, check_optimizer


class CountsInIntegers(optim.Optimizer):
    """As many outside torch do; its moments are vectors, as those of factored optimisers."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure):
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"step": self.state[p].get("step", 0) + 1, "exp_avg": p.detach().sum(-1)}


def mixed(kind, **first):
    return lambda model: kind([{"params": model[0].parameters(), **first}, {"params": model[1].parameters()}], lr=1e-3)


def of_all(kind, **options):
    return lambda model: kind(model.parameters(), **options)


def restored(make, steps):
    optimizers = []
    for _ in range(2):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        model[0].weight.requires_grad_(False)  # so that not every parameter has moments
        optimizers.append(make(model))

        def closure(model=model):
            model.zero_grad()
            loss = model(torch.ones(5, 3)).square().sum()
            loss.backward()
            return loss

        if len(optimizers) == 1:
            for _ in range(steps):
                optimizers[0].step(closure)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    return optimizers[1]


@pytest.mark.parametrize(
    "make",
    [
        mixed(optim.AdamW, amsgrad=True),
        mixed(optim.RMSprop, centered=True, momentum=0.9),
        mixed(optim.SGD, momentum=0.9),
        of_all(optim.Adam, amsgrad=True),
        of_all(optim.Adafactor),
        of_all(optim.LBFGS),
        of_all(CountsInIntegers),
    ],
    ids=["Adam, one group amsgrad", "RMSprop mixed", "SGD mixed", "amsgrad", "Adafactor", "LBFGS", "own"],
)
def test_a_state_of_its_own_is_taken(make):
    check_optimizer(restored(make, 3), steps=3)


def test_an_optimizer_that_has_not_stepped_yet_is_taken():
    """As the second one of a training, or under a scaler that skipped the first steps."""
    check_optimizer(restored(of_all(optim.Adam), 0), steps=3)


def test_steps_that_nobody_counted_have_no_limit():
    """Lightning counts the steps of its own wrappers alone."""
    optimizer = restored(of_all(optim.Adam), 3)
    check_optimizer(optimizer)
    with pytest.raises(DataError, match="expected step from 1 to 2, got 3"):
        check_optimizer(optimizer, steps=2)


class StepsItself(L.LightningModule):
    """Its optimiser steps more often than Lightning knows."""

    def __init__(self, automatic):
        super().__init__()
        self.automatic_optimization = automatic
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().sum()
        if not self.automatic_optimization:
            loss.backward()
            self.optimizers().optimizer.step()  # past the wrapper that counts
        return loss

    def configure_optimizers(self):
        return optim.Adam(self.parameters())


@pytest.mark.parametrize("automatic", [True, False])
def test_steps_of_manual_optimisation_have_no_limit_either(automatic, tmp_path):
    """A checkpoint of automatic optimisation whose optimiser claims more steps than the training made is refused."""
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    data = DataLoader(torch.ones(4, 3))
    trainer = L.Trainer(max_epochs=1, **options)
    trainer.fit(StepsItself(automatic), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for again in (False, True):
        for state in checkpoint["optimizer_states"][0]["state"].values():
            state["step"] += 1.0 * again
        torch.save(checkpoint, tmp_path / "a.ckpt")
        trainer = L.Trainer(max_epochs=2, callbacks=[Restoring()], **options)
        with pytest.raises(DataError, match="expected step from 1 to 4, got 5") if automatic and again else nullcontext():
            trainer.fit(StepsItself(automatic), data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("max_exp_avg_sq", None, "expected max_exp_avg_sq for every parameter"),
        ("exp_avg", torch.zeros(9), r"expected exp_avg of shape \(2, 4\), got \(9,\)"),
        ("step", torch.tensor(math.nan), "expected step from 1 to 3, got nan"),
        ("step", torch.tensor(0.0), "expected step from 1 to 3, got 0"),
        ("step", torch.tensor(4.0), "expected step from 1 to 3, got 4"),
    ],
)
def test_a_changed_state_is_refused(name, value, says):
    optimizer = restored(of_all(optim.AdamW, amsgrad=True), 3)
    weight = next(p for p in optimizer.state if p.shape == (2, 4))
    optimizer.state[weight][name] = value
    if value is None:
        del optimizer.state[weight][name]
    with pytest.raises(DataError, match=says):
        check_optimizer(optimizer, steps=3)
