"""A resumed run equals one never interrupted, or says why it cannot."""

import math
import random
import signal
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from mea_graph.__main__ import main
from mea_graph.data import DataError
from mea_graph.train import Predictor
from mea_graph.train.whole_checkpoints import WholeCheckpoints, read_checkpoint

from .commands import SMALL_GRU, data_of, error_of, run

SAVING = ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_top_k", -1]
SAVING += ["--trainer.callbacks.dirpath", "parts/every", "--trainer.callbacks.filename", "{step}"]
AT_VALIDATIONS = ["--trainer.val_check_interval", 3, "--trainer.callbacks.monitor", "valid/task"]  # which `best` watches, too


@pytest.fixture
def words(classes_source):
    return ["fit", *data_of(classes_source), *SMALL_GRU]


@pytest.fixture
def fitted(words):
    run(*words, "--trainer.max_epochs", 1, "--run_dir", "run")
    return Path("run")


def weights(folder):
    return torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_exactly_also_with_worker_processes(words):
    """Workers fetch before Lightning tells the sampler the epoch: the first resumed epoch would have the order of epoch 0."""
    words = [*words, "--data.batch_size", 4, "--data.num_workers", 2, "--trainer.num_sanity_val_steps", 0]
    run(*words, "--trainer.max_epochs", 2, "--run_dir", "whole")
    run(*words, "--trainer.max_epochs", 1, "--run_dir", "parts")
    run(*words, "--trainer.max_epochs", 2, "--run_dir", "parts", "--ckpt_path", "last")
    assert all(torch.equal(a, b) for a, b in zip(weights("whole").values(), weights("parts").values(), strict=True))


@pytest.mark.parametrize(
    ("ends", "checkpoint"),
    [
        (["--trainer.max_steps", 13, "--data.num_workers", 2], "last"),
        (["--trainer.max_steps", 13, "--data.sampling.balanced", "true"], "last"),
        ([*SAVING, "--trainer.callbacks.every_n_train_steps", 3], "parts/every/step=12.ckpt"),
        (["--trainer.accumulate_grad_batches", 2, "--trainer.max_steps", 7], "last"),
        ([*SAVING, *AT_VALIDATIONS, "--trainer.accumulate_grad_batches", 2], "parts/every/step=6.ckpt"),
    ],
)
def test_exactly_also_from_within_an_epoch(words, ends, checkpoint, capsys):
    """Lightning leaves out the rest of an epoch that was cut short, and reads the first batches of one that was not over again."""
    words = [*words, "--data.batch_size", 4, "--trainer.max_epochs", 3]
    run(*words, *ends, "--trainer.max_steps", -1, "--run_dir", "whole")
    run(*words, *ends, "--run_dir", "parts")
    capsys.readouterr()
    run(*words, *ends, "--trainer.max_steps", -1, "--run_dir", "parts", "--ckpt_path", checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(weights("whole").values(), weights("parts").values(), strict=True))
    assert "epoch 1: " in capsys.readouterr().out  # is finished


def test_checkpoints_of_lightning_s_own_callback_stand_beside_ours(words):
    """Two callbacks that watch the same had one name for what a checkpoint keeps of them, and Lightning refused both."""
    run(*words, *SAVING, "--trainer.callbacks.monitor", "valid/task", "--trainer.max_epochs", 2, "--run_dir", "run")
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)["callbacks"]
    ours = {key: state["dirpath"] for key, state in saved.items() if "ModelCheckpoint" in key}
    assert sorted(Path(folder).name for folder in ours.values()) == ["checkpoints", "checkpoints", "every"]
    run(*words, *SAVING, "--trainer.callbacks.monitor", "valid/task", "--trainer.max_epochs", 3, "--run_dir", "run", "--ckpt_path", "last")


def test_an_epoch_that_was_cut_short_has_no_scores_of_the_one_before(words, capsys):
    run(*words, "--data.batch_size", 4, "--trainer.max_epochs", 3, "--trainer.max_steps", 13, "--run_dir", "run")
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch "))
    assert "valid/" in first
    assert second.startswith("epoch 1: train/loss ")
    assert "valid/" not in second


def test_the_time_that_a_run_may_take_counts_in_all(words, capsys):
    longest = ["--trainer.max_epochs", 9999, "--trainer.max_time", "00:00:00:01"]
    run(*words, *longest, "--run_dir", "run")
    run(*words, *longest, "--run_dir", "run", "--ckpt_path", "last")
    assert "updates already; trainer.max_time counts the time before it too" in capsys.readouterr().out


@pytest.mark.parametrize("left", [None, 2, 0])
def test_moments_that_a_checkpoint_of_others_lacks_are_told(fitted, words, left, recwarn):
    """They started from zero without a word, where the checkpoint does not say how many there were."""
    place = fitted / "checkpoints/last.ckpt"
    checkpoint = torch.load(place, weights_only=True)
    whole = len(checkpoint["optimizer_states"][0]["state"])
    del checkpoint["moments"]
    if left == 0:
        checkpoint["optimizer_states"] = []
    elif left is not None:
        state = checkpoint["optimizer_states"][0]["state"]
        checkpoint["optimizer_states"][0]["state"] = {number: state[number] for number in range(left)}
    torch.save(checkpoint, place)
    run(*words, "--trainer.max_epochs", 2, "--run_dir", "run", "--ckpt_path", "last")
    told = [str(warning.message) for warning in recwarn if "optimizer_states" in str(warning.message)]
    lacks = (
        f"ckpt_path: optimizer_states: the checkpoint has moments of {left} of {whole} parameters, and does not say whether these were all"
    )
    assert told == ([] if left is None else [f"{lacks}; those of the others start from zero"])


def test_a_run_that_is_over_says_so(words, capsys):
    """With fewer epochs Lightning spoke of its trainer, with fewer updates nothing was said, and nothing of a run that was complete."""
    words = [*words, "--data.batch_size", 18, "--run_dir", "run", "--training.check_every", 2, "--training.updates"]
    run(*words, 4)
    before = Path("run/checkpoints/last.ckpt").read_bytes()
    capsys.readouterr()
    run(*words, 2, "--ckpt_path", "last", expect=2)
    assert capsys.readouterr().err == "mea-graph: error: training.updates: expected at least the 4 updates that the checkpoint has, got 2\n"
    run(*words, 4, "--ckpt_path", "last")
    assert "nothing was left to train: the checkpoint has 4 updates already\n" in capsys.readouterr().out
    assert Path("run/checkpoints/last.ckpt").read_bytes() == before


def test_fewer_epochs_than_there_were_are_refused(words, capsys):
    words = [*words, "--run_dir", "run", "--trainer.max_epochs"]
    run(*words, 2)
    assert "nothing was left to train" not in capsys.readouterr().out
    run(*words, 1, "--ckpt_path", "last", expect=2)
    message = "mea-graph: error: trainer.max_epochs: expected at least the 2 epochs that the checkpoint has, got 1\n"
    assert capsys.readouterr().err == message
    run("test", *words[1:], 1)  # which trains nothing


def test_a_callback_with_a_default_that_no_file_can_hold(words, capfd):
    """`config.yaml` had "Unable to serialize instance cpu" as its device, which no resumed run could read."""
    swa = ["--trainer.callbacks+=lightning.pytorch.callbacks.StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]
    run(*words, *swa, "--trainer.max_epochs", 2, "--run_dir", "run")
    assert "Unable to serialize" not in Path("run/config.yaml").read_text() + capfd.readouterr().err
    run("fit", "--config", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", 3)
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="nothing claims a folder there")
@pytest.mark.parametrize("when", ["on_train_epoch_start", "on_validation_epoch_start", "on_train_batch_start"])
def test_a_run_whose_folder_is_moved_ends_and_leaves_the_next_one_there_alone(words, capsys, when):
    """It wrote its log and its checkpoints into whatever stood in the old place."""
    Path("move.py").write_text(
        "import lightning as L\n"
        "from pathlib import Path\n"
        "class Move(L.Callback):\n"
        f"    def {when}(self, trainer, *_):\n"
        "        if trainer.current_epoch == 1 and not trainer.sanity_checking and not Path('moved').exists():\n"
        "            Path('run').rename('moved')\n"
        "            Path('run/logs/version_0').mkdir(parents=True)\n"
        "            Path('run/logs/version_0/metrics.csv').touch()\n"
    )
    run(*words, "--trainer.callbacks+=move.Move", "--trainer.max_epochs", 3, "--trainer.log_every_n_steps", 1, "--run_dir", "run", expect=2)
    error = capsys.readouterr().err
    assert error.startswith(
        "mea-graph: error: run_dir: run was moved, removed or replaced while this run trained in it; where it was moved"
    )
    assert error.count("\n") == 1
    assert Path("run/logs/version_0/metrics.csv").read_text() == ""
    assert [path.name for path in Path("run").iterdir()] == ["logs"]
    run("fit", "--config", "moved/config.yaml", "--ckpt_path", "last")
    assert torch.load("moved/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2


def test_which_checkpoints_hold_averaged_weights(words, capsys):
    """Those of `EMAWeightAveraging`. Lightning's stochastic averaging comes after the last one was written, which is said."""
    averaging = (
        "StochasticWeightAveraging averages after the last checkpoint is written, so best.ckpt and last.ckpt do not hold the average"
    )
    swa = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]
    run(*words, *swa, "--trainer.max_epochs", 2, "--run_dir", "swa")
    assert averaging in capsys.readouterr().out
    ema = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
    run(*words, *ema, "--trainer.max_epochs", 2, "--run_dir", "ema")
    assert "StochasticWeightAveraging" not in capsys.readouterr().out
    for name in ("best", "last"):
        saved = torch.load(f"ema/checkpoints/{name}.ckpt", weights_only=True)
        averaged, trained = saved["state_dict"], saved["current_model_state"]
        assert max(float((averaged[key] - trained[key]).abs().max()) for key in averaged) > 1e-5
        read = Predictor.load("ema", name).module.state_dict()
        assert all(torch.equal(read[key], averaged[key]) for key in averaged)


OTHERS = [  # options that make it another run, and what is said of each
    (["--seed_everything", 1], "data.seed: the checkpoint was trained with 0, this run has 1"),
    (["--data.batch_size", 8], "data.batch_size: the checkpoint was trained with 32 of all processes together, this run has 8"),
    (["--trainer.precision", "bf16-mixed"], "trainer.precision: the checkpoint was trained with '32-true', this run has 'bf16-mixed'"),
    (["--trainer.accumulate_grad_batches", 2], "trainer.accumulate_grad_batches: the checkpoint was trained with 1, this run has 2"),
    (["--trainer.gradient_clip_val", 0.5], "trainer.gradient_clip_val: the checkpoint was trained with 1.0, this run has 0.5"),
    (["--trainer.gradient_clip_algorithm", "value"], "trainer.gradient_clip_algorithm: the checkpoint was trained with None, this run"),
]


def test_what_would_make_it_another_run_is_refused(fitted, capsys):
    before = {path: path.read_bytes() for path in (fitted / "checkpoints/last.ckpt", fitted / "config.yaml")}
    for change, message in OTHERS:
        resume = ["fit", "--config", fitted / "config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", 2, *change]
        assert message in error_of(capsys, *resume)
        assert {path: path.read_bytes() for path in before} == before  # the next one would be compared with what this one wrote
        if change[0].startswith(("--seed", "--data", "--trainer.precision")):
            run("test", "--config", fitted / "config.yaml", *change)  # measured on the same samples all the same


@pytest.mark.parametrize(("number", "name", "code"), [(15, "SIGTERM", 143), (2, "Ctrl+C", 130)])
def test_what_ends_a_run_from_outside_is_said_with_the_command_that_goes_on(words, capsys, number, name, code):
    Path("end.py").write_text(
        "import os\n"
        "import lightning as L\n"
        "class End(L.Callback):\n"
        "    def __init__(self, number: int):\n"
        "        self.number = number\n"
        "    def on_train_batch_start(self, trainer, module, batch, index):\n"
        "        if trainer.current_epoch == 1:\n"
        "            os.kill(os.getpid(), self.number)\n"
    )
    handler = signal.getsignal(signal.SIGINT)  # Lightning ignores it from then on
    with pytest.raises(SystemExit) as stop:
        run(
            *words, "--trainer.max_epochs", 2, "--run_dir", "run", "--trainer.callbacks+=end.End", "--trainer.callbacks.number", int(number)
        )
    signal.signal(signal.SIGINT, handler)
    assert stop.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    told, command = line.split("; go on with: mea-graph ")
    assert told == f"mea-graph: stopped by {name} in epoch 1"
    run(*command.split(), "--trainer.callbacks", "null")
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1


def test_only_tensors_and_containers_are_ever_unpickled(fitted, classes_source, monkeypatch):
    """A checkpoint is looked at before Lightning loads it, so a trap alone would not show that Lightning loads it safely too."""
    loads, told, original, whole = [], [], torch.load, WholeCheckpoints.load_checkpoint

    def load(*arguments, **options):
        loads.append(options.get("weights_only"))
        return original(*arguments, **options)

    def load_checkpoint(self, path, **options):  # another writer of checkpoints than ours goes by what it is told
        told.append(options.get("weights_only"))
        return whole(self, path, **options)

    monkeypatch.setattr(torch, "load", load)
    monkeypatch.setattr(WholeCheckpoints, "load_checkpoint", load_checkpoint)
    for command in (["fit", "--ckpt_path", "last", "--trainer.max_epochs", 2], ["validate"], ["test"]):
        run(*command, "--config", fitted / "config.yaml")
    run("predict", "--ckpt", fitted, "--data", classes_source["source"], "--output", "out.csv")
    assert loads == [True] * 7
    assert told == [True] * 3


class TestDamage:
    def test_no_bit_of_a_header_changes_a_weight(self):
        """Check sums cover the parts of an archive, not its headers, and torch takes a part for a folder by one bit of them."""
        expected = {"a": torch.randn(3), "b": torch.randn(5)}
        torch.save({"state_dict": expected}, "whole.ckpt")
        whole = Path("whole.ckpt").read_bytes()
        with zipfile.ZipFile("whole.ckpt") as archive:
            begin = archive.start_dir + sum(46 + len(part.filename) for part in archive.infolist() if "data/" not in part.filename)
        kept = 0
        for place in range(begin - 120, min(begin + 120, len(whole))):
            for bit in range(8):
                data = bytearray(whole)
                data[place] ^= 1 << bit
                Path("changed.ckpt").write_bytes(data)
                try:
                    found = read_checkpoint("changed.ckpt")["state_dict"]
                except DataError:
                    continue
                kept += 1
                assert found.keys() == expected.keys(), (place, bit)
                assert all(torch.equal(found[name], value) for name, value in expected.items()), (place, bit)
        assert kept  # some bits, such as those of a date, mean nothing

    def test_a_changed_byte_never_changes_a_weight(self, fitted):
        whole = (fitted / "checkpoints/last.ckpt").read_bytes()
        expected = weights("run")
        generator = random.Random(0)
        refused = 0
        for _ in range(60):
            data = bytearray(whole)
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            Path("changed.ckpt").write_bytes(data)
            try:
                found = WholeCheckpoints().load_checkpoint("changed.ckpt")["state_dict"]
            except DataError:
                refused += 1
            else:
                assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert refused > 20  # the others hit padding

    def test_every_command_looks(self, fitted, classes_source, capsys):
        path = fitted / "checkpoints/last.ckpt"
        with zipfile.ZipFile(path) as archive:
            info = max(archive.infolist(), key=lambda info: info.file_size)
        data = bytearray(path.read_bytes())
        data[info.header_offset + 30 + len(info.filename) + info.file_size // 2 + 64] ^= 1
        path.write_bytes(data)
        predict = ["predict", "--ckpt", path, "--data", classes_source["source"], "--output", "out.csv"]
        resumed = [[c, "--config", fitted / "config.yaml", "--ckpt_path", "last"] for c in ("validate", "test")]
        for command in (["fit", "--trainer.max_epochs", 2, *resumed[0][1:]], *resumed, predict):
            run(*command, expect=2)
            assert "expected a checkpoint of plain tensors and containers, got run/checkpoints/last.ckpt" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("way", "value", "says"),
        [
            (("optimizer_states", 0, "param_groups", 0, "params", 1), 77, "optimizer_states: expected moments of parameters 0 to"),
            (("optimizer_states", 0, "state"), {0: {}}, "optimizer_states: expected moments of"),
            (("optimizer_states", 0, "state", 1, "step"), torch.tensor(math.nan), "optimizer_states: expected step from 1 to"),
            (("optimizer_states", 0, "state", 1), {"step": torch.tensor(1.0)}, "optimizer_states: expected exp_avg for every parameter"),
            (
                ("loops", "fit_loop", "epoch_progress", "current", "started"),
                10**9,
                "epoch_progress.current.started: expected",
            ),
            (("loops", "fit_loop", "epoch_loop.state_dict", "_batches_that_stepped"), [1], "_batches_that_stepped: expected a count"),
        ],
        ids=lambda value: "" if not isinstance(value, tuple) else ".".join(map(str, value[-2:])),
    )
    def test_a_field_that_would_change_the_training_unseen_is_named(self, fitted, capsys, way, value, says):
        changed = torch.load(fitted / "checkpoints/last.ckpt", weights_only=True)
        inner = changed
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = value
        torch.save(changed, "changed.ckpt")
        capsys.readouterr()
        run(
            "fit",
            "--config",
            fitted / "config.yaml",
            "--run_dir",
            "run",
            "--trainer.max_epochs",
            2,
            "--ckpt_path",
            "changed.ckpt",
            expect=2,
        )
        told = capsys.readouterr().err
        assert says in told
        assert told.count("\n") == 1

    def test_a_changed_field_is_told_in_one_line(self, fitted, capsys):
        path = fitted / "checkpoints/last.ckpt"
        saved = torch.load(path, weights_only=True)

        def fields(value, way=()):
            if isinstance(value, dict):
                for key, entry in value.items():
                    yield (*way, key)
                    yield from fields(entry, (*way, key))

        places = [way for way in fields(saved) if way[0] != "hyper_parameters" or len(way) == 1]
        generator = random.Random(0)
        for way in [("state_dict",), ("callbacks",), ("loops",), ("optimizer_states",), *generator.sample(places, 3)]:
            changed = torch.load(path, weights_only=True)
            inner = changed
            for key in way[:-1]:
                inner = inner[key]
            inner[way[-1]] = generator.choice(["x", None, [1], {}, -7])
            torch.save(changed, "changed.ckpt")
            capsys.readouterr()
            words = ["fit", "--config", str(fitted / "config.yaml"), "--run_dir", "run", "--trainer.max_epochs", "1"]
            code = main([*words, "--ckpt_path", "changed.ckpt"])  # whatever it was, never a traceback
            assert code == 0 or (code == 2 and capsys.readouterr().err.count("\n") == 1), way
