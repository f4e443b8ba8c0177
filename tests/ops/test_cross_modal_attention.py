"""The attention of Eq. 7 against loops over samples, heads, steps and sources."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.ops import cross_modal_attention, cross_modal_attention_map

B, K, T, D, D_VALUE = 3, 2, 4, 3, 5
SOURCES = [2, 6, 3]  # lengths of the sources
# By source, the real steps of each sample; the second sample lacks the first source, the last one has no source at all.
MASKS = [torch.arange(t) < torch.tensor(n)[:, None] for t, n in zip(SOURCES, ([2, 0, 0], [3, 6, 0], [1, 3, 0]), strict=True)]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def inputs() -> dict[str, Any]:
    return {
        "query": random(B, K, T, D),
        "keys": [random(B, K, t, D) for t in SOURCES],
        "values": [random(B, K, t, D_VALUE) for t in SOURCES],
    }


def loop(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The result and the map, in whose columns the sources stand one after the other."""
    out = torch.zeros(B, K, T, D_VALUE, dtype=torch.float64)
    attention = torch.zeros(B, K, T, sum(SOURCES), dtype=torch.float64)
    for b in range(B):
        for h in range(K):
            for i in range(T):
                scores = {}
                for s, mask in enumerate(masks):
                    for j in range(SOURCES[s]):
                        if mask[b, j]:
                            score = sum(query[b, h, i, c].item() * keys[s][b, h, j, c].item() for c in range(D))
                            scores[s, j] = math.exp(score / math.sqrt(D))
                for (s, j), score in scores.items():
                    share = score / sum(scores.values())
                    attention[b, h, i, sum(SOURCES[:s]) + j] = share
                    out[b, h, i] += share * values[s][b, h, j]
    return out, attention


@pytest.mark.parametrize("masks", [MASKS, [m | True for m in MASKS]], ids=["ragged", "full"])
def test_equals_the_loops(inputs: dict[str, Any], masks: list[Tensor]) -> None:
    out, attention = loop(**inputs, masks=masks)
    torch.testing.assert_close(cross_modal_attention(**inputs, key_masks=masks), out, rtol=1e-9, atol=1e-12)
    found = cross_modal_attention_map(inputs["query"], inputs["keys"], masks)
    torch.testing.assert_close(found, attention, rtol=1e-9, atol=1e-12)


def test_no_masks_mean_that_all_steps_are_real(inputs: dict[str, Any]) -> None:
    full = [m | True for m in MASKS]
    torch.testing.assert_close(cross_modal_attention(**inputs), cross_modal_attention(**inputs, key_masks=full), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        cross_modal_attention_map(inputs["query"], inputs["keys"]),
        cross_modal_attention_map(inputs["query"], inputs["keys"], full),
        rtol=1e-12,
        atol=1e-14,
    )


def test_the_order_of_the_sources_does_not_matter(inputs: dict[str, Any]) -> None:
    turned = {"query": inputs["query"], "keys": inputs["keys"][::-1], "values": inputs["values"][::-1], "key_masks": MASKS[::-1]}
    torch.testing.assert_close(cross_modal_attention(**turned), cross_modal_attention(**inputs, key_masks=MASKS), rtol=1e-12, atol=1e-14)


def test_an_empty_source_is_as_good_as_none(inputs: dict[str, Any]) -> None:
    keys, values = [*inputs["keys"], random(B, K, 0, D)], [*inputs["values"], random(B, K, 0, D_VALUE)]
    more = cross_modal_attention(inputs["query"], keys, values, [*MASKS, torch.ones(B, 0, dtype=torch.bool)])
    assert torch.equal(more, cross_modal_attention(**inputs, key_masks=MASKS))


def test_a_sample_without_sources_gives_zeros_and_no_gradient(inputs: dict[str, Any]) -> None:
    leaves = [inputs["query"], *inputs["keys"], *inputs["values"]]
    for leaf in leaves:
        leaf.requires_grad_()
    out = cross_modal_attention(**inputs, key_masks=MASKS)
    assert not out[2].any()
    for gradient in torch.autograd.grad(out.square().sum(), leaves):
        assert gradient.isfinite().all()
        assert not gradient[2].any()


@pytest.mark.parametrize("masks", [None, MASKS], ids=["full", "ragged"])
def test_gradcheck(inputs: dict[str, Any], masks: list[Tensor] | None) -> None:
    def call(query: Tensor, *pairs: Tensor) -> Tensor:
        return cross_modal_attention(query, pairs[:3], pairs[3:], masks)

    leaves = tuple(t.requires_grad_() for t in (inputs["query"], *inputs["keys"], *inputs["values"]))
    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (2, 0)])
def test_empty_sizes_are_legal(batch: int, length: int) -> None:
    source = random(batch, K, 4, D)
    assert cross_modal_attention(random(batch, K, length, D), [source], [source]).shape == (batch, K, length, D)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": [], "values": []}, "keys: expected at least one source, got none"),
        ({"keys": [random(B, K, 2, D), random(B, K + 1, 6, D)]}, r"keys\[1\]: expected \(3, 2, T, 3\), got \(3, 3, 6, 3\)"),
        ({"values": [random(B, 2, D_VALUE)]}, r"values\[0\]: expected \(3, 2, T, any\), got \(3, 2, 5\)"),
        ({"key_masks": MASKS[:2]}, "key_masks: expected 3, one a source, got 2"),
        ({"key_masks": [MASKS[0], MASKS[2], MASKS[1]]}, r"key_masks\[1\]: expected bool \(3, 6\), got torch.bool \(3, 3\)"),
        ({"key_masks": [MASKS[0], MASKS[1].double(), MASKS[2]]}, r"key_masks\[1\]: expected bool \(3, 6\), got torch.float64 \(3, 6\)"),
        ({"values": [random(B, K, t, D_VALUE) for t in SOURCES[:2]]}, r"values: expected .* \[2, 6, 3\] as in keys, got \[2, 6\]"),
        ({"values": [random(B, K, t, D_VALUE) for t in (6, 2, 3)]}, r"values: expected .* \[2, 6, 3\] as in keys, got \[6, 2, 3\]"),
    ],
)
def test_bad_input_is_named(inputs: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cross_modal_attention(**(inputs | change))
