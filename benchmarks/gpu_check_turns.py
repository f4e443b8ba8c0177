"""Cases that compile for long: each in a process of its own, side by side while they compile, one after the other while they are timed.

As many begin at once as there are cores. None is timed while another compiles, which would take the host from it. When time grows short,
those that still compile are stopped, so that the others are timed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from benchmarks.gpu_check_compile import cores
from benchmarks.gpu_check_run import Record, Run

Find = Callable[[Callable[[], None]], Record]  # is given a function to call when all is compiled: it returns when the clock may start
OVER = "the time of this job was over"


class _Case:
    """One case at work."""

    def __init__(self, context: Any, find: Find) -> None:
        self.pipe, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(find, other))
        self.start, self.timed = time.monotonic(), False
        self.ready: float | None = None  # seconds after which it had compiled
        self.process.start()
        other.close()  # so that a process that dies closes the last end of it

    def begin_timing(self) -> None:
        self.timed = True
        with contextlib.suppress(OSError):  # it died meanwhile, which is heard next
            self.pipe.send("your turn")

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def how(self) -> str:
        """Of a process that said nothing more."""
        self.process.join()
        code = self.process.exitcode or 0
        return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"


def in_turns(run: Run, kind: str, cases: Mapping[str, Find], seconds: float) -> None:
    """Finds out each case and writes it down; `seconds`, what the timing of one takes, about."""
    waiting = {name: find for name, find in cases.items() if name not in run.known}
    run.emit("plan", cases=list(waiting))
    context, going = multiprocessing.get_context("fork" if run.forks else "spawn"), dict[str, _Case]()

    def leave_out(name: str, why: str) -> None:
        run.emit("left_out", key=name, case=name, why=why)
        if name in going:
            going.pop(name).stop()

    while waiting or going:
        if not going:
            for name in list(waiting)[: cores()] if run.left() > 0 else ():
                going[name] = _Case(context, waiting.pop(name))
        compiling = [name for name, case in going.items() if case.ready is None]
        ready = [name for name, case in going.items() if case.ready is not None and not case.timed]
        timed = [name for name, case in going.items() if case.timed]
        if compiling and run.left() <= seconds * len(ready):
            for name in compiling:
                leave_out(name, "it still compiled when the time was needed for the others")
        elif ready and not compiling and not timed:
            if run.left() > 0:
                going[ready[0]].begin_timing()
            else:
                leave_out(ready[0], OVER)
        elif timed and run.left() < -2 * seconds:
            leave_out(timed[0], OVER)
        elif not going:
            for name in list(waiting):
                del waiting[name]
                leave_out(name, OVER)
        of = {case.pipe: name for name, case in going.items()}
        for pipe in wait(list(of), 0.05) if of else ():
            _hear(run, kind, of[pipe], going, leave_out)


def _hear(run: Run, kind: str, name: str, going: dict[str, _Case], leave_out: Callable[[str, str], None]) -> None:
    """What a case has to say: that it is ready, what it has found, or, by its end, that it never will."""
    case = going[name]
    try:
        said = case.pipe.recv()
    except (EOFError, OSError):
        leave_out(name, case.how())
        return
    if said is None:
        case.ready = time.monotonic() - case.start
        print(f"{name}: compiled after {case.ready:.0f} s", flush=True)
        return
    took = {"took": round(time.monotonic() - case.start, 2)} | ({} if case.ready is None else {"compiled_after": round(case.ready, 1)})
    run.emit(kind, key=name, **{"case": name, **took, **said})
    going.pop(name).stop()


def _work(find: Find, pipe: Connection) -> None:
    """In the case's own process."""

    def turn() -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what others may need meanwhile
        pipe.send(None)
        pipe.recv()

    torch.manual_seed(0)
    try:
        found = find(turn)
    except Exception:
        found = {"passed": False, "raised": traceback.format_exc()}
    pipe.send(found)
