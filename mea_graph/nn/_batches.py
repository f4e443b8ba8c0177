"""From a PyG batch to rows, pointers and times by modality."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from mea_graph.nn._sequences import Entered, Layout
from mea_graph.ops import Pointers
from mea_graph.ops.eager import is_traced, is_transformed

_SLOW = 10.0  # seconds, as `mea_graph.data` has it: speech, faces and text have a step every few milliseconds to every few seconds


def of_batch(batch: HeteroData, modalities: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Layout]]:
    """Returns the rows and the pointers of each modality; data without a `ptr` count as one sample."""
    remedy = "mea_graph.data.AddMissingModalities gives samples the node types that they lack"
    for m in modalities:
        if m in batch.node_types and "x" not in batch[m]:
            raise ValueError(f"batch[{m!r}]: expected x, the rows of its steps, got {list(batch[m].keys())}")
        if m not in batch.node_types:
            raise ValueError(f"batch: expected the node types {list(modalities)} with x, got {batch.node_types}; {remedy}")
    samples = getattr(batch, "num_graphs", 1)
    layout: dict[str, Layout] = {}
    for m in modalities:
        node = batch[m]
        if "ptr" in node:
            if node.ptr.numel() != samples + 1:
                # PyG leaves out the samples that lack a node type, and gives their places to the next ones.
                raise ValueError(f"batch[{m!r}]: expected rows of {samples} samples, got those of {node.ptr.numel() - 1}; {remedy}")
            layout[m] = Pointers.from_ptr(node.ptr, node.x.size(0), _longest(batch, m))
        else:
            layout[m] = Pointers.from_batch(node.batch, samples) if "batch" in node else None
    return {m: batch[m].x for m in modalities}, layout


def _longest(batch: HeteroData, modality: str) -> int | None:
    """The longest length, read from the slices that PyG keeps on the host; None if the batch has none, or other rows than these."""
    ends = getattr(batch, "_slice_dict", {}).get(modality, {}).get("x")
    if not isinstance(ends, Tensor) or ends.numel() < 2 or ends.device.type != "cpu" or int(ends[-1]) != batch[modality].x.size(0):
        return None
    return int(ends.diff().max())


def known_layout(batch: HeteroData, modalities: tuple[str, ...]) -> dict[str, Pointers] | None:
    """The pointers of each modality with lengths that the host knows; None where it does not know one, or a sample lacks a node type."""
    layout = {}
    for m in modalities:
        node: Any = batch[m] if m in batch.node_types else {}
        if "x" not in node or "ptr" not in node or node.ptr.numel() != getattr(batch, "num_graphs", 1) + 1:
            return None
        longest = _longest(batch, m)
        if longest is None:
            return None
        layout[m] = Pointers.from_ptr(node.ptr, node.x.size(0), longest)
    return layout


def of_vectors(layout: Mapping[str, Layout], modalities: tuple[str, ...], samples: int) -> dict[str, Pointers]:
    """The pointers of batch vectors (N,) of so many samples; pointers stay what they are."""
    found = {}
    for m in modalities:
        own: Any = layout[m]
        found[m] = own if isinstance(own, Pointers) else Pointers.from_batch(own, samples)
        if found[m].num_samples != samples:
            raise ValueError(f"batch_dict[{m!r}]: expected Pointers of batch_size = {samples} samples, got {found[m].num_samples}")
    return found


def given_times(
    x: HeteroData | Mapping[str, Tensor], time: Mapping[str, Tensor] | None, modalities: tuple[str, ...]
) -> dict[str, tuple[Tensor | None, str]]:
    """Each modality's times, from the batch or from `time`, with the name that errors use; None without times."""
    if isinstance(x, HeteroData):
        if time is not None:
            raise ValueError(f"time: expected None beside a PyG batch, which has times of its own, got those of {list(time)}")
        return {m: (x[m].get("time") if m in x.node_types else None, f"batch[{m!r}].time") for m in modalities}
    if not isinstance(x, Mapping):
        got = f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        remedy = "; Batch.from_data_list makes a batch of samples" if isinstance(x, list | tuple) else ""
        raise TypeError(f"x: expected a PyG batch, or a dict of tensors by modality, got {got}{remedy}")
    time = time or {}
    unknown = [m for m in time if m not in modalities]
    if unknown:
        raise ValueError(f"time: expected modalities among {list(modalities)}, got {unknown}")
    return {m: (time.get(m), f"time[{m!r}]") for m in modalities}


def enter_time(time: Tensor | None, entered: Entered, name: str) -> Tensor:
    """Turns times in the caller's form into the times of rows (N,); those of gaps are arbitrary."""
    shape = tuple(entered.shape or (entered.pointers.num_rows,))
    if time is None:
        raise ValueError(f"{name}: expected seconds {shape}, one a step, which a window or positions in seconds need, got None")
    if not isinstance(time, Tensor) or time.is_nested or time.shape != shape or not time.is_floating_point():
        got = f"{time.dtype} {tuple(time.shape)}" if isinstance(time, Tensor) and not time.is_nested else type(time).__name__
        raise ValueError(f"{name}: expected floating seconds {shape}, one a step, got {got}")
    time = time.flatten()
    return time if entered.taken is None else time.index_select(0, entered.taken)


def read_time(time: Tensor | None, entered: Entered, name: str, scale: float | None = None, width: float | None = None) -> Tensor:
    """Like `enter_time`, but refuses NaN, infinity and times too coarse for their use, and for a window also times that fall.

    Only a CPU checks. Times are too coarse if the largest and the next number of its type are further apart than the `scale` of positions
    or the `width` of a window.
    """
    time, pointers = enter_time(time, entered, name), entered.pointers
    if time.device.type != "cpu" or is_traced() or is_transformed():
        return time
    real = None if pointers.packed else pointers.real
    wrong = ~time.isfinite()
    wrong = wrong if real is None else wrong & real
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name}: expected finite seconds, got {float(time[row])} at {_place(row, pointers)}")
    of_steps, finest = time if real is None else time[real], min(filter(None, (scale, width)), default=None)
    largest = float(of_steps.abs().max()) if of_steps.numel() else 0.0
    if finest is not None and (apart := largest * torch.finfo(time.dtype).eps) > finest:
        remedy = "let the times of a sample begin near 0, at one moment for all modalities, or give float64"
        kind = str(time.dtype).removeprefix("torch.")
        raise ValueError(
            f"{name}: expected times that {kind} holds to {finest:g} s, got {largest:.10g}, where it holds {apart:.2g} s; {remedy}"
        )
    if width is not None and time.numel():
        falls = (time[1:] < time[:-1]) & (pointers.sample[1:] == pointers.sample[:-1])
        falls = falls if real is None else falls & real[1:] & real[:-1]
        if bool(falls.any()):
            row = int(falls.nonzero()[0]) + 1
            got = f"{float(time[row]):g} after {float(time[row - 1]):g} at {_place(row, pointers)}"
            raise ValueError(f"{name}: expected times that never fall within a sample, which a window in seconds needs, got {got}")
    return time


def _warn_of_unit(time: Tensor, pointers: Pointers, name: str, scale: float | None, width: float | None) -> None:
    """Warns where most neighbouring steps are as far apart as those of milliseconds, and further than a window or a scale reaches.

    Only a CPU looks, and no graph that is recorded.
    """
    reach = width or scale
    if reach is None or time.device.type != "cpu" or is_traced() or is_transformed():
        return
    gap = time[1:] - time[:-1]
    inside = (gap > 0) & (pointers.sample[1:] == pointers.sample[:-1])
    inside = inside if pointers.packed else inside & pointers.real[1:] & pointers.real[:-1]
    if 2 * int((inside & (gap >= max(_SLOW, reach))).sum()) > int(inside.sum()):
        warnings.warn(
            f"{name}: the times are taken as seconds, and most steps are {_SLOW:g} s or more apart, slow for speech, faces or text and "
            f"beyond the {'window' if width else 'time_scale'} of {reach:g} s; if they are milliseconds, give t / 1e3",
            stacklevel=2,
        )


def read_times(
    timed: Iterable[str],
    given: Mapping[str, tuple[Tensor | None, str]],
    entered: Mapping[str, Entered],
    extractors: nn.ModuleDict,
    width: float | None,
) -> dict[str, Tensor]:
    """`read_time` for the modalities whose extractor places its steps in time, or all in a window of `width` seconds.

    It warns of times that can hardly be seconds.
    """
    found = {}
    for m in timed:
        placed = getattr(extractors[m], "positions", "steps") == "seconds"
        scale = getattr(extractors[m], "time_scale", None) if placed else None
        found[m] = read_time(given[m][0], entered[m], given[m][1], scale, width)
        _warn_of_unit(found[m], entered[m].pointers, given[m][1], scale, width)
    return found


def _place(row: int, pointers: Pointers) -> str:
    return f"step {int(pointers.position[row])} of sample {int(pointers.sample[row])}"


def strided_time(time: Tensor, entered: Entered, stride: int, name: str) -> Tensor:
    """The times of the steps that a stride keeps, without gaps."""
    pointers = entered.pointers
    kept = pointers.position % stride == 0
    return enter_time(time, entered, name)[kept if pointers.packed else kept & pointers.real]


def first_of_strides(time: Tensor, pointers: Pointers, stride: int) -> Tensor:
    """The times (N,) of the rows that a stride keeps, those of `pointers.strided(stride)`, gaps of a padded batch with them."""
    if stride == 1:
        return time
    if pointers.steps is not None:  # which rows these are need not be read from the data
        return time.unflatten(0, (pointers.num_samples, pointers.steps))[:, ::stride].flatten()
    return time[pointers.position % stride == 0]
