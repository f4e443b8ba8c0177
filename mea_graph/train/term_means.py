"""Means of the loss's terms over all samples of all processes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torchmetrics import MeanMetric


class TermMeans:
    """Collects the terms of every batch, each weighed by its number of samples.

    Lightning's own mean over processes divides by the average number of samples a process has, cut to an integer: off by an eighth
    where one process has five and the other four.

    >>> import torch
    >>> means = TermMeans()
    >>> means.update({"loss": torch.tensor(1.0)}, samples=3)
    >>> means.update({"loss": torch.tensor(5.0)}, samples=1)
    >>> means.compute()
    {'loss': tensor(2.)}
    """

    def __init__(self) -> None:
        self._means: dict[str, MeanMetric] = {}

    def update(self, terms: Mapping[str, Tensor], samples: int) -> None:
        """Adds a batch."""
        for name, value in terms.items():
            if name not in self._means:
                self._means[name] = MeanMetric().to(value.device)
            self._means[name].update(value.detach(), samples)

    def compute(self) -> dict[str, Tensor]:
        """Returns the means, the same in every process, and begins anew."""
        found = {name: mean.compute() for name, mean in self._means.items()}
        self._means.clear()
        return found
