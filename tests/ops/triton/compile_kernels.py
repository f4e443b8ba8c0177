"""Compiles every kernel that a call would launch, for GPUs that are not here, and prints what each needs, one JSON object a line.

Runs in a process of its own, without TRITON_INTERPRET. The launches are the operators' own: on CPU tensors, with the launcher replaced by
the compiler, so that the compile-time arguments cannot differ from those that ship.

    python compile_kernels.py 90 8x5 float32 bfloat16    # compute capability 9.0; 8 heads of 5 channels
"""

import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

if __name__ == "__main__":  # not where pytest looks for examples: there, what comes after is interpreted
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # the default until Triton 3.9, which warns where it is unset

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from mea_graph.ops.predictive_attention import triton as backend

POINTERS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8", torch.int32: "i32"}
CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTIONS = ("LDL", "STL", "HGMMA", "HMMA", "MUFU")


def compile_launch(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any], capability: int) -> Any:
    """What `kernel[grid](*args, **kwargs)` would compile on that GPU."""
    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
    bound = inspect.signature(kernel.fn).bind(*args, **kwargs).arguments
    signature, constants, attributes = {}, {}, {}
    for i, (name, value) in enumerate(bound.items()):
        if name.isupper() or (isinstance(value, int) and value == 1):  # Triton makes a constant of every 1
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if signature[name] != "constexpr" and (isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)):
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
    registers, stack = (int(n) for n in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    counts = {name: len(re.findall(rf"\b{name}\b", code)) for name in INSTRUCTIONS}
    return {"registers": registers, "stack": stack, "shared": compiled.metadata.shared} | counts


def main(capability: int, heads: int, width: int, dtypes: list[str]) -> None:
    seen = set()

    def launch(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        name = self.__name__.removeprefix("predictive_attention_") + (" (backward)" if kwargs.get("BACKWARD") else "")
        if (name, dtype) not in seen:
            seen.add((name, dtype))
            tiles = [kwargs[n] for n in ("ROWS", "COLUMNS", "CHUNK") if n in kwargs]
            label = {"capability": capability, "heads": heads, "width": width, "dtype": dtype, "kernel": name, "tiles": tiles}
            print(json.dumps(label | resources(compile_launch(self, args, kwargs, capability))), flush=True)

    JITFunction.run = launch
    backend._capability = lambda x: divmod(capability, 10)
    for dtype in dtypes:
        tensors = [torch.randn(1, heads, 100, width, dtype=getattr(torch, dtype)) for _ in range(5)]
        tensors += [torch.randn(heads, heads, 3, 3), torch.randn(heads)]
        mask = torch.ones(1, 100, dtype=torch.bool)
        out, statistics = backend._forward(*tensors, mask, 0.25)
        backend._backward(torch.randn_like(out), out, statistics, *tensors, mask, 0.25)


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(int, sys.argv[2].split("x")), sys.argv[3:])
