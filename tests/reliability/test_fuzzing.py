"""No file, however damaged, makes a reader do anything but read it or raise `DataError`, in bounded time and memory."""

import json
import os
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("fuzz_readers.py")
SEED = os.environ.get("MEA_GRAPH_FUZZ_SEED", "0")


@pytest.mark.parametrize("format", ["mult", "mmsa", "misa", "npz", "csd"])
def test_mutated_files_are_read_or_refused(child, fuzz_cases, format, tmp_path):
    """2,000 files over the five formats; `MEA_GRAPH_FUZZ_CASES` and `MEA_GRAPH_FUZZ_SEED` ask for more and for others."""
    if format == "csd":
        pytest.importorskip("h5py")
    fuzzer = child(FUZZER, format, "--cases", fuzz_cases, "--seed", SEED)
    code = fuzzer.wait(timeout=60 + fuzz_cases)
    last = (tmp_path / "fuzz-case.txt").read_text()
    assert code in (0, 1), f"ended with {code} in case: {FUZZER.name} {last} --cases 1\n{fuzzer.text()}"
    found = json.loads(fuzzer.text().splitlines()[-1])
    assert not found["wrong"], f"{FUZZER.name} {format} --seed {SEED} --first NUMBER --cases 1: {found['wrong']}"
    assert found["accepted"] + found["refused"] == fuzz_cases
    assert min(found["accepted"], found["refused"]) > fuzz_cases // 50  # else the mutations reach nothing, or everything
    assert found["grown_kib"] < 64 * 1024


@pytest.mark.parametrize("format", ["mult", "mmsa", "misa", "npz", "csd"])
def test_what_is_mutated_is_legal_to_begin_with(format, tmp_path):
    """Else every case would be refused for the same reason."""
    import runpy

    import numpy as np

    fuzzer = runpy.run_path(str(FUZZER))
    make, dump, read, name = fuzzer["READERS"][format]
    tree = make()
    if format == "csd":
        pytest.importorskip("h5py")
        (tmp_path / "whole.csd").write_bytes(dump(tree["labels"], np.random.default_rng(0)))
        tree = tree["COVAREP"]
    (tmp_path / name).write_bytes(dump(tree, np.random.default_rng(0)))
    assert len(read(tmp_path / name)) in (4, 6, 9)
