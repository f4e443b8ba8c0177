"""`mea-graph check` for real: planted faults are told, cost nothing else, and what it advises avoids them."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from mea_graph.__main__ import main as whole_command
from mea_graph.check import command, plan
from mea_graph.check.names import MODEL, OPS, Task
from mea_graph.check.verdict import conclusion, faults, remedies
from mea_graph.ops import backends
from mea_graph.ops.native import library

PLANTED = '''
"""Backends that are wrong in processes of a check. Few cases of each op: what is tested is what becomes of them."""
import os, time
from mea_graph.check import plan
from mea_graph.check.names import MODEL
from mea_graph.check.work import work
from mea_graph.ops.backends import _OPS

for op, builds in plan.CASES.items():
    plan.CASES[op] = builds[:2]

def plant(op, backend, how):
    sound = _OPS[op].backends[backend]
    _OPS[op].backends[backend] = sound._replace(run=lambda **arguments: how(sound.run(**arguments)))

def louder(found):
    return (1.01 * found[0], found[1]) if isinstance(found, tuple) else 1.01 * found

def several(task, send):
    plant("edge_attention", "native", louder)
    plant("bigru", "native", lambda found: os.abort())
    plant("interval_attention", "native", lambda found: time.sleep(600))
    work(task, send)

def wrong(task, send):
    plant("edge_attention", "native", louder)
    work(task, send)

def raises(task, send):
    def refuses(found):
        raise RuntimeError("no registers left")
    plant("grouped_layer_norm", "batched", refuses)
    plant("grouped_layer_norm", "native", refuses)
    plant("grouped_layer_norm", "joined", lambda found: found + 1e-3 * os.urandom(1)[0])
    work(task, send)

def dies(task, send):
    os._exit(3)

def on_a_gpu(task, send):
    import pretended_cuda
    with pretended_cuda.device():
        plant("grouped_linear", "triton", louder)
        work(task, send)

def loses_the_gpu(task, send):
    import pretended_cuda
    from mea_graph.check import work as module
    def illegal(found):
        module.device_lost = lambda device: "CUDA error: an illegal memory access was encountered"
        raise RuntimeError("Triton Error [CUDA]: misaligned address")
    with pretended_cuda.device():
        plant("bilstm", "triton", illegal)
        work(task, send)

def interpreted(task, send):
    from mea_graph.check import grouped
    plan.CASES["grouped_layer_norm"] = grouped.NORM[2:]
    plan.DTYPES = plan.DTYPES[1:2]
    work(task, send)

def without_scatter(task, send):
    import sys
    sys.modules["torch_scatter"] = None
    work(task, send)
'''
NATIVE = pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}")


class Outcome(NamedTuple):
    """What a command gave."""

    code: int
    shown: str
    written: dict[str, Any]

    def verdicts(self, op: str, backend: str) -> set[str]:
        return {one["verdict"] for one in self.written["checks"] if (one["op"], one.get("backend")) == (op, backend)}


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command with what a function of `PLANTED` breaks."""
    (tmp_path / "planted_check.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))

    monkeypatch.delenv("TRITON_INTERPRET")

    def run(function: str, *words: str, limit: float = 60.0) -> Outcome:
        out = tmp_path / "check.json"
        code = command.main([*words, "--out", str(out)], f"planted_check:{function}", limit)
        return Outcome(code, capsys.readouterr().out, json.loads(out.read_text()))

    return run


@pytest.mark.slow
@NATIVE
def test_what_is_wrong_is_told_and_costs_nothing_else(check: Callable[..., Outcome]) -> None:
    words = ["--device", "cpu", "--op", "interval_attention", "edge_attention", "bigru", "grouped_layer_norm"]
    found = check("several", *words, limit=20.0)
    assert found.code == 1
    wrong = [one["dtype"] for one in found.written["checks"] if one["op"] == "edge_attention" and one["verdict"] == "wrong"]
    assert set(wrong) == {"float64", "float32", "float16"}  # in bfloat16 a hundredth is within the bound
    assert found.verdicts("bigru", "native") == {"crashed"}
    assert found.verdicts("interval_attention", "native") == {"hung"}
    for op in ("edge_attention", "bigru", "interval_attention"):  # the others of the same op go on
        right = {one["backend"] for one in found.written["checks"] if one["op"] == op and one["verdict"] == "ok"}
        assert right - {"native"} == {name for name in backends._OPS[op].backends if name not in ("native", "cuda", "triton", "listed")}
    assert found.verdicts("grouped_layer_norm", "native") == {"ok", "refused"}
    once = [(one["op"], one["backend"], one["dtype"], one["case"]) for one in found.written["checks"] if "case" in one]
    assert len(once) == len(set(once))
    shown = found.shown
    assert re.search(r"\n  native +float64 +WRONG +error 1\.0e-02, at most 1\.0e-09; 2 cases, of which 2 not right\n", shown)
    assert re.search(r"\n    WRONG: edge attention, 32 graphs of 6 nodes, 1 x 64: error 1\.0e-02, at most 1\.0e-04\n", shown)
    assert re.search(r"\n  native +float64 +CRASHED: killed by SIGABRT, after 0 cases\n", shown)
    assert re.search(r"\n  native +float64 +HUNG: ended after 20 s without a result, after 0 cases\n", shown)
    assert "set MEA_GRAPH_NATIVE=0 in the environment. The whole model is right here with it.\n" in shown
    assert found.written["advice"] == {"cpu": "set MEA_GRAPH_NATIVE=0 in the environment"}
    assert found.written["right"] is False


@pytest.mark.slow
@NATIVE
def test_with_what_it_advises_the_same_fault_is_none(check: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEA_GRAPH_NATIVE", "0")
    found = check("wrong", "--op", "edge_attention", MODEL, "--device", "cpu")
    assert found.code == 0, found.shown
    assert found.verdicts("edge_attention", "native") == {"refused"}
    assert found.shown.splitlines()[-3] == "Everything that can run here is right: 1 op and the whole model, on cpu."
    assert "  native        left out: MEA_GRAPH_NATIVE=0 keeps 'auto' from it\n" in found.shown
    assert "C++ kernels: switched off: MEA_GRAPH_NATIVE=0\n" in found.shown


@pytest.mark.slow
def test_a_backend_that_raises_or_repeats_itself_differently_is_not_right(check: Callable[..., Outcome]) -> None:
    found = check("raises", "--op", "grouped_layer_norm", "--device", "cpu")
    assert found.code == 1
    assert found.verdicts("grouped_layer_norm", "batched") == {"failed"}
    assert "    FAILED: grouped layer norm, 40, rows 3 x 1920: RuntimeError: no registers left\n" in found.shown
    assert "wrong" in found.verdicts("grouped_layer_norm", "joined")
    assert found.written["advice"] == {"cpu": 'compute inside `with mea_graph.ops.use_backend("reference"):`'}


@pytest.mark.slow
def test_on_a_gpu_each_backend_is_compared_and_advice_is_tried_there(check: Callable[..., Outcome]) -> None:
    """A device that is not there: what would be a kernel is computed on the CPU."""
    found = check("on_a_gpu", "--device", "cuda", "--op", "edge_attention", "grouped_linear", MODEL)
    assert found.code == 1
    assert "  cuda:0: NVIDIA H200, compute capability 9.0\n" in found.shown
    assert found.verdicts("edge_attention", "cuda") == {"ok", "refused"}  # the kernels take no float64 and float16
    assert found.verdicts("grouped_linear", "triton") >= {"wrong"}
    assert found.verdicts("grouped_linear", "batched") == {"ok", "refused"}  # nor these groups of unequal size
    assert {one["device"] for one in found.written["checks"]} == {"cuda"}
    assert "wrong" in found.verdicts(MODEL, "auto")  # which calls it
    # Nor can the model compute by "batched" alone, since the modalities are not equally long on this device: trying it shows that.
    assert re.search(r'use_backend\("batched"\):`\n  not enough: MEA: ValueError: backend: grouped_\w+ cannot run on', found.shown)
    assert found.written["advice"] == {"cuda": 'compute inside `with mea_graph.ops.use_backend("joined"):`'}


@pytest.mark.slow
def test_a_backend_that_takes_the_gpu_with_it_is_told_and_the_others_go_on(check: Callable[..., Outcome]) -> None:
    found = check("loses_the_gpu", "--device", "cuda", "--op", "bilstm")
    assert found.code == 1
    assert found.verdicts("bilstm", "triton") == {"refused", "failed", "crashed"}  # float64 first, which the kernel does not take
    lost = "ended with exit code 1: mea_graph.check.work.LostError: CUDA error: an illegal memory access was encountered"
    assert [one["reason"] for one in found.written["checks"] if one["verdict"] == "crashed"] == [lost]
    assert found.verdicts("bilstm", "torch") == {"ok", "refused"}
    assert found.written["advice"] == {"cuda": 'compute inside `with mea_graph.ops.use_backend("torch"):`'}


def test_a_triton_kernel_is_compared_where_triton_interprets_it(check: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = check("interpreted", "--device", "cpu", "--op", "grouped_layer_norm")
    assert found.code == 0
    (case,) = [one for one in found.written["checks"] if one["backend"] == "triton"]
    assert (case["verdict"], case["dtype"], case["same_bits"]) == ("ok", "float32", True)
    assert 0 < case["error"] < case["bound"] == 1e-4


def test_where_torch_does_not_start_it_says_so(check: Callable[..., Outcome], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--op", MODEL], "planted_check:dies") == 1
    assert "CRASHED: ended with exit code 3" in capsys.readouterr().out


def test_without_torch_scatter_and_without_a_compiler_torch_is_checked_alone(
    check: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    found = check("without_scatter", "--device", "cpu", "--op", "segment_reductions")
    assert found.code == 0
    absent = "there is no C++ compiler: no c++, g++ or clang++"
    assert found.written["environment"]["native"] == {"how": "absent", "reason": absent}
    assert f"\nOn a CPU torch alone computes, since the C++ kernels are absent: {absent}.\n" in found.shown
    assert found.verdicts("segment_reductions", "torch") == {"ok"}
    assert found.verdicts("segment_reductions", "torch_scatter") == {"refused"}
    assert "  'auto' takes torch here in float32\n" in found.shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--device", "gpu"], "check: argument --device: expected cpu, cuda or cuda:N, got 'gpu'; see mea-graph check --help"),
        (["--op", "bilsm"], "(did you mean 'bilstm'?); see mea-graph check --help"),
        (["--otu", "x"], "check: there is no option --otu (did you mean '--out'?); see mea-graph check --help"),
        (["--out", "nowhere/check.json"], "check: --out: expected a file in an existing folder, got nowhere/check.json"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert whole_command(["check", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mea-graph: error: check: ")
    assert error.endswith(f"{told}\n")
    assert len(error.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_device_that_is_not_there_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert whole_command(["check", "--device", "cuda", "--op", "bigru"]) == 2
    assert capsys.readouterr().err == "mea-graph: error: check: --device: torch sees only cpu, got cuda\n"


def test_every_op_of_the_package_is_checked() -> None:
    assert set(OPS) == {*backends._OPS, "segment_reductions"} == set(plan.CASES)


def _checks(**verdicts: str) -> list[dict[str, Any]]:
    """Of one op on cuda, by backend."""
    return [{"device": "cuda", "op": "bilstm", "backend": name, "verdict": verdict} for name, verdict in verdicts.items()]


@pytest.mark.parametrize(
    ("checks", "tried"),
    [
        (_checks(triton="wrong", native="refused", torch="ok", reference="ok"), ["torch", "reference"]),
        (_checks(triton="crashed", torch="wrong", reference="ok"), ["reference"]),
        (_checks(triton="ok", reference="wrong"), ["triton"]),
        ([*_checks(triton="wrong", torch="ok", reference="ok"), {**_checks(triton="wrong")[0], "op": "grouped_linear"}], ["reference"]),
    ],
)
def test_what_is_tried_is_right_in_every_op_that_is_wrong(checks: list[dict[str, Any]], tried: list[str]) -> None:
    assert [remedy.task for remedy in remedies(checks, "cuda")] == [Task(MODEL, "cuda", backend=name) for name in tried]
    assert not list(remedies(checks, "cpu"))


def test_torch_scatter_is_avoided_by_uninstalling_it() -> None:
    checks = [
        {"device": "cpu", "op": "segment_reductions", "backend": name, "verdict": v}
        for name, v in (("torch_scatter", "wrong"), ("torch", "ok"))
    ]
    (remedy,) = remedies(checks, "cpu")
    assert remedy.text.startswith("uninstall torch-scatter")
    assert not list(remedies([{**checks[1], "verdict": "wrong"}], "cpu"))


def test_what_nothing_avoids_is_told() -> None:
    checks = _checks(triton="wrong")
    assert faults(checks, "cuda") == {"bilstm": {"triton": "wrong"}}
    assert conclusion(checks, ["cuda"], {"cuda": None})[:2] == [
        "WRONG here: bilstm, backend triton, on cuda.",
        "On cuda: nothing that was tried avoids it.",
    ]


def test_a_process_that_ended_before_any_backend_has_none() -> None:
    assert conclusion(_checks(**{"": "hung"}), ["cuda"], {"cuda": None})[0] == "HUNG here: bilstm, on cuda."


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be removed elsewhere")
def test_a_check_that_is_killed_leaves_no_file(tmp_path: Path) -> None:
    waits = "import time; from mea_graph.check.processes import Child; child = Child('json:dumps'); print('on', flush=True); time.sleep(60)"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", waits], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1)  # the child begins
        assert list(tmp_path.glob("mea-graph-check-*.log"))
        process.kill()
    end = time.monotonic() + 30
    while list(tmp_path.glob("mea-graph-check-*.log")) and time.monotonic() < end:
        time.sleep(0.1)
    assert not list(tmp_path.glob("mea-graph-check-*.log"))
