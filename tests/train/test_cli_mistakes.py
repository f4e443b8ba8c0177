"""Mistakes in a command of training: each is told in one line, with exit code 2."""

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from .commands import SMALL_MEA, data_of, error_of, run


@pytest.fixture
def fitted(classes_source):
    run("fit", *data_of(classes_source), *SMALL_MEA, "--trainer.max_epochs", 1, "--run_dir", "run", "--model.exclusive.mu", 0.3)
    return Path("run")


def check(capsys, message, *arguments):
    assert message in error_of(capsys, *arguments)


def test_in_the_command(capsys):
    check(capsys, "got 'fot' (did you mean 'fit'?)", "fot")
    check(capsys, "expected a command, one of fit, validate, test, predict, study, demo, check, got none")
    check(capsys, "there is no option --modle (did you mean '--model'?)", "fit", "--modle", 3)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["fit", "--run_di", "x"], "--run_di (did you mean '--run_dir'?)"),
        (["fit", "--model", "my_file.Mine", "--trainer.max_step", 1], "--trainer.max_step (did you mean '--trainer.max_steps'?)"),
        (["predict", "--ckpt", "run", "--dat", "x.npz", "--output", "x.csv"], "--dat (did you mean '--data'?)"),
        (["fit", "--model.mu", 0.3], "--model.mu ('--model.exclusive.mu' now)"),
        (
            ["fit", "--model.init_args.pooling=max"],
            "--model.init_args.pooling ('--model.exclusive.pooling' and '--model.agnostic.pooling' now)",
        ),
        (["fit", "--model.head_norm", "true"], "--model.head_norm ('--model.head.norm' now)"),
        (["fit", "--model", "LateFusionGRUModule", "--model.mu", 0.3], "--model.mu"),
        (["predict", "--ckp=run"], "--ckp (did you mean '--ckpt'?)"),
        (["study", "compare", "--seed", 3], "--seed (did you mean '--seeds'?)"),
        (["demo", "--ou", "x"], "--ou (did you mean '--out'?)"),
    ],
)
def test_no_option_may_be_cut_short(capsys, words, meant):
    check(capsys, f"there is no option {meant}", *words)


def test_the_parser_itself_takes_no_option_cut_short():
    """Options are not always looked up before: without sources they cannot be."""
    from mea_graph.train.cli import CommandLine

    with ExitStack() as closing, pytest.raises(Exception, match=r"--run_di"):
        CommandLine(["fit", "--data.events", "{num_samples: 40}", "--run_di", "x"], closing)
    assert not Path("x").exists()


def test_in_the_configuration(capsys, classes_source):
    check(capsys, "config: expected a file or one of avletters, avletters_speakers, events, events_three", "fit", "--config", "mosy")
    check(capsys, "got 'mosy' (did you mean 'mosi'?)", "fit", "--config", "mosy")
    Path("broken.yaml").write_text("data: {source: x.npz}\nmodel: [\n")
    for command in (["fit"], ["test"], ["study", "compare"]):
        check(capsys, "config: broken.yaml is not YAML: line 3, column 1: ", *command, "--config", "broken.yaml")
    Path("tab.yaml").write_text("data:\n\tsource: x.npz\n")
    check(capsys, "config: tab.yaml is not YAML: line 2, column 1: found character '\\t'", "fit", "--config=tab.yaml")
    Path("nul.yaml").write_text("data: \0")
    check(capsys, "config: nul.yaml is not YAML: special characters are not allowed", "fit", "-c", "nul.yaml")
    Path("twice.yaml").write_text("data:\n  source: x.npz\n  seed: 1\n  split: {by: speaker}\n  seed: 2\n")
    twice = "config: expected 'seed' once in its section of twice.yaml, got it twice, in line 3 and in line 5"
    for command in (["fit"], ["study", "compare"]):
        check(capsys, twice, *command, "--config", "twice.yaml")
    mapping = ["--data.split", "{by: subject"]
    check(
        capsys, "data.split: expected YAML, got '{by: subject': did not find expected ',' or '}'", "fit", *data_of(classes_source), *mapping
    )
    sections = "config: expected sections data, model, trainer or others in"
    check(capsys, f"{sections} classes.npz, got no text", "fit", "--config", "classes.npz")
    Path("words.txt").write_text("some words")
    check(capsys, f"{sections} words.txt, got str", "fit", "--config", "words.txt")
    Path("unknown.yaml").write_text("models: 3")
    check(capsys, "models", "fit", "--config", "unknown.yaml")
    Path("close.yaml").write_text("data: {sorce: mine.npz}")
    check(capsys, "'data.sorce' (did you mean 'data.source'?)", "fit", "--config", "close.yaml")
    Path("close.yaml").write_text("model: {init_args: {chanels: gru}}")
    check(capsys, "'chanels' is not accepted (did you mean 'model.channels'?)", "fit", "--config", "close.yaml")


def test_in_the_model(capsys, classes_source):
    source = data_of(classes_source)
    check(capsys, "there is no option --model.muu", "fit", *source, "--model.muu", 3)
    check(capsys, "exclusive.mu: expected float, got 'x'", "fit", *source, "--model.exclusive.mu", "x")
    check(capsys, "heads: expected a divisor of channels = 40, got 7", "fit", *source, "--model.heads", 7)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("MEAModul", "got 'MEAModul' (did you mean 'MEAModule'?)"),
        (
            "mea_graph.train.MEAModul",
            "got 'mea_graph.train.MEAModul' (module 'mea_graph.train' has no attribute 'MEAModul') (did you mean 'MEAModule'?)",
        ),
        ("LateFusionModule", "got 'LateFusionModule' (did you mean 'LateFusionGRUModule'?)"),
        ("nix.Mine", "got 'nix.Mine' (No module named 'nix')"),
        ("torch.nn.Linear", "got 'torch.nn.Linear' (it is no TaskModule)"),
        ("Nope", "got 'Nope'"),
    ],
)
def test_in_the_class_of_the_model(capsys, classes_source, name, end):
    Path("mine.yaml").write_text(f"model: {{class_path: {name}, init_args: {{learning_rate: 0.1}}}}")
    known = "ConcatenationTransformerModule, EarlyFusionGRUModule, LateFusionGRUModule, MEAModule, PairwiseTransformerModule, "
    expected = f"model: expected one of {known}SharedPrivateEncodersModule, or a class of your own as my_file.MyModule, {end}"
    for words in (["--model", name], ["--model.class_path", name], ["--config", "mine.yaml"]):
        assert error_of(capsys, "fit", *data_of(classes_source), *words) == f"mea-graph: error: {expected}\n"


def test_in_the_folder_of_the_run(capsys, classes_source, monkeypatch):
    """Told before training, in one line that names the option; nothing is left behind."""
    Path("note").write_text("a file")
    words = ["fit", *data_of(classes_source), *SMALL_MEA, "--run_dir"]
    check(capsys, "run_dir: expected a folder, got the file note", *words, "note")
    check(capsys, "run_dir: expected a folder that can be made, got note/a/b (Not a directory)", *words, "note/a/b")
    check(capsys, f"run_dir: expected a folder that can be made, got new/{'x' * 300} (File name too long)", *words, f"new/{'x' * 300}")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    check(capsys, "run_dir: expected a folder that can be written, got other/run", *words, "other/run")
    assert not Path("new").exists()
    assert not Path("other").exists()


def test_in_the_folder_of_a_result(capsys, fitted, monkeypatch):
    """Told before anything is measured, as far as the folder goes before the data are read."""
    Path("note").write_text("a file")
    words = ["test", "--config", fitted / "config.yaml", "--ckpt_path", fitted / "checkpoints/best.ckpt", "--run_dir"]
    monkeypatch.setattr("mea_graph.train.cli.CommandLine.test", lambda *args, **options: pytest.fail("measured"))
    (fitted / "metrics.json").mkdir()
    check(capsys, "run_dir: expected a file to write, got the folder run/metrics.json", *words, "run")
    monkeypatch.setattr("mea_graph.train.data_module.open_dataset", lambda *args, **options: pytest.fail("read"))
    check(capsys, "run_dir: expected a folder that can be written, got note", *words, "note")
    check(capsys, "run_dir: expected a folder that can be written, got note/a/b", *words, "note/a/b")
    Path("other").mkdir()
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "other" and access(path, mode))
    check(capsys, "run_dir: expected a folder that can be written, got other/run", *words, "other/run")
    assert not list(Path("other").iterdir())


@pytest.mark.parametrize(("command", "part", "name"), [("test", "test", "test"), ("validate", "valid", "val")])
@pytest.mark.parametrize("limit", [1, 0.5, 0])
def test_in_a_share_that_would_be_measured(capsys, fitted, command, part, name, limit):
    """metrics.json said that the numbers of one batch were those of all samples."""
    expected = f"trainer.limit_{name}_batches: expected 1.0, since the metrics are those of all {part} samples, got {limit}"
    check(capsys, expected, command, "--config", fitted / "config.yaml", f"--trainer.limit_{name}_batches", limit)
    assert not (fitted / "metrics.json").exists()
    if limit == 1:
        check(capsys, expected, command, "--config", fitted / "config.yaml", "--trainer.fast_dev_run", "true")


def test_in_how_often_training_validates(capsys, classes_source):
    words = ["fit", *data_of(classes_source), "--run_dir", "run", "--trainer.max_epochs", 2, "--trainer.val_check_interval", 99]
    hint = "trainer.check_val_every_n_epoch=null counts them across epochs"
    check(capsys, f"trainer.val_check_interval: expected at most the 2 batches of an epoch, got 99; {hint}", *words)
    check(capsys, "at most the 1 batches of an epoch, got 99", *words, "--trainer.limit_train_batches", 1)


def test_in_the_data(capsys, classes_source):
    here = f"nix.npz: no such file; a relative path counts from the current folder, {Path.cwd()}"
    check(capsys, here, "fit", "--data.source", "nix.npz")
    check(capsys, "expected data.source", "fit")
    check(capsys, "which is classification; got task='regression'", "fit", *data_of(classes_source), "--data.task", "regression")
    no_valid = ["--data.split", "{by: subject, train: [0, 1], test: [2]}"]
    check(capsys, "no sample is in part 'valid'", "fit", *data_of(classes_source), *SMALL_MEA, *no_valid)


def test_in_a_model_that_reads_times_which_are_not_there(capsys, classes_source):
    """It ended with a ValueError and a traceback."""
    fit = ["fit", *data_of(classes_source), *SMALL_MEA, "--trainer.max_epochs", 1, "--run_dir", "run", "--model.window", "{seconds: 1}"]
    check(capsys, "audio: expected the seconds of its steps, which a window or positions in seconds need, got none; audio_time of an", *fit)


def test_a_word_for_the_class_of_a_logger(capsys):
    message = "trainer.logger: expected a class with its options, got 'wandb'; --logger takes a word: csv, tensorboard or wandb"
    check(capsys, message, "fit", "--data.events", "{num_samples: 40}", "--trainer.logger", "wandb")


def test_in_the_run(capsys, fitted, classes_source):
    config = fitted / "config.yaml"
    check(capsys, "run holds a run; resume it with --ckpt_path last", "fit", "--config", config)
    check(capsys, "there is no run in runs/default yet", "test", *data_of(classes_source))
    check(capsys, "there is no checkpoint nix.ckpt", "test", "--config", config, "--ckpt_path", "nix.ckpt")
    other = ["--model.exclusive.mu", 0.4]
    check(capsys, "model.exclusive: the checkpoint run/checkpoints/best.ckpt has {", "test", "--config", config, *other)
    given = ["test", "--config", config, "--ckpt_path"]
    npz = "it is an .npz with the arrays audio, audio_len, lips, lips_len, label, ...; data are given by --data.source"
    check(capsys, f"expected a checkpoint of plain tensors and containers, got classes.npz: {npz}", *given, "classes.npz")
    torch.save(torch.nn.Linear(2, 3).state_dict(), "weights.pt")
    check(capsys, "it holds weights alone (2 tensors, weight ...) without the options of their network", *given, "weights.pt")
    torch.save({"epoch": 1, "model": {}}, "other.pt")
    check(capsys, "it holds a dict of epoch, model without 'state_dict'", *given, "other.pt")
    Path("pointer.ckpt").write_text("version https://git-lfs.github.com/spec/v1\n")
    check(capsys, "it is a Git LFS pointer", *given, "pointer.ckpt")
    folds = "{by: subject, folds: 2}"
    check(capsys, "of 30 test samples trained this checkpoint", "test", "--config", config, "--data.split", folds)
    gru = ["--model", "LateFusionGRUModule", "--model.hidden_channels", 8]
    check(capsys, "the checkpoint run/checkpoints/best.ckpt has", "test", *data_of(classes_source), *gru, "--run_dir", "run")


def test_before_anything_is_written(capsys, classes_source):
    """Not even an empty folder is left behind."""
    gru = ["--model", "LateFusionGRUModule", "--model.hidden_channels", 4]
    fit = ["fit", *data_of(classes_source), *gru, "--run_dir", "run/new"]
    check(capsys, "trainer.precision: expected one of 32-true, 64-true", *fit, "--trainer.precision", "bf16-true")
    check(capsys, "early_stopping.monitor: expected one of ", *fit, "--early_stopping.monitor", "valid/acc")
    arrays = dict(np.load(classes_source["source"]))
    labels = arrays.pop("label")
    np.savez("bare.npz", **arrays)
    told = ["--data.task", "classification", "--data.classes", 2]
    check(capsys, "y: the data has no targets", *fit, "--data.source", "bare.npz", *told)
    assert not Path("run").exists()
    np.savez("full.npz", **arrays, label=labels)
    run(*fit, "--data.source", "full.npz", "--trainer.max_epochs", 1)
    for command in ("validate", "test"):
        check(capsys, "y: the data has no targets", command, "--config", "run/new/config.yaml", "--data.source", "bare.npz", *told)
    run("predict", "--ckpt", "run/new", "--data", "bare.npz", "--output", "out.csv")
    assert "target" not in Path("out.csv").read_text().splitlines()[0].split(",")


def test_in_training(capsys, classes_source):
    check(capsys, "samples of the batch: ", "fit", *data_of(classes_source), *SMALL_MEA, "--model.learning_rate", 1e30)


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(fitted, capsys):
    class Trap:
        def __reduce__(self):
            return Path.touch, (Path("sprung"),)

    state = torch.load(fitted / "checkpoints/best.ckpt", weights_only=True)
    torch.save({**state, "trap": Trap()}, "trap.ckpt")
    run("test", "--config", fitted / "config.yaml", "--ckpt_path", "trap.ckpt", expect=2)
    assert "expected a checkpoint of plain tensors" in capsys.readouterr().err
    assert not Path("sprung").exists()


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_in_one_line(classes_source, capsys):
    expected = "expected one that this machine has, one of cpu or auto, got"
    for name in ("gpu", "cuda"):
        run("fit", *data_of(classes_source), *SMALL_MEA, "--trainer.accelerator", name, expect=2)
        assert capsys.readouterr().err == f"mea-graph: error: trainer.accelerator: {expected} {name!r}\n"
    run("study", "compare", "--accelerator", "gpu", expect=2)
    assert capsys.readouterr().err == f"mea-graph: error: accelerator: {expected} 'gpu'\n"
