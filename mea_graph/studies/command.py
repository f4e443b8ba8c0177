"""`mea-graph study compare | ablate | sensitivity | missing | disentangle`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mea_graph.command.mistake import mistake
from mea_graph.command.words import MistypedError, Words, add_threads
from mea_graph.configurations import packaged_configs

if TYPE_CHECKING:  # what needs torch is imported once the words of the command are known to be right
    from mea_graph.studies.recipe import Recipe
    from mea_graph.studies.run import Run

HELP = {
    "compare": "Tables II-IV: MEA, a constant, single modalities, GRUs, Transformers, shared and private encoders",
    "ablate": "Table V: MEA without each of its parts",
    "sensitivity": "Fig. 7-9: mu, alpha and beta, numbers of layers",
    "missing": "test samples that lack modalities; training with and without modality dropout",
    "disentangle": "Fig. 5: exclusive and agnostic representations, in the plane and in numbers",
}


def main(arguments: Sequence[str]) -> int:
    """Runs one study and returns the exit code: 0; 1 if a run failed; 2 after a user's mistake; 130 after an interruption.

    Args:
        arguments: The words after `study`.
    """
    try:
        words = _parser().read(arguments)
    except MistypedError as error:
        return mistake(f"study: {error}")
    from mea_graph.data import DataError
    from mea_graph.train.error_message import one_line
    from mea_graph.train.quieten import quieten

    quieten()
    try:
        return _study(words, "mea-graph study " + shlex.join(arguments))
    except BrokenPipeError:  # not the user's mistake: `mea-graph study ... | head` has seen enough
        raise
    except (DataError, OSError, ImportError) as error:
        return mistake(one_line(error))


def _study(words: argparse.Namespace, command: str) -> int:
    from mea_graph.studies.recipe import EMBEDDED, open_data, read_recipe
    from mea_graph.studies.report import Results, write_report  # these need the extra viz: told before any training
    from mea_graph.studies.run import check_runs
    from mea_graph.studies.schedule import finish
    from mea_graph.studies.studies import STUDIES
    from mea_graph.train.accelerators import check_accelerator
    from mea_graph.train.run_folder import claimed
    from mea_graph.train.threads import computing_on

    check_accelerator(words.accelerator, "accelerator")
    study = STUDIES[words.study]
    recipe = read_recipe(words.data or EMBEDDED, words.config, words.epochs)
    data = open_data(recipe.data_for(0))
    runs = plan(recipe, study.rows(recipe.model, list(data.in_channels), words), words, data.dataset.hash, **study.measured(words))
    check_runs(runs)
    folder = words.out or Path("studies") / recipe.name / words.study
    with claimed(folder):
        print(f"{len({run.id for run in runs})} runs in {folder}", flush=True)
        with computing_on(words.threads or recipe.threads) as note:
            if note:
                print(f"note: {note}", flush=True)
            found, errors = finish(runs, folder, words.workers, words.accelerator, data.task)
        results = Results.gather(runs, found, data.task, recipe.monitor)
        if results.records:
            text, figures = study.report(results, folder, words)
            write_report(folder, study.title, command, results, text, figures)
            print(f"{text}\n\nwritten: {folder / 'table.md'}", flush=True)
    for error in errors:
        mistake(error)
    return 1 if errors else 0


def plan(recipe: Recipe, rows: dict, words: argparse.Namespace, data_hash: str, **measured: object) -> list[Run]:
    """Returns the runs of a study, seed by seed, so that one that is stopped early has whole seeds.

    Args:
        recipe: What all runs share.
        rows: Name -> kind and options.
        words: The words of the command.
        data_hash: Hash of the data.
        measured: What runs measure beside their metrics.
    """
    from mea_graph.studies.run import make_run

    return [
        make_run(name, kind, options, seed, recipe, data_hash, words.select, **measured)
        for seed in range(words.seeds)
        for name, (kind, options) in rows.items()
    ]


def _parser() -> Words:
    parser = Words(prog="mea-graph study", description="The paper's tables and figures, on any data.")
    commands = parser.add_subparsers(dest="study", required=True, metavar=" | ".join(HELP))
    for name, text in HELP.items():
        command = commands.add_parser(name, help=text, description=text)
        _common(command)
        if name in ("compare", "ablate", "missing"):
            command.add_argument("--only", nargs="+", metavar="ROW", help="rows to run beside MEA, by name (default: all)")
        if name == "sensitivity":
            command.add_argument("--mu", nargs="*", type=float, default=[0.0, 0.15, 0.25, 0.5, 0.75])
            command.add_argument("--alpha", nargs="*", type=float, default=[0.001, 0.01, 0.02, 0.05])
            command.add_argument("--beta", nargs="*", type=float, default=[0.001, 0.01, 0.03, 0.1])
            command.add_argument("--predictive-layers", nargs="*", type=int, default=[1, 2, 3, 4])
            command.add_argument("--cross-modal-layers", nargs="*", type=int, default=[1, 2, 3])
        if name == "missing":
            shares = [0.0, 0.25, 0.5, 0.75, 1.0]
            command.add_argument("--shares", nargs="+", type=_share, default=shares, help="of samples without a modality, in [0, 1]")
            command.add_argument("--modality-dropout", type=_share, default=0.3, help="in training, of the second half of the rows")
    return parser


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", help="a data file or folder; the embedded data by default")
    names = ", ".join(packaged_configs())
    command.add_argument("--config", action="append", default=[], metavar="NAME", help=f"{names}, or a path; a later one overrides")
    command.add_argument("--seeds", type=_count, default=5, help="number of runs of each row (default: 5)")
    command.add_argument("--workers", type=_count, default=1, help="number of processes (default: 1)")
    add_threads(command)
    command.add_argument("--epochs", type=_count, help="replaces the configuration's")
    command.add_argument("--select", choices=["best", "last"], default="best", help="epoch to test: the best on validation, or the last")
    command.add_argument("--accelerator", default="auto", help="as of Lightning's trainer (default: auto)")
    command.add_argument("--out", type=Path, help="folder (default: studies/<configuration>/<study>)")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text}")
    return value
