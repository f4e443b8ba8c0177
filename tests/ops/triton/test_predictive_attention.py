"""The Triton kernels of predictive attention, interpreted, against the reference in float64."""

import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mea_graph.ops import explain, predictive_attention
from mea_graph.ops.predictive_attention import reference
from mea_graph.ops.predictive_attention import triton as backend

NAMES = ("query", "key", "value", "prior_query", "prior_key", "weight", "bias")


class Case(NamedTuple):
    heads: int
    steps: int
    widths: tuple[int, int, int]  # of query, value, prior
    lengths: tuple[int, ...]
    mu: float = 0.25
    gaps: bool = False
    bias: bool = True

    def mask(self) -> Tensor:
        mask = torch.arange(self.steps) < torch.tensor(self.lengths)[:, None]
        return mask & (torch.rand(mask.shape) < 0.6) if self.gaps else mask

    def tensors(self) -> dict[str, Tensor | None]:
        """Laid out as a model's projections are, (B, T, K, D), so that no tensor is contiguous."""
        query, value, prior = self.widths
        batch, heads = len(self.lengths), self.heads
        tensors: dict[str, Tensor | None] = {
            name: torch.randn(batch, self.steps, heads, width).transpose(1, 2)
            for name, width in zip(NAMES, (query, query, value, prior, prior), strict=False)
        }
        return tensors | {"weight": 0.3 * torch.randn(heads, heads, 3, 3), "bias": torch.randn(heads) if self.bias else None}


CASES = {
    "one step": Case(1, 1, (4, 4, 4), (1,)),
    "three steps": Case(2, 3, (4, 6, 5), (3, 0, 1)),
    "no step at all": Case(1, 3, (4, 4, 4), (0, 0)),
    "63": Case(1, 63, (8, 8, 8), (63,)),
    "65, ragged": Case(2, 65, (5, 5, 5), (65, 64)),
    "127, ragged": Case(1, 127, (16, 24, 40), (127, 0, 65)),
    "gaps": Case(2, 70, (5, 7, 5), (70,), gaps=True),
    "ten heads": Case(10, 6, (4, 4, 4), (6,)),
    "wide": Case(4, 20, (20, 20, 20), (20,)),  # 3 K D = 240
    "mu 0": Case(2, 20, (5, 5, 5), (20,), mu=0.0),
    "mu 1": Case(2, 20, (5, 5, 5), (20,), mu=1.0, bias=False),
}
SHIPPED = {"narrow": Case(2, 66, (5, 5, 5), (66, 20)), "wide": Case(1, 34, (64, 64, 64), (34,))}


@pytest.fixture
def coarse_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes with the number of tiles."""
    monkeypatch.setattr(backend, "HOPPER", dict.fromkeys(backend.HOPPER, backend.Tiles(64, 64, 256, 4, 1)))


def attend(tensors: dict[str, Tensor | None], mask: Tensor | None, mu: float, grad: Tensor, run: Any = backend.run) -> dict[str, Tensor]:
    """The result, and the gradient of every tensor."""
    leaves = {n: t.detach().requires_grad_() for n, t in tensors.items() if t is not None}
    out = run(**(tensors | leaves), mu=mu, mask=mask)
    return {"result": out.detach()} | dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True))


def truth(tensors: dict[str, Tensor | None], mask: Tensor, mu: float, grad: Tensor) -> dict[str, Tensor]:
    """The reference in float64, whose rows of padding are made zero."""
    real = mask[:, None, :, None]
    clean = {n: t if t is None else t.double() * real if t.dim() == 4 and n != "weight" else t.double() for n, t in tensors.items()}
    results = attend(clean, mask, mu, grad.double() * real, reference.predictive_attention)
    return {n: t * real if n not in ("weight", "bias") else t for n, t in results.items()}


def spoil(tensors: dict[str, Tensor | None], mask: Tensor) -> dict[str, Tensor | None]:
    """Junk where there is padding."""
    junk = torch.tensor([torch.nan, torch.inf, 1e30]).repeat(mask.numel())[: mask.numel()].view_as(mask)
    return {
        n: torch.where(mask[:, None, :, None], t, junk[:, None, :, None].to(t.dtype)) if n in NAMES[:5] and t is not None else t
        for n, t in tensors.items()
    }


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative to the norm of what is expected; of zeros, absolute."""
    assert found.keys() == expected.keys()
    distances = {n: (found[n].double() - expected[n]).norm() for n in found}
    return {n: float(d / expected[n].norm() if expected[n].any() else d) for n, d in distances.items()}


def check_float32(case: Case) -> None:
    tensors, mask = case.tensors(), case.mask()
    grad = torch.randn_like(tensors["value"])
    found = attend(spoil(tensors, mask), mask, case.mu, spoil({"value": grad}, mask)["value"])
    # The bias's gradient is one number for a head, a sum of T^2 terms of both signs.
    bounds = dict.fromkeys(found, 2e-6) | {"bias": 1e-5}
    wrong = {n: e for n, e in errors(found, truth(tensors, mask, case.mu, grad)).items() if not e < bounds[n]}
    assert not wrong
    for name in ("result", *NAMES[:5]):
        assert not found[name].masked_select(~mask[:, None, :, None]).any(), f"{name} is not zero in the padding"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("coarse_tiles")
def test_equals_float64(case: Case) -> None:
    check_float32(case)


@pytest.mark.parametrize("table", ["HOPPER", "AMPERE"])
@pytest.mark.parametrize("case", SHIPPED.values(), ids=SHIPPED)
def test_equals_float64_in_the_tiles_that_ship(case: Case, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case is SHIPPED["wide"] and table == "AMPERE":
        assert all(backend.AMPERE[n] == backend.HOPPER[n] for n in backend.HOPPER if n[2] == "wide")
        return
    monkeypatch.setattr(backend, "_capability", lambda x: (9, 0) if table == "HOPPER" else (8, 0))
    check_float32(case)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("case", SHIPPED.values(), ids=SHIPPED)
def test_half_precision(case: Case, dtype: torch.dtype, bound: float) -> None:
    """Inputs of half precision with float32 weights, as autocast makes them. A few roundings of 2^-9 (bfloat16) or 2^-12 (float16)."""
    tensors = {n: t.to(dtype) if t is not None and n in NAMES[:5] else t for n, t in case.tensors().items()}
    mask = case.mask()
    grad = torch.randn_like(tensors["value"])
    found = attend(tensors, mask, case.mu, grad)
    assert [t.dtype for t in found.values()] == [dtype] * 6 + [torch.float32] * 2
    wrong = {n: e for n, e in errors(found, truth(tensors, mask, case.mu, grad)).items() if not e < bound}
    assert not wrong


def test_mixed_precision_is_computed_in_float32() -> None:
    case = CASES["three steps"]
    tensors, mask = case.tensors(), case.mask()
    tensors["key"], tensors["value"] = tensors["key"].bfloat16(), tensors["value"].half()
    grad = torch.randn_like(tensors["value"])
    found = attend(tensors, mask, case.mu, grad)
    dtypes = {n: t.dtype for n, t in found.items() if t.dtype != torch.float32}
    assert dtypes == {"result": torch.float16, "key": torch.bfloat16, "value": torch.float16}
    # What has a dtype of half precision is rounded to it at the end; and the backward pass reads the result, which is rounded to float16.
    bounds = {torch.float32: 2**-11, torch.float16: 2**-11, torch.bfloat16: 2**-8}
    wrong = {n: e for n, e in errors(found, truth(tensors, mask, case.mu, grad)).items() if not e < bounds[found[n].dtype]}
    assert not wrong


@pytest.mark.usefixtures("coarse_tiles")
def test_no_mask_means_that_all_steps_are_real() -> None:
    case = Case(1, 66, (5, 5, 5), (66,))
    tensors, grad = case.tensors(), torch.randn(1, 1, 66, 5)
    found, masked = attend(tensors, None, 0.25, grad), attend(tensors, case.mask(), 0.25, grad)
    assert all(torch.equal(found[n], masked[n]) for n in found)


def test_the_same_bits_on_every_run_and_in_any_company() -> None:
    """A sample's result and gradients do not depend on the padding or on the other samples: not even in the last bit."""
    case = Case(1, 70, (5, 5, 5), (41, 70))
    tensors, mask, grad = case.tensors(), case.mask(), torch.randn(2, 1, 70, 5)
    first, second = (attend(tensors, mask, 0.25, grad) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    alone = {n: t[:1, :, :41] if n in NAMES[:5] and t is not None else t for n, t in tensors.items()}
    single = attend(alone, None, 0.25, grad[:1, :, :41])
    assert all(torch.equal(single[n], first[n][:1, :, :41]) for n in ("result", *NAMES[:5]))


@pytest.mark.usefixtures("checked_memory")
def test_no_wrong_address_and_no_race() -> None:
    case = Case(2, 66, (5, 7, 5), (66, 0))
    attend(case.tensors(), case.mask(), 0.25, torch.randn(2, 2, 66, 7))


@pytest.mark.parametrize(("batch", "steps"), [(0, 3), (2, 0), (0, 0)])
def test_empty_sizes_are_legal(batch: int, steps: int) -> None:
    case = Case(2, steps, (4, 6, 5), (0,) * batch)
    found = attend(case.tensors(), torch.ones(batch, steps, dtype=torch.bool), 0.25, torch.randn(batch, 2, steps, 6))
    assert found["result"].shape == (batch, 2, steps, 6)
    assert not found["weight"].any()
    assert not found["bias"].any()


@pytest.mark.parametrize("bias", [True, False])
def test_the_operators_are_well_defined(bias: bool) -> None:
    case = Case(1, 2, (4, 5, 4), (2,), bias=bias)
    tensors = [t if t is None else t.detach().requires_grad_() for t in case.tensors().values()]
    torch.library.opcheck(torch.ops.mea_graph.predictive_attention_triton.default, (*tensors, case.mask(), 0.25))
    plain = [t if t is None else t.detach() for t in tensors]
    out, statistics = torch.ops.mea_graph.predictive_attention_triton(*plain, case.mask(), 0.25)
    arguments = (torch.randn_like(out), out, statistics, *plain, case.mask(), 0.25)
    torch.library.opcheck(torch.ops.mea_graph.predictive_attention_triton_backward.default, arguments)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"query": torch.zeros(1, 2, 3, 64)}, None),
        ({"prior_query": torch.zeros(1, 2, 3, 42), "prior_key": torch.zeros(1, 2, 3, 42)}, None),
        ({"prior_query": None, "prior_key": None, "weight": None}, "no prior"),
        ({"weight": torch.zeros(2, 2, 3, 3, dtype=torch.float64)}, "weight is float64; expected float32, bfloat16 or float16"),
        ({"query": torch.zeros(1, 2, 3, 65)}, "a head is 65 wide, and the kernels hold at most 64"),
        ({"value": torch.zeros(1, 2, 3, 128)}, "a head is 128 wide"),
        ({"prior_query": torch.zeros(1, 2, 3, 43)}, "3 K D = 258 wide, and the kernels hold at most 256"),
        ({"query": torch.zeros(1, 2, 3, 4, device="meta")}, "the tensors are on meta, not on cuda"),
    ],
)
def test_says_why_it_cannot_run(change: dict[str, Any], reason: str | None) -> None:
    tensors = Case(2, 3, (4, 4, 4), (3,)).tensors()
    said = backend.refuse(**(tensors | change), mu=0.25, mask=None)
    assert (said is None) if reason is None else reason in str(said)


def test_needs_a_gpu_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = Case(2, 3, (4, 4, 4), (3,)).tensors()
    monkeypatch.delenv("TRITON_INTERPRET")
    assert backend.refuse(**tensors, mu=0.25, mask=None) == "the tensors are on cpu, not on cuda"
    monkeypatch.setattr(backend, "_INSTALLED", False)
    assert backend.refuse(**tensors, mu=0.25, mask=None) == "triton is not installed"


def test_runs_when_asked_for_by_name() -> None:
    case = CASES["three steps"]
    tensors, mask = case.tensors(), case.mask()
    explanation = explain(predictive_attention, **tensors, mask=mask, backend="triton")
    assert explanation.chosen == "triton"
    found = predictive_attention(**tensors, mask=mask, backend="triton")
    assert torch.equal(found, backend.run(**tensors, mu=0.25, mask=mask))
    assert explain(predictive_attention, **tensors, mask=mask).chosen == "cpu"  # on the CPU, never of its own accord


def test_a_second_derivative_is_refused() -> None:
    case = Case(1, 2, (4, 4, 4), (2,))
    tensors = {n: t if t is None else t.detach().requires_grad_() for n, t in case.tensors().items()}
    (grad,) = torch.autograd.grad(backend.run(**tensors, mu=0.25, mask=None).sum(), tensors["query"], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are available"):
        grad.sum().backward()


def test_needs_no_triton_to_be_imported() -> None:
    code = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.split(".")[0] == "triton" else super().find_spec(name, *rest)

sys.meta_path[:] = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
from mea_graph.ops.predictive_attention import triton
print(triton.refuse(None, None, None, None, None, None, None, 0.25, None))
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said == "triton is not installed\n"
