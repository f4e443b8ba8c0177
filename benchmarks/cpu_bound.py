"""What a pass of MEA at MOSI costs in calls and in arithmetic, and what this processor could do: `python -m benchmarks.cpu_bound`.

The bound is the time that the pass would take if products ran at the rate of a large matrix product and exponentials at the rate of
`torch.exp` over numbers that lie in the cache, both measured here, one after the other and with nothing else to do. It leaves out memory,
norms, calls and Python, so no program reaches it; the share says how much of the time is arithmetic that cannot be saved.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import calls, models
from benchmarks.measure import Pass
from benchmarks.samples import SHAPES, Kind, draw
from mea_graph.ops import flops

CASES: dict[str, tuple[int, Kind, models.Mode]] = {
    "training step, true lengths, B 16": (16, "true lengths", "train"),
    "training step, full padding, B 16": (16, "full padding", "train"),
    "training step, one long clip, B 16": (16, "one long clip", "train"),
    "prediction, one sample": (1, "true lengths", "predict"),
}
_GATES = 5  # sigmoids and tangents of an LSTM's unit in a step; going back there is one more


class Rates(NamedTuple):
    """What the processor does in a second, on as many threads as torch has."""

    products: float  # floating-point operations of a product of matrices, 1024 in each direction
    exponentials: float  # of 32,768 numbers that lie in the cache
    calls: float  # of the cheapest operator, from Python


class Cost(NamedTuple):
    """What a pass takes."""

    operators: int
    python: int  # calls of functions, Python's and C's
    products: int  # floating-point operations
    exponentials: int
    seconds: list[float]

    def bound(self, rates: Rates) -> float:
        return self.products / rates.products + self.exponentials / rates.exponentials


def rates() -> Rates:
    a, b, few = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.zeros(1)
    x, y = torch.randn(2**15), torch.empty(2**15)
    products = 2 * 1024**3 / _least(lambda: torch.mm(a, b), 20)
    return Rates(products, x.numel() / _least(lambda: torch.exp(x, out=y), 200), 1 / _least(lambda: few.add_(0), 2000))


def _least(run: Callable[[], Any], times: int) -> float:
    run()
    return min(_seconds(run) for _ in range(times))


def _seconds(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


class _Exponentials(TorchDispatchMode):
    """Counts those of attention, one an edge and head, one more for the GELU of a prediction, and again going back; and those of the
    backend "native" of the Bi-LSTM. Torch's own LSTM, which runs where there is no compiler, is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name.startswith("interval_attention"):
            inputs = args[3:] if name.endswith("backward") else args
            self.total += flops._interval_edges(*inputs[:2], *inputs[3:]) * inputs[0].size(1)
        elif name.startswith("predictive_attention"):
            query, *_, start, length, begin, end, _mu = args[3:] if name.endswith("backward") else args
            self.total += 2 * flops._predictive_edges(query, start, length, begin, end) * query.size(1)
        elif name == "bilstm_native":
            self.total += _GATES * args[0].size(0) * 2 * args[0].size(-1)
        elif name == "bilstm_native_backward":
            self.total += args[0].numel()
        return func(*args, **(kwargs or {}))


def cost(run: Pass, repeats: int) -> Cost:
    run()
    found = calls.count(run)
    with FlopCounterMode(display=False) as products:
        run()
    with _Exponentials() as exponentials:
        run()
    seconds = sorted(_seconds(run, time.process_time) for _ in range(repeats))
    operators = found.forward.total() + found.backward.total()
    return Cost(operators, _python_calls(run), products.get_total_flops(), exponentials.total, seconds)


def _python_calls(run: Pass) -> int:
    count = 0

    def called(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def row(name: str, found: Cost, best: Rates) -> str:
    low, median, high = statistics.quantiles(found.seconds, n=4) if len(found.seconds) > 1 else found.seconds * 3
    cells = [name, f"{found.operators:,}", f"{found.python:,}", f"{found.products / 1e9:.3g}", f"{found.exponentials / 1e6:.3g}"]
    cells += [f"{1e3 * found.bound(best):.3g} ms", f"{1e3 * median:.3g} ms ({1e3 * low:.3g}-{1e3 * high:.3g})"]
    cells += [f"{found.bound(best) / median:.0%}", f"{found.operators / best.calls / median:.0%}"]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12, help="passes timed of each case")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    best = rates()
    print(
        f"products {best.products / 1e9:.3g} GFLOP/s, exponentials {best.exponentials / 1e9:.3g} G/s, one call {1e6 / best.calls:.2g} us, "
        f"threads {options.threads}, torch {torch.__version__}\n"
    )
    print(
        "| Pass | operators | Python calls | GFLOP of products | M exponentials | bound | time (quartiles) | bound / time | calls / time |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (size, kind, mode) in CASES.items():
        run = models.passes_of_mea(models.mea(), draw(SHAPES["MOSI"], size, kind), mode)
        print(row(name, cost(run, options.repeats if size > 1 else 5 * options.repeats), best), flush=True)


if __name__ == "__main__":
    main()
