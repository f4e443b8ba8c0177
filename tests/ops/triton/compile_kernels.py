"""Compiles every kernel that a call would launch, for GPUs that are not here, and prints what each needs, one JSON object a line.

Runs in a process of its own, without TRITON_INTERPRET. The launches are the operators' own: on CPU tensors, with the launcher replaced by
the compiler, so that the compile-time arguments cannot differ from those that ship.

    python compile_kernels.py 90 float32 bfloat16
"""

import functools
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp()

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from mea_graph.ops.predictive_attention import triton as backend

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTIONS = ("LDL", "STL", "HGMMA", "HMMA", "FFMA", "MUFU", "LDGSTS", "SHFL", "LDS", "STS", "BAR")


def compile_launch(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any], capability: int) -> Any:
    """What `kernel[grid](*args, **kwargs)` would compile on that GPU."""
    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
    bound = inspect.signature(kernel.fn).bind(*args, **kwargs).arguments
    signature, constants, attributes = {}, {}, {}
    for i, (name, value) in enumerate(bound.items()):
        constant = name.isupper() or (isinstance(value, int) and value == 1)
        signature[name] = (
            "constexpr"
            if constant
            else POINTERS[value.dtype]
            if isinstance(value, torch.Tensor)
            else "fp32"
            if isinstance(value, float)
            else "i32"
        )
        if constant:
            constants[name] = value
        elif isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled: Any) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        )
    found = {name.lower(): int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL")}  # type: ignore[index]
    counts = {name: len(re.findall(rf"\b{name}\b", code)) for name in INSTRUCTIONS}
    return found | {"shared": compiled.metadata.shared, "instructions": len(re.findall(r"/\*[0-9a-f]{4,5}\*/", code))} | counts


def main(capability: int, dtypes: list[torch.dtype], shapes: list[tuple[int, int]]) -> None:
    label: dict[str, Any] = {}

    def launch(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        started = time.perf_counter()
        row = {"kernel": self.__name__} | label | {n: kwargs.get(n) for n in ("ROWS", "COLUMNS", "CHUNK", "num_warps", "num_stages")}
        row |= resources(compile_launch(self, args, kwargs, capability))
        print(json.dumps(row | {"seconds": round(time.perf_counter() - started, 1)}), flush=True)

    JITFunction.run = launch
    backend._capability = lambda x: divmod(capability, 10)
    for dtype in dtypes:
        for heads, width in shapes:
            label |= {"capability": capability, "dtype": str(dtype).removeprefix("torch."), "heads": heads, "width": width}
            tensors = [torch.randn(2, heads, 500, width, dtype=dtype) for _ in range(5)]
            tensors += [torch.randn(heads, heads, 3, 3), torch.randn(heads)]
            mask = torch.ones(2, 500, dtype=torch.bool)
            out, statistics = backend._forward(*tensors, mask, 0.25)
            launch_backward = functools.partial(backend._backward, torch.randn_like(out), out, statistics)
            launch_backward(*tensors, mask, 0.25)


if __name__ == "__main__":
    main(int(sys.argv[1]), [getattr(torch, name) for name in sys.argv[2:]], [(8, 5), (1, 64)])
