"""Cases that compile side by side are timed one after the other, and what the processes of `gpu_check` share is tried first."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks import gpu_check, gpu_check_run, gpu_check_turns
from benchmarks.gpu_check_run import Job, Record, Run, Settings

Turn = Callable[[], None]


def timed(compiles: float, takes: float, turn: Turn) -> Record:
    start = time.monotonic()
    time.sleep(compiles)
    ready = time.monotonic()
    turn()
    begun = time.monotonic()
    time.sleep(takes)
    return {"at": [start, ready, begun, time.monotonic()]}


def dies(turn: Turn) -> Record:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def dies_while_it_waits(turn: Turn) -> Record:
    threading.Timer(0.3, os._exit, (3,)).start()
    turn()
    return {}


def raises(turn: Turn) -> Record:
    raise RuntimeError("no such operator")


def run_turns(folder: Path, seconds: float, cases: dict[str, gpu_check_turns.Find], timing: float = 0.2) -> list[Record]:
    lines = folder / "lines"
    run = Run(Job("whole model", "compiled", "m:f", 1.0), Settings("cpu", True, 0.0), lines, seconds)
    gpu_check_turns.in_turns(run, "time", cases, timing)
    return gpu_check_run.read(lines)


def test_cases_compile_side_by_side_and_none_is_timed_beside_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_turns, "cores", lambda: 3)
    cases = {n: partial(timed, compiles, 0.1) for n, compiles in {"a": 0.6, "b": 0.8, "c": 1.0, "d": 0.1}.items()}
    plan, *found = run_turns(tmp_path, 60.0, cases)
    assert plan["cases"] == list(cases)
    assert [(r["kind"], r["key"], r["case"]) for r in found] == [("time", n, n) for n in cases]
    assert [round(r["compiled_after"] - compiles) for r, compiles in zip(found, (0.6, 0.8, 1.0, 0.1), strict=True)] == [0] * 4
    a, b, c, d = (r["at"] for r in found)
    assert max(x[0] for x in (a, b, c)) < min(x[1] for x in (a, b, c))  # they compile at once
    assert max(x[1] for x in (a, b, c)) < a[2]  # the clock starts when all are compiled
    assert a[3] < b[2] < b[3] < c[2] < c[3] < d[0]  # one by one; the fourth has a core when they have ended


def test_a_case_that_dies_or_raises_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_turns, "cores", lambda: 4)
    _, *found = run_turns(tmp_path, 60.0, {"dies": dies, "raises": raises, "works": partial(timed, 0.5, 0.1), "late": dies_while_it_waits})
    of = {r["key"]: r for r in found}
    assert (of["dies"]["kind"], of["dies"]["why"]) == ("left_out", "its process was killed by signal 9")
    assert "no such operator" in of["raises"]["raised"]
    assert of["works"]["kind"] == "time"
    assert (of["late"]["kind"], of["late"]["why"]) == ("left_out", "its process ended with exit code 3")
    assert gpu_check.gathered(found)["cases"][0]["not_timed"].rstrip().endswith("no such operator")


def test_when_time_grows_short_what_is_compiled_is_timed_and_the_rest_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_turns, "cores", lambda: 3)
    cases = {
        "never": partial(timed, 600.0, 0.0),
        "a": partial(timed, 0.1, 0.1),
        "b": partial(timed, 0.1, 0.1),
        "later": partial(timed, 0.1, 0.1),
    }
    _, *found = run_turns(tmp_path, 4.0, cases, timing=1.0)
    kinds = {r["key"]: (r["kind"], r.get("why")) for r in found}
    assert kinds["never"] == ("left_out", "it still compiled when the time was needed for the others")
    assert kinds["a"] == kinds["b"] == ("time", None)
    assert set(kinds) == set(cases)


def test_a_timing_that_never_ends_is_left_out(tmp_path: Path) -> None:
    _, found = run_turns(tmp_path, 1.5, {"hangs": partial(timed, 0.0, 600.0)}, timing=0.1)
    assert (found["key"], found["why"]) == ("hangs", gpu_check_turns.OVER)


def test_a_fork_is_tried_before_the_jobs_rely_on_it(tmp_path: Path) -> None:
    program = tmp_path / "python"
    steps = [list(each) for each in gpu_check_run.IMPORTS]
    for works in range(len(steps) + 1):
        program.write_text("#!/bin/sh\n" + "echo works\n" * works)
        program.chmod(0o755)
        assert gpu_check_run.forkable.__wrapped__(str(program)) == [m for each in steps[: max(1, works)] for m in each]
    program.write_text("#!/bin/sh\necho works\necho works\nexec sleep 60\n")
    assert gpu_check_run.forkable.__wrapped__(str(program), 3.0) == steps[0] + steps[1]
    assert gpu_check_run.forkable.__wrapped__(str(tmp_path / "none")) == steps[0]


def test_a_module_that_uses_the_device_when_it_is_imported_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import sys\n"
        "class Tensor:\n"
        "    def sum(self):\n"
        "        return self\n"
        "    def item(self):\n"
        "        if 'uses_the_device' in sys.modules:\n"
        "            raise RuntimeError('initialization error')\n"
        "def ones(size, device):\n"
        "    return Tensor()\n"
    )
    (tmp_path / "triton.py").write_text(
        "from types import SimpleNamespace as N\nruntime = N(driver=N(active=N(get_current_device=lambda: 0)))\n"
    )
    for name in ("harmless", "uses_the_device", "after"):
        (tmp_path / f"{name}.py").write_text("")
    steps = json.dumps([["torch", "triton"], ["harmless"], ["uses_the_device"], ["after"]])
    tried = subprocess.run([sys.executable, "-c", gpu_check_run._TRY, steps], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert tried.stdout.split() == ["works", "works"]
