"""Runs the jobs of `gpu_check`, each in a process of its own, and keeps what they find whatever becomes of them.

A job writes a line of JSON for each thing it has found, and the line is on the disk before the next thing begins. A kernel that kills its
process, or never ends, costs the case that ran: a new process goes on with those after it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

Record = dict[str, Any]
GRACE = 10.0  # seconds that a job may take beyond one and a half of its share: a compiler does not look at the clock
MOST_PROCESSES = 24  # of a job, where the ones before have died
RENEW = 75  # exit code of a process that a new one is to replace, for no fault of its own
_CONTEXT = get_context("forkserver")  # children are forked from a process that has never used the device
_spoilt: list[str] = []
# What the jobs import, in steps of what may be imported before they are forked.
IMPORTS = (
    ("torch", "triton"),
    ("torch._dynamo",),
    ("torch_geometric", "benchmarks.gpu_check_compilers", "benchmarks.gpu_check_manners", "benchmarks.gpu_check_device"),
)
_TRY = """
import importlib, json, os, sys
for modules in json.loads(sys.argv[1]):
    for name in modules:
        importlib.import_module(name)
    child = os.fork()
    if child == 0:
        try:
            import torch, triton
            torch.ones(1, device="cuda").sum().item()
            triton.runtime.driver.active.get_current_device()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        break
    print("works", flush=True)
"""


class Job(NamedTuple):
    """Something to find out: a function `work(run)`, named as "module:function"."""

    stage: str
    name: str
    work: str
    seconds: float  # its share of the whole time
    silence: float | None = None  # seconds after which a case that has not ended never will; None: only the whole job is limited

    def __str__(self) -> str:
        return f"{self.stage}: {self.name}"


class Settings(NamedTuple):
    device: str
    small: bool  # little input, to rehearse
    clock: float  # seconds to time each case


class Run:
    """What a job is given: where it runs, how much time is left, and where its findings go."""

    def __init__(
        self,
        job: Job,
        settings: Settings,
        lines: Path,
        seconds: float,
        known: frozenset[str] = frozenset(),
        spare: int | None = None,
        forks: bool = False,
    ) -> None:
        self.job, self.device, self.small, self.clock = job, settings.device, settings.small, settings.clock
        self.known = known  # the cases that processes before this one have told of
        self.forks = forks or self.device == "cpu"  # whether what this process forks can use the device, if it has not done so itself
        self._lines, self._end, self._spare = lines, time.monotonic() + seconds, spare

    @property
    def on_cuda(self) -> bool:
        return self.device == "cuda"

    def left(self) -> float:
        return self._end - time.monotonic()

    def emit(self, kind: str, **found: Any) -> None:
        append(self._lines, {"kind": kind, "stage": self.job.stage, "job": self.job.name, **found}, self._spare)

    def each(self, kind: str, cases: Mapping[str, Callable[[], Record]]) -> None:
        """Finds out each case and writes it down. One that raises hides no other: if it took the device with it, in a new process."""
        cases = {name: find for name, find in cases.items() if name not in self.known}
        self.emit("plan", cases=list(cases))
        for name, find in cases.items():
            if self.left() <= 0:
                self.emit("left_out", key=name, case=name, why="the time of this job was over")
                continue
            self.emit("begun", begun=name)
            start = time.monotonic()
            try:
                found = find()
            except Exception as raised:
                self.emit(kind, key=name, case=name, passed=False, raised=traceback.format_exc())
                lost = device_lost() if self.on_cuda else None
                if lost:
                    raise SystemExit(f"{name}: the device is lost to this process: {lost}") from raised
                continue
            self.emit(kind, key=name, **{"case": name, "took": round(time.monotonic() - start, 2), **found})
            if is_spoilt():
                sys.exit(RENEW)


def device_lost() -> str | None:
    """Why this process can use the device no more, or None: after an illegal access every call fails."""
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").sum().item()
    except Exception as raised:
        return str(raised).splitlines()[0] if str(raised) else type(raised).__name__
    return None


def spoil(why: str) -> None:
    """Says that this process should find out nothing more, once it has written down the case at work."""
    print(f"a new process is needed: {why}", flush=True)
    _spoilt.append(why)


def is_spoilt() -> bool:
    """Whether a new process has been asked for."""
    return bool(_spoilt)


def append(lines: Path, record: Record, spare: int | None = None) -> None:
    """One line, on the disk before this returns. What the disk does not take is printed, to the file descriptor `spare`."""
    line = json.dumps(record)
    try:
        with lines.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as refused:
        os.write(1 if spare is None else spare, f"could not be written ({refused}): {line}\n".encode())


def read(lines: Path) -> list[Record]:
    """What has been written; a line that a dying process left half written is said to be one."""
    found = []
    for line in lines.read_text(encoding="utf-8", errors="replace").splitlines() if lines.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            found.append({"kind": "torn", "line": line[:200]})
    return found


def start_server(device: str) -> None:
    """Imports what can be imported once, so that this is on no job's account.

    Importing PyG has been seen to use the device, and CUDA does not work in what is forked after that: what the jobs share on a GPU is
    what has been tried there. The rest each job imports for itself.
    """
    _CONTEXT.set_forkserver_preload([m for each in IMPORTS for m in each] if device == "cpu" else forkable())
    first = _CONTEXT.Process(target=time.sleep, args=(0,))
    first.start()
    first.join()


@cache
def forkable(program: str = sys.executable, seconds: float = 40.0) -> list[str]:
    """Modules after whose import a fork can still use the device; a process of its own tries it."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # so that torch asks the driver's library whether there is a device
    command, here = [program, "-c", _TRY, json.dumps(IMPORTS)], Path(__file__).parents[1]
    try:
        said = subprocess.run(command, capture_output=True, timeout=seconds, check=False, cwd=here).stdout
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
    except OSError:
        said = b""
    steps = said.split().count(b"works")
    return [m for each in IMPORTS[: max(1, steps)] for m in each]


def run_all(jobs: Sequence[Job], settings: Settings, lines: Path, seconds: float) -> Iterator[tuple[Job, list[Record]]]:
    """Runs the jobs in turn and gives what each has found. Time that one leaves goes to those after it; none ends after `seconds`."""
    start_server(settings.device)
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as logs:
        for i, job in enumerate(jobs):
            before, left = len(read(lines)), end - time.monotonic()
            share = max(0.0, left - 3) * job.seconds / sum(j.seconds for j in jobs[i:])  # a job that minds the time is not stopped
            if left < 1:
                append(lines, {"kind": "ended", "stage": job.stage, "job": job.name, "how": "not begun: the whole time was over"})
            else:
                _run_one(job, settings, lines, Path(logs) / f"{i:02}.log", before, (share, min(left, 1.5 * share + GRACE)))
            yield job, read(lines)[before:]


def _run_one(job: Job, settings: Settings, lines: Path, log: Path, before: int, times: tuple[float, float]) -> None:
    """One process after the other, until all cases are told of; `times`, the job's share and its limit."""
    named, start = {"stage": job.stage, "job": job.name}, time.monotonic()
    for number in range(1, MOST_PROCESSES + 1):
        share, limit = (t - (time.monotonic() - start) for t in times)
        known = frozenset(r["key"] for r in read(lines)[before:] if "key" in r)
        process = _CONTEXT.Process(target=_work, args=(job, settings, lines, log, share, known))
        how, took = _watch(process, limit, job.silence, lines)
        _end_line(lines)
        mine = read(lines)[before:]
        missing = _missing(mine)
        ended = how in ("done", "begun anew")
        at_work = [case for case in missing if case in {r["begun"] for r in mine if "begun" in r}]
        for case in at_work:
            append(lines, {"kind": "left_out", **named, "key": case, "case": case, "why": how})
        missing = [case for case in missing if case not in at_work]
        moved = at_work or any("key" in r and r["key"] not in known for r in mine)  # else the next process would end as this one
        over = not missing or how == "done" or not moved or number == MOST_PROCESSES or time.monotonic() - start > times[1] - 2
        for case in missing if over else []:
            append(lines, {"kind": "left_out", **named, "key": case, "case": case, "why": f"not begun: {how}"})
        output = _ends(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else ""
        append(lines, {"kind": "ended", **named, "how": "done" if ended and over else how, "took": round(took, 1), "output": output})
        if over:
            return


def _watch(process: BaseProcess, limit: float, silence: float | None, lines: Path) -> tuple[str, float]:
    """Waits for a process, not for ever: how it ended, and after how long."""
    start = heard = time.monotonic()
    size, stopped = 0, ""
    process.start()
    try:
        while process.is_alive() and not stopped:
            process.join(0.1)
            written, now = lines.stat().st_size if lines.exists() else 0, time.monotonic()
            heard, size = (now, written) if written != size else (heard, size)
            if now - start > limit:
                stopped = f"stopped after {now - start:.0f} s, which was its limit"
            elif silence is not None and now - heard > silence:
                stopped = f"stopped after {now - heard:.0f} s without a result"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it leads a group of its own: compilers that it started end too
            os.killpg(process.pid or 0, signal.SIGKILL) if process.pid else None
        if process.is_alive():
            process.kill()
            process.join(10)
    took, code = time.monotonic() - start, process.exitcode or 0
    if stopped:
        return stopped, took
    if code < 0:
        return f"killed by {signal.Signals(-code).name}", took
    return {0: "done", RENEW: "begun anew"}.get(code, f"ended with exit code {code}"), took


def _work(job: Job, settings: Settings, lines: Path, log: Path, seconds: float, known: frozenset[str]) -> None:
    """In the job's own process."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    spare, output = os.dup(1), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    torch.manual_seed(0)
    if settings.device == "cpu":
        torch.set_num_threads(1)
    module, function = job.work.split(":")
    forks, start = "torch_geometric" in sys.modules, time.monotonic()
    work = getattr(importlib.import_module(module), function)
    append(lines, {"kind": "imported", "stage": job.stage, "job": job.name, "took": round(time.monotonic() - start, 2)}, spare)
    work(Run(job, settings, lines, seconds, known, spare, forks))


def _end_with_parent() -> None:
    """Whoever stops the check stops its jobs: one that went on would disturb the next check on the same device."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _missing(records: Sequence[Record]) -> list[str]:
    """Planned, and neither found nor left out."""
    planned = dict.fromkeys(case for r in records if r["kind"] == "plan" for case in r["cases"])
    told = {r["key"] for r in records if "key" in r}
    return [case for case in planned if case not in told]


def _end_line(lines: Path) -> None:
    """So that what comes next is not appended to half a line."""
    if lines.exists() and (data := lines.read_bytes()) and not data.endswith(b"\n"):
        with contextlib.suppress(OSError), lines.open("ab") as file:
            file.write(b"\n")


def _ends(text: str, size: int = 3000) -> str:
    """Beginning and end of a long text: a crash is named before the list of loaded modules, whose length is that of the machine's."""
    return text if len(text) <= 2 * size else f"{text[:size]}\n[...]\n{text[-size:]}"
