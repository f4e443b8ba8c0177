"""The plots of docs/performance.md: growth curves, memory, samples a second. Readable without colour: lines differ by marker and dash."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from benchmarks.results import SUITES, called

Run = dict[str, Any]
_STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", (0, (5, 1))), ("x", (0, (1, 1))), ("P", (0, (3, 1, 1, 1)))]
LETTERS = 11  # points, in figures about as wide as a phone shows them
_GREYS = ["black", "0.35", "0.55", "0.25", "0.45", "0.6", "0.3"]
_BARS = "MEA, training step, MOSI, B 16, "


def file_name(name: str, key: str) -> str:
    return f"performance-{name}-{re.sub('[^a-z0-9]+', '-', key.lower()).strip('-')}.svg"


def captions(run: Run) -> list[tuple[str, str]]:
    """What can be drawn of a run: a key and the text below it."""
    found = []
    if _bars(run):
        found.append(("throughput", "Training steps at batch 16, samples a second, on a logarithmic axis; longer is faster."))
        if any("peak_bytes" in c for case in _bars(run) for c in case["contenders"].values()):
            found.append(("memory", "Peak memory of the same training steps, on a logarithmic axis; shorter is better."))
    for curve in _curves(run):
        found.append((curve, f"Growth: {_told(curve)}. {_how_to_read(_points(run, curve)[0]['curve'][1])}"))
        if any("peak_bytes" in c for case in _points(run, curve) for c in case["contenders"].values()):
            found.append((f"{curve}, memory", f"Peak memory: {_told(curve)}."))
    return found


def _told(curve: str) -> str:
    """What a figure shows. Those of windows have a line of the whole sequence beside them."""
    return re.sub(r" over a window of .+", ' over windows, and over whole sequences ("complete")', curve)


def _how_to_read(x: str) -> str:
    return f"Both axes are logarithmic: where {x} double, linear growth doubles the time, and quadratic growth makes it four times as long."


def captions_by_name(newest: dict[str, Any]) -> dict[str, list[list[tuple[str, str]]]]:
    """The captions of every run of every suite, by the name of its file. A curve of a longer run stands for the short one."""
    found = {name: [captions(run) for run in file["runs"]] for name, file in newest.items() if name.startswith(SUITES)}
    longer = {caption for name, runs in found.items() if name.startswith("growth-") for drawn in runs for caption in drawn}
    return {
        name: runs if name.startswith("growth-") else [[caption for caption in drawn if caption not in longer] for drawn in runs]
        for name, runs in found.items()
    }


def draw(newest: dict[str, Any], folder: Path) -> None:
    """Draws every figure of every suite's file; the newest file of a name comes last and wins."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, runs in captions_by_name(newest).items():
        for run, drawn in zip(newest[name]["runs"], runs, strict=True):
            for key, _ in drawn:
                if key in ("throughput", "memory"):
                    _draw_bars(run, key, folder / file_name(name, key))
                else:
                    memory = key.endswith(", memory")
                    _draw_curve(run, key.removesuffix(", memory"), memory, folder / file_name(name, key))


def _bars(run: Run) -> list[dict[str, Any]]:
    """The training steps side by side; where both a long and a short list of baselines ran, the long one."""
    found: dict[str, dict[str, Any]] = {}
    for case in run["cases"]:
        if case["case"].startswith(_BARS) and not case["curve"] and len(case["contenders"]) > 1:
            kept = found.get(case["case"])
            if kept is None or len(case["contenders"]) > len(kept["contenders"]):
                found[case["case"]] = case
    return list(found.values())


def _curves(run: Run) -> list[str]:
    names = [c["curve"][0] for c in run["cases"] if c["curve"]]
    return [n for n in dict.fromkeys(names) if names.count(n) > 2]  # two points are no curve


def _points(run: Run, curve: str) -> list[dict[str, Any]]:
    return sorted((c for c in run["cases"] if c["curve"] and c["curve"][0] == curve), key=lambda c: c["curve"][2])


def _axes(height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "mea-graph"  # the same figures make the same files
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_bars(run: Run, key: str, path: Path) -> None:
    cases = [case for case in _bars(run) if key != "memory" or any("peak_bytes" in c for c in case["contenders"].values())]
    names = list(dict.fromkeys(n for case in cases for n in case["contenders"]))
    figure, axes = _axes(1.4 + 0.28 * len(names) * len(cases))
    fills, step, least = ["0.15", "0.55", "0.85"], 0.8 / len(cases), math.inf
    for number, case in enumerate(cases):
        for place, name in enumerate(names):
            c = case["contenders"].get(name)
            if c is None or (key == "memory" and "peak_bytes" not in c):
                continue
            value = case["samples"] / c["median"] if key == "throughput" else c["peak_bytes"] / 1e6
            where = place + (number - (len(cases) - 1) / 2) * step
            kind = case["case"].rsplit(", ", 1)[-1] if place == 0 or name == names[0] else None
            axes.barh(where, value, 0.9 * step, color=fills[number % 3], edgecolor="black", linewidth=0.6, label=kind)
            axes.text(value * 1.05, where, f"{value:,.0f}" if value >= 100 else f"{value:.2g}", va="center", fontsize=LETTERS)
            least = min(least, value)
    axes.set_yticks(range(len(names)), [called(n, "model") for n in names])
    axes.tick_params(labelsize=LETTERS)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(10 ** math.floor(math.log10(least)), axes.get_xlim()[1] * 2)  # a bar begins at a power of ten
    axes.set_xlabel("samples a second" if key == "throughput" else "MB at the peak", fontsize=LETTERS)
    figure.legend(frameon=False, loc="outside upper center", ncols=3, fontsize=LETTERS, columnspacing=1.2, handlelength=1.4)
    _save(figure, path)


def _ours(curve: str, suite: str) -> str:
    """What a legend calls the library's own line."""
    window = re.search(r" over (a window of .+)", curve)  # benchmarks/windows.py names its curves so
    return window[1] if window else called("mea_graph", suite)


def _draw_curve(run: Run, curve: str, memory: bool, path: Path) -> None:
    points = _points(run, curve)
    figure, axes = _axes(4.8)
    names = list(dict.fromkeys(n for case in points for n in case["contenders"]))
    for number, name in enumerate(names):
        seen = [c for c in points if name in c["contenders"] and (not memory or "peak_bytes" in c["contenders"][name])]
        if not seen:
            continue
        x, one = [c["curve"][2] for c in seen], [c["contenders"][name] for c in seen]
        y = [c["peak_bytes"] / 1e6 if memory else 1e3 * c["median"] for c in one]
        marker, dash = _STYLES[number % len(_STYLES)]
        label = _ours(curve, points[0]["suite"]) if name == "mea_graph" else name
        axes.plot(x, y, marker=marker, linestyle=dash, color=_GREYS[number % len(_GREYS)], label=label, linewidth=2.2, markersize=7)
        if not memory:
            axes.fill_between(x, [1e3 * c["lower"] for c in one], [1e3 * c["upper"] for c in one], color="0.8", linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    every = [c["curve"][2] for c in points]
    axes.set_xticks(every, [f"{n:,}" for n in every])
    axes.minorticks_off()
    axes.grid(True, color="0.9")
    axes.tick_params(labelsize=LETTERS)
    axes.set_xlabel(points[0]["curve"][1], fontsize=LETTERS)
    axes.set_ylabel("MB at the peak" if memory else "ms a pass (band: quartiles)", fontsize=LETTERS)
    figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize=LETTERS)  # never over a line
    _save(figure, path)
