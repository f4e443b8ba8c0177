"""Recognises a file by its first bytes, and says what it is if a reader cannot read it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mea_graph.data.errors import DataError, brief

_PICKLES = ("mult", "mmsa", "misa", "pickle")
_TEXTS = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".yaml", ".yml", ".md")
_PRINTED = {*range(32, 127), *b"\t\r\n\f", *range(128, 256)}
_OTHERS = {  # first bytes: what such a file is, and what to do
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    b"<!doctype html": "a web page (HTML), not the file; a download that asks for a login or a confirmation gives such a page",
    b"<html": "a web page (HTML), not the file; a download that asks for a login or a confirmation gives such a page",
    b"<?xml": "an XML document, not the file; a download that was refused gives such a page",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
    b"\xfd7zXZ\x00": "compressed by xz; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x93NUMPY": "one array (.npy); a data set needs several, such as an .npz",
}


def pickle_form(path: Path) -> str:
    """ "mult", "mmsa" or "misa", by the contents of a pickle."""
    from mea_graph.readers.any_pickle import form_of  # which imports this module

    return form_of(path)


def kind_of(path: Path) -> str:
    """ "csd", "npz" or "pickle" by the contents of a file, "" where that is not plain.

    Raises:
        DataError: If the file is empty, or known to be something else: a pointer, a web page, an archive.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise DataError(f"{path}: is empty (0 bytes)")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, what in _OTHERS.items():
        if start.startswith(mark.lower()) or head.startswith(mark):
            raise DataError(f"{path}: is {what}")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "csd"
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
        return "npz"
    if path.suffix.lower() in _TEXTS and not set(head) - _PRINTED:
        raise DataError(f"{path}: is a text file ({path.suffix}); no format is one, from_arrays takes what you read of it")
    if head[:1] == b"\x80" or (head[:1] in (b"(", b"]", b"}", b"c") and path.suffix in (".pkl", ".pickle", ".p")):
        return "pickle"  # of protocol 2 and later, or before
    return ""


def _check_archive(path: Path) -> None:
    """Refuses a zip archive of something else than arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a damaged one can raise nearly anything, and is refused by who reads it
        return
    if names and not any(name.endswith(".npy") for name in names):
        seen = ", ".join(map(brief, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise DataError(f"{path}: is a zip archive of other files ({seen}), not an .npz; unpack it first")


def check_kind(path: Path, format: str) -> None:
    """Refuses a file that is plainly of another kind than `format` reads."""
    kind = kind_of(path)
    expected = "pickle" if format in _PICKLES else format
    names = {"csd": "an HDF5 file, such as .csd", "npz": "a zip archive, such as .npz", "pickle": "a pickle"}
    if kind and kind != expected:
        raise DataError(f"{path}: expected {names[expected]}, as format {format!r} is, got {names[kind]}")
