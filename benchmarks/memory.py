"""Peak memory of one contender's first pass, in a process of its own: `python -m benchmarks.memory SUITE KEY CONTENDER` prints it."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing.context import BaseContext

import torch

from benchmarks import baselines, measure


@cache
def _processes() -> BaseContext:
    """Processes that are fresh, but forked from one that has imported everything, which takes longer than most passes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.catalogue", *baselines.PACKAGES])
    return context


def peak(suite: str, key: str, contender: str) -> int:
    """Bytes, read in a fresh process: what an earlier pass left with the allocator would hide a peak."""
    with ProcessPoolExecutor(1, mp_context=_processes()) as pool:
        return pool.submit(_peak, suite, key, contender, torch.get_num_threads()).result()


def _peak(suite: str, key: str, contender: str, threads: int) -> int:
    from benchmarks.catalogue import SUITES

    torch.set_num_threads(threads)
    entry = SUITES[suite][key]
    big, small = entry.build(), entry.small()
    return measure.peak_cpu_memory(big.contenders[contender], small.contenders[contender])


if __name__ == "__main__":
    print(_peak(*sys.argv[1:], threads=torch.get_num_threads()))
