"""`mea-graph predict`: predictions of a trained model for new samples, with nothing but its checkpoint."""

from __future__ import annotations

import argparse
import pkgutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from mea_graph.command.mistake import mistake
from mea_graph.command.words import MistypedError, Words, add_threads
from mea_graph.data import DataError
from mea_graph.train.error_message import one_line
from mea_graph.train.predictor import Predictor
from mea_graph.train.quieten import quieten
from mea_graph.train.run_folder import RunFolder, find_checkpoint
from mea_graph.train.task_module import TaskModule
from mea_graph.train.threads import computing_on
from mea_graph.train.whole_checkpoints import read_checkpoint
from mea_graph.train.whole_files import can_be_written


def main(arguments: Sequence[str]) -> int:
    """Runs `mea-graph predict` and returns its exit code: 0, or 2 after a user's mistake, reported in one line.

    Args:
        arguments: The words after `predict`.
    """
    try:
        words = _parser().read(arguments)
    except MistypedError as error:
        return mistake(f"predict: {error}")
    quieten()
    try:
        check_output("output", words.output, ".csv")
        if words.embeddings is not None:
            check_output("embeddings", words.embeddings, ".npz", words.data)
        with computing_on(words.threads) as note:
            if note:
                print(f"note: {note}", flush=True)
            predict(words)
    except (DataError, ImportError, OSError) as error:
        return mistake(one_line(error))
    return 0


def predict(words: argparse.Namespace) -> None:
    """Predicts and writes what was requested.

    Args:
        words: The words of the command.
    """
    module = None if words.module is None else _module(words.module)
    predictor = _loaded(words, module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = predictor.predict(words.data, embeddings=words.embeddings is not None, cache_dir=words.cache_dir)
    warned = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    for message in dict.fromkeys([*warned, *found.notes]):  # some notes are warnings too
        if not message.startswith("no labels"):
            print(f"note: {message}")
    if found.part is not None:
        print(f"note: {found.part.count('train')} of these {len(found)} samples trained the model; the column `part` says which")
    found.save(words.output)
    print(f"written: {words.output} ({len(found)} samples, {predictor.checkpoint})")
    if words.embeddings is not None:
        found.save_embeddings(words.embeddings)
        print(f"written: {words.embeddings}")


def _loaded(words: argparse.Namespace, module: type[TaskModule] | None) -> Predictor:
    """The predictor, or an error that names the option of this command, and the checkpoint that there is."""
    folder = RunFolder(words.ckpt)
    if not folder.checkpoint("best").is_file() and folder.checkpoint("last").is_file():
        raise DataError(f"ckpt: there is no checkpoint {folder.checkpoint('best')}; there is --ckpt {folder.checkpoint('last')}")
    place = find_checkpoint("ckpt", words.ckpt)
    return Predictor._of(place, read_checkpoint(place, "ckpt"), module, None, words.batch_size, words.device)


def check_output(option: str, path: Path, suffix: str, read: Path | None = None) -> None:
    """Refuses a file that could not be written, or would not be what its name says, before anything is computed for it.

    Args:
        option: The option that names it, for an error.
        path: The file.
        suffix: The end of its name, by which its form is known.
        read: A file that must stay as it is.

    Raises:
        DataError: If the file cannot be the one that is written.

    >>> check_output("output", Path("predictions.xlsx"), ".csv")
    Traceback (most recent call last):
    mea_graph.data.errors.DataError: output: expected a name that ends in .csv, the form that is written, got predictions.xlsx
    """
    if path.is_dir():
        raise DataError(f"{option}: expected a file to write, got the folder {path}; give the name of a file in it")
    if path.suffix.lower() != suffix:
        raise DataError(f"{option}: expected a name that ends in {suffix}, the form that is written, got {path}")
    if read is not None and path.exists() and read.exists() and path.samefile(read):
        raise DataError(f"{option}: expected another file than --data, which it would replace, got {path}")
    if not can_be_written(path):
        raise DataError(f"{option}: expected a file in a folder that can be written, got {path}")


def _parser() -> Words:
    parser = Words(prog="mea-graph predict", description="Predicts samples with a trained model.")
    parser.add_argument("--ckpt", required=True, type=Path, help="a checkpoint, or the folder of a run (its best one)")
    parser.add_argument("--data", required=True, type=Path, help="the samples: a file or folder; labels are not needed")
    parser.add_argument("--output", required=True, type=Path, help="the .csv to write, one row a sample; replaced where there is one")
    parser.add_argument("--embeddings", type=Path, help="an .npz to write the vectors behind the predictions to")
    parser.add_argument("--module", help="the class that was trained, such as my_file.MyModule; not needed for those of mea-graph")
    parser.add_argument("--batch_size", type=int, default=32, help="samples that are computed at a time (default: 32)")
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda (default: cpu)")
    add_threads(parser)
    parser.add_argument("--cache_dir", type=Path, help="folder for converted data; beside the file by default")
    return parser


def _module(name: str) -> type[TaskModule]:
    """A class of the user's, found from the current folder too, which `mea_graph.train.cli.main` put last."""
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(f"module: expected the name of a class, such as my_file.MyModule, got {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, TaskModule)):
        raise DataError(f"module: expected a subclass of TaskModule, got {name!r}")
    return found
