"""Tells what a file is by its first bytes, and says so where it is not what a reader needs."""

from __future__ import annotations

from pathlib import Path

from mea_graph.data.errors import DataError

_PICKLES = ("mult", "mmsa", "misa", "pickle")
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


def kind_of(path: Path) -> str:
    """ "csd", "npz" or "pickle" by the contents of a file, "" where that is not plain.

    Raises:
        DataError: where the file is empty, or known to be something else: a pointer, a web page, an archive.
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
        return "npz"
    if head[:1] == b"\x80" or (head[:1] in (b"(", b"]", b"}", b"c") and path.suffix in (".pkl", ".pickle", ".p")):
        return "pickle"  # of protocol 2 and later, or before
    return ""


def check_kind(path: Path, format: str) -> None:
    """Refuses a file that is plainly of another kind than `format` reads."""
    kind = kind_of(path)
    expected = "pickle" if format in _PICKLES else format
    names = {"csd": "an HDF5 file, such as .csd", "npz": "a zip archive, such as .npz", "pickle": "a pickle"}
    if kind and kind != expected:
        raise DataError(f"{path}: expected {names[expected]}, as format {format!r} is, got {names[kind]}")
