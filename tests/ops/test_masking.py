"""`masked_softmax` against the definition, key by key."""

import math

import pytest
import torch
from torch import Tensor

from mea_graph.ops import masked_softmax

MASKS = {
    "prefix": [[True, True, True, False], [True, False, False, False]],
    "gap": [[False, True, False, True], [True, False, True, True]],
    "no key": [[False, False, False, False], [True, True, True, True]],
}


def loop(logits: Tensor, mask: Tensor) -> Tensor:
    """The definition for logits (B, T, S) and mask (B, S)."""
    out = torch.zeros_like(logits)
    for b, row in enumerate(logits.tolist()):
        for i, scores in enumerate(row):
            keys = [j for j in range(len(scores)) if mask[b, j]]
            total = sum(math.exp(scores[j]) for j in keys)
            for j in keys:
                out[b, i, j] = math.exp(scores[j]) / total
    return out


@pytest.mark.parametrize("kind", MASKS)
def test_equals_the_definition(kind: str) -> None:
    logits, mask = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor(MASKS[kind])
    torch.testing.assert_close(masked_softmax(logits, mask[:, None]), loop(logits, mask), rtol=1e-12, atol=0)


def test_without_a_mask_all_keys_exist() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(masked_softmax(logits, None), loop(logits, torch.ones(2, 4, dtype=torch.bool)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_stands_at_missing_keys_is_never_seen(dtype: torch.dtype) -> None:
    logits, mask = torch.randn(2, 3, 4, dtype=dtype), torch.tensor(MASKS["prefix"])[:, None]
    huge = logits.masked_fill(~mask, torch.finfo(dtype).max)
    assert torch.equal(masked_softmax(huge, mask), masked_softmax(logits, mask))


@pytest.mark.parametrize("kind", MASKS)
def test_gradient(kind: str) -> None:
    logits, mask = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.tensor(MASKS[kind])[:, None]
    assert torch.autograd.gradcheck(lambda z: masked_softmax(z, mask), logits)
    (gradient,) = torch.autograd.grad(masked_softmax(logits, mask).square().sum(), logits)
    assert not gradient.masked_select(~mask).any()


def test_large_logits_do_not_overflow() -> None:
    weights = masked_softmax(torch.tensor([[1e30, 1e30, -1e30]]), torch.ones(1, 3, dtype=torch.bool))
    assert weights.tolist() == [[0.5, 0.5, 0.0]]
