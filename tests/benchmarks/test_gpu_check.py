"""The check that a GPU will get, rehearsed where there is none: it passes, and what breaks in it costs nothing else."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, gpu_check_run, report
from benchmarks.gpu_check_run import Job, Run, Settings

PLANTED = '''
import os, sys, time
import torch
from benchmarks import gpu_check_ops

def _break(run, op, how):
    """An op that breaks from its third case on."""
    sound, calls = getattr(gpu_check_ops, op), []
    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) > 10:  # a case calls it five times: twice for the bits, then ours, the formula and the truth
            how()
        return sound(*args, **kwargs)
    setattr(gpu_check_ops, op, broken)

def aborts(run):
    _break(run, "edge_attention", os.abort)
    gpu_check_ops.check_edge(run)

def hangs(run):
    _break(run, "interval_attention", lambda: time.sleep(600))
    gpu_check_ops.check_interval(run)

def raises(run):
    def launch_failed():
        raise RuntimeError("launch failed")
    _break(run, "grouped_linear", launch_failed)
    gpu_check_ops.check_grouped(run)

def tears(run):
    run.emit("plan", cases=["a"])
    with run._lines.open("a") as file:
        file.write('{"kind": "check", "ca')
    os._exit(3)

def sound(run):
    print("not lost")
    gpu_check_ops.check_grouped(run)

def slow(run):
    run.each("check", {str(i): lambda: time.sleep(0.2) or {"passed": True} for i in range(60)})
'''


def check(folder: Path, *options: str, jobs: list[Job] | None = None) -> tuple[int, dict, list[dict]]:
    """The exit code, the JSON and its lines."""
    arguments = ["--device", "cpu", "--small", "--seconds", "0", "--out", str(folder), *options]
    code = gpu_check.main(arguments, gpu_check.JOBS if jobs is None else jobs)
    (whole,) = folder.glob("*.json")
    (lines,) = folder.glob("*.jsonl")
    return code, json.loads(whole.read_text())["runs"][0], gpu_check_run.read(lines)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_run, "GRACE", 1.0)
    (tmp_path / "planted_jobs.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_rehearsal_on_the_cpu_passes(tmp_path: Path) -> None:
    code, found, _ = check(tmp_path, "--minutes", "5")
    assert code == 0, gpu_check.faults(found)
    assert [(j["stage"], j["job"], j["how"]) for j in found["jobs"]] == [(j.stage, j.name, "done") for j in gpu_check.JOBS]
    assert not found["left_out"]
    assert {c["dtype"] for c in found["checks"]} >= {"float32", "bfloat16", "float16", "bfloat16 by autocast"}
    assert all(c["passed"] for c in found["checks"])
    assert {c["backend"][0] for c in found["checks"] if "backend" in c} == {"cpu", "joined"}
    timed = {c["case"]: c for c in found["cases"]}
    step = timed["MEA, training step, MOSI, B 2, true lengths"]["contenders"]
    assert {"mea_graph", "Transformer over the concatenation"} <= set(step)
    assert "eager formula in bfloat16" in timed["predictive attention, B 2, K 8, T 9, d 40, true lengths (mean 6)"]["contenders"]
    assert all(c["median"] > 0 for case in found["cases"] for c in case["contenders"].values())
    assert {k["case"] for k in found["kernels"]} >= {"predictive attention, bfloat16", "MEA, prediction, MOSI, B 2, true lengths"}
    assert "eager formula in bfloat16" in report.page(tmp_path.glob("*.json"))


@pytest.mark.usefixtures("planted")
def test_an_op_that_kills_its_process_or_never_ends_costs_itself_alone(tmp_path: Path) -> None:
    names = ("aborts", "hangs", "raises", "tears", "sound")
    jobs = [Job("checks", name, f"planted_jobs:{name}", 8.0 if name == "hangs" else 30.0) for name in names]
    start = time.monotonic()
    code, found, lines = check(tmp_path / "out", "--minutes", "1", jobs=jobs)
    assert time.monotonic() - start < 55
    assert code == 1
    how = {j["job"]: j["how"] for j in found["jobs"]}
    assert how.pop("hangs").startswith("stopped after")
    assert how == {"aborts": "killed by SIGABRT", "raises": "done", "tears": "ended with exit code 3", "sound": "done"}
    assert "Fatal Python error: Aborted" in next(j["output"] for j in found["jobs"] if j["job"] == "aborts")
    told = {n: [c["key"] for c in found["checks"] if c["job"] == n and c["passed"]] for n in names}
    lost = {n: [c["key"] for c in found["left_out"] if c.get("job") == n] for n in names}
    # What was found before stays, and what was not is named.
    assert told["aborts"] == ["edge_attention 0, float32", "edge_attention 0, bfloat16"]
    assert lost["aborts"][0] == "edge_attention 0, float16"
    assert len(told["aborts"] + lost["aborts"]) == 6
    assert told["hangs"] == ["interval_attention 0, float32", "interval_attention 0, bfloat16"]
    assert len(told["hangs"] + lost["hangs"]) == 9
    assert "launch failed" in next(c["raised"] for c in found["checks"] if c["job"] == "raises" and not c["passed"])
    assert lost["tears"] == ["a"]
    assert len(told["sound"]) == 3
    assert [line["kind"] for line in lines].count("torn") == 1
    assert any(fault.startswith("checks, aborts: killed by SIGABRT") for fault in gpu_check.faults(found))


@pytest.mark.usefixtures("planted")
def test_when_the_time_is_over_it_says_what_it_left_out(tmp_path: Path) -> None:
    jobs = [Job("checks", "slow", "planted_jobs:slow", 1.0)]
    lines = tmp_path / "lines.jsonl"
    records = [r for _, new in gpu_check_run.run_all(jobs, Settings("cpu", True, 0.0), tmp_path, lines, 6.0) for r in new]
    assert records == gpu_check_run.read(lines)
    found = gpu_check.gathered(records)
    done = sum(c["passed"] for c in found["checks"])
    assert 0 < done < 50
    assert done + len(found["left_out"]) == 60
    assert [j["how"] for j in found["jobs"]] == ["done"]
    ((_, records),) = gpu_check_run.run_all(jobs, Settings("cpu", True, 0.0), tmp_path, lines, 0.5)
    assert [r["how"] for r in records] == ["not begun: the whole time was over"]


def test_a_lost_device_ends_a_job_and_a_broken_case_does_not(tmp_path: Path) -> None:
    def raising(message: str):
        def find():
            raise RuntimeError(message)

        return find

    lines = tmp_path / "lines"
    run = Run(Job("checks", "x", "m:f", 1.0), Settings("cuda", True, 0.0), lines, 60.0)
    run.each("check", {"broken": raising("wrong shape"), "next": lambda: {"passed": True}})
    with pytest.raises(SystemExit, match="lost"):
        run.each("check", {"fatal": raising("CUDA error: an illegal memory access was encountered"), "never": lambda: {"passed": True}})
    assert [r["key"] for r in gpu_check_run.read(lines) if "key" in r] == ["broken", "next", "fatal"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_one_clear_sentence() -> None:
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        gpu_check.main([])


def test_a_rehearsal_does_not_go_among_the_results() -> None:
    with pytest.raises(SystemExit, match="figures mean nothing"):
        gpu_check.main(["--device", "cpu", "--small"])


def test_the_whole_time_is_at_most_nine_minutes() -> None:
    assert sum(job.seconds for job in gpu_check.JOBS) <= 9 * 60 + 30  # shares of it
    assert sys.modules["benchmarks.gpu_check"].__doc__.count("at most nine minutes") == 1
