"""The mended interpreter: what these tests rest on."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def product_kernel(a, b, c, N: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION)
    tl.store(c + at, product.to(c.dtype.element_ty))


@triton.jit
def add_kernel(a, c, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(c + at, tl.load(a + at) + tl.load(a + at))


@triton.jit
def shift_kernel(source, target, distance, N: tl.constexpr, WIDE: tl.constexpr):
    """Each program copies `WIDE` elements to `distance` further on, of the N that it owns."""
    at = tl.program_id(0) * N + tl.arange(0, WIDE)
    tl.store(target + at + distance, tl.load(source + at))


def product(a: Tensor, b: Tensor, out: torch.dtype, precision: str = "ieee") -> Tensor:
    c = torch.empty(16, 16, dtype=out)
    product_kernel[(1,)](a, b, c, 16, precision)
    return c


def test_bfloat16_products_round_as_a_gpu_does() -> None:
    a, b = torch.randn(2, 16, 16).bfloat16().unbind()
    torch.testing.assert_close(product(a, b, torch.float32), a.float() @ b.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(product(a, torch.eye(16).bfloat16(), torch.bfloat16), a)
    third = torch.full((16, 16), 1 / 3)
    assert torch.equal(product(third, torch.eye(16), torch.bfloat16), third.bfloat16())  # truncation would give another number


def test_tf32_keeps_ten_bits() -> None:
    x = torch.full((16, 16), 1 + 2**-10 + 2**-11)
    assert torch.equal(product(x, torch.eye(16), torch.float32, "tf32"), torch.full((16, 16), 1 + 2**-10))
    assert torch.equal(product(x, torch.eye(16), torch.float32), x)


def test_arithmetic_on_bfloat16_is_refused() -> None:
    with pytest.raises(Exception, match="arithmetic on bfloat16"):
        add_kernel[(1,)](torch.ones(4).bfloat16(), torch.empty(4).bfloat16(), 4)


@pytest.mark.parametrize(
    ("programs", "distance", "wide", "fault"),
    [(2, 0, 4, None), (2, 0, 8, "out of bounds|race"), (1, 5, 4, "store out of bounds"), (3, 0, 4, "load out of bounds")],
)
@pytest.mark.usefixtures("checked_memory")
def test_wrong_addresses_and_races_are_found(
    programs: int, distance: int, wide: int, fault: str | None, memory_fault: type[AssertionError]
) -> None:
    source, target = torch.arange(8.0), torch.empty(8)
    if fault is None:
        shift_kernel[(programs,)](source, target, distance, 4, wide)
        assert torch.equal(source, target)
    else:
        with pytest.raises(Exception, match=fault) as raised:
            shift_kernel[(programs,)](source, target, distance, 4, wide)
        causes = [raised.value, raised.value.__cause__]
        assert any(isinstance(c, memory_fault) for c in causes)


@pytest.mark.usefixtures("checked_memory")
def test_a_race_between_programs_is_found() -> None:
    source = torch.arange(12.0)
    with pytest.raises(Exception, match="race: load by program 1"):
        shift_kernel[(2,)](source, source, 4, 4, 4)  # the first writes what the second reads
