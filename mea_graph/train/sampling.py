"""`Sampling`: how training draws its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mea_graph.data import DataError, LengthBucketBatchSampler
from mea_graph.option_types import check_types, plain_value


@dataclass(frozen=True)
class Sampling:
    """Sets how training draws its samples. Evaluation reads each sample exactly once in any case.

    Args:
        balanced: Whether all classes are drawn equally often, for unequal classes: samples of small classes come several times,
            some of large classes not at all. An epoch keeps its length.
        batches: Batches of an epoch, >= 1, which then need not be one pass over the samples (`TrainingLength`); one pass if `None`.

    Raises:
        DataError: If `batches` is below 1.

    >>> from mea_graph.train import SequenceDataModule
    >>> data = SequenceDataModule(
    ...     events={"num_samples": 60}, sampling=Sampling(batches=7)
    ... )
    >>> len(data.train_dataloader())  # a pass has two
    7
    """

    balanced: bool = False
    batches: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).copy().items():
            object.__setattr__(self, name, plain_value(value))
        check_types(vars(self), Sampling, prefix="data.sampling.", error=DataError)
        if self.batches is not None and self.batches < 1:
            raise DataError(f"data.sampling.batches: expected an integer >= 1, or none for one pass over the samples, got {self.batches}")


def take_up(sampler: LengthBucketBatchSampler, trainer: Any) -> None:
    """Sets a sampler to where the training is: Lightning sets the epoch too late for workers, which fetch at once, and never the batch.

    Args:
        sampler: Of the training samples, not read yet.
        trainer: Lightning's, restored where a run is resumed.

    Raises:
        DataError: If validation is to come after more batches than an epoch has.
    """
    interval, limit, every = trainer.val_check_interval, trainer.limit_train_batches, trainer.check_val_every_n_epoch
    most = min(len(sampler), limit) if isinstance(limit, int) else int(len(sampler) * limit)
    if isinstance(interval, int) and interval > most and every is not None and trainer.limit_val_batches:
        hint = "trainer.check_val_every_n_epoch=null counts them across epochs"
        raise DataError(f"trainer.val_check_interval: expected at most the {most} batches of an epoch, got {interval}; {hint}")
    loop = trainer.fit_loop
    sampler.set_epoch(loop.epoch_progress.current.processed)
    batches = loop.epoch_loop.batch_progress
    if loop.restarting and not batches.is_last_batch:  # the checkpoint was written within an epoch
        sampler._behind = batches.current.processed
