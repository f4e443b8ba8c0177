"""The command ``mea-graph``, also as ``python -m mea_graph``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mea_graph import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: the words after the program's name; those of this process where it is ``None``.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        mea-graph ...
        0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"mea-graph {__version__}")
        return 0
    try:
        from mea_graph.studies import command as study
        from mea_graph.train import cli, demo
    except ImportError as error:
        print(f"mea-graph: error: {error}", file=sys.stderr)
        return 2
    programs = {"demo": demo.main, "study": study.main}
    return programs[words[0]](words[1:]) if words and words[0] in programs else cli.main(words)


if __name__ == "__main__":
    sys.exit(main())
