"""Runs the same kind of layer on several groups of rows at once, where that is the same as calling each layer in turn."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch_geometric.nn.aggr import SumAggregation

from mea_graph.ops import Pointers
from mea_graph.ops.eager import is_traced
from mea_graph.ops.grouped import grouped_layer_norm, grouped_linear, norm_and_linear

# The most rows of padding that make groups equal in size. A kernel over 65,536 rows of 40 channels moves 20 MB, which takes a GPU some
# 5 microseconds: as long as launching one more kernel.
_ROWS_FOR_A_LAUNCH = 2**16


def level(x: Mapping[str, Tensor], pointers: Mapping[str, Pointers]) -> tuple[dict[str, Tensor], dict[str, Pointers]]:
    """Pads every modality with rows of zeros, as gaps, to the same number of rows where that pays; else returns the input.

    Layers then compute all modalities in batched products, with few kernels. It does not pay on a CPU, where rows take the time, between
    modalities of very different sizes, and under a compiler, which joins the kernels itself.
    """
    sizes = [p.num_rows for p in pointers.values()]
    most, some = max(sizes), next(iter(x.values()))
    if not levels(some.device, most * len(sizes) - sum(sizes)):
        return dict(x), dict(pointers)
    zeros = some.new_zeros(most - min(sizes), *some.shape[1:])
    rows = torch.cat([part for z, size in zip(x.values(), sizes, strict=True) for part in (z, zeros[: most - size])])
    return dict(zip(x, rows.split(most), strict=True)), dict(zip(pointers, Pointers.level(list(pointers.values())), strict=True))


def levels(device: torch.device, added: int) -> bool:
    """Whether so many rows more pay for the kernels that they save."""
    return not is_traced() and _levels(device, added)


def _levels(device: torch.device, added: int) -> bool:
    return device.type != "cpu" and 0 < added <= _ROWS_FOR_A_LAUNCH


class Groups(NamedTuple):
    """Which rows each layer reads. Layers may share rows; results stand one below the other."""

    starts: list[int]
    sizes: list[int]

    @classmethod
    def below_each_other(cls, sizes: Sequence[int]) -> "Groups":
        starts, row = [], 0
        for size in sizes:
            starts.append(row)
            row += size
        return cls(starts, list(sizes))

    def placed(self) -> "Groups":
        """The same groups, stacked, as in a result."""
        return self.below_each_other(self.sizes)


def linear(
    layers: Sequence[Any],
    x: Tensor,
    groups: Groups,
    before: Sequence[Any] = (),
    steps_last: bool = False,
    onto: Tensor | None = None,
) -> Tensor:
    """Each `nn.Linear` on its rows, after the `nn.LayerNorm` of `before` if there are any; for the rest see `grouped_linear`."""
    own = weights_of(layers, nn.Linear) if len(layers) > 1 else None
    if own is None:
        out = _in_turn(layers, norm(before, x, groups) if before else x, groups.placed() if before else groups)
        return out if onto is None else onto + out
    scaled = weights_of(before, nn.LayerNorm) if before else None
    if before and scaled is None:
        x, groups = norm(before, x, groups), groups.placed()
    scales, shifts = scaled or ((), ())
    return grouped_linear(x, *own, *groups, scales, shifts, before[0].eps if scaled else 0.0, steps_last, onto=onto)


def linear_onto(onto: Tensor, dropout: nn.Module, layers: Sequence[Any], x: Tensor, groups: Groups) -> Tensor:
    """`onto + dropout(linear(...))`, a residual."""
    if drops_nothing(dropout):
        return linear(layers, x, groups, onto=onto)
    return onto + dropout(linear(layers, x, groups))


def norm_then_linear(
    norms: Sequence[Any], layers: Sequence[Any], x: Tensor, groups: Groups, steps_last: bool = False
) -> tuple[Tensor, Tensor]:
    """The normalised rows of each group, and the map of them: on a CPU in one call, where nobody differentiates or watches."""
    if len(layers) > 1 and not torch.is_grad_enabled() and not saves_launches(x):
        own, scaled = weights_of(layers, nn.Linear), weights_of(norms, nn.LayerNorm)
        if own is not None and scaled is not None:
            both = norm_and_linear(x, own, groups, scaled, norms[0].eps, steps_last)
            if both is not None:
                return both
    normalized = norm(norms, x, groups)
    return normalized, linear(layers, normalized, groups.placed(), steps_last=steps_last)


def drops_nothing(dropout: nn.Module) -> bool:
    """Whether calling it returns what it is given."""
    return type(dropout) is nn.Dropout and not (dropout.training and dropout.p) and not is_watched(dropout)


def saves_launches(x: Tensor) -> bool:
    """Whether fewer kernels are worth a copy: not on a CPU, which launches none, nor under a compiler, which joins them itself."""
    return not is_traced() and _launches(x.device)


def _launches(device: torch.device) -> bool:
    return device.type != "cpu"


def norm(layers: Sequence[Any], x: Tensor, groups: Groups) -> Tensor:
    """Each `nn.LayerNorm` on its rows."""
    own = weights_of(layers, nn.LayerNorm) if len(layers) > 1 else None
    return _in_turn(layers, x, groups) if own is None else grouped_layer_norm(x, *own, *groups, eps=layers[0].eps)


def weights_of(layers: Sequence[Any], kind: type[nn.Module]) -> tuple[list[Any], list[Any]] | None:
    """The weights and biases of layers that do nothing but apply these, in the same manner; no biases where no layer has one.

    None for a wrapper, a hook, a parametrisation, sparse weights, and where one layer lacks what another has.
    """
    if _all_are_watched():
        return None
    weights: list[Any] = []
    biases: list[Any] = []
    for layer in layers:
        if type(layer) is not kind or has_own_call(layer):
            return None
        own = layer._parameters  # a look here takes a third of the time of `layer.weight`
        weight = own["weight"] if "weight" in own else layer.weight  # noqa: SIM401 - `get` would ask for both
        if weight is None or weight.layout is not torch.strided:
            return None
        weights.append(weight)
        bias = own["bias"] if "bias" in own else layer.bias  # noqa: SIM401
        if bias is not None:
            biases.append(bias)
    if kind is nn.LayerNorm:
        eps = layers[0].eps
        alike = len(biases) == len(layers) and all(layer.eps == eps for layer in layers)
    else:
        alike = len(biases) in (0, len(layers))
    return (weights, biases) if alike else None


def of_all(modules: Sequence[Any], name: str) -> list[Any]:
    """The submodule of that name of each module; asking the module for it takes three times as long."""
    return [module._modules[name] if name in module._modules else getattr(module, name) for module in modules]


def can_join(modules: Sequence[nn.Module]) -> bool:
    """Whether modules of one class of the library may run at once: nobody watches one, and they differ in their weights only.

    Their `__constants__` and the widths of their linear layers must agree; `linear` and `norm` check the rest. A class of the caller's own
    never joins, be it a subclass, a wrapper or another activation: only its call does what it says.
    """
    # A compiler joins them itself, and padded batches of different widths stay apart.
    return not is_traced() and not _all_are_watched() and _can_join(modules)


def _can_join(modules: Sequence[nn.Module]) -> bool:
    first = modules[0]
    kind = type(first)
    manner = _MANNERS.get(kind)
    if manner is None:
        if kind not in _PARTS and not kind.__module__.startswith("mea_graph.nn."):
            return False
        manner = _MANNERS[kind] = attrgetter("training", *getattr(kind, "__constants__", ()))
    own, names = manner(first), first._modules.keys()
    for module in modules:
        if type(module) is not kind or manner(module) != own or has_own_call(module) or module._modules.keys() != names:
            return False
    for name, part in first._modules.items():
        if part is None or isinstance(part, nn.LayerNorm):
            continue
        each: Sequence[Any] = [module._modules[name] for module in modules]
        if not isinstance(part, nn.Linear):
            if not _can_join(each):
                return False
            continue
        width, wide = part.in_features, part.out_features
        for other in each:
            if isinstance(other, nn.Linear) and (other.in_features != width or other.out_features != wide):
                return False
    return True


_PARTS = (nn.Linear, nn.Conv2d, nn.Dropout, nn.GELU, nn.ReLU, nn.ModuleDict, nn.ModuleList, SumAggregation)
_MANNERS: dict[type[nn.Module], Any] = {}  # reads what must agree, by class


def is_watched(module: nn.Module) -> bool:
    """Whether calling the module may do more than its class's `forward`: see `has_own_call`, or somebody hooked all modules of torch."""
    return has_own_call(module) or _all_are_watched()


def _all_are_watched() -> bool:
    return bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def has_own_call(module: nn.Module) -> bool:
    """Whether the module has hooks, a `forward` of its own, or was compiled by itself."""
    own = module.__dict__  # asked for hundreds of modules in a pass, and quicker than their attributes
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own.get("_compiled_call_impl")
        or "forward" in own
    )


def _in_turn(layers: Sequence[Any], x: Tensor, groups: Groups) -> Tensor:
    starts, sizes = groups
    if len(layers) == 1:
        return layers[0](x if sizes[0] == x.size(0) else x.narrow(0, starts[0], sizes[0]))
    return torch.cat([layer(x.narrow(0, start, size)) for layer, start, size in zip(layers, starts, sizes, strict=True)])
