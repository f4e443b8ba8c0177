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
from mea_graph.ops import IntervalEdges, Pointers, edge_attention, interval_attention, predictive_attention, record_calls
from mea_graph.ops.predictive import padded, reference

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = (FLOAT32, BFLOAT16, FLOAT16)
# A budget is a relative error of output or gradient. A few roundings of 2^-8 (bfloat16) or 2^-11 (float16) through a chain.
BUDGET = {FLOAT32: 1e-4, BFLOAT16: 3e-2, FLOAT16: 4e-3}
# What must run on a GPU, unless a case's `about` names another. Values of edge attention in float16 have no kernel.
EXPECTED = {
    "predictive_attention": "triton",
    "interval_attention": "triton",
    "edge_attention": "cuda",
    "grouped_linear": "triton",
    "grouped_layer_norm": "triton",
    "bilstm": "triton",
}
REPEATS = ("triton", "cuda", "batched", "joined")  # whose results repeat bit for bit; of cuDNN and of the formulas nobody promises that
TEXT, AUDIO, MOSI = cases.mosi_lengths(32, 50, 12), cases.mosi_lengths(32, 375, 50), cases.mosi_lengths(32)
Build = Callable[[torch.dtype, str], cases.Case]


def exact() -> Any:
    """cuDNN rounds to TF32 by default, in the convolution of the formula too; what is checked must not."""
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)


def op_case(
    name: str,
    op: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    rest: Mapping[str, Any],
    dtype: torch.dtype,
    scale: float = 1.0,
    runs: str | None = None,
) -> cases.Case:
    """An op by "auto" and by its eager formula, which computes in float32 at least, and the same in float64 as the truth.

    `inputs` are drawn in float32 and rounded to `dtype`; `scale` is that of the gradient of the result; `runs` is the backend that has to
    run on a GPU, if not the op's usual one. `about` has what ours reads, for who would change it: the gradient joins after a first pass."""
    rounded = {n: t.to(dtype).requires_grad_() for n, t in inputs.items()}
    wide = {n: t.detach().double().requires_grad_() for n, t in rounded.items()}
    read = list(rounded.values())
    grads: dict[torch.dtype, Tensor] = {}  # drawn once: a pass that sends them to the device waits for it

    def run(tensors: Mapping[str, Tensor], backend: str) -> list[Tensor]:
        out = op(**tensors, **rest, backend=backend)
        out = out[0] if isinstance(out, tuple) else out
        if out.dtype not in grads:
            generator = torch.Generator().manual_seed(1)
            grads[out.dtype] = (scale * torch.randn(out.shape, generator=generator)).to(dtype).to(out)
            if out.dtype == dtype:
                read.append(grads[dtype])
        return [out.detach(), *torch.autograd.grad(out, list(tensors.values()), grads[out.dtype])]

    contenders = {"mea_graph": lambda: run(rounded, "auto"), "eager formula": lambda: run(rounded, "reference")}
    about = {"reads": read, **({"runs": runs} if runs else {})}
    return cases.Case(name, contenders, list(contenders), lambda: run(wide, "reference"), dtype, {}, about)


def draws(device: str) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(2)
    return lambda *size: torch.randn(*size, generator=generator).to(device)


def laid_out(lengths: Sequence[int], layout: str, device: str) -> Pointers:
    """Rows without gaps, a padded batch as rows with gaps, or gaps of any size."""
    if layout == "packed":
        return cases.pointers_of(lengths, device)
    if layout == "padded":
        return Pointers.from_mask(cases.prefix_mask(lengths, max(lengths, default=0) + 2, device))
    length = torch.tensor(lengths)
    room = length + torch.tensor([3, 70, 0, 1, 20])[torch.arange(len(length)) % 5]
    return Pointers((room.cumsum(0) - room).to(device), length.to(device), int(room.sum()))


def predictive(
    lengths: Sequence[int], layout: str = "packed", heads: int = cases.HEADS, width: int = cases.WIDTH, scale: float = 1.0
) -> Build:
    def build(dtype: torch.dtype, device: str) -> cases.Case:
        pointers, draw = laid_out(lengths, layout, device), draws(device)
        inputs = {n: draw(pointers.num_rows, heads, width) for n in ("query", "key", "value", "prior_query", "prior_key")}
        inputs |= {"weight": 0.1 * draw(heads, heads, 3, 3), "bias": draw(heads)}
        label = f"predictive attention, {layout} {_short(lengths)}, {heads} x {width}" + (f", gradient x {scale}" if scale != 1 else "")
        held = "reference" if 3 * heads * width > 256 else None  # no kernel holds it
        return op_case(label, predictive_attention, inputs, {"pointers": pointers, "mu": cases.MU}, dtype, scale, held)

    return build


def interval(target: Sequence[int], sources: Sequence[Sequence[int]], layout: str = "packed", steps: int | None = None) -> Build:
    """All of the sample, or a window of so many steps."""

    def build(dtype: torch.dtype, device: str) -> cases.Case:
        at, draw = laid_out(target, layout, device), draws(device)
        layouts = [laid_out(each, layout, device) for each in sources]
        if steps is None:
            edges = IntervalEdges.complete(layouts, at)
        else:
            edges = IntervalEdges.join([IntervalEdges.window(each, at, steps=steps) for each in layouts])
        heads, width = cases.HEADS, cases.WIDTH
        inputs = {"query": draw(at.num_rows, heads, width)}
        inputs |= {n: draw(edges.num_source_rows, heads, width) for n in ("key", "value")}
        heard = "complete" if steps is None else f"window {steps}"
        label = f"interval attention, {layout} {_short(target)}, {len(sources)} sources, {heard}"
        return op_case(label, interval_attention, inputs, {"edges": edges}, dtype)

    return build


def edge(edge_index: Callable[[str], tuple[Tensor, int]], name: str, heads: int, channels: int) -> Build:
    def build(dtype: torch.dtype, device: str) -> cases.Case:
        (edges, nodes), draw = edge_index(device), draws(device)
        inputs = {"x": draw(nodes, heads, channels), "score_dst": draw(nodes, heads), "score_src": draw(nodes, heads)}
        held = "cpu" if dtype == FLOAT16 else None
        return op_case(f"edge attention, {name}, {heads} x {channels}", edge_attention, inputs, {"edge_index": edges}, dtype, runs=held)

    return build


def _named_graph(name: str) -> Callable[[str], tuple[Tensor, int]]:
    return lambda device: cases.graph(name, device)


def _hub(device: str) -> tuple[Tensor, int]:
    """One node that all hear and that hears all, and nodes without any edge."""
    others = torch.arange(1, 1500)
    hub = torch.zeros_like(others)
    return torch.stack([torch.cat([others, hub]), torch.cat([hub, others])]).to(device), 1510


def _nothing(device: str) -> tuple[Tensor, int]:
    return torch.empty(2, 0, dtype=torch.int64, device=device), 5


_SIX, _LARGE = "32 graphs of 6 nodes", "20k nodes, 400k edges"
CHECKS: dict[str, list[Build]] = {
    "predictive_attention": [
        *(predictive([n, n]) for n in (1, 3, 63, 64, 65, 127)),
        *(predictive([130, 1, 0, 64, 65], layout) for layout in ("packed", "padded", "scattered")),
        predictive([0, 0], "padded"),
        predictive([256, 256], scale=1e-2),
        predictive([500, 500]),
        predictive(MOSI),
        predictive([40, 7], heads=1, width=64),  # last: each of these has kernels of its own
        predictive([40, 7], heads=4, width=20),
        predictive([40, 7], heads=8, width=8),
        predictive([40, 7], heads=8, width=16),  # 3 K D = 384: no kernel holds it
        predictive([40, 7], heads=5, width=8),  # in float32 the narrow loops in TF32
    ],
    "interval_attention": [
        *(interval([n, n], [[n, 5]]) for n in (1, 3, 63, 64, 65, 127)),
        *(interval([9, 0, 3, 70], [[5, 0, 2, 33], [0, 0, 1, 20]], layout) for layout in ("packed", "padded", "scattered")),
        interval([9, 0, 3, 170], [[5, 0, 2, 133], [0, 0, 1, 20]], steps=2),
        interval([2000], [[2000]], steps=5),
        interval(MOSI, [TEXT, AUDIO]),
    ],
    "edge_attention": [
        *(edge(_named_graph(_SIX), _SIX, h, c) for h, c in ((1, 64), (4, 64), (3, 5), (2, 33))),
        edge(_hub, "a hub", 2, 64),
        edge(_hub, "a hub", 1, 512),
        edge(_nothing, "no edge", 2, 8),
        *(edge(_named_graph(_LARGE), _LARGE, h, 64) for h in (1, 4)),
    ],
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
    """Within the budget; in half precision no worse than the eager formula, where that itself is beyond it (small differences of sums)."""
    least = BUDGET[dtype] if dtype == FLOAT32 else max(BUDGET[dtype], errors.get("eager formula", 0.0))
    return errors["mea_graph"] <= least < float("inf")


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
    names = (_SIX,) if run.small else (_SIX, _LARGE, "200k nodes, 4M edges")
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
    batch, length, nodes = (2, 9, _SIX) if run.small else (32, 500, _LARGE)
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


def _short(lengths: Sequence[int]) -> str:
    return str(list(lengths)) if len(lengths) < 8 else f"{len(lengths)} of up to {max(lengths)}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
