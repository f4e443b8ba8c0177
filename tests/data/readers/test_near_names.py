"""Arrays whose names are nearly those of lengths or a mask."""

import numpy as np
import pytest

from mea_graph.data import open_dataset


def test_a_mask_that_no_lengths_say_is_no_mistake(tmp_path):
    """Steps without a face, or padding in front: zeros there, and no lengths that could be given in place of the mask."""
    for inside in (np.array([[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]], bool), np.arange(5) >= np.array([[2], [1]])):
        np.savez(tmp_path / "a.npz", video=np.ones((2, 5, 2)) * inside[:, :, None], video_mask=inside, label=np.array([0, 1]))
        with pytest.warns(UserWarning, match="since 'video_mask' is left out"):
            dataset = open_dataset(tmp_path / "a.npz")
        assert [len(sample["video"].x) for sample in dataset] == [5, 5]
