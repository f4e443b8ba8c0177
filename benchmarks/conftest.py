"""What the suites share: each case is checked, then timed in turn with its baselines, and says under what conditions."""

from __future__ import annotations

import os
import platform
import shlex
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
import torch

from benchmarks import baselines, measure, memory, op_cases
from benchmarks.catalogue import DEVICE, SUITES, Entry

SECONDS = os.environ.get("MEA_GRAPH_BENCH_SECONDS")  # to spend on timing each case; a few turns are taken in any case
BUDGET = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # relative error against float64 of the output and of every gradient
_START = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the cases of `make bench`")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    warnings.filterwarnings("ignore", module=r"(MMSA|linmult|torch|torch_geometric)\b")


def pytest_report_header() -> list[str]:
    return [f"not in this run: {name}: {reason}" for name, reason in baselines.absent().items()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A suite's test takes `key`; which suite it is, its file's name says."""
    if "key" in metafunc.fixturenames:
        suite = metafunc.module.__name__.rsplit("bench_", 1)[-1]
        quick = metafunc.config.getoption("quick")
        keys = [key for key, entry in SUITES[suite].items() if entry.quick or not quick]
        metafunc.parametrize("key", keys, ids=keys)


def _seconds(config: pytest.Config) -> float:
    """What to spend on timing each case; `make bench` has ten minutes for all."""
    return float(SECONDS or (3 if config.getoption("quick") else 5))


def _clock(config: pytest.Config) -> Callable[[], float]:
    """The clock that pytest-benchmark was told to use, for the baselines too."""
    return time.process_time if str(config.getoption("benchmark_timer")).endswith("process_time") else time.perf_counter


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Times a case: before each timed pass of the library every baseline has its turn, so that what disturbs one disturbs the others."""

    def run(suite: str, key: str) -> None:
        entry = SUITES[suite][key]
        case = (entry.small if benchmark.disabled else entry.build)()
        errors = case.errors()
        allowed = BUDGET[case.dtype]
        assert errors["mea_graph"] <= allowed, f"{case.name}: error {errors['mea_graph']:.1e} above {allowed:g}, so nothing is timed"
        ours = case.contenders["mea_graph"]
        others = {name: one for name, one in case.contenders.items() if name != "mea_graph"}
        taken: dict[str, list[float]] = {name: [] for name in others}
        turn, clock, seconds = 0, _clock(request.config), _seconds(request.config)

        def baselines_first() -> None:
            nonlocal turn
            names = [*others]
            turn += 1
            for name in names[turn % len(names) :] + names[: turn % len(names)] if names else []:
                measure.synchronize()
                start = clock()
                others[name]()
                measure.synchronize()
                taken[name].append(clock() - start)
            measure.synchronize()

        def timed() -> None:
            ours()
            measure.synchronize()

        rounds = 1
        if not benchmark.disabled:
            start = clock()
            baselines_first()  # warms up
            timed()
            turn_seconds = clock() - start
            rounds = max(5 if turn_seconds < 2 * seconds else 3, min(200, round(seconds / turn_seconds)))
            for times in taken.values():
                times.clear()
        benchmark.group = suite  # read when the timing begins
        benchmark.pedantic(timed, setup=baselines_first, rounds=rounds)
        benchmark.extra_info.update(_about(suite, key, entry, case.name, str(case.dtype), errors, taken, benchmark.disabled))
        benchmark.extra_info.update(case.about)

    return run


def _about(
    suite: str, key: str, entry: Entry, name: str, dtype: str, errors: dict[str, float], taken: dict[str, list[float]], once: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "key": key,
        "case": name,
        "dtype": dtype.removeprefix("torch."),
        "errors": errors,
        "curve": entry.curve,
        "rivals": {} if once else {n: measure.summary(times)._asdict() for n, times in taken.items()},
        **{k: v for k, v in measure.environment().items() if k not in ("date", "python")},
    }
    if entry.memory and not once and DEVICE == "cpu":
        found["peak_bytes"] = {c: memory.peak(suite, key, c) for c in ("mea_graph", *taken) if c != op_cases.COMPILED}
    return found


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Only what a figure must name; not the machine's own name."""
    machine_info.clear()
    machine_info.update({**measure.environment(), "python": platform.python_version()})


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Adds how the file was made and which baselines were not there; leaves out single times, and what says nothing about the figures."""
    threads = torch.get_num_threads()
    whole = f"make bench{'' if config.getoption('quick') else '-full'} THREADS={threads}"
    variables = f"MEA_GRAPH_BENCH_SECONDS={_seconds(config):g} OMP_NUM_THREADS={threads}"
    part = f"{variables} python -m pytest {shlex.join(config.invocation_params.args)}"
    everything = len(config.getoption("file_or_dir")) == len(SUITES) and not config.getoption("keyword")
    output_json["command"] = whole if everything and not SECONDS else part
    output_json["clock"] = "processor time" if _clock(config) is time.process_time else "wall time"
    output_json["absent"] = baselines.absent()
    output_json["minutes"] = round((time.monotonic() - _START) / 60, 1)
    output_json["datetime"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    commit = output_json.pop("commit_info")
    output_json["revision"] = str(commit.get("id"))[:7] + (" with changes" if commit.get("dirty") else "")
    for one in output_json["benchmarks"]:
        one["stats"] = {k: one["stats"][k] for k in ("min", "max", "median", "q1", "q3", "rounds")}
        for field in ("fullname", "params", "param", "options", "group_name"):
            one.pop(field, None)
