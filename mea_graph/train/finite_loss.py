"""Refuses a loss that is not finite, without making a step wait for its device."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class NonFiniteLossError(ArithmeticError):
    """Says that the loss became NaN or infinite, and on which samples.

    >>> from mea_graph.train import NonFiniteLossError
    >>> issubclass(NonFiniteLossError, ArithmeticError)
    True
    """


class _Step(NamedTuple):
    values: Tensor  # of each term, the loss first
    names: list[str]
    ids: list[str] | None  # of samples that have names
    stage: str


class FiniteLoss:
    """Looks at the terms of each step: at once on a CPU; on a device at those of several steps together, by one copy.

    Args:
        steps: How many steps of a device are looked at together, at least 1.

    >>> watch = FiniteLoss()
    >>> watch.see({"loss": torch.tensor(0.5)}, ["a", "b"], "train")
    """

    def __init__(self, steps: int = 32) -> None:
        self.steps = steps
        self._seen: list[_Step] = []

    def see(self, terms: Mapping[str, Tensor], ids: Sequence[str] | None, stage: str) -> None:
        """Notes a step; `loss` must be among its terms. Raises `NonFiniteLossError`."""
        values = torch.stack([value.detach().reshape(()) for value in terms.values()])
        self._seen.append(_Step(values, list(terms), None if ids is None else list(ids), stage))
        if self._looks_at_once(values) or len(self._seen) >= self.steps:
            self.end()

    @staticmethod
    def _looks_at_once(values: Tensor) -> bool:
        return values.device.type == "cpu"

    def end(self) -> None:
        """Looks at the steps that were not looked at yet, the first one first. Raises `NonFiniteLossError`."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        numbers = iter(torch.cat([step.values for step in seen]).tolist())
        for step in seen:
            terms = {name: next(numbers) for name in step.names}
            if not math.isfinite(terms["loss"]):
                values = ", ".join(f"{name} {value:g}" for name, value in terms.items())
                which = "" if step.ids is None else f"; samples of the batch: {', '.join(step.ids)}"
                raise NonFiniteLossError(f"{step.stage} loss: expected a finite number, got {values}{which}")
