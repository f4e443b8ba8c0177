"""The code that kernels are compiled to for GPUs that are not here, run on a CPU, against the reference in float64.

The interpreter runs the source; here layouts of registers, shared memory, barriers, asynchronous copies and tensor core instructions are
the compiler's. What is left to a GPU is the last step, from PTX to machine code.
"""

import itertools
import json
import pathlib
import subprocess
import sys

import pytest
import torch

from .ptx import translate
from .ptx_machine import Fault

ROOT = pathlib.Path(__file__).parents[3]
FLOAT32, BFLOAT16 = 2e-6, 1e-2
LOOPS = {f"predictive_attention_{name}_kernel" for name in ("fold", "fwd", "bwd_query", "bwd_key", "bwd_fold")}
KERNELS = {
    "grouped": {f"grouped_{name}_kernel" for name in ("linear_fwd", "linear_bwd", "linear_bwd_sum", "layer_norm_fwd", "layer_norm_bwd")},
    "predictive": LOOPS,
    "interval": {f"interval_attention_{name}_kernel" for name in ("fwd", "bwd_query", "bwd_key")},
    "recurrent": {"bilstm_fwd_kernel", "bilstm_bwd_kernel"},
}
CASES = [
    (90, "grouped", "8x5", "float32"),
    (90, "grouped", "8x5", "bfloat16"),
    (80, "grouped", "8x5", "float32"),
    (90, "predictive", "2x5", "float32"),  # in halves of float16
    (90, "predictive", "2x8", "float32"),  # in TF32
    (90, "predictive", "2x5", "bfloat16"),  # on Hopper's own tensor core instructions
    (80, "predictive", "2x5", "bfloat16"),
    (90, "interval", "2x5", "float32"),
    (90, "interval", "2x5", "bfloat16"),
    (80, "interval", "2x5", "bfloat16"),
    (90, "recurrent", "4x5", "float32"),
    (80, "recurrent", "4x5", "float32"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "op", "shape", "dtype"), CASES)
def test_compiled_kernels_equal_float64(capability: int, op: str, shape: str, dtype: str) -> None:
    command = [sys.executable, "-m", "tests.ops.triton.emulate_kernels", str(capability), op, shape, dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(run["backwards"], run["late"]) for run in runs] == [(False, True), (True, False)]
    halves = {"predictive_attention_power_kernel"} if (op, shape, dtype) == ("predictive", "2x5", "float32") else set()
    for run in runs:
        assert set(run["kernels"]) == KERNELS[op] | halves
        for case, errors in run["errors"].items():
            bounds = dict.fromkeys(errors, FLOAT32 if dtype == "float32" else BFLOAT16)
            bounds |= {"bias": 1e-5} if op == "predictive" and dtype == "float32" else {}  # a sum of T^2 terms of both signs
            assert not {name: error for name, error in errors.items() if not error < bounds[name]}, case


# Two warps: each lane hands a number to the lane of the other warp, through shared memory.
PTX = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1
)
.reqntid 64
{
	.reg .pred 	%p<2>;
	mov.u32 	%r1, %tid.x;
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd4, %rd1, %rd3;
	add.s64 	%rd5, %rd2, %rd3;
	shl.b32 	%r2, %r1, 2;
	xor.b32 	%r3, %r2, 128;
	HAND OVER
	ld.shared.b32 	{ %r5 }, [ %r3 + 0 ];
	st.global.b32 	[ %rd5 + 0 ], { %r5 };
	ret;
}
"""
STORE, BARRIER = "ld.global.b32 { %r4 }, [ %rd4 + 0 ]; st.shared.b32 [ %r2 + 0 ], { %r4 };", "bar.sync 0;"
COPY, WAIT = "cp.async.ca.shared.global [ %r2 + 0 ], [ %rd4 + 0 ], 0x4, 0x4; cp.async.commit_group;", "cp.async.wait_group 0;"


def exchange(code: str, backwards: bool, late: bool, shared: int = 256, numbers: int = 64) -> torch.Tensor:
    given, found = torch.arange(numbers, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    kernel = translate(PTX.replace("HAND OVER", code))
    kernel.run([1], [given.data_ptr(), found.data_ptr()], [given, found], shared, backwards, late)
    return found


@pytest.mark.parametrize("code", [STORE + BARRIER, COPY + WAIT + BARRIER], ids=["store", "copy"])
def test_what_the_machine_computes(code: str) -> None:
    for backwards, late in itertools.product((False, True), repeat=2):
        assert torch.equal(exchange(code, backwards, late), torch.arange(64, dtype=torch.int32).view(2, 32).flip(0).flatten())


@pytest.mark.parametrize("code", [STORE, COPY + WAIT, COPY + BARRIER], ids=["no barrier", "no barrier after a copy", "no wait"])
def test_the_machine_shows_what_a_program_did_not_wait_for(code: str) -> None:
    found = {tuple(exchange(code, backwards, late).tolist()) for backwards, late in itertools.product((False, True), repeat=2)}
    assert len(found) > 1


# A product of registers with 16 x 8 numbers of shared memory, which the threads then write.
REGISTERS = "{ %r4, %r5, %r6, %r7 }"
PRODUCT = (
    "mov.b64 %rd6, 524288; "  # the second half of k begins 128 bytes after the first
    f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {REGISTERS}, {REGISTERS}, %rd6, 0, 1, 1, 0; wgmma.commit_group.sync.aligned; "
)
DONE = "wgmma.wait_group.sync.aligned 0;"


def test_memory_that_a_product_may_read_is_not_written() -> None:
    exchange(PRODUCT + DONE + BARRIER + STORE + BARRIER, False, True)
    with pytest.raises(Fault, match="while a product may still read it"):
        exchange(PRODUCT + BARRIER + STORE + BARRIER, False, True)


@pytest.mark.parametrize(
    ("code", "shared", "numbers", "expected"),
    [
        (STORE + BARRIER, 128, 64, "shared memory is out of bounds"),
        (STORE + BARRIER, 256, 63, "global memory is out of bounds"),
        (STORE.replace("%rd4 + 0", "%rd4 + 2") + BARRIER, 256, 65, "not aligned"),
        ("setp.lt.s32 %p1, %r1, 40; @%p1 bra $L__BB0_1; " + STORE + " $L__BB0_1: " + BARRIER, 256, 64, "parts the lanes"),
        ("setp.lt.s32 %p1, %r1, 32; @%p1 ret; " + STORE + BARRIER, 256, 64, "ends while others wait"),
    ],
    ids=["shared", "global", "alignment", "jump", "ends"],
)
def test_the_machine_refuses(code: str, shared: int, numbers: int, expected: str) -> None:
    with pytest.raises(Fault, match=expected):
        exchange(code, False, True, shared, numbers)


def test_an_unknown_instruction_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="PTX: vote"):
        translate(PTX.replace("HAND OVER", "vote.sync.ballot.b32 %r4, %p1, -1;"))
