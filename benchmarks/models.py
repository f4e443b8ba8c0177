"""MEA as a whole: its training step and its prediction, beside the baselines' over the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks import baselines
from benchmarks.cases import Case
from benchmarks.measure import Pass, error
from benchmarks.samples import CHANNELS, Kind, Samples, Shape, draw
from mea_graph.check import model
from mea_graph.nn import MEA, MEALoss, export_onnx
from mea_graph.ops import use_backend

Mode = Literal["train", "predict"]
Forward = Callable[[], Tensor]
COMPILERS = {"MEA, torch.compile": {}, "MEA, CUDA graphs": {"mode": "reduce-overhead"}}
BUDGET = 1e-4  # relative error that a compiled step may have against the eager one, result and gradients, in float32


def mea(seed: int = 0) -> MEA:
    """MEA at the paper's settings for MOSI (Table I), which are its defaults, with the embedding width of the samples."""
    torch.manual_seed(seed)
    return MEA.published(CHANNELS, 1)


def training_step(network: nn.Module, loss: Callable[[], Tensor], capturable: bool = False) -> Pass:
    """Zeroes the gradients, computes the loss, goes back, and lets Adam step. The rate is zero: every step does the same work.

    Adam is fused for every model, as `TaskModule` has it on a CPU; `capturable` as a CUDA graph asks for it."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0, fused=True, capturable=capturable)

    def run() -> list[Tensor]:
        if not network.training:  # to say it again walks through all submodules
            network.train()
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return [value.detach()]

    return run


def prediction(network: nn.Module, predict: Callable[[], Tensor]) -> Pass:
    def run() -> list[Tensor]:
        if network.training:
            network.eval()
        with torch.inference_mode():
            return [predict()]

    return run


def passes_of_mea(
    network: MEA, samples: Samples, mode: Mode, wrap: Callable[[Forward], Forward] = lambda f: f, padded: bool = False
) -> Pass:
    """Reads the ragged batch, as `MEAModule` does; `padded`, the batch padded to its own longest. `wrap` may compile."""
    objective, own = MEALoss("regression").to(samples.y), samples.trimmed()
    ragged = lambda: network(samples.x_dict, samples.batch_dict, samples.size)  # noqa: E731
    forward = (lambda: network(own.padded, own.mask)) if padded else ragged
    if mode == "predict":
        return prediction(network, wrap(lambda: forward().prediction.squeeze(1)))
    return training_step(network, wrap(lambda: objective(forward(), samples.y).total))


def compiled(
    network: MEA, samples: Samples, mode: Mode, options: Mapping[str, Mapping[str, str]], padded: bool = False
) -> tuple[dict[str, Pass], dict[str, str]]:
    """The passes by `torch.compile` with each of the options, and why those that fail, or compute something else, are not timed."""

    def seen(run: Pass) -> list[Tensor]:
        out = [t.clone() for t in run()]
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None] if mode == "train" else []
        return [*out, torch.cat(gradients)] if gradients else out

    passes, refused = {}, {}
    for name, chosen in options.items():
        try:
            one = passes_of_mea(network, samples, mode, partial(torch.compile, **chosen), padded)
            away = error(seen(one), seen(passes_of_mea(network, samples, mode)))
        except Exception as raised:  # a compiler that gives up must not hide what the others take
            refused[name] = f"{type(raised).__name__}: {str(raised).splitlines()[0] if str(raised) else ''}"
            continue
        if away <= BUDGET:
            passes[name] = one
        else:
            refused[name] = f"error {away:.1e} against the eager step, above {BUDGET:g}"
    return passes, refused


def in_onnx_runtime(network: MEA, samples: Samples) -> tuple[dict[str, Pass], dict[str, str]]:
    """The prediction of the exported model in ONNX Runtime, as `compiled` gives passes; it reads the batch padded to its own longest."""
    name = "MEA, ONNX Runtime"
    try:
        import onnxruntime

        with TemporaryDirectory() as folder:
            export_onnx(network.eval(), Path(folder) / "mea.onnx")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(Path(folder) / "mea.onnx", options, providers=["CPUExecutionProvider"])
    except ImportError as missing:
        return {}, {name: str(missing)}

    def run() -> list[Tensor]:
        own = samples.trimmed()
        feed = {m: x.numpy() for m, x in own.padded.items()} | {f"{m}_mask": mask.numpy() for m, mask in own.mask.items()}
        return [torch.from_numpy(session.run(["prediction"], feed)[0]).squeeze(1)]

    away = error(run(), passes_of_mea(network, samples, "predict")())
    return ({name: run}, {}) if away <= BUDGET else ({}, {name: f"error {away:.1e} against the eager prediction, above {BUDGET:g}"})


def passes_of_baseline(name: str, samples: Samples, mode: Mode) -> Pass:
    torch.manual_seed(0)
    baseline = baselines.build(name, samples)
    return prediction(baseline.network, baseline.predict) if mode == "predict" else training_step(baseline.network, baseline.loss)


def outputs(network: MEA, samples: Samples) -> list[Tensor]:
    """The prediction, the loss, and the gradients of each part: what is compared with float64."""
    return model.outputs(network, samples.x_dict, samples.batch_dict, samples.y)


def case(
    shape: Shape, name: str, size: int, kind: Kind, mode: Mode, against: Iterable[str] = (), device: str = "cpu", exported: bool = False
) -> Case:
    """MEA, on a GPU also compiled, and the baselines named over one batch; `exported`, also in ONNX Runtime.

    MEA is checked on two samples of the same kind, of at most 250 steps."""
    samples = draw(shape, size, kind, device=device)
    network = mea().to(device)
    contenders = {"mea_graph": passes_of_mea(network, samples, mode)}
    more, refused = compiled(network, samples, mode, COMPILERS if device == "cuda" and against else {})
    if exported:
        more, refused = compiled(network, samples, mode, {"MEA, torch.compile": {}}, padded=True)  # of rows it would be several graphs
        runtime, absent = in_onnx_runtime(network, samples)
        more, refused = more | runtime, refused | absent
    contenders |= more
    for baseline in baselines.available(against):  # those that are not there stand in the results as absent
        contenders[baseline] = passes_of_baseline(baseline, samples, mode)
    # The truth stores every map, which at 2000 steps takes more memory than there is; the ops are checked at all lengths.
    few = draw(shape.at_most(250), min(size, 2), kind, device=device)

    def truth() -> list[Tensor]:
        with use_backend("reference"):
            return outputs(deepcopy(network).double(), wide(few))

    about = {
        "refused": refused,
        "padding_share": round(samples.padding_share, 4),
        "samples": size,
        "steps": {m: sum(n) for m, n in samples.lengths.items()},
        "longest": {m: max(n) for m, n in samples.lengths.items()},
        "mean": {m: round(sum(n) / size, 1) for m, n in samples.lengths.items()},
    }
    title = f"MEA, {'training step' if mode == 'train' else 'prediction'}, {name}, B {size}, {kind}"
    return Case(title, contenders, ["mea_graph"], truth, torch.float32, {"mea_graph": lambda: outputs(network, few)}, about)


def wide(samples: Samples) -> Samples:
    return samples._replace(
        x_dict={m: x.double() for m, x in samples.x_dict.items()},
        padded={m: x.double() for m, x in samples.padded.items()},
        y=samples.y.double(),
    )


@cache
def tiny(mode: Mode, against: tuple[str, ...] = ()) -> Case:
    """One of the same kind on little input: warms a process up, and is what `make bench-smoke` runs."""
    # TFR-Net takes lengths that its 25 heads divide.
    little = Shape({"text": 25, "audio": 25, "vision": 25}, {"text": 9, "audio": 9, "vision": 9})
    return case(little, "tiny", 2, "true lengths", mode, against)
