"""Where samples' rows are: every constructor and what is derived from it, against lists of numbers."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mea_graph.ops import IntervalEdges, Pointers, interval_attention
from mea_graph.ops.pointers import put_rows, take_rows
from mea_graph.ops.pooling import max_rows, mean_rows, segment_means, sum_rows

from .layouts import FORMS, Layout

LENGTHS = [[3, 0, 5, 1], [0, 0], [], [4], [2, 2, 2], [0, 3], [3, 0]]
every_layout = pytest.mark.parametrize(
    "layout",
    [Layout(n, form, spare) for n in LENGTHS for form, spare in (("packed", 0), ("padded", 2), ("padded", 0), ("loose", 2))],
    ids=lambda at: f"{at.form} {at.lengths} of {at.pointers.num_rows}",
)


def tensor(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


@every_layout
def test_what_is_derived_says_where_each_step_is(layout: Layout) -> None:
    p, lengths = layout.pointers, layout.lengths
    assert p.num_samples == len(lengths)
    assert p.length.tolist() == lengths
    steps = [(b, i) for b, n in enumerate(lengths) for i in range(n)]
    assert list(zip(p.sample[layout.rows].tolist(), p.position[layout.rows].tolist(), strict=True)) == steps
    assert p.sample.shape == p.position.shape == p.real.shape == (p.num_rows,)
    assert p.real.tolist() == (~layout.gaps).tolist()
    assert p.present.tolist() == [n > 0 for n in lengths]
    assert p.fills_rows() == (not layout.gaps.any())
    width = p.max_length
    assert width == (max(lengths, default=0) if p.steps is None else p.steps)
    assert p.mask.tolist() == [[i < n for i in range(width)] for n in lengths]


@every_layout
def test_pad_and_unpad_put_each_step_in_its_place(layout: Layout) -> None:
    p = layout.pointers
    steps = torch.randn(layout.steps, 2, dtype=torch.float64)
    padded = p.pad(layout.place(steps))
    assert padded.shape == (len(layout.lengths), p.max_length, 2)
    assert torch.equal(padded[p.mask], steps)
    assert torch.equal(p.unpad(padded.masked_fill(~p.mask[..., None], 0)), layout.place(steps, 0.0))
    if p.packed:
        assert not padded[~p.mask].any()


@every_layout
def test_pad_and_unpad_give_each_step_its_gradient(layout: Layout) -> None:
    p = layout.pointers
    rows = layout.place(torch.randn(layout.steps, 2, dtype=torch.float64), 0.0).requires_grad_()
    weight = torch.randn(len(layout.lengths), p.max_length, 2, dtype=torch.float64)
    (grad,) = torch.autograd.grad((p.pad(rows) * weight).masked_fill(~p.mask[..., None], 0).sum(), rows)
    assert torch.equal(layout.collect(grad), weight[p.mask])
    padded = weight.requires_grad_()
    factor = layout.place(torch.randn(layout.steps, 2, dtype=torch.float64), 0.0)
    (grad,) = torch.autograd.grad((p.unpad(padded) * factor).sum(), padded)
    assert torch.equal(grad[p.mask], layout.collect(factor))
    assert not grad[~p.mask].any()


@every_layout
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strided_rounds_every_length_up(layout: Layout, stride: int) -> None:
    shorter = layout.pointers.strided(stride)
    expected = [-(-n // stride) for n in layout.lengths]
    assert shorter.length.tolist() == expected
    if stride == 1:
        assert shorter is layout.pointers
    elif layout.pointers.steps is None:
        assert shorter.start.tolist() == [sum(expected[:b]) for b in range(len(expected))]
        assert shorter.num_rows == sum(expected)
    else:
        width = -(-layout.pointers.steps // stride)
        assert (shorter.steps, shorter.num_rows) == (width, width * len(expected))
        assert shorter.start.tolist() == [b * width for b in range(len(expected))]


@every_layout
def test_compact_has_no_gaps(layout: Layout) -> None:
    found, expected = layout.pointers.compact(), Layout(layout.lengths, "packed").pointers
    assert (found.start.tolist(), found.length.tolist(), found.num_rows) == (
        expected.start.tolist(),
        expected.length.tolist(),
        expected.num_rows,
    )
    assert found.packed
    assert found.steps is None


@pytest.mark.parametrize("forms", [("packed", "padded", "loose"), ("loose", "packed"), ("padded", "padded"), ("packed",), ("packed",) * 2])
def test_joined_pointers_are_those_of_the_rows_below_each_other(forms: tuple[str, ...]) -> None:
    lengths = [[3, 0], [0, 4, 1], [0, 2]]
    parts = [Layout(n, form) for n, form in zip(lengths, forms, strict=False)]
    joined = Pointers.join([part.pointers for part in parts])
    steps = [torch.randn(part.steps, 2) for part in parts]
    rows = torch.cat([part.place(x) for part, x in zip(parts, steps, strict=True)])
    together = [n for part in parts for n in part.lengths]
    assert joined.length.tolist() == together
    assert joined.num_rows == len(rows)
    assert joined.packed == all(form == "packed" for form in forms)
    assert joined.real.tolist() == [not gap for part in parts for gap in part.gaps.tolist()]
    assert joined.sample[joined.real].tolist() == [b for b, n in enumerate(together) for _ in range(n)]
    assert joined.position[joined.real].tolist() == [i for n in together for i in range(n)]
    assert torch.equal(joined.pad(rows)[joined.mask], torch.cat(steps))
    padded = joined.pad(rows.nan_to_num(0))
    assert torch.equal(joined.unpad(padded).nan_to_num(0)[joined.real], torch.cat(steps))


def test_full_is_a_padded_batch_without_padding() -> None:
    p = Pointers.full(2, 3, torch.device("cpu"))
    assert (p.start.tolist(), p.length.tolist(), p.num_rows, p.steps, p.packed) == ([0, 3], [3, 3], 6, 3, True)
    x = torch.randn(6, 2)
    assert torch.equal(p.pad(x).flatten(0, 1), x)
    for batch, steps in ((0, 3), (2, 0), (0, 0)):
        assert Pointers.full(batch, steps, torch.device("cpu")).mask.shape == (batch, steps)


@pytest.mark.parametrize(
    ("batch", "samples", "lengths"), [([0, 0, 2], 3, [2, 0, 1]), ([], 2, [0, 0]), ([], 0, []), ([1, 1], 4, [0, 2, 0, 0])]
)
def test_from_batch_counts_rows(batch: list[int], samples: int, lengths: list[int]) -> None:
    p = Pointers.from_batch(tensor(*batch), samples)
    assert p.length.tolist() == lengths
    assert p.sample.tolist() == batch
    assert (p.num_rows, p.packed) == (len(batch), True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pointers.from_ptr(tensor(1, 2)), "ptr: expected numbers that rise from 0 to the number of rows, got [1, 2]"),
        (lambda: Pointers.from_ptr(tensor(0, 3, 2)), "ptr: expected numbers that rise from 0 to the number of rows, got [0, 3, 2]"),
        (lambda: Pointers.from_ptr(tensor(0, 2), 3), "ptr: expected numbers that rise from 0 to 3, the number of rows, got [0, 2]"),
        (
            lambda: Pointers.from_ptr(tensor(*range(30)), 30),
            "ptr: expected numbers that rise from 0 to 30, the number of rows, got (0, 29)",
        ),
        (lambda: Pointers.from_ptr(torch.zeros(3)), "ptr: expected int64 (B + 1,), got torch.float32 (3,)"),
        (lambda: Pointers.from_ptr(tensor()), "ptr: expected int64 (B + 1,), got torch.int64 (0,)"),
        (lambda: Pointers.from_ptr(tensor(0, 1)[None]), "ptr: expected int64 (B + 1,), got torch.int64 (1, 2)"),
        (lambda: Pointers.from_batch(torch.zeros(3), 1), "batch: expected int64 (N,), got torch.float32 (3,)"),
        (lambda: Pointers.from_batch(tensor(1, 0), 2), "batch: expected sorted sample indices, got unsorted ones"),
        (lambda: Pointers.from_batch(tensor(0, 2), 2), "batch: expected indices of 2 samples, got 0 to 2"),
        (lambda: Pointers.from_batch(tensor(-1, 0), 2), "batch: expected indices of 2 samples, got -1 to 0"),
        (lambda: Pointers.from_mask(torch.ones(2, 3)), "mask: expected bool (B, T), True at real steps, got torch.float32 (2, 3)"),
        (lambda: Pointers.from_mask(torch.ones(3) > 0), "mask: expected bool (B, T), True at real steps, got torch.bool (3,)"),
        (lambda: Pointers.from_mask(tensor(1, 0, 1)[None] > 0), "mask: expected a mask that is True at real steps"),
        (lambda: Pointers(tensor(0), tensor(9), 5), "expected samples one after the other in 5 rows, got 9 rows from 0 on for sample 0"),
        (lambda: Pointers(tensor(3, 0), tensor(2, 3), 5), "got 3 rows from 0 on for sample 1"),
        (lambda: Pointers(tensor(0, 2), tensor(3, 2), 5), "got 2 rows from 2 on for sample 1"),
        (lambda: Pointers(tensor(-1), tensor(2), 5), "got 2 rows from -1 on for sample 0"),
        (lambda: Pointers(tensor(2), tensor(-1), 5), "got -1 rows from 2 on for sample 0"),
        (lambda: Pointers(tensor(0, 3), tensor(2, 2), 5, packed=True), "expected samples without gaps that fill 5 rows"),
        (lambda: Pointers(tensor(0, 2), tensor(2, 2), 5, packed=True), "expected samples without gaps that fill 5 rows"),
        (lambda: Pointers(tensor(0, 2), tensor(2, 2), 6, steps=3), "expected samples of up to 3 steps, one each 3 of 6 rows, got 2 rows"),
        (lambda: Pointers(tensor(0, 3), tensor(2, 2), 7, steps=3), "expected samples of up to 3 steps, one each 3 of 7 rows"),
        (lambda: Pointers(tensor(0), torch.tensor([2.0]), 5), "start, length: expected int64 (B,) twice, got torch.int64 (1,) and"),
        (lambda: Pointers(tensor(0, 1), tensor(2), 5), "start, length: expected int64 (B,) twice, got torch.int64 (2,) and"),
    ],
)
def test_bad_input_is_named(make: Callable[[], Pointers], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_it_says_what_it_is_and_moves() -> None:
    padded = Layout([2, 1], "padded").pointers
    assert repr(padded) == "Pointers(2 samples, 8 rows, 4 steps each with padding)"
    assert repr(Layout([2, 1], "packed").pointers) == "Pointers(2 samples, 3 rows)"
    moved = padded.to("meta")
    assert {moved.start.device.type, moved.length.device.type, moved.mask.device.type} == {"meta"}
    assert (moved.num_rows, moved.steps, moved.packed) == (8, 4, False)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_seen_in_inference_mode_serves_training(form: str) -> None:
    at = Layout([3, 0, 2], form)
    p, edges = at.pointers, IntervalEdges.complete([at.pointers] * 2, at.pointers)
    x = at.place(torch.randn(at.steps, 2, 3), 0.0).requires_grad_()

    def step(backend: str) -> Tensor:
        summed = sum_rows(x.flatten(1), p).sum() + p.unpad(p.pad(x)).sum()
        return summed + interval_attention(x, torch.cat([x, x]), torch.cat([x, x]), edges, backend=backend).sum()

    for backend in ("cpu", "reference"):
        with torch.inference_mode():
            expected = step(backend)
        found = step(backend)
        found.backward()
        torch.testing.assert_close(found.detach(), expected.clone())


def test_taken_rows_give_their_gradient_back_twice_and_in_a_batch() -> None:
    x, rows = torch.randn(4, 2, dtype=torch.float64, requires_grad=True), tensor(3, 0)
    assert torch.equal(take_rows(x, rows), x[rows])
    assert torch.equal(put_rows(x[rows], rows, 4)[rows], x[rows])
    assert not put_rows(x[rows], rows, 4)[[1, 2]].any()
    assert torch.autograd.gradcheck(lambda t: take_rows(t, rows), x)
    assert torch.autograd.gradgradcheck(lambda t: take_rows(t, rows).square(), x)
    assert torch.autograd.gradcheck(lambda t: take_rows(t, rows), x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradcheck(lambda t: put_rows(t, rows, 4), x[rows].detach().requires_grad_())
    many = torch.randn(3, 4, 2)
    assert torch.equal(torch.func.vmap(lambda t: take_rows(t, rows))(many), many[:, rows])


def pooled(layout: Layout, steps: Tensor, of_one: Callable[[Tensor], Tensor], width: int) -> Tensor:
    """By the rows of each sample alone; zeros where there are none."""
    rows = [of_one(steps[part]) if n else torch.zeros(width).double() for part, n in zip(layout.slices, layout.lengths, strict=True)]
    return torch.stack(rows) if rows else torch.zeros(0, width).double()


def means_of_thirds(x: Tensor) -> Tensor:
    parts = [[row for i, row in enumerate(x) if i * 3 // len(x) == part] for part in range(3)]
    return torch.cat([torch.stack(part).mean(0) if part else torch.zeros(2).double() for part in parts])


POOLS: dict[str, tuple[Any, Callable[[Tensor], Tensor], int]] = {
    "sum": (sum_rows, lambda x: x.sum(0), 2),
    "mean": (mean_rows, lambda x: x.mean(0), 2),
    "max": (max_rows, lambda x: x.amax(0), 2),
    "segments": (lambda x, p: segment_means(x, p, 3), means_of_thirds, 6),
}


@every_layout
@pytest.mark.parametrize("kind", POOLS)
def test_pooling_sees_each_sample_alone(layout: Layout, kind: str) -> None:
    pool, of_one, width = POOLS[kind]
    steps = torch.randn(layout.steps, 2, dtype=torch.float64, requires_grad=True)
    rows = layout.place(steps.detach()).requires_grad_()
    found, expected = pool(rows, layout.pointers), pooled(layout, steps, of_one, width)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    if layout.steps:
        weight = torch.randn_like(found)
        (grad,) = torch.autograd.grad(found, rows, weight)
        torch.testing.assert_close(layout.collect(grad), *torch.autograd.grad(expected, steps, weight), rtol=1e-12, atol=1e-14)


def test_a_longest_length_that_is_too_short_is_refused_and_a_longer_one_pads_more() -> None:
    with pytest.raises(ValueError, match="max_length: expected at least the longest length, 3, got 2"):
        Pointers.from_ptr(torch.tensor([0, 1, 4]), 4, max_length=2)
    pointers, x = Pointers.from_ptr(torch.tensor([0, 1, 4]), 4, max_length=5), torch.randn(4, 2)
    assert pointers.pad(x).shape == (2, 5, 2)
    assert torch.equal(pointers.unpad(pointers.pad(x)), x)


def test_samples_are_looked_at_whatever_the_default_device_is() -> None:
    start, length = tensor(0, 3), tensor(2, 3)
    with torch.device("meta"):
        assert Pointers(start, length, 6, steps=3).num_samples == 2
        with pytest.raises(ValueError, match="samples of up to 3 steps"):
            Pointers(start + 1, length, 6, steps=3)


def test_a_mask_without_numbers_is_not_looked_at() -> None:
    with FakeTensorMode():
        assert Pointers.from_mask(torch.ones(2, 3, dtype=torch.bool)).num_rows == 6
