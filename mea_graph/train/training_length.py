"""`TrainingLength`: how long to train, in updates of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mea_graph.data import DataError
from mea_graph.option_types import check_types, plain_value

LENGTH = ("updates", "check_every", "patience")  # options of the class, in order
UPDATES = 2000  # of a command or study that does not say how long to train
CHECKS = 20  # validations of a training that does not say how often


@dataclass(frozen=True)
class TrainingLength:
    """Counts training, validation and patience in updates of the weights.

    It sets how long to train, how often to validate and how long to wait for an improvement. A pass over 300 samples is 10 updates and
    one over 20,000 is 600, so a number of passes says little about the length of a training. With this class an epoch
    of the trainer is `check_every` updates, whatever the number of samples. Validation, early stopping, checkpoints and lines of the log
    come after each such epoch, and a run resumes from there bit for bit. Warm-up and cosine decay of `TaskModule` span all updates.

    Args:
        updates: Number of updates of the weights, >= 1; rounded up to whole epochs.
        check_every: Number of updates between two validations, >= 1; a twentieth of all if `None`.
        patience: Number of updates without an improvement that ends the training, >= 1, rounded up to whole epochs; if `None`, none does.

    Raises:
        DataError: If one is below 1.

    >>> length = TrainingLength(2000, patience=450)
    >>> length.updates_per_epoch, length.epochs, length.patience_epochs
    (100, 20, 5)
    >>> from mea_graph.train import Sampling, SequenceDataModule
    >>> data = SequenceDataModule(
    ...     events={"num_samples": 60},
    ...     sampling=Sampling(batches=length.batches_per_epoch()),
    ... )
    >>> len(data.train_dataloader())  # a pass has two batches
    100
    """

    updates: int
    check_every: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).copy().items():
            object.__setattr__(self, name, value := plain_value(value))
            check_types({name: value}, TrainingLength, error=DataError)
            if value is not None and value < 1:
                raise DataError(f"{name}: expected a number of updates >= 1, got {value}")

    @property
    def updates_per_epoch(self) -> int:
        """Updates of an epoch of the trainer, after which it validates."""
        return -(-self.updates // CHECKS) if self.check_every is None else self.check_every

    @property
    def epochs(self) -> int:
        """Epochs of the trainer, `max_epochs`."""
        return self._epochs(self.updates)

    @property
    def patience_epochs(self) -> int:
        """Epochs without an improvement after which training ends, `patience` of `EarlyStopping`; all where there is no patience."""
        return self.epochs if self.patience is None else self._epochs(self.patience)

    def batches_per_epoch(self, accumulate: int = 1) -> int:
        """Returns the batches of an epoch, as `Sampling` takes them.

        Args:
            accumulate: Batches of one update, `accumulate_grad_batches` of the trainer.
        """
        return self.updates_per_epoch * accumulate

    def _epochs(self, updates: int) -> int:
        return -(-updates // self.updates_per_epoch)


def length_of(options: Mapping[str, Any], max_epochs: int | None, max_steps: int = -1) -> TrainingLength | None:
    """Returns how long to train, as `options` say it, or `max_steps`: `UPDATES` where nothing does, None where the trainer counts epochs.

    Args:
        options: Arguments of `TrainingLength`; those that are not given may be None.
        max_epochs: The trainer's number of epochs, if it is given; -1 is no limit.
        max_steps: The trainer's number of updates; -1 if it is not given.

    Raises:
        DataError: If both are given, or an option does not exist or does not go with the others.

    >>> (
    ...     length_of({"updates": None}, max_epochs=None).updates,
    ...     length_of({}, max_epochs=3),
    ... )
    (2000, None)
    >>> length_of({}, max_epochs=None, max_steps=5000).updates
    5000
    """
    given = {name: value for name, value in options.items() if value is not None}
    if max_epochs == -1 and (given or max_steps != -1):
        max_epochs = None
    if not given and max_epochs is None:
        return TrainingLength(UPDATES if max_steps == -1 else max_steps)
    if not given:
        return None
    if max_epochs is not None:
        raise DataError(f"training: expected no trainer.max_epochs (null) beside it, got {max_epochs}: updates say how long to train")
    if given.keys() <= {"check_every", "patience"}:
        raise DataError("training: expected updates beside check_every and patience, got none")
    try:
        return TrainingLength(**given)
    except TypeError as error:
        raise DataError(f"training: {error}") from error


def batches_per_epoch(*given: int | None) -> int | None:
    """Returns the batches of an epoch; one pass where the trainer counts epochs, or options contradict each other."""
    *training, max_epochs, max_steps, accumulate = given
    with suppress(DataError):  # which the parser would wrap; the command says it plainly before it makes anything
        length = length_of(dict(zip(LENGTH, training, strict=True)), max_epochs, -1 if max_steps is None else max_steps)
        return None if length is None else length.batches_per_epoch(accumulate or 1)
    return None
