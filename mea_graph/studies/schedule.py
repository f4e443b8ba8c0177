"""Carrying out the runs of a study: what is finished stays, the rest goes over processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from mea_graph.studies.records import Record, append_record, read_records
from mea_graph.studies.run import Run, carry_out
from mea_graph.studies.tables import shown_metrics
from mea_graph.train.error_message import one_line
from mea_graph.train.metrics import Task
from mea_graph.train.reports import cell
from mea_graph.train.training_progress import Step, TrainingDisplay

LINE_EVERY = 30.0  # seconds, where progress is lines
Outcome = tuple[Run, Record | None, str]  # a run, its record, or why it failed


def finish(runs: Sequence[Run], folder: Path, workers: int, accelerator: str, task: Task) -> tuple[dict[str, Record], list[str]]:
    """Carries out the unfinished runs and returns the records of all runs, by id, and the errors.

    Each record is on disk before the next run is waited for, so that a study that is stopped goes on where it was. A run that fails does
    not end the others.

    Args:
        runs: The runs of the study; equal ones are carried out once.
        folder: Holds `runs.jsonl`.
        workers: Number of processes; 1 works in this one.
        accelerator: The accelerator of Lightning's `Trainer`.
        task: The kind of target, whose main metric is shown as runs finish.
    """
    path = folder / "runs.jsonl"
    records = read_records(path)
    wanted: dict[str, Run] = {}
    for run in runs:
        wanted.setdefault(run.id, run)
    left = [run for id, run in wanted.items() if id not in records or not run.is_recorded_by(records[id])]
    errors = []
    before = len(wanted) - len(left)
    if before:
        print(f"{before} of {len(wanted)} runs are finished already", flush=True)
    with TrainingDisplay("runs", len(wanted), before, LINE_EVERY) as display:
        for run, record, error in _outcomes(left, workers, accelerator, folder / "embeddings", display.tell):
            if record is None:
                errors.append(f"{run.title}: {error}")
                display.finished(run.title, f"{run.title}: failed: {error}")
                continue
            append_record(path, record)
            records[run.id] = record
            shown = shown_metrics(task, record["test"], run.selection["monitor"])[0]
            score = cell(record["test"].get(shown, math.nan))
            display.finished(run.title, f"{run.title}: test {shown} {score}, {record['seconds']:.0f} s")
    # the records as they stand in the file: an undefined number is null there
    found = read_records(path)
    return {id: found[id] for id in wanted if id in found}, errors


def _outcomes(runs: Sequence[Run], workers: int, accelerator: str, drawings: Path, tell: Callable[[Step], None]) -> Iterator[Outcome]:
    if workers == 1 or len(runs) < 2:
        for run in runs:
            yield _attempt(run, accelerator, drawings, tell)
        return
    # spawned, not forked: a fork of a process in which torch has threads may hang
    context = multiprocessing.get_context("spawn")
    steps = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(steps,))
    try:
        waiting: dict[Future[Outcome], Run] = {pool.submit(_attempt, run, accelerator, drawings): run for run in runs}
        while waiting:
            done, _ = wait(waiting, timeout=0.25, return_when=FIRST_COMPLETED)
            while not steps.empty():
                tell(steps.get())
            for future in done:
                run = waiting.pop(future)
                error = future.exception()
                yield (run, None, f"its process ended ({one_line(error)})") if error is not None else future.result()
    finally:
        processes = list((getattr(pool, "_processes", None) or {}).values())  # the pool forgets them when it is shut down
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()  # only after an interruption is any of them still at work, and Lightning would outlive a termination


def _begin_worker(steps: Any) -> None:
    """Where the study is killed, its processes would train on, for records that nobody writes; Ctrl+C is for the study to act upon."""
    global _tell
    _tell = steps.put
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ignore(step: Step) -> None:
    pass


_tell: Callable[[Step], None] = _ignore  # in a process of a study: to the one that shows


def _attempt(run: Run, accelerator: str, drawings: Path, tell: Callable[[Step], None] | None = None) -> Outcome:
    try:
        return run, carry_out(run, accelerator, drawings, tell or _tell), ""
    except BrokenPipeError:  # of what is shown, not of the run
        raise
    except Exception as error:  # whatever it is, the other runs go on
        return run, None, f"{type(error).__name__}: {one_line(error)}"
