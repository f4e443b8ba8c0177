"""The checks that stand before every timing: right contenders pass, a wrong one is not timed."""

import pytest
import torch
from torch import Tensor

from benchmarks import cases, cpu_check, gpu_check
from mea_graph.ops.predictive import reference

SMALL = [i for i, build in enumerate(gpu_check.CHECKS) if i < 8 or 9 <= i < 12 or i == len(gpu_check.CHECKS) - 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", SMALL)
def test_every_small_case_of_the_gpu_check_passes_on_the_cpu(number, dtype):
    found = gpu_check.check(gpu_check.CHECKS[number], dtype, "cpu")
    assert found["passed"], found


@pytest.mark.parametrize(
    "build", [lambda d: cases.predictive(2, 9, [9, 4], device=d), lambda d: cases.edges("32 graphs of 6 nodes", 2, 3, device=d)]
)
def test_a_timed_case_has_a_time_for_each_contender(build, monkeypatch):
    monkeypatch.setattr(gpu_check.measure, "peak_cuda_memory", lambda run: 0)
    found = gpu_check.timed(build, 0, "cpu")
    assert "not_timed" not in found, found["not_timed"]
    assert len(found["contenders"]) == 2
    assert all(c["median"] > 0 for c in found["contenders"].values())


def test_a_wrong_result_is_not_timed(monkeypatch):
    def wrong(build: cases.Case) -> cases.Case:
        return build._replace(contenders={**build.contenders, "mea_graph": lambda: [2 * t for t in build.contenders["mea_graph"]()]})

    case = wrong(cases.predictive(1, 5))
    found = gpu_check.timed(lambda device: case, 0, "cpu")
    assert found["contenders"] == {}
    assert found["not_timed"].startswith("error ")
    assert not gpu_check.check(lambda dtype, device: case, torch.float32, "cpu")["passed"]
    with pytest.raises(SystemExit, match="nothing is timed"):
        cpu_check.check(case)


def test_a_kernel_that_raises_is_told_and_hides_no_other():
    def broken(*_: object) -> list[Tensor]:
        raise RuntimeError("launch failed")

    case = cases.predictive(1, 5)
    case = case._replace(contenders={**case.contenders, "mea_graph": broken})
    assert "launch failed" in gpu_check.check(lambda dtype, device: case, torch.float32, "cpu")["raised"]
    assert "launch failed" in gpu_check.timed(lambda device: case, 0, "cpu")["not_timed"]


def test_the_truth_is_the_formula_of_the_reference():
    case = cases.predictive(2, 6)
    query, key, value, prior_query, prior_key, weight, bias = (t.detach().double() for t in _inputs())
    # The case has rows (N, K, D); the reference reads (B, K, T, D).
    sequences = (t.unflatten(0, (2, 6)).transpose(1, 2) for t in (query, key, value, prior_query, prior_key))
    expected = reference.predictive_attention(*sequences, weight, bias, cases.MU, torch.ones(2, 6, dtype=torch.bool))
    torch.testing.assert_close(case.truth()[0], expected.transpose(1, 2).flatten(0, 1))


def test_the_padded_rival_of_cross_modal_attention_returns_the_same_in_rows():
    case = cases.crossing(3, [4, 0, 2], [[3, 1, 5], [2, 0, 1]], [4, 5, 2])
    assert set(case.checked) == {"mea_graph", "padded SDPA with a mask"}
    assert max(case.errors().values()) < 1e-5
    assert case.contenders["padded SDPA with a mask"]()[0].shape == (3, cases.HEADS, 4, cases.WIDTH)  # what is timed stays padded
    assert case.truth()[0].shape == (6, cases.HEADS, cases.WIDTH)


def _inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(12, cases.HEADS, cases.WIDTH, generator=generator) for _ in range(5)]
    return [*drawn, 0.1 * torch.randn(cases.HEADS, cases.HEADS, 3, 3, generator=generator), torch.randn(cases.HEADS, generator=generator)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_one_clear_sentence(monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu_check"])
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        gpu_check.main()
