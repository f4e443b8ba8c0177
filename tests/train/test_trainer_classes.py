"""A class for an option of the trainer that is none, or that does not take its options: one line says what was expected and what came."""

from pathlib import Path

import pytest

from .commands import error_of

CALLBACK = "trainer.callbacks: expected the class of a callback, such as LearningRateMonitor, or a class of your own as my_file.MyCallback"
PLUGIN = "trainer.plugins: expected the class of a plugin, such as AsyncCheckpointIO, or a class of your own as my_file.MyPlugin"
STRATEGY = (
    "trainer.strategy: expected auto, ddp, deepspeed, fsdp, single_device, single_xla, xla, single_tpu, "
    "a variant of one such as ddp_spawn, or a class with its options"
)
LOGGER = "trainer.logger: expected a class with its options"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["callbacks", "Adam"], f"{CALLBACK}, got 'Adam'"),
        (["callbacks", 3], f"{CALLBACK}, got '3'"),
        (["callbacks+=LearningRateMonitorr"], f"{CALLBACK}, got 'LearningRateMonitorr' (did you mean 'LearningRateMonitor'?)"),
        (["callbacks+=torch.optim.Adam"], f"{CALLBACK}, got 'torch.optim.Adam', which is no Callback"),
        (["callbacks", "[3]"], f"{CALLBACK}, got 3"),
        (["callbacks", "[LearningRateMonitor, Foo]"], f"{CALLBACK}, got 'Foo'"),
        (["callbacks", "my_file.Mine"], f"{CALLBACK}, got 'my_file.Mine' (No module named 'my_file')"),
        (["callbacks.x", 3], f"{CALLBACK}, and then its options; got the option 'x' alone"),
        (
            ["callbacks+=EMAWeightAveraging", "--trainer.callbacks.decai", 0.9],
            "trainer.callbacks: EMAWeightAveraging has no option 'decai' (did you mean 'decay'?)",
        ),
        (
            ["callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay", "abc"],
            "trainer.callbacks: EMAWeightAveraging.decay: expected a number, got 'abc'",
        ),
        (
            ["callbacks+=EarlyStopping"],
            "trainer.callbacks: expected the whole name of a class, one of lightning.pytorch.callbacks.EarlyStopping, "
            "mea_graph.train.early_stopping.EarlyStopping, got 'EarlyStopping'",
        ),
        (["plugins", "nonsense"], f"{PLUGIN}, got 'nonsense'"),
        (["plugins+=torch.optim.Adam"], f"{PLUGIN}, got 'torch.optim.Adam', which is some other class"),
        (["logger", "torch.optim.Adam"], f"{LOGGER}, got 'torch.optim.Adam', which is no Logger"),
        (["logger", "CSVLogger"], "trainer.logger: CSVLogger needs a value for save_dir"),
        (["strategy", "dpp"], f"{STRATEGY}, got 'dpp' (did you mean 'ddp'?)"),
        (["strategy", 3], f"{STRATEGY}, got '3'"),
        (["strategy", "torch.optim.Adam"], f"{STRATEGY}, got 'torch.optim.Adam'"),
        (["strategy", "DDPStrategy", "--trainer.strategy.foo", 3], "trainer.strategy: DDPStrategy has no option 'foo'"),
        (
            ["accelerator", "cpuu"],
            "trainer.accelerator: expected one that this machine has, one of cpu or auto, got 'cpuu' (did you mean 'cpu'?)",
        ),
    ],
    ids=str,
)
def test_on_the_command_line(capsys, monkeypatch, words, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    first, *rest = words
    words = ["fit", "--data.events", "{num_samples: 40, task: regression}", f"--trainer.{first}", *rest]
    assert error_of(capsys, *words) == f"mea-graph: error: {message}\n"


def test_in_a_configuration(capsys):
    for callback, message in (
        ("{class_path: torch.optim.Adam}", f"{CALLBACK}, got 'torch.optim.Adam', which is no Callback"),
        ("{class_path: Foo}", f"{CALLBACK}, got 'Foo'"),
    ):
        Path("mine.yaml").write_text(f"trainer: {{callbacks: [{{class_path: LearningRateMonitor}}, {callback}]}}")
        assert error_of(capsys, "fit", "--config", "mine.yaml") == f"mea-graph: error: {message}\n"
