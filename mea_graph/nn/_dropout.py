"""Dropout that refuses what is no probability."""

from torch import nn


def make_dropout(p: float, name: str = "dropout") -> nn.Dropout:
    """Returns the layer; torch's own takes NaN for a probability, and 1, which leaves nothing.

    Raises:
        ValueError: If `p` is not in [0, 1).

    >>> make_dropout(0.1).p
    0.1
    """
    if not isinstance(p, int | float) or not 0 <= p < 1:
        raise ValueError(f"{name}: expected a probability in [0, 1), got {p!r}")
    return nn.Dropout(p)
