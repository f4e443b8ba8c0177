"""Changes the fields of a checkpoint, one by one, and says where prediction or resuming goes wrong without a word.

    python tools/change_checkpoint_fields.py --seconds 600
    python tools/change_checkpoint_fields.py --module MEAModule --seed 1

A model is trained on made-up data for one epoch. Then, in a random order, each entry of its checkpoint becomes text, nothing, an empty
container, a number that cannot be, or is left out; `Predictor` and `fit --ckpt_path` read the result. Both must either refuse it in one
line or do exactly what they do with the checkpoint as it was. Ends with 1 where one did neither.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mea_graph.__main__ import main as command
from mea_graph.data import DataError
from mea_graph.train import Predictor

GONE = object()  # the entry is left out
VALUES = ("x", None, [1], {}, -7, float("nan"), torch.ones(3), True, 10**30, GONE)
SAMPLES = {"audio": [np.ones((4, 3)), np.zeros((5, 3))], "lips": [np.ones((4, 2)), np.ones((1, 2))]}


def run(words: list[str]) -> tuple[int, str]:
    """The exit code of a command, and what it said of errors."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        return command(words), said.getvalue().strip()


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every entry of nested dicts, lists and tuples."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, entry in entries:
        yield (*way, key)
        yield from places(entry, (*way, key))


def changed(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """The same with another entry there; what was given stays."""
    if not way:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(way) == 1 and new is GONE:
        del copy[way[0]]
    else:
        copy[way[0]] = changed(value[way[0]], way[1:], new)
    return tuple(copy) if isinstance(value, tuple) else copy


def predicted(checkpoint: str) -> np.ndarray:
    return np.asarray(Predictor.load(checkpoint)(SAMPLES).probabilities)


def resumed(checkpoint: str) -> tuple[int, str, dict[str, torch.Tensor]]:
    """Exit code, error and weights of a second epoch, in a run folder as the first epoch left it."""
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree("first", "run")
    code, said = run(["fit", "--config", "run/config.yaml", "--run_dir", "run", "--trainer.max_epochs", "2", "--ckpt_path", checkpoint])
    return code, said, torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def train(module: str) -> None:
    draw = np.random.default_rng(0)
    y = draw.permutation(30) % 2
    parts = np.array((["train"] * 3 + ["valid"] + ["test"]) * 6)
    audio = draw.normal(size=(30, 4, 3)) + y[:, None, None]
    np.savez("data.npz", audio=audio, lips=draw.normal(size=(30, 4, 2)), label=y, split=parts)
    words = ["fit", "--data.source", "data.npz", "--data.reader.split", "split", "--model", module, "--model.hidden_channels", "4"]
    words += ["--model.channels", "4", "--model.heads", "2"] if module == "MEAModule" else []
    code, said = run([*words, "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--run_dir", "first"])
    if code:
        raise SystemExit(said)


def fault_of(way: tuple[Any, ...], new: Any, prediction: np.ndarray, weights: dict[str, torch.Tensor]) -> Iterator[str]:
    """What went wrong with `changed.ckpt`."""
    try:
        if not np.array_equal(predicted("changed.ckpt"), prediction):
            yield "predicts otherwise"
    except DataError:
        pass
    except Exception as error:
        yield f"prediction raises {type(error).__name__}: {error}"
    try:
        code, said, found = resumed("changed.ckpt")
        if code == 0 and not all(torch.equal(found[name], value) for name, value in weights.items()):
            yield "trains otherwise"
        elif code and (code != 2 or said.count("\n")):
            yield f"ends with {code}: {said[:300]!r}"
    except Exception as error:
        yield f"resuming raises {type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--module", default="LateFusionGRUModule", help="the class that is trained")
    parser.add_argument("--seconds", type=float, default=300.0, help="after which no other entry is tried")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.chdir(tempfile.mkdtemp())
    train(args.module)
    shutil.copy(Path("first/checkpoints/last.ckpt"), "same.ckpt")
    prediction, (code, said, weights) = predicted("same.ckpt"), resumed("same.ckpt")
    if code:
        raise SystemExit(said)
    saved = torch.load("same.ckpt", weights_only=True)
    todo = [(way, new) for way in places(saved) for new in VALUES]
    random.Random(args.seed).shuffle(todo)
    tried: Counter[str] = Counter()
    end = time.monotonic() + args.seconds
    for way, new in todo:
        if time.monotonic() > end:
            break
        torch.save(changed(saved, way, new), "changed.ckpt")
        tried["changes"] += 1
        for fault in fault_of(way, new, prediction, weights):
            tried["faults"] += 1
            name = "left out" if new is GONE else repr(new)[:40]
            print(f"{'.'.join(map(str, way))} = {name}: {fault}", flush=True)
    print(f"{tried['changes']} of {len(todo)} changes tried, {tried['faults']} faults")
    return int(tried["faults"] > 0)


if __name__ == "__main__":
    sys.exit(main())
