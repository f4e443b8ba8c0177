"""Dropout that refuses what is no probability."""

from typing import Any

from torch import nn

from mea_graph.option_types import plain_value


def make_dropout(p: float, name: str = "dropout") -> nn.Dropout:
    """Returns the layer; torch's own takes NaN for a probability, and 1, which leaves nothing.

    Args:
        p: Probability; a number of numpy becomes Python's own, so that a checkpoint can hold it.
        name: For the error.

    Raises:
        ValueError: If `p` is not in [0, 1).

    >>> import numpy as np
    >>> make_dropout(0.25).p, make_dropout(np.float32(0.25)).p
    (0.25, 0.25)
    """
    return nn.Dropout(probability_below_1(p, name))


def probability_below_1(p: Any, name: str) -> float:
    """Returns a number in [0, 1) as Python's own, and refuses all else."""
    p = plain_value(p)
    if not isinstance(p, int | float) or not 0 <= p < 1:
        raise ValueError(f"{name}: expected a probability in [0, 1), got {p!r}")
    return p
