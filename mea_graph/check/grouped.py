"""Cases of the grouped linear maps and normalisations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mea_graph.check.cases import Build, OpCase, draws, op_case
from mea_graph.ops.grouped import grouped_layer_norm, grouped_linear

KINDS = ("weight", "bias", "scale", "shift")


class Groups(NamedTuple):
    """`shared` groups read the same rows. A width of 0: a normalisation alone."""

    rows: tuple[int, ...]  # of each group
    channels: int
    width: int
    shared: int = 1
    bias: bool = True
    norm: bool = False
    onto: bool = False

    @property
    def name(self) -> str:
        """What is told of it."""
        rows = f"{len(self.rows)} x {self.rows[0]}" if len(set(self.rows)) == 1 else str(list(self.rows))
        parts = [n for n, there in (("norm", self.norm), ("bias", self.bias), ("residual", self.onto)) if there and self.width]
        kind = f"linear, {self.channels} to {self.width}" if self.width else f"layer norm, {self.channels}"
        return f"grouped {kind}, rows {rows}" + (f", {self.shared} share" if self.shared > 1 else "") + "".join(f", {n}" for n in parts)

    def call(self, backend: str, x: Tensor, onto: Tensor | None = None, **weights: Tensor) -> Tensor:
        """Runs the op."""
        lists = [[weights[f"{kind}{g}"] for g in range(len(self.rows)) if f"{kind}{g}" in weights] for kind in KINDS]
        starts = [sum(self.rows[: g - g % self.shared : self.shared]) for g in range(len(self.rows))]
        if not self.width:
            return grouped_layer_norm(x, lists[2], lists[3], starts, list(self.rows), backend=backend)
        return grouped_linear(x, lists[0], lists[1], starts, list(self.rows), lists[2], lists[3], backend=backend, onto=onto)

    def inputs(self, draw: Callable[..., Tensor]) -> dict[str, Tensor]:
        """Rows and weights by name."""
        found = {"x": draw(sum(self.rows[:: self.shared]), self.channels)}
        for g in range(len(self.rows)):
            if self.width:
                found[f"weight{g}"] = draw(self.width, self.channels) / self.channels**0.5
            if self.width and self.bias:
                found[f"bias{g}"] = draw(self.width)
            if self.norm:
                found |= {f"scale{g}": draw(self.channels), f"shift{g}": draw(self.channels)}
        return found | ({"onto": draw(sum(self.rows), self.width)} if self.onto else {})

    def case(self, dtype: torch.dtype, device: str) -> OpCase:
        """Makes the case of the op."""
        held = None if len(set(self.rows)) == 1 else "joined"
        run = lambda backend, **tensors: self.call(backend, **tensors)  # noqa: E731
        return op_case(self.name, run, self.inputs(draws(device)), {}, dtype, runs=held)


LINEAR: list[Build] = [
    each.case
    for each in (
        Groups((5, 5, 5), 8, 8, bias=False),
        Groups((300, 0, 1000), 40, 40, bias=False),
        Groups((1920,) * 3, 40, 40, norm=True, onto=True),
        Groups((1920,) * 6, 40, 80, shared=2, norm=True),
        Groups((1920,) * 3, 160, 40, onto=True),
        Groups((33,) * 2, 256, 256, norm=True),
        Groups((16000,) * 3, 40, 160, norm=True),
        Groups((100,) * 3, 40, 1, bias=False),
    )
]
NORM: list[Build] = [
    each.case
    for each in (Groups((1920,) * 3, 40, 0, norm=True), Groups((700,) * 6, 40, 0, 2, norm=True), Groups((3,) * 2, 256, 0, norm=True))
]
