"""What is wrong here, and what avoids it: in sentences, and as what a program can read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mea_graph.check.names import MODEL, OPS, Task

Record = dict[str, Any]
GOOD = ("ok", "refused")
UNINSTALL = "uninstall torch-scatter: the segment reductions then use torch"


class Remedy(NamedTuple):
    """What may avoid what is wrong on a device.

    Args:
        text: What to do.
        task: What shows that it works: the model, with it; None where a check has already shown it.
    """

    text: str
    task: Task | None


def faults(checks: Sequence[Record], device: str) -> dict[str, dict[str, str]]:
    """Returns what is wrong on a device, by op and backend.

    Args:
        checks: All findings.
        device: The device.

    >>> one = {"device": "cpu", "op": "bigru", "backend": "native", "verdict": "wrong"}
    >>> faults([one], "cpu")
    {'bigru': {'native': 'wrong'}}
    """
    found: dict[str, dict[str, str]] = {}
    for check in checks:
        if check["device"] == device and check["verdict"] not in GOOD:
            of = found.setdefault(check["op"], {})
            of[check["backend"]] = max(of.get(check["backend"], ""), check["verdict"], key=_severity)
    return found


def _severity(verdict: str) -> int:
    return ("", "wrong", "failed", "hung", "crashed").index(verdict)


def right(checks: Sequence[Record], device: str, op: str) -> list[str]:
    """Returns the backends of an op that have run and are right in all cases that they take.

    Args:
        checks: All findings.
        device: The device.
        op: The op.
    """
    verdicts: dict[str, set[str]] = {}
    for check in checks:
        if (check["device"], check["op"]) == (device, op):
            verdicts.setdefault(check["backend"], set()).add(check["verdict"])
    return [name for name, found in verdicts.items() if found <= set(GOOD) and "ok" in found]


def remedies(checks: Sequence[Record], device: str) -> Iterator[Remedy]:
    """Gives what may avoid the faults of a device, what costs least first.

    Args:
        checks: All findings.
        device: The device.
    """
    found = faults(checks, device)
    wrong = {op: set(of) for op, of in found.items() if op in OPS}
    if not found:
        return
    more = ""
    if "segment_reductions" in wrong:
        if wrong.pop("segment_reductions") != {"torch_scatter"}:
            return
        more = UNINSTALL
        if not wrong:
            yield Remedy(more, None)
            return
        more = "; and " + more
    if wrong and all(of == {"native"} for of in wrong.values()):
        yield Remedy(f"set MEA_GRAPH_NATIVE=0 in the environment{more}", Task(MODEL, device, variables={"MEA_GRAPH_NATIVE": "0"}))
    bad = {name for of in wrong.values() for name in of}
    shared = [name for op in wrong for name in right(checks, device, op)]
    names = [name for name in dict.fromkeys(shared) if name not in bad and all(name in right(checks, device, op) for op in wrong)]
    for name in [*(n for n in names if n not in ("plain", "listed", "reference")), "reference"]:
        if name not in bad:
            yield Remedy(f'compute inside `with mea_graph.ops.use_backend("{name}"):`{more}', Task(MODEL, device, backend=name))


def avoids(found: Sequence[Record], checks: Sequence[Record], device: str) -> bool:
    """Returns whether the model was right with a remedy, and called nothing that is wrong.

    Args:
        found: What the task of a remedy found.
        checks: All findings before.
        device: The device.
    """
    wrong = {(op, backend) for op, of in faults(checks, device).items() for backend in of}
    cases = [one for one in found if one["kind"] == "case"]
    called = {tuple(call) for case in cases for call in case["calls"]}
    ended = bool(found) and all(one["kind"] != "died" for one in found)
    return ended and bool(cases) and all(case["verdict"] == "ok" for case in cases) and not called & wrong


def conclusion(checks: Sequence[Record], devices: Sequence[str], advice: dict[str, str | None]) -> list[str]:
    """Returns the last lines: that everything is right, or what is wrong and what to do.

    Args:
        checks: All findings.
        devices: Where was checked.
        advice: By device what avoids its faults; None where nothing does.
    """
    lines = []
    for device in devices:
        of_ops = faults(checks, device)
        for op, backends in of_ops.items():
            if op == MODEL and len(of_ops) > 1:
                continue  # it calls them
            for backend, verdict in backends.items():
                by = f", backend {backend}" if backend else ""  # none where the process ended before it came to one
                lines.append(f"{verdict.upper()} here: {'the whole model' if op == MODEL else op}{by}, on {device}.")
        if of_ops:
            known = advice.get(device)
            what = f"{known}. The whole model is right here with it." if known else "nothing that was tried avoids it."
            lines.append(f"On {device}: {what}")
    if lines:
        return [*lines, "Please report it to the developers of mea-graph, with the file of `mea-graph check --out check.json`."]
    ops = {check["op"] for check in checks} - {MODEL}
    names = [f"{len(ops)} op{'s' * (len(ops) != 1)}"] if ops else []
    names += ["the whole model"] if any(check["op"] == MODEL for check in checks) else []
    return [f"Everything that can run here is right: {' and '.join(names)}, on {' and '.join(devices)}."]
