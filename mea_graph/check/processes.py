"""Runs each task in a process of its own, so that a kernel that ends its process, or never ends, costs nothing else. Imports no torch."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Record = dict[str, Any]
WORK = "mea_graph.check.work:work"  # a function of a task and of what takes its findings
_CONTEXT = multiprocessing.get_context("spawn")  # CUDA does not work in what is forked from a process that has used it
_READY = "ready"
STARTING = 600.0  # seconds for its imports
_TAIL = 3000  # characters of what a process printed that are kept


class Child:
    """A process that imports what it needs, then waits for its task.

    Args:
        work: What it runs, as "module:function".
    """

    def __init__(self, work: str = WORK) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        handle, name = tempfile.mkstemp(prefix="mea-graph-check-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, name, work), daemon=True)
        self._process.start()
        theirs.close()

    def findings(self, task: Any, limit: float) -> Iterator[Record]:
        """Gives the process its task and passes on what it finds, the way it died last.

        Args:
            task: The task.
            limit: Seconds without a finding after which the process is ended.

        Yields:
            Its findings; where it did not end as it should, at last one of the kind "died", with `how` "crashed" or "hung".
        """
        wait = STARTING
        try:
            while True:
                if not self._pipe.poll(wait):
                    yield self._death("hung", f"ended after {wait:.0f} s without a result")
                    return
                found = self._pipe.recv()
                if found == _READY:
                    wait = limit
                    self._pipe.send(task)
                elif found is None:
                    return
                else:
                    yield found
        except (EOFError, OSError):
            self._process.join(10)
            yield self._death("crashed", _ending(self._process.exitcode))
        finally:
            self.end()

    def _death(self, how: str, reason: str) -> Record:
        printed = self._log.read_text(errors="replace").strip()
        if how == "crashed" and (self._process.exitcode or 0) > 0 and printed:
            reason += f": {printed.splitlines()[-1]}"  # the exception that nobody caught
        return {"kind": "died", "how": how, "reason": reason, "printed": printed[-_TAIL:]}

    def end(self) -> None:
        """Ends the process, with the compilers that it started."""
        if hasattr(os, "killpg") and self._process.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.is_alive():
            self._process.kill()
        self._process.join(10)
        self._pipe.close()
        with contextlib.suppress(OSError):  # on Windows a compiler that it started may still hold it
            self._log.unlink()


class Children:
    """Has the next process import what it needs while one works.

    Args:
        work: What they run.
    """

    def __init__(self, work: str = WORK) -> None:
        self._work = work
        self._next: Child | None = None

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        if self._next is not None:
            self._next.end()

    def findings(self, task: Any, limit: float, is_last: bool = False) -> Iterator[Record]:
        """As `Child.findings`, of a process of its own.

        Args:
            task: The task.
            limit: Seconds without a finding.
            is_last: Whether no task comes after it.
        """
        child = self._next or Child(self._work)
        self._next = None if is_last else Child(self._work)
        yield from child.findings(task, limit)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _serve(pipe: Connection, log: str, work: str) -> None:
    """In the process itself."""
    if hasattr(os, "setsid"):
        os.setsid()  # leads a group, and hears no Ctrl+C
    threading.Thread(target=_end_with_parent, args=(log,), daemon=True).start()
    output = os.open(log, os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    module, _, function = work.partition(":")
    run = getattr(importlib.import_module(module), function)
    pipe.send(_READY)
    run(pipe.recv(), pipe.send)
    sys.stdout.flush()
    pipe.send(None)


def _end_with_parent(log: str) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        with contextlib.suppress(OSError):  # which a killed parent has left
            os.unlink(log)
        os._exit(1)
