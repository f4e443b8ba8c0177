"""The cache is found again, follows its source, and is written whole or not at all."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from mea_graph import whole_files
from mea_graph.data import DataError, MultimodalDataset, open_dataset, store_files
from mea_graph.data import open as open_module
from mea_graph.data.store_files import open_store

from .caches import entries, write_store


def forbid(monkeypatch, *, reading=False, hashing=False):
    def never(*args, **kwargs):
        raise AssertionError("called although the cache should serve")

    if reading:
        monkeypatch.setitem(open_module._READERS, "npz", lambda source, label=None: never())
    if hashing:
        monkeypatch.setattr("mea_graph.data.cache._Known.hash", never)


def test_the_second_opening_neither_reads_nor_hashes(source, monkeypatch):
    first = open_dataset(source)
    forbid(monkeypatch, reading=True, hashing=True)
    second = open_dataset(source)
    for i in range(5):
        for name in ("audio", "lips"):
            torch.testing.assert_close(second[i][name].x, first[i][name].x, rtol=0, atol=0)
    assert second.hash == first.hash == hashlib.sha256(source.read_bytes()).hexdigest()
    assert isinstance(second._store.sequences["audio"].values.base, np.memmap)
    with pytest.raises(AssertionError, match="should serve"):
        open_dataset(source, label="y")  # other options, another entry: the reader is asked


def test_a_touched_source_is_hashed_but_not_read_again(source, monkeypatch):
    open_dataset(source)
    os.utime(source, ns=(1, 1))
    forbid(monkeypatch, reading=True)
    assert len(open_dataset(source)) == 5
    forbid(monkeypatch, hashing=True)  # its new time is recorded
    assert len(open_dataset(source)) == 5


def test_a_changed_source_is_read_again(source):
    before = open_dataset(source)
    np.savez(source, audio=np.ones((2, 3, 3)), y=np.zeros(2))
    after = open_dataset(source)
    assert (len(before), len(after)) == (5, 2)
    assert before.hash != after.hash
    assert len(entries(source)) == 2


def test_everything_survives_the_cache(dataset, tmp_path):
    write_store(dataset._store, tmp_path / "entry")
    again = MultimodalDataset(open_store(tmp_path / "entry"))
    assert again.hash == dataset.hash
    assert again.describe() == dataset.describe()
    assert (again.ids, again.label_names, again.notes) == (dataset.ids, dataset.label_names, dataset.notes)
    assert again.y.dtype == dataset.y.dtype
    assert {k: v.tolist() for k, v in again.fields.items()} == {k: v.tolist() for k, v in dataset.fields.items()}
    for left, right in zip(again, dataset, strict=True):
        for name in dataset.modalities:
            torch.testing.assert_close(left[name].x, right[name].x, rtol=0, atol=0)
        torch.testing.assert_close(left["audio"].time, right["audio"].time, rtol=0, atol=0)


def test_a_modality_without_any_step_survives_the_cache(tmp_path):
    data = MultimodalDataset.from_arrays({"a": [np.ones((2, 1))], "b": [np.zeros((0, 4))]}, time={"b": [[]]})
    write_store(data._store, tmp_path / "entry")
    assert tuple(MultimodalDataset(open_store(tmp_path / "entry"))[0]["b"].x.shape) == (0, 4)


def test_an_entry_holds_plain_files_only(source):
    open_dataset(source)
    (entry,) = entries(source)
    for file in entry.iterdir():
        if file.name == "meta.json":
            json.loads(file.read_text())
        else:
            assert np.load(file, allow_pickle=False).dtype.kind in "fiU"


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_full_disk_leaves_nothing_behind(source, monkeypatch, failing):
    calls, original = [], store_files._sync

    def sync(file):
        calls.append(file)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(file)

    monkeypatch.setattr(store_files, "_sync", sync)
    with pytest.raises(DataError, match=r"No space left on device.*cache_dir="):
        open_dataset(source)
    assert not source.with_name("clips.npz.mea-cache").exists()
    monkeypatch.setattr(store_files, "_sync", original)
    assert len(open_dataset(source)) == 5


def test_an_interruption_leaves_nothing_behind(source, monkeypatch):
    def interrupt(path, array):
        raise KeyboardInterrupt

    monkeypatch.setattr(store_files, "_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(source)
    assert not source.with_name("clips.npz.mea-cache").exists()


def test_what_a_killed_process_left_is_ignored_and_removed_later(source):
    root = source.with_name(source.name + ".mea-cache")
    for name, age in (("old", 2 * 24 * 3600), ("new", 60)):
        folder = root / f".writing-{name}"
        folder.mkdir(parents=True)
        (folder / "x0.npy").write_bytes(b"half")
        os.utime(folder, (time.time() - age, time.time() - age))
    assert len(open_dataset(source)) == 5
    assert not (root / ".writing-old").exists()
    assert (root / ".writing-new").exists()


def test_a_folder_that_cannot_be_written_asks_for_cache_dir(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="pass cache_dir="):
        open_dataset(source, cache_dir=tmp_path / "file")

    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(DataError, match=r"clips\.npz\.mea-cache: cannot be written \(Permission denied\); pass cache_dir="):
            open_dataset(source)
    assert len(open_dataset(source, cache_dir=tmp_path / "elsewhere")) == 5
    assert (tmp_path / "elsewhere" / "clips.npz.mea-cache").is_dir()
    assert not source.with_name("clips.npz.mea-cache").exists()


def test_a_cache_that_may_only_be_read_still_serves(source, monkeypatch):
    open_dataset(source)
    os.utime(source, ns=(1, 1))

    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert len(open_dataset(source)) == 5


def test_who_comes_second_takes_what_the_first_wrote(source, monkeypatch):
    original = os.rename

    def rename(temporary, final):
        if not Path(final).exists():
            original(temporary, final)
            Path(temporary).mkdir()
            (Path(temporary) / "ours").write_text("the slower one's")
        original(temporary, final)

    monkeypatch.setattr(store_files.os, "rename", rename)
    assert len(open_dataset(source)) == 5
    assert [p.name for p in entries(source)[0].iterdir() if p.name == "ours"] == []
    assert len(entries(source)) == 1


def test_a_temporary_folder_that_vanishes_while_it_is_looked_at_is_another_writers(source, monkeypatch):
    gone = source.with_name("clips.npz.mea-cache") / ".writing-by-another"
    monkeypatch.setattr(store_files.Path, "glob", lambda self, pattern: iter([gone]))
    assert len(open_dataset(source)) == 5


def test_many_at_once(source):
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: open_dataset(source), range(8)))
    assert len({d.hash for d in opened}) == 1
    assert all(d[0]["audio"].x.shape == (8, 3) for d in opened)
    assert len(entries(source)) == 1
    assert sorted(path.name for path in source.with_name("clips.npz.mea-cache").iterdir()) == [entries(source)[0].name, "source.json"]


def test_of_many_at_once_one_converts(source, monkeypatch):
    calls, original = [], open_module._READERS["npz"]

    def read(source, label=None):
        calls.append(source)
        time.sleep(0.2)
        return original(source)

    monkeypatch.setitem(open_module._READERS, "npz", read)
    with ThreadPoolExecutor(8) as pool:
        assert {len(d) for d in pool.map(lambda _: open_dataset(source), range(8))} == {5}
    assert len(calls) == 1


def test_a_disk_without_locks_converts_all_the_same(source, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert len(open_dataset(source)) == 5


def test_a_mapped_data_set_is_pickled_by_name_and_not_by_contents(tmp_path):
    np.savez(tmp_path / "big.npz", audio=np.ones((50, 200, 30), np.float32))
    dataset = open_dataset(tmp_path / "big.npz")
    data = pickle.dumps(dataset.subset([1, 2]))
    assert len(data) < 10_000
    assert pickle.loads(data)[1]["audio"].x.shape == (200, 30)


def test_a_cache_that_was_removed_is_named_where_a_worker_opens_it(source):
    pickled = pickle.dumps(open_dataset(source))
    shutil.rmtree(source.with_name("clips.npz.mea-cache"))
    with pytest.raises(DataError, match=r"x0\.npy: expected the cache of an open data set, got none; open the data set again"):
        pickle.loads(pickled)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_data_loader_workers_read_the_mapped_files(source, start):
    dataset = open_dataset(source).standardize()
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=start)
    batches = list(loader)
    assert [i for batch in batches for i in batch.id] == dataset.ids
    np.testing.assert_array_equal(torch.cat([b.x_dict["audio"] for b in batches]), torch.cat([dataset[i]["audio"].x for i in range(5)]))


@pytest.mark.skipif(sys.platform == "win32", reason="a lock of another kind")
def test_a_folder_that_goes_while_a_process_waits_is_made_again(tmp_path, monkeypatch):
    """A conversion that failed took its lock and its empty folder with it; who had waited for it then worked on without a lock, and a
    third process took that one's unfinished files for those of a killed one and removed them."""
    path, wait, went = tmp_path / "cache" / "converting.lock", whole_files._wait, []
    path.parent.mkdir()

    def and_goes(file):
        wait(file)
        if len(went) < 2:
            went.append(path.unlink())
            path.parent.rmdir()

    monkeypatch.setattr(whole_files, "_wait", and_goes)
    with whole_files.only_one(path) as alone:
        assert alone
        assert path.exists()
    assert len(went) == 2
    monkeypatch.setattr(whole_files.Path, "mkdir", lambda *a, **k: None)
    path.parent.rmdir()
    with whole_files.only_one(path) as alone:  # nobody lets it be made: then nobody waits
        assert not alone
