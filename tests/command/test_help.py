"""Help and mistyped words: right, and answered without torch and Lightning."""

import subprocess
import sys
from contextlib import ExitStack

import pytest

from mea_graph.__main__ import main
from mea_graph.command.help import COMMANDS, command_help
from mea_graph.command.options import SINGLE, known_options, mistyped, with_suggestion
from mea_graph.command.signatures import class_options
from mea_graph.configurations import packaged_configs

HEAVY = ("torch", "lightning", "torch_geometric", "torchmetrics", "jsonargparse", "matplotlib", "numpy")
QUICK = [
    (["--help"], 0),
    (["--version"], 0),
    ([], 2),
    (["fot"], 2),
    (["fit", "--help"], 0),
    (["test", "--config", "avletters", "--model", "LateFusionGRUModule", "-h"], 0),
    (["fit", "--modle", "3"], 2),
    (["fit", "--config", "events", "--model.init_args.poolng", "gru"], 2),
    (["fit", "--trainer.max_epohs=3"], 2),
    (["study", "--help"], 0),
    (["study", "compare", "--help"], 0),
    (["study", "compair"], 2),
    (["study", "compare", "--sedes", "3"], 2),
    (["demo", "--help"], 0),
    (["demo", "--uot", "x"], 2),
    (["check", "--help"], 0),
    (["check", "--op", "bilsm"], 2),
]
COUNT = f"""
import contextlib, io, sys
from mea_graph.__main__ import main
for words, expected in {QUICK!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    print(code == expected, [name for name in {HEAVY!r} if name in sys.modules], words)
"""


def test_what_needs_no_model_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"True [] {words!r}" for words, _ in QUICK]


def test_the_help_names_every_command_and_configuration(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in (*COMMANDS, *packaged_configs()):
        assert name in shown.replace("\n", " ").replace(",", " ").split()


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_options_are_those_of_the_parser(command):
    """What is read of the sources is what the real parser takes."""
    from mea_graph.train.cli import CommandLine

    class Parser(CommandLine):
        def parse_arguments(self, parser, args):
            raise InterruptedError  # all that is wanted is the parser

    cli = Parser.__new__(Parser)
    with pytest.raises(InterruptedError):
        cli.__init__([command], ExitStack())
    actions = cli._subcommand_parsers[command]._actions
    real = {name.removeprefix("--") for action in actions for name in action.option_strings if name.startswith("--")}
    real = {name for name in real if not name.endswith(("+", ".help"))}
    options = known_options([command])
    shown = {line.split()[0].rstrip(":") for line in command_help([command]).splitlines() if line.startswith("  --")}
    assert shown == {f"--{name}" for name in options.names() if name not in options.sections}
    model = {f"model.{name}" for name in options.sections["model"]}  # the parser knows these once it knows the class
    assert {name for name in options.names() if name not in model} == real
    assert set(SINGLE) <= real


def test_the_options_of_each_model_are_those_it_takes():
    import inspect

    from mea_graph.studies.run import MODULES
    from mea_graph.train import TaskModule

    for name, module in MODULES.items():
        found = inspect.signature(module).parameters
        real = {p.name: p for p in found.values() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        if len(real) < len(found):
            real |= {p.name: p for p in inspect.signature(TaskModule).parameters.values() if p.name != "network"}
        written = class_options(name)
        assert set(written) == set(real), name
        for option, parameter in real.items():
            default = written[option].default
            if parameter.default is inspect.Parameter.empty:
                assert default is None, (name, option)
            elif isinstance(parameter.default, str | int | float | bool | None):
                assert default is not None
                assert eval(default, {}) == parameter.default, (name, option)
            assert written[option].meaning or option in ("in_channels", "task", "out_channels"), (name, option)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--modle", "3"], "--modle (did you mean '--model'?)"),
        (["--data.sorce", "x"], "--data.sorce (did you mean '--data.source'?)"),
        (["--data.split.valid_frction=0.1"], "--data.split.valid_frction (did you mean '--data.split.valid_fraction'?)"),
        (["--model.chanels", "8"], "--model.chanels (did you mean '--model.channels'?)"),
        (["--model.init_args.chanels", "8"], "--model.init_args.chanels (did you mean '--model.init_args.channels'?)"),
        (["--model.exclusive.poolng", "gru"], "--model.exclusive.poolng (did you mean '--model.exclusive.pooling'?)"),
        (["--model.pooling", "gru"], "--model.pooling ('--model.exclusive.pooling' and '--model.agnostic.pooling' now)"),
        (["--max_epochs", "3"], "--max_epochs (did you mean '--trainer.max_epochs'?)"),
        (["--early_stopping.monitr", "x"], "--early_stopping.monitr (did you mean '--early_stopping.monitor'?)"),
        (["--model", "LateFusionGRUModule", "--model.heads", "2"], "--model.heads"),
        (["--colour", "red"], "--colour"),
        (["--data.format", "npz"], "--data.format ('--data.reader.format' now)"),
        (["--data.label_names=[a, b]"], "--data.label_names ('--data.classes' now)"),
        (["--data.sampling.balancd", "true"], "--data.sampling.balancd (did you mean '--data.sampling.balanced'?)"),
        (["--trainer.max_epoch", "3"], "--trainer.max_epoch (did you mean '--trainer.max_epochs'?)"),  # none may be cut short
        (["--run_di", "x"], "--run_di (did you mean '--run_dir'?)"),
        (["--data.sourc=x"], "--data.sourc (did you mean '--data.source'?)"),
        (["--dat", "x"], "--dat (did you mean '--data'?)"),
        (["--model.exclusive.pool", "gru"], "--model.exclusive.pool (did you mean '--model.exclusive.pooling'?)"),
    ],
)
def test_what_was_meant(words, meant):
    assert mistyped(["fit", *words]) == f"fit: there is no option {meant}"


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "events", "--model.exclusive.mu", "0.3", "--model.init_args.exclusive.mu=0.3", "--data.events.num_samples", "40"],
        ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.monitor", "valid/acc"],
        [
            "--trainer.accelerator.help",
            "--model.help",
            "--data",
            "data.yaml",
            "--data.split",
            "{by: speaker}",
            "--print_config=skip_default",
        ],
        ["--model", "my_model.Mine", "--model.anything", "3"],
        ["--model.class_path=my_model.Mine", "--model.init_args.anything", "3"],
        ["--", "--anything"],
    ],
)
def test_nothing_is_refused_that_the_parser_may_know(words):
    assert mistyped(["fit", *words]) is None


def test_a_class_named_in_a_file_is_believed(tmp_path):
    (tmp_path / "own.yaml").write_text("model: {class_path: my_model.Mine}\n")
    (tmp_path / "gru.yaml").write_text("model: mea_graph.baselines.LateFusionGRUModule\n")
    (tmp_path / "broken.yaml").write_text("model: [")
    for name, unknown in (("own.yaml", False), ("gru.yaml", True), ("broken.yaml", True)):
        found = mistyped(["fit", "--config", str(tmp_path / name), "--model.beta0", "1"])
        assert (found is not None) == unknown, name


def test_a_file_with_an_unknown_option_is_told_what_was_meant():
    assert with_suggestion("Option 'chanels' is not accepted", ["fit"]).endswith("(did you mean 'model.channels'?)")
    assert with_suggestion("heads: expected 3", ["fit"]) == "heads: expected 3"
    former = "Subcommand 'fit' does not accept option 'data.cache_dir'"
    assert with_suggestion(former, ["fit"]) == f"{former} ('data.reader.cache_dir' now)"


def test_a_reader_that_has_seen_enough_is_no_mistake():
    """`mea-graph fit --help | head -1`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    code = "import sys; sys.stdin.read(); from mea_graph.__main__ import main; sys.exit(main(['fit', '--help']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, **pipes)
    process.stdout.close()
    process.stdin.close()
    error = process.stderr.read()
    assert process.wait() == 141
    assert error == b""
