"""Tables of the addresses of parameters, by which Triton kernels find the parameters of each group."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_MOST_TABLES = 4096  # some 2 kB each
_Key = tuple[tuple[int, ...], int, torch.device]
_TABLES: dict[_Key, Tensor] = {}
_CAPTURED: dict[_Key, Tensor] = {}


def addresses(kinds: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
    """(kinds, G): kept, since most parameters stay where they are, and a copy to the device takes longer than a small kernel.

    What is kept holds no address but those it is asked for, so it cannot grow old.
    """
    groups = len(kinds[0])
    found: list[int] = []
    for kind in kinds:
        found += map(Tensor.data_ptr, kind) if kind else [0] * groups
    key = (tuple(found), len(kinds), device)
    table = _TABLES.get(key)
    if table is None:
        if len(_TABLES) >= _MOST_TABLES:
            _wait()
            _TABLES.clear()
        table = _TABLES[key] = torch.tensor(found, device=device).view(len(kinds), -1)
    if _is_captured(device):
        _CAPTURED[key] = table  # a graph reads it at every replay
    return table


def unpacked(ctx: Any) -> tuple[Tensor, ...]:
    """The rows and what was saved after them; a hook may have laid out anew what a kernel or C++ is to find by its address."""
    rows, *others = ctx.saved_tensors
    return rows, *(others if all(map(Tensor.is_contiguous, others)) else map(Tensor.contiguous, others))


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _wait() -> None:
    """Memory goes back to the stream that a table was made on, and a kernel of another one may still read it."""
    for device in {key[2] for key in _TABLES}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
