"""The checks that stand before every timing: right contenders pass, a wrong one is not timed."""

import pytest
import torch
from torch import Tensor

from benchmarks import cases, cpu_check, gpu_check_manners, gpu_check_ops, roofline
from mea_graph.ops import backends
from mea_graph.ops.backends import Backend, Op
from mea_graph.ops.edge import cuda
from mea_graph.ops.native import library as native_library
from mea_graph.ops.predictive import reference


@pytest.mark.parametrize("dtype", gpu_check_ops.DTYPES, ids=str)
@pytest.mark.parametrize("number", [7, 8, 9])
def test_rows_with_gaps_and_without_any_step_pass_the_gpu_check_on_the_cpu(number, dtype):
    found = gpu_check_ops.check("predictive_attention", gpu_check_ops.CHECKS["predictive_attention"][number], dtype, "cpu")
    assert found["passed"], found


@pytest.mark.parametrize(
    "build", [lambda: cases.predictive(2, 9, [9, 4]), lambda: cases.edges("32 graphs of 6 nodes", 2, 3)], ids=["attention", "edges"]
)
def test_a_timed_case_has_a_time_for_each_contender(build):
    found = gpu_check_ops.time_case(build, 0, "cpu")
    assert "not_timed" not in found, found["not_timed"]
    assert len(found["contenders"]) == 2
    assert all(c["median"] > 0 for c in found["contenders"].values())


def test_a_wrong_result_is_not_timed():
    right = cases.predictive(1, 5)
    case = right._replace(contenders={**right.contenders, "mea_graph": lambda: [2 * t for t in right.contenders["mea_graph"]()]})
    found = gpu_check_ops.time_case(lambda: case, 0, "cpu")
    assert found["contenders"] == {}
    assert found["not_timed"].startswith("error ")
    assert not gpu_check_ops.check("predictive_attention", lambda dtype, device: case, torch.float32, "cpu")["passed"]
    with pytest.raises(SystemExit, match="nothing is timed"):
        cpu_check.check(case)


def test_what_ran_on_a_gpu_must_be_the_kernel():
    case = gpu_check_ops.CHECKS["predictive_attention"]
    found = [gpu_check_ops.check("predictive_attention", case[i], torch.float32, "cpu") for i in (0, 10, 13, 14, 15, 16)]
    assert [one["expected_backend"] for one in found] == ["triton"] * 5 + ["reference"]  # 3 K D = 384
    assert found[0]["backend"] == ["cpu"] != ["triton"]  # which on a GPU would fail


@pytest.mark.parametrize("op", gpu_check_manners.EVERY)
def test_the_backend_that_a_gpu_must_run_is_the_one_that_it_takes(op, monkeypatch):
    """Asked on the CPU, with the refusals that only name the device left out."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(cuda, "refuse", lambda x, **_: None if x.dtype in cuda._VALUES else "the kernels take no such values")
    known = backends._OPS[op]
    monkeypatch.setitem(known.backends, "cuda", Backend(cuda.run, cuda.refuse, "cuda")) if op == "edge_attention" else None
    taken: list[tuple[str, str]] = []

    def run(self, backend, device, arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native_library, "refuse", lambda: "the tensors are on cuda")
            patch.setattr(Tensor, "is_cpu", False)
            taken.append((self.name, self._first(torch.device("cuda"), arguments)))
        raise Stop

    monkeypatch.setattr(Op, "run", run)
    for build in gpu_check_manners.EVERY[op]:
        for dtype in gpu_check_ops.DTYPES:
            case = build(dtype, "cpu")
            with pytest.raises(Stop):
                case.contenders["mea_graph"]()
            assert taken[-1] == (op, case.about.get("runs", gpu_check_ops.EXPECTED[op])), case.name


class Stop(Exception):
    """Ends a pass at its first op."""


def test_a_baseline_in_bfloat16_computes_in_bfloat16():
    case = gpu_check_ops.predictive_times(2, 6, [6, 3], torch.bfloat16, "cpu")
    upcast, true = (case.contenders[n]() for n in ("eager formula", "eager formula in bfloat16"))
    assert {t.dtype for t in true} == {torch.bfloat16}
    assert [t.shape for t in true] == [t.shape for t in upcast]


def test_kernels_carry_their_bound_and_share():
    case = cases.predictive(2, 9, [9, 4])
    device = roofline.DEVICES["H200"]
    found = [{"kernel": "predictive_attention_fwd_kernel", "launches": 1.0, "us": 10.0}, {"kernel": "fill", "launches": 2.0, "us": 1.0}]
    first, second = gpu_check_ops.with_bounds(found, case, device)
    forward = {k.kernel: k for k in roofline.work([9, 4], 9, cases.HEADS, cases.WIDTH, torch.float32)}["forward loop"]
    assert first["bound_us"] == round(1e6 * max(forward.seconds(device).values()), 2)
    assert first["share"] > 0
    assert second == found[1]
    kernels = {k.kernel for k in roofline.work([9], 9, 8, 5, torch.float32)}
    assert {n for names in gpu_check_ops._BOUNDS.values() for n in names} == kernels


def test_the_truth_is_the_formula_of_the_reference():
    case = cases.predictive(2, 6)
    query, key, value, prior_query, prior_key, weight, bias = (t.detach().double() for t in _inputs())
    # The case has rows (N, K, D); the reference reads (B, K, T, D).
    sequences = (t.unflatten(0, (2, 6)).transpose(1, 2) for t in (query, key, value, prior_query, prior_key))
    expected = reference.predictive_attention(*sequences, weight, bias, cases.MU, torch.ones(2, 6, dtype=torch.bool))
    torch.testing.assert_close(case.truth()[0], expected.transpose(1, 2).flatten(0, 1))


def test_the_padded_baseline_of_cross_modal_attention_returns_the_same_in_rows():
    case = cases.crossing(3, [4, 0, 2], [[3, 1, 5], [2, 0, 1]], [4, 5, 2])
    assert set(case.checked) == {"mea_graph", "padded SDPA with a mask"}
    assert max(case.errors().values()) < 1e-5
    assert case.contenders["padded SDPA with a mask"]()[0].shape == (3, cases.HEADS, 4, cases.WIDTH)  # what is timed stays padded
    assert case.truth()[0].shape == (6, cases.HEADS, cases.WIDTH)


def _inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(12, cases.HEADS, cases.WIDTH, generator=generator) for _ in range(5)]
    return [*drawn, 0.1 * torch.randn(cases.HEADS, cases.HEADS, 3, 3, generator=generator), torch.randn(cases.HEADS, generator=generator)]
