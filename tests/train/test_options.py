"""Options that are wrong are refused by name before anything is done; `tools/sweep_options.py` tries every one of them."""

import math
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import pytest
import yaml

from mea_graph.data import DataError
from mea_graph.option_types import mismatch
from mea_graph.studies.recipe import read_recipe
from mea_graph.train import MEAModule
from mea_graph.train.error_message import lack_of_memory
from mea_graph.train.option_ranges import RANGES, check_options

from .commands import SMALL_MEA, error_of, run

EVENTS = ["--data.events", "{num_samples: 20}", "--trainer.max_epochs", "1"]


@pytest.fixture(scope="module")
def sweep(tool):
    return tool("sweep_options")


def test_every_option_has_values_that_it_may_have(sweep):
    """So that a new one is thought about."""
    options = sweep.options()
    assert [name for name, legal in options.items() if legal is None] == []
    assert sweep.LEGAL.keys() - options.keys() == set()
    assert RANGES.keys() - options.keys() == set()
    assert len(options) > 200
    assert all(value in sweep.VALUES for legal in options.values() for value in legal.split())


def test_no_option_takes_what_is_wrong(sweep):
    """One of a kind each; the tool does the others."""
    options = ("model.fusion.", "model.head.d", "data.events.s", "npz.non", "mult.c", "EarlyFusionGRUModule.h")
    assert list(sweep.faults(options, whole=False)) == []
    assert list(sweep.faults(("model.head.dropout", "early_stopping.mode"), whole=True)) == []


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("seed_everything", -1, "an integer in [0, 4294967295]"),
        ("seed_everything", True, "an integer in [0, 4294967295]"),
        ("trainer.max_epochs", 0, "an integer >= 1"),
        ("trainer.max_epochs", -1, "an integer >= 1, or -1 beside trainer.max_steps, trainer.max_time or training.updates"),
        ("trainer.barebones", True, "false, since a run keeps its log and its checkpoints"),
        ("trainer.max_steps", None, "int"),
        ("trainer.max_steps", 0, "an integer >= 1, or -1 for no limit"),
        ("trainer.max_time", "3 hours", "DD:HH:MM:SS, or a dict of weeks, days, hours, minutes, seconds"),
        ("trainer.max_time", {"fortnights": 1}, "DD:HH:MM:SS, or a dict of weeks, days, hours, minutes, seconds"),
        ("trainer.devices", 10**13, "at most 1024"),
        ("trainer.limit_train_batches", 0, "above 0, since nothing is trained without a batch"),  # "the checkpoint has 0 updates already"
        ("trainer.check_val_every_n_epoch", 0, "an integer >= 1"),
        ("trainer.accumulate_grad_batches", 0, "an integer >= 1"),
        ("trainer.gradient_clip_val", -1.0, "a finite number >= 0"),  # turned every gradient round
        ("trainer.gradient_clip_val", math.nan, "a finite number"),
        ("data.num_workers", 10**13, "an integer in [0, 1024]"),
        ("data.batch_size", None, "int"),
        ("early_stopping.patience", -1, "an integer >= 0"),
        ("early_stopping.min_delta", math.inf, "a finite number"),
        ("early_stopping.stopping_threshold", math.nan, "a finite number"),
    ],
)
def test_a_value_out_of_range_is_named(option, value, expected):
    tree = value
    for part in reversed(option.split(".")):
        tree = {part: tree}
    with pytest.raises(DataError) as error:
        check_options(tree)
    text = str(error.value)
    assert text.startswith(f"{option}: expected ")
    assert expected in text
    assert text.endswith(f"got {value!r}")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("logger", "tensorbord", "expected one of csv, tensorboard, wandb, got 'tensorbord' (did you mean 'tensorboard'?)"),
        ("threads", "many", "expected an integer, got 'many'"),
        ("data.modalities", "audio,lips", "expected a list, such as [audio,lips], got 'audio,lips'"),
        ("data.modalities", "[[audio]]", "expected a string, got ['audio']"),
        ("data.classes", "{a: 1}", "expected an integer or a list, got {'a': 1}"),
        ("data.task", "3", "expected one of regression, classification, multilabel, got 3"),
        ("early_stopping.mode", "highest", "expected one of min, max, got 'highest'"),
        ("model.disparity", "hsc", "expected one of hsic, orthogonality, got 'hsc' (did you mean 'hsic'?)"),
        ("model.window", "x", "expected options by name, got 'x'"),
    ],
)
def test_a_word_that_the_parser_refuses_is_told_with_what_was_expected(option, value, message, capsys):
    """Its message lay over many lines, of which one was left, without the word itself."""
    assert error_of(capsys, "fit", *EVENTS, f"--{option}", value) == f"mea-graph: error: {option}: {message}\n"


class Shaped(Protocol):
    """Of no value can be told at once whether it is one."""


Anything = TypeVar("Anything")


class Own:
    """A module as users write them."""

    def __init__(
        self,
        tagged: Annotated[int | None, "a note"] = 3,
        shaped: Shaped | None = Shaped,
        required: Shaped = Shaped,
        anything: Anything = 3,
        bare=3,
        size: int = 3,
    ):
        """Takes what it is given."""


@pytest.mark.parametrize("name", ["tagged", "shaped", "required", "anything", "bare"])
def test_no_value_is_left_to_a_class_of_ones_own_unless_its_type_refuses_it(name):
    def own(option):
        return {"model": {"class_path": f"{__name__}.Own", "init_args": {option: None}}}

    check_options(own(name))
    with pytest.raises(DataError, match=r"model\.size: expected int, got None"):
        check_options(own("size"))


def test_a_list_of_several_types_is_named_in_words():
    assert mismatch("a", list[str | int] | None) == "a list of str or int or None"


@pytest.mark.parametrize("value", ["00:01:00:00", {"hours": 1}])
def test_a_time_is_taken(value):
    check_options({"trainer": {"max_time": value, "val_check_interval": value}})


@pytest.mark.parametrize("end", [{"max_steps": 5}, {"max_time": "00:01:00:00"}])
def test_epochs_without_a_limit_need_another_end(end):
    """-1 was refused even where something else ended the training."""
    check_options({"trainer": {"max_epochs": -1, **end}})
    check_options({"trainer": {"max_epochs": -1}, "training": {"updates": 5}})


def test_no_value_where_one_is_needed_is_no_value():
    with pytest.raises(DataError, match=r"model\.channels: expected int, got None"):
        check_options({"model": {"class_path": "mea_graph.train.MEAModule", "init_args": {"channels": None, "dropout": None}}})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed_everything=-1"], "seed_everything: expected an integer in [0, 4294967295], got -1"),
        (["--model.channels", str(10**13)], f"model: expected sizes that fit in memory, got channels={10**13}"),
        (["--data.split.seed=-1"], "data.split.seed: expected"),
        (["--data.standardize", "person"], "data.standardize: expected train, a field of the data (it has none) or None, got 'person'"),
        (["--data.sampling.balanced", "true"], "data.sampling.balanced: expected classification, whose classes it draws equally often"),
        (
            ["--trainer.callbacks", "null", "--trainer.gradient_clip_val=-1"],
            "trainer.gradient_clip_val: expected a finite number >= 0, got -1",
        ),
    ],
)
def test_a_command_says_it_in_one_line_and_leaves_nothing(capsys, words, told):
    assert told.removeprefix("data.") in error_of(capsys, "fit", *EVENTS, *words)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"data": {"seed": 7}}, "data.seed: expected none in mine.yaml, since it follows from seed_everything, got 7"),
        (
            {"data": {"sampling": {"batches": 7}}},
            "data.sampling.batches: expected none in mine.yaml, since it follows from training, got 7",
        ),
        (
            {"model": {"init_args": {"out_channels": 2}}},
            "model.init_args.out_channels: expected none in mine.yaml, since it follows from the data",
        ),
    ],
)
def test_what_follows_from_something_else_is_not_passed_over(capsys, tree, told):
    """The parser put what follows in its place, and trained."""
    Path("mine.yaml").write_text(yaml.safe_dump(tree))
    assert told in error_of(capsys, "fit", *EVENTS, "--config", "mine.yaml")


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"trainer": {"accelerator": "cpu"}}, r"trainer.accelerator: expected none for a study \(--accelerator says it\), got 'cpu'"),
        ({"early_stopping": {"min_delta": 0.1}}, "early_stopping.min_delta: expected none for a study"),
        ({"data": {"batch_size": "8"}}, "data.batch_size: expected int, got '8'"),
        ({"trainer": {"max_epoch": 3}}, r"trainer: there is no option 'max_epoch' \(did you mean 'max_epochs'\?\)"),
        ({"trainer": 3}, "trainer: expected options by name, got 3"),
    ],
)
def test_a_study_refuses_what_it_would_pass_over_or_fail_at(tree, told):
    Path("mine.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(DataError, match=told):
        read_recipe("events", ["events", "mine.yaml"], None)


def test_a_study_takes_the_configuration_of_a_run():
    trainer = {"accelerator": "auto", "devices": "auto", "callbacks": None, "use_distributed_sampler": False, "gradient_clip_val": 0.5}
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": trainer, "early_stopping": {"min_delta": 0.0, "strict": True}}))
    found = read_recipe("events", ["events", "mine.yaml"], None).trainer
    assert found["gradient_clip_val"] == 0.5
    assert not found.keys() & {"accelerator", "devices", "callbacks", "use_distributed_sampler"}


def test_a_single_callback_needs_no_list():
    Path("mine.py").write_text("import lightning\n\nclass Quiet(lightning.Callback):\n    pass\n")
    run("fit", *EVENTS, *SMALL_MEA, "--trainer.callbacks", "{class_path: mine.Quiet}", "--trainer.accelerator", "cpu")


def test_what_does_not_fit_in_memory_is_told_from_other_errors():
    assert lack_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), {}) is None
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")
    assert lack_of_memory(error, {"head": {"n": 10**7}, "heads": 8}) == "model: expected sizes that fit in memory, got head.n=10000000"


def test_types():
    assert mismatch(math.nan, float) == "a finite number"
    assert mismatch(10**400, float) is None
    assert mismatch([1.0, 2], tuple[float, float]) is None
    assert mismatch([1.0], tuple[float, float]) == "a list of 2 numbers"
    assert mismatch(True, int | None) == "int or None"


@pytest.mark.parametrize("option", ["learning_rate", "weight_decay", "dropout", "alpha"])
def test_nan_is_no_number(option):
    with pytest.raises((ValueError, TypeError), match=f"{option}: expected a finite number( or None)?, got nan"):
        MEAModule({"a": 3, "b": 2}, "regression", 1, **{option: math.nan})
