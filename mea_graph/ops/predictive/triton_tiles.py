"""How the loops of predictive attention are cut into tiles on NVIDIA GPUs, by their generation, the precision and the sizes of heads."""

from typing import NamedTuple

import torch

HALF_WIDTH = 8  # channels of a group in the narrow copies of halves
POWER_ROWS = 32  # steps of a turn of the loop that finds the powers of two of halves
FOLD_HEADS = 4  # of a program that folds: they share what the taps read. With all heads in one, a single sample would have few programs
ALL_REGISTERS = 255  # of a thread; of its own the compiler takes 168 or fewer for some sizes, and spills


class Tiles(NamedTuple):
    """How a loop is cut."""

    rows: int  # queries
    columns: int  # keys
    chunk: int  # channels of the folded width that are multiplied at once
    warps: int
    stages: int
    parts: int = 1  # launches, each with so many of the folded channels in its gradient (key loop)
    registers: int | None = None  # of a thread at most; None: as many as the compiler likes


# By loop, precision and size. Sizes of heads of at most 16 channels: "narrow", with a folded width 3 K D of at most 128; "spare", such
# heads with spare channels; "folded", with a wider prior; "halves", float32 cut into halves (see `halves`). Of other heads: "wide", with at
# most 32 channels, and "widest"; with a folded width above 128 also "wide folded" and "widest folded". A size that is not there is cut as
# the next wider kind, "float16" as "half". Chosen so that nothing spills with Triton 3.9, and so that shared
# memory stays below 99 KiB, what a block may have on the smallest GPUs (sm_86, sm_89, sm_120): see tests/ops/triton/test_compiled.py.
# A warp has 16 rows of its own (in the key loop: keys): of a tile with fewer than 16 for each, several warps compute the same.
# In float32 the forward loop has two warps on Hopper: with four and 64 rows, which take its warp-group instructions, Triton 3.6 makes a
# kernel whose results are wrong on an H200 (8 heads of 5 channels) or that reads out of bounds (4 heads of 20, in TF32). So no loop in TF32
# takes them.
HOPPER = {
    ("forward", "half", "narrow"): Tiles(64, 64, 128, 4, 2, registers=168),
    ("forward", "half", "folded"): Tiles(64, 32, 256, 4, 2),
    ("forward", "half", "wide"): Tiles(64, 32, 64, 4, 2),
    ("forward", "float", "halves"): Tiles(64, 16, 128, 2, 2, registers=ALL_REGISTERS),
    ("forward", "float", "narrow"): Tiles(64, 32, 32, 2, 1, registers=ALL_REGISTERS),
    ("forward", "float", "wide"): Tiles(64, 32, 32, 2, 1, registers=ALL_REGISTERS),
    ("forward", "float", "widest"): Tiles(64, 16, 32, 2, 1, registers=ALL_REGISTERS),
    ("query", "half", "narrow"): Tiles(128, 32, 128, 8, 2),
    ("query", "half", "spare"): Tiles(128, 64, 128, 8, 2),
    ("query", "half", "folded"): Tiles(64, 16, 256, 4, 1),
    ("query", "float16", "folded"): Tiles(64, 16, 32, 4, 1),
    ("query", "half", "wide"): Tiles(32, 16, 64, 4, 1, registers=ALL_REGISTERS),
    ("query", "half", "widest"): Tiles(32, 16, 64, 4, 1, registers=ALL_REGISTERS),
    ("query", "float", "halves"): Tiles(64, 16, 128, 4, 1),
    ("query", "float", "narrow"): Tiles(32, 16, 32, 2, 2, registers=ALL_REGISTERS),
    ("query", "float", "spare"): Tiles(32, 16, 16, 2, 1, registers=ALL_REGISTERS),
    ("query", "float", "wide"): Tiles(32, 16, 32, 4, 1, registers=ALL_REGISTERS),
    ("query", "float", "widest folded"): Tiles(32, 16, 64, 8, 1, registers=ALL_REGISTERS),
    ("key", "half", "narrow"): Tiles(32, 64, 128, 4, 1),
    ("key", "half", "folded"): Tiles(32, 64, 64, 4, 1, parts=2),
    ("key", "half", "wide"): Tiles(16, 32, 32, 4, 1, registers=ALL_REGISTERS),
    ("key", "half", "widest"): Tiles(16, 32, 16, 4, 1, registers=ALL_REGISTERS),
    ("key", "float", "halves"): Tiles(16, 64, 128, 4, 1),
    ("key", "float", "narrow"): Tiles(16, 32, 64, 2, 1, registers=ALL_REGISTERS),
    ("key", "float", "wide"): Tiles(32, 16, 64, 4, 1, registers=ALL_REGISTERS),
    ("key", "float", "widest folded"): Tiles(32, 16, 128, 4, 1, registers=ALL_REGISTERS),
}
AMPERE = HOPPER | {
    ("forward", "float", "halves"): Tiles(64, 32, 128, 4, 2),
    ("forward", "float", "narrow"): Tiles(64, 32, 32, 4, 2),
    ("forward", "float", "wide"): Tiles(64, 16, 32, 4, 1, registers=ALL_REGISTERS),
    ("forward", "float", "widest"): Tiles(64, 16, 32, 4, 1, registers=ALL_REGISTERS),
    ("query", "float", "halves"): Tiles(32, 16, 128, 2, 2, registers=ALL_REGISTERS),
    ("query", "float", "narrow"): HOPPER["query", "float", "spare"],
    ("query", "half", "narrow"): Tiles(32, 32, 128, 2, 2),
    ("query", "half", "spare"): Tiles(32, 32, 128, 2, 2),
    ("key", "float", "halves"): Tiles(16, 32, 128, 2, 2, registers=ALL_REGISTERS),
    ("key", "float", "narrow"): Tiles(32, 16, 32, 4, 1, registers=ALL_REGISTERS),
    ("query", "half", "folded"): Tiles(32, 16, 64, 4, 1),
    ("query", "float16", "folded"): Tiles(32, 16, 64, 4, 1),
    ("key", "half", "narrow"): Tiles(32, 32, 128, 2, 2),
    ("key", "half", "folded"): HOPPER["key", "half", "wide"],  # in two parts it would need more
    ("key", "half", "widest"): HOPPER["key", "half", "wide"],
    ("key", "float", "widest"): Tiles(32, 16, 16, 4, 1, registers=ALL_REGISTERS),
    ("key", "float", "wide folded"): Tiles(32, 16, 16, 4, 1, registers=ALL_REGISTERS),
    ("key", "float", "widest folded"): Tiles(32, 16, 64, 8, 2, registers=ALL_REGISTERS),
}


def cut(capability: tuple[int, int], loop: str, dtype: torch.dtype, width: int, folded: int, spare: bool) -> Tiles:
    """The tiles of a loop, for heads and a folded width of so many channels, padding included."""
    table = HOPPER if capability >= (9, 0) else AMPERE
    exact = dtype == torch.float32
    kinds = ("float",) if exact else ("float16", "half") if dtype == torch.float16 else ("half",)
    tiles = next(table[loop, k, s] for s in _sizes(exact, width, folded, spare) for k in kinds if (loop, k, s) in table)
    # In float32 wide heads take at least two chunks: of one, the compiler would keep the parts of the whole operand in registers.
    return tiles._replace(chunk=min(tiles.chunk, folded // 2 if exact and width > 16 else folded))


def _sizes(exact: bool, width: int, folded: int, spare: bool) -> tuple[str, ...]:
    """The sizes under which the tiles may stand in a table, the first one first."""
    if exact and width <= HALF_WIDTH:
        return ("halves",)
    if width <= 16:
        return ("folded", "wide") if folded > 128 else ("spare", "narrow") if spare else ("narrow",)
    sizes = ("widest", "wide") if width > 32 else ("wide",)
    return (f"{sizes[0]} folded", *sizes) if folded > 128 else sizes


def halves(dtype: torch.dtype, width: int, folded: int) -> bool:
    """Whether float32 is computed as halves in float16 (see triton_halves_fold.py): for narrow heads, whose three parts fit 15 channels."""
    return dtype == torch.float32 and width <= 5 and folded <= 128


def fold_rows(dtype: torch.dtype, width: int, folded: int) -> int:
    """Steps of a program that folds. What the taps read stays in registers: float32 takes twice as many, and wide copies take more."""
    return 16 if dtype == torch.float32 or folded < 4 * width else 32
