"""Settles what can be known only on a GPU, in one run that can lose nothing, and writes JSON.

    python -m benchmarks.gpu_check                                   # at most nine minutes; needs no network
    python -m benchmarks.gpu_check --check-only                      # correctness alone
    python -m benchmarks.gpu_check --stages kernels "whole model"    # some of it
    python -m benchmarks.gpu_check --device cpu --small --out FOLDER # rehearses it where there is no GPU
    python -m benchmarks.report                                      # makes docs/performance.md of what was written

Run it from the repository's root; the package need not be installed. Each job is a process of its own, each finding a line of JSON on the
disk before the next one begins (`*.jsonl`), and after each job the whole is written as one JSON file. What there was no time for is named.
The exit code is 1 if a check failed, a job did not end as it should, or something could not be timed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_check import show
from benchmarks.gpu_check_run import Job, Record, Settings, run_all

STARTING = 15.0  # seconds for imports, before any job's clock runs
RESULTS = Path(__file__).parent / "results"
_OPS, _MODELS = "benchmarks.gpu_check_ops", "benchmarks.gpu_check_models"

# In the order of what has to be known first. The seconds are shares of the whole time: what a job leaves goes to those after it.
JOBS = [
    Job("device", "device", "benchmarks.gpu_check_device:device", 15),
    Job("checks", "predictive attention", f"{_OPS}:check_predictive", 60),
    Job("checks", "interval attention", f"{_OPS}:check_interval", 40),
    Job("checks", "edge attention", f"{_OPS}:check_edge", 20),
    Job("checks", "grouped linear", f"{_OPS}:check_grouped", 8),
    Job("checks", "model", f"{_MODELS}:check_model", 25),
    Job("times", "predictive attention", f"{_OPS}:time_predictive", 60),
    Job("times", "interval attention", f"{_OPS}:time_interval", 20),
    Job("times", "edge attention", f"{_OPS}:time_edge", 35),
    Job("kernels", "ops", f"{_OPS}:kernels_of_ops", 20),
    Job("layers", "layers", f"{_MODELS}:layers_of_mea", 45),
    Job("whole model", "eager", f"{_MODELS}:model_eager", 80),
    Job("whole model", "kernels", f"{_MODELS}:model_kernels", 12),
    Job("whole model", "captured", f"{_MODELS}:model_captured", 25),
    Job("whole model", "compiled", f"{_MODELS}:model_compiled", 70),
    Job("manners", "streams, memory, sanitizer", f"{_MODELS}:manners", 25),
]


def gathered(records: Sequence[Record]) -> dict[str, Any]:
    """All findings in the form that the report reads."""
    found: dict[str, Any] = {}
    for r in records:
        if r["kind"] in ("environment", "chosen", "ceilings"):
            more = r.get("found", {"raised": r.get("raised", "")})
            found |= more if r["kind"] == "environment" else {r["kind"]: more}
    of = lambda *kinds: [{k: v for k, v in r.items() if k != "kind"} for r in records if r["kind"] in kinds]  # noqa: E731
    timed = [{"dtype": "", "contenders": {}, **({"not_timed": r["raised"]} if "raised" in r else {}), **r} for r in of("time")]
    return {
        **found,
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
    lines = [f"check failed: {c['case']}{_why(c)}" for c in found["checks"] if not c["passed"]]
    lines += [f"failed: {c['case']}{_why(c)}" for c in found["manners"] if not c.get("passed", "skipped" in c)]
    lines += [f"not timed: {c['case']}: {c['not_timed'].strip().splitlines()[-1]}" for c in found["cases"] if "not_timed" in c]
    lines += [f"no profile: {c['case']}{_why(c)}" for c in found["kernels"] if "raised" in c]
    return lines + [f"{j['stage']}, {j['job']}: {j['how']}" for j in found["jobs"] if j["how"] != "done"]


def _why(record: Record) -> str:
    return (
        f": {record['raised'].strip().splitlines()[-1]}" if "raised" in record else f": {record.get('what', '')} {record.get('errors', '')}"
    )


def write(path: Path, found: dict[str, Any], command: str) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"command": command, "runs": [found]}, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def tell(job: Job, records: Sequence[Record]) -> None:
    for r in records:
        if r["kind"] == "check":
            errors = ", ".join(f"{n} {e:.1e}" for n, e in r.get("errors", {}).items())
            print(f"{'ok  ' if r['passed'] else 'FAIL'} {r.get('what', r['case'])}, {r.get('dtype', '')}: {errors}{r.get('raised', '')}")
        elif r["kind"] == "kernels" and "kernels" in r:
            print(f"{r['case']}: {r['launches']} launches a pass")
            for k in r["kernels"][:12]:
                print(
                    f"  {k['us']:>10.1f} us  {k['launches']:>6.1f} x  {k['kernel'][:70]}"
                    + (f"  {k['share']:.0%} of the bound" if "share" in k else "")
                )
        elif r["kind"] == "left_out":
            print(f"left out: {r['case']} ({r['why']})")
        elif r["kind"] == "ended":
            print(f"-- {job}: {r['how']}" + (f"\n{r['output']}" if r.get("output") else ""), flush=True)


def main(arguments: Sequence[str] | None = None, jobs: Sequence[Job] = tuple(JOBS)) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which all is over, whatever happens")
    parser.add_argument("--seconds", type=float, default=2.0, help="to spend on timing each case")
    parser.add_argument(
        "--stages", nargs="+", choices=list(dict.fromkeys(j.stage for j in jobs)), help="only these; the device's is always run"
    )
    parser.add_argument("--check-only", action="store_true", help="the stages device and checks")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal, without the kernels")
    parser.add_argument("--small", action="store_true", help="little input")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for what is found")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_check needs a CUDA device; torch sees none (--device cpu --small --out FOLDER rehearses it)")
    if args.device == "cpu" and args.out == RESULTS:
        raise SystemExit("--out: expected a folder for the rehearsal, whose figures mean nothing, got that of the results")
    start = time.monotonic()
    stages = ["device", "checks"] if args.check_only else ["device", *(args.stages or [j.stage for j in jobs])]
    args.out.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc)
    lines = args.out / f"gpu-check-{now:%Y-%m-%d-%H%M%S}.jsonl"
    command = shlex.join(["python", "-m", "benchmarks.gpu_check", *(sys.argv[1:] if arguments is None else arguments)])
    records: list[Record] = []
    found: dict[str, Any] = {}
    path = args.out / f"gpu-check-{now:%Y-%m-%d}.json"
    settings = Settings(args.device, args.small, args.seconds)
    for job, new in run_all([j for j in jobs if j.stage in stages], settings, args.out, lines, 60 * args.minutes - STARTING):
        records += new
        found = gathered(records)
        named = args.out / f"{re.sub('[^a-z0-9]+', '-', found.get('device', 'gpu-check').lower()).strip('-')}-{now:%Y-%m-%d}.json"
        if named != path:
            path.unlink(missing_ok=True)
            path = named
        write(path, found, command)
        tell(job, new)
    if "device" in found:
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
