"""Compiles every kernel that a call would launch, for GPUs that are not here, and prints what each needs, one JSON object a line.

Runs in a process of its own, without TRITON_INTERPRET. The launches are the operators' own: on CPU tensors, with the launcher replaced by
the compiler, so that the compile-time arguments cannot differ from those that ship.

    python compile_kernels.py 90 8x5 float32 bfloat16    # compute capability 9.0; 8 heads of 5 channels
    python compile_kernels.py 90 8x5 bfloat16 --only=predictive_fwd    # kernels whose names have that in them
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

from mea_graph.ops import IntervalEdges, Pointers
from mea_graph.ops.interval import triton as interval
from mea_graph.ops.predictive import triton as predictive
from mea_graph.ops.recurrent import triton as recurrent

POINTERS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
LENGTHS = ([100, 40], [1], [16, 16, 16])  # the kernels are those of the first, whatever the number of samples and of steps
CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTIONS = ("LDL", "STL", "HGMMA", "HMMA", "MUFU")
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/ +(?:@!?U?P\w+ +)?([A-Z][\w.]*)([^;]*);")


def specialize(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What of its arguments makes `kernel[grid](*args, **kwargs)` a kernel of its own."""
    bound = inspect.signature(kernel.fn).bind(*args, **kwargs).arguments
    signature, constants, attributes = {}, {}, {}
    for i, ((name, value), parameter) in enumerate(zip(bound.items(), kernel.params, strict=True)):
        specialized = not parameter.do_not_specialize
        if name.isupper() or (specialized and isinstance(value, int) and value == 1):  # Triton makes a constant of every 1
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        aligned = isinstance(value, torch.Tensor) or (specialized and isinstance(value, int) and value % 16 == 0)
        if signature[name] != "constexpr" and aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return {"signature": signature, "constexprs": constants, "attrs": attributes}


def loops(code: list[tuple[int, str, str]]) -> list[dict[str, Any]]:
    """Every loop in machine code: how deep it lies, and its instructions without those of the loops inside it."""
    spans = []
    for address, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if name == "BRA" else None
        if target and int(target[1], 16) < address:
            spans.append((int(target[1], 16), address))
    found = []
    for first, last in sorted(set(spans), key=lambda s: (s[0], -s[1])):
        inside = [s for s in spans if s != (first, last) and first <= s[0] and s[1] <= last]
        own = [n for a, n, _ in code if first <= a <= last and not any(s[0] <= a <= s[1] for s in inside)]
        depth = sum(s != (first, last) and s[0] <= first and last <= s[1] for s in set(spans))
        found.append({"depth": depth, "instructions": len(own), "MUFU": sum(n.startswith("MUFU") for n in own)})
    return found


def resources(compiled: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        )
    registers, stack = (int(n) for n in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    counts: dict[str, Any] = {name: len(re.findall(rf"\b{name}\b", code)) for name in INSTRUCTIONS}
    lines = [(int(a, 16), n, rest) for a, n, rest in _LINE.findall(code) if n != "NOP"]
    counts |= {"instructions": len(lines), "loops": loops(lines)}
    return {"registers": registers, "stack": stack, "shared": compiled.metadata.shared} | counts


def launches(heads: int, width: int, dtype: torch.dtype, lengths: list[int]) -> None:
    """Forward and backward of each op on rows without gaps and with them; in float32, interval attention with windows only."""
    packed = Pointers.from_ptr(torch.tensor([0, *lengths]).cumsum(0))
    padded = Pointers.from_mask(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])
    for pointers in (packed, padded):
        tensors = [torch.randn(pointers.num_rows, heads, width, dtype=dtype) for _ in range(5)]
        rest = (torch.randn(heads, heads, 3, 3), torch.randn(heads), pointers.start, pointers.length, max(lengths), pointers.packed, 0.25)
        out, statistics = predictive._forward(*tensors, *rest)
        predictive._backward(torch.randn_like(out), out, statistics, *tensors, *rest)
        complete = IntervalEdges.complete(pointers, pointers)
        windows = IntervalEdges.join([IntervalEdges.window(pointers, pointers, steps=2)] * 2)
        for edges in (windows,) if dtype == torch.float32 else (windows, complete):
            query, key, value = tensors[0], *(torch.cat([x] * len(edges.sources)) for x in tensors[1:3])
            runs = (None, None) if edges.is_complete else (edges.begin, edges.end)
            where = (pointers.start, pointers.length, edges.source_start, edges.source_length, *runs, pointers.packed)
            out, logsumexp = interval._forward(query, key, value, *where)
            interval._backward(torch.randn_like(out), out, logsumexp, query, key, value, *where)
        hidden = 64 if width > 16 else 20
        recurrence = (torch.randn(1, 2, 4, hidden, hidden), pointers.start, pointers.length, [pointers.num_rows], pointers.packed)
        out, states = recurrent.RECURRENCE.forward(torch.randn(pointers.num_rows, 2, 4, hidden, dtype=dtype), *recurrence)
        recurrent.RECURRENCE.backward(torch.randn_like(out), states, *recurrence)


def main(capability: int, heads: int, width: int, dtypes: list[str], only: str = "") -> None:
    seen = set()

    def launch(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in kwargs}
        special = specialize(self, args, kwargs)
        if (self.__name__, str(special)) in seen or kwargs.get("BACKWARD") is False:  # what folds for the forward pass is a part of that
            return
        seen.add((self.__name__, str(special)))
        name = self.__name__.replace("_attention", "").removesuffix("_kernel")
        name += "".join(f" ({flag.lower()})" for flag in ("BACKWARD", "HAS_RUNS") if kwargs.get(flag))
        tiles = [kwargs[n] for n in ("ROWS", "COLUMNS", "CHUNK") if n in kwargs]
        if only not in name:
            return
        label = {"capability": capability, "heads": heads, "width": width, "dtype": dtype, "kernel": name, "tiles": tiles}
        label |= {"warps": options.get("num_warps", 4), "folded": kwargs.get("FOLDED")}
        compiled = triton.compile(ASTSource(self, **special), target=GPUTarget("cuda", capability, 32), options=options)
        print(json.dumps(label | resources(compiled)), flush=True)

    JITFunction.run = launch
    interval.capability = lambda x: divmod(capability, 10)
    for dtype in dtypes:
        for lengths in LENGTHS:
            launches(heads, width, getattr(torch, dtype), lengths)


if __name__ == "__main__":
    *dtypes, only = [*sys.argv[3:], ""] if not sys.argv[-1].startswith("--only=") else sys.argv[3:]
    main(int(sys.argv[1]), *map(int, sys.argv[2].split("x")), dtypes, only.removeprefix("--only="))
