"""Translates compiled kernels, as PTX, into Python that runs on `ptx_machine`: what is tested is what a GPU's assembler is given.

A kernel becomes a generator with a local variable for each register, an `if` for each basic block, and a `yield` for each barrier.
Only what Triton's kernels of this package are compiled to is known; anything else raises `NotImplementedError`.
"""

import functools
import re
from collections.abc import Callable

from . import ptx_machine
from .ptx_machine import UNWRITTEN, Kernel

_ENTRY = re.compile(r"\.visible \.entry \w+\((.*?)\n\)(.*?)\n\{\n(.*?)\n\}", re.DOTALL)
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_SIGN = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
_SPECIAL = {"%tid.x": "warp.thread"}
_SPECIAL |= {f"%{name}.{axis}": f"warp.{name}[{i}]" for name in ("ctaid", "nctaid") for i, axis in enumerate("xyz")}
_REGISTERS = {"p": 1, "rs": 16, "r": 32, "rd": 64}


@functools.cache
def translate(ptx: str) -> Kernel:
    """The kernel of a module that has one."""
    entry = _ENTRY.search(ptx)
    assert entry is not None
    lines = (re.sub("//.*", "", line).strip() for line in entry[3].splitlines())
    text = " ".join(line for line in lines if line and not line.startswith("."))
    blocks: list[list[str]] = [[]]
    labels: dict[str, int] = {}
    for statement in re.findall(r"\s*(\$\w+:|[^;]+;)", text):
        if statement.endswith(":"):
            if statement.startswith("$L__BB"):
                blocks += [[]] if blocks[-1] else []
                labels[statement[:-1]] = len(blocks) - 1
            continue
        blocks[-1].append(" ".join(statement[:-1].split()))
        if re.match(r"(@!?%p\d+ )?(bra|ret)\b", blocks[-1][-1]):
            blocks.append([])
    code = []
    for i, block in enumerate(blocks):
        code += [
            f"if block == {i}:",
            *(f" {line}" for statement in block for line in _Statement(statement, labels).lines),
            f" block = {i + 1}",
        ]
    registers = sorted(set(re.findall(r"\b(?:p|rs|r|rd)\d+\b", " ".join(code))))
    before = [f"{r} = {_unwritten(r)}" for r in registers]
    end = f"if block == {len(blocks)}: return"
    source = [
        "def program(warp):",
        *(f" {line}" for line in before),
        " block = 0",
        " while True:",
        *(f"  {line}" for line in [*code, end]),
        " yield",
    ]
    space = dict(vars(ptx_machine))
    exec(compile("\n".join(source), "<ptx>", "exec"), space)
    return Kernel(space["program"], re.findall(r"\.param \.(\w+)", entry[1]), int(re.findall(r"\.reqntid (\d+)", entry[2])[0]))


def _unwritten(register: str) -> str:
    kind = re.match("[a-z]+", register)
    assert kind is not None
    return "LANE % 2 == 0" if kind[0] == "p" else f"constant({UNWRITTEN << 32 | UNWRITTEN}, {_REGISTERS[kind[0]]})"


def _split(operands: str) -> list[str]:
    """At the commas outside brackets."""
    return [part.strip() for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", operands) if part.strip()]


class _Statement:
    """Python for one instruction."""

    def __init__(self, text: str, labels: dict[str, int]) -> None:
        self.text, self.labels = text, labels
        found = re.fullmatch(r"(?:@(!?)(%p\d+) )?(\S+) ?(.*)", text)
        assert found is not None
        self.guard = None if found[2] is None else ("~" if found[1] else "") + found[2][1:]
        self.name, *self.parts = found[3].split(".")
        self.operands = _split(found[4])
        self.kind = self.parts[-1] if self.parts else ""  # of the numbers: s32, f32, pred
        digits = re.search(r"\d+", self.kind.replace("tf32", "32"))
        self.bits = 1 if self.kind == "pred" else 32 if self.kind.endswith("x2") else int(digits[0]) if digits else 32
        self.signed = self.kind.startswith("s")
        make: Callable[[], list[str]] = getattr(self, f"_{self.name}", self._plain)
        self.lines = make()

    def _unknown(self) -> NotImplementedError:
        return NotImplementedError(f"PTX: {self.text}")

    # Operands

    def _read(self, operand: str, bits: int) -> str:
        if operand in _SPECIAL:
            return _SPECIAL[operand]
        if operand.startswith("%") or operand == "_":
            return operand.lstrip("%")
        if operand == "global_smem":
            return "constant(0, 32)"
        if bits == 1:
            return f"constant({int(operand) & 1}, 8).astype(bool)"
        value = int(operand[2:], 16) if operand.startswith("0f") else int(operand.rstrip("U"), 0)
        return f"constant({value & (1 << bits) - 1}, {bits})"

    def _all(self, operand: str, bits: int) -> str:
        return "[" + ", ".join(self._read(part.strip(), bits) for part in operand.strip("{}").split(",")) + "]"

    def _address(self, operand: str, bits: int) -> str:
        base, _, offset = operand.strip("[] ").partition("+")
        at = self._read(base.strip(), bits)
        return at if not int(offset or "0", 0) else f"{at} + {self._read(offset.strip(), bits)}"

    def _value(self, i: int, kind: str = "", bits: int = 0) -> str:
        """An operand as an array of numbers of a kind."""
        kind, bits = kind or self.kind, bits or self.bits
        given = self._read(self.operands[i], bits)
        return f"floats({given})" if kind == "f32" else f"{given}.view(np.int{bits})" if kind.startswith("s") else given

    def _set(self, value: str, bits: int | None = None) -> list[str]:
        """Writes the first operand; what is not unsigned is viewed so."""
        name = self._read(self.operands[0], 0)
        view = "" if bits is None else f".view(np.uint{bits})"
        return [f"{name} = ({value}){view}" if self.guard is None else f"{name} = np.where({self.guard}, ({value}){view}, {name})"]

    # Control

    def _bra(self) -> list[str]:
        jump = f"block = {self.labels[self.operands[0]]}; continue"
        return [jump] if self.guard is None else [f"if uniform({self.guard}): {jump}"]

    def _ret(self) -> list[str]:
        return ["return" if self.guard is None else f"if uniform({self.guard}): return"]

    def _bar(self) -> list[str]:
        return ["yield" if self.parts[0] == "sync" else "pass"]  # of a warp, none: its lanes are in step

    def _fence(self) -> list[str]:
        return ["pass"]

    # Memory

    def _ld(self) -> list[str]:
        if self.parts[0] == "param":
            number = re.findall(r"param_(\d+)", self.operands[1])[0]
            return self._set(f"warp.parameters[{number}]")
        registers = self._all(self.operands[0], self.bits)
        memory, bits = ("warp.memory", 64) if self.parts[0] == "global" else ("warp.shared", 32)
        return [f"{registers} = load({memory}, {self._address(self.operands[1], bits)}, {self.bits}, {self.guard}, {registers})"]

    def _st(self) -> list[str]:
        memory, bits = ("warp.memory", 64) if self.parts[0] == "global" else ("warp.shared", 32)
        values = self._all(self.operands[1], max(self.bits, 16))
        return [f"store({memory}, {self._address(self.operands[0], bits)}, {self.bits}, {self.guard}, {values})"]

    def _cp(self) -> list[str]:
        if self.kind == "commit_group":
            return ["warp.copies.commit()"]
        if self.kind == "wait_group":
            return [f"warp.copies.wait({int(self.operands[0], 0)})"]
        to, source, size, *read = self.operands
        read = self._read(read[0] if read else size, 32)
        return [f"copy(warp, {self._address(to, 32)}, {self._address(source, 64)}, {int(size, 0)}, {read}, {self.guard})"]

    def _ldmatrix(self) -> list[str]:
        registers = self._all(self.operands[0], 32)
        return [
            f"{registers} = load_matrices(warp, {self._address(self.operands[1], 32)}, {registers.count(',') + 1}, {'trans' in self.parts})"
        ]

    def _stmatrix(self) -> list[str]:
        if "trans" in self.parts:
            raise self._unknown()
        return [f"store_matrices(warp, {self._address(self.operands[0], 32)}, {self._all(self.operands[1], 32)})"]

    # Tensor cores

    def _mma(self) -> list[str]:
        out, *factors, sums = (self._all(operand, 32) for operand in self.operands)
        if not {"m16n8k8", "m16n8k16"} & set(self.parts):
            raise self._unknown()
        return [f"{out} = mma({sums}, {', '.join(factors)}, {self.parts[-2]!r})"]

    def _wgmma(self) -> list[str]:
        if self.parts[0] != "mma_async":
            wait = f"warp.products.wait({self.operands[0]})" if self.parts[0] == "wait_group" else "pass"
            return ["warp.products.commit()" if self.parts[0] == "commit_group" else wait]
        out, a, b, adds, *flags = self.operands
        in_registers, columns = a.startswith("{"), re.findall(r"m64n(\d+)k", self.text)[0]
        if flags[:2] != ["1", "1"]:  # the signs of the factors
            raise self._unknown()
        swapped = ", ".join(str(flag == "1") for flag in ([*["0"] * in_registers, *flags[2:], "0", "0"])[:2])
        sums, factor = self._all(out, 32), self._all(a, 32) if in_registers else self._read(a, 64)
        known = f"{sums} if {self._read(adds, 1)}.all() else None" if adds.startswith("%") else sums if int(adds) else "None"
        return [f"{sums} = wgmma(warp, {known}, {factor}, {self._read(b, 64)}, {columns}, {self.kind!r}, ({swapped}))"]

    # Between lanes

    def _shfl(self) -> list[str]:
        lane = {"bfly": "LANE ^ ", "idx": "31 & "}.get(self.parts[1])
        if lane is None:
            raise self._unknown()
        return self._set(f"{self._read(self.operands[1], 32)}[{lane}{self._read(self.operands[2], 32)}]")

    def _redux(self) -> list[str]:
        return self._set(f"np.full(32, {self._value(1)}.{self.parts[1].replace('add', 'sum')}()).astype(np.int64).astype(np.uint32)")

    # Moves and conversions

    def _mov(self) -> list[str]:
        to, source = self.operands
        half = self.bits // 2
        if to.startswith("{"):
            whole = self._read(source, self.bits)
            return [f"{self._all(to, half)} = {whole}.astype(np.uint{half}), ({whole} >> {half}).astype(np.uint{half})"]
        if source.startswith("{"):
            return self._set(
                "{0}[0].astype(np.uint{1}) | {0}[1].astype(np.uint{1}) << {2}".format(self._all(source, half), self.bits, half)
            )
        return self._set(self._read(source, self.bits))

    def _cvt(self) -> list[str]:
        to, source = [part for part in self.parts if re.fullmatch(r"(tf|bf|[usfb])\d+(x2)?", part)]
        bits = 32 if to.endswith("x2") else int(to.lstrip("tbfus"))
        given = int(source.lstrip("bfus"))
        make = {"f": ".astype(np.float16).view(np.uint16)", "b": ""}[to[0]] if to[0] in "bf" else ""
        half = [
            f"to_bfloat16({x})" if to.startswith("bf") else f"({x}){make}"
            for x in (self._value(i, source, given) for i in range(1, len(self.operands)))
        ]
        if to.endswith("x2"):
            return self._set(f"{half[0]}.astype(np.uint32) << 16 | {half[1]}.astype(np.uint32)")
        if to == "tf32":
            return self._set(f"to_tf32({self._read(self.operands[1], 32)})")
        if to in ("f16", "bf16"):
            return self._set(half[0])
        if to == "f32":
            numbers = {"bf16": "from_bfloat16({})", "f16": "{}.view(np.float16)"}.get(source, "{}").format(self._value(1, source, given))
            return self._set(f"rounded({numbers})")
        if source == "f32":
            raise self._unknown()
        return self._set(f"{self._value(1, source, given)}.astype(np.{'int' if source[0] == 's' else 'uint'}{bits})", bits)

    # Arithmetic

    def _setp(self) -> list[str]:
        a, b = self._value(1), self._value(2)
        compare = self.parts[0]
        if self.kind != "f32":
            return self._set(f"{a} {_COMPARE[compare]} {b}")
        unordered = f"(np.isnan({a}) | np.isnan({b}))"
        if compare in ("num", "nan"):
            return self._set(f"~{unordered}" if compare == "num" else unordered)
        if compare.endswith("u"):
            return self._set(f"({a} {_COMPARE[compare[:-1]]} {b}) | {unordered}")
        return self._set(f"({a} {_COMPARE[compare]} {b}) & ~{unordered}")

    def _selp(self) -> list[str]:
        return self._set(f"np.where({self._read(self.operands[3], 1)}, {self._value(1)}, {self._value(2)})", self.bits)

    def _plain(self) -> list[str]:
        if self.kind == "f32":
            return self._float()
        if re.fullmatch(r"b?f16(x2)?", self.kind):
            if self.name not in ("mul", "fma"):
                raise self._unknown()
            given = ", ".join(self._value(i) for i in range(1, len(self.operands)))
            return self._set(f"multiply_halves({self.kind!r}, {given})")
        if self.name in ("and", "or", "xor") or (self.name in ("add", "sub") and len(self.parts) == 1):
            return self._set(f"{self._value(1, 'b')} {_SIGN[self.name]} {self._value(2, 'b')}")
        if self.name in ("mul", "mad"):
            return self._product()
        if self.name in ("shl", "shr"):
            return self._set(f"shift({self._value(1, 'b')}, {self._value(2, 'b', 32)}, {self.name == 'shl'}, {self.signed})")
        given = [self._value(i, "b" if self.name in ("bfe", "prmt") else "") for i in range(1, len(self.operands))]
        rest = {
            "neg": "-{0}",
            "not": "~{0}",
            "min": "np.minimum({0}, {1})",
            "max": "np.maximum({0}, {1})",
            "div": "divide({0}, {1})",
            "rem": "{0} - divide({0}, {1}) * {1}",
            "bfe": f"extract({{0}}, {{1}}, {{2}}, {self.signed})",
            "prmt": "permute({0}, {1}, {2})",
        }
        if self.name not in rest:
            raise self._unknown()
        return self._set(rest[self.name].format(*given), None if self.bits == 1 else self.bits)

    def _product(self) -> list[str]:
        """Integers: the lower half, the upper one, or the whole product."""
        half, bits = self.parts[0], self.bits
        wide = f"np.{'int' if self.signed else 'uint'}{2 * bits}"
        if half == "lo":
            product = f"{self._value(1, 'b')} * {self._value(2, 'b')}"
        else:
            product = f"({self._value(1)}.astype({wide}) * {self._value(2)}.astype({wide})).view(np.uint{2 * bits})"
            product = f"({product} >> {bits}).astype(np.uint{bits})" if half == "hi" else product
        if self.name == "mul":
            return self._set(product)
        return self._set(f"{product} + {self._value(3, 'b', 2 * bits if half == 'wide' else bits)}")

    def _float(self) -> list[str]:
        given = [self._value(i) for i in range(1, len(self.operands))]
        wide = [f"{x}.astype(np.float64)" for x in given]
        if self.name in ("neg", "abs"):
            bits = self._read(self.operands[1], 32)
            return self._set(f"{bits} ^ np.uint32(0x80000000)" if self.name == "neg" else f"{bits} & np.uint32(0x7FFFFFFF)")
        nan = "NaN" in self.parts
        value = {
            "add": "{0} + {1}",
            "sub": "{0} - {1}",
            "mul": "{0} * {1}",
            "div": "{0} / {1}",
            "fma": "{0} * {1} + {2}",
            "sqrt": "np.sqrt({0})",
            "ex2": "np.exp2({0})",
            "min": "np.minimum({0}, {1})" if nan else "np.fmin({0}, {1})",
            "max": "np.maximum({0}, {1})" if nan else "np.fmax({0}, {1})",
        }.get(self.name)
        if value is None:
            raise self._unknown()
        return self._set(f"rounded({value.format(*wide)}, {'ftz' in self.parts})")
