"""A run on small data, trained once for all tests of a file."""

from pathlib import Path

import pytest

from mea_graph.train import SequenceDataModule

from .trained import of_lightning, trained


@pytest.fixture
def data(classes_source):
    return SequenceDataModule(**classes_source, standardize="train", classes=["rest", "stress"], batch_size=16)


@pytest.fixture(scope="module")
def once():
    """What the first test that asks for `run` leaves to the others, whose data are the same."""
    return {}


@pytest.fixture
def run(data, once):
    """The trainer of a run on `data`, whose folder is `run`."""
    path = Path("run/checkpoints/best.ckpt")
    if not once:
        once |= {"trainer": trained(data), "checkpoint": path.read_bytes()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(once["checkpoint"])
    return once["trainer"]


@pytest.fixture
def expected(run, data):
    return of_lightning(run, data)
