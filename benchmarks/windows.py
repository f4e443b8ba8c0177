"""Long sequences over windows: time and memory that grow with the steps, beside the complete form as far as that goes.

A pass makes its edges too, as a user would for each batch. A window reaches 32 steps to both sides, or as many seconds as 32 steps last on
average; steps come at 25 a second, unevenly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.cases import HEADS, WIDTH, Case, pointers_of
from benchmarks.measure import Pass
from mea_graph import nn as mea
from mea_graph.ops import IntervalEdges, interval_attention, use_backend

STEPS, RATE = 32, 25.0
SECONDS = STEPS / RATE
FEW = 500  # steps that are compared with float64: the reference stores maps
D = HEADS * WIDTH


class Sequences:
    """One sample: `target` steps listen to `source` steps over the same time."""

    def __init__(self, source: int, target: int, device: str) -> None:
        self.source, self.target = pointers_of([source], device), pointers_of([target], device)
        self.source_time = _times(source, RATE, device)
        self.target_time = self.source_time if target == source else _times(target, RATE * target / source, device)

    def in_steps(self) -> IntervalEdges:
        return IntervalEdges.window(self.source, self.target, steps=STEPS)

    def in_seconds(self) -> IntervalEdges:
        return IntervalEdges.window(self.source, self.target, None, SECONDS, self.source_time, self.target_time)

    def complete(self) -> IntervalEdges:
        return IntervalEdges.complete(self.source, self.target)


def _times(steps: int, rate: float, device: str) -> Tensor:
    gaps = (
        torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(steps)) + 0.5
    )  # half to one and a half of the mean
    return (gaps.cumsum(0) / rate).float().to(device)


class Setup(NamedTuple):
    """What is computed on sequences of one length."""

    at: Sequences
    forward: Callable[..., Tensor]  # of the module, edges and inputs
    inputs: list[Tensor]
    module: nn.Module


def _attention(steps: int, device: str) -> Setup:
    """A sequence attends to itself."""
    at = Sequences(steps, steps, device)

    def forward(module: nn.Module, edges: IntervalEdges, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return interval_attention(query, key, value, edges)

    return Setup(at, forward, _draw([(steps, HEADS, WIDTH)] * 3, device), nn.Module())


def _predictive(steps: int, device: str) -> Setup:
    """Two layers in a chain: the second has a prior."""

    def forward(module: nn.Module, edges: IntervalEdges, x: Tensor) -> Tensor:
        z, prior = module[0](x, edges.target, edges=edges)
        return module[1](z, edges.target, prior, edges=edges)[0]

    chain = nn.ModuleList([mea.PredictiveSelfAttention(D, HEADS, prediction=i > 0) for i in range(2)])
    return Setup(Sequences(steps, steps, device), forward, _draw([(steps, D)], device), chain)


def _reinforcement(steps: int, device: str) -> Setup:
    """A sequence of half the rate listens to one of `steps` steps."""

    def forward(module: nn.Module, edges: IntervalEdges, target: Tensor, source: Tensor) -> Tensor:
        return module(target, edges.target, source=source, source_layout=edges.sources[0], edges=edges)

    at = Sequences(steps, steps // 2, device)
    return Setup(at, forward, _draw([(steps // 2, D), (steps, D)], device), mea.ModalityReinforcementUnit(D, HEADS))


def _draw(shapes: list[tuple[int, ...]], device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(13)
    return [torch.randn(*shape, generator=generator).to(device) for shape in shapes]


SETUPS = {
    "interval attention": _attention,
    "PredictiveSelfAttention, two in a chain": _predictive,
    "ModalityReinforcementUnit": _reinforcement,
}


def _pass(setup: Setup, edges: Callable[[], IntervalEdges], dtype: torch.dtype = torch.float32) -> Pass:
    """Forward and backward; the gradients of all parameters come as one vector."""
    module = setup.module.to(dtype)
    inputs = [x.to(dtype).requires_grad_() for x in setup.inputs]
    parameters = list(module.parameters())

    def run() -> list[Tensor]:
        out = setup.forward(module, edges(), *inputs)
        found = torch.autograd.grad(out.square().sum(), [*inputs, *parameters])
        flat = [g.flatten() for g in found[len(inputs) :]]
        return [out.detach(), *found[: len(inputs)], *([torch.cat(flat)] if flat else [])]

    return run


def case(name: str, steps: int, whole: bool = True, device: str = "cpu") -> Case:
    """A window in steps is the library's contender; one in seconds, and with `whole` the complete form, run beside it.

    All of them are compared with float64, on the first steps.
    """

    def build(n: int) -> Setup:
        torch.manual_seed(0)
        setup = SETUPS[name](n, device)
        return setup._replace(module=setup.module.to(device))

    def passes(n: int, dtype: torch.dtype = torch.float32) -> dict[str, Pass]:
        setup = build(n)
        kinds = {"mea_graph": setup.at.in_steps, f"a window of {SECONDS:g} s": setup.at.in_seconds, "complete": setup.at.complete}
        return {kind: _pass(setup, edges, dtype) for kind, edges in kinds.items()}

    def truth() -> list[Tensor]:
        with use_backend("reference"):
            return [t for run in passes(few, torch.float64).values() for t in run()]

    few = min(steps, FEW)
    contenders = passes(steps)
    if not whole:
        del contenders["complete"]
    seen = {"mea_graph": lambda: [t for run in passes(few).values() for t in run()]}
    title = f"{name} over a window of {STEPS} steps to both sides, T {steps}"
    return Case(title, contenders, ["mea_graph"], truth, torch.float32, seen, {"window": STEPS, "seconds": SECONDS})
