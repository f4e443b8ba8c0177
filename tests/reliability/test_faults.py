"""`kill -9` at the worst moments: what is resumed equals what was never interrupted, and no half-written file is ever picked up."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mea_graph.__main__ import main
from mea_graph.data import DataError, open_dataset
from mea_graph.train.whole_checkpoints import WholeCheckpoints

KILLERS = {
    # in the middle of an epoch: two of six batches are done
    "epoch": """
        class Kill(L.Callback):
            def on_train_batch_start(self, trainer, module, batch, index):
                if trainer.current_epoch == 2 and index == 2:
                    die()
    """,
    # in the middle of a checkpoint: half of its bytes are in the file
    "checkpoint": """
        class Half(io.BytesIO):
            def getbuffer(self):
                return super().getbuffer()[: len(self.getvalue()) // 2]

        class Kill(L.Callback):
            def on_train_epoch_start(self, trainer, module):
                if trainer.current_epoch == 2:
                    whole_checkpoints.io = types.SimpleNamespace(BytesIO=Half)
                    whole_files.os = types.SimpleNamespace(**{**vars(os), "fsync": lambda number: die()})
    """,
    # just after a checkpoint, before Lightning logs what the epoch came to
    "log": """
        def replace(source, target):
            os.replace(source, target)
            if str(target).endswith("last.ckpt"):
                die()

        class Kill(L.Callback):
            def on_train_epoch_start(self, trainer, module):
                if trainer.current_epoch == 1:
                    whole_files.os = types.SimpleNamespace(**{**vars(os), "replace": replace})
    """,
}
PROLOGUE = """
import io, os, signal, types
import lightning as L
from mea_graph import whole_files
from mea_graph.train import whole_checkpoints

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def final(folder):
    assert main(["test", "--config", f"{folder}/config.yaml"]) == 0
    return json.loads(Path(folder, "metrics.json").read_text())["metrics"]


OPTIONS = ["--model.dropout", "0.2", "--model.cosine_decay", "true", "--data.batch_size", "4", "--trainer.max_epochs", "4"]


@pytest.fixture
def fit(small_fit):
    return [*small_fit, *OPTIONS, "--data.standardize", "train"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, arrays, small_model):
    """The folder of a run that nothing interrupts, on the same data."""
    folder = tmp_path_factory.mktemp("whole")
    np.savez(folder / "clips.npz", **arrays)
    words = ["fit", "--data.source", str(folder / "clips.npz"), *small_model, *OPTIONS, "--data.standardize", "train"]
    assert main([*words, "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLERS)
def test_a_killed_run_goes_on_as_if_it_had_not_been(child, command, fit, whole, read_logs, moment):
    lines = [line[8:] for line in KILLERS[moment].splitlines()]
    Path("killer.py").write_text(PROLOGUE + "\n".join(lines))
    killed = child(command, *fit, "--run_dir", "killed", "--trainer.callbacks+", "killer.Kill")
    assert killed.wait() == -signal.SIGKILL, killed.text()
    checkpoints = Path("killed/checkpoints")
    left = sorted(path.name for path in checkpoints.iterdir())
    assert [name for name in left if name.endswith(".ckpt")] == ["best.ckpt", "last.ckpt"]
    assert any(name.endswith(".writing") for name in left) == (moment == "checkpoint")  # so the kill did come in the middle
    assert all(torch.load(path, weights_only=True)["state_dict"] for path in checkpoints.glob("*.ckpt"))
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["epoch"] == 1
    assert main([*fit, "--run_dir", "killed", "--ckpt_path", "last"]) == 0
    assert read_logs("killed") == read_logs(whole)
    assert final("killed") == final(whole)
    for name in ("best", "last"):
        states = [torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True)["state_dict"] for run in ("killed", whole)]
        assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]


CACHE_KILLER = """
import os, signal, sys
from mea_graph.data import open_dataset, store_files

calls, original = [], store_files._sync

def sync(file):
    calls.append(file)
    if len(calls) == int(sys.argv[2]):
        file.truncate(file.tell() // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    original(file)

store_files._sync = sync
open_dataset(sys.argv[1], split="part")
"""


@pytest.mark.parametrize("file", [1, 4, 7])
def test_a_cache_that_was_never_finished_is_never_opened(child, source, file):
    Path("opener.py").write_text(CACHE_KILLER)
    assert child("opener.py", source, file).wait() == -signal.SIGKILL
    root = source.with_name("clips.npz.mea-cache")
    assert [path.name[:9] for path in root.iterdir() if path.is_dir()] == [".writing-"]
    again = open_dataset(source, split="part")
    assert not list(root.glob(".writing-*"))  # as large as the data, it stayed for a day
    whole = open_dataset(source, split="part", cache_dir="elsewhere")
    assert again.hash == whole.hash
    for left, right in zip(again, whole, strict=True):
        assert all(torch.equal(left[name].x, right[name].x) for name in ("audio", "lips"))


LOCK_HOLDER = """
import os, sys, time
from pathlib import Path
from mea_graph.data import cache, open_dataset

original = cache.write_made

def write(*arguments):
    Path(f"converting-{os.getpid()}").touch()
    if sys.argv[2] == "hang":
        time.sleep(600)
    original(*arguments)

cache.write_made = write
Path("started-" + sys.argv[2]).touch()
open_dataset(sys.argv[1], split="part")
"""


def test_who_waits_for_a_conversion_takes_over_when_it_is_killed(child, source):
    """The lock is the system's, and ends with the process; the file of its name that is left does not lock anybody out."""
    Path("opener.py").write_text(LOCK_HOLDER)
    first = child("opener.py", source, "hang")
    wait_for(lambda: list(Path().glob("converting-*")))
    others = [child("opener.py", source, "wait") for _ in range(2)]
    wait_for(lambda: Path("started-wait").exists())
    time.sleep(0.3)
    assert len(list(Path().glob("converting-*"))) == 1  # the others wait
    os.kill(first.process.pid, signal.SIGKILL)
    assert [process.wait() for process in others] == [0, 0], [process.text() for process in others]
    assert len(list(Path().glob("converting-*"))) == 2  # one of them converted, the other took what it made
    assert not list(source.with_name("clips.npz.mea-cache").glob("*.lock"))


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(child, command, fit):
    Path("killer.py").write_text(PROLOGUE + "class Kill(L.Callback):\n    def on_train_batch_end(self, *args):\n        die()\n")
    assert child(command, *fit, "--run_dir", "run", "--trainer.callbacks+", "killer.Kill").wait() == -signal.SIGKILL
    assert main([*fit, "--run_dir", "run", "--ckpt_path", "last"]) == 2
    assert main([*fit, "--run_dir", "run", "--trainer.max_epochs", "1"]) == 0


class TestFullDisk:
    def test_a_checkpoint_is_refused_and_the_one_before_it_stays(self, child, command, fit):
        """The limit on a file's size stands for the end of the disk: the system refuses the write in the middle."""
        assert main([*fit, "--run_dir", "run", "--trainer.max_epochs", "1"]) == 0
        before = {path.name: path.read_bytes() for path in Path("run/checkpoints").iterdir()}
        Path("limited.py").write_text(
            "import resource, runpy, sys\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before['last.ckpt']) // 2},) * 2)\n"
            "sys.argv.pop(0)\n"
            'runpy.run_path(sys.argv[0], run_name="__main__")\n'
        )
        stopped = child("limited.py", command, *fit, "--run_dir", "run", "--ckpt_path", "last")
        assert stopped.wait() == 2, stopped.text()
        error = [line for line in stopped.text().splitlines() if line.startswith("mea-graph: error: ")]
        assert len(error) == 1
        assert ".ckpt: the checkpoint could not be written ([Errno 27] File too large); make room and resume" in error[0]
        assert {path.name: path.read_bytes() for path in Path("run/checkpoints").iterdir()} == before
        assert main([*fit, "--run_dir", "run", "--ckpt_path", "last"]) == 0

    def test_a_cache_is_refused_and_nothing_is_left(self, child, command, fit, source):
        np.savez(source, **{**np.load(source), "wide": np.ones((40, 50, 30))})
        Path("limited.py").write_text(
            "import resource, runpy, sys\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
            "sys.argv.pop(0)\n"
            'runpy.run_path(sys.argv[0], run_name="__main__")\n'
        )
        stopped = child("limited.py", command, *fit, "--run_dir", "run")
        assert stopped.wait() == 2, stopped.text()
        assert "clips.npz.mea-cache" in stopped.text()
        assert "the cache could not be written" in stopped.text()
        assert "pass cache_dir= a folder with room" in stopped.text()
        assert not source.with_name("clips.npz.mea-cache").exists()
        assert not Path("run").exists()


def test_a_checkpoint_is_replaced_whole(tmp_path, monkeypatch):
    writer, path = WholeCheckpoints(), tmp_path / "a.ckpt"
    writer.save_checkpoint({"x": torch.ones(3)}, path)

    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DataError, match=r"a\.ckpt: the checkpoint could not be written .*No space left"):
        writer.save_checkpoint({"x": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".ckpt"] == ["a.ckpt"]
