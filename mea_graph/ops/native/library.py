"""Builds the C++ sources of this folder into one library, loads it, and calls its functions on tensors."""

import concurrent.futures
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SOURCES = ("edge.cpp", "grouped.cpp", "interval.cpp", "predictive.cpp", "recurrent.cpp")
_FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-pthread", "-w")
_LOG = logging.getLogger(__name__)

Field = Tensor | int | None


@torch.compiler.assume_constant_result
def hold() -> str | None:
    """Why "auto" does not take the native backends, or None."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return "a graph is recorded, which may run where there is no compiler"
    return "MEA_GRAPH_NATIVE=0 keeps 'auto' from it" if is_switched_off() else None


def is_switched_off() -> bool:
    return os.environ.get("MEA_GRAPH_NATIVE") == "0"


@torch.compiler.assume_constant_result
def refuse() -> str | None:
    """Why there is no library, or None; builds it at first use."""
    found = _library()
    return found if isinstance(found, str) else None


@functools.cache
def _library() -> ctypes.CDLL | str:
    if os.name != "posix":
        return f"it is not built on {platform.system()}"
    found = compiler()
    if found is None:
        return "there is no C++ compiler: no c++, g++ or clang++"
    try:
        return _load(found)
    except (OSError, RuntimeError) as error:
        _LOG.info("native kernels: %s", error)
        return str(error).splitlines()[0]


def compiler() -> str | None:
    """The C++ compiler that builds the library, or None."""
    return next(filter(None, map(shutil.which, [os.environ.get("CXX") or "c++", "g++", "clang++"])), None)


def library_path(compiler: str) -> Path:
    """Where the library of a compiler is kept."""
    return cache_folder() / f"{_key(compiler)}.so"


def _load(compiler: str) -> ctypes.CDLL:
    """Loads the library from the cache folder; builds it if it is not there.

    Raises:
        RuntimeError: If the sources do not compile; the message holds the compiler's.
    """
    path = library_path(compiler)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=path.parent)
        except OSError:  # no folder to write to: the next process builds again
            with tempfile.TemporaryDirectory() as place:
                return ctypes.CDLL(_build(compiler, Path(place)))
        with folder as place, _one_at_a_time(path.parent):
            if not path.exists():
                os.replace(_build(compiler, Path(place)), path)  # whole or not at all
    return ctypes.CDLL(str(path))


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets processes that start together wait for the first one's library."""
    import fcntl

    with (folder / "native.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(compiler: str, folder: Path) -> str:
    """Compiles all sources at the same time, since that takes seconds, and links them. It says so: the first call seems to hang."""
    _LOG.warning("building the C++ kernels, once on this machine, which takes up to a minute; MEA_GRAPH_NATIVE=0 computes without them")
    here, objects = Path(__file__).parent, [str(folder / f"{Path(source).stem}.o") for source in _SOURCES]
    with concurrent.futures.ThreadPoolExecutor(len(_SOURCES)) as pool:
        compile_one = lambda source, to: _run(compiler, *_FLAGS, "-c", str(here / source), "-o", to)  # noqa: E731
        list(pool.map(compile_one, _SOURCES, objects))
    path = str(folder / "native.so")
    _run(compiler, *_FLAGS, "-shared", *objects, "-o", path)
    return path


def _run(compiler: str, *arguments: str) -> None:
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"{compiler} could not compile it\n{done.stderr}")


def _key(compiler: str) -> str:
    """The name of the library, which changes with the sources, the compiler and the processor (`-march=native`)."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, errors="replace", check=False).stdout
    texts = [(Path(__file__).parent / name).read_text() for name in ("lanes.h", *_SOURCES)]
    return hashlib.sha256("\0".join([*texts, *_FLAGS, compiler, version, platform.machine(), _processor()]).encode()).hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def cache_folder() -> Path:
    """Where the user keeps what was compiled: C++ for the processor, CUDA C++ for a GPU."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mea-graph" / "kernels"


def rows(x: Tensor | None) -> Sequence[Field]:
    """The fields of a `Rows`: (N, K, D) by its strides."""
    return (None, 0, 0, 0) if x is None else (x, *x.stride())


def call(name: str, dtype: torch.dtype, fields: Sequence[Field], *numbers: float) -> None:
    """Calls `<name>_float` or `<name>_double` on a struct of 8-byte fields: tensors as the address of their data, None as null."""
    values = [field if type(field) is int else _address(field, dtype) for field in fields]
    call_addresses(name, dtype, values, *numbers)


def _address(field: Field, dtype: torch.dtype) -> int:
    if not isinstance(field, Tensor):
        return int(field or 0)
    if not field.is_cpu or field.dtype not in (dtype, torch.int64):
        raise RuntimeError(f"native kernels: expected {dtype} and torch.int64 on a CPU, got {field.dtype} on {field.device}")
    return field.data_ptr()


def call_addresses(name: str, dtype: torch.dtype, fields: Sequence[int], *numbers: float) -> None:
    """As `call`, for a caller that has checked its tensors and gives their addresses: it asks nothing of each field."""
    _function(name, dtype, len(numbers))(struct.pack(f"{len(fields)}q", *fields), *numbers)


@functools.cache
def _function(name: str, dtype: torch.dtype, numbers: int) -> Any:
    library = _library()
    if isinstance(library, str):
        raise RuntimeError(f"native kernels: {library}")
    function = getattr(library, f"{name}_{'double' if dtype == torch.float64 else 'float'}")
    function.argtypes, function.restype = [ctypes.c_char_p, *[ctypes.c_double] * numbers], None
    return function
