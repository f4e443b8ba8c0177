"""How every command tells a user's mistake."""

import sys


def mistake(message: object) -> int:
    """Tells it in one line on the standard error output, and returns the exit code.

    Args:
        message: What was expected, and what came.

    >>> mistake("out: expected a folder, got the file notes.txt")
    2
    """
    print(f"mea-graph: error: {message}", file=sys.stderr)
    return 2
