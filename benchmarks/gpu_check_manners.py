"""What else a device asks of kernels: a second stream, a second device, memory that grows with the rows, compute-sanitizer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import cases, measure
from benchmarks.gpu_check_grouped import LINEAR, NORM
from benchmarks.gpu_check_models import bucket
from benchmarks.gpu_check_ops import CHECKS, Build, check
from benchmarks.gpu_check_recurrent import BILSTM
from benchmarks.gpu_check_run import Record, Run
from mea_graph.check.cases import BFLOAT16, FLOAT32

EVERY: dict[str, list[Build]] = {**CHECKS, "grouped_linear": LINEAR, "grouped_layer_norm": NORM, "bilstm": BILSTM}
# By op, one of its checks whose rows are uneven, for another stream and device; and one for a tool that slows all a hundredfold.
UNEVEN = {
    "predictive_attention": 6,
    "interval_attention": 6,
    "edge_attention": 1,
    "grouped_linear": 3,
    "grouped_layer_norm": 1,
    "bilstm": 1,
}
LITTLE = {
    "predictive_attention": 1,
    "interval_attention": 6,
    "edge_attention": 1,
    "grouped_linear": 7,
    "grouped_layer_norm": 2,
    "bilstm": 1,
}
PLACES = ("/usr/local/cuda/bin", "/opt/cuda/bin")


def manners(run: Run) -> None:
    run.each("manners", {f"second stream, {op}": lambda op=op: other_stream(run, op) for op in EVERY})
    run.each("manners", {"prediction captured for a size": lambda: bucket(run)})
    run.each("manners", {"second device": lambda: second_device(run), "memory": lambda: memory(run)})
    run.each("manners", {"compute-sanitizer": lambda: sanitized(run)})


def other_stream(run: Run, op: str) -> Record:
    """The same bits where what a pass reads comes late, on a stream that is busy before: a kernel that forgets the stream reads NaN."""
    if not run.on_cuda:
        return {"skipped": "there are no streams on a CPU"}
    case = EVERY[op][UNEVEN[op]](FLOAT32, run.device)
    ours = case.contenders["mea_graph"]
    here = ours()
    read = [t.detach() for t in case.about["reads"]]
    kept = [t.clone() for t in read]
    for t in read:
        t.fill_(float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        busy = torch.zeros(2 ** (10 if run.small else 26), device=run.device)
        for _ in range(10 if run.small else 200):  # some 25 ms, longer than the host takes for a pass
            busy += 1
        for t, value in zip(read, kept, strict=True):
            t.copy_(value)
        there = ours()
    torch.cuda.synchronize()
    return {"passed": all(torch.equal(a, b) for a, b in zip(here, there, strict=True))}


def second_device(run: Run) -> Record:
    if not run.on_cuda or torch.cuda.device_count() < 2:
        return {"skipped": "there is no second device"}
    found = {op: check(op, EVERY[op][number], FLOAT32, "cuda:1") for op, number in UNEVEN.items()}
    return {"checks": found, "passed": all(one["passed"] for one in found.values())}


def memory(run: Run) -> Record:
    if not run.on_cuda:
        return {"skipped": "peak memory on a CPU is measured by benchmarks.cpu_check"}
    sizes = (10, 20, 40) if run.small else (1000, 2000, 4000)
    built = {n: cases.predictive(4, n, None, BFLOAT16, run.device).contenders["mea_graph"] for n in sizes}
    taken = [measure.peak_cuda_memory(one) for one in built.values()]
    return {"peak_bytes": dict(zip(map(str, sizes), taken, strict=True)), "passed": taken[2] <= 2.2 * taken[1] <= 2.2**2 * taken[0]}


def sanitized(run: Run) -> Record:
    tool = shutil.which("compute-sanitizer") or next(
        filter(None, (shutil.which("compute-sanitizer", path=place) for place in PLACES)), None
    )
    if tool is None or not run.on_cuda:
        return {"skipped": "compute-sanitizer is not there" if run.on_cuda else "it needs CUDA"}
    command = [tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu_check_manners"]
    seconds = max(5.0, run.left() - 1)
    try:
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        return {"skipped": f"it did not end within {seconds:.0f} s; --stages manners gives it more", "output": str(said[-1000:])}
    return {"passed": done.returncode == 0, "output": (done.stdout + done.stderr)[-2000:]}


if __name__ == "__main__":  # what compute-sanitizer looks at
    for name, number in LITTLE.items():
        print(name, check(name, EVERY[name][number], FLOAT32, "cuda")["passed"], flush=True)
