"""Every public layer under what torch does to a module: derivatives of second order, `torch.func`, checkpoints, half precision, export."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mea_graph import nn as mea

from .test_layer_sweep import CASES, MANY_LAYERS, NAMES, Called, D, every_layer

# Not `GradientReversal`, whose gradient is wrong on purpose; those of many layers are in test_rows.py.
TWICE = [name for name in CASES if name not in ("GradientReversal", *MANY_LAYERS)]
Sequences = dict[str, Tensor]


@pytest.fixture
def x() -> Sequences:
    return {m: torch.randn(3, 2 + i, D) for i, m in enumerate(NAMES)}


@pytest.fixture
def mask(x: Sequences) -> Sequences:
    return {m: torch.ones(v.shape[:2], dtype=torch.bool) for m, v in x.items()}


def made(name: str) -> Called:
    return Called(CASES[name], CASES[name].build().double().eval())


def loss(outputs: list[Tensor]) -> Tensor:
    return torch.stack([v.sin().sum() for v in outputs if v.is_floating_point()]).sum()


def near(actual: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives_are_differences_of_the_first(name: str, monkeypatch: pytest.MonkeyPatch, x: Sequences, mask: Sequences) -> None:
    """By a graph of the backward pass and by `jvp` of `grad`. Differences cross the kinks of ReLU, so it is replaced."""
    monkeypatch.setattr(mea.GradientReversal, "forward", lambda self, x: x)
    called = made(name)
    for block in called.modules():
        if isinstance(block, mea.FeedForward):
            block.activation = nn.SiLU()

    def energy(text: Tensor) -> Tensor:
        return loss(called(given | {"text": text}, mask)[: CASES[name].differentiable])

    given = {m: v.double() for m, v in x.items()}
    text, direction = given["text"].requires_grad_(), torch.randn_like(given["text"])
    (first,) = torch.autograd.grad(energy(text), text, create_graph=True)
    (second,) = torch.autograd.grad(first, text, direction)
    step = 1e-5
    ahead, back = (torch.autograd.grad(energy(moved), moved)[0] for moved in (text + step * direction, text - step * direction))
    wanted = (ahead - back) / (2 * step)
    assert wanted.any()
    torch.testing.assert_close(second, wanted, rtol=1e-4, atol=1e-6)
    if name == "MEALoss":
        return  # torch raises for its own `mse_loss`: "ZeroTensors are immutable"
    found = torch.func.jvp(torch.func.grad(energy), (text.detach(),), (direction,))[1]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@every_layer
@pytest.mark.parametrize("native", [True, False])
def test_gradients_in_a_batch_are_those_one_by_one(
    name: str, native: bool, x: Sequences, mask: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`is_grads_batched`, as a vectorised Jacobian asks for, and `vmap` of a backward pass."""
    monkeypatch.setenv("MEA_GRAPH_NATIVE", str(int(native)))
    called, leaves = made(name), {m: v.double().requires_grad_() for m, v in x.items()}
    outputs = [v for v in called(leaves, mask) if v.requires_grad]
    many = [torch.randn(3, *v.shape).double() for v in outputs]
    ends: list[Tensor] = [*called.parameters(), *leaves.values()]
    used = torch.autograd.grad(outputs, ends, [v[0] for v in many], retain_graph=True, allow_unused=True)
    ends = [end for end, grad in zip(ends, used, strict=True) if grad is not None]
    each = [torch.autograd.grad(outputs, ends, [v[i] for v in many], retain_graph=True) for i in range(3)]
    wanted = [torch.stack(grads) for grads in zip(*each, strict=True)]
    near(list(torch.autograd.grad(outputs, ends, many, retain_graph=True, is_grads_batched=True)), wanted)
    near(list(torch.func.vmap(lambda grads: torch.autograd.grad(outputs, ends, grads, retain_graph=True))(many)), wanted)


@every_layer
@pytest.mark.parametrize("native", [True, False])
def test_saved_tensors_may_come_back_in_another_layout(
    name: str, native: bool, x: Sequences, mask: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook that compresses or moves what is kept for the backward pass may lay it out as it likes; C++ reads it by its address."""
    monkeypatch.setenv("MEA_GRAPH_NATIVE", str(int(native)))
    called, leaves = made(name), {m: v.double().requires_grad_() for m, v in x.items()}
    ends = [*called.parameters(), *leaves.values()]
    found = []
    # Statistics (..., 1) stay: torch's own layer norm reads them by their address.
    for unpack in (lambda t: t, lambda t: t if t.dim() < 2 or t.size(-1) == 1 else t.movedim(0, -1).contiguous().movedim(-1, 0)):
        with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, unpack):
            value = loss(called(leaves, mask))
        found.append(torch.autograd.grad(value, ends, allow_unused=True, materialize_grads=True))
    near(*map(list, found))


# Not those whose results something else reads: the next layer of a stack, a loss, torch's sigmoid; nor one that returns its input.
READ = ("PredictiveSelfAttention", "MEA", "MEALoss", "GraphFusionConv", "GradientReversal")


@pytest.mark.parametrize("name", [name for name in CASES if name not in READ])
@pytest.mark.parametrize("ragged", [True, False])
def test_results_may_be_changed_in_place(name: str, ragged: bool, x: Sequences, mask: Sequences) -> None:
    called, leaves = made(name), {m: v.double().requires_grad_() for m, v in x.items()}
    if ragged:
        mask = {m: torch.arange(v.size(1)) < torch.tensor([[v.size(1)], [1], [0]]) for m, v in x.items()}
    ends, found = [*called.parameters(), *leaves.values()], []
    for in_place in (False, True):
        outputs = [v for v in called(leaves, mask) if v.requires_grad]
        total = torch.zeros(()).double()
        for v in outputs:
            v = v.add_(0.5).relu_() if in_place else v.add(0.5).relu()
            total = total + v.square().sum()
        found.append(list(torch.autograd.grad(total, ends, allow_unused=True, materialize_grads=True)))
    near(*found)


@every_layer
def test_ensembles_and_gradients_of_each_batch_by_vmap(name: str, x: Sequences, mask: Sequences) -> None:
    layers = [made(name) for _ in range(2)]
    given = {m: torch.stack([v.double(), torch.randn_like(v).double()]) for m, v in x.items()}
    each = [{m: v[i] for m, v in given.items()} for i in range(2)]

    def call(state: Sequences, x: Sequences) -> Any:
        return torch.func.functional_call(layers[0], state, (x, mask))

    parameters, buffers = torch.func.stack_module_state(layers)
    if state := parameters | buffers:
        ensemble = torch.func.vmap(call, in_dims=(0, None))(state, each[0])
        near([torch.stack(v) for v in zip(*(layer(each[0], mask) for layer in layers), strict=True)], list(ensemble))
    gradient = torch.func.grad(lambda parameters, x: loss(call(parameters, x)), argnums=(0, 1))
    own = {n: p.detach() for n, p in layers[0].named_parameters()}
    found = torch.func.vmap(gradient, in_dims=(None, 0))(own, given)
    for i, one in enumerate(each):
        leaves = {m: v.clone().requires_grad_() for m, v in one.items()}
        ends = [*layers[0].parameters(), *leaves.values()]
        wanted = torch.autograd.grad(loss(layers[0](leaves, mask)), ends, allow_unused=True, materialize_grads=True)
        near([v[i] for part in found for v in part.values()], list(wanted))


@every_layer
def test_checkpoints_and_deterministic_algorithms_change_nothing(name: str, x: Sequences, mask: Sequences) -> None:
    called, found = made(name), []
    torch.use_deterministic_algorithms(True)
    try:
        for f in (called, lambda *given: checkpoint(called, *given, use_reentrant=False)):
            given = {m: v.double().requires_grad_() for m, v in x.items()}
            outputs = f(given, mask)
            leaves = [*given.values(), *called.parameters()]
            gradients = torch.autograd.grad(loss(outputs), leaves, allow_unused=True, materialize_grads=True)
            found.append((list(outputs), gradients))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "budget"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@every_layer
def test_a_layer_of_half_precision_stays_near(name: str, dtype: torch.dtype, budget: float, x: Sequences, mask: Sequences) -> None:
    called = Called(CASES[name], CASES[name].build().eval())
    exact = called(x, mask)
    for low, high in zip(called.to(dtype)({m: v.to(dtype) for m, v in x.items()}, mask), exact, strict=True):
        assert low.dtype == (torch.float32 if name == "MEALoss" else dtype)
        assert (low.float() - high).norm() <= budget * high.norm()


def test_strict_export(x: Sequences, mask: Sequences) -> None:
    called = Called(CASES["PredictiveSelfAttention"], mea.PredictiveSelfAttention(D, 2).eval())
    program = torch.export.export(called, (x, mask), strict=True)
    torch.testing.assert_close(program.module()(x, mask), called(x, mask))
