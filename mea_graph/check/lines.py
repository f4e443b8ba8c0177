"""What is told while a check runs: a line for each backend and dtype, as soon as it is known, and one for each case that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

Record = dict[str, Any]
DTYPES = 4  # that each backend is checked in
SHORT = 90  # characters of a reason
_WIDTH = 13  # of the longest name of a backend


class Lines:
    """Turns the findings about one op into lines."""

    def __init__(self) -> None:
        self._backend, self._dtype = "", ""
        self._cases: list[Record] = []  # of this backend and dtype
        self._left: list[tuple[str, str]] = []  # dtypes without any result, and why: told in one line if it is all for one reason
        self._reasons: Counter[str] = Counter()  # of single cases that could not run

    def of(self, found: Record) -> Iterator[str]:
        """Gives the lines that a finding completes.

        Args:
            found: What a process sent.
        """
        kind = found["kind"]
        if found.get("backend", "") != self._backend and kind in ("begun", "left out", "auto"):
            yield from self._rest()
        if kind == "begun":
            self._backend, self._dtype, self._cases = found["backend"], found["dtype"], []
        elif kind == "case":
            self._cases.append(found)
        elif kind == "ended":
            yield from self._ended()
        elif kind == "left out":
            self._backend = found["backend"]
            self._left.append((found.get("dtype", ""), f"left out: {found['reason']}"))
        elif kind == "died":
            yield from self._rest()
            at = f"{self._backend:<{_WIDTH}} {self._dtype:<9} " if self._backend else ""
            yield f"  {at}{found['how'].upper()}: {found['reason']}, after {len(self._cases)} cases"
        elif kind == "auto" and found["chosen"]:
            yield f"  'auto' takes {', '.join(found['chosen'])} here in float32"

    def _ended(self) -> Iterator[str]:
        ran = [case for case in self._cases if case["verdict"] != "refused"]
        refused = Counter(case["reason"] for case in self._cases if case["verdict"] == "refused")
        if not ran:
            self._left.append((self._dtype, f"could not run: {refused.most_common(1)[0][0]}"))
            return
        self._reasons |= refused
        yield f"  {self._backend:<{_WIDTH}} {self._dtype:<9} {told(self._cases)}"
        for case in ran:
            if case["verdict"] != "ok":
                yield f"    {case['verdict'].upper()}: {case['case']}: {why(case)}"

    def _rest(self) -> Iterator[str]:
        """What is told of a backend when all else is."""
        reasons = {reason for _, reason in self._left}
        dtypes = ", ".join(dtype for dtype, _ in self._left)
        if len(reasons) == 1:
            whole = "" if len(self._left) == DTYPES or not dtypes else f"{dtypes} "
            yield f"  {self._backend:<{_WIDTH}} {whole}{shortened(reasons.pop())}"
        else:
            for dtype, reason in self._left:
                yield f"  {self._backend:<{_WIDTH}} {dtype:<9} {shortened(reason)}"
        for reason, count in self._reasons.items():
            yield f"  {self._backend:<{_WIDTH}} {count} case{'s' * (count != 1)} could not run: {shortened(reason)}"
        self._left, self._reasons = [], Counter()


def told(cases: Sequence[Record]) -> str:
    """Returns what is told of several cases: the verdict, the error that is nearest to its bound, and the bound.

    Args:
        cases: The findings, of one backend and dtype.

    >>> told([{"verdict": "ok", "error": 1e-7, "bound": 1e-4, "same_bits": True}])
    'ok      error 1.0e-07, at most 1.0e-04; 1 case, same bits twice'
    """
    ran = [case for case in cases if case["verdict"] != "refused"]
    bad = Counter(case["verdict"] for case in ran if case["verdict"] != "ok")
    verdict = next((name.upper() for name in ("failed", "wrong") if name in bad), "ok")
    measured = [case for case in ran if "error" in case]
    text = f"{verdict:<7} "
    if measured:
        worst = max(measured, key=lambda case: case["error"] / case["bound"])
        text += f"error {worst['error']:.1e}, at most {worst['bound']:.1e}; "
    text += f"{len(ran)} case" + "s" * (len(ran) != 1)
    if bad:
        text += f", of which {sum(bad.values())} not right"
    elif measured and all(case.get("same_bits") for case in measured):
        text += ", same bits twice"
    return text


def why(case: Record) -> str:
    """Returns what is wrong with a case.

    Args:
        case: The finding.

    >>> why({"verdict": "wrong", "error": 0.01, "bound": 1e-4})
    'error 1.0e-02, at most 1.0e-04'
    """
    if "error" not in case:
        return shortened(case["reason"], 200)
    return f"error {case['error']:.1e}, at most {case['bound']:.1e}" + (f"; {case['reason']}" if "reason" in case else "")


def shortened(text: str, most: int = SHORT) -> str:
    """Returns the text, or its beginning.

    >>> shortened("the tensors are on cpu", 11)
    'the tens...'
    """
    return text if len(text) <= most else text[: most - 3] + "..."


def environment_lines(found: Record) -> list[str]:
    """Returns what is told of the machine.

    Args:
        found: The environment.
    """
    names = ("mea_graph", "torch", "torch-geometric", "numpy", "triton", "torch-scatter")
    lines = [", ".join(f"{name} {found[name]}" if found[name] else f"no {name}" for name in names)]
    if found["torch-scatter"] and not found["torch_scatter_loads"]:
        lines.append("torch-scatter is installed but cannot be loaded")
    cuda = f"torch is built for CUDA {found['cuda']}" if found["cuda"] else "torch is built without CUDA"
    lines.append(f"Python {found['python']}, {found['system']}, {found['processor']}, {found['cores']} cores; {cuda}")
    lines += [f"cuda:{i}: {gpu['name']}, compute capability {gpu['capability']}" for i, gpu in enumerate(found["gpus"])]
    lines.append(f"C++ compiler: {found['compiler'] or 'none'}")
    native = found["native"]
    if native["how"] in ("built", "loaded"):
        kept = native["path"] or "not kept, since there is no folder to write to"
        return [*lines, f"C++ kernels: {native['how']} in {native['took']} s: {kept}"]
    return [*lines, f"C++ kernels: {native['how']}: {native['reason']}"]
