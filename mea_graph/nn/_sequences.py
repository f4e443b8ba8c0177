"""What every layer does to its input first: check it, and cut what stands in the padding."""

from collections.abc import Iterable, Mapping
from numbers import Integral

import torch
from einops import rearrange
from torch import Tensor, nn


def check_sequence(x: Tensor, mask: Tensor | None, channels: int, name: str = "x") -> tuple[Tensor, Tensor]:
    """Returns `x` with zeros in the padding, and a mask in any case. Junk in padding, NaN included, gets zero gradient."""
    if x.dim() != 3 or x.size(-1) != channels:
        raise ValueError(f"{name}: expected (B, T, {channels}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating type, got {x.dtype}")
    if mask is None:
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"{name}: expected a bool mask {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    return zero_padding(x, mask), mask


def check_sequences(
    x: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None, modalities: tuple[str, ...], channels: int | Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`check_sequence` for every modality, in the order of `modalities`."""
    check_keys(x, modalities, "x")
    if mask is not None:
        check_keys(mask, modalities, "mask")
    clean, valid = {}, {}
    for m in modalities:
        width = channels if isinstance(channels, int) else channels[m]
        clean[m], valid[m] = check_sequence(x[m], None if mask is None else mask[m], width, m)
    check_batch(clean, "x")
    return clean, valid


def zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask.unsqueeze(-1), 0)


def check_prefix(mask: Tensor, name: str) -> None:
    """Real steps must come first. Looked at on the CPU only: elsewhere the look would wait for the device."""
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and mask.size(1) and bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        row = int((mask[:, 1:] & ~mask[:, :-1]).any(1).nonzero()[0])
        raise ValueError(f"{name}: expected real steps before padding in every row of the mask, got a gap in row {row}")


_TAKEN = nn.ModuleDict()  # a submodule may not be called like anything it has


def check_modalities(modalities: Iterable[str], at_least: int = 1) -> tuple[str, ...]:
    names = tuple(modalities)
    for name in names:
        if not isinstance(name, str) or not name or "." in name or hasattr(_TAKEN, name):
            raise ValueError(f"modalities: expected names that can name a submodule (no dot, not a method of Module), got {name!r}")
    if len(set(names)) != len(names) or len(names) < at_least:
        raise ValueError(f"modalities: expected at least {at_least} different names, got {names}")
    return names


def check_keys(values: Mapping[str, object], modalities: tuple[str, ...], name: str) -> None:
    if set(values) != set(modalities):
        raise ValueError(f"{name}: expected the modalities {list(modalities)}, got {list(values)}")


def check_batch(values: Mapping[str, Tensor], name: str) -> None:
    sizes = {m: v.size(0) for m, v in values.items()}
    first = next(iter(sizes.values()))
    if any(size != first for size in sizes.values()):  # a set would need numbers, which sizes are not while a graph is exported
        raise ValueError(f"{name}: expected the same number of samples in every modality, got {sizes}")


def split_heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "batch time (heads width) -> batch heads time width", heads=heads)


def merge_heads(x: Tensor) -> Tensor:
    return rearrange(x, "batch heads time width -> batch time (heads width)")


def check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {size!r}")


def check_heads(channels: int, heads: int) -> None:
    check_sizes(channels=channels)
    if heads < 1 or channels % heads:
        raise ValueError(f"heads: expected a divisor of channels = {channels}, got {heads}")
