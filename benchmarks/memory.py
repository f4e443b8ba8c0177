"""Prints the peak memory of one contender's first pass: `python -m benchmarks.memory SUITE KEY CONTENDER`, a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import measure

ROOT = Path(__file__).parent.parent


def peak(suite: str, key: str, contender: str) -> int:
    """Bytes, read in a fresh process: what an earlier pass left with the allocator would hide a peak."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", suite, key, contender]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    from benchmarks.catalogue import SUITES

    suite, key, contender = sys.argv[1:]
    entry = SUITES[suite][key]
    big, small = entry.build(), entry.small()
    print(measure.peak_cpu_memory(big.contenders[contender], small.contenders[contender]))


if __name__ == "__main__":
    main()
