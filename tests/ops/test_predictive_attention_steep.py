"""Predictive attention where logits are large: nothing overflows, values and gradients, whatever the samples' lengths."""

import pytest
import torch

from .layouts import FORMS
from .predictive_cases import FLOAT64, Case, assert_true, every_form, make, run, truth


@pytest.mark.usefixtures("way")
@every_form
def test_large_logits_neither_overflow_nor_vanish(form: str) -> None:
    case = make([21, 13], 3, 5, form)
    case.tensors["query"] *= 100
    case.tensors["prior_query"] *= 30
    assert_true(case)
    assert all(value.isfinite().all() for value in run(case, dtype=torch.float32).values())


def steep(case: Case, prior: float, inner: float) -> Case:
    """Priors whose logits reach `prior` in the mean, and queries as much longer."""
    for name, scale in (("prior_query", prior), ("query", inner)):
        case.tensors[name] *= scale
    return case


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
@pytest.mark.parametrize("seed", range(12))
def test_steep_priors_and_mixed_lengths(seed: int, dtype: torch.dtype) -> None:
    """Neither what stands next to a sample's last key nor the row after its last step may overflow, or take part."""
    torch.manual_seed(seed)
    lengths = torch.randint(0, 8, (5,)).tolist()
    case = make(lengths, 2, 3, FORMS[seed % 3], mu=(0.25, 1.0)[seed % 2], windows=seed % 4 == 3)
    reach = 1e4 if dtype == FLOAT64 else 100.0  # enough that powers of two overflow
    case = steep(case, reach, (1.0, reach)[seed // 6])
    rounding = 1e-8 if dtype == FLOAT64 else 1e-3
    found, expected = run(case, dtype=dtype), truth(case)
    for name, value in found.items():
        assert value.isfinite().all(), name
        assert (value.double() - expected[name]).norm() <= rounding * expected[name].norm() + rounding, name


@every_form
@pytest.mark.parametrize("logit", [100.0, 400.0, 625.0, 5000.0])
def test_the_largest_prediction_stands_next_to_the_last_key(logit: float, form: str) -> None:
    """Lengths 2 and 1, and a convolution that sums its neighbourhood: the shorter sample's padding has the longer one's sums."""
    case = make([2, 1], 1, 2, form, width_prior=1)
    case.tensors["prior_query"] = torch.full((3, 1, 1), logit, dtype=FLOAT64)
    case.tensors["prior_key"], case.tensors["weight"] = torch.ones(3, 1, 1, dtype=FLOAT64), torch.ones(1, 1, 3, 3, dtype=FLOAT64)
    expected = truth(case)
    for name, value in run(case, dtype=torch.float32).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-3, atol=1e-4 * logit, msg=lambda m, name=name: f"{name}: {m}")
    assert_true(case, atol=1e-9)


def only_outer_logits(case: Case, reach: float) -> Case:
    """The inner softmax stays level, the predictions are as large as `reach`."""
    case.tensors["query"] *= 0
    case.tensors["prior_query"] *= reach
    return case


@pytest.mark.usefixtures("way")
@every_form
def test_the_outer_softmax_alone_may_be_steep(form: str) -> None:
    case = only_outer_logits(make([9, 6], 2, 3, form, mu=1.0), 1e4)
    assert_true(case, atol=1e-7)


@every_form
def test_a_step_that_hears_nothing_in_a_steep_tile_gives_zeros(form: str) -> None:
    case = only_outer_logits(make([6, 4], 2, 3, form, mu=1.0), 1e4)
    case.tensors["query"] += 1e4
    runs = [[(0, n)] for n in case.layout.lengths for _ in range(n)]
    runs[2] = runs[7] = [(3, 3)]
    case = case._replace(runs=runs)
    found = run(case)
    assert not found["result"][[2, 7]].any()
    assert_true(case, atol=1e-7)


def test_a_steepness_that_is_no_number_counts_as_steep() -> None:
    """Squares that overflow times squares that vanish are NaN, though the products would only overflow a power of two."""
    case = make([3], 1, 1, mu=0.5)
    case.tensors["query"] = torch.full((3, 1, 1), 1e25, dtype=FLOAT64)
    case.tensors["key"] = torch.tensor([1.2e-23, 0.0, -1e-23], dtype=FLOAT64).view(3, 1, 1)
    torch.testing.assert_close(run(case, dtype=torch.float32)["result"].double(), truth(case)["result"], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("way")
@every_form
def test_logits_far_below_zero_at_every_real_key(form: str) -> None:
    """A hidden key has the logit zero before it is masked, which must not drown the real ones."""
    case = make([9, 6], 2, 3, form)
    case.tensors["query"] = case.tensors["query"].abs() + 20
    case.tensors["key"] = -case.tensors["key"].abs() - 20
    assert_true(case)
    assert run(case, dtype=torch.float32)["result"].isfinite().all()
