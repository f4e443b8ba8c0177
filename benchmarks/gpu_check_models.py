"""Layers and the whole model on a device: eager and captured, beside its baselines; autocast."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks import baselines, cases, layers, measure, models
from benchmarks.gpu_check_clock import backends, captured, clocks, first_line, kernels, launches, waits
from benchmarks.gpu_check_run import Record, Run, spoil
from benchmarks.samples import CHANNELS, SHAPES, Kind, Samples, Shape, draw
from mea_graph.check.cases import BFLOAT16, BUDGET, FLOAT32, MODEL_BUDGET, exact
from mea_graph.nn import MEA, MEALoss
from mea_graph.ops import use_backend

LITTLE = Shape({"text": 6, "audio": 9, "vision": 8}, {"text": 3, "audio": 5, "vision": 5})
AGAINST = ("MulT", "MulT, trimmed", "LinMulT", "Transformer over the concatenation")
RECOMMENDED = "MEA, recommended form"


def model_shape(run: Run) -> Shape:
    return LITTLE if run.small else SHAPES["MOSI"]


def layers_of_mea(run: Run) -> None:
    """Each layer against float64, its times, how many kernels it launches, and whether it can be captured (a layer that waits cannot)."""
    size = 3 if run.small else 32
    builds: dict[str, Callable[[], cases.Case]] = {
        name: partial(layers.layer, name, model_shape(run), "MOSI", size, "true lengths", run.device)
        for name in (list(layers.LAYERS)[:3] if run.small else layers.LAYERS)
    }
    if not run.small:
        builds["the fusion graph beside PyG's layers"] = partial(layers.fusion, size, run.device)

    def find(build: Callable[[], cases.Case]) -> Record:
        case = build()
        with exact():
            errors = case.errors()
        found = {"case": case.name, "dtype": "float32", "errors": errors, "passed": errors["mea_graph"] <= BUDGET[FLOAT32]}
        if not found["passed"]:
            return {**found, "contenders": {}, "not_timed": f"error {errors['mea_graph']:.1e}"}
        ran, errors = backends(case.contenders["mea_graph"]), case.errors()  # as it is timed: with TF32 in cuDNN, if torch allows it
        timed = clocks(case.contenders, run.clock / 2, run.device)
        started = launches(case.contenders["mea_graph"], run.device)
        for contender, of in timed.items():
            of["error"] = errors.get(contender)
        return {**found, "launches": started, "contenders": timed, "backends": ran}

    run.each("time", {name: lambda build=build: find(build) for name, build in builds.items()})


def check_model(run: Run) -> None:
    """The model against float64 by the reference, exactly and under autocast, on a few samples of at most 250 steps."""
    few = draw(model_shape(run).at_most(250), 2, "true lengths", device=run.device)
    network = models.mea().to(run.device)
    recommended = MEA(CHANNELS, 1, dropout=0.0).to(run.device)

    def errors(autocast: bool, network: MEA = network) -> Record:
        with use_backend("reference"):
            truth = models.outputs(deepcopy(network).double(), models.wide(few))
        with exact(), torch.autocast(run.device, BFLOAT16, enabled=autocast):
            found = {"mea_graph": measure.error(models.outputs(network, few), truth)}
            with use_backend("reference"):
                found["eager formula"] = measure.error(models.outputs(network, few), truth)
        # Through so many layers roundings grow, the formula's as ours: autocast is held to the formula under the same autocast.
        least = max(BUDGET[BFLOAT16], 1.5 * found["eager formula"]) if autocast else MODEL_BUDGET
        return {"dtype": "bfloat16 by autocast" if autocast else "float32", "errors": found, "passed": found["mea_graph"] <= least}

    def twice() -> Record:
        # Otherwise torch adds the messages of the small graphs, and the gradients of picked rows, in the order in which threads come.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            first, second = (models.outputs(network, few) for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(False)
        same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        return {"dtype": "float32", "errors": {}, "same_bits_twice": same, "passed": same}

    run.each(
        "check",
        {
            "MEA": lambda: errors(False),
            "MEA under autocast": lambda: errors(True),
            "MEA twice, by deterministic algorithms": twice,
            "MEA, recommended form": lambda: errors(False, recommended),
        },
    )


def batches_to_time(run: Run) -> list[tuple[Kind, int, models.Mode]]:
    """The most telling first."""
    if run.small:
        return [("true lengths", 2, "train"), ("true lengths", 2, "predict")]
    kinds: tuple[Kind, ...] = ("true lengths", "full padding")
    return [(kind, size, mode) for size, mode, kind in product((32, 16, 128), ("train", "predict"), kinds)]


def case_title(kind: Kind, size: int, mode: models.Mode, more: str = "") -> str:
    return f"MEA, {'training step' if mode == 'train' else 'prediction'}, MOSI, B {size}, {kind}{more}"


def _with_autocast(forward: models.Forward, device: str) -> models.Forward:
    def run() -> Tensor:
        with torch.autocast(device, BFLOAT16):
            return forward()

    return run


def _baseline(name: str, samples: Samples, mode: models.Mode, wrap: Callable[[models.Forward], models.Forward]) -> measure.Pass:
    torch.manual_seed(0)
    baseline = baselines.build(name, samples)
    return (
        models.prediction(baseline.network, wrap(baseline.predict))
        if mode == "predict"
        else models.training_step(baseline.network, wrap(baseline.loss))
    )


def model_eager(run: Run) -> None:
    """Training step and prediction beside the baselines, in float32 and, for all alike, under autocast."""
    present = baselines.available(AGAINST)
    for name, why in ({} if run.known else baselines.absent(AGAINST)).items():
        if name in AGAINST:  # what is published nowhere is told of elsewhere
            run.emit("absent", name=name, why=why)

    def find(kind: Kind, size: int, mode: models.Mode, autocast: bool) -> Record:
        samples = draw(model_shape(run), size, kind, device=run.device)
        wrap = partial(_with_autocast, device=run.device) if autocast else (lambda forward: forward)
        contenders = {"mea_graph": models.passes_of_mea(models.mea().to(run.device), samples, mode, wrap)}
        if size == 32:  # the defaults of the model, whose GRUs no kernel of ours computes
            contenders[RECOMMENDED] = models.passes_of_mea(MEA(CHANNELS, 1).to(run.device), samples, mode, wrap)
        refused = {}
        for name in present:
            try:
                contenders[name] = _baseline(name, samples, mode, wrap)
                contenders[name]()
            except Exception as raised:
                contenders.pop(name, None)
                refused[name] = first_line(raised)
        title = case_title(kind, size, mode, ", autocast" if autocast else "")
        found = clocks(contenders, run.clock / 2, run.device, graphs=False)
        started = launches(contenders["mea_graph"], run.device)
        about = {"launches": started, "backends": backends(contenders["mea_graph"]), "refused": refused, "samples": size}
        return {"case": title, "dtype": "bfloat16" if autocast else "float32", "contenders": found, **about}

    batches = batches_to_time(run)
    batches = [(*b, False) for b in batches] + [(*b, True) for b in batches if b[1] == batches[0][1]]
    run.each("time", {case_title(*b[:3], ", autocast" if b[3] else ""): lambda b=b: find(*b) for b in batches})


def model_kernels(run: Run) -> None:
    """What a training step launches, kernel by kernel; on little input a prediction."""
    kind, size, mode = batches_to_time(run)[-1 if run.small else 0]

    def find() -> Record:
        samples = draw(model_shape(run), size, kind, device=run.device)
        found = kernels(models.passes_of_mea(models.mea().to(run.device), samples, mode), run.device)
        return {"launches": round(sum(k["launches"] for k in found), 1), "kernels": found[:60]}

    run.each("kernels", {case_title(kind, size, mode): find})


def model_captured(run: Run) -> None:
    """The padded batch, whose sizes no number decides, as one CUDA graph: result and gradients held to the eager pass, then timed."""

    def find(kind: Kind, size: int, mode: models.Mode) -> Record:
        samples = draw(model_shape(run), size, kind, device=run.device)
        network = models.mea().to(run.device)
        objective = MEALoss("regression").to(samples.y)
        forward = lambda: network(samples.padded, samples.mask)  # noqa: E731
        if mode == "predict":
            eager = models.prediction(network, lambda: forward().prediction.squeeze(1))
        else:
            loss = lambda: objective(forward(), samples.y).total  # noqa: E731
            eager = models.training_step(network, loss, capturable=run.on_cuda)

        def seen(one: measure.Pass) -> list[Tensor]:
            out = [t.clone() for t in one()]
            gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None] if mode == "train" else []
            return [*out, torch.cat(gradients)] if gradients else out

        expected = seen(eager)
        found = {"case": case_title(kind, size, mode, ", padded"), "dtype": "float32", "contenders": {}}
        if not run.on_cuda:
            return {**found, "skipped": "a CUDA graph needs CUDA"}
        why = waits(eager)
        if why is not None:
            return {**found, "not_timed": f"not captured, since the host waits in it: {why}"}
        try:
            replay = captured(eager)
        except Exception as raised:
            spoil(f"{found['case']} was not captured")
            return {**found, "not_timed": f"not captured: {first_line(raised)}"}
        for p in network.parameters() if mode == "train" else ():
            if p.grad is not None:
                p.grad.zero_()  # the graph writes its gradients where it wrote them when it was captured
        away = measure.error(seen(replay), expected)
        if not away <= models.BUDGET:
            return {**found, "not_timed": f"error {away:.1e} against the eager pass", "error": away}
        timed = clocks({"mea_graph": eager, "MEA, captured": replay}, run.clock / 2, run.device, graphs=False)
        return {**found, "contenders": timed, "error": away}

    run.each("time", {case_title(*b, ", captured"): lambda b=b: find(*b) for b in batches_to_time(run)})


def bucket(run: Run) -> Record:
    """The prediction captured for a size, then replayed for batches of fewer samples and steps, as docs/runtimes.md has it."""
    if not run.on_cuda:
        return {"skipped": "a CUDA graph needs CUDA"}
    shape, size = model_shape(run), 4
    network = models.mea().to(run.device).eval()
    x = {m: torch.zeros(size, n, CHANNELS[m], device=run.device) for m, n in shape.longest.items()}
    mask = {m: torch.ones(size, n, dtype=torch.bool, device=run.device) for m, n in shape.longest.items()}

    def predict() -> list[Tensor]:
        with torch.no_grad():
            return [network(x, mask).prediction]

    with exact():  # the convolutions are of other sizes: cuDNN may round one of them to TF32 and not the other
        replay, errors = captured(predict), {}
    for samples in (draw(shape, 3, "true lengths", device=run.device), draw(shape, size, "full padding", device=run.device)):
        for m in x:
            count, steps = samples.mask[m].shape
            mask[m].zero_()[:count, :steps].copy_(samples.mask[m])
            x[m][:count, :steps].copy_(samples.padded[m])
        with torch.no_grad(), exact():
            expected = network(samples.x_dict, samples.batch_dict, samples.size).prediction
        errors[f"{samples.size} samples"] = measure.error([replay()[0][: samples.size]], [expected])
    return {"errors": errors, "passed": all(e <= models.BUDGET for e in errors.values())}
