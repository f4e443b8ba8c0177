"""The Triton kernels of predictive attention, interpreted, against the reference in float64."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, Pointers, explain, predictive_attention
from mea_graph.ops.interval import triton as gpu
from mea_graph.ops.predictive import _OP
from mea_graph.ops.predictive import triton as backend

NAMES = ("query", "key", "value", "prior_query", "prior_key", "weight", "bias")
ROWS = NAMES[:5]
Layout = Callable[[str, tuple[int, ...]], Pointers]
Errors = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, float]]


class Case(NamedTuple):
    heads: int
    widths: tuple[int, int, int]  # of query, value, prior
    lengths: tuple[int, ...]
    mu: float = 0.25
    layout: str = "packed"
    bias: bool = True

    def tensors(self, rows: int) -> dict[str, Tensor | None]:
        """Slices of a wider projection, so that no tensor is contiguous."""
        query, value, prior = self.widths
        tensors: dict[str, Tensor | None] = {
            name: torch.randn(rows, 2, self.heads, width)[:, 1]
            for name, width in zip(ROWS, (query, query, value, prior, prior), strict=True)
        }
        heads = self.heads
        return tensors | {"weight": 0.3 * torch.randn(heads, heads, 3, 3), "bias": torch.randn(heads) if self.bias else None}


CASES = {
    "one step": Case(1, (4, 4, 4), (1,)),
    "three steps": Case(2, (4, 6, 5), (3, 0, 2)),
    "no step at all": Case(1, (4, 4, 4), (0, 0), layout="padded"),
    "63": Case(1, (8, 8, 8), (63,)),
    "65, padded": Case(2, (5, 5, 5), (65, 64), layout="padded"),
    "127, ragged": Case(1, (16, 24, 40), (127, 0, 65)),
    "scattered": Case(2, (5, 7, 5), (66, 2, 0, 5), layout="scattered"),
    "ten heads": Case(10, (4, 4, 4), (6,)),
    "five heads": Case(5, (6, 7, 6), (18,)),  # more than one program folds, as with ten heads, and too wide for halves in float32
    "wide": Case(4, (20, 20, 20), (20,)),  # 3 K D = 240
    "mu 0": Case(2, (5, 5, 5), (20,), mu=0.0),
    "mu 1": Case(2, (5, 5, 5), (20,), mu=1.0, bias=False),
}
SHIPPED = {
    "narrow": Case(2, (5, 5, 5), (66, 20)),
    "folded": Case(4, (12, 12, 12), (18,)),  # narrow heads, 3 K D = 144
    "wide": Case(2, (20, 20, 20), (34,)),
    "wide folded": Case(3, (20, 20, 20), (18,)),
    "widest": Case(1, (40, 40, 40), (18,)),
    "widest folded": Case(1, (64, 64, 64), (34,)),
    "a narrow prior of wide heads": Case(1, (40, 40, 3), (18,)),
}
HALF = {n: (CASES | SHIPPED)[n] for n in ("narrow", "folded", "widest folded", "five heads")}


def attend(tensors: dict[str, Tensor | None], pointers: Pointers, mu: float, grad: Tensor, name: str = "triton") -> dict[str, Tensor]:
    """The result, and the gradient of every tensor."""
    leaves = {n: t.detach().requires_grad_() for n, t in tensors.items() if t is not None}
    out = predictive_attention(**(tensors | leaves), pointers=pointers, mu=mu, backend=name)
    return {"result": out.detach()} | dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True))


def truth(tensors: dict[str, Tensor | None], pointers: Pointers, mu: float, grad: Tensor) -> dict[str, Tensor]:
    """The reference in float64, on rows whose gaps are zero."""
    gap = ~pointers.real[:, None, None]
    clean = {n: t if t is None else t.double().masked_fill(gap, 0) if n in ROWS else t.double() for n, t in tensors.items()}
    return attend(clean, pointers, mu, grad.double().masked_fill(gap, 0), "reference")


def spoil(x: Tensor, pointers: Pointers) -> Tensor:
    """Junk in the gaps."""
    junk = torch.tensor([torch.nan, torch.inf, 1e30], dtype=x.dtype).repeat(len(x))[: len(x)]
    return torch.where(pointers.real[:, None, None], x, junk[:, None, None])


def check_float32(case: Case, lay_out: Layout, errors: Errors) -> None:
    pointers = lay_out(case.layout, case.lengths)
    tensors = case.tensors(pointers.num_rows)
    grad = torch.randn_like(tensors["value"])
    dirty = {n: spoil(t, pointers) if n in ROWS and t is not None else t for n, t in tensors.items()}
    found = attend(dirty, pointers, case.mu, spoil(grad, pointers))
    # The bias's gradient is one number for a head, a sum of T^2 terms of both signs.
    bounds = dict.fromkeys(found, 2e-6) | {"bias": 1e-5}
    assert not {n: e for n, e in errors(found, truth(tensors, pointers, case.mu, grad)).items() if not e < bounds[n]}
    for name in ("result", *ROWS):
        assert not found[name][~pointers.real].any(), f"{name} is not zero in the gaps"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("coarse_tiles")
def test_equals_float64(case: Case, lay_out: Layout, errors: Errors) -> None:
    check_float32(case, lay_out, errors)


@pytest.mark.parametrize("table", ["HOPPER", "AMPERE"])
@pytest.mark.parametrize("case", SHIPPED.values(), ids=SHIPPED)
def test_equals_float64_in_the_tiles_that_ship(
    case: Case, table: str, monkeypatch: pytest.MonkeyPatch, lay_out: Layout, errors: Errors
) -> None:
    monkeypatch.setattr(gpu, "capability", lambda x: (9, 0) if table == "HOPPER" else (8, 0))
    check_float32(case, lay_out, errors)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("case", HALF.values(), ids=HALF)
def test_half_precision(case: Case, dtype: torch.dtype, bound: float, lay_out: Layout, errors: Errors) -> None:
    """Inputs of half precision with float32 weights, as autocast makes them. A few roundings of 2^-9 (bfloat16) or 2^-12 (float16)."""
    pointers = lay_out(case.layout, case.lengths)
    tensors = {n: t.to(dtype) if t is not None and n in ROWS else t for n, t in case.tensors(pointers.num_rows).items()}
    grad = torch.randn_like(tensors["value"])
    found = attend(tensors, pointers, case.mu, grad)
    assert [t.dtype for t in found.values()] == [dtype] * 6 + [torch.float32] * 2
    assert not {n: e for n, e in errors(found, truth(tensors, pointers, case.mu, grad)).items() if not e < bound}


@pytest.mark.usefixtures("coarse_tiles")
def test_small_gradients_do_not_vanish_in_float16(lay_out: Layout, errors: Errors) -> None:
    """Those of maps are products of two softmaxes of 256 steps, and of a gradient of 0.01."""
    case, pointers = Case(1, (5, 5, 5), ()), lay_out("packed", (256,))
    tensors = {n: t.half() if t is not None and n in ROWS else t for n, t in case.tensors(256).items()}
    grad = (0.01 * torch.randn(256, 1, 5)).half()
    found = attend(tensors, pointers, case.mu, grad)
    assert not {n: e for n, e in errors(found, truth(tensors, pointers, case.mu, grad)).items() if not e < 5e-3}


@pytest.mark.parametrize(
    ("prior", "query", "key"),
    [(False, 15.0, 10.0), (False, 15.0, -10.0), (True, 10.0, 5.0), (True, 10.0, -5.0)],
    ids=["inner, high", "inner, low", "outer, high", "outer, low"],
)
@pytest.mark.usefixtures("coarse_tiles")
def test_logits_whose_powers_of_two_no_float32_holds(prior: bool, query: float, key: float, lay_out: Layout, errors: Errors) -> None:
    """Of one sample beside an ordinary one. All its inner logits are near 300 or -300, or those of the prior are: sums without a maximum
    subtracted would be infinite, or zero. What is left are the roundings of numbers of that size."""
    case, pointers = Case(2, (4, 5, 4), (), mu=0.9), lay_out("packed", (11, 18))
    tensors = case.tensors(29)
    names = ("prior_query", "prior_key") if prior else ("query", "key")
    for name, much in zip(names, (query, key), strict=True):
        tensors[name] = tensors[name] * 0.3 + torch.cat([torch.full((11, 1, 1), much), torch.zeros(18, 1, 1)])
    if prior:
        tensors["weight"] = tensors["weight"].abs()
    grad = torch.randn_like(tensors["value"])
    found, expected = attend(tensors, pointers, case.mu, grad), truth(tensors, pointers, case.mu, grad)
    tail = {n: (f[11:], expected[n][11:]) for n, f in found.items() if n in ("result", *ROWS)}
    assert not {n: e for n, e in errors({n: t[0] for n, t in tail.items()}, {n: t[1] for n, t in tail.items()}).items() if not e < 2e-6}
    assert not {n: e for n, e in errors(found, expected).items() if not e < 1e-3}


def test_groups_of_heads_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch, lay_out: Layout) -> None:
    """They cut the sum over heads that is `prior_key`'s gradient: it must not be rounded otherwise in other company."""
    from triton.runtime.interpreter import InterpretedFunction

    from mea_graph.ops.predictive.triton_kernels import predictive_attention_bwd_key_kernel as kernel

    groups: list[int] = []

    def launch(self: InterpretedFunction, grid: tuple[int, ...]) -> Callable[..., None]:
        at = kernel.arg_names.index("groups")
        return lambda *args, **kwargs: groups.append(args[at]) if self is kernel else None

    monkeypatch.setattr(InterpretedFunction, "__getitem__", launch)
    for lengths in ((3,), (3,) * 600, (500,) * 40):
        tensors = Case(8, (6, 6, 5), ()).tensors(sum(lengths))  # too wide for the kernels that take each head for itself
        attend(tensors, lay_out("packed", lengths), 0.25, torch.zeros(sum(lengths), 8, 6))
    assert groups == [4, 4, 4]


def test_mixed_precision_is_computed_in_float32(lay_out: Layout, errors: Errors) -> None:
    torch.manual_seed(1)  # a draw whose gradient of the bias is not a small difference of large numbers
    case, pointers = Case(2, (4, 6, 5), ()), lay_out("packed", (3, 0, 1))
    tensors = case.tensors(4)
    tensors["key"], tensors["value"] = tensors["key"].bfloat16(), tensors["value"].half()
    grad = torch.randn_like(tensors["value"])
    found = attend(tensors, pointers, case.mu, grad)
    dtypes = {n: t.dtype for n, t in found.items() if t.dtype != torch.float32}
    assert dtypes == {"result": torch.float16, "key": torch.bfloat16, "value": torch.float16}
    # What has a dtype of half precision is rounded to it at the end; and the backward pass reads the result, which is rounded to float16.
    bounds = {torch.float32: 2**-11, torch.float16: 2**-11, torch.bfloat16: 2**-8}
    wrong = {n: e for n, e in errors(found, truth(tensors, pointers, case.mu, grad)).items() if not e < bounds[found[n].dtype]}
    assert not wrong


@pytest.mark.usefixtures("coarse_tiles")
def test_the_same_bits_on_every_run_and_in_any_company(lay_out: Layout) -> None:
    """A sample's result and gradients do not depend on gaps or on the other samples: not even in the last bit."""
    case, packed, padded = Case(1, (5, 5, 5), ()), lay_out("packed", (41, 70)), lay_out("padded", (41, 70))
    tensors, grad = case.tensors(111), torch.randn(111, 1, 5)
    first, second = (attend(tensors, packed, 0.25, grad) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)

    def spread(x: Tensor) -> Tensor:
        return torch.zeros(144, 1, 5).index_copy(0, padded.real.nonzero().squeeze(1), x)

    apart = attend({n: spread(t) if n in ROWS else t for n, t in tensors.items()}, padded, 0.25, spread(grad))
    assert all(torch.equal(apart[n][padded.real], first[n]) for n in ("result", *ROWS))
    alone = {n: t[:41] if n in ROWS else t for n, t in tensors.items()}
    single = attend(alone, lay_out("packed", (41,)), 0.25, grad[:41])
    assert all(torch.equal(single[n], first[n][:41]) for n in ("result", *ROWS))


@pytest.mark.usefixtures("checked_memory")
def test_no_wrong_address_and_no_race(lay_out: Layout) -> None:
    case, pointers = Case(2, (5, 7, 5), ()), lay_out("scattered", (66, 0, 2))
    attend(case.tensors(pointers.num_rows), pointers, 0.25, torch.randn(pointers.num_rows, 2, 7))


@pytest.mark.parametrize("lengths", [(), (0, 0)])
def test_empty_sizes_are_legal(lengths: tuple[int, ...], lay_out: Layout) -> None:
    case, pointers = Case(2, (4, 6, 5), ()), lay_out("packed", lengths)
    found = attend(case.tensors(0), pointers, 0.25, torch.randn(0, 2, 6))
    assert found["result"].shape == (0, 2, 6)
    assert not found["weight"].any()
    assert not found["bias"].any()


@pytest.mark.parametrize(("bias", "layout"), [(True, "packed"), (False, "padded")])
def test_the_operators_are_well_defined(bias: bool, layout: str, lay_out: Layout) -> None:
    pointers = lay_out(layout, (2,))
    plain = [t if t is None else t.detach() for t in Case(1, (4, 5, 4), (), bias=bias).tensors(pointers.num_rows).values()]
    rest = (pointers.start, pointers.length, pointers.max_length, pointers.packed, 0.25)
    leaves = [t if t is None else t.clone().requires_grad_() for t in plain]
    torch.library.opcheck(torch.ops.mea_graph.predictive_attention_triton.default, (*leaves, *rest))
    out, statistics = torch.ops.mea_graph.predictive_attention_triton(*plain, *rest)
    arguments = (torch.randn_like(out), out, statistics, *plain, *rest)
    torch.library.opcheck(torch.ops.mea_graph.predictive_attention_triton_backward.default, arguments)


STEPS = Pointers.from_ptr(torch.tensor([0, 3]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"edges": IntervalEdges.complete(STEPS, STEPS)}, None),
        ({"edges": IntervalEdges.window(STEPS, STEPS, steps=1)}, "the edges are a window"),
        ({"edges": torch.zeros(2, 1, dtype=torch.int64)}, "the edges are a list"),
        ({"query": torch.zeros(3, 2, 64)}, None),
        ({"prior_query": torch.zeros(3, 2, 42), "prior_key": torch.zeros(3, 2, 42)}, None),
        ({"prior_query": None, "prior_key": None, "weight": None}, "no prior"),
        ({"weight": torch.zeros(2, 2, 3, 3, dtype=torch.float64)}, "weight is float64; expected float32, bfloat16 or float16"),
        ({"query": torch.zeros(3, 2, 65)}, "a head is 65 wide, and the kernels hold at most 64"),
        ({"value": torch.zeros(3, 2, 128)}, "a head is 128 wide"),
        ({"prior_query": torch.zeros(3, 2, 43)}, "2 heads of 43 channels fold into 3 K D = 258, and the kernels hold at most 256"),
        ({"prior_query": torch.zeros(3, 2, 0)}, "no channels"),
        ({"query": torch.zeros(3, 2, 4, device="meta")}, "the tensors are on meta, not on cuda"),
        ({"value": torch.zeros(3, 2, 4, device="meta")}, "value is on meta, and the first of the tensors on cpu"),
        ({"query": torch.zeros(3, 2**16, 4)}, "there are 65536 heads, and a launch counts at most 65535"),
    ],
)
def test_says_why_it_cannot_run(change: dict[str, Any], reason: str | None) -> None:
    tensors = Case(2, (4, 4, 4), ()).tensors(3)
    said = backend.refuse(**(tensors | {"mu": 0.25, "pointers": STEPS, "edges": None} | change))
    assert (said is None) if reason is None else reason in str(said)


@pytest.mark.parametrize(("heads", "width", "backend"), [(8, 5, "triton"), (8, 16, "reference")])
def test_on_a_gpu_auto_takes_the_formula_where_no_kernel_holds_the_prior(heads: int, width: int, backend: str) -> None:
    """3 K D = 384. The blocks made for a CPU would launch thousands of kernels there, and wait for the device again and again."""
    arguments = Case(heads, (width, width, width), ()).tensors(3) | {"mu": 0.25, "pointers": STEPS, "edges": None}
    chosen, refused = _OP._automatic(torch.device("cuda"), arguments)
    assert chosen == backend
    assert refused["cpu"] == "taken only by name, because the tensors are on cuda"


def test_needs_a_gpu_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = Case(2, (4, 4, 4), ()).tensors(3) | {"mu": 0.25, "pointers": STEPS, "edges": None}
    monkeypatch.delenv("TRITON_INTERPRET")
    assert backend.refuse(**arguments) == "the tensors are on cpu, not on cuda"
    monkeypatch.setattr(gpu, "INSTALLED", False)
    assert backend.refuse(**arguments) == "triton is not installed"


def test_runs_when_asked_for_by_name() -> None:
    tensors = Case(2, (4, 4, 4), ()).tensors(3)
    assert explain(predictive_attention, **tensors, pointers=STEPS, backend="triton").chosen == "triton"
    found = predictive_attention(**tensors, pointers=STEPS, backend="triton")
    assert torch.equal(found, backend.run(**tensors, mu=0.25, pointers=STEPS, edges=None))
    assert explain(predictive_attention, **tensors, pointers=STEPS).chosen == "cpu"  # on the CPU, never of its own accord


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_second_derivatives_are_those_of_the_reference(layout: str, lay_out: Layout) -> None:
    pointers = lay_out(layout, (3, 0, 2))
    tensors = Case(2, (4, 3, 4), ()).tensors(pointers.num_rows)

    def second(name: str) -> tuple[Tensor, ...]:
        dtype = torch.float64 if name == "reference" else torch.float32
        leaves = {n: t.detach().to(dtype).requires_grad_() for n, t in tensors.items() if t is not None}
        out = predictive_attention(**leaves, pointers=pointers, backend=name)
        grads = torch.autograd.grad(out.square().sum(), list(leaves.values()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), list(leaves.values()))

    for found, expected in zip(second("triton"), second("reference"), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_programs_lie_on_the_first_axis_of_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at 2^31 - 1; the others at 65535, which 7,282 samples of 8 heads used to pass."""
    from triton.runtime.interpreter import InterpretedFunction

    grids: list[tuple[int, ...]] = []
    monkeypatch.setattr(InterpretedFunction, "__getitem__", lambda self, grid: lambda *args, **kwargs: grids.append(grid))
    attend(Case(2, (4, 4, 4), ()).tensors(3), STEPS, 0.25, torch.zeros(3, 2, 4))
    assert [len(grid) for grid in grids] == [1] * 8  # powers, fold and loop; powers, fold, two loops and unfold


def test_a_sample_too_long_for_its_addresses_is_refused() -> None:
    tensors = Case(2, (4, 4, 4), ()).tensors(3)
    with pytest.raises(ValueError, match="layout: expected samples of at most 4194304 steps on a GPU, got one of 4194305"):
        backend.run(**tensors, mu=0.25, pointers=Pointers.from_ptr(torch.tensor([0, 2**22 + 1])), edges=None)


def test_needs_no_triton_to_be_imported() -> None:
    code = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.split(".")[0] == "triton" else super().find_spec(name, *rest)

sys.meta_path[:] = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
import torch
from mea_graph.ops.predictive import triton
x = torch.zeros(1, 1, 4)
print(triton.refuse(x, x, x, x, x, torch.zeros(1, 1, 3, 3), None, 0.25, None, None))
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said == "triton is not installed\n"
