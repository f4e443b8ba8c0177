"""Kernels compiled by g++ as plain C++, in the place of those that the CUDA driver would run."""

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mea_graph.ops.edge import cuda, driver

HERE = Path(__file__).parent
THREADS = cuda.WARP * cuda.WARPS


def _written(argument: driver.Argument) -> bytes:
    """An argument as edge_attention_host.cpp reads it."""
    if argument is None:
        return b"t" + (-1).to_bytes(8, "little", signed=True)
    if isinstance(argument, Tensor):
        data = argument.view(-1).view(torch.uint8).numpy().tobytes()
        return b"t" + len(data).to_bytes(8, "little") + data
    return b"n" + ctypes.sizeof(argument).to_bytes(8, "little") + bytes(argument)


class HostKernels:
    """Kernels in a library; takes what `driver.Module` takes, in the same form."""

    flags = ("-shared", "-fPIC")

    def __init__(self, made: Path) -> None:
        self._library = ctypes.CDLL(str(made))
        self.reversed = False  # run the threads of a block in the opposite order
        self.launched: list[str] = []

    def launch(self, name: str, grid: tuple[int, int], arguments: Sequence[driver.Argument]) -> None:
        values, pointers = driver.pack(arguments)
        assert self._library.launch_kernel(name.encode(), *grid, THREADS, pointers, int(self.reversed)) == 0, name
        self.launched.append(name)
        del values


class SanitizedKernels:
    """Kernels in a program of their own, which ends with an error at the first bad access."""

    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

    def __init__(self, made: Path) -> None:
        self._program, self.launched = made, []  # type: tuple[Path, list[str]]

    def launch(self, name: str, grid: tuple[int, int], arguments: Sequence[driver.Argument]) -> None:
        launch = self._program.with_suffix(".launch")
        with launch.open("wb") as file:
            for a in arguments:
                file.write(_written(a))
        done = subprocess.run(
            [self._program, launch, name, *map(str, grid), str(THREADS)],
            env={"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        data, at = launch.read_bytes(), 0
        for a in arguments:
            if isinstance(a, Tensor) and a.numel():
                a.copy_(torch.frombuffer(bytearray(data[at : at + a.nbytes]), dtype=a.dtype).view_as(a))
                at += a.nbytes
        self.launched.append(name)


@pytest.fixture(scope="session")
def compile_for_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., HostKernels | SanitizedKernels]:
    folder, made = tmp_path_factory.mktemp("host_kernels"), {}

    def compile_(variant: cuda.Variant, kind: type = HostKernels, source: str | None = None) -> HostKernels | SanitizedKernels:
        key = (variant, kind, source)
        if key not in made:
            kernel, out = folder / f"kernel{len(made)}.cu", folder / f"kernel{len(made)}.so"
            kernel.write_text(cuda.source() if source is None else source)
            command = ["g++", "-std=c++17", "-O1", "-g1", *kind.flags, *variant.options, f'-DSOURCE="{kernel}"', f"-I{HERE}"]
            done = subprocess.run([*command, str(HERE / "edge_attention_host.cpp"), "-o", str(out)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            made[key] = kind(out)
        return made[key]

    return compile_


@pytest.fixture
def put_in(monkeypatch: pytest.MonkeyPatch, compile_for_host) -> Callable[..., dict[str, HostKernels | SanitizedKernels]]:
    """From its call on the CUDA backend runs on the CPU; the result's "used" is what ran last."""

    def put_in_(**kind_and_source) -> dict[str, HostKernels | SanitizedKernels]:
        used = {}

        def kernels(variant: cuda.Variant, device: torch.device) -> HostKernels | SanitizedKernels:
            used["used"] = compile_for_host(variant, **kind_and_source)
            return used["used"]

        monkeypatch.setattr(cuda, "kernels", kernels)
        return used

    return put_in_


@pytest.fixture
def host_kernels(put_in) -> dict[str, HostKernels]:
    return put_in()


@pytest.fixture
def sanitized_kernels(put_in) -> dict[str, SanitizedKernels]:
    return put_in(kind=SanitizedKernels)


@pytest.fixture
def planted_overrun(put_in) -> None:
    """A row is written one read too far; after the last row that is beyond the tensor."""
    sound = "lane_id() < LANES && first_channel() < channels"
    assert cuda.source().count(sound) == 2
    put_in(kind=SanitizedKernels, source=cuda.source().replace(sound, sound.replace("< channels", "<= channels")))
