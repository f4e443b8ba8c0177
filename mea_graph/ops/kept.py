"""Properties that are made once, from data that do not change."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from mea_graph.ops.eager import is_traced


class _Kept(Protocol):
    """The type of the property for a type checker."""

    def __get__(self, owner: Any, kind: type | None = None, /) -> Tensor: ...


def kept(make: Callable[[Any], Tensor]) -> _Kept:
    """A property that is made once. It is made outside of inference mode, so that it can serve a training step afterwards."""

    @functools.wraps(make)
    def get(owner: Any) -> Tensor:
        if make.__name__ not in owner._made:
            if is_traced() or not torch.is_inference_mode_enabled():
                owner._made[make.__name__] = make(owner)
            else:
                with torch.inference_mode(False):
                    owner._made[make.__name__] = make(owner)
        return owner._made[make.__name__]

    return property(get)
