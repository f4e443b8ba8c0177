"""`mea-graph demo`: reads its words before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mea_graph.command.mistake import mistake
from mea_graph.command.words import MistypedError, Words, add_threads


def main(arguments: Sequence[str]) -> int:
    """Runs `mea-graph demo [--out FOLDER] [--threads N]` and returns its exit code.

    Args:
        arguments: The words after `demo`.
    """
    parser = Words(prog="mea-graph demo", description="MEA against its baselines on the embedded data, in one run of a few minutes.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for checkpoints and the figure (default: demo)")
    add_threads(parser)
    try:
        options = parser.read(arguments)
    except MistypedError as error:
        return mistake(f"demo: {error}")
    from mea_graph.data import DataError
    from mea_graph.studies.demo import run
    from mea_graph.train.quieten import quieten
    from mea_graph.train.run_folder import claimed
    from mea_graph.train.threads import computing_on

    quieten()
    try:
        with claimed(options.out), computing_on(options.threads) as note:
            if note:
                print(f"note: {note}", flush=True)
            run(options.out)
    except BrokenPipeError:  # not the user's mistake: `mea-graph demo | head` has seen enough
        raise
    except (DataError, ImportError, OSError) as error:
        return mistake(error)
    return 0
