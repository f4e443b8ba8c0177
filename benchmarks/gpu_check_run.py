"""Runs the jobs of `gpu_check`, each in a process of its own, and keeps what they find whatever becomes of them.

A job writes a line of JSON for each thing it has found, and the line is on the disk before the next thing begins. A kernel that kills its
process, or never ends, costs what that job had not found yet: the parent says what that was.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

Record = dict[str, Any]
GRACE = 10.0  # seconds that a job may take beyond one and a half of its share: a compiler does not look at the clock
LOST = ("CUDA error", "illegal memory access", "device-side assert", "unspecified launch failure")


class Job(NamedTuple):
    """Something to find out: a function `work(run)`, named as "module:function"."""

    stage: str
    name: str
    work: str
    seconds: float  # its share of the whole time

    def __str__(self) -> str:
        return f"{self.stage}: {self.name}"


class Settings(NamedTuple):
    device: str
    small: bool  # little input, to rehearse
    clock: float  # seconds to time each case


class Run:
    """What a job is given: where it runs, how much time is left, and where its findings go."""

    def __init__(self, job: Job, settings: Settings, lines: Path, seconds: float) -> None:
        self.job, self.device, self.small, self.clock = job, settings.device, settings.small, settings.clock
        self._lines, self._end = lines, time.monotonic() + seconds

    @property
    def on_cuda(self) -> bool:
        return self.device == "cuda"

    def left(self) -> float:
        return self._end - time.monotonic()

    def emit(self, kind: str, **found: Any) -> None:
        append(self._lines, {"kind": kind, "stage": self.job.stage, "job": self.job.name, **found})

    def each(self, kind: str, cases: Mapping[str, Callable[[], Record]]) -> None:
        """Finds out each case and writes it down. One that raises hides no other, unless the device is lost with it."""
        self.emit("plan", cases=list(cases))
        for name, find in cases.items():
            if self.left() <= 0:
                self.emit("left_out", key=name, case=name, why="the time of this job was over")
                continue
            start = time.monotonic()
            try:
                found = find()
            except Exception as raised:
                self.emit(kind, key=name, case=name, passed=False, raised=traceback.format_exc())
                if self.on_cuda and any(word in str(raised) for word in LOST):
                    raise SystemExit(f"{name}: the device is lost to this process") from raised
                continue
            self.emit(kind, key=name, **{"case": name, "took": round(time.monotonic() - start, 2), **found})


def append(lines: Path, record: Record) -> None:
    """One line, on the disk before this returns."""
    with lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(lines: Path) -> list[Record]:
    """What has been written; a line that a dying process left half written is said to be one."""
    found = []
    for line in lines.read_text(encoding="utf-8").splitlines() if lines.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            found.append({"kind": "torn", "line": line[:200]})
    return found


def run_all(jobs: Sequence[Job], settings: Settings, folder: Path, lines: Path, seconds: float) -> Iterator[tuple[Job, list[Record]]]:
    """Runs the jobs in turn and gives what each has found. Time that one leaves goes to those after it; none ends after `seconds`."""
    context = get_context("forkserver")  # children are forked from a process that has imported everything and has never used the device
    context.set_forkserver_preload(["benchmarks.gpu_check_models"])
    first = context.Process(target=time.sleep, args=(0,))  # the imports are not on any job's account
    first.start()
    first.join()
    end = time.monotonic() + seconds
    for i, job in enumerate(jobs):
        before, left = len(read(lines)), end - time.monotonic()
        share = max(0.0, left - 3) * job.seconds / sum(j.seconds for j in jobs[i:])  # a job that minds the time is not stopped
        if left < 1:
            append(lines, {"kind": "ended", "stage": job.stage, "job": job.name, "how": "not begun: the whole time was over"})
        else:
            log = folder / f"{lines.stem}-{i:02}.log"
            process = context.Process(target=_work, args=(job, settings, lines, log, share))
            how, took = _watch(process, min(left, 1.5 * share + GRACE))
            _end_line(lines)
            mine = read(lines)[before:]
            tail = _ends(log.read_text(encoding="utf-8", errors="replace")) if how != "done" and log.exists() else ""
            for case in _missing(mine):
                append(lines, {"kind": "left_out", "stage": job.stage, "job": job.name, "key": case, "case": case, "why": how})
            append(lines, {"kind": "ended", "stage": job.stage, "job": job.name, "how": how, "took": round(took, 1), "output": tail})
        yield job, read(lines)[before:]


def _watch(process: BaseProcess, limit: float) -> tuple[str, float]:
    """Waits for a job, not for ever: how it ended, and after how long."""
    start = time.monotonic()
    process.start()
    process.join(limit)
    took = time.monotonic() - start
    alive = process.is_alive()
    assert process.pid
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the job leads a group of its own: compilers that it started end too
        os.killpg(process.pid, signal.SIGKILL)
    if alive:
        process.kill()
        process.join(10)
        return f"stopped after {took:.0f} s, which was its limit", took
    code = process.exitcode or 0
    if code < 0:
        return f"killed by {signal.Signals(-code).name}", took
    return ("done" if code == 0 else f"ended with exit code {code}"), took


def _work(job: Job, settings: Settings, lines: Path, log: Path, seconds: float) -> None:
    """In the job's own process."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    torch.manual_seed(0)
    if settings.device == "cpu":
        torch.set_num_threads(1)
    module, function = job.work.split(":")
    getattr(importlib.import_module(module), function)(Run(job, settings, lines, seconds))


def _missing(records: Sequence[Record]) -> list[str]:
    """Planned, and neither found nor left out."""
    planned = [case for r in records if r["kind"] == "plan" for case in r["cases"]]
    told = {r["key"] for r in records if "key" in r}
    return [case for case in planned if case not in told]


def _end_line(lines: Path) -> None:
    """So that what comes next is not appended to half a line."""
    if lines.exists() and (data := lines.read_bytes()) and not data.endswith(b"\n"):
        with lines.open("ab") as file:
            file.write(b"\n")


def _ends(text: str, size: int = 3000) -> str:
    """Beginning and end of a long text: a crash is named before the list of loaded modules, whose length is that of the machine's."""
    return text if len(text) <= 2 * size else f"{text[:size]}\n[...]\n{text[-size:]}"
