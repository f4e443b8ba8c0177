"""What can be checked, by name. Imports no torch: a mistyped name is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

OPS = (
    "predictive_attention",
    "interval_attention",
    "edge_attention",
    "bilstm",
    "bigru",
    "grouped_linear",
    "grouped_layer_norm",
    "segment_reductions",
)
MODEL = "model"
ENVIRONMENT = "environment"


class Task(NamedTuple):
    """What a process checks, on which device.

    Args:
        name: An op, the model, or the environment.
        device: "cpu", "cuda" or "cuda:1".
        skipped: Backends that a process before this one has checked, or was ended by.
        backend: For the model: a name for `use_backend`; None: as layers choose.
        variables: Of the environment.
    """

    name: str
    device: str
    skipped: tuple[str, ...] = ()
    backend: str | None = None
    variables: Mapping[str, str] = {}
