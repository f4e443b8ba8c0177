"""Whether the machine has what a command asks for."""

from __future__ import annotations

import lightning.pytorch.accelerators as accelerators

from mea_graph.data import DataError

KINDS = {
    "cuda": accelerators.CUDAAccelerator,
    "mps": accelerators.MPSAccelerator,
    "tpu": accelerators.XLAAccelerator,
}


def check_accelerator(name: object, option: str = "trainer.accelerator") -> None:
    """Refuses an accelerator that this machine lacks.

    Args:
        name: As for Lightning's `Trainer`; whatever is not one of its words is left to it.
        option: Where it was given.

    Raises:
        DataError: If the machine lacks it; the error lists what the machine has.

    >>> check_accelerator("cpu")
    """
    there = [kind for kind, accelerator in KINDS.items() if accelerator.is_available()]
    asked = {"gpu": {"cuda", "mps"}}.get(str(name), {str(name)})
    if asked & KINDS.keys() and not asked & set(there):
        raise DataError(f"{option}: expected one that this machine has, one of {', '.join(['cpu', *there])} or auto, got {str(name)!r}")
