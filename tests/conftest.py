"""What every test runs under: one thread, a fixed seed, no display, Triton interpreted."""

import errno
import importlib.util
import multiprocessing
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton: kernels run in its interpreter, on the CPU

import pytest
import torch

from mea_graph.ops.native import library

torch.set_num_threads(1)

ASK_FOR_NATIVE = {"ops", "nn", "benchmarks"}  # folders of tests that name the backends they mean, or count what torch alone is asked for


# What a child does first. Its text is run by `exec`, so that the child needs to import nothing of the tests.
START = """
import os, runpy, sys
os.setsid()  # what is sent to its group does not reach the tests
os.chdir(folder)
os.environ.pop("MEA_GRAPH_RUN_DIR", None)  # of a run in the process of the tests
os.environ.pop("MEA_GRAPH_NATIVE", None)  # of the test that started the server, which may ask for other backends
os.environ.update(environment)
for number in (1, 2):
    os.dup2(os.open(f"child-{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
sys.path.insert(0, folder)
sys.argv[:] = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


@dataclass
class Child:
    """A running process, as `python script arguments` would be."""

    process: Any
    output: Path

    def wait(self, timeout: float = 120) -> int:
        """Returns the exit code, or the negative number of the signal that ended it; a process that takes too long fails the test."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            pytest.fail(f"the child took more than {timeout} s; it wrote:\n{self.text()}")
        return self.process.exitcode

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Lightning ignores Ctrl+C for good once it has come, and so would every later test of this process and the programs it starts."""
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it, too
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="module", autouse=True)
def _native(request: pytest.FixtureRequest) -> Iterator[None]:
    """Most tests run on the backends that a user has, C++ where there is a compiler; it is built before a test looks at stderr."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.relative_to(Path(__file__).parent).parts[0] in ASK_FOR_NATIVE:
            patch.setenv("MEA_GRAPH_NATIVE", "0")
        else:
            library.refuse()
        yield


@pytest.fixture(scope="session")
def torch_scatter_installed() -> None:
    """Skips a test where torch_scatter is missing; fails it where MEA_GRAPH_REQUIRE_SCATTER says that it has to be there (`make test`)."""
    from mea_graph.ops.segment import has_torch_scatter

    if has_torch_scatter():
        return
    if os.environ.get("MEA_GRAPH_REQUIRE_SCATTER") == "1":
        pytest.fail("MEA_GRAPH_REQUIRE_SCATTER=1, but torch_scatter cannot be imported")
    pytest.skip("torch_scatter is not installed")


@pytest.fixture(scope="module")
def tool() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of `tools/`."""
    imported = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "tools" / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        imported.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in imported:
        del sys.modules[name]


@pytest.fixture(params=["open", "fsync", "fsync, not permitted"])
def disk_that_syncs_no_folders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows opens no folder; some network disks refuse to sync one."""
    original_open, original_sync = os.open, os.fsync

    def opened(path, *args, **kwargs):
        if request.param == "open" and Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return original_open(path, *args, **kwargs)

    def synced(descriptor):
        if request.param != "open" and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EACCES if "not permitted" in request.param else errno.EINVAL, "refused")
        return original_sync(descriptor)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", synced)


@pytest.fixture(scope="session")
def warm_server() -> Any:
    """A server that has imported the package once and forks children from there: seconds saved for each of them."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["mea_graph.train.cli", "h5py"])
    return server


@pytest.fixture
def child(warm_server, tmp_path) -> Callable[..., Child]:
    """Starts a script in a process of its own, in the test's folder."""
    started = []

    def start(script: str | Path, *arguments: object, environment: dict[str, str] | None = None) -> Child:
        name = str(len(started))
        backends = {"MEA_GRAPH_NATIVE": os.environ["MEA_GRAPH_NATIVE"]} if "MEA_GRAPH_NATIVE" in os.environ else {}
        known = {
            "folder": str(tmp_path),
            "environment": {"CUDA_VISIBLE_DEVICES": "", **backends, **(environment or {})},
            "name": name,
            "script": str(script),
            "arguments": [str(argument) for argument in arguments],
        }
        process = warm_server.Process(target=exec, args=(START, known))
        process.start()
        started.append(process)
        return Child(process, tmp_path / f"child-{name}.txt")

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


@pytest.fixture
def command() -> Path:
    """The script behind `mea-graph`."""
    import mea_graph.__main__

    return Path(mea_graph.__main__.__file__)


@pytest.fixture
def start_two(child, command) -> Callable[..., list[Child]]:
    """Starts a command of training in two processes over gloo, as a launcher such as torchrun does."""

    def start(*words: object) -> list[Child]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
        words = (*words, "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")
        return [child(command, *words, environment={**launched, "LOCAL_RANK": str(rank)}) for rank in range(2)]

    return start


@pytest.fixture
def two(start_two) -> Callable[..., str]:
    """Runs a command of training in two processes and returns what they wrote."""

    def run(*words: object) -> str:
        started = start_two(*words)
        codes = [process.wait(timeout=100) for process in started]  # one that waits for the other for ever fails here
        written = "\n".join(process.text() for process in started)
        assert codes == [0, 0], written
        return written

    return run
