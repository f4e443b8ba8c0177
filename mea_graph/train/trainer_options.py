"""What of a trainer decides what is learnt, so that a run is resumed with the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from mea_graph.data import DataError


def trainer_options(trainer: L.Trainer) -> dict[str, Any]:
    """Returns the options of a trainer that change what is learnt, as a checkpoint keeps them.

    Args:
        trainer: Of the run.

    >>> trainer_options(
    ...     L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    ... )["accumulate_grad_batches"]
    1
    """
    algorithm = trainer.gradient_clip_algorithm
    return {
        "precision": trainer.precision,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": None if algorithm is None else str(getattr(algorithm, "value", algorithm)),
    }


def check_same_trainer(checkpoint: Mapping[str, Any], trainer: L.Trainer) -> None:
    """Refuses to resume with options that would make it another run.

    Args:
        checkpoint: As loaded; what one of before these options says nothing of is not compared.
        trainer: Of the run that resumes it.

    Raises:
        DataError: If an option differs; the error names the first one.
    """
    for name, asked in trainer_options(trainer).items():
        if (used := checkpoint.get(name, asked)) != asked:
            told = f"the checkpoint was trained with {used!r}, this run has {asked!r}"
            raise DataError(f"trainer.{name}: {told}; resume with the run's config.yaml")


def check_whole(trainer: L.Trainer, part: str) -> None:
    """Refuses to measure on a share of a part: whoever reads the numbers takes them for those of all its samples.

    Args:
        trainer: Of the evaluation.
        part: `valid` or `test`.

    Raises:
        DataError: If an option leaves some samples out.

    >>> check_whole(
    ...     L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False),
    ...     "test",
    ... )
    """
    option = {"valid": "limit_val_batches", "test": "limit_test_batches"}[part]
    limit = getattr(trainer, option)
    if isinstance(limit, int) or limit != 1.0:  # 1 is a batch, 1.0 is all
        whole = f"1.0, since the metrics are those of all {part} samples"
        raise DataError(f"trainer.{option}: expected {whole}, got {limit} (trainer.fast_dev_run and overfit_batches set it too)")
