"""Where a training step of MEA spends its time: `python -m benchmarks.parts` prints the share of each part, then the costliest operators.

Shares are of processor time, so that other programs on the machine weigh little. The parts are timed on their own, forward and backward,
in turn with the whole step; what they leave open is losses, residuals between them, and the clock's noise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import models
from benchmarks.measure import Pass
from benchmarks.samples import SHAPES, draw
from mea_graph.nn import MEA, fusion_graph
from mea_graph.ops import Pointers


def parts(size: int, kind: str) -> dict[str, Pass]:
    samples = draw(SHAPES["MOSI"], size, kind)  # type: ignore[arg-type]
    network: MEA = models.mea()
    x, ptr = samples.x_dict, samples.ptr_dict
    z = {m: torch.randn(len(v), 40).requires_grad_() for m, v in x.items()}
    h = {m: torch.randn(size, 64).requires_grad_() for m in x}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0, fused=True)

    def way(module: nn.Module, forward: Callable[[], list[Tensor]], inputs: list[Tensor]) -> Pass:
        def run() -> list[Tensor]:
            outs = [o for o in forward() if o.requires_grad]
            torch.autograd.grad(outs, [*inputs, *module.parameters()], [torch.ones_like(o) for o in outs], allow_unused=True)
            return []

        return run

    def fused() -> list[Tensor]:
        made = fusion_graph(h, h, {m: p.diff() > 0 for m, p in ptr.items()})
        return [*network.fusion(made.x_dict, made.edge_index_dict, made.sample_dict, size).x.values()]

    def adam() -> list[Tensor]:
        optimizer.step()
        return []

    step = models.passes_of_mea(network, samples, "train")
    step()  # leaves gradients for Adam
    encoders = [(network.exclusive.encoders[m], network.agnostic.encoder) for m in x]
    sequences, vectors = list(z.values()), list(h.values())
    return {
        "training step": step,
        "pointers of the batch": lambda: [Pointers.from_batch(batch, size).length for batch in samples.batch_dict.values()],
        "extractors (Bi-LSTM)": way(network.extractors, lambda: [network.extractors[m](x[m], ptr[m]) for m in x], []),
        "predictive encoder": way(network.exclusive.attention, lambda: [*network.exclusive.attention(z, ptr)[0].values()], sequences),
        "cross-modal encoder": way(network.agnostic.attention, lambda: [*network.agnostic.attention(z, ptr)[0].values()], sequences),
        "pooling encoders": way(
            nn.ModuleList([network.exclusive.encoders, network.agnostic.encoder]),
            lambda: [f(z[m], ptr[m]) for m, pair in zip(x, encoders, strict=True) for f in pair],
            sequences,
        ),
        "discriminators": way(
            network.discriminator, lambda: [t for t in network.discriminator(h, h) if isinstance(t, Tensor) and t.requires_grad], vectors
        ),
        "graph fusion": way(network.fusion, fused, vectors),
        "Adam": adam,
    }


def shares(passes: dict[str, Pass], turns: int) -> dict[str, float]:
    """Median processor seconds of each, taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(turns + 1):
        for name, run in passes.items():
            start = time.process_time()
            run()
            if turn:
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", default=["true lengths", "one long clip", "full padding"])
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for kind in args.kinds:
        passes = parts(args.size, kind)
        found = shares(passes, args.turns)
        whole = found["training step"]
        print(f"\nMOSI, B {args.size}, {kind}")
        for name, seconds in found.items():
            print(f"  {name:24}{1e3 * seconds:10.1f} ms{seconds / whole:8.1%}")
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            passes["training step"]()
        rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
        total = sum(row.self_cpu_time_total for row in rows)
        for row in rows[:10]:
            print(f"  {row.key[:60]:60}{row.self_cpu_time_total / total:8.1%}{row.count:8} calls")


if __name__ == "__main__":
    main()
