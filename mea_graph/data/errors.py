"""The error that every fault in a user's data raises, and how it shows what came from a file."""

from __future__ import annotations

from typing import Any

_LONGEST = 4000  # characters of a message: more is no help, and a file may hold a name of any length
_SHOWN = 60  # characters of one value


class DataError(ValueError):
    """Raised if data, a file or an option is not as expected.

    The message names the file or field, what was expected and what came, so a program can show it without a traceback. Text from a file
    appears in it without control characters, and long text is cut.

    >>> issubclass(DataError, ValueError)
    True
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def printable(text: str) -> str:
    """A text that files had a part in: without control characters but line ends, and cut where it is long."""
    if len(text) > _LONGEST + 100:  # what was cut before is a little longer by now
        text = f"{text[:_LONGEST]}... ({len(text) - _LONGEST} characters more)"
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return text


def brief(value: Any) -> str:
    """A value as an error shows it: short, whatever it is. `repr` of nested containers can take for ever."""
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}... (length {len(value)})"
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() < 64 else f"an integer of {value.bit_length()} bits"
    return f"a {type(value).__name__}"


def no_memory(what: Any, files_bytes: int) -> DataError:
    """What to say where a conversion runs out of memory."""
    need = 1.3 * files_bytes / (1 << 30)
    return DataError(
        f"{what}: not enough memory to convert it: that takes about {need:.2g} GiB, 1.3 times the file, and more for a compressed one; "
        "convert it once on a machine that has as much and copy the cache folder beside it, which takes none"
    )
