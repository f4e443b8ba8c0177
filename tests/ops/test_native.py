"""The compiled C++ backend against the frozen references in float64: values, gradients, gaps, windows; how it is built and chosen."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.nn import MEA, MEALoss
from mea_graph.ops import IntervalEdges, Pointers, explain, interval_attention, predictive_attention, record_calls, use_backend
from mea_graph.ops.native import library

from . import test_interval_attention_cpu as interval
from .layouts import FORMS
from .predictive_cases import FLOAT64, WINDOWS, assert_true, every_form, make, run, truth

pytestmark = pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}")
NARROW = [name for name, (_, width, value_width, *_) in interval.CASES.items() if max(width, value_width) <= 16]


@WINDOWS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", NARROW)
def test_interval_attention_equals_the_reference(case: str, form: str, windows: bool) -> None:
    inputs = interval.draw(case, form, windows=windows)
    grad = interval.gradient_for(inputs)
    torch.testing.assert_close(interval.outcome(inputs, "native", grad), interval.truth(inputs, grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("width", [1, 5, 6, 8, 9, 16])
def test_interval_attention_of_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interval.CASES, "drawn", (3, width, width, [40, 7], [[600, 13]]))  # more keys than are summed at once
    inputs = interval.draw("drawn")
    grad = interval.gradient_for(inputs)
    torch.testing.assert_close(interval.outcome(inputs, "native", grad), interval.truth(inputs, grad), rtol=1e-10, atol=1e-12)


@WINDOWS
@pytest.mark.parametrize("width", [1, 5, 8, 16])  # sums over lanes of 2, 10, 16 and 32 vectors, more than a vector has lanes
def test_interval_attention_of_any_width_in_float32(width: int, windows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interval.CASES, "drawn", (3, width, width, [40, 7, 1], [[60, 13, 1]]))
    inputs = interval.draw("drawn", dtype=torch.float32, windows=windows)
    grad = interval.gradient_for(inputs)
    for found, expected in zip(interval.outcome(inputs, "native", grad), interval.truth(inputs, grad), strict=True):
        assert (found.double() - expected).norm() <= 4e-6 * expected.norm()


@WINDOWS
@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_interval_attention_with_steep_logits(scale: float, windows: bool) -> None:
    """Held to what "cpu" is held to; a map has zeros and ones only from thousands on."""
    inputs = interval.draw("ragged", windows=windows)
    inputs = inputs._replace(query=inputs.query * scale)
    grad = interval.gradient_for(inputs)
    found = interval.outcome(inputs, "native", grad)
    torch.testing.assert_close(found, interval.truth(inputs, grad), rtol=1e-8, atol=1e-8 * scale)


@WINDOWS
@pytest.mark.parametrize("junk", [float("inf"), 1e30])
def test_interval_attention_never_reads_gaps(junk: float, windows: bool) -> None:
    for form in FORMS[1:]:
        inputs = interval.draw("ragged", form, torch.float32, windows)
        grad = interval.gradient_for(inputs)
        found, expected = interval.outcome(inputs, "native", grad, junk), interval.outcome(inputs, "native", grad)
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@WINDOWS
@pytest.mark.parametrize(
    ("dtype", "value_budget", "gradient_budget"),
    [(torch.float32, 2e-6, 4e-6), (torch.bfloat16, 4e-3, 8e-3), (torch.float16, 5e-4, 1e-3)],
)
def test_interval_attention_rounds_no_more_than_the_dtype_does(
    dtype: torch.dtype, value_budget: float, gradient_budget: float, windows: bool
) -> None:
    inputs = interval.draw("ragged", "padded", dtype, windows)
    grad = interval.gradient_for(inputs)
    for i, (found, expected) in enumerate(zip(interval.outcome(inputs, "native", grad), interval.truth(inputs, grad), strict=True)):
        assert found.dtype == dtype
        assert (found.double() - expected).norm() <= (gradient_budget if i else value_budget) * expected.norm()


@WINDOWS
@pytest.mark.parametrize("case", ["one short length", "empty sources", "values wider"])
def test_operators_of_interval_attention_keep_the_rules_of_torch_library(case: str, windows: bool) -> None:
    inputs = interval.draw(case, dtype=torch.float32, windows=windows)
    edges, tensors = interval.operator_arguments(inputs), [t.requires_grad_() for t in inputs.tensors]
    torch.library.opcheck(torch.ops.mea_graph.interval_attention_native.default, (*tensors, *edges))
    out, sums = (t.detach() for t in torch.ops.mea_graph.interval_attention_native(*tensors, *edges))
    backward = (torch.randn_like(out), out, sums, *(t.detach() for t in tensors), *edges)
    torch.library.opcheck(torch.ops.mea_graph.interval_attention_native_backward.default, backward)


@every_form
@pytest.mark.parametrize("heads", [1, 2, 3, 8, 10])
def test_predictive_attention_equals_the_reference(heads: int, form: str) -> None:
    assert_true(make([130, 1, 0, 64, 65, 3], heads, 5, form, width_prior=4, width_value=2), "native")


@every_form
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("mu", [0.0, 0.25, 1.0])
def test_predictive_attention_over_windows_equals_the_reference(heads: int, mu: float, form: str) -> None:
    assert_true(make([130, 1, 0, 64, 65, 3], heads, 5, form, width_prior=4, width_value=2, mu=mu, windows=True), "native")


@WINDOWS
@pytest.mark.parametrize("lengths", [[1], [2, 3], [15, 16, 17], [63, 64], [0, 0], []])
@pytest.mark.parametrize("bias", [True, False])
def test_predictive_attention_at_any_length(lengths: list[int], bias: bool, windows: bool) -> None:
    assert_true(make(lengths, 4, 5, bias=bias, windows=windows), "native")


@WINDOWS
@pytest.mark.parametrize("width", [4, 5, 6, 8, 9, 17])
def test_predictive_attention_of_any_width(width: int, windows: bool) -> None:
    """Widths of up to 5 and 8 have loops of their own, in float32 with four vectors at a time, then two, then one."""
    case = make([119, 1, 36], 8, width, windows=windows)
    assert_true(case, "native")
    expected = truth(case)
    for name, value in run(case, "native", torch.float32).items():
        assert (value.double() - expected[name]).norm() / expected[name].norm() < 2e-6, name


@WINDOWS
@pytest.mark.parametrize("scale", [30.0, 1e3])
def test_predictive_attention_with_steep_logits(scale: float, windows: bool) -> None:
    """Of the current layer, whose softmax is then one step, and of the prior, whose largest predictions are in the hundreds."""
    for name in ("query", "prior_query"):
        case = make([70, 9], 2, 5, windows=windows)
        case.tensors[name].mul_(scale)
        found, expected = run(case, "native"), truth(case)
        for part, value in found.items():
            error = (value - expected[part]).norm() / expected[part].norm().clamp(min=1e-6)
            assert error < 1e-8, f"{name}, {part}: {error:.1e}"


@WINDOWS
@pytest.mark.parametrize("junk", [torch.inf, 1e30])
def test_predictive_attention_never_reads_gaps(junk: float, windows: bool) -> None:
    for form in FORMS[1:]:
        case = make([12, 11, 3, 0], 2, 5, form, windows=windows)
        found, expected = run(case, "native", torch.float32, junk), run(case, "native", torch.float32)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


@WINDOWS
@pytest.mark.parametrize(("dtype", "budget"), [(torch.float32, 2e-6), (torch.bfloat16, 5e-3), (torch.float16, 7e-4)])
def test_predictive_attention_rounds_no_more_than_the_dtype_does(dtype: torch.dtype, budget: float, windows: bool) -> None:
    case = make([100, 90, 31], 8, 5, "padded", windows=windows)
    case = case._replace(tensors={n: t.to(dtype).double() for n, t in case.tensors.items()})
    expected = truth(case)
    for name, value in run(case, "native", dtype).items():
        assert value.dtype == dtype, name
        assert (value.double() - expected[name]).norm() / expected[name].norm() < budget, name


def attention(op: str, dtype: torch.dtype = FLOAT64, steps: int = 5) -> tuple[Any, list[Tensor]]:
    """A call of an op on the backend that is forced, and what it takes."""
    pointers = Pointers.from_ptr(torch.tensor([0, steps, steps + 2]))
    x = [torch.randn(steps + 2, 2, 3, dtype=dtype).requires_grad_() for _ in range(5)]
    weight = (0.3 * torch.randn(2, 2, 3, 3, dtype=dtype)).requires_grad_()
    if op == "interval_attention":
        return (lambda q, k, v: interval_attention(q, k, v, IntervalEdges.complete(pointers, pointers), backend="native")), x[:3]
    return (lambda *t: predictive_attention(*t[:3], pointers, *t[3:], backend="native")), [*x, weight]


@pytest.mark.parametrize("op", ["interval_attention", "predictive_attention"])
def test_second_derivatives(op: str) -> None:
    assert torch.autograd.gradgradcheck(*attention(op), fast_mode=True)


@pytest.mark.parametrize("op", ["interval_attention", "predictive_attention"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_in_a_real_row_stays_nan(op: str, place: int) -> None:
    call, leaves = attention(op, torch.float32)
    with torch.no_grad():
        leaves[place][1] = torch.nan
        out = call(*leaves)
    assert out[1].isnan().all()
    assert out[5:].isfinite().all()  # the other sample


@pytest.mark.parametrize("op", ["interval_attention", "predictive_attention", "bilstm", "bigru"])
def test_threads_change_no_bit(op: str) -> None:
    ptr = torch.tensor([0, 300, 580, 581, 850])
    pointers = Pointers.from_ptr(ptr)
    q, k, v = (torch.randn(850, 8, 5).requires_grad_() for _ in range(3))
    weight = 0.3 * torch.randn(8, 8, 3, 3)
    driven = torch.randn(850, 2, 4, 5).requires_grad_()

    def results(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            if op in ("bilstm", "bigru"):
                gates, columns = (4, 5) if op == "bilstm" else (3, 6)
                own = driven[:, :, :gates]
                operands = (own, weight.new_ones(1, 2, gates, 5, columns) / 5, ptr[:-1], ptr.diff(), [850], True)
                out = getattr(torch.ops.mea_graph, f"{op}_native")(*operands)[0]
                return [out, *torch.autograd.grad(out.square().sum(), [driven])]
            if op == "interval_attention":
                out = interval_attention(q, k, v, IntervalEdges.complete(pointers, pointers), backend="native")
            else:
                out = predictive_attention(q, k, v, pointers, q, k, weight, backend="native")
            return [out, *torch.autograd.grad(out.square().sum(), [q, k, v])]
        finally:
            torch.set_num_threads(before)

    assert all(torch.equal(a, b) for a, b in zip(results(1), results(3), strict=True))


def test_a_model_gives_the_same() -> None:
    model = MEA({"text": 6, "audio": 4}, 1, channels=16, heads=4, exclusive={"num_layers": 2}).double().eval()  # its encoders have GRUs
    x = {"text": torch.randn(9, 6, dtype=FLOAT64), "audio": torch.randn(41, 4, dtype=FLOAT64)}
    ptr = {"text": torch.tensor([0, 3, 3, 9]), "audio": torch.tensor([0, 20, 36, 41])}
    y, found = torch.randn(3, dtype=FLOAT64), {}
    for backend in ("native", "reference"):
        model.zero_grad()
        with use_backend(backend), record_calls() as calls:
            MEALoss("regression").double()(model(x, ptr), y).total.backward()
        assert calls["interval_attention", backend] > 0
        assert calls["predictive_attention", backend] > 0
        assert calls["bilstm", backend] > 0
        assert calls["bigru", backend] > 0
        found[backend] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found["native"], found["reference"], rtol=1e-7, atol=1e-10)


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ "auto" as users have it, and a library that is looked for anew, in this test alone."""
    monkeypatch.delenv("MEA_GRAPH_NATIVE", raising=False)
    library._library.cache_clear()
    yield
    library._library.cache_clear()


def explained() -> Any:
    pointers = Pointers.from_ptr(torch.tensor([0, 3]))
    x = torch.randn(3, 2, 4)
    return explain(interval_attention, x, x, x, IntervalEdges.complete(pointers, pointers))


@pytest.mark.usefixtures("released")
def test_auto_takes_it_where_it_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explained().chosen == "native"
    monkeypatch.setenv("MEA_GRAPH_NATIVE", "0")
    assert (explained().chosen, explained().refused["native"]) == ("cpu", "MEA_GRAPH_NATIVE=0 keeps 'auto' from it")


@pytest.mark.usefixtures("released")
def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert (explained().chosen, explained().refused["native"]) == ("cpu", "there is no C++ compiler: no c++, g++ or clang++")
    call, leaves = attention("interval_attention")
    with pytest.raises(ValueError, match="cannot run on 'native' here: there is no C\\+\\+ compiler"):
        call(*leaves)


@pytest.mark.usefixtures("released")
def test_a_compiler_that_fails_is_named_and_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler, asked = tmp_path / "broken", tmp_path / "asked"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho once >> {asked}\necho no such option >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (explained().chosen, explained().refused["native"]) == ("cpu", f"{compiler} could not compile it")
    first = asked.read_text()
    assert 1 <= len(first.split()) <= len(library._SOURCES)
    assert (explained().chosen, explained().refused["native"]) == ("cpu", f"{compiler} could not compile it")
    assert asked.read_text() == first


@pytest.mark.usefixtures("released")
def test_a_build_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waits for the first call learns what for, and how to do without."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "_run", lambda compiler, *arguments: None)
    assert library.refuse() is not None  # nothing was compiled
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "building the C++ kernels, once on this machine" in caplog.text
    assert "MEA_GRAPH_NATIVE=0" in caplog.text


@pytest.mark.usefixtures("released")
def test_what_was_built_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(compiler: str, folder: Path) -> str:
        raise AssertionError("built again")

    assert library.refuse() is None
    library._library.cache_clear()
    monkeypatch.setattr(library, "_build", build)
    assert isinstance(library._library(), ctypes.CDLL)


def graph_nodes(record: Any) -> list[str]:
    """The operators in what `record` makes of attention over one sample."""

    class Attention(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pointers = Pointers.full(1, 3, x.device)
            return interval_attention(x, x, x, IntervalEdges.complete(pointers, pointers))

    return [str(node.target) for node in record(Attention(), torch.randn(3, 2, 4)).graph.nodes]


def test_torch_compile_takes_it_and_an_export_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEA_GRAPH_NATIVE", raising=False)

    def compiled(module: torch.nn.Module, x: Tensor) -> Any:
        graphs: list[Any] = []
        torch.compiler.reset()
        torch.compile(module, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)(x)
        return graphs[0]

    assert any("interval_attention_native" in name for name in graph_nodes(compiled))
    for strict in (False, True):
        names = graph_nodes(lambda module, x, strict=strict: torch.export.export(module, (x,), strict=strict))
        assert any("interval_attention_cpu" in name for name in names)
        assert not any("native" in name for name in names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_of_torch_jit_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEA_GRAPH_NATIVE", raising=False)
    pointers = Pointers.from_ptr(torch.tensor([0, 3]))
    traced = torch.jit.trace(lambda x: interval_attention(x, x, x, IntervalEdges.complete(pointers, pointers)), torch.randn(3, 2, 4))
    assert "native" not in str(traced.inlined_graph)


def test_heads_that_are_too_wide_are_refused() -> None:
    inputs = interval.draw("wide heads")
    with pytest.raises(ValueError, match="cannot run on 'native' here: heads are wider than 16 channels"):
        interval.outcome(inputs, "native", interval.gradient_for(inputs))


@pytest.mark.slow
def test_the_sanitizer_sees_no_bad_access(tmp_path: Path) -> None:
    """The same loops, over ragged samples and windows, built with AddressSanitizer in a process of its own."""
    compiler = os.environ.get("CXX") or "c++"

    def runtime(name: str) -> str:
        return subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False).stdout.strip()

    # The second is where C++ finds what throws: Python loads it late, and the sanitizer looks for it once, at the start.
    runtimes = [path for path in map(runtime, ("libasan.so", "libstdc++.so.6")) if Path(path).is_absolute()]
    if not runtimes or "asan" not in runtimes[0]:
        pytest.skip("the compiler has no AddressSanitizer")
    program = tmp_path / "run.py"
    program.write_text(
        "from mea_graph.ops.native import library\n"
        "library._FLAGS = ('-O0', '-fsanitize=address', *library._FLAGS[1:])\n"
        "import torch\n"
        "from tests.ops import test_interval_attention_cpu as interval\n"
        "from tests.ops.predictive_cases import assert_true, make\n"
        "from tests.ops.recurrent_cases import CASES, GRUS, outcome\n"
        "from tests.ops import test_native_edge as edge\n"
        "from tests.ops import test_native_grouped as grouped\n"
        "torch.manual_seed(0)\n"
        "for shape in edge.WIDTHS:\n"
        "    edge.test_equals_the_reference_at_any_width(*shape)\n"
        "edge.test_nodes_of_many_edges(torch.float32)\n"
        "for case in grouped.GROUPS:\n"
        "    for steps_last in (False, True):\n"
        "        grouped.outcome(case, *grouped.draw(case, 33, 70), True, steps_last, 'native')\n"
        "    grouped.test_a_normalisation_equals_the_reference_at_any_width(case, 17)\n"
        "for case in (CASES | GRUS).values():\n"
        "    outcome(case, case.inputs(), backend='native')\n"
        "for windows in (False, True):\n"
        "    inputs = interval.draw('ragged', 'padded', windows=windows)\n"
        "    interval.outcome(inputs, 'native', interval.gradient_for(inputs))\n"
        "    assert_true(make([70, 1, 0, 16, 33], 3, 5, 'padded', windows=windows), 'native')\n"
        "print('clean')\n"
    )
    environment = os.environ | {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0", "XDG_CACHE_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stderr[-3000:]
