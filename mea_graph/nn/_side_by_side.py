"""Runs the same kind of layer on several groups of rows at once, where that is the same as calling each layer in turn."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch_geometric.nn.aggr import SumAggregation

from mea_graph.ops import Pointers
from mea_graph.ops.eager import is_traced
from mea_graph.ops.grouped import grouped_layer_norm, grouped_linear, stacked_together

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
    plain = len(layers) > 1 and all(_is_plain(layer, nn.Linear) for layer in layers)
    biases = [bias for bias in _own(layers, "bias") if bias is not None] if plain else []
    if not plain or len(biases) not in (0, len(layers)):
        out = _in_turn(layers, norm(before, x, groups) if before else x, groups.placed() if before else groups)
        return out if onto is None else onto + out
    if before and not _are_plain_norms(before):
        x, groups, before = norm(before, x, groups), groups.placed(), ()
    scales, shifts = _own(before, "weight"), _own(before, "bias")
    eps = before[0].eps if before else 0.0
    return grouped_linear(x, _own(layers, "weight"), biases, *groups, scales, shifts, eps, steps_last, onto=onto)


def linear_onto(onto: Tensor, dropout: nn.Module, layers: Sequence[Any], x: Tensor, groups: Groups) -> Tensor:
    """`onto + dropout(linear(...))`, a residual."""
    if type(dropout) is nn.Dropout and not is_watched(dropout) and not (dropout.training and dropout.p):
        return linear(layers, x, groups, onto=onto)
    return onto + dropout(linear(layers, x, groups))


def weights_together(x: Tensor, *kinds: Sequence[Any]) -> AbstractContextManager[None]:
    """Inside, `linear` and `norm` on a device take the weights of these layers from one copy of all, where each call would make its own."""
    if not saves_launches(x):
        return nullcontext()
    plain = [kind for kind in kinds if len(kind) > 1 and (_are_plain_norms(kind) or all(_is_plain(layer, nn.Linear) for layer in kind))]
    weights = [[getattr(layer, name) for layer in kind] for kind in plain for name in ("weight", "bias")]
    return stacked_together([kind for kind in weights if all(type(t) is nn.Parameter for t in kind)])


def saves_launches(x: Tensor) -> bool:
    """Whether fewer kernels are worth a copy: not on a CPU, which launches none, nor under a compiler, which joins them itself."""
    return not is_traced() and _launches(x.device)


def _launches(device: torch.device) -> bool:
    return device.type != "cpu"


def norm(layers: Sequence[Any], x: Tensor, groups: Groups) -> Tensor:
    """Each `nn.LayerNorm` on its rows."""
    if len(layers) == 1 or not _are_plain_norms(layers):
        return _in_turn(layers, x, groups)
    return grouped_layer_norm(x, _own(layers, "weight"), _own(layers, "bias"), *groups, eps=layers[0].eps)


def _are_plain_norms(layers: Sequence[Any]) -> bool:
    affine = all(_is_plain(layer, nn.LayerNorm) and layer.weight is not None and layer.bias is not None for layer in layers)
    return affine and len({layer.eps for layer in layers}) == 1


def _own(layers: Sequence[Any], name: str) -> list[Any]:
    """The parameter of that name of each layer; asking the module for it takes a call of Python."""
    return [layer._parameters[name] if name in layer._parameters else getattr(layer, name) for layer in layers]


def can_join(modules: Sequence[nn.Module]) -> bool:
    """Whether modules of one class of the library may run at once: nobody watches one, and they differ in their weights only.

    Their `__constants__` and the widths of their linear layers must agree; `linear` and `norm` check the rest. A class of the caller's own
    never joins, be it a subclass, a wrapper or another activation: only its call does what it says.
    """
    if is_traced():
        return False  # a compiler joins them itself, and padded batches of different widths stay apart
    first = modules[0]
    kind, manner = type(first), attrgetter("training", *getattr(first, "__constants__", ()))
    if kind not in _PARTS and not kind.__module__.startswith("mea_graph.nn."):
        return False
    own = manner(first)
    for module in modules:
        if type(module) is not kind or manner(module) != own or is_watched(module) or module._modules.keys() != first._modules.keys():
            return False
    for name, part in first._modules.items():
        if part is None or isinstance(part, nn.LayerNorm):
            continue
        parts: Sequence[Any] = [module._modules[name] for module in modules]
        if isinstance(part, nn.Linear):
            if len({_WIDTHS(p) for p in parts if isinstance(p, nn.Linear)}) > 1:
                return False
        elif not can_join(parts):
            return False
    return True


_PARTS = (nn.Linear, nn.Conv2d, nn.Dropout, nn.GELU, nn.ReLU, nn.ModuleDict, nn.ModuleList, SumAggregation)
_WIDTHS = attrgetter("in_features", "out_features")


def is_watched(module: nn.Module) -> bool:
    """Whether calling the module may do more than its class's `forward`: see `has_own_call`, or somebody hooked all modules of torch."""
    return has_own_call(module) or bool(
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def has_own_call(module: nn.Module) -> bool:
    """Whether the module has hooks, a `forward` of its own, or was compiled by itself."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or "forward" in module.__dict__
    )


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the layer only applies its weights: no wrapper, no hook, no parametrisation."""
    return type(layer) is kind and not is_watched(layer)


def _in_turn(layers: Sequence[Any], x: Tensor, groups: Groups) -> Tensor:
    starts, sizes = groups
    if len(layers) == 1:
        return layers[0](x if sizes[0] == x.size(0) else x.narrow(0, starts[0], sizes[0]))
    return torch.cat([layer(x.narrow(0, start, size)) for layer, start, size in zip(layers, starts, sizes, strict=True)])
