"""What the clocks, streams and profiles of `gpu_check` keep and leave out, on a device that stands in for CUDA."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks import (
    cases,
    gpu_check_clock,
    gpu_check_compile,
    gpu_check_compilers,
    gpu_check_manners,
    gpu_check_models,
    gpu_check_ops,
    gpu_check_run,
    roofline,
)
from benchmarks.gpu_check_run import Job, Run, Settings

sys.path.insert(0, str(Path(__file__).parent))
import pretended_cuda

ON_CUDA = Settings("cuda", True, 0.0)


@pytest.fixture
def device() -> Iterator[None]:
    with pretended_cuda.device():
        yield


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_run, "_spoilt", [])


def counted(calls: list[str], name: str) -> Callable[[], list[Tensor]]:
    return lambda: calls.append(name) or [torch.zeros(1)]


@pytest.mark.usefixtures("device")
def test_a_capture_that_fails_costs_no_time_and_ends_the_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    @contextlib.contextmanager
    def refused(*_: object) -> Iterator[None]:
        yield
        monkeypatch.setattr(torch.cuda, "synchronize", spoilt)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def spoilt(*_: object) -> None:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    found = gpu_check_clock.clocks({n: counted(calls, n) for n in ("mea_graph", "eager formula")}, 0.0, "cuda")
    assert gpu_check_run.is_spoilt()
    assert all({"median", "events", "peak_bytes"} <= set(one) for one in found.values())
    assert found["mea_graph"]["graph_refused"].startswith("RuntimeError: CUDA error: operation not permitted")
    assert found["eager formula"]["graph_refused"] == "not tried, since mea_graph could not be captured"


@pytest.mark.usefixtures("device")
def test_a_cuda_graph_has_no_peak_of_memory() -> None:
    """It has its memory since it was captured: what a replay takes beyond it is nothing, and says nothing."""
    names = ("mea_graph", *gpu_check_clock.GRAPHS)
    assert set(gpu_check_clock.GRAPHS) <= {"MEA, captured", *gpu_check_models.models.COMPILERS}
    found = gpu_check_clock.clocks({n: counted([], n) for n in names}, 0.0, "cuda", graphs=False)
    assert ["peak_bytes" in found[n] for n in names] == [True, False, False]


def test_a_profiler_that_sees_nothing_is_no_pass_without_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        def __init__(self, **_: object) -> None: ...

        def __enter__(self) -> "Blind":
            return self

        def __exit__(self, *_: object) -> None: ...

        def events(self) -> list[object]:
            return []

    monkeypatch.setattr(gpu_check_clock, "profile", Blind)
    with pytest.raises(RuntimeError, match="the profiler saw nothing"):
        gpu_check_clock.kernels(counted([], "x"), "cuda")
    assert gpu_check_clock.launches(counted([], "x"), "cuda") is None
    assert os.environ["TEARDOWN_CUPTI"] == "0"


@pytest.mark.usefixtures("device")
def test_a_layer_is_profiled_after_it_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("clocks", "launches"):
        own = getattr(gpu_check_models, name)
        monkeypatch.setattr(gpu_check_models, name, lambda *a, own=own, name=name, **k: order.append(name) or own(*a, **k))
    gpu_check_models.layers_of_mea(Run(Job("layers", "x", "m:f", 1.0), ON_CUDA, tmp_path / "lines", 60.0))
    assert order == ["clocks", "launches"] * 3
    order.clear()
    monkeypatch.setattr(gpu_check_models, "batches_to_time", lambda run: [("true lengths", 2, "predict")])
    gpu_check_models.model_eager(Run(Job("whole model", "x", "m:f", 1.0), ON_CUDA, tmp_path / "lines", 60.0))
    assert order == ["clocks", "launches"] * 2  # in float32 and under autocast


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("forgets", [False, True])
def test_an_op_that_forgets_the_stream_reads_what_is_not_there_yet(forgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, early = torch.ones(4), []

    @contextlib.contextmanager
    def stream(*_: object) -> Iterator[None]:
        early.append(x.clone())  # what a kernel on the other stream finds
        yield
        early.clear()

    case = cases.Case("", {"mea_graph": lambda: [2 * (early[0] if forgets and early else x)]}, [], list, torch.float32, {}, {"reads": [x]})
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setitem(gpu_check_manners.EVERY, "edge_attention", [lambda *_: case] * 2)
    run = SimpleNamespace(on_cuda=True, small=True, device="cpu")
    assert gpu_check_manners.other_stream(run, "edge_attention") == {"passed": not forgets}


@pytest.mark.parametrize("op", gpu_check_manners.EVERY)
def test_a_second_pass_of_a_check_reads_only_what_it_tells(op: str) -> None:
    """Not even the gradient is drawn again: to send it to the device would wait for the stream."""
    case = gpu_check_manners.EVERY[op][0](torch.float32, "cpu")
    case.contenders["mea_graph"]()
    read = case.about["reads"]
    assert len(read) > 2
    with torch.no_grad():
        for t in read:
            t.zero_()
    generator = torch.random.get_rng_state()
    assert not any(bool(t.any()) for t in case.contenders["mea_graph"]()[1:])
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_the_model_repeats_by_deterministic_algorithms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sums over edges and of picked rows torch promises no order on a GPU otherwise."""
    seen: list[bool] = []

    def outputs(*_: object) -> list[Tensor]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return [torch.zeros(1)]

    monkeypatch.setattr(gpu_check_models.models, "outputs", outputs)
    run = Run(Job("checks", "model", "m:f", 1.0), Settings("cpu", True, 0.0), tmp_path / "lines", 60.0)
    gpu_check_models.check_model(run)
    of = {r["key"]: r for r in gpu_check_run.read(tmp_path / "lines") if r["kind"] == "check"}
    assert of["MEA twice, by deterministic algorithms"]["passed"]
    assert seen.count(True) == 2
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_compiler_that_never_ends_does_not_cost_what_another_made(tmp_path: Path) -> None:
    """Each is a case of its own, and those that are named first are the most telling."""
    run = Run(Job("whole model", "compiled", "m:f", 1.0), Settings("cpu", False, 0.0), tmp_path / "lines", -1.0)
    gpu_check_compilers.model_compiled(run)
    (plan,) = (r["cases"] for r in gpu_check_run.read(tmp_path / "lines") if r["kind"] == "plan")
    assert plan[:2] == [f"MEA, training step, MOSI, B 32, true lengths, padded, {how}" for how in ("torch.compile", "CUDA graphs")]
    assert len(plan) == len(set(plan)) == 24


def test_no_more_compile_at_once_than_the_container_has_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(224)), raising=False)
    monkeypatch.setattr(gpu_check_compile, "CPU_MAX", tmp_path / "cpu.max")
    assert gpu_check_compile.cores() == 224
    for told, number in (("1600000 100000", 16), ("max 100000", 224), ("50000 100000", 1)):
        gpu_check_compile.CPU_MAX.write_text(told)
        assert gpu_check_compile.cores() == number
    asked: list[int] = []
    monkeypatch.setattr(gpu_check_compile, "cores", lambda: asked.append(1) or 1)
    gpu_check_compile.compile_all(Run(Job("device", "x", "m:f", 1.0), Settings("cpu", False, 0.0), tmp_path / "lines", -1.0))
    assert asked


@pytest.mark.usefixtures("device")
def test_time_is_read_from_events_that_have_come_to_pass() -> None:
    calls: list[str] = []
    assert 0 < gpu_check_clock.between_events(counted(calls, "x"), 1.0) < 1
    assert len(calls) == 1 + 3  # it warms up, and a long pass is not repeated more often


def test_a_capture_warms_up_on_a_stream_of_its_own_behind_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            told.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def within(name: str) -> Iterator[None]:
        told.append(f"{name} begins")
        yield
        told.append(f"{name} ends")

    stand_ins = {"Stream": Stream, "current_stream": lambda: Stream("own"), "stream": lambda stream: within(stream.name)}
    for name, stand_in in (stand_ins | {"CUDAGraph": lambda: SimpleNamespace(replay=list), "graph": lambda _: within("capture")}).items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    gpu_check_clock.captured(counted(told, "pass"))
    warm = ["side waits for own", "side begins", *["pass"] * 3, "side ends", "own waits for side"]
    assert told == [*warm, "capture begins", "pass", "capture ends"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bounds_of_the_kernels_add_up_to_that_of_the_pass(dtype: torch.dtype) -> None:
    case, device = cases.predictive(2, 9, None, dtype), roofline.DEVICES["H200"]
    work = roofline.work(**case.about["attention"], dtype=dtype)
    launched = [name for name, parts in gpu_check_ops._BOUNDS.items() if {w.kernel for w in work} >= set(parts)]
    found = gpu_check_ops.with_bounds([{"kernel": name, "launches": 1.0, "us": 100.0} for name in launched], case, device)
    whole = 1e6 * roofline.bound(work, device)
    assert sum(k.get("bound_us", 0.0) for k in found) == pytest.approx(whole, abs=0.03)  # each is rounded
    assert all(k["share"] == pytest.approx(k["bound_us"] / 100, abs=1e-3) for k in found if "share" in k)


@pytest.mark.usefixtures("device")
def test_a_device_is_lost_if_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_check_run.device_lost() is None

    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert gpu_check_run.device_lost() == "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize("allowed", [True, False])
def test_the_error_beside_a_time_is_that_of_the_pass_as_it_is_timed(allowed: bool) -> None:
    """What is checked must not round to TF32; what is timed does, where torch lets it."""
    ours, truth = torch.ones(4), torch.ones(4, dtype=torch.float64)

    def rival() -> list[Tensor]:
        return [ours * (1 + 2**-10 * torch.backends.cudnn.allow_tf32)]

    case = cases.Case("", {"mea_graph": lambda: [ours], "cuDNN's": rival}, ["mea_graph", "cuDNN's"], lambda: [truth], torch.float32)
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=allowed):
        found = gpu_check_ops.time_case(lambda: case, 0.0, "cpu")["contenders"]
    assert found["mea_graph"]["error"] == 0
    assert found["cuDNN's"]["error"] == (2**-10 if allowed else 0)
