"""The first screen of docs/performance.md: one picture and a few sentences, wins and losses, each read off the committed runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import figures
from benchmarks.report_numbers import memory, number, time

_STEP, _ONE = "MEA, training step, MOSI, B 16, ", "MEA, prediction, MOSI, B 1, true lengths"
_LARGE, _SMALL = "GraphFusionConv, 20k nodes, 400k edges, 1 x 64", "GraphFusionConv, 32 graphs of 6 nodes, 1 x 64"
_SHORT = "predictive attention, B 32, T 50"
_LEVEL = 1.15  # less than that is not told from chance by runs like these
Contenders = Mapping[str, Mapping[str, Any]]


def summary(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the lines that begin the page, from the runs by name; a case that no run has is left out.

    Args:
        runs: in the order of the page, so that the first that has a case speaks for it.
    """
    lines = []
    for name, run in runs.items():
        if any(key == "throughput" for key, _ in figures.captions(run)):
            key, caption = next(pair for pair in figures.captions(run) if pair[0] == "throughput")
            lines += [f"![{caption}](figures/{figures.file_name(name, key)})\n", f"{caption}\n"]
            break
    sentences = [_true_lengths(runs), _full_length(runs), _one_sample(runs), _layers(runs)]
    return [*lines, *(f"- {sentence}" for sentence in sentences if sentence), ""]


def _case(runs: Mapping[str, Mapping[str, Any]], begin: str, contender: str = "mea_graph") -> Contenders:
    """The contenders of the first case with this name that has this contender."""
    for run in runs.values():
        for case in run["cases"]:
            if case["case"].startswith(begin) and not case.get("curve") and contender in case["contenders"]:
                return case["contenders"]
    return {}


def _beside(found: Contenders, name: str, called: str = "") -> str:
    """How fast ours is beside a contender, whoever is ahead, with the ratio; nothing where it did not run."""
    if "mea_graph" not in found or name not in found:
        return ""
    times, called = found[name]["median"] / found["mea_graph"]["median"], called or name
    if times >= _LEVEL:
        return f"{number(times)} times as fast as {called}"
    if times <= 1 / _LEVEL:
        return f"{number(1 / times)} times slower than {called}"
    return f"level with {called} ({number(times)} times as fast)"


def _joined(parts: list[str]) -> str:
    parts = [part for part in parts if part]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _true_lengths(runs: Mapping[str, Mapping[str, Any]]) -> str:
    found = _case(runs, f"{_STEP}true lengths", "MulT")
    trimmed = _beside(found, "MulT, trimmed", "a MulT whose user cuts each batch to its longest sequences")
    said = _joined([_beside(found, "MulT"), _beside(found, "LinMulT"), trimmed])
    why = "MEA computes real steps only; the others compute padding too."
    return said and f"**Clips of real lengths.** A training step of MEA is {said}. {why}"


def _full_length(runs: Mapping[str, Mapping[str, Any]]) -> str:
    found = _case(runs, f"{_STEP}full padding", "MulT")
    said = _joined([_beside(found, "MulT"), _beside(found, "LinMulT")])
    peaks = [f"{name} takes {memory(c['peak_bytes'])}" for name, c in found.items() if name != "mea_graph" and "peak_bytes" in c]
    if said and peaks and "peak_bytes" in found["mea_graph"]:
        said += f". It takes {memory(found['mea_graph']['peak_bytes'])} of memory; {' and '.join(peaks)}"
    return said and f"**Sequences that are all at full length.** A training step of MEA is {said}."


_READY = {
    "mea_graph": "as it is",
    "MEA, torch.compile": "by `torch.compile`",
    "MEA, ONNX Runtime": "exported to ONNX Runtime",
    "MulT, trimmed": "by the MulT whose user cuts the padding off",
}


def _one_sample(runs: Mapping[str, Mapping[str, Any]]) -> str:
    found = _case(runs, _ONE, "MulT")
    parts = [_beside(found, "MulT", "MulT on padded input"), _beside(found, "MulT, trimmed", "a MulT whose user cuts the padding off")]
    if not (said := _joined(parts)):
        return ""
    small = _small_nets(found)
    took = {name: time(c["median"]) for name, c in _case(runs, _ONE, "MEA, ONNX Runtime").items()}
    ways = [f"{took[name]} {how}" for name, how in _READY.items() if name in took]
    ready = f" Timed apart from most others: {_joined(ways)}." if ways else ""
    return f"**One sample.** A prediction of MEA takes {time(found['mea_graph']['median'])}. It is {said}.{small}{ready}"


def _small_nets(found: Contenders) -> str:
    """How much faster MISA and Self-MM predict, and why; nothing unless both ran and are faster."""
    times = [found[name]["median"] for name in ("MMSA MISA", "MMSA SELF_MM") if name in found]
    ratios = [found["mea_graph"]["median"] / one for one in times]
    if len(ratios) < 2 or min(ratios) < _LEVEL:
        return ""
    faster = f"MISA is {number(ratios[0])} times and Self-MM {number(ratios[1])} times as fast as MEA"
    return f" {faster}: both are small recurrent nets and compute no attention between steps."


def _layers(runs: Mapping[str, Mapping[str, Any]]) -> str:
    said, large = [], _case(runs, _LARGE, "GATConv")
    if beside := _beside(large, "GATConv"):
        said.append(f"On 20,000 nodes and 400,000 edges `GraphFusionConv` is {beside}")
        if "peak_bytes" in large["mea_graph"] and "peak_bytes" in large["GATConv"]:
            said[0] += f", with {memory(large['mea_graph']['peak_bytes'])} of memory in place of {memory(large['GATConv']['peak_bytes'])}"
        if small := _beside(_case(runs, _SMALL, "GATConv"), "GATConv"):
            said.append(f"On 32 graphs of 6 nodes it is {small}")
    if short := _beside(_case(runs, _SHORT, "eager formula"), "eager formula", "the plain formula in torch"):
        said.append(f"On 32 sequences of 50 steps, predictive attention is {short}")
    return f"**Single layers.** {'. '.join(said)}." if said else ""
