"""The ops on a device: held to float64 in every dtype and form of rows, then timed beside their baselines, then kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import cases, measure, roofline
from benchmarks.gpu_check_clock import backends, clocks, kernels
from benchmarks.gpu_check_run import Record, Run
from mea_graph.check.attention import AUDIO, EDGE, INTERVAL, LARGE, MOSI, PREDICTIVE, SIX, TEXT
from mea_graph.check.cases import BFLOAT16, FLOAT16, FLOAT32, REPEATS, OpCase, bound, draws, dtype_name, exact
from mea_graph.ops import record_calls
from mea_graph.ops.predictive import padded, reference

DTYPES = (FLOAT32, BFLOAT16, FLOAT16)
# What must run on a GPU, unless a case's `about` names another. Values of edge attention in float16 have no kernel.
EXPECTED = {
    "predictive_attention": "triton",
    "interval_attention": "triton",
    "edge_attention": "cuda",
    "grouped_linear": "triton",
    "grouped_layer_norm": "triton",
    "bilstm": "triton",
}
Build = Callable[[torch.dtype, str], cases.Case]


def beside_the_formula(build: Callable[[torch.dtype, str], OpCase]) -> Build:
    """The op by "auto" beside its eager formula, which computes in float32 at least.

    `about` has what ours reads, for who would change it (the gradient joins after a first pass), and the backend that has to run on a GPU,
    if not the op's usual one."""

    def built(dtype: torch.dtype, device: str) -> cases.Case:
        case = build(dtype, device)
        contenders = {"mea_graph": lambda: case.run("auto"), "eager formula": lambda: case.run("reference")}
        about = {"reads": case.reads, **({"runs": case.runs} if case.runs else {})}
        return cases.Case(case.name, contenders, list(contenders), case.truth, dtype, {}, about)

    return built


CHECKS: dict[str, list[Build]] = {
    op: [beside_the_formula(build) for build in builds]
    for op, builds in (("predictive_attention", PREDICTIVE), ("interval_attention", INTERVAL), ("edge_attention", EDGE))
}
SMALL = {"predictive_attention": (0, 7, 9, 16), "interval_attention": (1, 6, 9), "edge_attention": (2, 6)}


def check(op: str, build: Build, dtype: torch.dtype, device: str) -> Record:
    """The errors of one case, beside those that the eager formula makes on the same input, and what ran."""
    case = build(dtype, device)
    with exact():
        with record_calls() as calls:
            first = case.contenders["mea_graph"]()
        again = all(torch.equal(a, b) for a, b in zip(first, case.contenders["mea_graph"](), strict=True))
        errors = case.errors()
    ran, has_to = sorted({backend for name, backend in calls if name == op}), case.about.get("runs", EXPECTED[op])
    passed = good(errors, dtype) and (again or has_to not in REPEATS) and (device != "cuda" or ran == [has_to])
    found = {"dtype": dtype_name(dtype), "what": case.name, "errors": errors, "same_bits_twice": again}
    return {**found, "backend": ran, "expected_backend": has_to, "passed": passed}


def good(errors: Mapping[str, float], dtype: torch.dtype) -> bool:
    """Within the budget; in half precision no worse than the eager formula, where that itself is beyond it."""
    return errors["mea_graph"] <= bound(dtype, errors.get("eager formula", 0.0)) < float("inf")


def check_all(run: Run, op: str, every: Sequence[Build], small: Sequence[int]) -> None:
    """All of them in every dtype; on little input those with the numbers in `small`."""
    builds = [(i, build, dtype) for i, build in enumerate([every[i] for i in small] if run.small else every) for dtype in DTYPES]
    run.each("check", {f"{op} {i}, {dtype_name(dtype)}": partial(check, op, build, dtype, run.device) for i, build, dtype in builds})


def _check_op(op: str, run: Run) -> None:
    check_all(run, op, CHECKS[op], SMALL[op])


check_predictive, check_interval, check_edge = (partial(_check_op, op) for op in CHECKS)


def true_formula(case: cases.Case, device: str, compiled: bool = False) -> measure.Pass:
    """The printed formula with every map in the dtype of the case, as a user would write it: `reference` takes float32 at least."""
    draw, pointers = draws(device), cases.pointers_of(case.about["attention"]["lengths"], device)
    shape = (pointers.num_rows, cases.HEADS, cases.WIDTH)
    inputs = [*(draw(*shape) for _ in range(5)), 0.1 * draw(cases.HEADS, cases.HEADS, 3, 3), draw(cases.HEADS)]

    def attend(query: Tensor, key: Tensor, value: Tensor, prior_query: Tensor, prior_key: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        tensors = (query, key, value, prior_query, prior_key)
        (q, k, v, q_prior, k_prior), mask, _ = padded.padded_arguments(tensors, pointers, None, case.dtype)
        out = reference.predictive_attention(q, k, v, q_prior, k_prior, weight, bias, cases.MU, mask)
        return pointers.unpad(out.transpose(1, 2))

    return cases.step(
        torch.compile(attend) if compiled else attend, [t.to(case.dtype).requires_grad_() for t in inputs], draw(*shape).to(case.dtype)
    )


def predictive_times(batch: int, length: int, lengths: Sequence[int] | None, dtype: torch.dtype, device: str) -> cases.Case:
    """As `cases.predictive`, and in half precision beside a formula that is in half precision too."""
    case = cases.predictive(batch, length, lengths, dtype, device)
    if dtype == FLOAT32:
        return case
    return case._replace(contenders={**case.contenders, f"eager formula in {dtype_name(dtype)}": true_formula(case, device)})


def time_case(build: Callable[[], cases.Case], seconds: float, device: str, turn: Callable[[], None] = lambda: None) -> Record:
    """Wall time, event time and CUDA-graph time of every contender. What is wrong is not timed; `turn` is called before a clock starts."""
    case = build()
    with exact():
        errors = case.errors()
    found: Record = {
        "case": case.name,
        "dtype": dtype_name(case.dtype),
        "contenders": {},
        "backends": backends(case.contenders["mea_graph"]),
    }
    if not good(errors, case.dtype):
        return {**found, "not_timed": f"error {errors['mea_graph']:.1e}"}
    if case.dtype == FLOAT32:
        errors = case.errors()  # as it is timed: with TF32 in cuDNN, if torch allows it
    turn()
    found["contenders"] = clocks(case.contenders, seconds, device)
    for name, contender in found["contenders"].items():
        contender["error"] = errors.get(name)
    ours = found["contenders"]["mea_graph"]
    return {**found, **share(case, ours.get("graph", ours.get("events", ours["median"])), device)}


def share(case: cases.Case, seconds: float, device: str) -> Record:
    """What predictive attention achieves of the bound on paper, on a GPU whose figures are known."""
    if "attention" not in case.about or device != "cuda":
        return {}
    found = roofline.achieved(roofline.work(**case.about["attention"], dtype=case.dtype), measure.device_name(), seconds)
    return {} if found is None else {"roofline": found}


def time_all(run: Run, builds: Mapping[str, Callable[[], cases.Case]]) -> None:
    run.each("time", {n: lambda build=build: time_case(build, run.clock, run.device) for n, build in builds.items()})


def predictive_sizes(run: Run) -> dict[str, tuple[Any, ...]]:
    """The most telling first."""
    if run.small:
        return {"small": (2, 9, [9, 4], BFLOAT16, run.device)}
    return {
        f"{kind}, {dtype_name(dtype)}": (32, 500, lengths, dtype, run.device)
        for kind, lengths in (("full", None), ("true lengths", MOSI))
        for dtype in (BFLOAT16, FLOAT32)
    }


def time_predictive(run: Run) -> None:
    sizes = predictive_sizes(run) | ({} if run.small else {"long, bfloat16": (4, 2000, None, BFLOAT16, run.device)})
    time_all(run, {f"predictive attention, {n}": lambda size=size: predictive_times(*size) for n, size in sizes.items()})


def time_interval(run: Run) -> None:
    lengths, longest = (MOSI, [TEXT, AUDIO]), [500, 50, 375]
    if run.small:
        lengths, longest = ([4, 2], [[3, 1], [2, 0]]), [4, 3, 2]
    each = {
        f"interval attention, {dtype_name(dtype)}": lambda dtype=dtype: cases.crossing(
            len(lengths[0]), *lengths, longest, dtype, run.device
        )
        for dtype in (BFLOAT16, FLOAT32)
    }
    time_all(run, each)


def time_edge(run: Run) -> None:
    names = (SIX,) if run.small else (SIX, LARGE, "200k nodes, 4M edges")
    kinds = ((1, FLOAT32),) if run.small else ((1, FLOAT32), (4, FLOAT32), (4, BFLOAT16))
    time_all(
        run,
        {
            f"graph layer, {name}, {heads}, {dtype_name(dtype)}": lambda name=name, heads=heads, dtype=dtype: cases.edges(
                name, heads, 64, dtype, run.device
            )
            for name in names
            for heads, dtype in kinds
        },
    )


# How the kernels of predictive attention are called by the profiler and by the bound; the fold runs forward and backward.
_BOUNDS = {
    "predictive_attention_fold_kernel": ("fold", "fold, backward"),
    "predictive_attention_fwd_kernel": ("forward loop",),
    "predictive_attention_bwd_query_kernel": ("query loop",),
    "predictive_attention_bwd_key_kernel": ("key loop",),
    "predictive_attention_bwd_fold_kernel": ("unfold",),
    "predictive_attention_power_kernel": ("powers", "powers, backward"),
}


def with_bounds(found: Sequence[Record], case: cases.Case, device: roofline.Device | None) -> list[Record]:
    """Each kernel that has a bound on paper with it, and the share of it that the kernel achieves."""
    if device is None or "attention" not in case.about:
        return list(found)
    bound = {k.kernel: max(k.seconds(device).values()) for k in roofline.work(**case.about["attention"], dtype=case.dtype)}
    told = []
    for one in found:
        least = 1e6 * sum(bound[n] for n in _BOUNDS.get(one["kernel"], ()))
        told.append({**one, "bound_us": round(least, 2), "share": round(least / one["us"], 3)} if least and one["us"] else dict(one))
    return told


def kernels_of_ops(run: Run) -> None:
    """Which kernels a pass launches, what each takes, and its share of the bound."""
    batch, length, nodes = (2, 9, SIX) if run.small else (32, 500, LARGE)
    builds: dict[str, Callable[[], cases.Case]] = {
        f"predictive attention, {dtype_name(dtype)}": lambda dtype=dtype: cases.predictive(batch, length, None, dtype, run.device)
        for dtype in (BFLOAT16, FLOAT32)
    }
    full = [length] * batch
    builds["interval attention, bfloat16"] = lambda: cases.crossing(batch, full, [full], [length, length], BFLOAT16, run.device)
    builds["graph layer, float32"] = lambda: cases.edges(nodes, 4, 64, FLOAT32, run.device)

    def find(build: Callable[[], cases.Case]) -> Record:
        case = build()
        known = roofline.known(measure.device_name()) if run.on_cuda else None
        found = kernels(case.contenders["mea_graph"], run.device)
        launches = round(sum(one["launches"] for one in found), 1)
        return {"what": case.name, "dtype": dtype_name(case.dtype), "launches": launches, "kernels": with_bounds(found, case, known)[:40]}

    run.each("kernels", {n: lambda build=build: find(build) for n, build in builds.items()})
