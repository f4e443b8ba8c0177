"""Whether there is, and the machine has, what a command asks for."""

from __future__ import annotations

import lightning.pytorch.accelerators as accelerators
from lightning.pytorch.strategies import StrategyRegistry

from mea_graph.data import DataError
from mea_graph.suggestions import did_you_mean

KINDS = {
    "cuda": accelerators.CUDAAccelerator,
    "mps": accelerators.MPSAccelerator,
    "tpu": accelerators.XLAAccelerator,
}


def check_accelerator(name: object, option: str = "trainer.accelerator") -> None:
    """Refuses an accelerator that this machine lacks, or that nobody has.

    Args:
        name: As for Lightning's `Trainer`; an object is left to it.
        option: Where it was given.

    Raises:
        DataError: If the machine lacks it; the error lists what the machine has.

    >>> check_accelerator("cpu")
    """
    there = [kind for kind, accelerator in KINDS.items() if accelerator.is_available()]
    known = {"auto", "cpu", "gpu", *accelerators.AcceleratorRegistry.available_accelerators()}
    asked = {"gpu": {"cuda", "mps"}}.get(str(name), {str(name)})
    if (isinstance(name, str) and name not in known) or (asked & KINDS.keys() and not asked & set(there)):
        hint = "" if str(name) in known else did_you_mean(str(name), known)
        raise DataError(
            f"{option}: expected one that this machine has, one of {', '.join(['cpu', *there])} or auto, got {str(name)!r}{hint}"
        )


def check_strategy(name: object) -> None:
    """Refuses the name of a strategy that Lightning does not know.

    Args:
        name: As for Lightning's `Trainer`; an object is left to it.

    Raises:
        DataError: If there is none of that name.

    >>> check_strategy("dpp")
    Traceback (most recent call last):
    mea_graph.data.errors.DataError: trainer.strategy: expected auto, ... or a class with its options, got 'dpp' (did you mean 'ddp'?)
    """
    known = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(name, str) and name.lower() not in known:  # Lightning does not mind large letters
        short = [one for one in known if not any(one.startswith(f"{other}_") for other in known)]
        said = f"{', '.join(short)}, a variant of one such as ddp_spawn, or a class with its options"
        raise DataError(f"trainer.strategy: expected {said}, got {name!r}{did_you_mean(name, known)}")
