"""What an error shows of a file: short, printable, and made in no time."""

import pytest

from mea_graph.data import DataError
from mea_graph.data.errors import brief


def test_control_characters_are_shown_and_not_obeyed():
    assert str(DataError("a\x1b[31m\r\0\u202eb\nc")) == "a\\x1b[31m\\r\\x00\\u202eb\nc"
    assert str(DataError("schön\ud800")) == "schön\\ud800"


def test_a_long_message_is_cut_once():
    error = DataError("x" * 10_000_000)
    for _ in range(5):
        error = DataError(f"file: {error}")
    assert len(str(error)) < 4200
    assert str(error).startswith("file: file: ")
    assert str(error).endswith("... (9996000 characters more)")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", "'a'"),
        (b"x" * 100, repr(b"x" * 60) + "... (length 100)"),
        (-3, "-3"),
        (1 << 70, "an integer of 71 bits"),
        (None, "None"),
        (1.5, "1.5"),
        ([[[]]], "a list"),
    ],
)
def test_brief(value, shown):
    assert brief(value) == shown
