"""How many threads of the processor a command computes on: one way for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_VARIABLE = "OMP_NUM_THREADS"
_ASKED = (_VARIABLE, "MKL_NUM_THREADS")  # torch obeys either


@contextmanager
def computing_on(threads: int | None) -> Iterator[str | None]:
    """Computes inside on so many threads, in the processes that are started there too.

    One thread is the default: products of small matrices gain nothing from more, and lose much where other programs run too.

    Args:
        threads: None takes what the variables of OpenMP and MKL say, else one.

    Yields:
        A line that says so, where nobody has asked for one thread and there are more.

    >>> with computing_on(2):
    ...     torch.get_num_threads()
    2
    """
    before, variable = torch.get_num_threads(), os.environ.get(_VARIABLE)
    chosen = threads is None and not any(os.environ.get(name) for name in _ASKED)
    count = 1 if chosen else threads or before
    told = chosen and before > 1
    torch.set_num_threads(count)
    os.environ[_VARIABLE] = str(count)
    try:
        yield f"computing on 1 of {before} threads, which suits small models; --threads {before} takes all" if told else None
    finally:
        torch.set_num_threads(before)
        if variable is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = variable
