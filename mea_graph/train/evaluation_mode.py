"""A module that is in evaluation mode for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_LOCK = threading.Lock()
_WITHIN: dict[nn.Module, int] = {}  # how many callers need a module in evaluation mode
_TRAINED: dict[nn.Module, list[nn.Module]] = {}  # its parts that were in training mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode as a whole; afterwards each part has the mode that it had.

    Of several threads with one module the last to end gives the parts their modes back.

    Args:
        module: May be half way through its training.

    >>> layer = nn.Dropout()
    >>> with evaluating(layer):
    ...     print(layer.training)
    False
    >>> layer.training
    True
    """
    with _LOCK:
        _WITHIN[module] = _WITHIN.get(module, 0) + 1
        _TRAINED.setdefault(module, []).extend(part for part in module.modules() if part.training)
        module.eval()
    try:
        yield
    finally:
        with _LOCK:
            _WITHIN[module] -= 1
            if not _WITHIN[module]:
                del _WITHIN[module]
                for part in _TRAINED.pop(module):
                    part.training = True
