"""Which cases of each op are checked, and by which backends."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mea_graph.check import attention, grouped, recurrent, segments
from mea_graph.check.attention import EDGE, INTERVAL, PREDICTIVE, SIX, edge, edge_weights, first_layer, interval, named_graph
from mea_graph.check.cases import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Build
from mea_graph.ops import backends
from mea_graph.ops.recurrent import bigru

DTYPES = (FLOAT64, FLOAT32, BFLOAT16, FLOAT16)
_TWO = [[5, 0, 1, 33], [2, 3, 0, 70]]
CASES: dict[str, list[Build]] = {
    "predictive_attention": [
        *(PREDICTIVE[i] for i in (0, 4, 7, 8, 9, 14, 15, 17)),  # of 8 heads of 5 channels with gaps and empty samples, wide ones
        first_layer([65, 0, 3], "scattered"),
        attention.predictive_window([65, 0, 3], "scattered"),
    ],
    "interval_attention": [
        *(INTERVAL[i] for i in (0, 4, 7, 8, 9)),
        interval([40, 7], [[33, 5]], heads=4, width=40),
        interval([9, 0, 33], [[5, 0, 40]], "scattered", steps=2, listed=True),
    ],
    "edge_attention": [
        *(EDGE[i] for i in (0, 1, 2, 4, 5, 6)),
        edge(attention.hub, "a hub", 3, 5, is_sorted=True),
        edge_weights(named_graph(SIX), SIX, 4),
    ],
    "bilstm": [recurrent.BILSTM[i] for i in (0, 1, 2, 3, 4, 7, 8, 9)],
    "bigru": [
        *(recurrent.recurrent(_TWO, layout, op=bigru) for layout in ("packed", "padded", "scattered")),
        recurrent.recurrent([[0, 0]], "padded", op=bigru),
        recurrent.recurrent([[9, 4]], hidden=1, width=3, op=bigru),
        recurrent.recurrent([[70, 7]], hidden=64, width=64, op=bigru),
    ],
    "grouped_linear": [grouped.LINEAR[i] for i in (0, 1, 2, 3, 5, 7)],
    "grouped_layer_norm": grouped.NORM,
    segments.NAME: segments.CASES,
}

# Torch's own layers round the state of each step: the error grows with the steps, and depends on the library behind them.
_ROUNDS = dict.fromkeys(("bilstm", "bigru"), "torch")


class Candidate(NamedTuple):
    """A backend of an op on a device."""

    name: str
    left_out: str | None  # why it is not tried


def candidates(op: str, device: str) -> list[Candidate]:
    """Returns the backends of an op, the preferred ones first.

    Args:
        op: Name of the op, or of the segment reductions.
        device: Where tensors are.

    >>> [candidate.name for candidate in candidates("bigru", "cpu")]
    ['native', 'torch', 'reference']
    """
    if op == segments.NAME:
        return [Candidate(name, segments.refuse(name, device)) for name in segments.BACKENDS]
    return [Candidate(name, backend.hold()) for name, backend in backends._OPS[op].backends.items()]


def unheld(op: str, backend: str, dtype: torch.dtype, device: str) -> str | None:
    """Says why no error of a backend can be wrong in a dtype, or nothing.

    Args:
        op: Name of the op.
        backend: Name of the backend.
        dtype: Of the inputs.
        device: Where tensors are.
    """
    half = dtype in (BFLOAT16, FLOAT16)
    if backend == "reference" and (half or (dtype == FLOAT64 and device == "cpu")):
        return "the others are held to it"
    return "it rounds the state of each step, and no error is promised" if half and _ROUNDS.get(op) == backend else None
