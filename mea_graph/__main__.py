"""The command `mea-graph`, also as `python -m mea_graph`."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence

from mea_graph import __version__
from mea_graph.command.mistake import mistake
from mea_graph.suggestions import did_you_mean

PIPE_CLOSED = 141  # as a shell has it for a program that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 130 after Ctrl+C, 2 after a user's mistake.

    What needs no model is answered without torch and Lightning, whose import takes seconds.

    Args:
        arguments: The words after the program's name; those of this process where it is `None`.

    >>> main(["--version"])  # doctest: +ELLIPSIS
    mea-graph ...
    0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _stopped(words)
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        return _stopped(words)  # Lightning made that of it
    except BrokenPipeError:  # `mea-graph ... | head` has seen enough
        with contextlib.suppress(OSError, ValueError):  # so that nothing is said of it when the interpreter ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return code


def _stopped(words: Sequence[str]) -> int:
    how = "go on" if words[0] == "study" else "start again"
    print(f"\nmea-graph: stopped by Ctrl+C; {how} with: {shlex.join(['mea-graph', *words])}", file=sys.stderr)
    return 130


def _run(words: Sequence[str]) -> int:
    from mea_graph.command.help import COMMANDS, program_help
    from mea_graph.command.options import TRAINING

    first = words[0] if words else ""
    if first == "--version":
        print(f"mea-graph {__version__}")
        return 0
    if first in ("--help", "-h"):
        print(program_help())
        return 0
    composed = first in ("--config", "-c") or first.startswith("--config=")  # before the subcommand, as Lightning allows
    if first not in COMMANDS and not composed:
        got = f"got {first!r}{did_you_mean(first, [*COMMANDS, '--help', '--version'])}" if words else "got none"
        return mistake(f"expected a command, one of {', '.join(COMMANDS)}, {got}")
    try:
        return _answer(words) if first in TRAINING else _program(first)(_rest(words))
    except ImportError as error:
        return mistake(str(error))


def _answer(words: Sequence[str]) -> int:
    """Runs a command of training, unless its help is requested or an option is mistyped, which is told at once."""
    from mea_graph.command.help import command_help
    from mea_graph.command.options import mistyped

    text = message = None
    with contextlib.suppress(LookupError, OSError, ImportError):  # without sources or packages the program itself answers, later
        if {"--help", "-h"} & set(words):
            text = command_help(words)
        else:
            message = mistyped(words)
    if text is not None:
        print(text)
        return 0
    return mistake(f"{message}; see mea-graph {words[0]} --help") if message else _program(words[0])(words)


def _rest(words: Sequence[str]) -> Sequence[str]:
    return words[1:] if words[0] in ("study", "demo", "check") else words


def _program(name: str) -> Callable[[Sequence[str]], int]:
    if name == "study":
        from mea_graph.studies import command

        return command.main
    if name == "demo":
        from mea_graph.studies import demo_command

        return demo_command.main
    if name == "check":
        from mea_graph.check import command as check_command

        return check_command.main
    from mea_graph.train import cli

    return cli.main


if __name__ == "__main__":
    sys.exit(main())
