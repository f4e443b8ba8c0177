"""Reading the words of `mea-graph predict`, `study` and `demo`: a mistake is one line, with what was meant."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from mea_graph.suggestions import did_you_mean

MOST_THREADS = 1024  # nobody has more, and OpenMP ends a process where it cannot start them


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Gives a command its option `--threads`.

    Args:
        parser: Of the command.

    >>> words = Words(prog="mea-graph demo")
    >>> add_threads(words)
    >>> words.read(["--threads", "4"]).threads
    4
    """
    told = "threads that compute (default: OMP_NUM_THREADS where it is set, else 1)"
    parser.add_argument("--threads", type=_thread_count, metavar="N", help=told)


def _thread_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"expected an integer in [1, {MOST_THREADS}], got {text!r}")
    return int(text)


class MistypedError(Exception):
    """Says in one line what is wrong with the words of a command."""


class Words(argparse.ArgumentParser):
    """argparse's parser, whose mistakes are errors to be told in one line, with the option or command that was meant.

    An option is written out in full: one cut short could become another one, as soon as a later version has more of them.

    Args:
        options: Those of argparse's parser.

    >>> words = Words(prog="mea-graph demo")
    >>> _ = words.add_argument("--out")
    >>> words.read(["--uot", "x"])
    Traceback (most recent call last):
    mea_graph.command.words.MistypedError: there is no option --uot (did you mean '--out'?); see mea-graph demo --help
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Returns what the words say.

        Args:
            arguments: The words.

        Raises:
            MistypedError: If they are not as the parser has them.
        """
        chosen = self._chosen(arguments)
        known = [name for action in chosen._actions for name in action.option_strings]
        said = list(arguments)[: [*arguments, "--"].index("--")]
        # before argparse, which would say of a mistyped option that another one is missing
        unknown = [word for word in said if word.startswith("--") and word.partition("=")[0] not in known]
        if not unknown:
            found, unknown = self.parse_known_args(list(arguments))
        if unknown:
            first = next((word for word in unknown if word.startswith("-")), unknown[0])
            what = "option" if first.startswith("-") else "word"
            hint = did_you_mean(first.partition("=")[0], known)
            raise MistypedError(f"there is no {what} {first.partition('=')[0]}{hint}; see {chosen.prog} --help")
        return found

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = did_you_mean(found[1], re.findall(r"[\w-]+", found[2])) if found else ""
        raise MistypedError(f"{message}{hint}; see {self.prog} --help")

    def _chosen(self, arguments: Sequence[str]) -> argparse.ArgumentParser:
        """The parser of the subcommand, or this one where there is none."""
        every: Any = next((action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)), {})
        return next((every[word] for word in arguments if word in every), self)
