"""The bounds on paper count what the kernels are written to do, and the page of the kernels shows those very bounds."""

import ast
from pathlib import Path

import pytest
import torch

from benchmarks import cases, gpu_check_ops, measure, report, roofline
from mea_graph.ops.predictive import triton as launcher

KERNELS, HALVES = (
    [ast.parse((Path(launcher.__file__).parent / f"triton_{name}.py").read_text(encoding="utf-8")) for name in (file, "once", "gelu")]
    for file in ("kernels", "halves")
)
NAMES = {  # the loops that bounded logits take; in half precision, `attend_once` forward
    "forward": "_attend_bounded",
    "query": "predictive_attention_bwd_query_kernel",
    "key": "predictive_attention_bwd_key_kernel",
}


def _innermost(node: ast.AST) -> list[ast.For]:
    loops = [n for n in ast.walk(node) if isinstance(n, ast.For)]
    return [n for n in loops if not any(isinstance(m, ast.For) for m in ast.walk(n) if m is not n)]


def _calls(statements: list[ast.stmt], exact: bool) -> list[ast.Call]:
    """Of loop bodies, in float32 (`exact`) or half precision; of other branches, those of the first: both compute the same."""
    found: list[ast.Call] = []
    for statement in statements:
        if not isinstance(statement, ast.If):
            found += [n for n in ast.walk(statement) if isinstance(n, ast.Call)]
        elif ast.unparse(statement.test) != "EXACT":
            found += _calls(statement.body, exact)
        elif exact:  # returns at its end
            return found + _calls(statement.body, exact)
    return found


def _function(name: str, kernels: list[ast.Module] = KERNELS) -> ast.FunctionDef:
    return next(n for tree in kernels for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)


def _exponentials(calls: list[ast.Call], exact: bool) -> int:
    total = 0
    for call in calls:
        name = ast.unparse(call.func)
        if name == "tl.exp2":
            total += 1
        elif name in ("gelu", "gelu_and_slope", "_normal_tail", "_normal_below"):
            total += _exponentials(_calls(_function(name).body, exact), exact)
    return total


@pytest.mark.parametrize("loop", roofline.LOOPS)
@pytest.mark.parametrize("exact", [False, True])
def test_products_and_exponentials_are_those_of_the_kernel(loop, exact):
    name = "attend_once" if loop == "forward" and not exact else NAMES[loop]
    calls = [c for body in _innermost(_function(name)) for c in _calls(body.body, exact)]
    products = [ast.unparse(c) for c in calls if ast.unparse(c.func) in ("dot", "add_dot", "_folded_dot")]
    # The folded operands are of width 3 K D, all others of a head's.
    folded = [p for p in products if "folded" in p]
    counted = roofline.LOOPS[loop]
    assert (len(products) - len(folded), len(folded)) == (counted.float_products if exact else counted.half_products, counted.folded)
    assert _exponentials(calls, exact) == (counted.float_exponentials if exact else counted.half_exponentials)


@pytest.mark.parametrize("loop", roofline.LOOPS)
def test_products_and_exponentials_of_halves_are_those_of_the_kernel(loop):
    calls = [c for body in _innermost(_function(NAMES[loop], HALVES)) for c in _calls(body.body, True)]

    def products(*names):
        called = [ast.unparse(c.func) for c in calls if ast.unparse(c.func) in names]
        return sum(ast.unparse(_function(name, HALVES)).count("tl.dot(") for name in called)

    counted = roofline.HALVES[loop]
    assert [ast.unparse(c.func) for c in calls].count("tl.dot") == counted.four
    assert products("_add_parts") == counted.parts
    assert products("_folded_dot", "_add_folded") == counted.folded
    assert _exponentials(calls, True) == counted.exponentials


def test_work_by_hand():
    kernels = {k.kernel: k for k in roofline.work([128], 128, heads=8, width=5, dtype=torch.bfloat16)}
    pairs = 8 * 128 * 128
    assert kernels["forward loop"].useful == pairs * 2 * (2 * 5 + 120)
    assert kernels["forward loop"].executed == pairs * 2 * (5 * 16 + 128)
    assert kernels["forward loop"].exponentials == 2 * pairs
    assert kernels["key loop"].exponentials == 3 * pairs
    assert kernels["key loop"].slots == roofline.LOOPS["key"].half_slots * pairs
    copies = 8 * 128 * (3 * 16 + 128) * 2 + 128 * 128 * 2
    assert kernels["fold"].bytes == 5 * 8 * 128 * 5 * 2 + copies
    assert kernels["forward loop"].bytes == copies + 8 * 128 * 5 * 2 + 2 * 8 * 128 * 4
    assert kernels["forward loop"].l2 == kernels["forward loop"].bytes + 2 * 8 * 128 * (2 * 16 + 128) * 2  # two tiles of queries
    assert kernels["query loop"].bytes == copies + 8 * 128 * (16 * 2 + 5 * 2 + 2 * 4 + 128 * 2)  # dO, dq, two numbers a row
    assert kernels["query loop"].l2 == kernels["query loop"].bytes + 8 * 128 * (2 * 16 + 128) * 2  # one tile
    assert kernels["key loop"].l2 == kernels["key loop"].bytes + 2 * 8 * 128 * ((2 * 16 + 128) * 2 + 8)  # two numbers a row
    fold = roofline.FOLDS["half"]
    assert kernels["fold"].slots == (fold.key + 2 * fold.group + 8 * fold.head) * 128 * 4  # 128 threads; 4 blocks, 2 groups of 4 heads
    assert kernels["unfold"].slots == roofline.UNFOLDS[0] * 64 * 8  # 64 threads, 8 blocks


def test_a_key_loop_in_two_parts_computes_its_maps_twice():
    narrow, wide = ({k.kernel: k for k in roofline.work([128], 128, 8, width, torch.bfloat16)} for width in (5, 8))
    pairs = 8 * 128 * 128
    assert wide["key loop"].executed == pairs * 2 * (6 * 16 + 3 * 256)  # each gradient once
    assert wide["key loop"].exponentials == 2 * narrow["key loop"].exponentials
    assert wide["key loop"].slots == 2 * narrow["key loop"].slots
    assert wide["query loop"].executed == pairs * 2 * (4 * 16 + 2 * 256)


def _forward_loop(heads, width, dtype):
    return next(k for k in roofline.work([64, 10], 64, heads, width, dtype) if k.kernel == "forward loop")


def test_float32_executes_three_products_and_padding_nothing():
    half, exact = (_forward_loop(8, 5, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert half.useful == exact.useful == 8 * (64**2 + 10**2) * 260
    assert exact.executed == 8 * (64 * 64 + 64 * 16) * 2 * (2 * 32 + 3 * 16 + 3 * 128)  # tiles of 64 x 16
    assert half.executed == 8 * 2 * 64 * 64 * 416
    assert not exact.tf32
    wider = _forward_loop(4, 10, torch.float32)  # for whose channels a copy of halves has no room
    assert wider.executed == 3 * 4 * (64 * 64 + 64 * 32) * 352  # tiles of 64 x 32
    assert wider.tf32


def test_no_unit_is_faster_than_the_bound():
    device, kernels = roofline.DEVICES["H200"], roofline.work([500] * 32, 500, 8, 5, torch.bfloat16)
    least = roofline.bound(kernels, device)
    times = [k.seconds(device) for k in kernels]
    assert all(least >= sum(t[unit] for t in times) for unit in times[0])
    assert roofline.achieved(kernels, "NVIDIA H200", 2 * least) == {"bound": least, "share": 0.5}
    assert roofline.achieved(kernels, "some other GPU", 1.0) is None


def test_the_gpu_check_stores_the_share_and_the_report_shows_it(monkeypatch):
    monkeypatch.setattr(measure, "device_name", lambda: "NVIDIA H200")
    case = cases.predictive(2, 9, [9, 4])
    found = gpu_check_ops.share(case, 1e-3, "cuda")["roofline"]
    assert found["share"] == found["bound"] / 1e-3 > 0
    lines = report._roofline([{"case": "attention", "dtype": "float32", "roofline": {"bound": 2e-4, "share": 0.25}}, {"case": "edges"}])
    assert lines[2:] == ["| attention, float32 | 200 µs | 25% |", ""]
    assert gpu_check_ops.share(cases.crossing(1, [3], [[2]], [3, 2]), 1e-3, "cuda") == {}


def test_the_page_of_the_kernels_shows_these_bounds():
    page = (report.PAGE.parent / "kernels.md").read_text(encoding="utf-8")
    assert roofline.table() in page
    assert "## Bounds on paper" in page  # the report links to it
