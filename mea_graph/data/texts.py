"""Texts that come from files, as numpy keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mea_graph.data.errors import DataError, brief

_MOST_PADDED = 256 << 20  # bytes that texts of different lengths may take, and 64 times their own


def as_text(value: Any) -> str:
    """A name as text, whether the file holds text, bytes or a number; anything else could take for ever to write out."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if value is None or isinstance(value, str | np.number | np.bool_ | float) or (isinstance(value, int) and value.bit_length() <= 64):
        return str(value)
    raise DataError(f"expected text or a number as a name, got {brief(value)}")


def text_array(what: str, values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Texts `(N,)` as an array; numpy makes each as long as the longest, which one long text among thousands must not blow up."""
    if not isinstance(values, np.ndarray) or values.dtype.kind != "U":
        try:
            values = [as_text(value) for value in values]
        except DataError as error:
            raise DataError(f"{what}: {error}") from error
        lengths = [len(value) for value in values]
        check_padded(what, len(values) * max(lengths, default=0) * 4, sum(lengths) * 4)
    array = np.ascontiguousarray(values, dtype=np.str_)
    codes = array.view(np.dtype("u4").newbyteorder(array.dtype.byteorder)) if array.nbytes else np.zeros(0, np.uint32)
    if bool(((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any()):
        raise DataError(f"{what}: expected text that can be written as UTF-8, got some with half a character or one that does not exist")
    if not isinstance(values, np.ndarray) and any("\0" in value for value in values):
        bad = next(value for value in values if "\0" in value)
        raise DataError(f"{what}: expected text without NUL, got {brief(bad)}")
    return array


def as_array(what: str, value: Any) -> np.ndarray:
    """A list of a file's as an array, once it is sure that texts in it do not blow it up."""
    if not isinstance(value, np.ndarray):
        try:
            parts = np.asarray(value, dtype=object)
        except ValueError as error:
            raise DataError(f"{what}: expected an array, got rows of different shapes") from error
        if lengths := [len(part) for part in parts.flat if isinstance(part, str | bytes)]:
            check_padded(what, 4 * parts.size * max(lengths), 4 * sum(lengths))
    try:
        return np.asarray(value)
    except (ValueError, OverflowError) as error:  # a list of rows of different lengths
        raise DataError(f"{what}: expected an array, got rows of different shapes") from error


def check_padded(what: str, padded: int, own: int) -> None:
    """Refuses texts that take far more memory at the length of the longest than at their own."""
    if padded > _MOST_PADDED + 64 * own:
        raise DataError(f"{what}: expected texts of similar length, got one so long that all of them would take {padded} bytes")
