"""Compiles CUDA C++ at run time by NVRTC, the library that CUDA builds of torch depend on. Needs no GPU."""

import ctypes
import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mea_graph.ops.native.library import cache_folder


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, or None where there is none. Python packages come before the system's: torch depends on the former."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [] if spec else [])]
    found = sorted((path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*[0-9]")), reverse=True)
    for name in [*map(str, found), "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def architectures() -> list[int]:
    """The compute capabilities, as 90 for 9.0, that the library can compile for."""
    number = ctypes.c_int()
    _check(_library().nvrtcGetNumSupportedArchs(ctypes.byref(number)))
    found = (ctypes.c_int * number.value)()
    _check(_library().nvrtcGetSupportedArchs(found))
    return list(found)


def compile_source(source: str, capability: int, options: Sequence[str] = ()) -> tuple[bytes, str]:
    """Machine code for GPUs of a compute capability, and the compiler's log.

    Raises:
        RuntimeError: If the source does not compile; the message holds the log.
    """
    nvrtc, program = _library(), ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        flags = [f"--gpu-architecture=sm_{capability}", "--std=c++17", *options]
        failed = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags)))
        log = _read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if failed:
            raise RuntimeError(f"NVRTC {version()} could not compile for sm_{capability}:\n{log}")
        return _read(program, "CUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def cached_cubin(source: str, capability: int, options: Sequence[str] = ()) -> tuple[bytes, Path]:
    """The machine code of `compile_source`, read from the user's cache folder if it is there, and its path."""
    key = hashlib.sha256("\0".join([source, str(capability), version(), *options]).encode()).hexdigest()
    path = cache_folder() / f"{key}.cubin"
    try:
        return path.read_bytes(), path
    except OSError:
        return write_cubin(path, compile_source(source, capability, options)[0]), path


def write_cubin(path: Path, cubin: bytes) -> bytes:
    """Writes the file whole or not at all, beside other writers too. If the folder cannot be written, the next process compiles again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(cubin)
            os.replace(unfinished, path)
        except OSError:
            os.unlink(unfinished)
    except OSError:
        pass
    return cubin


def _library() -> ctypes.CDLL:
    library = load()
    if library is None:
        raise RuntimeError("NVRTC is not installed; it comes with CUDA builds of torch, or as the package nvidia-cuda-nvrtc")
    return library


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, text))
    return text.raw


def _check(result: int) -> None:
    if result:
        describe = _library().nvrtcGetErrorString
        describe.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {describe(result).decode()}")
