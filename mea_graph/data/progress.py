"""Shows the progress of a conversion that takes long."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_PATIENCE = 2.0  # seconds in which nothing is said
_EVERY = 5.0  # seconds between lines


class Progress:
    """One piece of work in several stages, shown on the standard error output: as a bar by Rich on a terminal, as lines elsewhere.

    Nothing is shown for what takes less than two seconds.
    """

    def __init__(self, title: str) -> None:
        self.title, self.began, self.said = title, time.monotonic(), -_EVERY
        self.stage, self.done, self.total, self.new = "", 0, 0, True
        self.bar: Any = None
        self.task: Any = None

    def start(self, stage: str, total: int) -> None:
        """Begins a stage of `total` bytes."""
        self.stage, self.done, self.total, self.new = stage, 0, total, True
        self.advance(0)

    def advance(self, count: int) -> None:
        """Counts what is done."""
        self.done += count
        if (passed := time.monotonic() - self.began) < _PATIENCE:
            return
        if self.bar is None and self.said < 0:
            self.bar = _bar()
            if self.bar is not None:
                self.bar.start()
                self.task = self.bar.add_task("", total=None)
        if self.bar is not None:
            self.bar.update(self.task, description=f"{self.title}: {self.stage}", completed=self.done, total=self.total or None)
            self.said = passed
        elif self.new or passed - self.said >= _EVERY:
            share = f", {self.done / self.total:.0%}" if self.total else ""
            print(f"{self.title}: {self.stage}{share} ({passed:.0f} s)", file=sys.stderr, flush=True)
            self.said, self.new = passed, False

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _bar() -> Any:
    """Rich's bar on a terminal, None elsewhere and where Rich is not installed."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    text = TextColumn("{task.description}", markup=False)
    return Progress(text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True)


_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextlib.contextmanager
def showing(title: str) -> Iterator[Progress]:
    """Shows the progress of what is done inside under a title."""
    progress = Progress(title)
    token = _CURRENT.set(progress)
    try:
        yield progress
    finally:
        _CURRENT.reset(token)
        progress.close()


def start(stage: str, total: int) -> None:
    """Begins a stage of the work that is shown, if any is."""
    if (progress := _CURRENT.get()) is not None:
        progress.start(stage, total)


def advance(count: int) -> None:
    """Counts what is done of the stage that is shown, if any is."""
    if (progress := _CURRENT.get()) is not None:
        progress.advance(count)
