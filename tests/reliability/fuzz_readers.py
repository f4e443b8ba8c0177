"""Feeds mutated files to one reader. Run by `test_fuzzing.py` in a process of its own; also by hand:

python tests/reliability/fuzz_readers.py csd --first 0 --cases 100000 --seed 1

Case i of a seed is always the same file, so a case that was reported can be had again with `--first i --cases 1 --keep FOLDER`.
Prints one JSON line: how many cases were accepted (the mutation left a legal file), how many refused with `DataError`, and what else
happened: any other exception, a case that took too long, or a limit on memory that was hit.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from mea_graph.data import DataError, MultimodalDataset
from mea_graph.readers.any_pickle import read_any_pickle
from mea_graph.readers.csd import read_csd
from mea_graph.readers.npz import read_npz

SECONDS_A_CASE = 10.0
MEMORY = 1 << 30  # more address space than at the start: a hundred thousand times the size of a seed file
EXTREMES = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1)

Tree = dict[str, Any]


class TookTooLongError(BaseException):
    """Not an `Exception`, so that no reader can take it for a fault of the file."""


# Small valid contents, one a format


def mult() -> Tree:
    rng, splits = np.random.default_rng(0), {}
    for split, samples in (("train", 3), ("valid", 1), ("test", 2)):
        sizes = {"text": (5, 4), "audio": (6, 3), "vision": (4, 2)}
        part: Tree = {name: rng.normal(size=(samples, *size)).astype(np.float32) for name, size in sizes.items()}
        part["audio"][:, 4:] = 0
        part["labels"] = rng.uniform(-3, 3, (samples, 1, 1))
        part["id"] = np.array([[f"{split}{i}", "0.5", "2.25"] for i in range(samples)], dtype="S8")
        splits[split] = part
    return splits


def mmsa() -> Tree:
    splits = mult()
    for split, part in splits.items():
        samples = len(part.pop("labels"))
        part["id"] = [f"{split}$_${i}" for i in range(samples)]
        part["raw_text"] = np.array(["so good"] * samples, dtype=object)
        part["annotations"] = ["Positive"] * samples
        part["audio_lengths"], part["vision_lengths"] = [4] * samples, [4] * samples
        part["regression_labels"] = np.linspace(-1, 1, samples)
        part["classification_labels"] = np.arange(float(samples))
    return splits


def misa() -> Tree:
    rng = np.random.default_rng(0)

    def sample(name: str, steps: int) -> tuple[Any, ...]:
        features = (rng.integers(0, 9, steps), rng.normal(size=(steps, 3)), rng.normal(size=(steps, 2)), ["word"] * steps)
        return features, np.array([[rng.uniform(-3, 3)]], np.float32), name

    return {split: [sample(f"{split}[{i}]", 2 + i) for i in range(3)] for split in ("train", "dev", "test")}


def npz() -> Tree:
    rng = np.random.default_rng(0)
    return {
        "audio": rng.normal(size=(4, 6, 3)).astype(np.float32),
        "audio_len": np.array([6, 0, 2, 4]),
        "audio_time": np.tile(np.arange(6) / 50, (4, 1)),
        "lips": rng.normal(size=(4, 5, 2)),
        "label": np.array([2, 0, 1, 2]),
        "id": np.array(["a", "b", "c", "d"]),
        "speaker": np.array(["ann", "bob", "ann", "eve"]),
    }


def csd() -> Tree:
    def regular(steps: int, width: int) -> Tree:
        edges = np.arange(steps + 1) / 10
        return {"features": np.random.default_rng(width).normal(size=(steps, width)), "intervals": np.stack([edges[:-1], edges[1:]], 1)}

    labels = {"features": np.array([[1.5], [-2.0]]), "intervals": np.array([[0.0, 0.5], [0.5, 1.0]])}
    return {"COVAREP": {"videoA": regular(10, 3), "videoB": regular(12, 3)}, "labels": {"videoA": labels, "videoB": labels}}


# How contents become bytes, and which reader takes them


def dump_pickle(tree: Tree, rng: np.random.Generator) -> bytes:
    return pickle.dumps(tree, int(rng.integers(2, pickle.HIGHEST_PROTOCOL + 1)))


def dump_npz(tree: Tree, rng: np.random.Generator) -> bytes:
    file = BytesIO()
    (np.savez if rng.random() < 0.5 else np.savez_compressed)(file, **tree)
    return file.getvalue()


def dump_csd(tree: Tree, rng: np.random.Generator) -> bytes:
    """The labels; the features stay as they are in half of the cases, else the roles are exchanged."""
    import h5py

    file = BytesIO()
    options = {"compression": "gzip"} if rng.random() < 0.3 else {}
    with h5py.File(file, "w", libver="latest" if rng.random() < 0.3 else "earliest") as h5:
        for video, arrays in tree.items():
            for name, array in arrays.items():
                h5.create_dataset(f"root/data/{video}/{name}", data=array, **options)
    return file.getvalue()


def read_csd_folder(path: Path) -> MultimodalDataset:
    other = path.with_name("whole.csd")
    kinds = ("labels", "COVAREP") if path.name == "labels.csd" else ("COVAREP", "labels")
    return read_csd(dict(zip(kinds, (path, other), strict=True)))


READERS: dict[str, tuple[Callable[[], Tree], Callable[..., bytes], Callable[[Path], MultimodalDataset], str]] = {
    "mult": (mult, dump_pickle, read_any_pickle, "a.pkl"),
    "mmsa": (mmsa, dump_pickle, read_any_pickle, "a.pkl"),
    "misa": (misa, dump_pickle, read_any_pickle, "a.pkl"),
    "npz": (npz, dump_npz, read_npz, "a.npz"),
    "csd": (csd, dump_csd, read_csd_folder, "COVAREP.csd"),
}


# Mutations


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in it whose value could be another."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from places(value)


def swap_fields(tree: Tree, rng: np.random.Generator) -> None:
    """Exchanges two values, or puts something else where one was: another dtype, another shape, nothing, a number."""
    found = list(places(tree))
    (here, key), (there, other) = (found[int(i)] for i in rng.choice(len(found), 2))
    value = here[key]
    kind = rng.integers(0, 6)
    if kind == 0:
        here[key], there[other] = there[other], value
    elif kind == 1 and isinstance(value, np.ndarray):
        here[key] = value.astype(rng.choice(["f2", "f8", "i1", "S3", "U4", "?", "c16"]))
    elif kind == 2 and isinstance(value, np.ndarray):
        here[key] = value[..., None] if rng.random() < 0.5 else value.reshape(-1)
    elif kind == 3 and isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
        with np.errstate(over="ignore"):
            value.flat[int(rng.integers(value.size))] = rng.choice([np.nan, np.inf, -np.inf, 1e300])
    elif kind == 4 and isinstance(here, dict):
        del here[key]
    else:
        here[key] = [None, -1, 2**70, "text", b"\xff", [], {}, 0.5][int(rng.integers(8))]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four faults of a disk, a network or a forger."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(out))) if out else 0
        length = int(min(rng.integers(1, 64), len(out) - at))
        kind = rng.integers(0, 8)
        if kind == 0 and out:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and out:
            out[at] = int(rng.integers(256))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = rng.bytes(length)
        elif kind == 5 and out:  # splice: a piece of the file stands somewhere else too
            source = int(rng.integers(len(out)))
            out[at : at + length] = out[source : source + length]
        elif kind == 6:
            out[at : at + length] = bytes(length)
        elif kind == 7:  # a length, a count or an offset that is far too large
            size = int(rng.choice([1, 2, 4, 8]))
            number = int(EXTREMES[int(rng.integers(len(EXTREMES)))]) % (1 << 8 * size)
            out[at : at + size] = number.to_bytes(size, "little" if rng.random() < 0.8 else "big")
    return bytes(out)


def recompress(data: bytes, rng: np.random.Generator) -> bytes:
    """An archive whose members were mutated, with check sums that fit: so that the faults reach the reader of arrays."""
    file = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        broken = names[int(rng.integers(len(names)))]
        for name in names:
            member = old.read(name)
            if name == broken:  # most often in the header, which says how much there is to read
                head = mutate(member[:128], rng)
                member = head + member[128:] if rng.random() < 0.7 else mutate(member, rng)
            new.writestr(name, member)
    return file.getvalue()


def case(format: str, number: int, seed: int, folder: Path) -> Path:
    """Writes case `number` into `folder` and returns its path."""
    make, dump, _, name = READERS[format]
    rng = np.random.default_rng([seed, number])
    tree = make()
    contents = tree
    if format == "csd":
        broken, whole = ("labels", "COVAREP") if rng.random() < 0.3 else ("COVAREP", "labels")
        (folder / "whole.csd").write_bytes(dump(tree[whole], np.random.default_rng(0)))
        contents, name = tree[broken], f"{broken}.csd"
    fields = rng.random() < 0.3
    try:
        if fields:
            swap_fields(contents, rng)
        data = dump(contents, rng)
    except (TypeError, ValueError, AttributeError):  # what came out of the exchange cannot be written in this format
        data, fields = dump(make() if format != "csd" else make()[name.removesuffix(".csd")], rng), False
    if not fields:
        data = recompress(data, rng) if format == "npz" and rng.random() < 0.5 else mutate(data, rng)
    (folder / name).write_bytes(data)
    return folder / name


def outcome(format: str, path: Path) -> str:
    """Reads one file, all samples included; "accepted", "refused", or what went wrong."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS_A_CASE)
    try:
        with warnings.catch_warnings(action="error"):  # a reader that casts blindly is a fault too
            for sample in READERS[format][2](path):
                assert all(sample[name].x.isfinite().all() for name in sample.node_types)
                assert "y" not in sample or sample.y.isfinite().all()
    except DataError as error:
        return "refused" if str(path.parent) in str(error) else f"the message names no file: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "accepted"


def stop(*_: Any) -> None:
    raise TookTooLongError(f"more than {SECONDS_A_CASE} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=READERS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that went wrong (or for all, where --cases is 1)")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, stop)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts: dict[str, int] = {"accepted": 0, "refused": 0}
    wrong: dict[int, str] = {}
    for number in range(options.first, options.first + options.cases):
        with tempfile.TemporaryDirectory() as folder:
            Path("fuzz-case.txt").write_text(f"{options.format} --seed {options.seed} --first {number}")  # what a crash leaves behind
            path = case(options.format, number, options.seed, Path(folder))
            result = outcome(options.format, path)
            if result in counts:
                counts[result] += 1
            else:
                wrong[number] = result.replace(folder, "")
            if options.keep and (result not in counts or options.cases == 1):
                shutil.copytree(folder, options.keep / f"{options.format}-{options.seed}-{number}", dirs_exist_ok=True)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"format": options.format, **counts, "wrong": wrong, "grown_kib": growth}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
