"""The figures that were asked for, and how to read them off the cases of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Aim(NamedTuple):
    """A figure to reach, and how to read it off the cases of a run; None where the run lacks the case."""

    what: str
    aim: str
    found: Callable[[dict[str, Any]], float | None]
    reached: Callable[[float], bool]


def _quotient(case: str, field: str, over: str, under: str) -> Callable[[dict[str, Any]], float | None]:
    def read(run: dict[str, Any]) -> float | None:
        for c in run["cases"]:
            if c["case"].startswith(case) and over in c["contenders"] and under in c["contenders"]:
                a, b = c["contenders"][over].get(field), c["contenders"][under].get(field)
                return a / b if a and b else None
        return None

    return read


def _times(what: str, case: str, rival: str, least: float) -> Aim:
    return Aim(
        f"{what}: times faster than {rival}", f"at least {least:g}", _quotient(case, "median", rival, "mea_graph"), lambda x: x >= least
    )


def _memory(what: str, case: str, rival: str, most: float) -> Aim:
    return Aim(
        f"{what}: share of the memory of {rival}",
        f"at most {most:.3g}",
        _quotient(case, "peak_bytes", "mea_graph", rival),
        lambda x: x <= most,
    )


_FULL, _TRUE = "predictive attention, B 8, K 8, T 500, d 40", "predictive attention, B 32, K 8, T 500, d 40, true lengths"
_SMALL, _LARGE = "graph layer, 32 graphs of 6 nodes", "graph layer, 20k nodes, 400k edges"
CPU_AIMS = [
    _times("predictive attention, B 8, T 500", _FULL, "eager formula", 4),
    _memory("predictive attention, B 8, T 500", _FULL, "eager formula", 0.1),
    _times("predictive attention, true lengths", _TRUE, "eager formula", 10),
    Aim(
        "predictive attention: time at T 2000 over that at T 1000",
        "at most 4.4",
        _quotient("predictive attention, B 1, growth", "median", "T 2000", "T 1000"),
        lambda x: x <= 4.4,
    ),
    *(_times(f"{case}, {heads} head(s)", f"{case}, {heads} x", "GATConv", 2) for case in (_SMALL, _LARGE) for heads in (1, 4)),
    *(_memory(f"{case}, {heads} head(s)", f"{case}, {heads} x", "GATConv", 0.5) for case in (_SMALL, _LARGE) for heads in (1, 4)),
]
_GPU = "predictive attention, B 32, K 8, T 500, d 40"
GPU_AIMS = [
    _times("predictive attention, B 32, T 500", _GPU, "eager formula", 6),
    _times("predictive attention, B 32, T 500", _GPU, "torch.compile of the formula", 2),
    _times("graph layer, 20k nodes, 400k edges", _LARGE, "GATConv", 5),
]


def _step(kind: str) -> str:
    return f"MEA, training step, MOSI, B 16, {kind}"


def _one_sample(contender: str) -> Callable[[dict[str, Any]], float | None]:
    def read(run: dict[str, Any]) -> float | None:
        for c in run["cases"]:
            if c["case"].startswith("MEA, prediction, MOSI, B 1,") and contender in c["contenders"]:
                return 1e3 * c["contenders"][contender]["median"]
        return None

    return read


SUITE_AIMS = [
    _times("training step, full padding", _step("full padding"), "MulT", 2),
    _memory("training step, full padding", _step("full padding"), "MulT", 1 / 3),
    _times("training step, true lengths", _step("true lengths"), "MulT", 20),
    _times("training step, true lengths", _step("true lengths"), "LinMulT", 5),
    _times("training step, one long clip", _step("one long clip"), "MulT", 20),
    _times("training step, one long clip", _step("one long clip"), "LinMulT", 5),
    Aim("prediction for one sample of true lengths, ms", "under 15", _one_sample("mea_graph"), lambda x: x < 15),
    Aim("the same, exported to ONNX Runtime, ms", "under 15", _one_sample("MEA, ONNX Runtime"), lambda x: x < 15),
]
