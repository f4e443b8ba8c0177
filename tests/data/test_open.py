import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from mea_graph.data import DataError, open_dataset


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "clips.npz", audio=np.ones((2, 3, 2)), lips=np.ones((2, 4, 1)), y=np.zeros(2))
    return tmp_path / "clips.npz"


def test_modalities_are_chosen_and_ordered(npz):
    assert open_dataset(npz, modalities=["lips", "audio"]).modalities == ("lips", "audio")
    assert open_dataset(npz, modalities=["lips"]).channels == {"lips": 1}
    assert open_dataset(npz).modalities == ("audio", "lips")


def test_a_path_may_be_a_string(npz):
    assert len(open_dataset(str(npz), cache_dir=str(npz.parent / "cache"))) == 2


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "is a Git LFS pointer, .* `git lfs pull`"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title>", r"is a web page \(HTML\)"),
        (b"\xef\xbb\xbf<HTML>", r"is a web page \(HTML\)"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is an XML document"),
        (b"\x1f\x8b\x08", "is compressed by gzip; unpack it first"),
        (b"\x93NUMPY\x01\x00", r"is one array \(\.npy\)"),
        (b"text,audio\n1,2\n", "its format is not plain"),
        (pickle.dumps(3), "expected a pickle in the form of MulT, MMSA or MISA, got int"),
        (pickle.dumps({}), "expected a pickle in the form"),
        (pickle.dumps({"train": {"x": 1}}), "expected a pickle in the form .* got a dict with keys"),
        (pickle.dumps({"a": 1, "b": {}}), "expected a pickle in the form"),
        (b"PK\x03\x04 but not a zip", "cannot be read as .npz"),
        (b"\x89HDF\r\n\x1a\n", "pass their folder"),
    ],
)
def test_a_format_that_cannot_be_told_is_a_clear_error(tmp_path, contents, message):
    (tmp_path / "a.pkl").write_bytes(contents)
    with pytest.raises(DataError, match=rf"a\.pkl: .*{message}"):
        open_dataset(tmp_path / "a.pkl")


def test_an_old_pickle_without_a_mark_is_known_by_its_suffix(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([], 0))
    with pytest.raises(DataError, match="audio: expected a width"):  # read as MISA's list, which is empty
        open_dataset(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("clips.npz", {"format": "csv"}, "format: expected 'auto' or one of"),
        ("clips.npz", {"format": "mult"}, "expected a pickle, as format 'mult' is, got a zip archive"),
        ("clips.npz", {"format": "csd"}, "pass their folder or a dict"),
        ("nothing.npz", {}, r"nothing\.npz: no such file"),
        ("", {}, "expected a folder with .csd or .pkl files"),
        ({}, {}, "at least one file"),
        ("clips.npz", {"modalities": ["text"]}, r"\['audio', 'lips'\], got \['text'\]"),
        ("clips.npz", {"format": "misa", "embedding": "nothing.npy"}, "embedding: nothing.npy: cannot be read"),
    ],
)
def test_wrong_requests_are_refused(npz, source, options, message):
    with pytest.raises(DataError, match=message):
        open_dataset(npz.parent / source if isinstance(source, str) else source, **options)


def test_a_dict_of_files_only_where_the_format_has_several(npz):
    with pytest.raises(DataError, match="format 'npz' is one file"):
        open_dataset({"a": npz, "b": npz})


@pytest.mark.parametrize("format", ["mult", "mmsa", "misa", "npz"])
def test_what_is_no_data_file_is_named_whatever_format_is_asked_for(tmp_path, format):
    (tmp_path / "a.pkl").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"a\.pkl: is a Git LFS pointer"):
        open_dataset(tmp_path / "a.pkl", format=format)


def test_a_folder_of_several_formats_asks_which(tmp_path):
    """As the script of MISA's authors leaves it."""
    sample = ((np.zeros(1, int), np.ones((1, 2)), np.ones((1, 3))), np.ones((1, 1)), "v[0]")
    for name in ("train", "dev"):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps([sample]))
    (tmp_path / "COVAREP.csd").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(DataError, match=r"several formats \(format 'csd': COVAREP\.csd, format 'misa': dev\.pkl train\.pkl\); say which"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, format="misa").channels == {"audio": 3, "vision": 2}
    with pytest.raises(DataError, match="format 'mult' is one file, got a folder"):
        open_dataset(tmp_path, format="mult")
    (tmp_path / "COVAREP.csd").unlink()
    with pytest.raises(DataError, match=r"expected a folder with \.csd files, got none"):
        open_dataset(tmp_path, format="csd")


def test_archives_and_texts_are_named_by_what_they_hold(tmp_path):
    """A download of several files, a checkpoint of torch, a table."""
    for names, seen in ((["mosi.pkl"], "'mosi.pkl'"), ([f"{i}.wav" for i in range(5)], r"'0.wav', '1.wav', '2.wav' and 2 more")):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        for format in ("auto", "npz", "mult"):
            with pytest.raises(DataError, match=rf"a\.npz: is a zip archive of other files \({seen}\), not an \.npz; unpack it first"):
                open_dataset(tmp_path / "a.npz", format=format)
    for name, text in (("a.csv", "id,label\nclip,1\n"), ("a.json", '{"a": [1]}'), ("a.TXT", "Grüße")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        for format in ("auto", "mult"):
            with pytest.raises(DataError, match=rf"{name}: is a text file \({name[1:]}\); no format is one"):
                open_dataset(tmp_path / name, format=format)


def test_a_reader_can_be_imported_by_itself():
    """The package of the data imports the readers, which import it."""
    subprocess.run([sys.executable, "-c", "import mea_graph.readers.mult"], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": None}, "source: expected a path, or a dict of paths by name, got None"),
        ({"source": ["a.npz", "b.npz"]}, "source: expected a path, or a dict of paths by name, got a list"),
        ({"source": {"train": b"a.pkl"}}, "source: expected a path, or a dict of paths by name, got b'a.pkl'"),
        ({"source": "a.npz", "cache_dir": 3}, "cache_dir: expected a path, got 3"),
    ],
)
def test_what_is_no_path_is_named(arguments, message):
    with pytest.raises(DataError) as error:
        open_dataset(**arguments)
    assert str(error.value) == message


def test_names_of_files_may_be_anything_that_the_system_takes(tmp_path):
    for name in ("日本 ö.npz", "a b\nc.npz", os.fsdecode(b"x\xff.npz")):
        folder = tmp_path / name.removesuffix(".npz")
        folder.mkdir()
        np.savez(tmp_path / "x.npz", audio=np.ones((2, 3, 1)), y=np.array([0.5, 1.5]))
        os.replace(tmp_path / "x.npz", folder / name)
        os.symlink(folder / name, tmp_path / "link.npz")
        assert [open_dataset(folder / name).y.tolist(), open_dataset(tmp_path / "link.npz").y.tolist()] == [[0.5, 1.5]] * 2
        assert not (tmp_path / "link.npz.mea-cache").exists()  # it is beside the file itself, once
        (tmp_path / "link.npz").unlink()
