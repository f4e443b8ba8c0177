"""The whole model: prediction, loss and gradients on a device, against float64 by the reference on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mea_graph.check.cases import BFLOAT16, BUDGET, FLOAT32, MODEL_BUDGET, error, exact
from mea_graph.nn import MEA, MEALoss
from mea_graph.ops import record_calls, use_backend

NAME = "model"
CHANNELS = {"text": 24, "audio": 5, "vision": 7}
LENGTHS = {"text": (6, 0, 17), "audio": (40, 9, 0), "vision": (0, 65, 12)}


class Samples(NamedTuple):
    """Rows of several samples, some of which lack a modality."""

    x: dict[str, Tensor]
    batch: dict[str, Tensor]
    y: Tensor

    def to(self, device: str, dtype: torch.dtype) -> Samples:
        """The same elsewhere, or in another dtype."""
        x = {m: t.to(device, dtype) for m, t in self.x.items()}
        return Samples(x, {m: t.to(device) for m, t in self.batch.items()}, self.y.to(device, dtype))


def draw() -> Samples:
    """Draws the samples."""
    generator = torch.Generator().manual_seed(5)
    x = {m: torch.randn(sum(n), CHANNELS[m], generator=generator) for m, n in LENGTHS.items()}
    batch = {m: torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for m, n in LENGTHS.items()}
    return Samples(x, batch, torch.randn(3, generator=generator))


def outputs(network: MEA, x: Mapping[str, Tensor], batch: Mapping[str, Tensor], y: Tensor) -> list[Tensor]:
    """The prediction, the loss, and the gradients of each part: what is compared with float64."""
    network.train()
    network.zero_grad()
    out = network(x, batch, len(y))
    loss = MEALoss("regression")(out, y).total
    loss.backward()
    gradients = [[p.grad.flatten() for p in part.parameters() if p.grad is not None] for part in network.children()]
    return [out.prediction.detach(), loss.detach(), *(torch.cat(g) for g in gradients if g)]


def prediction(network: MEA, samples: Samples) -> list[Tensor]:
    """What the model predicts without gradients: several steps are then one call of C++."""
    network.eval()
    with torch.no_grad():
        return [network(samples.x, samples.batch, len(samples.y)).prediction]


def results(device: str, backend: str | None = None) -> Iterator[dict[str, Any]]:
    """Compares the model with float64, as it is and inside `use_backend`.

    Args:
        device: Where it runs.
        backend: Name for `use_backend`; None: as layers choose.

    Yields:
        For each case its name, dtype, error, the largest error that is right, and the calls of ops by backend.
    """
    torch.manual_seed(0)
    networks = {
        "MEA, published form": MEA.published(CHANNELS, 1),
        "MEA": MEA(CHANNELS, 1, dropout=0.0),
    }
    few = draw()
    for name, network in networks.items():
        true = deepcopy(network).double()
        wide = few.to("cpu", torch.float64)
        with use_backend("reference"):
            truth = outputs(true, *wide), prediction(true, wide)
        here, given = deepcopy(network).to(device), few.to(device, torch.float32)
        ways = {
            "loss and gradients": (partial(outputs, here, *given), truth[0]),
            "prediction": (partial(prediction, here, given), truth[1]),
        }
        for way, (run, expected) in ways.items():
            yield {"case": f"{name}, {way}", "dtype": FLOAT32, **_compared(run, expected, backend), "bound": MODEL_BUDGET}
        if name == "MEA, published form":
            yield _under_autocast(f"{name}, loss and gradients under autocast", device, *ways["loss and gradients"], backend)


def _under_autocast(case: str, device: str, run: Callable[[], list[Tensor]], truth: list[Tensor], backend: str | None) -> dict[str, Any]:
    """Through so many layers roundings grow, the formula's as ours: autocast is held to the formula under the same autocast."""
    with torch.autocast(torch.device(device).type, BFLOAT16):
        found, formula = _compared(run, truth, backend), _compared(run, truth, "reference")
    return {"case": case, "dtype": BFLOAT16, **found, "bound": max(BUDGET[BFLOAT16], 1.5 * formula["error"])}


def _compared(run: Callable[[], list[Tensor]], truth: list[Tensor], backend: str | None) -> dict[str, Any]:
    with exact(), use_backend(backend) if backend else nullcontext():
        away = error([t.cpu() for t in run()], truth)
        with record_calls() as calls:
            run()  # again: what counts calls also changes how layers call ops
    return {"error": away, "calls": sorted(calls)}
