"""Every case of the suites by key, with a small one of the same kind; `quick` marks those of `make bench`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks import layers, loading, models, op_cases, windows
from benchmarks.cases import Case, mosi_lengths
from benchmarks.samples import SHAPES, Kind, Shape

Build = Callable[[], Case]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Entry(NamedTuple):
    build: Build
    small: Build  # the same on little input: warms a process up before its memory is read, and is what `make bench-smoke` runs
    quick: bool = False
    memory: bool = False  # whether the peak of each contender is read
    curve: tuple[str, str, int] | None = None  # a point of a growth curve: the curve, what is on its x axis, x


MOSI = SHAPES["MOSI"]
LITTLE = Shape({"text": 3, "audio": 6, "vision": 7}, {"text": 3, "audio": 4, "vision": 4})
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
TRUE16 = mosi_lengths(16, 500, 60)  # vision
TRUE32 = [mosi_lengths(32, 50, 12), mosi_lengths(32, 375, 50), mosi_lengths(32, 500, 60)]  # text, audio, vision
MODELS = (
    "MulT",
    "MulT, trimmed",
    "MMSA MULT",
    "MMSA TFR_NET",
    "MMSA MISA",
    "MMSA SELF_MM",
    "LinMulT",
    "Transformer over the concatenation",
)
LEADERS = ("MulT", "LinMulT")


def _ops() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    predictive, crossing, edges = (partial(f, device=DEVICE) for f in (op_cases.predictive, op_cases.crossing, op_cases.edges))
    for dtype in (FLOAT32, BFLOAT16):
        for backward in (False, True):
            kind = {"dtype": dtype, "backward": backward}
            end = f"{str(dtype).removeprefix('torch.')}{', backward' * backward}"
            main = dtype == FLOAT32 and backward
            small = partial(predictive, [7, 3], 7, **kind)
            for name, lengths, longest, title in (
                ("full", [500] * 8, 500, ""),
                ("short", [50] * 32, 50, ""),
                ("true lengths", TRUE16, 500, ", true lengths (mean 60)"),
                ("long", [2000], 2000, ""),
            ):
                compiled = {"compiled": main and name == "full"}  # once: a minute of compiling for each shape
                build, little = (partial(f, **compiled) for f in (partial(predictive, lengths, longest, title=title, **kind), small))
                found[f"predictive attention, {name}, {end}"] = Entry(build, little, main and name != "long", main)
            small = partial(crossing, [[7, 2], [3, 1], [5, 4]], [7, 3, 5], **kind)
            true = [TRUE32[2], TRUE32[0], TRUE32[1]]
            for name, lengths, title in (
                ("full", [[500] * 8, [50] * 8, [375] * 8], ""),
                ("true lengths", true, ", true lengths (mean 60/12/50)"),
            ):
                build = partial(crossing, lengths, [500, 50, 375], title=title, **kind)
                found[f"cross-modal attention, {name}, {end}"] = Entry(build, small, main, main)
            small = partial(edges, "32 graphs of 6 nodes", 1, channels=2, **kind)
            for name in ("32 graphs of 6 nodes", "20k nodes, 400k edges"):
                for heads in (1, 4):
                    found[f"edge attention, {name}, {heads} heads, {end}"] = Entry(
                        partial(edges, name, heads, **kind), small, main and name.startswith("20k"), main
                    )
    for n in (125, 250, 500, 1000, 2000, 4000):  # the eager formula stores maps: 4000 steps would take it ten gigabytes
        build = partial(predictive, [n], n, eager=n <= 2000)
        found[f"growth of predictive attention, T {n}"] = Entry(
            build, partial(predictive, [7], 7), n <= 1000, n <= 2000, ("predictive attention, B 1", "steps T", n)
        )
    for n in (1, 16, 32, 128):
        lengths = mosi_lengths(n, 500, 60) if n > 1 else [60]
        build = partial(predictive, lengths, max(lengths), title=", true lengths", eager=n <= 32)
        found[f"growth of predictive attention, B {n}"] = Entry(
            build, partial(predictive, [7], 7), False, False, ("predictive attention, true lengths", "samples B", n)
        )
    return found


def _layers() -> dict[str, Entry]:
    found = {}
    kinds: tuple[tuple[Kind, int], ...] = (("full padding", 4), ("true lengths", 16))
    for name in layers.LAYERS:
        for kind, size in kinds:
            build = partial(layers.layer, name, MOSI, "MOSI", size, kind)
            small = partial(layers.layer, name, LITTLE, "little", 2, kind)
            found[f"{name}, {kind}"] = Entry(build, small, kind == "true lengths")
    for size in (32, 1024):
        found[f"DecoupledGraphFusion, {size} samples"] = Entry(partial(layers.fusion, size), partial(layers.fusion, 2), True, size == 1024)
    for graph in ("32 graphs of 6 nodes", "20k nodes, 400k edges"):
        for heads in (1, 4):
            found[f"GraphFusionConv, {graph}, {heads} heads"] = Entry(
                partial(layers.conv, graph, heads), partial(layers.conv, "32 graphs of 6 nodes", heads, 2), True, graph.startswith("20k")
            )
    return found


def _models() -> dict[str, Entry]:
    found: dict[str, Entry] = {}

    def add(key: str, shape: str, size: int, kind: Kind, mode: models.Mode, against: tuple[str, ...], **options: object) -> None:
        build = partial(models.case, SHAPES[shape], shape, size, kind, mode, against, DEVICE)
        found[key] = Entry(build, partial(models.tiny, mode, against), **options)  # type: ignore[arg-type]

    kinds: tuple[Kind, ...] = ("full padding", "true lengths", "one long clip")
    for kind in kinds:
        if kind != "one long clip":
            add(f"training step, MOSI, {kind}", "MOSI", 16, kind, "train", MODELS, memory=True)
            add(f"prediction, MOSI, {kind}", "MOSI", 16, kind, "predict", MODELS)
        leaders = (*LEADERS, "MulT, trimmed") if kind == "true lengths" else LEADERS  # elsewhere nothing can be cut off
        add(f"training step, MOSI, {kind}, leaders", "MOSI", 16, kind, "train", leaders, quick=True, memory=kind == "full padding")
    add("training step, MOSI, true lengths, alone", "MOSI", 16, "true lengths", "train", ())
    add("prediction, MOSI, one sample", "MOSI", 1, "true lengths", "predict", MODELS, quick=True)
    if DEVICE == "cpu":  # not quick: to compile and to export takes two minutes
        build = partial(models.case, MOSI, "MOSI", 1, "true lengths", "predict", ("MulT, trimmed",), exported=True)
        found["prediction, MOSI, one sample, exported"] = Entry(build, partial(models.tiny, "predict"))
    add("training step, MOSEI, full padding", "MOSEI", 16, "full padding", "train", LEADERS)
    add("training step, long, full padding", "long", 1, "full padding", "train", ("LinMulT",), memory=True)
    for size in (1, 16, 32, 128):
        against = ("MulT, trimmed", "MMSA MISA", "MMSA SELF_MM", *(("LinMulT",) if size <= 32 else ()))
        curve = ("training step, MOSI, true lengths", "samples B", size)
        add(f"growth of the training step, B {size}", "MOSI", size, "true lengths", "train", against, curve=curve)
    for n in (125, 250, 500, 1000, 2000, 4000):
        shape = Shape({"text": n, "audio": n, "vision": n})
        against = ("MulT", "LinMulT", "Transformer over the concatenation") if n <= 1000 else ("LinMulT",) if n <= 2000 else ()
        build = partial(models.case, shape, f"T {n} in each modality", 1, "full padding", "train", against, DEVICE)
        curve = ("training step, one sample", "steps T in each modality", n)
        found[f"growth of the training step, T {n}"] = Entry(build, partial(models.tiny, "train", against), False, True, curve)
    return found


def _data() -> dict[str, Entry]:
    found = {}
    for size in (16, 32, 128):
        build = partial(loading.batching, MOSI, "MOSI", 1284, size)
        found[f"batching, batches of {size}"] = Entry(build, partial(loading.batching, LITTLE, "little", 8, 2), size == 32)
    found["opening"] = Entry(partial(loading.opening, MOSI, "MOSI", 256), partial(loading.opening, LITTLE, "little", 8), True)
    return found


def _windows(name: str) -> dict[str, Entry]:
    """What grows with the steps over windows; the complete form beside it takes half a minute at 10,000 steps."""
    found = {}
    for n in (1000, 2000, 4000, 10_000, 30_000, 100_000):
        build, small = (partial(windows.case, name, steps, n <= 10_000, DEVICE) for steps in (n, 200))
        found[f"growth of {name} over a window, T {n}"] = Entry(
            build, small, n <= 4000, True, (f"{name} over a window of {windows.STEPS} steps", "steps T", n)
        )
    return found


SUITES: dict[str, dict[str, Entry]] = {
    "ops": _ops() | _windows("interval attention"),
    "layers": _layers() | _windows("PredictiveSelfAttention, two in a chain") | _windows("ModalityReinforcementUnit"),
    "model": _models(),
    "data": _data(),
}
