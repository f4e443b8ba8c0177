"""A cache that is damaged, foreign, stale or in the way is told from a good one; and what a disk may refuse."""

import errno
import hashlib
import json
import os
import pickle
import stat
import time
from dataclasses import replace

import numpy as np
import pytest

from mea_graph.data import DataError, cache, open_dataset, store_files
from mea_graph.data import open as open_module
from mea_graph.data.ragged import Ragged
from mea_graph.data.store_files import open_store

from .caches import entries, write_store


@pytest.mark.parametrize("damage", ["truncate", "meta", "missing", "swap"])
def test_a_damaged_entry_is_named(source, damage):
    open_dataset(source)
    (entry,) = entries(source)
    if damage == "truncate":
        (entry / "x0.npy").write_bytes((entry / "x0.npy").read_bytes()[:-8])
    elif damage == "meta":
        (entry / "meta.json").write_text("{")
    elif damage == "missing":
        (entry / "ids.npy").unlink()
    else:
        os.replace(entry / "x1.npy", entry / "x0.npy")
    with pytest.raises(DataError, match=f"{entry.name}: the cache is damaged .* delete this folder"):
        open_dataset(source)


def test_a_changed_byte_anywhere_in_an_entry_is_found(dataset, tmp_path):
    """A damaged header raises nearly anything in numpy, and damaged numbers raise nothing at all."""
    write_store(dataset._store, tmp_path / "entry")
    rng = np.random.default_rng(0)
    for path in sorted((tmp_path / "entry").iterdir()):
        whole = path.read_bytes()
        for place in rng.integers(0, len(whole), 12):
            changed = bytearray(whole)
            changed[place] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(changed)
            try:  # a change of white space in the JSON is none
                assert path.name == "meta.json"
                assert json.loads(bytes(changed)) == json.loads(whole)
            except (AssertionError, ValueError):
                with pytest.raises(DataError, match="the cache is damaged"):
                    open_store(tmp_path / "entry")
        path.write_bytes(whole)
    assert open_store(tmp_path / "entry").hash == dataset.hash


def test_a_large_file_is_compared_where_it_is_newer_and_not_twice(dataset, tmp_path, monkeypatch):
    write_store(dataset._store, tmp_path / "entry")
    monkeypatch.setattr(store_files, "_SMALL", 8)  # now every file is large
    compared = []
    original = store_files._sum_of_file
    monkeypatch.setattr(store_files, "_sum_of_file", lambda path: compared.append(path.name) or original(path))
    written = time.time_ns() - 5 * 10**9  # what is compared is noted at the time of the clock, which must be later than all of this
    os.utime(tmp_path / "entry" / "meta.json", ns=(written, written))
    for path in (tmp_path / "entry").glob("*.npy"):
        os.utime(path, ns=(written - 10**9, written - 10**9))
    open_store(tmp_path / "entry")
    assert compared == []
    os.utime(tmp_path / "entry" / "x0.npy", ns=(written + 10**9, written + 10**9))  # as after a copy
    open_store(tmp_path / "entry")
    assert compared == ["x0.npy"]
    open_store(tmp_path / "entry")
    assert compared == ["x0.npy"]
    (tmp_path / "entry" / "x0.npy").write_bytes(bytes((tmp_path / "entry" / "x0.npy").stat().st_size))
    os.utime(tmp_path / "entry" / "x0.npy", ns=(time.time_ns() + 10**9,) * 2)
    with pytest.raises(DataError, match=r"x0\.npy has changed since it was written"):
        open_store(tmp_path / "entry")


@pytest.mark.parametrize("change", ["start", "decreasing", "rows", "time", "y", "split", "field"])
def test_arrays_that_do_not_fit_each_other_are_no_cache(dataset, tmp_path, change):
    """However they came to be there: with check sums that fit."""
    store = dataset._store
    audio = store.sequences["audio"]
    values, ptr, times = np.array(audio.values), audio.ptr.copy(), np.array(audio.time)
    if change == "start":
        ptr[0] = 1
    elif change == "decreasing":
        ptr[2] = ptr[3] + 1
    elif change == "rows":
        values, times = values[:-1], None
    elif change == "time":
        times = times[:-1]
    else:
        key = {"field": "fields"}.get(change, change)
        short = {"subject": store.fields["subject"][:-1]} if change == "field" else getattr(store, key)[:-1]
        store = replace(store, **{key: short})
    store = replace(store, sequences={**store.sequences, "audio": Ragged(values, ptr, times)})
    write_store(store, tmp_path / "entry")
    with pytest.raises(DataError, match=r"the cache is damaged \(.*(do not fit each other|5 values for 6 samples)"):
        open_store(tmp_path / "entry")


@pytest.mark.parametrize("damage", ["digest", "size", "time", "sum", "file", "list", "former"])
def test_a_record_that_is_damaged_or_of_an_earlier_form_gives_no_other_hash(source, damage):
    """A changed digest was taken for that of the contents: the same data had another hash, and were converted anew."""
    known, first = hashlib.sha256(source.read_bytes()).hexdigest(), open_dataset(source)
    path = source.with_name("clips.npz.mea-cache") / "source.json"
    (file, entry), whole = next(iter(json.loads(path.read_text()).items())), path.read_text()
    changed = {
        "digest": {file: [*entry[:2], "0" * 64, entry[3]]},
        "size": {file: [entry[0] + 1, *entry[1:]]},
        "time": {file: [entry[0], entry[1] + 1, *entry[2:]]},
        "sum": {file: [*entry[:3], entry[3] ^ 1]},
        "file": {file: None},
        "list": [entry],
        "former": {file: entry[:3]},
    }
    path.write_text(json.dumps(changed[damage]))
    again = open_dataset(source)
    assert first.hash == again.hash == known
    assert len(entries(source)) == 1
    assert path.read_text() == whole  # and is not hashed a second time


class TestKey:
    """What an entry is found by: each of these once served what belonged to another."""

    def test_a_source_of_the_same_size_and_another_time_is_read_again(self, tmp_path):
        for value in (1.0, 2.0):
            np.savez(tmp_path / "a.npz", audio=np.full((2, 3, 1), value))
            os.utime(tmp_path / "a.npz", ns=(int(value),) * 2)
            assert open_dataset(tmp_path / "a.npz")[0]["audio"].x.max() == value

    def test_another_format_of_the_cache_is_another_entry(self, source, monkeypatch):
        open_dataset(source)
        monkeypatch.setattr(cache, "FORMAT_VERSION", store_files.FORMAT_VERSION + 1)
        open_dataset(source)
        assert len(entries(source)) == 2

    def test_another_reader_is_another_entry(self, tmp_path):
        part = {"audio": np.ones((2, 3, 1)), "labels": np.ones(2), "regression_labels": np.zeros(2)}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"train": part}))
        assert open_dataset(tmp_path / "a.pkl", format="mult").y.tolist() == [1, 1]
        assert open_dataset(tmp_path / "a.pkl", format="mmsa").y.tolist() == [0, 0]
        assert open_dataset(tmp_path / "a.pkl", format="mult").y.tolist() == [1, 1]

    def test_files_of_one_name_and_size_are_told_apart_by_their_folder(self, tmp_path):
        """Two folds, say, whose files have the same names; and the two exchanged."""
        for folder, value in (("one", 1.0), ("two", 2.0)):
            (tmp_path / folder).mkdir()
            sample = ((np.zeros(1, int), np.ones((1, 2)), np.ones((1, 3))), np.array([[value]]), "v[0]")
            (tmp_path / folder / "part.pkl").write_bytes(pickle.dumps([sample]))
            os.utime(tmp_path / folder / "part.pkl", ns=(1, 1))
        for train, test in (("one", "two"), ("two", "one")):
            files = {"train": tmp_path / train / "part.pkl", "test": tmp_path / test / "part.pkl"}
            dataset = open_dataset(files, cache_dir=tmp_path / "cache")
            assert dataset.y.tolist() == [{"one": 1, "two": 2}[train], {"one": 1, "two": 2}[test]]
        assert len(entries(tmp_path / "cache" / "part.pkl")) == 2


class TestFolder:
    def test_a_refused_file_leaves_nothing(self, tmp_path):
        np.savez(tmp_path / "a.npz", audio=np.full((2, 3, 1), np.nan))
        with pytest.raises(DataError, match="finite"):
            open_dataset(tmp_path / "a.npz")
        with pytest.raises(DataError, match="finite"):
            open_dataset(tmp_path / "a.npz", cache_dir=tmp_path / "deep" / "cache")
        assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]

    def test_a_link_in_its_place_is_not_written_through(self, source, tmp_path):
        (tmp_path / "foreign").mkdir()
        (tmp_path / "foreign" / "source.json").write_text("mine")
        (tmp_path / "clips.npz.mea-cache").symlink_to("foreign")
        with pytest.raises(DataError, match=r"clips\.npz\.mea-cache: expected a folder for the cache, got a symbolic link"):
            open_dataset(source)
        assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["source.json"]
        assert (tmp_path / "foreign" / "source.json").read_text() == "mine"

    @pytest.mark.usefixtures("disk_that_syncs_no_folders")
    def test_a_disk_that_syncs_no_folders_is_none_the_worse(self, source):
        assert len(open_dataset(source)) == 5

    def test_a_disk_that_fails_is_reported(self, source, monkeypatch):
        original = os.fsync

        def synced(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EIO, "Input/output error")
            original(descriptor)

        monkeypatch.setattr(store_files.os, "fsync", synced)
        with pytest.raises(DataError, match="Input/output error"):
            open_dataset(source)

    def test_too_little_memory_is_said_so(self, source, monkeypatch):
        def read(source, label=None):
            raise MemoryError

        monkeypatch.setitem(open_module._READERS, "npz", read)
        with pytest.raises(DataError, match=r"clips\.npz: not enough memory to convert it: that takes about .* GiB, .* copy the cache"):
            open_dataset(source)

    @pytest.mark.parametrize(("form", "place"), [("npz", "npz._read_member"), ("mult", "unpickle._array"), ("csd", "csd._arrays")])
    def test_whichever_reader_lacks_it(self, source, tmp_path, monkeypatch, form, place):
        """One reader took it for a file that is damaged."""

        def short(*args):
            raise MemoryError("Unable to allocate 9 GiB")

        if form == "mult":
            source = tmp_path / "a.pkl"
            source.write_bytes(pickle.dumps({"train": {"audio": np.ones((2, 3, 1)), "labels": np.ones(2)}}))
        elif form == "csd":
            h5py = pytest.importorskip("h5py")
            source = tmp_path / "folder"
            source.mkdir()
            for name in ("audio", "labels"):
                with h5py.File(source / f"{name}.csd", "w") as file:
                    file[f"{name}/data/v/features"], file[f"{name}/data/v/intervals"] = np.ones((1, 1)), np.array([[0.0, 1.0]])
        assert len(open_dataset(source, cache_dir=tmp_path / "whole"))
        monkeypatch.setattr(f"mea_graph.readers.{place}", short)
        with pytest.raises(DataError, match="not enough memory to convert it: that takes about"):
            open_dataset(source)

    def test_too_little_memory_for_a_cache_is_no_damage(self, source, monkeypatch):
        open_dataset(source)

        def short(*args):
            raise MemoryError

        monkeypatch.setattr(store_files, "_load", short)
        with pytest.raises(DataError, match="not enough memory to open the cache, or it is damaged; close other programs, or delete"):
            open_dataset(source)

    def test_too_little_memory_for_an_embedding_is_said_so(self, tmp_path, monkeypatch):
        np.save(tmp_path / "e.npy", np.ones((2, 3)))

        def short(*args, **kwargs):
            raise MemoryError

        monkeypatch.setattr(open_module.np, "array", short)
        with pytest.raises(DataError, match=r"embedding: .*e\.npy: not enough memory"):
            open_module._load_array(tmp_path / "e.npy")
