"""Files are whole or not there, also where the disk is full."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch

from mea_graph import whole_files
from mea_graph.data import DataError
from mea_graph.studies.records import read_records
from mea_graph.train.reports import write_json
from mea_graph.train.whole_checkpoints import WholeCheckpoints
from mea_graph.train.whole_files import write_whole

from .commands import SMALL_GRU, data_of, error_of, run


class FullDisk:
    """Takes half of what it is given, as a disk does that is full then."""

    def __init__(self, file, name):
        self.file, self.name = file, name

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        self.file.write(bytes(content)[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def full(monkeypatch):
    """Makes the disk full for files of these names."""

    def fill(*names):
        def opened(path, mode):
            file = open(path, mode)  # noqa: SIM115
            return FullDisk(file, path) if Path(path).name.removesuffix(".writing") in names else file

        monkeypatch.setattr(whole_files, "open", opened, raising=False)

    return fill


@pytest.mark.parametrize("content", ["after", b"after", memoryview(b"after")])
def test_a_file_is_made_or_replaced_in_its_folder(content):
    for _ in range(2):
        write_whole("new/file", content)
        assert Path("new/file").read_text() == "after"
        assert [path.name for path in Path("new").iterdir()] == ["file"]


def test_what_was_there_stays(full):
    Path("file.json").write_text("before")
    full("file.json")
    with pytest.raises(DataError, match=r"file\.json: the file could not be written .*No space left.*; make room and do it again"):
        write_json(Path("file.json"), {"a": 1})
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("file.json", "before")]


def test_the_records_of_a_study_stay(full):
    """The last line, cut off by a crash, is dropped from the file; the others are hours of work."""
    Path("runs.jsonl").write_text('{"id": "a"}\n{"id": "b"')
    full("runs.jsonl")
    with pytest.raises(DataError, match="No space left"):
        read_records(Path("runs.jsonl"))
    assert Path("runs.jsonl").read_text().startswith('{"id": "a"}\n')


def test_a_run_can_go_on_after_a_full_disk(classes_source, full, capsys):
    words = [*data_of(classes_source), *SMALL_GRU]
    run("fit", *words, "--run_dir", "run", "--trainer.max_epochs", "1")
    predict = ["predict", "--ckpt", "run", "--data", classes_source["source"], "--output", "run/predictions.csv"]
    for command in (["test", "--config", "run/config.yaml"], predict):
        run(*command)
    before = {name: Path("run", name).read_bytes() for name in ("config.yaml", "metrics.json", "predictions.csv")}
    full(*before)
    resume = ["fit", "--config", "run/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    for command in (resume, ["test", "--config", "run/config.yaml"], predict):
        assert "the file could not be written" in error_of(capsys, *command)
    assert {name: Path("run", name).read_bytes() for name in before} == before
    full()
    run(*resume)
    assert json.loads(before["metrics.json"])["samples"]["test"] == 12


@pytest.mark.usefixtures("disk_that_syncs_no_folders")
def test_a_disk_that_syncs_no_folders_takes_checkpoints():
    WholeCheckpoints().save_checkpoint({"x": torch.ones(3)}, "run/last.ckpt")
    assert [path.name for path in Path("run").iterdir()] == ["last.ckpt"]
    assert torch.equal(torch.load("run/last.ckpt", weights_only=True)["x"], torch.ones(3))


def test_who_writes_the_same_file_at_once_waits(tmp_path, monkeypatch):
    """Two commands with one `--output` wrote into one temporary file: a mixture, and an error of the slower one."""
    place, original, others = tmp_path / "out.csv", os.fsync, []

    def synced(descriptor):
        if not others:
            others.append(threading.Thread(target=write_whole, args=(place, "second")))
            others[0].start()
            others[0].join(0.3)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    write_whole(place, "the first")
    others[0].join()
    assert place.read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_disk_that_fails_is_told(monkeypatch):
    def synced(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", synced)
    with pytest.raises(DataError, match="Input/output error"):
        WholeCheckpoints().save_checkpoint({"x": torch.ones(3)}, "run/last.ckpt")
    assert not list(Path("run").iterdir())


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path):
    with pytest.raises(DataError, match="expected a file to write, got a folder; give the name of a file in it"):
        write_whole(tmp_path, "1")
    assert not list(tmp_path.parent.glob("*.writing"))
