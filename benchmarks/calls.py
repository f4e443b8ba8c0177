"""Counts the calls of a pass, which take most of the time on short sequences: `python -m benchmarks.calls` prints those of MEA at MOSI.

`compare` runs this file with the library and the cases of an older tree too, so it uses as little of them as it can.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Calls(NamedTuple):
    """The operators that PyTorch is asked for, one of the library's own counting as one, in and outside the engine of autograd; and how
    often rows are brought into another layout outside it, by the function that does it. None: a library that knows no pointers."""

    forward: Counter[str]
    backward: Counter[str]
    conversions: Counter[str] | None

    def __str__(self) -> str:
        moved = "-" if self.conversions is None else str(self.conversions.total())
        return f"{self.forward.total()}/{self.backward.total()}/{moved}"


def count(run: Callable[[], Any]) -> Calls:
    """What one run calls."""
    counter = _Counter()
    with _conversions() as moved, counter:
        run()
    return Calls(counter.forward, counter.backward, moved)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        (self.backward if _goes_back() else self.forward)[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def _goes_back() -> bool:
    return torch._C._current_graph_task_id() != -1


@contextmanager
def _conversions() -> Iterator[Counter[str] | None]:
    """Counts the calls of `pad`, `unpad`, `take_rows` and `put_rows` that move rows; those that one of them makes belong to it."""
    try:
        from mea_graph.ops import pointers
    except ImportError:
        yield None
        return
    moved: Counter[str] = Counter()
    inside = False

    def counted(name: str, function: Callable[..., Tensor], place: int) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            nonlocal inside
            outermost, inside = not inside, True
            try:
                out = function(*args)
            finally:
                inside = inside and not outermost
            if outermost and not _goes_back() and out.untyped_storage().data_ptr() != args[place].untyped_storage().data_ptr():
                moved[name] += 1
            return out

        return call

    with ExitStack() as stack:
        for name in ("pad", "unpad"):
            stack.enter_context(patch.object(pointers.Pointers, name, counted(name, getattr(pointers.Pointers, name), 1)))
        for name in ("take_rows", "put_rows"):
            original = getattr(pointers, name)
            wrapped = counted(name, original, 0)
            for module in [m for n, m in sys.modules.items() if n.startswith("mea_graph.")]:
                if getattr(module, name, None) is original:  # imported by name
                    stack.enter_context(patch.object(module, name, wrapped))
        yield moved


def mosi_batch() -> Any:
    """16 samples of MOSI's mean lengths as PyG's loader gives them; text is 300 wide."""
    from torch_geometric.data import Batch, HeteroData

    from benchmarks.samples import SHAPES, draw

    widths = {"text": 300, "audio": 5, "vision": 20}
    lengths = draw(SHAPES["MOSI"], 16, "true lengths").lengths
    generator = torch.Generator().manual_seed(0)
    samples = []
    for b in range(16):
        sample = HeteroData()
        for m, width in widths.items():
            sample[m].x = torch.randn(lengths[m][b], width, generator=generator)
        sample.y = torch.randn(1, generator=generator)
        samples.append(sample)
    return Batch.from_data_list(samples)


def of_mea() -> Calls:
    """The calls of the default model over `mosi_batch`: `forward` of a prediction, `backward` of the gradients of its loss."""
    from mea_graph.nn import MEA, MEALoss

    batch = mosi_batch()
    torch.manual_seed(0)
    network = MEA.published({"text": 300, "audio": 5, "vision": 20}, 1)
    objective = MEALoss("regression")
    forward = count(lambda: network(batch))
    loss = objective(network(batch), batch.y).total
    return forward._replace(backward=count(loss.backward).backward)


def main() -> None:
    found = of_mea()
    for name, calls in (("forward", found.forward), ("backward", found.backward), ("conversions", found.conversions or Counter())):
        print(f"{name}: {calls.total()}")
        for operator, times in calls.most_common(12):
            print(f"  {operator:44}{times:6}")


if __name__ == "__main__":
    main()
