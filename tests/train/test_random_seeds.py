"""What a training step draws depends on the run's seed, the epoch, the batch and the process, and on nothing else."""

from types import SimpleNamespace

import pytest
import torch

from mea_graph.baselines import LateFusionGRUModule


@pytest.fixture
def module():
    return LateFusionGRUModule({"audio": 3}, "regression", 1, hidden_channels=4)


def drawn(module, seed=3, epoch=0, batch=0, rank=0):
    module._seed = seed
    module._trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
    module.on_train_batch_start(None, batch)
    return float(torch.rand(()))


def test_every_step_draws_anew_and_a_repeated_one_the_same(module):
    steps = [{}, {"epoch": 1}, {"batch": 1}, {"rank": 1}, {"seed": 4}, {"epoch": 1, "batch": 1}]
    first = [drawn(module, **step) for step in steps]
    assert len(set(first)) == len(steps)
    torch.rand(5)
    assert [drawn(module, **step) for step in steps] == first


def test_a_resumed_run_keeps_its_seed(module):
    """Whatever the process that resumes it has drawn or was seeded with."""
    module.on_load_checkpoint({"random_seed": 17})
    assert module._seed == 17
    torch.manual_seed(5)
    module.setup("fit")
    assert module._seed == 17
