"""kernel.cu compiled for real GPUs, without one: every shipped kind of variant, no register spilled; and the cache of the results."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mea_graph.ops import InEdges, edge_attention, explain
from mea_graph.ops.edge import cuda, driver, nvrtc

VARIANTS = [  # the widths that matter, the narrowest and the widest reads, rows of few lanes and of several tiles
    cuda.variant_for(torch.float32, 64),
    cuda.variant_for(torch.float32, 128),
    cuda.variant_for(torch.float32, 4),
    cuda.variant_for(torch.float32, 33),
    cuda.variant_for(torch.bfloat16, 64),
    cuda.variant_for(torch.bfloat16, 512),
    cuda.variant_for(torch.bfloat16, 33),
]
KERNELS = {"edge_attention_fwd_kernel", "edge_attention_bwd_target_kernel", "edge_attention_bwd_source_kernel"}


@pytest.fixture
def _nvrtc() -> None:
    if sys.platform != "linux":
        pytest.skip("NVRTC is tested on Linux")
    assert nvrtc.load() is not None, "nvidia-cuda-nvrtc belongs to the extra `test`"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mea-graph" / "kernels"


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{'bf16' if v.bf16 else 'f32'}-{v.vector}x{v.lanes}")
@pytest.mark.usefixtures("_nvrtc")
def test_compiles_without_spills(variant: cuda.Variant, capability: int) -> None:
    cubin, log = nvrtc.compile_source(cuda.source(), capability, (*variant.options, "--ptxas-options=-v"))
    pattern = r"""entry\ function\ '(\w+)' .*? (\d+)\ bytes\ stack\ frame, .*? (\d+)\ bytes\ spill\ stores .*?
                  Used\ (\d+)\ registers .*? (\d+)\ bytes\ smem"""
    found = re.findall(pattern, log, re.DOTALL | re.VERBOSE)
    for name, stack, spilled, registers, shared in found:
        print(f"sm_{capability} {variant}: {name}: {registers} registers, {shared} bytes of shared memory")
        assert (int(stack), int(spilled)) == (0, 0), name
        assert int(registers) <= 80, name  # three blocks of 256 threads fit in the 65536 of a multiprocessor
        assert int(shared) <= 16 * 1024, name
    assert {name for name, *_ in found} == KERNELS
    assert cubin[:4] == b"\x7fELF"


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.usefixtures("_nvrtc")
def test_four_rows_are_read_at_once(capability: int, tmp_path: Path) -> None:
    """In machine code: no multiplication between a read of 16 bytes and the three after it."""
    dump = Path(pytest.importorskip("triton").__file__).parent / "backends/nvidia/bin/cuobjdump"
    cubin, _ = nvrtc.compile_source(cuda.source(), capability, VARIANTS[0].options)
    (tmp_path / "kernel.cubin").write_bytes(cubin)
    code = subprocess.run([dump, "--dump-sass", tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True).stdout
    for part in code.split("Function : ")[1:]:
        between = re.split(r"\bFFMA\b|\bFMUL\b", part)
        assert max(len(re.findall(r"\bLDG\.E\.128", each)) for each in between) >= 4, part.split()[0]


@pytest.mark.parametrize(
    ("dtype", "channels", "vector", "lanes"),
    [
        (torch.float32, 64, 4, 16),
        (torch.float32, 1, 1, 1),
        (torch.float32, 6, 2, 4),
        (torch.float32, 1000, 4, 32),
        (torch.bfloat16, 64, 8, 8),
        (torch.bfloat16, 33, 1, 32),
    ],
)
def test_variants_read_whole_rows(dtype: torch.dtype, channels: int, vector: int, lanes: int) -> None:
    assert cuda.variant_for(dtype, channels) == (dtype == torch.bfloat16, vector, lanes)


@pytest.mark.usefixtures("_nvrtc")
def test_a_source_that_does_not_compile_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"could not compile for sm_90:(?s:.*)not_declared"):
        nvrtc.compile_source("__global__ void k() { not_declared = 1; }", 90)


@pytest.mark.usefixtures("_nvrtc")
def test_machine_code_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(nvrtc, "compile_source", lambda *args: (compiled.append(args), (b"code", ""))[1])
    assert nvrtc.cached_cubin("source", 90, ("-DA",))[0] == b"code"
    assert nvrtc.cached_cubin("source", 90, ("-DA",))[0] == b"code"
    assert len(compiled) == 1
    for other in (("source2", 90, ("-DA",)), ("source", 80, ("-DA",)), ("source", 90, ("-DB",))):
        nvrtc.cached_cubin(*other)
    monkeypatch.setattr(nvrtc, "version", lambda: "0.0")
    nvrtc.cached_cubin("source", 90, ("-DA",))
    assert len(compiled) == 5
    assert sorted(p.suffix for p in cache.iterdir()) == [".cubin"] * 5  # nothing unfinished


@pytest.mark.usefixtures("_nvrtc")
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(nvrtc, "compile_source", lambda *args: (b"code", ""))
    assert nvrtc.cached_cubin("source", 90)[0] == b"code"


@pytest.mark.usefixtures("_nvrtc")
def test_a_damaged_file_is_compiled_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        def __init__(self, cubin: bytes, device: int, threads: int) -> None:
            if cubin != b"sound":
                raise RuntimeError("cuModuleLoadData: CUDA error 200")

    monkeypatch.setattr(driver, "Module", Module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(nvrtc, "compile_source", lambda *args: (b"sound", ""))
    variant, device = VARIANTS[0], torch.device("cuda", 0)
    _, path = nvrtc.cached_cubin(cuda.source(), 90, variant.options)
    path.write_bytes(b"half")
    cuda.kernels.__wrapped__(variant, device)
    assert path.read_bytes() == b"sound"


def on_cuda(dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cuda", 0))


def test_it_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(x: object, score: object) -> str | None:
        cuda._what_is_missing.cache_clear()
        return cuda.refuse(x, score, score, InEdges(*[on_cuda(torch.long)] * 6))

    score = on_cuda()
    assert reason(on_cuda(torch.float64), score) == "the kernels take values in torch.float32, torch.bfloat16, got torch.float64"
    assert reason(on_cuda(), on_cuda(torch.float64)).startswith("the kernels take scores in")
    monkeypatch.setattr(nvrtc, "load", lambda: None)
    assert reason(on_cuda(), score).startswith("NVRTC is not installed")
    monkeypatch.setattr(nvrtc, "load", lambda: object())
    monkeypatch.setattr(driver, "load", lambda: None)
    assert reason(on_cuda(), score) == "libcuda.so.1, the CUDA driver, cannot be loaded"
    monkeypatch.setattr(driver, "load", lambda: object())
    monkeypatch.setattr(nvrtc, "architectures", lambda: [80, 90])
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (15, 0))
    assert reason(on_cuda(), score) == "NVRTC 13.0 cannot compile for compute capability 15.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert reason(on_cuda(), score) is None
    cuda._what_is_missing.cache_clear()


def test_it_is_explained_and_never_replaced_in_silence() -> None:
    arguments = torch.zeros(1, 1, 1), torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(2, 1, dtype=torch.long)
    explanation = explain(edge_attention, *arguments)
    assert (explanation.chosen, explanation.refused["cuda"]) == ("cpu", "the tensors are on cpu, not on CUDA")
    with pytest.raises(ValueError, match="backend: edge_attention cannot run on 'cuda' here: the tensors are on cpu, not on CUDA"):
        edge_attention(*arguments, backend="cuda")
