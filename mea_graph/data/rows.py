"""Where packed rows go: into memory, or, while a file is converted, straight into the cache."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

import numpy as np


class Rows(Protocol):
    """Takes `(N, d)` float32 rows piece by piece, and gives them back as one array."""

    def piece(self, count: int) -> np.ndarray:
        """An array `(count, d)` to be filled with the next rows."""

    def put(self, piece: np.ndarray) -> None:
        """Takes what `piece` gave, filled."""

    def whole(self) -> np.ndarray:
        """All rows, once all were put."""

    def close(self) -> None:
        """Ends it, also where not all rows came."""


class MemoryRows:
    """Rows in memory."""

    def __init__(self, count: int, width: int) -> None:
        self.values, self.filled = np.empty((count, width), np.float32), 0

    def piece(self, count: int) -> np.ndarray:
        return self.values[self.filled : self.filled + count]

    def put(self, piece: np.ndarray) -> None:
        self.filled += len(piece)

    def whole(self) -> np.ndarray:
        return self.values

    def close(self) -> None:
        pass


make_rows: ContextVar[Callable[[int, int], Rows]] = ContextVar("make_rows", default=MemoryRows)
"""What `pack` asks for a place for `count` rows of `width`; a conversion sets it."""
