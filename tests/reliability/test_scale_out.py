"""Two processes train as one process with the same joint batch does; and memory stays flat however large the data are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mea_graph.__main__ import main
from mea_graph.data import MultimodalDataset
from mea_graph.data.store_files import write_made


@pytest.mark.slow
@pytest.mark.parametrize("data", ["even", "one left over", "uneven, and a process without lips", "uneven, and centred"])
def test_two_processes_have_the_loss_curve_of_one(two, small_model, arrays, read_logs, data):
    """Every term of the objective, the batch statistics HSIC and discrimination among them, and the weights at the end."""
    arrays, batch = dict(arrays), 8
    if data == "one left over":  # 25 to train
        arrays["part"] = np.where(np.cumsum(arrays["part"] == "test") == 1, "train", arrays["part"])
        arrays["part"] = np.where((arrays["part"] == "train") & (np.cumsum(arrays["part"] == "train") > 25), "test", arrays["part"])
    elif data != "even":  # 23 to train, in one joint batch: 12 and 11; and 9 to validate: 5 and 4
        arrays["part"], batch = np.where(np.arange(40) == 0, "valid", arrays["part"]), 24
        arrays["lips_len"] = np.where(np.isin(np.arange(40), (1, 3, 8)), 3, 0)  # one sample to train
        assert [str(arrays["part"][i]) for i in (1, 3, 8)].count("train") == 1
    np.savez("clips.npz", **arrays)
    words = ["fit", "--data.source", "clips.npz", *small_model, "--trainer.max_epochs", "3", "--model.alpha", "1"]
    words += ["--model.agnostic.center", "true"] if "centred" in data else []  # each process centred by the means of the first one
    assert main([*words, "--data.batch_size", str(batch), "--run_dir", "one"]) == 0
    two(*words, "--data.batch_size", str(batch // 2), "--run_dir", "two")
    one, shared = ({key: float(value) for key, value in read_logs(name).items()} for name in ("one", "two"))
    terms = ("loss", "task", "disparity", "agnostic", "exclusive", "importance")
    for epoch in range(3):
        for name in terms:
            assert shared[epoch, f"train/{name}"] == pytest.approx(one[epoch, f"train/{name}"], rel=1e-4), (epoch, name)
        # in evaluation HSIC is that of a process's own batches; what early stopping watches, and every metric, is of all samples
        assert shared[epoch, "valid/task"] == pytest.approx(one[epoch, "valid/task"], rel=1e-4)
    weights = [torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_a_process_that_dies_is_told_in_one_line(start_two, small_fit):
    """The other one printed a traceback of forty lines."""
    Path("killer.py").write_text(
        "import os, signal\nimport lightning as L\n"
        "class Kill(L.Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, index):\n"
        "        if trainer.global_rank == 1 and trainer.current_epoch == 1:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = [*small_fit, "--run_dir", "run", "--trainer.max_epochs", "3", "--trainer.callbacks+", "killer.Kill"]
    first, second = start_two(*words)
    assert second.wait() < 0
    assert first.wait() == 2, first.text()
    assert "Traceback" not in first.text()
    (error,) = [line for line in first.text().splitlines() if line.startswith("mea-graph: error: ")]
    assert "another process of this run has ended" in error
    assert "go on with: mea-graph fit --config run/config.yaml --ckpt_path last" in error


MEASURE = """
import json, resource, sys
import lightning as L
import torch
from mea_graph.data import MultimodalDataset
from mea_graph.data.store_files import open_store
from mea_graph.train import TaskModule
from torch_geometric.loader import DataLoader
from pathlib import Path

class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 1)

    def forward(self, x_dict, batch_dict, batch_size):
        return self.linear(torch.zeros(batch_size, 64).index_add(0, batch_dict["audio"], x_dict["audio"]) / 2048)

torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = MultimodalDataset(open_store(Path(sys.argv[1])))
if sys.argv[2] == "standardized":
    dataset = dataset.standardize()
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = L.Trainer(max_epochs=1, accelerator="cpu", **quiet)
trainer.fit(TaskModule(Mean(), "regression", 1), DataLoader(dataset, batch_size=4, shuffle=True))
assert trainer.callback_metrics["train/loss"].isfinite()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Path("peak.json").write_text(json.dumps(peak - before))
"""


@pytest.mark.parametrize("scaling", ["raw", "standardized"])
def test_memory_is_flat_from_one_to_four_times_the_data(child, scaling):
    """64 and 256 MiB on the disk: the second needs no more memory than the first, though all of it is read, at random."""
    Path("measure.py").write_text(MEASURE)
    peaks = []
    for samples in (128, 512):
        clip = np.ones((2048, 64), np.float32)
        dataset = MultimodalDataset.from_arrays({"audio": [clip] * samples}, y=np.zeros(samples))
        write_made(lambda store=dataset._store: store, Path(), lambda _, folder=Path(f"cache{samples}"): folder)
        assert child("measure.py", f"cache{samples}", scaling).wait() == 0, Path("child-0.txt").read_text()
        peaks.append(int(Path("peak.json").read_text()) / 1024)
    assert peaks[1] < peaks[0] + 24, peaks  # MiB, of 192 more that were read
