"""The tiles of predictive attention, for every size of heads that the kernels accept."""

import itertools

import pytest
import torch

from mea_graph.ops.predictive import triton_tiles
from mea_graph.ops.predictive.triton import _BLOCK, _WIDEST_FOLDED
from mea_graph.ops.predictive.triton_tiles import HALF_WIDTH, cut

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = [(width, folded) for width in (16, 32, 64) for folded in (32, 64, 128, 256) if folded >= 2 * width]
SIZES = [*itertools.product(DTYPES, WIDTHS), *((torch.float32, (HALF_WIDTH, folded)) for folded in (16, 32, 64, 128))]


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("spare", [True, False])
def test_tiles_fit_each_other_and_the_copies(capability: tuple[int, int], spare: bool) -> None:
    assert _WIDEST_FOLDED == 256
    for dtype, (width, folded) in SIZES:
        tiles = {loop: cut(capability, loop, dtype, width, folded, spare) for loop in ("forward", "query", "key")}
        # The loop over queries leaves numbers in whole tiles, and the loop over keys reads whole tiles of them.
        assert tiles["key"].rows <= tiles["query"].rows, (dtype, width, folded)
        for loop, t in tiles.items():
            assert _BLOCK % t.rows == _BLOCK % t.columns == folded % t.chunk == 0, (loop, dtype, width, folded)
            assert t.chunk >= 16, (loop, dtype, width, folded)
            assert t.parts == 1 or (loop == "key" and t.chunk < folded and folded // t.parts >= 16), (loop, dtype, width, folded)


def test_every_tile_is_used() -> None:
    used = set()
    for capability, spare, (dtype, (width, folded)) in itertools.product(((8, 0), (9, 0)), (True, False), SIZES):
        for loop in ("forward", "query", "key"):
            used.add((capability, loop, cut(capability, loop, dtype, width, folded, spare)._replace(chunk=0)))
    for capability, table in (((8, 0), triton_tiles.AMPERE), ((9, 0), triton_tiles.HOPPER)):
        for (loop, kind, size), tiles in table.items():
            assert (capability, loop, tiles._replace(chunk=0)) in used, f"{capability}: no size of heads takes {loop}, {kind}, {size}"


def test_no_loop_in_tf32_takes_the_warp_group_instructions_of_hopper() -> None:
    """They take 64 rows of a product, and four warps. On an H200 a forward loop with them read out of bounds."""
    for spare, (width, folded) in itertools.product((True, False), WIDTHS):
        tiles = {loop: cut((9, 0), loop, torch.float32, width, folded, spare) for loop in ("forward", "query", "key")}
        for loop, t in tiles.items():
            assert t.warps % 4 or max(t.rows, t.columns) < 64, (loop, width, folded)


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_warps_of_narrow_heads_share_no_rows(capability: tuple[int, int]) -> None:
    """A warp takes 16 rows of a product: of fewer for each, several warps would compute the same exponentials."""
    narrow = [(dtype, sizes) for dtype, sizes in SIZES if sizes[0] <= 16 and sizes[1] <= 128]
    for spare, (dtype, (width, folded)), loop in itertools.product((True, False), narrow, ("forward", "query", "key")):
        t = cut(capability, loop, dtype, width, folded, spare)
        exempt = (capability, loop, dtype, width) == ((8, 0), "key", torch.float32, 16)  # with two warps it spills
        assert exempt or (t.columns if loop == "key" else t.rows) >= 16 * t.warps, (loop, dtype, width, folded)
