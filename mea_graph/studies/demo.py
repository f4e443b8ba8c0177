"""`mea-graph demo`: MEA against its baselines on the embedded data, in one run of a few minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table

from mea_graph.baselines.scores import constant_scores
from mea_graph.studies.recipe import EMBEDDED, open_data, read_recipe
from mea_graph.studies.rows import FULL, compared
from mea_graph.studies.run import MODULES
from mea_graph.train.data_module import SequenceDataModule
from mea_graph.train.history import History
from mea_graph.train.model_checkpoint import ModelCheckpoint
from mea_graph.train.reports import cell, plain
from mea_graph.train.task_module import TaskModule
from mea_graph.train.training_progress import Step, TellProgress, TrainingDisplay

LINE_EVERY = 10.0  # seconds, where progress is lines
SHOWN = ("r2", "corr", "mae")
FUSED = "late fusion GRU"
PAIRWISE = "pairwise Transformer (MulT)"


@dataclass(frozen=True)
class Outcome:
    """The result of one model: test metrics of its best epoch, all logged numbers, seconds, checkpoint."""

    scores: dict[str, float]
    history: dict[str, list[float]]
    seconds: float
    checkpoint: Path


def train(
    name: str,
    make: Callable[[], TaskModule],
    data: SequenceDataModule,
    options: Mapping[str, Any],
    folder: Path,
    tell: Callable[[Step], None],
) -> Outcome:
    """Trains one model and tests the epoch that was best on the validation samples.

    Args:
        name: The name of the model; names its folder.
        make: Makes the module, after the seed is set.
        data: The samples, the same for every model.
        options: The options of Lightning's `Trainer`.
        folder: Where checkpoints go.
        tell: Called with the progress of the training.
    """
    L.seed_everything(0, verbose=False)
    history = History()
    best = ModelCheckpoint(folder / name.replace(" ", "_"), "best", monitor="valid/r2", mode="max", enable_version_counter=False)
    trainer = L.Trainer(
        **options,
        accelerator="cpu",
        logger=False,
        callbacks=[history, TellProgress(name, "valid/r2", tell), best],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    begin = time.perf_counter()
    module = make()
    trainer.fit(module, data, weights_only=True)
    trainer.test(module, data, ckpt_path=best.best_model_path, weights_only=True, verbose=False)
    scores = {key.removeprefix("test/"): value for key, value in plain(trainer.callback_metrics).items() if key.startswith("test/")}
    return Outcome(scores, history.values, time.perf_counter() - begin, Path(best.best_model_path))


def run(folder: Path) -> dict[str, Outcome]:
    """Trains MEA, a GRU on each modality, a late-fusion GRU and a pairwise Transformer; prints the table, saves checkpoints and the figure.

    The options are those of the configuration `events`, the models those of `mea-graph study compare`.

    Args:
        folder: Where `checkpoints/` and `learning_curves.png` go.
    """
    from mea_graph.viz import learning_curves  # first of all, so that a missing extra is told before the training

    console = Console()
    recipe = read_recipe(EMBEDDED, [], None)
    data = open_data(recipe.data_for(0))
    sizes: dict[str, Any] = {"in_channels": data.in_channels, "task": data.task, "out_channels": data.out_channels}
    rows = compared(recipe.model, list(data.in_channels))

    console.print(data.dataset.describe(), highlight=False)
    names = (FULL, *(f"GRU {modality}" for modality in data.in_channels), FUSED, PAIRWISE)
    outcomes = {}
    with TrainingDisplay("models", len(names), seconds=LINE_EVERY) as display:
        for name in names:
            kind, options = rows[name]
            make = partial(MODULES[kind], **sizes, **options)
            outcomes[name] = train(name, make, data, recipe.trainer, folder / "checkpoints", display.tell)
            valid = outcomes[name].history["valid/r2"]
            display.finished(name, f"{name}: {len(valid)} epochs in {outcomes[name].seconds:.0f} s, valid R2 {max(valid):.3f}")

    figure = learning_curves(
        {
            "training loss (task)": {name: outcome.history["train/task"] for name, outcome in outcomes.items()},
            "validation R2": {name: outcome.history["valid/r2"] for name, outcome in outcomes.items()},
        }
    )
    figure.savefig(folder / "learning_curves.png")
    console.print(results_table(outcomes, constant_scores(data, "test")))
    baseline = max((name for name in outcomes if name != FULL), key=lambda name: outcomes[name].scores["r2"])
    margin = outcomes[FULL].scores["r2"] - outcomes[baseline].scores["r2"]
    console.print(margin_in_words(margin, baseline))
    console.print(f"checkpoint {outcomes['MEA'].checkpoint}, figure {folder / 'learning_curves.png'}", highlight=False, soft_wrap=True)
    return outcomes


def margin_in_words(margin: float, baseline: str) -> str:
    """Says by how much of the variance MEA is ahead of or behind a baseline: `margin` is the difference of their R2."""
    more = f"{abs(100 * margin):.1f} points {'less' if margin < 0 else 'more'}"
    return f"MEA explains {more} of the variance than its best baseline ({baseline})."


def results_table(outcomes: dict[str, Outcome], constant: dict[str, float]) -> Table:
    """Returns the test table: MEA beside the constant, the best single modality and both baselines that read all.

    Args:
        outcomes: By model; single modalities are named `GRU <modality>`.
        constant: Metrics of the constant predictor.
    """
    single = [name for name in outcomes if name.startswith("GRU ")]
    best = max(single, key=lambda name: outcomes[name].scores["r2"])
    rows = {
        "constant": constant,
        f"best single modality ({best})": outcomes[best].scores,
        **{name: outcomes[name].scores for name in (FUSED, PAIRWISE, FULL)},
    }
    table = Table("test", *SHOWN)
    for name, scores in rows.items():
        table.add_row(name, *(cell(scores[metric]) for metric in SHOWN))
    return table
