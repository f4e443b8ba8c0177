"""Checks that several readers need: stored lengths, and how much memory a file may ask for."""

from __future__ import annotations

from typing import Any

import numpy as np

from mea_graph.data.errors import DataError

_MOST_EXPANSION = 1032  # deflate, the only compression the field's files use, cannot shrink data more than this


def check_lengths(where: str, lengths: np.ndarray, samples: int, steps: int) -> None:
    """Refuses anything but one integer in `[0, steps]` a sample."""
    expected = f"{where}: expected integers in [0, {steps}] of shape ({samples},)"
    if lengths.shape != (samples,) or lengths.dtype.kind not in "iu":
        raise DataError(f"{expected}, got {lengths.dtype} of shape {lengths.shape}")
    if samples and not (lengths.min() >= 0 and lengths.max() <= steps):
        raise DataError(f"{expected}, got some from {lengths.min()} to {lengths.max()}")


def check_claimed_size(where: Any, claimed: int, file_bytes: int) -> None:
    """Refuses a file that claims to hold more than its size allows, before memory is taken for it."""
    if claimed > _MOST_EXPANSION * file_bytes:
        most = f"{_MOST_EXPANSION} bytes of arrays for a byte of the file"
        raise DataError(f"{where}: expected at most {most}, got {claimed} for {file_bytes}")
