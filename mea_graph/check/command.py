"""`mea-graph check`: reads its words, runs each check in a process of its own, and tells what it finds. Imports no torch itself."""

from __future__ import annotations

import json
import math
import re
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mea_graph.check.lines import Lines, environment_lines, told, why
from mea_graph.check.names import ENVIRONMENT, MODEL, OPS, Task
from mea_graph.check.processes import WORK, Children
from mea_graph.check.verdict import avoids, conclusion, faults, remedies
from mea_graph.command.mistake import mistake
from mea_graph.command.words import MistypedError, Words
from mea_graph.whole_files import replacing

Record = dict[str, Any]
LIMIT = 120.0  # seconds without a result after which a process is ended: a case may compile its kernels
BUILDING = 900.0  # and where the C++ library is built


def main(arguments: Sequence[str], work: str = WORK, limit: float = LIMIT) -> int:
    """Runs `mea-graph check [--device cpu|cuda|cuda:N] [--op NAME ...] [--out FILE]`.

    Returns 0 if everything is right, 1 if something is not, 2 after a mistake.

    Args:
        arguments: The words after `check`.
        work: What the processes run.
        limit: Seconds without a result after which a process is ended.
    """
    try:
        words = _parser().read(arguments)
    except MistypedError as error:
        return mistake(f"check: {error}")
    if words.out is not None and (words.out.is_dir() or not words.out.absolute().parent.is_dir()):
        return mistake(f"check: --out: expected a file in an existing folder, got {words.out}")
    with Children(work) as children:
        return _check(words, children, limit)


def _check(words: Namespace, children: Children, limit: float) -> int:
    begin = time.monotonic()
    names = [name for name in (*OPS, MODEL) if not words.op or name in words.op]
    tell("what is installed (where the C++ kernels are not built yet, this builds them, which takes up to a minute)")
    findings = list(children.findings(Task(ENVIRONMENT, words.device or "cpu"), BUILDING))
    environment = next((found for found in findings if found["kind"] == ENVIRONMENT), None)
    if environment is None:
        died = findings[-1]
        tell(f"  {died['how'].upper()}: {died['reason']}\n{died['printed']}")
        tell("torch or mea-graph does not work on this machine: see above.")
        return 1
    for line in environment_lines(environment):
        tell(f"  {line}")
    gpus = [f"cuda:{i}" for i in range(len(environment["gpus"]))]
    if words.device not in (None, "cpu", *gpus, *(["cuda"] if gpus else [])):
        there = ", ".join(["cpu", *gpus])
        return mistake(f"check: --device: torch sees only {there}, got {words.device}")
    devices = [words.device] if words.device else ["cpu", *(["cuda"] if gpus else [])]
    checks: list[Record] = []
    tasks = [Task(name, device) for device in devices for name in names]
    for i, task in enumerate(tasks):
        checks += _one(task, children, limit, is_last=i == len(tasks) - 1)
    advice = {device: _advice(device, checks, children, limit) for device in devices if faults(checks, device)}
    tell("")
    last = conclusion(checks, devices, advice)
    if environment["native"]["how"] == "absent":
        last.append(f"On a CPU torch alone computes, since the C++ kernels are absent: {environment['native']['reason']}.")
    for line in last:
        tell(line)
    ran = sum(check["verdict"] != "refused" for check in checks)
    tell(f"({ran} cases ran, in {time.monotonic() - begin:.0f} s)")
    whole = {"format": 1, "environment": environment, "checks": checks, "advice": advice, "conclusion": last, "right": not advice}
    if words.out is not None:
        try:
            with replacing(words.out) as file:
                file.write((json.dumps(_defined(whole), indent=1, allow_nan=False) + "\n").encode())
        except OSError as error:
            return mistake(f"check: --out: {words.out} could not be written: {error}")
        tell(f"written: {words.out}")
    return int(bool(advice))


def _one(task: Task, children: Children, limit: float, is_last: bool) -> list[Record]:
    """What is found about an op, or the model. Where a backend ends its process, another process goes on without it."""
    tell(f"\n{'the whole model' if task.name == MODEL else task.name} on {task.device}")
    checks: list[Record] = []
    about = {"device": task.device, "op": task.name}
    while True:
        lines, at, died, seen = Lines(), {"backend": "", "dtype": ""}, None, dict.fromkeys(task.skipped)
        for found in children.findings(task, limit, is_last):
            for line in lines.of(found):
                tell(line)
            seen |= {found["backend"]: None} if "backend" in found else {}
            if found["kind"] == "begun":
                at = {"backend": found["backend"], "dtype": found["dtype"]}
            elif found["kind"] == "case":
                checks.append({**about, **_without_kind(found)})
                if task.name == MODEL:
                    tell(f"  {found['case']}: {told([found])}")
            elif found["kind"] == "left out":
                checks.append({**about, **_without_kind(found), "verdict": "refused"})
            elif found["kind"] == "died":
                died = found
        if died is None:
            return checks
        checks.append({**about, **at, "verdict": died["how"], "reason": died["reason"], "printed": died["printed"]})
        if not at["backend"] or task.name == MODEL:
            return checks
        task = task._replace(skipped=tuple(seen))


def _without_kind(found: Record) -> Record:
    return {name: value for name, value in found.items() if name != "kind"}


def _advice(device: str, checks: Sequence[Record], children: Children, limit: float) -> str | None:
    """What avoids the faults of a device: tried on the whole model."""
    for remedy in remedies(checks, device):
        if remedy.task is None:
            return remedy.text
        tell(f"\ntrying on {device}: {remedy.text}")
        found = list(children.findings(remedy.task, limit, is_last=True))
        works = avoids(found, checks, device)
        wrong = [f"{one['case']}: {why(one)}" for one in found if one["kind"] == "case" and one["verdict"] != "ok"]
        wrong += [f"{one['how']}: {one['reason']}" for one in found if one["kind"] == "died"]
        tell(
            "  the whole model is right with it" if works else f"  not enough: {'; '.join(wrong) or 'the model still calls what is wrong'}"
        )
        if works:
            return remedy.text
    return None


def _parser() -> Words:
    parser = Words(prog="mea-graph check", description="Compares every kernel with float64 on this machine; builds the C++ kernels first.")
    told = "cpu, cuda or cuda:N (default: the CPU, and the first GPU where there is one)"
    parser.add_argument("--device", type=_device, metavar="DEVICE", help=told)
    names = [*OPS, MODEL]
    parser.add_argument("--op", nargs="+", choices=names, metavar="NAME", help=f"only these (default: all): {', '.join(names)}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every case")
    return parser


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return text


def _defined(value: Any) -> Any:
    """With null for every number that is not finite, as strict JSON wants it."""
    if isinstance(value, dict):
        return {name: _defined(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tell(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)
