"""What is told while a check runs: a line for each backend and dtype, as soon as it is known, and one for each case that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

Record = dict[str, Any]
SHORT = 90  # characters of a reason
_WIDTH = 13  # of the longest name of a backend


class Lines:
    """Turns the findings about one op, or about the model, into lines."""

    def __init__(self) -> None:
        self._backend, self._dtype = "", ""
        self._cases: list[Record] = []
        self._refused: list[tuple[str, list[Record]]] = []  # by dtype: told in one line if it is all dtypes for one reason

    def of(self, found: Record) -> Iterator[str]:
        """Gives the lines that a finding completes.

        Args:
            found: What a process sent.
        """
        kind = found["kind"]
        if kind == "begun":
            if found["backend"] != self._backend:
                yield from self._all_refused()
            self._backend, self._dtype, self._cases = found["backend"], found["dtype"], []
        elif kind == "case":
            self._cases.append(found)
        elif kind == "ended":
            yield from self._ended()
        elif kind == "left out":
            yield from self._all_refused()
            dtype = f"{found['dtype']:<9} " if "dtype" in found else ""
            yield f"  {found['backend']:<{_WIDTH}} {dtype}left out: {shortened(found['reason'])}"
        elif kind == "died":
            yield from self._all_refused()
            at = f"{self._backend:<{_WIDTH}} {self._dtype:<9} " if self._backend else ""
            yield f"  {at}{found['how'].upper()}: {found['reason']}, after {len(self._cases)} cases"
            self._backend = ""
        elif kind == "auto":
            yield from self._all_refused()
            if found["chosen"]:
                yield f"  'auto' takes {' and '.join(found['chosen'])} here in float32"

    def _ended(self) -> Iterator[str]:
        ran = [case for case in self._cases if case["verdict"] != "refused"]
        if not ran:
            self._refused.append((self._dtype, self._cases))
            return
        yield from self._all_refused()
        yield f"  {self._backend:<{_WIDTH}} {self._dtype:<9} {told(self._cases)}"
        for case in ran:
            if case["verdict"] != "ok":
                yield f"    {case['verdict'].upper()}: {case['case']}: {why(case)}"

    def _all_refused(self) -> Iterator[str]:
        reasons = [_reasons(cases) for _, cases in self._refused]
        if reasons and all(each == reasons[0] for each in reasons) and len(reasons) > 1:
            yield f"  {self._backend:<{_WIDTH}} could not run: {reasons[0]}"
        else:
            for (dtype, _), reason in zip(self._refused, reasons, strict=True):
                yield f"  {self._backend:<{_WIDTH}} {dtype:<9} could not run: {reason}"
        self._refused = []


def told(cases: Sequence[Record]) -> str:
    """Returns what is told of several cases: the verdict, the error that is nearest to its bound, and the bound.

    Args:
        cases: The findings, of one backend and dtype.

    >>> told([{"verdict": "ok", "error": 1e-7, "bound": 1e-4, "same_bits": True}])
    'ok      error 1.0e-07, at most 1.0e-04; 1 case, the same bits twice'
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
        text += ", the same bits twice"
    refused = [case for case in cases if case["verdict"] == "refused"]
    return text + (f"; {len(refused)} could not run: {_reasons(refused)}" if refused else "")


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


def _reasons(cases: Sequence[Record]) -> str:
    found = Counter(case["reason"] for case in cases)
    most, _ = found.most_common(1)[0]
    return shortened(most) + (f" (and {len(found) - 1} more reasons)" if len(found) > 1 else "")


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
    lines.append(f"Python {found['python']}, {found['system']}, {found['processor']}, {found['threads']} threads; {cuda}")
    lines += [f"cuda:{i}: {gpu['name']}, compute capability {gpu['capability']}" for i, gpu in enumerate(found["gpus"])]
    lines.append(f"C++ compiler: {found['compiler'] or 'none'}")
    native = found["native"]
    if native["how"] in ("built", "loaded"):
        kept = native["path"] or "not kept, since there is no folder to write to"
        return [*lines, f"C++ kernels: {native['how']} in {native['took']} s: {kept}"]
    return [*lines, f"C++ kernels: {native['how']}: {native['reason']}"]
