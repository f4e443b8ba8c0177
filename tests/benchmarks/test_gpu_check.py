"""The check that a GPU will get, rehearsed where there is none: it passes, and what breaks in it costs nothing else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_check, gpu_check_ops, gpu_check_run, report
from benchmarks.gpu_check_run import Job, Run, Settings

PLANTED = '''
import os, sys, time
import torch
from benchmarks import gpu_check_ops
from benchmarks.gpu_check_run import spoil
from mea_graph.check import attention

def _break(run, op, how):
    """An op that breaks from its third case on."""
    sound, calls = getattr(attention, op), []
    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) > 10:  # a case calls it five times: twice for the bits, then ours, the formula and the truth
            how()
        return sound(*args, **kwargs)
    setattr(attention, op, broken)

def aborts(run):
    _break(run, "edge_attention", os.abort)
    gpu_check_ops.check_edge(run)

def aborts_on_the_device(run):
    import pretended_cuda
    with pretended_cuda.device():
        aborts(run)

def hangs(run):
    _break(run, "interval_attention", lambda: time.sleep(600))
    gpu_check_ops.check_interval(run)

def raises(run):
    def launch_failed():
        raise RuntimeError("launch failed")
    _break(run, "edge_attention", launch_failed)
    gpu_check_ops.check_edge(run)

def tears(run):
    run.emit("plan", cases=["a"])
    with run._lines.open("a") as file:
        file.write('{"kind": "check", "ca')
    os._exit(3)

def sound(run):
    print("not lost")
    gpu_check_ops.check_edge(run)

def slow(run):
    run.each("check", {str(i): lambda: time.sleep(0.2) or {"passed": True} for i in range(60)})

def renews(run):
    def find(name):
        if name == "spoils":
            spoil("a capture failed")
        return {"passed": True}
    run.each("check", {n: lambda n=n: find(n) for n in ("first", "spoils", "after")})

def waits_long(run):
    run.each("check", {"short": lambda: {"passed": True}, "long": lambda: time.sleep(600), "after": lambda: {"passed": True}})

def outlives(run):
    run.emit("note", pid=os.getpid())
    time.sleep(600)

def full(run):
    run._lines = type(run._lines)("/dev/full")
    run.each("check", {"not written": lambda: {"passed": True}})
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
    # Its processes have the environment of the server that forks them; a test may have started it where "auto" takes C++.
    assert {c["backend"][0] for c in found["checks"] if "backend" in c} in ({"cpu", "joined", "torch"}, {"native", "joined"})
    timed = {c["case"]: c for c in found["cases"]}
    step = timed["MEA, training step, MOSI, B 2, true lengths"]["contenders"]
    assert {"mea_graph", "Transformer over the concatenation"} <= set(step)
    assert "eager formula in bfloat16" in timed["predictive attention, B 2, K 8, T 9, d 40, true lengths (mean 6)"]["contenders"]
    assert all(c["median"] > 0 for case in found["cases"] for c in case["contenders"].values())
    assert {k["case"] for k in found["kernels"]} >= {"predictive attention, bfloat16", "MEA, prediction, MOSI, B 2, true lengths"}
    assert "eager formula in bfloat16" in report.page(tmp_path.glob("*.json"))
    assert {c["backend"][0] for c in found["checks"] if c["job"] == "Bi-LSTM"} <= {"native", "torch"}


def pretended(jobs: Iterable[Job] = gpu_check.JOBS) -> list[Job]:
    """The jobs on a device that `pretended_cuda` stands in for."""
    return [j._replace(work="pretended_cuda:" + j.work.removeprefix("benchmarks.").replace(":", "__")) for j in jobs]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("device")
def test_a_rehearsal_with_stubs_for_the_kernels_passes(tmp_path: Path) -> None:
    """Every branch that a GPU takes: its backends, clocks, graphs, bounds."""
    jobs = pretended()
    code = gpu_check.main(["--small", "--seconds", "0", "--minutes", "9", "--out", str(tmp_path)], jobs)
    (whole,) = tmp_path.glob("nvidia-h200-*.json")
    found = json.loads(whole.read_text())["runs"][0]
    assert code == 0, gpu_check.faults(found)
    assert not found["left_out"]
    assert {b for c in found["checks"] for b in c.get("backend", [])} == {"triton", "cuda", "joined", "reference", "cpu"}
    ops = [c for c in found["cases"] if c["stage"] in ("times", "layers")]
    assert all({"events", "graph", "median", "peak_bytes"} <= set(of) for c in ops for of in c["contenders"].values())
    step = next(c for c in found["cases"] if c["case"] == "MEA, training step, MOSI, B 2, true lengths")
    assert all(step["backends"][op] == ["triton"] for op in ("bilstm", "predictive_attention", "interval_attention"))
    manners = {m["case"] for m in found["manners"] if m.get("passed")}
    assert manners == {*(f"second stream, {op}" for op in gpu_check_ops.EXPECTED), "memory", "prediction captured for a size"}
    assert "MEA, recommended form" in {c["case"] for c in found["checks"]}
    captured = next(c for c in found["cases"] if c["case"] == "MEA, training step, MOSI, B 2, true lengths, padded")
    assert "MEA, captured" in captured["contenders"]
    bounds = [k["share"] for one in found["kernels"] for k in one["kernels"] if "share" in k]
    assert bounds
    assert {"revision", "sources", "gpu", "triton", "chosen", "ceilings"} <= set(found)


@pytest.mark.usefixtures("planted", "device")
def test_the_report_reads_a_run_wherever_it_ends(tmp_path: Path) -> None:
    jobs = pretended(j for j in gpu_check.JOBS if j.stage in ("device", "kernels") or (j.stage, j.name) == ("times", "Bi-LSTM"))
    jobs.append(Job("checks", "aborts", "planted_jobs:aborts_on_the_device", 10.0))
    gpu_check.main(["--small", "--seconds", "0", "--minutes", "3", "--out", str(tmp_path / "out")], jobs)
    (lines,) = tmp_path.glob("out/*.jsonl")
    records = gpu_check_run.read(lines)
    whole = tmp_path / "nvidia-h200-2026-01-02-030405.json"
    for n in range(len(records) + 1):
        gpu_check.write(whole, gpu_check.gathered(records[:n]), "python -m benchmarks.gpu_check")
        page = report.page([whole])
        assert "No figure: no kernel of the library has run on a GPU" not in page
        assert ("On a GPU: NVIDIA H200" if any("device" in r.get("found", {}) for r in records[:n]) else "that was not named") in page
    assert "killed by SIGABRT" in page
    assert "predictive_attention_fwd_kernel" in page


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
    # What was found before stays, what was lost is named, and a new process finds what comes after it.
    assert lost["aborts"] == ["edge_attention 0, float16", "edge_attention 1, float16"]
    assert len(told["aborts"]) == 4
    assert told["hangs"] == ["interval_attention 0, float32", "interval_attention 0, bfloat16"]
    assert len(told["hangs"] + lost["hangs"]) == 9
    why = [c["why"] for c in found["left_out"] if c.get("job") == "hangs"]
    assert why[0].startswith("stopped after")
    assert all(w.startswith("not begun: stopped after") for w in why[1:])
    assert "launch failed" in next(c["raised"] for c in found["checks"] if c["job"] == "raises" and not c["passed"])
    assert lost["tears"] == ["a"]
    assert len(told["sound"]) == 6
    assert [line["kind"] for line in lines].count("torn") == 1
    assert any(fault.startswith("checks, aborts: killed by SIGABRT") for fault in gpu_check.faults(found))


@pytest.mark.usefixtures("planted")
def test_a_case_that_says_nothing_for_long_ends_and_the_next_one_begins(tmp_path: Path) -> None:
    jobs = [Job("checks", "x", "planted_jobs:waits_long", 30.0, silence=1.5), Job("checks", "y", "planted_jobs:renews", 30.0)]
    lines = tmp_path / "lines.jsonl"
    (_, first), (_, second) = gpu_check_run.run_all(jobs, Settings("cpu", True, 0.0), lines, 60.0)
    assert [r["key"] for r in first if r["kind"] == "check"] == ["short", "after"]
    assert [(r["key"], r["why"]) for r in first if r["kind"] == "left_out"] == [("long", "stopped after 2 s without a result")]
    # A process may also ask for another one in its place: that is no fault.
    assert [r["key"] for r in second if r["kind"] == "check"] == ["first", "spoils", "after"]
    assert [r["how"] for r in second if r["kind"] == "ended"] == ["begun anew", "done"]
    assert not [r for r in second if r["kind"] == "left_out"]
    assert len(gpu_check.faults(gpu_check.gathered([*first, *second]))) == 2  # the case that hung, and that no device is named here


@pytest.mark.usefixtures("planted")
def test_what_the_disk_does_not_take_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = Job("checks", "x", "planted_jobs:full", 30.0)
    gpu_check_run.append(Path("/dev/full"), {"kind": "check", "key": "of the parent"})
    assert 'No space left on device): {"kind": "check", "key": "of the parent"}' in capfd.readouterr().out
    process = gpu_check_run._CONTEXT.Process(target=_full, args=(job, tmp_path, str(tmp_path / "printed")))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert '"key": "not written"' in (tmp_path / "printed").read_text()


def _full(job: Job, folder: Path, printed: str) -> None:
    """What a job's process does, with its standard output in a file."""
    os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT), 1)
    gpu_check_run._work(job, Settings("cpu", True, 0.0), folder / "lines", folder / "log", 30.0, frozenset())


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_keeps_what_it_found_and_leaves_no_job_behind(tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import sys; from benchmarks import gpu_check; from benchmarks.gpu_check_run import Job;"
        "jobs = [Job('checks', 'sound', 'planted_jobs:sound', 30.0), Job('checks', 'outlives', 'planted_jobs:outlives', 30.0)];"
        f"sys.exit(gpu_check.main(['--device', 'cpu', '--small', '--out', {str(tmp_path / 'out')!r}], jobs))"
    )
    places = os.pathsep.join([str(tmp_path), str(Path(gpu_check.__file__).parents[1])])
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": places}, start_new_session=True) as run:
        pid = None
        while pid is None and run.poll() is None:
            time.sleep(0.1)
            written = [r for path in tmp_path.glob("out/*.jsonl") for r in gpu_check_run.read(path)]
            pid = next((r["pid"] for r in written if r["kind"] == "note"), None)
        assert pid is not None
        run.send_signal(how)
        assert run.wait(20) == (1 if how != signal.SIGKILL else -signal.SIGKILL)
    for _ in range(50):
        if not _runs(pid):
            break
        time.sleep(0.1)
    assert not _runs(pid)
    (lines,) = tmp_path.glob("out/*.jsonl")
    if how == signal.SIGKILL:  # the job that ended has been gathered; the other's lines are there
        gpu_check.main(["--gather", str(lines)])
        assert len(list(tmp_path.glob("out/*.json"))) == 2
    for whole in tmp_path.glob("out/*.json"):
        found = json.loads(whole.read_text())["runs"][0]
        assert [c["passed"] for c in found["checks"]] == [True] * 6
        assert {j["how"] for j in found["jobs"]} <= {"done", "the run was interrupted"}


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.usefixtures("planted")
def test_a_second_run_in_the_same_folder_writes_over_nothing(tmp_path: Path) -> None:
    jobs = [Job("checks", "sound", "planted_jobs:sound", 30.0), Job("times", "slow", "planted_jobs:slow", 1.0)]
    folder = tmp_path / "out"
    for options in ([], ["--check-only"]):
        gpu_check.main(["--device", "cpu", "--small", "--minutes", "0.6", "--out", str(folder), *options], jobs)
        time.sleep(1.1)  # names have seconds
    names = sorted(path.name for path in folder.glob("*.json"))
    assert len(names) == len(list(folder.glob("*.jsonl"))) == 2
    assert sum("-checks-" in name for name in names) == 1  # the report takes it for no whole run
    assert {path.suffix for path in folder.iterdir()} == {".json", ".jsonl"}


def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--device", "cpu", "--small", "--out"]
    with pytest.raises(SystemExit, match="--out: expected a folder to write to"):
        gpu_check.main([*arguments, str(tmp_path / "file")])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(SystemExit, match="--out: expected 64 MB of room on the disk, got 0 MB"):
        gpu_check.main([*arguments, str(tmp_path / "out")])


@pytest.mark.usefixtures("planted")
def test_when_the_time_is_over_it_says_what_it_left_out(tmp_path: Path) -> None:
    jobs = [Job("checks", "slow", "planted_jobs:slow", 1.0)]
    lines = tmp_path / "lines.jsonl"
    records = [r for _, new in gpu_check_run.run_all(jobs, Settings("cpu", True, 0.0), lines, 6.0) for r in new]
    assert records == gpu_check_run.read(lines)
    found = gpu_check.gathered(records)
    done = sum(c["passed"] for c in found["checks"])
    assert 0 < done < 50
    assert done + len(found["left_out"]) == 60
    assert [j["how"] for j in found["jobs"]] == ["done"]
    ((_, records),) = gpu_check_run.run_all(jobs, Settings("cpu", True, 0.0), lines, 0.5)
    assert [r["how"] for r in records] == ["not begun: the whole time was over"]


def test_a_lost_device_ends_a_job_and_a_broken_case_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is lost, the device itself says: messages differ from library to library."""

    def raising(message: str):
        def find():
            if message == "Triton Error [CUDA]: misaligned address":
                monkeypatch.setattr(gpu_check_run, "device_lost", lambda: message)
            raise RuntimeError(message)

        return find

    monkeypatch.setattr(gpu_check_run, "device_lost", lambda: None)

    lines = tmp_path / "lines"
    run = Run(Job("checks", "x", "m:f", 1.0), Settings("cuda", True, 0.0), lines, 60.0)
    run.each("check", {"broken": raising("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "next": lambda: {"passed": True}})
    with pytest.raises(SystemExit, match="lost"):
        run.each("check", {"fatal": raising("Triton Error [CUDA]: misaligned address"), "never": lambda: {"passed": True}})
    assert [r["key"] for r in gpu_check_run.read(lines) if "key" in r] == ["broken", "next", "fatal"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_one_clear_sentence() -> None:
    with pytest.raises(SystemExit, match=r"needs a CUDA device; torch [\d.]+\S* sees none"):
        gpu_check.main([])


def test_nothing_asks_for_the_device_when_it_is_imported() -> None:
    """A process that has used the device can start no job by a fork."""
    code = "import torch; asked = []; torch.cuda.is_available = torch.cuda.device_count = lambda: asked.append(1);"
    code += "import benchmarks.gpu_check_compile, benchmarks.gpu_check_manners, benchmarks.gpu_check_models; assert not asked"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(gpu_check.__file__).parents[1])


def test_on_a_gpu_no_job_is_forked_from_a_process_that_may_have_used_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an H200 importing PyG used the device, and every job ended with "initialization error"."""
    preloaded: list[str] = []
    child = SimpleNamespace(start=lambda: None, join=lambda: None)
    server = SimpleNamespace(set_forkserver_preload=preloaded.extend, Process=lambda **_: child)
    monkeypatch.setattr(gpu_check_run, "_CONTEXT", server)
    for tried in (["torch", "triton"], ["torch", "triton", "torch_geometric"]):
        monkeypatch.setattr(gpu_check_run, "forkable", lambda tried=tried: tried)
        preloaded.clear()
        gpu_check_run.start_server("cuda")
        assert preloaded == tried


def test_a_single_job_is_chosen_by_its_name(tmp_path: Path) -> None:
    code, found, _ = check(tmp_path, "--stages", "checks: grouped ops", "times: interval attention")
    assert code == 0, gpu_check.faults(found)
    assert [j["job"] for j in found["jobs"]] == ["device", "kernels compiled", "grouped ops", "interval attention"]


def test_the_whole_model_comes_before_the_ops_and_after_the_check_of_it() -> None:
    order = [str(job) for job in gpu_check.JOBS]
    whole = [order.index(f"whole model: {name}") for name in ("eager", "captured", "compiled")]
    assert order.index("checks: model") < min(whole)
    assert max(whole) < min(i for i, name in enumerate(order) if name.startswith(("times", "kernels", "layers", "manners", "compilers")))


def test_a_rehearsal_does_not_go_among_the_results() -> None:
    with pytest.raises(SystemExit, match="figures mean nothing"):
        gpu_check.main(["--device", "cpu", "--small"])


def test_the_whole_time_is_at_most_nine_minutes() -> None:
    assert sum(job.seconds for job in gpu_check.JOBS) <= 9 * 60 + 30  # shares of it
    assert 0 < gpu_check.spent() < 24 * 3600  # what the imports took is in it
    assert sys.modules["benchmarks.gpu_check"].__doc__.count("at most nine minutes") == 1
