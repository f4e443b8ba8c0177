"""The forward loops of the Triton kernels of predictive attention, interpreted: which one runs, and each at the end of its range."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mea_graph.ops import predictive_attention

from .test_predictive_attention import ROWS, Case, Errors, Layout


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which forward loop each program takes."""
    from mea_graph.ops.predictive import triton_halves, triton_kernels

    taken: list[str] = []

    def spy(loop: Callable[..., Any], name: str) -> Callable[..., Any]:
        return lambda *args: (taken.append(name), loop(*args))[1]

    for name in ("attend_once", "_attend_bounded", "_attend"):
        for module in (triton_kernels, triton_halves)[: 1 if name == "attend_once" else 2]:
            monkeypatch.setattr(module, name, spy(getattr(module, name).fn, name))
    return taken


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, ["_attend_bounded", "_attend", "_attend_bounded", "_attend_bounded"]),
        (torch.bfloat16, ["attend_once", "_attend", "_attend_bounded", "attend_once"]),
        (torch.float16, ["_attend"] * 4),  # no channel can hold what masks a key
    ],
    ids=str,
)
@pytest.mark.usefixtures("coarse_tiles")
def test_only_bounded_logits_do_without_a_running_maximum(
    dtype: torch.dtype, expected: list[str], loops: list[str], lay_out: Layout
) -> None:
    """Each head of each sample for itself."""
    pointers, tensors = lay_out("packed", (3, 2)), Case(2, (4, 5, 4), ()).tensors(5)
    for name in ("query", "key"):
        tensors[name] = tensors[name].clone()
        tensors[name][:3, 1] += 1000
        tensors[name][3:, 0] = 5  # logits of 72
    predictive_attention(**{n: t if n not in ROWS else t.to(dtype) for n, t in tensors.items()}, pointers=pointers, backend="triton")
    assert loops == expected


@pytest.mark.parametrize(("size", "loop"), [(0.01, "attend_once"), (1.2, "attend_once"), (3.0, "_attend_bounded"), (8.0, "_attend")])
@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.usefixtures("coarse_tiles")
def test_every_forward_loop_in_bfloat16(size: float, loop: str, mu: float, loops: list[str], lay_out: Layout, errors: Errors) -> None:
    """Inner softmaxes from flat to one key alone. One pass is as exact as two."""
    pointers, tensors = lay_out("packed", (66, 1)), Case(1, (5, 5, 5), ()).tensors(67)
    tensors |= {name: tensors[name] * size for name in ("query", "key")}
    tensors = {n: t if n not in ROWS else t.bfloat16() for n, t in tensors.items()}
    found = predictive_attention(**tensors, pointers=pointers, mu=mu, backend="triton")
    assert set(loops[:2]) == {loop}
    expected = predictive_attention(**{n: t.double() for n, t in tensors.items()}, pointers=pointers, mu=mu, backend="reference")
    assert errors({"": found}, {"": expected})[""] < 4e-3


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["high", "low"])
@pytest.mark.usefixtures("coarse_tiles")
def test_one_pass_at_the_end_of_its_range(sign: float, loops: list[str], lay_out: Layout, errors: Errors) -> None:
    """All inner logits are near 25 or -25, in units of ln 2: the third power of their exponentials is 2^75 or 2^-75."""
    pointers, tensors = lay_out("packed", (40,)), Case(1, (5, 5, 5), ()).tensors(40)
    tensors |= {"query": 0.1 * tensors["query"] + 2.8, "key": sign * (0.1 * tensors["key"] + 2.8)}
    tensors = {n: t if n not in ROWS else t.bfloat16() for n, t in tensors.items()}
    found = predictive_attention(**tensors, pointers=pointers, mu=0.5, backend="triton")
    assert set(loops) == {"attend_once"}
    expected = predictive_attention(**{n: t.double() for n, t in tensors.items()}, pointers=pointers, mu=0.5, backend="reference")
    assert errors({"": found}, {"": expected})[""] < 1e-2


@pytest.mark.usefixtures("coarse_tiles")
def test_one_pass_where_one_key_has_all_of_the_inner_softmax(loops: list[str], lay_out: Layout, errors: Errors) -> None:
    """Its share is 1, where a polynomial is furthest from an exponential: the series of exp, cut off, is 2 % too small there."""
    pointers, tensors = lay_out("packed", (2,)), Case(1, (4, 4, 4), ()).tensors(2)
    tensors |= {name: torch.tensor([[[2.5] * 4], [[-2.5] * 4]]) for name in ("query", "key")}  # logits of 12.5 and -12.5
    tensors["value"] = torch.tensor([[[1.0] * 4], [[-1.0] * 4]])
    tensors = {n: t if n not in ROWS else t.bfloat16() for n, t in tensors.items()}
    found = predictive_attention(**tensors, pointers=pointers, mu=0.0, backend="triton")
    assert set(loops) == {"attend_once"}
    expected = predictive_attention(**{n: t.double() for n, t in tensors.items()}, pointers=pointers, mu=0.0, backend="reference")
    assert errors({"": found}, {"": expected})[""] < 4e-3


@pytest.mark.parametrize("width", [5, 6], ids=["in halves", "in TF32"])
@pytest.mark.parametrize("bias", [300.0, -300.0])
@pytest.mark.usefixtures("coarse_tiles")
def test_a_large_bias_is_a_part_of_the_bound(width: int, bias: float, loops: list[str], lay_out: Layout, errors: Errors) -> None:
    """Powers of two of logits near 390 would be infinite. Those near -390 leave the GELU as zeros: the softmax is that of the shares."""
    pointers, tensors = lay_out("packed", (11,)), Case(1, (width,) * 3, ()).tensors(11)
    tensors["bias"] = torch.tensor([bias])
    found = predictive_attention(**tensors, pointers=pointers, mu=0.9, backend="triton")
    assert set(loops) == {"_attend"}
    expected = predictive_attention(**{n: t.double() for n, t in tensors.items()}, pointers=pointers, mu=0.9, backend="reference")
    assert errors({"": found}, {"": expected})[""] < 1e-4  # roundings of numbers of that size


@pytest.mark.parametrize("width", [5, 6], ids=["in halves", "in TF32"])
@pytest.mark.parametrize("size", [1.0, 9.0], ids=["bounded", "of any size"])
@pytest.mark.usefixtures("coarse_tiles", "checked_memory")
def test_no_loop_reads_a_tile_behind_the_last_key(width: int, size: float, loops: list[str], lay_out: Layout, errors: Errors) -> None:
    """Of a sample whose steps fill whole tiles, and end with the memory."""
    pointers, tensors = lay_out("packed", (128,)), Case(1, (width,) * 3, ()).tensors(128)
    tensors |= {name: tensors[name] * size for name in ("query", "key")}
    found = predictive_attention(**tensors, pointers=pointers, backend="triton")
    assert set(loops) == {"_attend_bounded" if size == 1 else "_attend"}
    expected = predictive_attention(**{n: t.double() for n, t in tensors.items()}, pointers=pointers, backend="reference")
    assert errors({"": found}, {"": expected})[""] < (2e-6 if size == 1 else 1e-4)
