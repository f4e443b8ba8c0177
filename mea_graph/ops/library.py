"""Registers implementations with `torch.library`, so that `torch.compile` and `torch.export` treat each as one operator.

An operator is defined and implemented directly on a `Library`: a call costs 2-5 microseconds, against 9-20 through `custom_op`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mea_graph.ops.eager import is_traced, is_transformed

_LIBRARY = torch.library.Library("mea_graph", "FRAGMENT")


def register(
    name: str,
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Defines `mea_graph::name` for every device and returns what calls it: `_in_eager`, or the operator if it takes lists of tensors.

    Args:
        name: The name of the operator.
        schema: "(Tensor x, ...) -> Tensor".
        run: Computes it. Runs with autocast switched off, on the dtypes that came.
        fake: Shapes and dtypes of the results, for tracing.
        setup_context, backward: As for `torch.library.register_autograd`. Without `backward` the operator is itself a backward pass, and
            differentiating it again raises. A backward pass whose own graph is requested (`create_graph=True`) runs with gradients
            enabled: `through_reference` is for it.
    """
    qualified = f"mea_graph::{name}"
    torch.library.define(qualified, schema, lib=_LIBRARY, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(qualified, "CompositeExplicitAutograd", without_autocast(run), lib=_LIBRARY)
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    torch.library.register_autograd(qualified, backward or _refuse_second_derivative, setup_context=setup_context, lib=_LIBRARY)
    return operator_of(name) if "Tensor[" in schema else _in_eager(name, setup_context, backward)


def operator_of(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.mea_graph, name).default


def _in_eager(name: str, setup_context: Callable[..., None] | None, backward: Callable[..., Any] | None) -> Callable[..., Any]:
    """Calls the operator; eagerly in half the time, with the same derivatives.

    What `torch.library.register_autograd` makes prepares its gradients anew at each call, in Python. A function of autograd has less to do.
    The operator still runs, so that autocast, modes and profilers see it. A compiler and transforms get the operator alone.
    """
    operator = operator_of(name)

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            out = operator(*args)
        if setup_context is not None:
            setup_context(ctx, args, out)
        return out

    derivative = staticmethod(backward or _refuse_second_derivative)
    function: Any = type(name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": derivative})

    def call(*args: Any) -> Any:
        if is_traced() or is_transformed():
            return operator(*args)
        if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
            return operator(*args) if backward is None else function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    return call


def through_reference(reference: Callable[..., torch.Tensor], inputs: Sequence[Any], grad: torch.Tensor) -> list[Any]:
    """The gradients of `reference(*inputs)`, themselves differentiable; in the structure of `inputs`, None for what needs none."""
    with torch.enable_grad():
        # Views, since one input may have been computed from another: what is requested is the direct effect of each alone.
        inputs = [_view(value) for value in inputs]
        wanted = [t for t in _flat(inputs) if isinstance(t, torch.Tensor) and t.requires_grad]
        found = iter(torch.autograd.grad(reference(*inputs), wanted, grad, create_graph=True, allow_unused=True))

    def place(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [place(v) for v in value]
        return next(found) if isinstance(value, torch.Tensor) and value.requires_grad else None

    return [place(value) for value in inputs]


def _view(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_view(v) for v in value]
    return value.view_as(value) if isinstance(value, torch.Tensor) and value.requires_grad else value


def without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        device = next(a.device.type for a in _flat(args) if isinstance(a, torch.Tensor))
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):  # "meta" has none
            return run(*args)
        with torch.autocast(device, enabled=False):
            return run(*args)

    return wrapped


def _flat(args: Sequence[Any]) -> Any:
    for a in args:
        if isinstance(a, list | tuple):
            yield from a
        else:
            yield a


def _refuse_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("third derivatives are available under mea_graph.ops.use_backend('reference') only")
