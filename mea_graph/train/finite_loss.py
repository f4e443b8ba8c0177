"""Refuses a loss that is not finite, without making a step wait for its device."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData


class NonFiniteLossError(ArithmeticError):
    """Says that the loss became NaN or infinite, and on which samples: the one whose values are not finite, if there is one.

    >>> from mea_graph.train import NonFiniteLossError
    >>> issubclass(NonFiniteLossError, ArithmeticError)
    True
    """


class _Given(NamedTuple):
    values: Tensor  # (N, d) or (N,); of a device the largest absolute value of each row
    ptr: Tensor | None  # where each sample begins; None where a row is a sample


class _Step(NamedTuple):
    values: Tensor  # of each term, the loss first
    names: list[str]
    ids: Sequence[str] | Tensor | None  # of samples that have names
    stage: str
    given: dict[str, _Given]  # what the batch holds, by name


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

    def see(self, terms: Mapping[str, Tensor], ids: Sequence[str] | Tensor | None, stage: str, batch: HeteroData | None = None) -> None:
        """Notes a step; `loss` must be among its terms. Raises `NonFiniteLossError`."""
        values = torch.stack([value.detach().reshape(()) for value in terms.values()])
        at_once = self._looks_at_once(values)
        self._seen.append(_Step(values, list(terms), ids, stage, {} if batch is None else _given(batch, whole=at_once)))
        if at_once or len(self._seen) >= self.steps:
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
                ids = step.ids.tolist() if isinstance(step.ids, Tensor) else step.ids
                which = "" if ids is None else f"; samples of the batch: {', '.join(map(str, ids))}"
                which = _not_finite(step.given, ids) or which
                raise NonFiniteLossError(f"{step.stage} loss: expected a finite number, got {values}{which}")


def _given(batch: HeteroData, whole: bool) -> dict[str, _Given]:
    """What a step is made of. Without `whole` no more than one number a row is kept, for a device that tells it later."""
    named = [(f"{m}.{field}", batch[m].get(field), batch[m].get("ptr")) for m in batch.node_types for field in ("x", "time")]
    found = {}
    for name, values, ptr in [*named, ("y", batch.get("y"), None)]:
        if not isinstance(values, Tensor) or not values.is_floating_point() or not values.numel() or (name != "y" and ptr is None):
            continue
        values = values.detach().flatten(1) if values.dim() > 1 else values.detach()
        if not whole and values.dim() > 1:
            values = torch.linalg.vector_norm(values, ord=math.inf, dim=1)  # NaN and infinity stay what they are
        found[name] = _Given(values, ptr)
    return found


def _not_finite(given: Mapping[str, _Given], ids: Sequence[object] | None) -> str | None:
    """The first value that is not finite, by its field, sample and step; None where the batch holds none."""
    for name, (values, ptr) in given.items():
        places = (~torch.isfinite(values)).nonzero()
        if not len(places):
            continue
        row, *channel = places[0].tolist()
        sample = row if ptr is None else int(torch.searchsorted(ptr.cpu(), row, right=True)) - 1
        which = f"sample {sample} of the batch" if ids is None or sample >= len(ids) else f"sample {ids[sample]!r}"
        where = "" if ptr is None else f" in step {row - int(ptr[sample])}" + (f", channel {channel[0]}" if channel else "")
        return f"; {name}: {which}: expected finite numbers, got {values[tuple(places[0])].item()}{where}"
    return None
