"""Carrying out the runs of a study: what is finished stays, the rest goes over processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mea_graph.studies.records import Record, append_record, read_records
from mea_graph.studies.run import Run, carry_out
from mea_graph.train.error_message import one_line
from mea_graph.train.reports import cell

Outcome = tuple[Run, Record | None, str]  # a run, its record, or why it failed


def finish(runs: Sequence[Run], folder: Path, workers: int, accelerator: str, shown: str) -> tuple[dict[str, Record], list[str]]:
    """Carries out the runs that are not finished yet and returns the records of all, by id, and what went wrong.

    Each record is on disk before the next run is waited for, so that a study that is stopped goes on where it was. A run that fails does
    not end the others.

    Args:
        runs: of the study; equal ones are carried out once.
        folder: holds ``runs.jsonl``.
        workers: number of processes; 1 works in this one.
        accelerator: of Lightning's ``Trainer``.
        shown: the test metric to show as runs finish.
    """
    path = folder / "runs.jsonl"
    records = read_records(path)
    wanted: dict[str, Run] = {}
    for run in runs:
        wanted.setdefault(run.id, run)
    left = [run for id, run in wanted.items() if id not in records or not run.is_recorded_by(records[id])]
    errors = []
    with _Display(len(wanted), len(wanted) - len(left)) as display:
        for run, record, error in _outcomes(left, workers, accelerator, folder / "embeddings"):
            if record is None:
                errors.append(f"{run.name}, seed {run.seed}: {error}")
                display.finished(f"{run.name}, seed {run.seed}: failed: {error}")
                continue
            append_record(path, record)
            records[run.id] = record
            score = cell(record["test"].get(shown, math.nan))
            display.finished(f"{run.name}, seed {run.seed}: test {shown} {score}, {record['seconds']:.0f} s")
    # the records as they stand in the file: an undefined number is null there
    found = read_records(path)
    return {id: found[id] for id in wanted if id in found}, errors


def _outcomes(runs: Sequence[Run], workers: int, accelerator: str, drawings: Path) -> Iterator[Outcome]:
    if workers == 1 or len(runs) < 2:
        for run in runs:
            yield _attempt(run, accelerator, drawings)
        return
    # spawned, not forked: a fork of a process in which torch has threads may hang
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        waiting: dict[Future[Outcome], Run] = {pool.submit(_attempt, run, accelerator, drawings): run for run in runs}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                run = waiting.pop(future)
                error = future.exception()
                yield (run, None, f"its process ended ({one_line(error)})") if error is not None else future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.kill()  # only after an interruption is any of them still at work, and Lightning would outlive a termination


def _end_with_parent() -> None:
    """Where the study is killed, its processes would train on, for records that nobody writes."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(run: Run, accelerator: str, drawings: Path) -> Outcome:
    try:
        return run, carry_out(run, accelerator, drawings), ""
    except Exception as error:  # whatever it is, the other runs go on
        return run, None, f"{type(error).__name__}: {one_line(error)}"


class _Display:
    """A bar on a terminal, a line for each finished run elsewhere."""

    def __init__(self, total: int, before: int) -> None:
        self.total, self.done = total, before
        columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console()) if sys.stdout.isatty() else None

    def __enter__(self) -> _Display:
        if self.done:
            print(f"{self.done} of {self.total} runs are finished already", flush=True)
        if self.progress is not None:
            self.progress.start()
            self.task: Any = self.progress.add_task("runs", total=self.total, completed=self.done)
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def finished(self, message: str) -> None:
        self.done += 1
        if self.progress is None:
            print(f"[{self.done}/{self.total}] {message}", flush=True)
        else:
            self.progress.console.print(message, highlight=False)
            self.progress.advance(self.task)
