"""Settles what can be known only on a GPU, in one run that can lose nothing, and writes JSON.

    python -m benchmarks.gpu_check                                   # at most nine minutes; needs no network
    python -m benchmarks.gpu_check --check-only                      # correctness alone
    python -m benchmarks.gpu_check --stages kernels "checks: model"  # some of it, by stages or by single jobs
    python -m benchmarks.gpu_check --device cpu --small --out FOLDER # rehearses it where there is no GPU
    python -m benchmarks.gpu_check --gather FILE.jsonl               # makes the JSON of a run that was killed
    python -m benchmarks.report                                      # makes docs/performance.md of what was written

Run it from the repository's root; the package need not be installed. Each job is a process of its own, each finding a line of JSON on the
disk before the next one begins (`*.jsonl`), and after each job the whole is written as one JSON file. Both carry the time in their names:
no run writes over another. A case that kills its process or hangs is named, and a new process goes on after it. What there was no time for
is named too. The exit code is 1 if a check failed, a job did not end as it should, or something could not be timed.

Times are seconds. Of a contender, `median`, `lower` and `upper` are on the wall, host and all; `events` is the device's clock around passes
that are queued one behind the other; `graph` the same for a CUDA graph, in which the host does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_check import show
from benchmarks.gpu_check_run import Job, Record, Settings, append, read, run_all, start_server
from benchmarks.report_device import why

ENDING = 5.0  # seconds for what is written after the last job
ROOM = 64 * 2**20  # bytes on the disk that a run must find; it writes some hundred thousand
RESULTS = Path(__file__).parent / "results"
_OPS, _RECURRENT = "benchmarks.gpu_check_ops", "benchmarks.gpu_check_recurrent"
_MODELS, _COMPILERS = "benchmarks.gpu_check_models", "benchmarks.gpu_check_compilers"
QUIET = 40.0  # seconds in which a check or a timing of an op has ended: its kernels are compiled

# What a user asks first comes first: the whole model, and that it is right. The seconds are shares of the whole time, which holds all of
# this on no machine: what a job leaves goes to those after it, and --stages gives what was left out a time of its own.
JOBS = [
    Job("device", "device", "benchmarks.gpu_check_device:device", 10),  # the first to load CUDA from the disk
    Job("device", "kernels compiled", "benchmarks.gpu_check_compile:compile_all", 35),
    Job("checks", "model", f"{_MODELS}:check_model", 20),
    Job("whole model", "eager", f"{_MODELS}:model_eager", 130),
    Job("whole model", "captured", f"{_MODELS}:model_captured", 50),
    Job("whole model", "compiled", f"{_COMPILERS}:model_compiled", 138),
    Job("whole model", "kernels", f"{_MODELS}:model_kernels", 8),
    Job("checks", "predictive attention", f"{_OPS}:check_predictive", 24, QUIET),
    Job("checks", "interval attention", f"{_OPS}:check_interval", 8, QUIET),
    Job("checks", "edge attention", f"{_OPS}:check_edge", 10, QUIET),
    Job("checks", "Bi-LSTM", f"{_RECURRENT}:check_recurrent", 22, QUIET),
    Job("checks", "grouped ops", "benchmarks.gpu_check_grouped:check_grouped", 6, QUIET),
    Job("times", "predictive attention", f"{_OPS}:time_predictive", 14, QUIET),
    Job("times", "interval attention", f"{_OPS}:time_interval", 6, QUIET),
    Job("times", "edge attention", f"{_OPS}:time_edge", 12, QUIET),
    Job("times", "Bi-LSTM", f"{_RECURRENT}:time_recurrent", 14, QUIET),
    Job("times", "grouped ops", "benchmarks.gpu_check_grouped:time_grouped", 6, QUIET),
    Job("kernels", "ops", f"{_OPS}:kernels_of_ops", 6, QUIET),
    Job("kernels", "Bi-LSTM", f"{_RECURRENT}:kernels_of_recurrent", 5, QUIET),
    Job("layers", "layers", f"{_MODELS}:layers_of_mea", 17, QUIET),
    Job("compilers", "predictive attention", f"{_COMPILERS}:time_compiled", 19),
    Job("manners", "streams, memory, sanitizer", "benchmarks.gpu_check_manners:manners", 10),  # last: compute-sanitizer takes what there is
]


def gathered(records: Sequence[Record]) -> dict[str, Any]:
    """All findings in the form that the report reads."""
    found: dict[str, Any] = {"format": 2}
    for r in records:
        if r["kind"] in ("environment", "chosen", "ceilings"):
            more = r.get("found")
            found |= {f"{r['case']}_raised": r["raised"]} if more is None else more if r["kind"] == "environment" else {r["kind"]: more}
    of = lambda *kinds: [{k: v for k, v in r.items() if k != "kind"} for r in records if r["kind"] in kinds]  # noqa: E731
    timed = [{"dtype": "", "contenders": {}, **({"not_timed": r["raised"]} if "raised" in r else {}), **r} for r in of("time")]
    return {
        **found,
        "compiled": of("compiled"),
        "checks": of("check"),
        "cases": timed,
        "kernels": of("kernels"),
        "manners": of("manners"),
        "absent": of("absent"),
        "jobs": of("ended"),
        "left_out": of("left_out", "torn"),
    }


def faults(found: dict[str, Any]) -> list[str]:
    """What did not go as it should, a line each. That time was over is none; it is told in `left_out`."""
    lines = [f"check failed: {c.get('what', c['case'])}, {c.get('dtype', '')}: {why(c)}" for c in found["checks"] if not c["passed"]]
    lines += [f"failed: {c['case']}: {why(c)}" for c in found["manners"] if not c.get("passed", "skipped" in c)]
    lines += [f"not timed: {c['case']}: {c['not_timed'].strip().splitlines()[-1]}" for c in found["cases"] if "not_timed" in c]
    lines += [f"no profile: {c['case']}: {why(c)}" for c in found["kernels"] if "raised" in c]
    if "device" not in found:
        lines.append("the device has no name here: see environment_raised")
    return lines + [f"{j['stage']}, {j['job']}: {j['how']}" for j in found["jobs"] if j["how"] not in ("done", "begun anew")]


def write(path: Path, found: dict[str, Any], command: str) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    try:
        unfinished.write_text(json.dumps({"command": command, "runs": [found]}, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as refused:
        print(f"could not write {path}: {refused}; --gather makes it of the lines", flush=True)


def place(found: dict[str, Any], lines: Path, part: str) -> Path:
    """Where the whole of these lines goes: named by the device and the time, and by the stages if not all were run."""
    name = re.sub("[^a-z0-9]+", "-", f"{found.get('device', 'gpu-check')} {part}".lower()).strip("-")
    return lines.with_name(f"{name}-{lines.stem.removeprefix('gpu-check-')}.json")


@contextmanager
def stoppable() -> Iterator[None]:
    """A request to end is an interrupt, as from the keyboard: what has been found is still gathered."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def spent() -> float:
    """Seconds since this process began, imports and all."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)
    except (OSError, ValueError, AttributeError):
        return 15.0


def check_place(folder: Path) -> None:
    """That results can be written, before a device is kept waiting for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".gpu-check-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as refused:
        raise SystemExit(f"--out: expected a folder to write to, got {folder}: {refused}") from refused
    room = shutil.disk_usage(folder).free
    if room < ROOM:
        raise SystemExit(f"--out: expected {ROOM >> 20} MB of room on the disk, got {room >> 20} MB in {folder}")


def tell(job: Job, records: Sequence[Record]) -> None:
    for r in records:
        if r["kind"] == "check":
            print(f"{'ok  ' if r['passed'] else 'FAIL'} {r.get('what', r['case'])}, {r.get('dtype', '')}: {why(r)}{r.get('raised', '')}")
        elif r["kind"] == "kernels" and "kernels" in r:
            print(f"{r['case']}: {r['launches']} launches a pass")
            for k in r["kernels"][:12]:
                print(
                    f"  {k['us']:>10.1f} us  {k['launches']:>6.1f} x  {k['kernel'][:70]}"
                    + (f"  {k['share']:.0%} of the bound" if "share" in k else "")
                )
        elif r["kind"] == "left_out":
            print(f"left out: {r['case']} ({r['why']})")
        elif r["kind"] == "compiled":
            print(f"compiled {r['case']}: {r['how']} after {r['took']} s")
        elif r["kind"] == "ended":
            print(f"-- {job}: {r['how']}" + (f"\n{r['output']}" if r.get("output") and r["how"] != "done" else ""), flush=True)


def main(arguments: Sequence[str] | None = None, jobs: Sequence[Job] = tuple(JOBS)) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which all is over, whatever happens")
    parser.add_argument("--seconds", type=float, default=2.0, help="to spend on timing each case")
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=[*dict.fromkeys(j.stage for j in jobs), *map(str, jobs)],
        metavar="STAGE",
        help='only these, each a whole stage ("checks") or a job of it ("checks: Bi-LSTM"); the device\'s is always run',
    )
    parser.add_argument("--check-only", action="store_true", help="the stages device and checks")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal, without the kernels")
    parser.add_argument("--small", action="store_true", help="little input")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for what is found")
    parser.add_argument("--gather", type=Path, metavar="FILE", help="runs nothing: makes the JSON of these lines, beside them")
    args = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks.gpu_check", *(sys.argv[1:] if arguments is None else arguments)])
    if args.gather:
        found = gathered(read(args.gather))
        write(place(found, args.gather, "gathered"), found, command)
        return int(bool(faults(found)))
    if args.device == "cuda" and not torch.cuda.is_available():
        built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}" if torch.version.cuda else f"torch {torch.__version__}"
        raise SystemExit(f"gpu_check needs a CUDA device; {built} sees none (--device cpu --small --out FOLDER rehearses it)")
    if args.device == "cpu" and args.out == RESULTS:
        raise SystemExit("--out: expected a folder for the rehearsal, whose figures mean nothing, got that of the results")
    start = time.monotonic() - (spent() if arguments is None else 0.0)
    stages = ["device", "checks"] if args.check_only else ["device", *(args.stages or [j.stage for j in jobs])]
    chosen = [j for j in jobs if j.stage in stages or str(j) in stages]
    check_place(args.out)
    lines = args.out / f"gpu-check-{datetime.now(timezone.utc):%Y-%m-%d-%H%M%S}.jsonl"
    part = "" if len(chosen) == len(jobs) else " ".join(dict.fromkeys(j.stage for j in chosen))
    path, found = place({}, lines, part), gathered([])
    settings = Settings(args.device, args.small, args.seconds)

    def gather() -> None:
        nonlocal path, found
        found = gathered(read(lines))
        named = place(found, lines, part)
        write(named, found, command)
        if named != path:
            path.unlink(missing_ok=True)
            path = named

    with stoppable():
        try:
            start_server(args.device)
            for job, new in run_all(chosen, settings, lines, 60 * args.minutes - (time.monotonic() - start) - ENDING):
                gather()
                tell(job, new)
        except KeyboardInterrupt:
            ended = {(r["stage"], r["job"]) for r in read(lines) if r["kind"] == "ended"}
            for job in chosen:
                if (job.stage, job.name) not in ended:
                    append(lines, {"kind": "ended", "stage": job.stage, "job": job.name, "how": "the run was interrupted"})
            gather()
    if "device" in found and found["cases"]:
        show({**found, "cases": [c for c in found["cases"] if c["contenders"]]})
    for c in found["cases"]:
        if "roofline" in c:
            print(f"{c['case']}, {c['dtype']}: {c['roofline']['share']:.0%} of the roofline, {1e6 * c['roofline']['bound']:.0f} us")
    wrong = faults(found)
    print(*wrong, sep="\n")
    print(f"{len(found['left_out'])} cases left out; wrote {path} and {lines} after {time.monotonic() - start:.0f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
