"""Compiles every kernel that a call would launch, for GPUs that are not here, and prints what each needs, one JSON object a line.

Runs in a process of its own, without TRITON_INTERPRET. The launches are the operators' own: on CPU tensors, with the launcher replaced by
the compiler, so that the compile-time arguments cannot differ from those that ship.

    python compile_kernels.py 90 8x5 float32 bfloat16    # compute capability 9.0; 8 heads of 5 channels
    python compile_kernels.py 90 8x5 bfloat16 --only=predictive_fwd    # kernels whose names have that in them
"""

import ast
import collections
import functools
import inspect
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

if __name__ == "__main__":  # not where pytest looks for examples: there, what comes after is interpreted
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.pop("TRITON_DISABLE_LINE_INFO", None)  # by the lines of the source loops are told apart
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # the default until Triton 3.9, which warns where it is unset

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

import mea_graph
from mea_graph.ops import IntervalEdges, Pointers
from mea_graph.ops.grouped import triton as grouped
from mea_graph.ops.interval import triton as interval
from mea_graph.ops.predictive import triton as predictive
from mea_graph.ops.recurrent import triton as recurrent

POINTERS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
LENGTHS = ([100, 40], [1], [16, 16, 16])  # the kernels are those of the first, whatever the number of samples and of steps
TOOLS = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin"
INSTRUCTIONS = ("LDL", "STL", "HGMMA", "HMMA", "MUFU")
_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/ +(@!?U?P\w+ +)?([A-Z][\w.]*)([^;]*);")
_LABEL, _TARGET = re.compile(r"(\.L_x_\d+):"), re.compile(r"`\((\.L_x_\d+)\)")
_SOURCE = re.compile(r'//## File "([^"]+)", line (\d+)')
_ADDED = re.compile(r"(U?R\d+), (?:U?P\d, )?\1, 0x([0-9a-f]+)(?:, U?RZ)?")


class Instruction(NamedTuple):
    guard: str  # "" where every thread runs it
    name: str
    operands: str
    functions: frozenset[str]  # of the source: that of its line, and those that it was inlined into
    target: int | None = None  # of a jump


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


@functools.cache
def functions(path: str) -> dict[int, str]:
    """The function that each line of a file of the package is in. Triton's cache may have compiled another copy of the file."""
    _, name, inside = path.rpartition("mea_graph/")
    if not name:
        return {}
    found = {}
    for node in ast.walk(ast.parse((pathlib.Path(mea_graph.__file__).parent / inside).read_text())):
        if isinstance(node, ast.FunctionDef):
            found |= dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), node.name)
    return found


def read(listing: str) -> list[Instruction]:
    """The instructions of a listing of `nvdisasm -gi`, in which lines of the source come before those that they were compiled to."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    within, fresh = frozenset[str](), True
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif source := _SOURCE.search(line):
            name = functions(source[1]).get(int(source[2]))
            within = (frozenset() if fresh else within) | ({name} if name else set())
            fresh = False
        elif found := _LINE.search(line):
            code.append(Instruction(found[1] or "", found[2], found[3], within))
            fresh = True
    return [i._replace(target=labels[label[1]]) if (label := _TARGET.search(i.operands)) else i for i in code]


def successors(at: int, code: list[Instruction]) -> list[int]:
    """The instructions that may come after one. A jump of threads that have parted is left out: what it leads to seldom runs."""
    guard, name, operands, _, target = code[at]
    kind, following = name.split(".")[0], [at + 1] if at + 1 < len(code) else []
    if kind in ("EXIT", "RET"):
        return following if guard else []
    if kind in ("BRX", "JMX", "JMP"):
        raise ValueError(f"{name}: no loop can be told where jumps are computed")
    if target is None or kind not in ("BRA", "CALL") or name.startswith("BRA.DIV"):
        return following
    return [target, *(following if guard or re.match(r" *!?U?P\d", operands) else [])]  # the compiler's far jumps are named CALL


def loops(code: list[Instruction]) -> list[dict[str, Any]]:
    """Every natural loop: what is reached by its first instruction only, and from which that one is reached again.

    Spans between a jump back and its target would not do: compilers put what seldom runs behind everything else.

    How deep it lies; its instructions without those of the loops inside it; the functions of the source that more than half of them come
    from, after inlining; and what tells whether it was unrolled: how much a warp multiplies on tensor cores, and what is added to the
    counters that the loop compares.
    """
    after = [successors(at, code) for at in range(len(code))]
    before: dict[int, list[int]] = {at: [] for at in range(len(code))}
    order, seen, stack = [], {0}, [(0, iter(after[0]))]
    while stack:  # depth first
        at, rest = stack[-1]
        follower = next((n for n in rest if n not in seen), None)
        if follower is None:
            order.append(at)
            stack.pop()
        else:
            seen.add(follower)
            stack.append((follower, iter(after[follower])))
    order.reverse()
    for at in order:
        for n in after[at]:
            before[n].append(at)
    place, parent = {at: i for i, at in enumerate(order)}, {0: 0}  # parent: what every path to an instruction comes through last
    changed = True
    while changed:
        changed = False
        for at in order[1:]:
            known = [n for n in before[at] if n in parent]
            common = known[0]
            for other in known[1:]:
                while common != other:
                    if place[common] > place[other]:
                        common = parent[common]
                    else:
                        other = parent[other]
            changed |= parent.get(at) != common
            parent[at] = common

    bodies: dict[int, set[int]] = {}
    for at in order:
        for first in after[at]:
            if place[first] > place[at]:
                continue
            over = at
            while place[over] > place[first]:
                over = parent[over]
            if over != first:
                raise ValueError("a loop is entered in two places: no pass can be told from another")
            body, waiting = bodies.setdefault(first, {first}), [at]
            while waiting:
                if (one := waiting.pop()) not in body:
                    body.add(one)
                    waiting += before[one]

    found = []
    for first, body in sorted(bodies.items()):
        inside = set().union(*(other for start, other in bodies.items() if start != first and start in body))
        own = [code[at] for at in sorted(body - inside) if code[at].name != "NOP"]
        count = collections.Counter(name for i in own for name in i.functions)
        found.append(
            {
                "depth": sum(first in other for start, other in bodies.items() if start != first),
                "instructions": len(own),
                "MUFU": sum(i.name.startswith(("MUFU", "F2F.")) for i in own),  # F2F rounds one number, in the same unit
                "products": sum(products(i.name) for i in own),
                "functions": sorted(name for name, n in count.items() if 2 * n > len(own)),
                "steps": steps(own),
            }
        )
    return found


def products(name: str) -> int:
    """Multiplications of numbers of an instruction for tensor cores, by warp."""
    if found := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", name):  # of four warps together
        return math.prod(map(int, found.groups())) // 4
    found = re.match(r"HMMA\.16(8)(\d+)\b", name)
    return 16 * math.prod(map(int, found.groups())) if found else 0


def steps(own: list[Instruction]) -> list[int]:
    """What a loop adds to registers that it compares."""
    compared = {r for i in own if "ISETP" in i.name for r in re.findall(r"\bU?R\d+", i.operands)}
    added = (_ADDED.fullmatch(i.operands.replace(".reuse", "").strip()) for i in own if re.match("U?IADD3?$|VIADD$|U?VIADD$", i.name))
    return sorted({int(a[2], 16) for a in added if a and a[1] in compared})


def read_back(code: list[Instruction]) -> int:
    """Loads from memory that follow a store with no barrier between: another thread of the block may not have written yet."""
    written, found = False, 0
    for i in code:
        kind = i.name.split(".")[0]
        written = kind == "STG" or (written and kind not in ("BAR", "EXIT"))
        found += written and kind == "LDG"
    return found


def resources(compiled: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, listing = (
            subprocess.run([TOOLS / tool, *flags, file.name], capture_output=True, text=True, check=True).stdout
            for tool, *flags in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "--print-line-info-inline", "--print-code"))
        )
    registers, stack = (int(n) for n in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
    counts: dict[str, Any] = {name: len(re.findall(rf"\b{name}\b", listing)) for name in INSTRUCTIONS}
    code = read(listing)
    counts |= {"instructions": sum(i.name != "NOP" for i in code), "loops": loops(code), "read_back": read_back(code)}
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


def grouped_launches(channels: int, dtype: torch.dtype) -> None:
    """Both grouped ops with all that they can do, and the linear map without."""
    groups, rows = 3, 700
    x = torch.randn(groups * rows, channels, dtype=dtype)
    vectors, maps = ([torch.randn(*shape, dtype=dtype) for _ in range(groups)] for shape in ((channels,), (channels, channels)))
    for norms, biases, onto in ((vectors, vectors, x), ([], vectors, x), ([], [], None)):
        given = (maps, biases, norms, norms)
        out, moments = grouped._linear(x, *given, onto, rows, 1, 1e-5, dtype, True)
        grouped._linear_backward(torch.randn_like(out), x, moments, *given, rows, 1, dtype)
    out, moments = grouped._norm(x, vectors, vectors, rows, 1, 1e-5, dtype, True)
    grouped._norm_backward(torch.randn_like(out), x, moments, vectors, vectors, rows, 1)


def main(capability: int, heads: int, width: int, dtypes: list[str], only: str = "") -> None:
    seen = set()

    def launch(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in kwargs}
        special = specialize(self, args, kwargs)
        if (self.__name__, str(special)) in seen or kwargs.get("BACKWARD") is False:  # what folds for the forward pass is a part of that
            return
        seen.add((self.__name__, str(special)))
        name = self.__name__.replace("_attention", "").removesuffix("_kernel")
        name += "".join(f" ({flag.lower()})" for flag in ("BACKWARD", "HAS_RUNS", "HAS_NORM") if kwargs.get(flag))
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
        if only.startswith("grouped"):
            grouped_launches(heads * width, getattr(torch, dtype))
            continue
        for lengths in LENGTHS:
            launches(heads, width, getattr(torch, dtype), lengths)


if __name__ == "__main__":
    *dtypes, only = [*sys.argv[3:], ""] if not sys.argv[-1].startswith("--only=") else sys.argv[3:]
    main(int(sys.argv[1]), *map(int, sys.argv[2].split("x")), dtypes, only.removeprefix("--only="))
