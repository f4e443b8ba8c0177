"""Data and options that a `Predictor` is given and its model cannot take as they are."""

import numpy as np
import pytest
import torch

from mea_graph.data import DataError, LengthBucketBatchSampler, MultimodalDataset
from mea_graph.train import MEAModule, Predictor

AUDIO, TEXT = np.random.default_rng(0).normal(size=(5, 2)), np.random.default_rng(1).normal(size=(4, 3))
SMALL = {"channels": 8, "heads": 2, "hidden_channels": 8}


@pytest.fixture(scope="module")
def timed():
    return Predictor(MEAModule({"audio": 2, "text": 3}, "regression", 1, window={"seconds": 1.0}, **SMALL))


def test_a_model_that_reads_times_says_which_are_not_there(timed):
    """It was a plain ValueError of a layer, about positions."""
    told = r"sample '0': text: expected the seconds of its steps, which the model reads, got none; MultimodalDataset\.from_arrays"
    with pytest.raises(DataError, match=told):
        timed(MultimodalDataset.from_arrays({"audio": [AUDIO], "text": [TEXT]}, time={"audio": [np.arange(5)]}))
    with pytest.raises(DataError, match="sample '0': audio: expected the seconds"):
        timed({"audio": [AUDIO], "text": [TEXT]})


def test_a_missing_modality_needs_no_times(timed):
    """Data without the modality were refused for want of its times."""
    audio, time = [AUDIO, AUDIO[:2]], [np.arange(5), np.arange(2)]
    without = MultimodalDataset.from_arrays({"audio": audio}, time={"audio": time})
    empty = MultimodalDataset.from_arrays({"audio": audio, "text": [TEXT[:0]] * 2}, time={"audio": time, "text": [[], []]})
    np.testing.assert_array_equal(timed(without).values, timed(empty).values)


@pytest.mark.parametrize("size", [0, 1.5, "4", True, None])
def test_a_size_of_batches_is_a_whole_number(timed, size):
    with pytest.raises(DataError, match=rf"batch_size: expected an integer >= 1, got {size!r}"):
        Predictor(timed.module, batch_size=size)
    with pytest.raises(ValueError, match=rf"batch_size: expected an integer >= 1, got {size!r}"):
        LengthBucketBatchSampler({"a": np.ones(3, int)}, size)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a device that is not there")
def test_a_device_that_is_not_there_leaves_the_module_where_it_was():
    """Batches went to a device that the module was never brought to."""
    module = MEAModule({"audio": 2, "text": 3}, "regression", 1, **SMALL)
    with pytest.raises(DataError, match="device: expected one that is there, got 'cuda'"):
        Predictor(module, device="cuda")
    assert Predictor(module)({"audio": [AUDIO], "text": [TEXT]}).values.shape == (1,)
