"""How far a model's training is, shown while it trains: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Step(NamedTuple):
    """Where a training is.

    Args:
        name: The name of the model, with its seed.
        epoch: How many are done, parts of one included.
        epochs: How many there will be at most.
        note: The last validation number; empty before the first.
    """

    name: str
    epoch: float
    epochs: int
    note: str = ""

    def __str__(self) -> str:
        return f"epoch {min(math.floor(self.epoch) + 1, self.epochs)} of {self.epochs}{', ' if self.note else ''}{self.note}"


class TellProgress(L.Callback):
    """Tells where the training is, a few times a second at most.

    Args:
        name: The name of the model, with its seed.
        monitor: The number to show.
        tell: Takes a `Step`.
    """

    def __init__(self, name: str, monitor: str, tell: Callable[[Step], None]) -> None:
        self.name, self.monitor, self.tell = name, monitor, tell
        self.note = ""
        self._last = -math.inf

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() - self._last > 0.25:
            self._tell(trainer, trainer.current_epoch + batch_idx / max(float(trainer.num_training_batches), batch_idx + 1))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            self.note = f"{self.monitor} {float(trainer.callback_metrics[self.monitor]):.3f}"
        self._tell(trainer, trainer.current_epoch + 1 - 1e-6)  # of this epoch still

    def _tell(self, trainer: L.Trainer, epoch: float) -> None:
        self._last = time.monotonic()
        self.tell(Step(self.name, epoch, max(trainer.max_epochs or 0, math.floor(epoch) + 1), self.note))


class TrainingDisplay:
    """Shows several trainings, of which some may go side by side.

    Args:
        what: The plural of what is counted, such as `runs`.
        total: How many there are.
        before: How many of them are done already.
        seconds: Between two lines of progress, where there is no terminal.
    """

    def __init__(self, what: str, total: int, before: int = 0, seconds: float = 30.0) -> None:
        self.what, self.total, self.done, self.seconds = what, total, before, seconds
        ends = (TextColumn("{task.fields[at]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        columns = (TextColumn("{task.description}"), BarColumn(), *ends)
        self.progress = Progress(*columns, console=Console()) if sys.stdout.isatty() else None
        self._tasks: dict[str, Any] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> TrainingDisplay:
        if self.progress is not None:
            self.progress.start()
            self._all: Any = self.progress.add_task(self.what, total=self.total, completed=self.done, at=f"{self.done} of {self.total}")
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def tell(self, step: Step) -> None:
        """Shows where one training is."""
        if self.progress is None:
            if time.monotonic() - self._last_line >= self.seconds:
                self._say(f"{step.name}: {step}")
            return
        if step.name not in self._tasks:
            self._tasks[step.name] = self.progress.add_task(step.name, at="")
        self.progress.update(self._tasks[step.name], completed=step.epoch, total=step.epochs, at=str(step))

    def finished(self, name: str, message: str) -> None:
        """Counts one training as done.

        Args:
            name: As in its steps.
            message: The result, in words.
        """
        self.done += 1
        if self.progress is None:
            self._say(f"[{self.done}/{self.total}] {message}")
            return
        if name in self._tasks:
            self.progress.remove_task(self._tasks.pop(name))
        self.progress.console.print(message, highlight=False)
        self.progress.update(self._all, completed=self.done, at=f"{self.done} of {self.total}")

    def _say(self, line: str) -> None:
        print(line, flush=True)
        self._last_line = time.monotonic()
