"""What the figures of `gpu_check` are of: the machine, what `auto` takes on it, and what it reaches."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import torch

import mea_graph
from benchmarks import cases, measure
from benchmarks.gpu_check_run import Record, Run
from mea_graph.ops import IntervalEdges, explain

_ASKED = "driver_version,clocks.sm,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,mig.mode.current"


def device(run: Run) -> None:
    """The first job: without it no figure has a name."""
    run.each("environment", {"environment": lambda: {"found": measure.environment()}})
    run.each("environment", {"sources": lambda: {"found": {"sources": sources(), "revision": revision()}}})
    if run.on_cuda:
        run.each("environment", {"GPU": lambda: {"found": {"gpu": gpu()}}})
    run.each("chosen", {"chosen": lambda: {"found": chosen(run.device)}})
    if run.on_cuda:
        run.each("ceilings", {"ceilings": lambda: {"found": ceilings()}})


def gpu() -> Record:
    """What torch and the driver say of the device, before it has worked."""
    told = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    found: Record = {"multiprocessors": told.multi_processor_count, "bytes": total, "bytes_free": free}
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        done = subprocess.run(
            [tool, f"--query-gpu={_ASKED}", "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=False
        )
        found[_ASKED] = (done.stdout or done.stderr).strip()
    return found


def sources() -> str:
    """A short name of the kernels that ran: a copy of the working tree need not have the history of its changes with it."""
    found = hashlib.sha256()
    folder = Path(mea_graph.__file__).parent
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".cu", ".cpp", ".h")):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


def revision() -> str:
    """The commit, and whether files differ from it; empty where there is no history."""
    git, here = shutil.which("git"), Path(__file__).parent
    if git is None:
        return ""
    ask = lambda *words: subprocess.run([git, *words], cwd=here, capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: E731
    commit = ask("rev-parse", "--short", "HEAD").strip()
    return commit + " with changes" * bool(commit and ask("status", "--porcelain", "--untracked-files=no").strip())


def ceilings() -> dict[str, float]:
    """What this device reaches: bytes a second through a large copy, operations a second through a large bfloat16 product."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    copy = measure.interleave({"copy": lambda: [target.copy_(source)]}, 1.0)["copy"].median
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = measure.interleave({"product": lambda: [a @ b]}, 1.0)["product"].median
    return {"copy_bytes_per_second": 2 * source.nbytes / copy, "bfloat16_flops_per_second": 2 * 8192**3 / product}


def chosen(device: str) -> dict[str, str]:
    """What `auto` runs here, and why nothing else does."""
    q, pointers = torch.randn(128, 8, 5, device=device), cases.pointers_of([64, 64], device)
    weight, bias = torch.randn(8, 8, 3, 3, device=device), torch.randn(8, device=device)
    x, score = torch.randn(4, 2, 8, device=device), torch.randn(4, 2, device=device)
    weights = [torch.randn(*n, device=device) for n in ((20, 5), (20, 5), (20,), (20,)) * 2]
    return {
        "bilstm": str(explain("bilstm", [torch.randn(128, 5, device=device)], [weights], [pointers])),
        "predictive_attention": str(explain("predictive_attention", q, q, q, pointers, q, q, weight, bias)),
        "edge_attention": str(explain("edge_attention", x, score, score, torch.tensor([[0, 1], [1, 2]], device=device))),
        "interval_attention": str(explain("interval_attention", q, q, q, IntervalEdges.complete(pointers, pointers))),
    }
