"""The door of every layer: turns the caller's input into rows and pointers, and the result back into the caller's form."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mea_graph.ops import IntervalEdges, Pointers
from mea_graph.ops.eager import is_traced, is_transformed
from mea_graph.ops.places import check_device, check_prefix
from mea_graph.ops.pointers import put_rows, take_rows

Layout = Tensor | Pointers | None  # mask, ptr or Pointers

# What somebody who gives this in place of a sequence may have meant.
_REMEDIES = {
    tuple: "; a layer that returns several values returns the sequence first",
    type(None): "; a sequence without steps is a tensor (0, d), or (B, 0, d)",
}
_OF_WEIGHTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Entered(NamedTuple):
    """A sequence inside a layer."""

    x: Tensor  # (N, d)
    pointers: Pointers
    shape: tuple[int, ...] | None  # (B, T) of a padded batch, () of one sequence, None of rows
    taken: Tensor | None  # which rows of the padded batch these are; None: all
    offsets: Tensor | None = None  # of a jagged nested tensor

    def leave(self, x: Tensor) -> Tensor:
        """Returns a result (N, d') in the caller's form, with zeros in the padding."""
        if self.offsets is not None:
            return torch.nested.nested_tensor_from_jagged(x, self.offsets)
        if not self.shape:
            return x
        if self.taken is not None:
            return put_rows(x, self.taken, self.shape[0] * self.shape[1]).unflatten(0, self.shape)
        x = x.unflatten(0, self.shape)
        return x if self.pointers.packed else x.masked_fill(~self.pointers.mask.unsqueeze(-1), 0)

    def leave_shorter(self, x: Tensor, pointers: Pointers, stride: int) -> Tensor:
        """Like `leave`, for a layer that shortened each sequence from T to ceil(T / stride) steps."""
        if self.offsets is not None:
            return torch.nested.nested_tensor_from_jagged(x, F.pad(pointers.length.cumsum(0), (1, 0)))
        if not self.shape:
            return x
        x = pointers.pad(x)
        if not pointers.packed:
            x = x.masked_fill(~pointers.mask.unsqueeze(-1), 0)
        return F.pad(x, (0, 0, 0, (self.shape[1] + stride - 1) // stride - x.size(1)))


def check_edges(edges: object, entered: Entered, name: str = "edges") -> None:
    """Refuses edges beside a padded batch: edges number rows, and whether padding counts as rows depends on the device."""
    if edges is not None and entered.shape:
        raise ValueError(f"{name}: expected rows (N, d) with ptr beside edges, got a padded batch {entered.shape}")


def check_heard(edges: object, sources: Sequence[Pointers], target: Pointers, name: str = "edges") -> None:
    """Refuses edges that do not fit the source rows, stacked, and the target rows. Only a CPU checks the numbers of a list."""
    rows = sum(source.num_rows for source in sources)
    if isinstance(edges, IntervalEdges):
        if edges.num_source_rows != rows or edges.target.num_rows != target.num_rows:
            got = f"{edges.target.num_rows} and {edges.num_source_rows}"
            raise ValueError(f"{name}: expected {target.num_rows} target and {rows} source rows, got {got}")
        _check_samples(edges, sources, target, name)
        return
    if not isinstance(edges, Tensor) or edges.dim() != 2 or edges.size(0) != 2 or edges.dtype != torch.int64:
        got = f"{edges.dtype} {tuple(edges.shape)}" if isinstance(edges, Tensor) else type(edges).__name__
        raise ValueError(f"{name}: expected IntervalEdges or an int64 edge_index (2, E), got {got}")
    if edges.device.type != "cpu" or is_traced() or is_transformed() or not edges.numel():
        return
    for end, numbers, count in (("sources", edges[0], rows), ("targets", edges[1], target.num_rows)):
        first, last = int(numbers.min()), int(numbers.max())
        if first < 0 or last >= count:
            raise ValueError(f"{name}: expected {end} among {count} rows, got numbers from {first} to {last}")
    heard, hears = (torch.cat([p.sample.masked_fill(~p.real, -1) for p in of]) for of in (sources, [target]))  # -1: a gap
    wrong = (heard[edges[0]] != hears[edges[1]]) | (hears[edges[1]] < 0)
    if bool(wrong.any()):
        edge = int(wrong.nonzero()[0])
        got = f"row {int(edges[0, edge])} to row {int(edges[1, edge])}"
        raise ValueError(f"{name}: expected edges between steps of one sample, got one from {got}")


def _check_samples(edges: IntervalEdges, sources: Sequence[Pointers], target: Pointers, name: str) -> None:
    """Refuses edges that were made of pointers to other samples: steps would hear those of another sample. Only a CPU checks."""
    if edges.target.start.device.type != "cpu" or target.start.device.type != "cpu" or is_traced() or is_transformed():
        return
    pairs = [(edges.target, target), *(zip(edges.sources, sources, strict=True) if len(edges.sources) == len(sources) else ())]
    for made_of, given in pairs:
        if made_of is not given and not _same_samples(made_of, given):
            got = f"those of {made_of.num_samples} samples of lengths {made_of.length.tolist()[:8]}"
            raise ValueError(f"{name}: expected edges between samples of lengths {given.length.tolist()[:8]}, got {got}")


def _same_samples(one: Pointers, other: Pointers) -> bool:
    if one.num_samples != other.num_samples or not torch.equal(one.length, other.length):
        return False
    return bool(((one.start == other.start) | (one.length == 0)).all())


def weight_dtype(part: Any, name: str) -> torch.dtype | None:
    """The dtype of the weight of a layer inside of another; None where somebody has put something else in its place.

    A weight that is computed when it is asked for, or that holds integers, says nothing of the dtype of features.
    """
    weight = getattr(getattr(part, name, None), "_parameters", {}).get("weight")
    return None if weight is None or weight.dtype not in _OF_WEIGHTS else weight.dtype


def check_dtype(x: Tensor, dtype: torch.dtype | None, name: str) -> None:
    """Refuses features in another dtype than the weights that multiply them; autocast brings all but float64 together."""
    if dtype is None or x.dtype == dtype:
        return
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if not on or torch.float64 in (x.dtype, dtype):
        remedy = f"{name}.to({dtype}) converts the features, and model.to({x.dtype}) the weights"
        raise TypeError(f"{name}: expected {dtype}, the dtype of the weights, got {x.dtype}; {remedy}")


def enter(
    x: Tensor, layout: Layout, channels: int | None, name: str = "x", floating: bool = True, dtype: torch.dtype | None = None
) -> Entered:
    """Takes rows (N, d) with ptr or `Pointers`, a padded batch (B, T, d) with a mask (B, T), a jagged nested tensor, or one sequence.

    Junk in padding, NaN included, reaches no value and no gradient. On a CPU the real steps are copied out of the padding. Elsewhere, and
    while a graph is recorded, the host must not read how many there are: the padded batch becomes rows with gaps of zeros.
    `dtype` is that of the weights.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(x).__name__}{_REMEDIES.get(type(x), '')}")
    if floating and not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating type, got {x.dtype}")
    if layout is not None and not isinstance(layout, (Tensor, Pointers)):
        raise TypeError(f"{name}: expected the ptr of rows or a mask of padding as a Tensor, or Pointers, got {type(layout).__name__}")
    if layout is not None:
        kind = "its layout" if isinstance(layout, Pointers) else "its mask" if layout.dtype == torch.bool else "its ptr"
        check_device(f"{kind} of {name}", layout.start if isinstance(layout, Pointers) else layout, x.device, name)
    if x.dtype != dtype:
        check_dtype(x, dtype, name)
    if x.is_nested:
        return _enter_nested(x, layout, channels, name)
    if x.dim() == 2:
        return _enter_rows(x, layout, channels, name)
    width = "d" if channels is None else channels
    if x.dim() != 3 or (channels is not None and x.size(-1) != channels):
        raise ValueError(f"{name}: expected (B, T, {width}), or rows (N, {width}) with ptr, got {tuple(x.shape)}")
    batch, steps, _ = x.shape
    if isinstance(layout, Pointers) or (layout is not None and (layout.shape != x.shape[:2] or layout.dtype != torch.bool)):
        got = layout if isinstance(layout, Pointers) else f"{layout.dtype} {tuple(layout.shape)}"
        raise ValueError(f"{name}: expected a bool mask {tuple(x.shape[:2])}, True at real steps, got {got}")
    if layout is None:
        pointers = Pointers.full(batch, steps, x.device)
        return Entered(pointers.unpad(x), pointers, (batch, steps), None)
    if x.device.type != "cpu" or is_traced():
        clean = x.flatten(0, 1).masked_fill(~layout.flatten().unsqueeze(-1), 0)
        return Entered(clean, Pointers.from_mask(layout), (batch, steps), None)
    check_prefix(layout, name)
    taken = layout.flatten().nonzero().squeeze(1)
    if len(taken) == batch * steps:
        return Entered(x.flatten(0, 1), Pointers.full(batch, steps, x.device), (batch, steps), None)
    length = layout.sum(1)
    start = length.cumsum(0) - length
    return Entered(take_rows(x.flatten(0, 1), taken), Pointers._unchecked(start, length, len(taken), packed=True), (batch, steps), taken)


def _enter_nested(x: Tensor, layout: Layout, channels: int | None, name: str) -> Entered:
    if x.layout != torch.jagged or x.dim() != 3:
        raise ValueError(f"{name}: expected a nested tensor of layout torch.jagged and (B, *, d), got {x.layout} with {x.dim()} dimensions")
    if layout is not None:
        raise ValueError(
            f"{name}: expected no mask or ptr beside a nested tensor, which has offsets of its own, got {type(layout).__name__}"
        )
    nested: Any = x  # torch's stubs do not know its methods
    rows, offsets = nested.values(), nested.offsets()
    if nested.lengths() is not None:
        raise ValueError(f"{name}: expected a nested tensor without holes, got one with lengths of its own; x.contiguous() has none")
    return _enter_rows(rows, offsets, channels, name)._replace(offsets=offsets)


def _enter_rows(x: Tensor, layout: Layout, channels: int | None, name: str) -> Entered:
    if channels is not None and x.size(1) != channels:
        raise ValueError(f"{name}: expected (N, {channels}), got {tuple(x.shape)}")
    if layout is None:
        start = torch.zeros(1, dtype=torch.int64, device=x.device)
        return Entered(x, Pointers._unchecked(start, start + x.size(0), x.size(0), packed=True), (), None)
    if isinstance(layout, Pointers):
        if layout.num_rows != x.size(0):
            raise ValueError(f"{name}: expected Pointers of {x.size(0)} rows, got {layout}")
        return Entered(x, layout, None, None)
    if layout.dim() != 1 or layout.dtype != torch.int64:
        raise ValueError(f"{name}: expected ptr, int64 (B + 1,), beside rows (N, d), got {layout.dtype} {tuple(layout.shape)}")
    try:
        return Entered(x, Pointers.from_ptr(layout, x.size(0)), None, None)
    except ValueError as error:
        batch = "; a batch vector needs batch_size= in MEA, and Pointers.from_batch for a layer" if layout.size(0) == x.size(0) else ""
        raise ValueError(f"{name}: {error}{batch}") from error


def enter_all(
    x: Mapping[str, Tensor],
    layout: Mapping[str, Layout] | None,
    modalities: tuple[str, ...],
    channels: int | Mapping[str, int],
    edges: object = None,
    floating: Collection[str] | None = None,
    dtype: Callable[[str], torch.dtype | None] | None = None,
) -> dict[str, Entered]:
    """`enter` for every modality, in the order of `modalities`; with edges they must be rows.

    Those in `floating` take no integers. `dtype` gives the dtype of the weights that read a modality, which are mostly all the same.
    """
    check_keys(x, modalities, "x", remedy="; a modality that no sample has is a tensor without steps, (B, 0, d), or (0, d) with its ptr")
    if layout is not None:
        check_keys(layout, modalities, "layout")
    entered = {}
    for m in modalities:
        width = channels[m] if isinstance(channels, Mapping) else channels
        entered[m] = enter(x[m], None if layout is None else layout[m], width, m, floating is None or m in floating)
        check_edges(edges, entered[m])
    check_same_samples({m: e.pointers.start for m, e in entered.items()}, "x")
    if dtype is not None:
        common = dtype(modalities[0])
        for m in modalities:
            if x[m].dtype != common:
                check_dtype(x[m], dtype(m), m)
    return entered


def check_pairs(edges: object, modalities: Iterable[str]) -> None:
    """Refuses edges that are not by pair (source, target) of modalities: other keys would be passed over."""
    names = list(modalities)
    if edges is not None and not isinstance(edges, Mapping):
        raise TypeError(f"edges: expected a dict of edges by pair (source, target) of modalities, got {type(edges).__name__}")
    unknown = [pair for pair in edges or () if not isinstance(pair, tuple) or len(pair) != 2 or set(pair) - set(names)]
    if unknown:
        raise ValueError(f"edges: expected pairs of {names}, got {unknown}")


def leave_all(entered: Mapping[str, Entered], parts: Iterable[Tensor]) -> dict[str, Tensor]:
    """`leave` for every modality, from rows that may be parts of one matrix."""
    return {m: e.leave(part) for (m, e), part in zip(entered.items(), parts, strict=True)}


def apart(parts: dict[str, Tensor], layout: Mapping[str, Layout] | None) -> dict[str, Tensor]:
    """Results of a layer that the caller may change in place: copies of what are parts of one matrix, where autograd forbids it.

    A layer that calls another one gives it `Pointers`, and needs no copies.
    """
    inside = layout is not None and all(isinstance(own, Pointers) for own in layout.values())
    if inside or is_traced() or not torch.is_grad_enabled():
        return parts
    return {m: part.clone() if part._is_view() else part for m, part in parts.items()}


_TAKEN = nn.ModuleDict()  # a submodule must not have the name of an attribute


def check_modalities(modalities: Iterable[str], at_least: int = 1) -> tuple[str, ...]:
    if isinstance(modalities, str) or not isinstance(modalities, Iterable):
        raise TypeError(f"modalities: expected a list of names, got {modalities!r}")
    names = tuple(modalities)
    for name in names:
        if not isinstance(name, str) or not name or "." in name or hasattr(_TAKEN, name):
            raise ValueError(f"modalities: expected names that can name a submodule (no dot, not a method of Module), got {name!r}")
    if len(set(names)) != len(names) or len(names) < at_least:
        raise ValueError(f"modalities: expected at least {at_least} different names, got {names}")
    return names


def check_widths(in_channels: object) -> tuple[str, ...]:
    """The modalities of a dict of widths."""
    if not isinstance(in_channels, Mapping):
        raise ValueError(f"in_channels: expected a dict of the width of each modality by its name, got {in_channels!r}")
    return check_modalities(in_channels)


def check_keys(values: Mapping[str, object], modalities: tuple[str, ...], name: str, remedy: str = "") -> None:
    """Refuses other keys than the modalities; `remedy` says what to give where one is absent."""
    if not hasattr(values, "keys"):
        got = f"a tensor {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name}: expected a dict of one entry a modality, got {got}")
    if set(values) != set(modalities):
        remedy = remedy if set(values) < set(modalities) else ""
        raise ValueError(f"{name}: expected the modalities {list(modalities)}, got {list(values)}{remedy}")


def check_same_samples(values: Mapping[str, Tensor], name: str) -> None:
    """Refuses tensors (B, ...) by modality that differ in B."""
    sizes = {m: v.size(0) for m, v in values.items()}
    first = next(iter(sizes.values()))
    if any(size != first for size in sizes.values()):  # no set: while a graph is exported, sizes are symbols without a hash
        raise ValueError(f"{name}: expected the same number of samples in every modality, got {sizes}")


def check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {size!r}")


def check_heads(channels: int, heads: int) -> None:
    check_sizes(channels=channels)
    if not isinstance(heads, Integral) or heads < 1 or channels % heads:
        raise ValueError(f"heads: expected a divisor of channels = {channels}, got {heads}")
