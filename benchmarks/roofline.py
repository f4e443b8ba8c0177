"""What the Triton kernels of predictive attention must compute and move, and the least time that takes: `python -m benchmarks.roofline`.

Counted by kernel, for every pair of a query and a key of a head, as `triton_kernels.py` is written: heads of D channels run as max(16, D)
rounded up to a power of two, the folded width 3 K D likewise, lengths as whole tiles, and a product in float32 as three: of halves for
heads of up to 5 channels, as `triton_halves.py` is written, and in TF32 for others. Issue slots are those of the machine code for sm_90,
which `benchmarks.instructions` reads, of 8 heads of 5 channels; other shapes are taken to need as many. A kernel takes no less than its
busiest unit does, and the kernels run one after the other. What goes through the L2 cache is counted, not bounded: its maker states no rate
for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mea_graph.ops.predictive.triton import _BLOCK as BLOCK
from mea_graph.ops.predictive.triton import _GROUPS as GROUPS
from mea_graph.ops.predictive.triton import _UNFOLD_ROWS as UNFOLD_ROWS
from mea_graph.ops.predictive.triton import warps
from mea_graph.ops.predictive.triton_tiles import FOLD_HEADS, HALF_WIDTH, POWER_ROWS, Tiles, cut, fold_rows, halves


class Device(NamedTuple):
    """Operations and bytes a second that a GPU's maker promises."""

    half: float  # FLOPs of dense bfloat16 products
    tf32: float
    special: float  # exponentials
    issue: float  # instructions of a thread
    memory: float


def _hopper(memory: float) -> Device:
    """NVIDIA's data sheets of H100 and H200 SXM. An SM is taken to do 16 special functions a clock, and to issue for 4 warps."""
    sms, clock = 132, 1.98e9
    return Device(989.4e12, 494.7e12, 16 * sms * clock, 128 * sms * clock, memory)


DEVICES = {"H200": _hopper(4.8e12), "H100 80GB HBM3": _hopper(3.35e12)}


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _padded(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


class Loop(NamedTuple):
    """A loop's work for one pair: products over D that the formula has, and that are executed in half precision and in float32; those over
    the folded width; exponentials, then issue slots, in bfloat16 and in float32."""

    products: int
    half_products: int
    float_products: int
    folded: int
    half_exponentials: int
    float_exponentials: int
    half_slots: float
    float_slots: float


LOOPS = {
    "forward": Loop(2, 5, 3, 1, 2, 4, 19.7, 79.2),
    "query": Loop(4, 4, 4, 2, 3, 4, 26.2, 147.1),
    "key": Loop(4, 4, 4, 2, 3, 4, 28.9, 165.4),
}


class Halves(NamedTuple):
    """Products in half precision that a loop of float32 takes for a pair: over four groups of channels, over three parts of a head (16
    channels), and over the folded width; exponentials and issue slots."""

    four: int
    parts: int
    folded: int
    exponentials: int
    slots: float


HALVES = {"forward": Halves(2, 3, 3, 4, 41.0), "query": Halves(2, 6, 6, 4, 72.8), "key": Halves(2, 6, 6, 4, 77.6)}
TWO_PASSES = LOOPS["forward"]._replace(half_products=3, half_exponentials=3, half_slots=20.1)  # where the folded width is cut


class Fold(NamedTuple):
    """Instructions of a thread that folds: a program of the folded keys, one of a group of heads, and each head more."""

    key: int
    group: int
    head: int

    def slots(self, programs: int, heads: int) -> int:
        """For so many blocks of steps."""
        return programs * (self.key + -(-heads // FOLD_HEADS) * self.group + heads * self.head)


# Backward; the forward pass folds with a little less.
FOLDS = {"half": Fold(569, 1175, 413), "float": Fold(299, 618, 228), "halves": Fold(543, 787, 398)}
UNFOLDS, POWERS = (12550, 10905), 224  # in bfloat16 and in float32; the loop over steps that finds the powers of two of halves


class Work(NamedTuple):
    """Of one kernel: FLOPs that the formula has, FLOPs that tensor cores execute, exponentials, issue slots, bytes of memory and of L2."""

    kernel: str
    useful: float
    executed: float
    exponentials: float
    slots: float
    bytes: float
    l2: float
    tf32: bool = False  # what the tensor cores execute; otherwise half precision

    def seconds(self, device: Device) -> dict[str, float]:
        """The least seconds of each unit."""
        flops = device.tf32 if self.tf32 else device.half
        times = (self.executed / flops, self.exponentials / device.special, self.slots / device.issue, self.bytes / device.memory)
        return dict(zip(("tensor cores", "exponentials", "issue slots", "memory"), times, strict=True))


def work(lengths: Sequence[int], longest: int, heads: int, width: int, dtype: torch.dtype) -> list[Work]:
    """Every kernel of a forward and a backward pass, on samples of these lengths in a batch padded to `longest`.

    Of memory, each kernel reads and writes a tensor once. Of L2, it reads one as often as its programs do.
    """
    exact = dtype == torch.float32
    size, folded_size = (4, 4) if exact else (2, 2)
    wide, folded = _padded(width), _padded(3 * heads * width)
    pairs = heads * sum(n * n for n in lengths)
    steps = heads * sum(lengths)
    copied = heads * sum(_up(n, BLOCK) for n in lengths)  # rows of the aligned copies
    tensor = steps * width * size
    cut_up = halves(dtype, width, folded)
    copies = copied * (3 * wide + folded) * size + copied // heads * folded * size
    copies_grad = copies + copied * wide * size
    if cut_up:  # rows of 64 bytes, and of 32 for values; backward, 32 more for each of query, key and gradient
        copies, copies_grad = copies - copied * 32, copies_grad + copied * 96
    row = 4 * steps  # a float32 a row
    spare = dtype != torch.float16 and wide - width > 2
    tiles = {name: cut((9, 0), name, dtype, HALF_WIDTH if cut_up else wide, folded, spare) for name in LOOPS}
    groups = heads if cut_up else min(heads, GROUPS)
    query_grad, key_grad = copied * folded * folded_size, copied // heads * groups * folded * 4
    parts = 4 * 9 * heads * _padded(heads * width) * len(lengths) * -(-longest // UNFOLD_ROWS)
    fold = FOLDS["halves" if cut_up else "float" if exact else "half"]
    fold_slots = 32 * warps(max(folded, wide)) * fold.slots(copied // heads // fold_rows(dtype, wide, folded), heads)
    unfold_slots = UNFOLDS[exact] * heads / 8 * 32 * warps(_padded(heads * width)) * sum(-(-n // UNFOLD_ROWS) for n in lengths)
    folded_grads = query_grad + key_grad  # each row is read three times: for its own step and for those beside it
    taps = 3 * (-(-heads // FOLD_HEADS) + 1) * tensor  # every program reads three steps of all heads
    numbers = 3 if cut_up else 2  # statistics of a row, read or written
    moved = {
        "forward": copies + tensor + 2 * row,
        "query": copies_grad + numbers * row + query_grad + tensor,
        "key": copies_grad + numbers * row + 2 * tensor + key_grad,
    }
    loops = {name: _loop(name, pairs, lengths, heads, width, (wide, folded), tiles[name], exact, moved[name]) for name in LOOPS}
    power_slots = POWERS * 128 * heads * sum(-(-n // POWER_ROWS) for n in lengths)
    powers = [Work(name, 0, 0, 0, power_slots, n * tensor, n * tensor) for name, n in (("powers", 5), ("powers, backward", 6)) if cut_up]
    rows = 4 * row if cut_up else row  # two statistics are copied, or one is read
    return [
        *powers[:1],
        Work("fold", 0, 0, 0, fold_slots, 5 * tensor + copies, 3 * tensor + taps + copies),
        loops["forward"],
        *powers[1:],
        Work("fold, backward", 0, 0, 0, fold_slots, 7 * tensor + rows + copies_grad, 5 * tensor + rows + taps + copies_grad),
        loops["query"],
        loops["key"],
        Work("unfold", 0, 0, 0, unfold_slots, 3 * tensor + folded_grads + 2 * parts, 5 * tensor + 3 * folded_grads + 2 * parts),
    ]


def _loop(
    name: str,
    pairs: int,
    lengths: Sequence[int],
    heads: int,
    width: int,
    padded: tuple[int, int],
    tiles: Tiles,
    exact: bool,
    moved: float,
) -> Work:
    wide, folded = padded
    twice = name == "forward" and (exact or tiles.chunk < folded)  # it reads the keys in each of two passes
    loop = TWO_PASSES if twice else LOOPS[name]
    computed = heads * sum(_up(n, tiles.rows) * _up(n, tiles.columns) for n in lengths)
    useful = 2 * pairs * (loop.products * width + loop.folded * 3 * heads * width)
    again = tiles.parts - 1  # launches that compute the maps anew, but sum other gradients
    products = loop.float_products if exact else loop.half_products
    channels = (products + 2 * again) * wide + (loop.folded + again) * folded
    executed = 2 * computed * channels * (3 if exact else 1)
    computed *= tiles.parts
    exponentials, slots = (loop.float_exponentials, loop.float_slots) if exact else (loop.half_exponentials, loop.half_slots)
    read = (3 if twice else 2) * wide + folded  # channels, for each key of a tile of queries; the key loop has them swapped
    tiles_read = computed / (tiles.columns if name == "key" else tiles.rows)
    in_halves = exact and halves(torch.float32, width, folded)
    if in_halves:
        form = HALVES[name]
        executed = 2 * computed * (form.four * 4 * HALF_WIDTH + form.parts * 16 + form.folded * folded)
        exponentials, slots = form.exponentials, form.slots
    l2 = moved + tiles_read * (read * (4 if exact else 2) + (4 * (3 if in_halves else 2) if name == "key" else 0))
    return Work(f"{name} loop", useful, executed, computed * exponentials, computed * slots, moved, l2, exact and not in_halves)


def bound(kernels: Sequence[Work], device: Device) -> float:
    """The least seconds, forward and backward."""
    return sum(max(kernel.seconds(device).values()) for kernel in kernels)


def known(name: str) -> Device | None:
    """Looks a GPU up by torch's name for it; None if its figures are not in the table."""
    return next((device for part, device in DEVICES.items() if part in name), None)


def achieved(kernels: Sequence[Work], name: str, seconds: float) -> dict[str, float] | None:
    """What goes into a result: the bound, and its share of the time taken."""
    device = known(name)
    if device is None:
        return None
    least = bound(kernels, device)
    return {"bound": least, "share": least / seconds}


def table(name: str = "H200", batch: int = 32, longest: int = 500, heads: int = 8, width: int = 5) -> str:
    """The bound by kernel, in Markdown."""
    lines = [
        "| Kernel | dtype | useful GFLOP | executed GFLOP | exponentials, 1e6 | issue slots, 1e9 | MB | MB of L2 | bound, us | by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for dtype, label in ((torch.bfloat16, "bfloat16"), (torch.float32, "float32")):
        kernels = work([longest] * batch, longest, heads, width, dtype)
        for k in kernels:
            times = k.seconds(DEVICES[name])
            unit = max(times, key=lambda u: times[u])
            numbers = f"{k.useful / 1e9:.1f} | {k.executed / 1e9:.1f} | {k.exponentials / 1e6:.0f} | {k.slots / 1e9:.2f}"
            numbers += f" | {k.bytes / 1e6:.0f} | {k.l2 / 1e6:.0f}"
            lines.append(f"| {k.kernel} | {label} | {numbers} | {1e6 * times[unit]:.0f} | {unit} |")
        whole = 1e6 * bound(kernels, DEVICES[name])
        numbers = f"{sum(k.useful for k in kernels) / 1e9:.1f} | {sum(k.executed for k in kernels) / 1e9:.1f}"
        numbers += f" | {sum(k.exponentials for k in kernels) / 1e6:.0f} | {sum(k.slots for k in kernels) / 1e9:.2f}"
        numbers += f" | {sum(k.bytes for k in kernels) / 1e6:.0f} | {sum(k.l2 for k in kernels) / 1e6:.0f}"
        lines.append(f"| **sum** | {label} | {numbers} | **{whole:.0f}** | |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
