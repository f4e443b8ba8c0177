"""Loops in machine code: told apart by the source that they come from, whatever the compiler put between them."""

import re
import textwrap
from typing import Any

import pytest

from benchmarks import instructions

from . import compile_kernels

# As `nvdisasm -gi` prints it; the lines of a kernel that calls first() in a loop, and second() in a loop with one over channels in it.
LISTING = """
        //## File "/else/where/mea_graph/ops/kernels.py", line 31
                /*0000*/              @!P0 BRA `(.L_x_2) ;
        //## File "/else/where/mea_graph/ops/kernels.py", line 11 inlined at "/else/where/mea_graph/ops/kernels.py", line 32
        //## File "/else/where/mea_graph/ops/kernels.py", line 32
        .L_x_1:
                /*0010*/                   MUFU.EX2 R4, R4 ;
                /*0020*/                   IADD3 R0, R0, 0x20, RZ ;
                /*0030*/                   ISETP.GE.AND P1, PT, R0.reuse, R17, PT ;
                /*0040*/                   BRA.DIV ~URZ, `(.L_x_5) ;
        .L_x_4:
                /*0050*/                   NOP ;
                /*0060*/               @P1 CALL.REL.NOINC `(.L_x_2) ;
                /*0070*/                   BRA `(.L_x_1) ;
        //## File "/else/where/mea_graph/ops/kernels.py", line 21 inlined at "/else/where/mea_graph/ops/kernels.py", line 33
        //## File "/else/where/mea_graph/ops/kernels.py", line 33
        .L_x_2:
                /*0080*/                   MUFU.EX2 R5, R5 ;
                /*0090*/                   UIADD3 UR4, UR4, 0x20, URZ ;
                /*00a0*/                   VIADD R9, R9, 0x1000 ;
        .L_x_3:
                /*00b0*/                   HMMA.16816.F32 R8, R8, R10, R8 ;
                /*00c0*/                   IADD3 R6, P0, R6, 0x10, RZ ;
                /*00d0*/                   ISETP.GE.U32.AND P0, PT, R6, 0xf0, PT ;
                /*00e0*/              @!P0 BRA `(.L_x_3) ;
                /*00f0*/                   MUFU.EX2 R5, R5 ;
                /*0100*/                   ISETP.LE.AND P5, PT, R2, UR4, PT ;
                /*0110*/              @!P5 BRA `(.L_x_2) ;
                /*0120*/                   EXIT ;
        .L_x_5:
                /*0130*/                   SHFL.BFLY PT, R9, R9, 0x2, 0x1f ;
                /*0140*/                   BRA `(.L_x_4) ;
"""


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> list[compile_kernels.Instruction]:
    names = {11: "first", 21: "second", 31: "kernel", 32: "kernel", 33: "kernel"}
    monkeypatch.setattr(compile_kernels, "functions", lambda path: names)
    return compile_kernels.read(textwrap.dedent(LISTING))


def test_loops_are_told_apart(code: list[compile_kernels.Instruction]) -> None:
    """Threads that part are put behind the end and jump back: no loop ends there, though two begin before it."""
    assert compile_kernels.loops(code) == [
        {"depth": 0, "instructions": 6, "MUFU": 1, "products": 0, "functions": ["first", "kernel"], "steps": [0x20]},
        {"depth": 0, "instructions": 6, "MUFU": 2, "products": 0, "functions": ["kernel", "second"], "steps": [0x20]},
        {"depth": 1, "instructions": 4, "MUFU": 0, "products": 2048, "functions": ["kernel", "second"], "steps": [0x10]},
    ]


def test_what_cannot_be_told_is_refused(code: list[compile_kernels.Instruction]) -> None:
    computed = code[0]._replace(guard="", name="BRX", operands=" R2 -0x80 ", target=None)
    with pytest.raises(ValueError, match="BRX: no loop can be told"):
        compile_kernels.loops([computed, *code[1:]])
    entered_twice = [code[0]._replace(target=3), *code[1:]]  # into the middle of the first
    with pytest.raises(ValueError, match="entered in two places"):
        compile_kernels.loops(entered_twice)


def test_lines_of_the_package_are_known_by_their_function() -> None:
    path = "/another/copy/mea_graph/ops/predictive/triton_once.py"
    lines = compile_kernels.functions(path)
    assert {"tile", "fold_columns", "_times", "attend_once"} == set(lines.values())
    assert compile_kernels.functions("/elsewhere/triton/language/standard.py") == {}


def record(*loops: Any) -> dict[str, Any]:
    """A forward loop with a tile of 64 queries and 32 keys, of which a warp of four holds 16 exponentials a thread."""
    names = ("depth", "instructions", "MUFU", "functions", "steps", "products")
    kernel = {"kernel": "predictive_fwd", "dtype": "float32", "tiles": [64, 32, 16], "folded": 256, "warps": 4, "registers": 0}
    return kernel | {"stack": 0, "LDL": 0, "STL": 0, "loops": [dict(zip(names, (*loop, 0), strict=False)) for loop in loops]}


BOUNDED = [(0, 100, 16, ["_attend_bounded"], [32]), (0, 600, 48, ["_attend_bounded"], [32])]
ANY = [(0, 50, 20, ["_attend"], [32]), (0, 80, 50, ["_attend"], [32])]  # fewer, and yet not those that count
ONCE = (0, 400, 32, ["attend_once"], [32])


@pytest.mark.parametrize(
    ("loops", "expected"),
    [
        pytest.param([(0, 37, 0, ["_largest"], [512]), *BOUNDED, *ANY], [(100, 16), (600, 48)], id="bounded"),
        pytest.param([*ANY, *BOUNDED, ONCE], [(400, 32)], id="once"),
        pytest.param(ANY, [(50, 20), (80, 50)], id="any"),
        pytest.param([*ANY, (1, 10, 0, ["_attend"], [16])], [(50, 20), (240, 50)], id="channels"),
        pytest.param([*ANY, (1, 10, 0, ["_attend"], [1], 64 * 32 * 16 * 3 // 4)], [(50, 20), (240, 50)], id="channels-by-products"),
    ],
)
def test_the_pass_of_bounded_logits_counts(loops: list[Any], expected: list[tuple[int, int]]) -> None:
    assert instructions.tile_loops(record(*loops)) == expected
    assert instructions.slots(record(*loops)) == tuple(sum(n) / 16 for n in zip(*expected, strict=True))


@pytest.mark.parametrize(
    ("loops", "message"),
    [
        pytest.param([BOUNDED[0], *ANY], "_attend_bounded has 2 loops over tiles, and the machine code 1", id="one-is-missing"),
        pytest.param([(0, 100, 32, ["_attend"], [64]), ANY[1]], r"does not step by 32, its tile, but by \[64\]", id="unrolled"),
        pytest.param([*ANY, (1, 10, 0, ["_attend"], [32])], r"does not step by \[16\] channels", id="unrolled-channels"),
        pytest.param([(0, 37, 0, ["_largest"], [512])], "no loop over tiles comes from attend_once or", id="none"),
    ],
)
def test_loops_that_are_not_those_of_the_source_are_refused(loops: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instructions.slots(record(*loops))
    assert re.search(rf"\| not counted: predictive_fwd: .*{message}", instructions.table([record(*loops)]))


def test_float32_forward_on_ampere() -> None:
    """A hand count of the listing: 108 instructions for a tile to sum the inner softmax, 586 for the rest, 16 pairs a thread."""
    (row,) = instructions.compiled(80, "8x5", ["float32"], only="predictive_fwd")
    slots, special = instructions.slots(row)
    assert special == 4  # an exponential for the sum; then both softmaxes and the error function
    assert slots == pytest.approx((108 + 586) / 16, rel=0.05)
