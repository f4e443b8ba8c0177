"""The law of DESIGN.md for the ops over sequences: padded = one by one = permuted, values and gradients, whatever stands in the padding.

`edge_attention` has no padding: its batch is one graph, and `test_edge_attention.py` holds it to permuted edges.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mea_graph.ops import cross_modal_attention, predictive_attention

HEADS, WIDTH = 2, 3
SEQUENCES = ("target", "one", "two")
JUNK = (torch.nan, torch.inf, 1e30)
Tensors = dict[str, Tensor]
Lengths = list[tuple[int, int, int]]  # of each sample, by sequence


class Case(NamedTuple):
    of: dict[str, str]  # the sequence to which each tensor belongs
    call: Callable[[Tensors, Tensors, Tensors], Tensor]  # tensors, parameters, masks; the result belongs to the target


def guided(x: Tensors, p: Tensors, mask: Tensors) -> Tensor:
    return predictive_attention(x["q"], x["k"], x["v"], x["pq"], x["pk"], p["weight"], p["bias"], mask=mask["target"])


CASES = {
    "predictive_attention": Case(dict.fromkeys(("q", "k", "v", "pq", "pk"), "target"), guided),
    "predictive_attention without a prior": Case(
        dict.fromkeys(("q", "k", "v"), "target"), lambda x, p, mask: predictive_attention(x["q"], x["k"], x["v"], mask=mask["target"])
    ),
    "cross_modal_attention": Case(
        {"q": "target", "k1": "one", "v1": "one", "k2": "two", "v2": "two"},
        lambda x, p, mask: cross_modal_attention(
            x["q"], [x["k1"], x["k2"]], [x["v1"], x["v2"]], [mask["one"], mask["two"]], query_mask=mask["target"]
        ),
    ),
}
every_op = pytest.mark.parametrize("name", CASES)
drawn = st.lists(st.tuples(*[st.integers(0, 9)] * 3), max_size=4)


class Batch(NamedTuple):
    x: Tensors
    mask: Tensors
    grad: Tensor  # of the result, zero in the padding

    def take(self, samples: list[int], longest: Mapping[str, int], of: Mapping[str, str]) -> "Batch":
        """Some samples, as long as `longest`."""
        x = {n: t[samples, :, : longest[of[n]]] for n, t in self.x.items()}
        return Batch(x, {s: m[samples, : longest[s]] for s, m in self.mask.items()}, self.grad[samples, :, : longest["target"]])


def batch_of(case: Case, lengths: Lengths) -> Batch:
    """Random steps, zeros after them."""
    by_sequence = dict(zip(SEQUENCES, torch.tensor(lengths).reshape(-1, 3).unbind(1), strict=True))
    mask = {s: torch.arange(int(n.max()) if len(n) else 0) < n[:, None] for s, n in by_sequence.items()}
    draw = lambda s: torch.randn(len(lengths), HEADS, mask[s].size(1), WIDTH).double() * mask[s][:, None, :, None]  # noqa: E731
    return Batch({n: draw(s) for n, s in case.of.items()}, mask, draw("target"))


def parameters() -> Tensors:
    return {"weight": torch.randn(HEADS, HEADS, 3, 3).double(), "bias": torch.randn(HEADS).double()}


def outcome(case: Case, batch: Batch, fixed: Tensors) -> tuple[Tensors, Tensors]:
    """What belongs to the steps, the result and the gradients of the tensors; and the gradients of the parameters."""
    x, p = ({n: t.clone().requires_grad_() for n, t in tensors.items()} for tensors in (batch.x, fixed))
    out = case.call(x, p, batch.mask)
    grads = torch.autograd.grad(out, [*x.values(), *p.values()], batch.grad, allow_unused=True)
    found = dict(zip([*x, *p], grads, strict=True))
    return {"result": out.detach(), **{n: found[n] for n in x}}, {n: found[n] for n in p if found[n] is not None}


@every_op
@settings(max_examples=20, derandomize=True, deadline=None)
@given(lengths=drawn, junk=st.sampled_from(JUNK))
@example(lengths=[], junk=torch.nan)
@example(lengths=[(0, 0, 0)], junk=torch.nan)
@example(lengths=[(1, 0, 1), (5, 0, 0)], junk=torch.inf)
def test_junk_in_the_padding_changes_nothing(name: str, lengths: Lengths, junk: float) -> None:
    case = CASES[name]
    batch, fixed = batch_of(case, lengths), parameters()
    dirty = {n: t.masked_fill(~batch.mask[case.of[n]][:, None, :, None], junk) for n, t in batch.x.items()}
    torch.testing.assert_close(outcome(case, batch._replace(x=dirty), fixed), outcome(case, batch, fixed), rtol=1e-10, atol=1e-12)


@every_op
@settings(max_examples=20, derandomize=True, deadline=None)
@given(lengths=drawn)
@example(lengths=[(1, 0, 1), (5, 0, 0), (0, 3, 3)])
def test_padded_equals_one_by_one(name: str, lengths: Lengths) -> None:
    held_to_one_by_one(CASES[name], lengths, rtol=1e-10)


@every_op
def test_one_sequence_of_4000_steps_changes_none_of_three(name: str) -> None:
    held_to_one_by_one(CASES[name], [(3, 3, 3), (4000, 3, 3), (3, 2, 3)], rtol=1e-9)


def held_to_one_by_one(case: Case, lengths: Lengths, rtol: float) -> None:
    batch, fixed = batch_of(case, lengths), parameters()
    together, of_parameters = outcome(case, batch, fixed)
    total = {n: torch.zeros_like(g) for n, g in of_parameters.items()}
    for i, own in enumerate(lengths):
        longest = dict(zip(SEQUENCES, own, strict=True))
        alone, more = outcome(case, batch.take([i], longest, case.of), fixed)
        for n, t in alone.items():
            length = longest[case.of.get(n, "target")]
            torch.testing.assert_close(together[n][i : i + 1, :, :length], t, rtol=rtol, atol=1e-12)
            assert not together[n][i, :, length:].any(), f"{n}: something stands in the padding"
        total = {n: total[n] + more[n] for n in total}
    torch.testing.assert_close(of_parameters, total, rtol=rtol, atol=1e-10)


@every_op
@settings(max_examples=20, derandomize=True, deadline=None)
@given(lengths=drawn, order=st.randoms(use_true_random=False))
def test_permuting_samples_permutes_results(name: str, lengths: Lengths, order: object) -> None:
    case = CASES[name]
    batch, fixed = batch_of(case, lengths), parameters()
    samples = list(range(len(lengths)))
    order.shuffle(samples)  # type: ignore[attr-defined]
    everything = {s: m.size(1) for s, m in batch.mask.items()}
    steps, of_parameters = outcome(case, batch, fixed)
    permuted = {n: t[samples] for n, t in steps.items()}, of_parameters
    torch.testing.assert_close(outcome(case, batch.take(samples, everything, case.of), fixed), permuted, rtol=1e-10, atol=1e-12)
