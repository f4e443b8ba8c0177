"""The clock and the error of the benchmarks."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import cases, measure, memory

ROOT = Path(__file__).parents[2]


def test_contenders_take_turns_and_the_slower_one_is_found():
    order = []

    def sleeps(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)
            return []

        return run

    timings = measure.interleave({"slow": sleeps("slow", 0.02), "fast": sleeps("fast", 0.002)}, seconds=0, at_least=4)
    assert order == ["slow", "fast", "slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]  # one turn to warm up, then four
    assert timings["slow"].passes == 4
    middle, least, most = measure.ratio(timings["slow"], timings["fast"])
    assert least <= middle <= most
    assert middle > 2


def test_summary_gives_median_and_quartiles():
    assert measure.summary([5.0, 1.0, 3.0, 2.0, 4.0]) == measure.Timing(3.0, 1.5, 4.5, 5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_error_that_is_no_number_is_the_worst_of_all(wrong):
    truth = torch.ones(4, dtype=torch.float64)
    assert measure.error([truth.float()], [truth]) == 0
    assert measure.error([torch.tensor([1.0, 1.0, 1.0, wrong])], [truth]) == float("inf")
    assert measure.error([truth * 1.5, truth], [truth, truth]) == 0.5
    assert measure.error([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert measure.error([torch.ones(2)], [torch.zeros(2)]) > 1


def test_mosi_lengths_have_the_mean_and_the_maximum_they_claim():
    for batch, longest, mean in ((32, 500, 60), (32, 375, 50), (32, 50, 12)):
        lengths = cases.mosi_lengths(batch, longest, mean)
        assert len(lengths) == batch
        assert max(lengths) == longest
        assert min(lengths) >= 3
        assert sum(lengths) / batch == pytest.approx(mean, rel=0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_of_a_pass_is_seen_and_what_it_gave_back_before_is_not():
    program = """
import torch
from benchmarks.measure import peak_cpu_memory
peak = peak_cpu_memory(lambda: [(torch.ones(5_000_000) + 1).sum()], lambda: [torch.ones(5) + 1])
print(peak)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 39e6 < int(done.stdout) < 45e6  # two tensors of 20 MB; the kernel counts resident pages in batches


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_of_each_contender_is_read_in_a_fresh_process():
    key = "growth of predictive attention, T 500"
    ours, again, theirs = (memory.peak("ops", key, name) for name in ("mea_graph", "mea_graph", "eager formula"))
    assert theirs > 4 * ours > 1e6  # maps of 8 heads, 500 x 500, in several places, beside a few blocks
    assert again == pytest.approx(ours, rel=0.2)  # in one process the second pass would find the first one's pages
    with pytest.raises(KeyError, match="no such contender"):
        memory.peak("ops", key, "no such contender")
