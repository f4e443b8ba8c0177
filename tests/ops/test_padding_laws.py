"""The law of DESIGN.md for the ops over sequences: with gaps = without = one by one = permuted, values and gradients.

`edge_attention` has no gaps: its batch is one graph, and `test_edge_attention.py` holds it to permuted edges.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mea_graph.ops import IntervalEdges, interval_attention, predictive_attention

from .layouts import FORMS, Layout

HEADS, WIDTH = 2, 3
SEQUENCES = ("target", "one", "two")
JUNK = (torch.nan, torch.inf, 1e30)
Tensors = dict[str, Tensor]
Layouts = dict[str, Layout]
Lengths = list[tuple[int, int, int]]  # of each sample, by sequence


class Case(NamedTuple):
    of: dict[str, str]  # the sequence to which each tensor belongs
    call: Callable[[Tensors, Tensors, Layouts], Tensor]  # rows, parameters, where they lie; the result belongs to the target


def guided(x: Tensors, p: Tensors, at: Layouts, windows: bool = False) -> Tensor:
    own = at["target"].pointers
    edges = IntervalEdges.window(own, own, steps=2) if windows else None
    return predictive_attention(x["q"], x["k"], x["v"], own, x["pq"], x["pk"], p["weight"], p["bias"], edges=edges)


def two_sources(x: Tensors, p: Tensors, at: Layouts, windows: bool = False) -> Tensor:
    sources, target = [at["one"].pointers, at["two"].pointers], at["target"].pointers
    edges = IntervalEdges.complete(sources, target)
    if windows:
        edges = IntervalEdges.join([IntervalEdges.window(s, target, steps=1) for s in sources])
    return interval_attention(x["q"], torch.cat([x["k1"], x["k2"]]), torch.cat([x["v1"], x["v2"]]), edges)


GUIDED = dict.fromkeys(("q", "k", "v", "pq", "pk"), "target")
TWO = {"q": "target", "k1": "one", "v1": "one", "k2": "two", "v2": "two"}
CASES = {
    "predictive_attention": Case(GUIDED, guided),
    "predictive_attention in windows": Case(GUIDED, lambda x, p, at: guided(x, p, at, windows=True)),
    "predictive_attention without a prior": Case(
        dict.fromkeys(("q", "k", "v"), "target"), lambda x, p, at: predictive_attention(x["q"], x["k"], x["v"], at["target"].pointers)
    ),
    "interval_attention": Case(TWO, two_sources),
    "interval_attention in windows": Case(TWO, lambda x, p, at: two_sources(x, p, at, windows=True)),
}
every_op = pytest.mark.parametrize("name", CASES)
drawn = st.lists(st.tuples(*[st.integers(0, 9)] * 3), max_size=4)


class Batch(NamedTuple):
    lengths: Lengths
    x: Tensors  # steps without gaps
    grad: Tensor  # of the result

    def layouts(self, form: str = "packed") -> Layouts:
        by_sequence = zip(*self.lengths, strict=True) if self.lengths else [()] * 3
        return {s: Layout(n, form) for s, n in zip(SEQUENCES, by_sequence, strict=True)}

    def take(self, samples: list[int], of: dict[str, str]) -> "Batch":
        """Some samples, in that order."""
        at = self.layouts()
        pick = lambda t, s: torch.cat([t[at[s].slices[i]] for i in samples]) if samples else t[:0]  # noqa: E731
        return Batch([self.lengths[i] for i in samples], {n: pick(t, of[n]) for n, t in self.x.items()}, pick(self.grad, "target"))


def batch_of(case: Case, lengths: Lengths) -> Batch:
    total = {s: sum(n[i] for n in lengths) for i, s in enumerate(SEQUENCES)}
    draw = lambda s: torch.randn(total[s], HEADS, WIDTH).double()  # noqa: E731
    return Batch(lengths, {n: draw(s) for n, s in case.of.items()}, draw("target"))


def parameters() -> Tensors:
    return {"weight": torch.randn(HEADS, HEADS, 3, 3).double(), "bias": torch.randn(HEADS).double()}


def outcome(case: Case, batch: Batch, fixed: Tensors, form: str = "packed", junk: float = torch.nan) -> tuple[Tensors, Tensors]:
    """What belongs to the steps, the result and the gradients of the tensors; and the gradients of the parameters."""
    at = batch.layouts(form)
    x = {n: at[case.of[n]].place(t, junk).requires_grad_() for n, t in batch.x.items()}
    p = {n: t.clone().requires_grad_() for n, t in fixed.items()}
    out = case.call(x, p, at)
    grads = torch.autograd.grad(out, [*x.values(), *p.values()], at["target"].place(batch.grad, junk), allow_unused=True)
    found = dict(zip([*x, *p], grads, strict=True))
    steps = {"result": at["target"].collect(out.detach())} | {n: at[case.of[n]].collect(found[n]) for n in x}
    return steps, {n: found[n] for n in p if found[n] is not None}


@every_op
@settings(max_examples=20, derandomize=True, deadline=None)
@given(lengths=drawn, junk=st.sampled_from(JUNK), form=st.sampled_from(FORMS[1:]))
@example(lengths=[], junk=torch.nan, form="padded")
@example(lengths=[(0, 0, 0)], junk=torch.nan, form="loose")
@example(lengths=[(1, 0, 1), (5, 0, 0)], junk=torch.inf, form="padded")
def test_gaps_and_what_stands_in_them_change_nothing(name: str, lengths: Lengths, junk: float, form: str) -> None:
    case = CASES[name]
    batch, fixed = batch_of(case, lengths), parameters()
    torch.testing.assert_close(outcome(case, batch, fixed, form, junk), outcome(case, batch, fixed), rtol=1e-10, atol=1e-12)


@every_op
@settings(max_examples=20, derandomize=True, deadline=None)
@given(lengths=drawn)
@example(lengths=[(1, 0, 1), (5, 0, 0), (0, 3, 3)])
def test_together_equals_one_by_one(name: str, lengths: Lengths) -> None:
    held_to_one_by_one(CASES[name], lengths, rtol=1e-10)


@every_op
def test_one_sequence_of_2000_steps_changes_none_of_three(name: str) -> None:
    held_to_one_by_one(CASES[name], [(3, 3, 3), (2000, 3, 3), (3, 2, 3)], rtol=1e-9)


def held_to_one_by_one(case: Case, lengths: Lengths, rtol: float) -> None:
    batch, fixed = batch_of(case, lengths), parameters()
    together, of_parameters = outcome(case, batch, fixed)
    total = {n: torch.zeros_like(g) for n, g in of_parameters.items()}
    at = batch.layouts()
    for i in range(len(lengths)):
        alone, more = outcome(case, batch.take([i], case.of), fixed)
        for n, t in alone.items():
            torch.testing.assert_close(together[n][at[case.of.get(n, "target")].slices[i]], t, rtol=rtol, atol=1e-12)
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
    steps, of_parameters = outcome(case, batch, fixed)
    permuted = Batch(lengths, steps, batch.grad).take(samples, {n: case.of.get(n, "target") for n in steps}).x, of_parameters
    torch.testing.assert_close(outcome(case, batch.take(samples, case.of), fixed), permuted, rtol=1e-10, atol=1e-12)
