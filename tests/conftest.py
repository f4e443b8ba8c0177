"""What every test runs under: one thread, a fixed seed, no display, Triton interpreted, C++ only where a test asks for it."""

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton: kernels run in its interpreter, on the CPU
os.environ.setdefault("MEA_GRAPH_NATIVE", "0")  # what "auto" takes must not depend on a compiler; tests/ops/test_native.py asks by name

import pytest
import torch

torch.set_num_threads(1)


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


@pytest.fixture(scope="session")
def torch_scatter_installed() -> None:
    """Skips a test where torch_scatter is missing; fails it where MEA_GRAPH_REQUIRE_SCATTER says that it has to be there (`make test`)."""
    from mea_graph.ops.segment import has_torch_scatter

    if has_torch_scatter():
        return
    if os.environ.get("MEA_GRAPH_REQUIRE_SCATTER") == "1":
        pytest.fail("MEA_GRAPH_REQUIRE_SCATTER=1, but torch_scatter cannot be imported")
    pytest.skip("torch_scatter is not installed")
