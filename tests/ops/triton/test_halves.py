"""Float32 from halves in float16: numbers of very different size, which one power of two has to serve."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mea_graph.ops import Pointers, predictive_attention

NAMES = ("query", "key", "value", "prior_query", "prior_key")
pytestmark = pytest.mark.usefixtures("coarse_tiles")
Errors = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, float]]
STEPS = 40
POINTERS = Pointers.from_ptr(torch.tensor([0, STEPS]))


def draw(heads: int = 1, width: int = 5) -> dict[str, Tensor]:
    tensors = {name: torch.randn(STEPS, heads, width) for name in NAMES}
    return tensors | {"weight": 0.3 * torch.randn(heads, heads, 3, 3), "bias": torch.randn(heads)}


def attend(tensors: dict[str, Tensor], grad: Tensor, name: str) -> dict[str, Tensor]:
    leaves = {n: t.detach().to(grad.dtype).requires_grad_() for n, t in tensors.items()}
    out = predictive_attention(**leaves, pointers=POINTERS, mu=0.25, backend=name)
    return {"result": out.detach()} | dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True))


@pytest.mark.parametrize("large", ["value", "grad"])
def test_one_large_row_leaves_the_others_exact(large: str, errors: Errors) -> None:
    tensors, grad = draw(), torch.randn(STEPS, 1, 5)
    (grad if large == "grad" else tensors[large])[7] *= 1000
    found, expected = attend(tensors, grad, "triton"), attend(tensors, grad.double(), "reference")
    others = torch.arange(STEPS) >= 10  # and no neighbour of that row
    pairs = {n: (found[n][others], expected[n][others]) for n in ("result", *NAMES)}
    wrong = errors({n: f for n, (f, _) in pairs.items()}, {n: e for n, (_, e) in pairs.items()})
    assert not {n: e for n, e in wrong.items() if not e < 2e-6}


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e4])
def test_heads_have_powers_of_their_own(size: float, errors: Errors) -> None:
    tensors, grad = draw(heads=2), torch.randn(STEPS, 2, 5)
    tensors["value"][:, 1] *= size
    tensors["query"][:, 1] *= min(size, 1.0)
    grad[:, 1] /= size
    found, expected = attend(tensors, grad, "triton"), attend(tensors, grad.double(), "reference")
    for head in range(2):
        wrong = errors({n: found[n][:, head] for n in NAMES}, {n: expected[n][:, head] for n in NAMES})
        assert not {n: e for n, e in wrong.items() if not e < 2e-6}


def test_an_infinite_query_spoils_its_own_row_alone() -> None:
    tensors = draw()
    expected = predictive_attention(**tensors, pointers=POINTERS, backend="triton")
    tensors["query"][7] = torch.inf
    found = predictive_attention(**tensors, pointers=POINTERS, backend="triton")
    others = torch.arange(STEPS) != 7
    assert found[7].isnan().all()
    torch.testing.assert_close(found[others], expected[others])


@pytest.mark.parametrize(("width", "launches"), [(5, 8), (6, 6)])
def test_only_narrow_heads_are_cut_into_halves(width: int, launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """These have a kernel more, forward and backward."""
    from triton.runtime.interpreter import InterpretedFunction

    seen: list[str] = []
    monkeypatch.setattr(InterpretedFunction, "__getitem__", lambda self, grid: lambda *args, **kwargs: seen.append(self.__name__))
    attend(draw(width=width), torch.zeros(STEPS, 1, width), "triton")
    assert len(seen) == launches
    assert seen.count("predictive_attention_power_kernel") == launches - 6
