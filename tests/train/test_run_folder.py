import multiprocessing
import sys
from pathlib import Path

import pytest

from mea_graph.data import DataError
from mea_graph.train.run_folder import RunFolder


def finish(folder):
    folder.checkpoint("last").parent.mkdir(parents=True)
    folder.checkpoint("last").touch()


def test_fresh_runs_count_up_and_others_use_the_latest():
    for number in (0, *range(1, 11)):
        folder = RunFolder.choose(None, [Path("configs/mosi.yaml")], fresh=True)
        assert folder.path == Path(f"runs/mosi/{number}")
        finish(folder)
    assert RunFolder.choose(None, [Path("mosi.yaml")], fresh=False).path == Path("runs/mosi/10")


def test_a_number_that_was_removed_is_not_used_again():
    for number in (0, 2):
        finish(RunFolder(f"runs/mosi/{number}"))
    assert RunFolder.choose(None, [Path("mosi.yaml")], fresh=True).path == Path("runs/mosi/3")
    assert RunFolder.choose(None, [Path("mosi.yaml")], fresh=False).path == Path("runs/mosi/2")


class TestClaims:
    """Two folders of one process stand for those of two: the system tells them apart by what was opened."""

    def choose(self, given=None, fresh=True):
        return RunFolder.choose(given, [Path("mosi.yaml")], fresh, trains=True)

    def test_a_numbered_folder_is_one_process_s(self):
        first, second = self.choose(), self.choose()
        assert (first.path, second.path) == (Path("runs/mosi/0"), Path("runs/mosi/1"))
        first.release()
        assert not first.path.exists()
        assert second.path.exists()
        second.release()
        assert not second.path.exists()

    def test_processes_that_look_at_once_do_not_share_a_number(self, monkeypatch):
        """Both see the same numbers; one makes the folder a moment before the other."""
        original = RunFolder._numbered.__func__
        seen = []

        def numbered(cls, name, fresh):
            found = original(cls, name, fresh)
            if not seen:
                seen.append(found)
                Path("runs/mosi/0").mkdir(parents=True)
            return found

        monkeypatch.setattr(RunFolder, "_numbered", classmethod(numbered))
        assert self.choose().path == Path("runs/mosi/1")

    @pytest.mark.parametrize("fresh", [True, False])
    def test_a_given_folder_is_refused_while_another_trains_in_it(self, fresh):
        first = self.choose("mine")
        with pytest.raises(DataError, match="run_dir: another process is training in mine; wait for it, or give another --run_dir"):
            self.choose("mine", fresh)
        assert RunFolder.choose("mine", [], fresh=False).path == Path("mine")  # who only evaluates may look
        first.release()
        again = self.choose("mine", fresh)
        (again.path / "config.yaml").touch()
        again.release()
        assert (again.path / "config.yaml").exists()

    def test_who_is_refused_claims_nothing(self):
        """After that the same process could not resume the run either."""
        finish(RunFolder("mine"))
        with pytest.raises(DataError, match="run_dir: mine holds a run"):
            self.choose("mine")
        self.choose("mine", fresh=False).release()

    @pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no process is forked here")
    def test_what_reads_the_samples_holds_no_claim(self):
        """A worker that outlived its run, such as one that ended in an error, kept the folder from the next run of the process."""
        first, context = self.choose("mine"), multiprocessing.get_context("fork")
        (first.path / "config.yaml").touch()
        forked, end = context.Event(), context.Event()
        worker = context.Process(target=lambda: (forked.set(), end.wait(30)))
        worker.start()
        assert forked.wait(30)
        first.release()
        again = self.choose("mine")
        end.set()
        worker.join(30)
        again.release()

    @pytest.mark.skipif(sys.platform == "win32", reason="nothing claims a folder there")
    def test_a_folder_that_is_not_in_its_place_any_more(self):
        folder, message = self.choose("mine"), "run_dir: mine was moved, removed or replaced while this run trained in it"
        folder.check_claim()
        folder.path.rename("moved")
        with pytest.raises(DataError, match=message):
            folder.check_claim()
        folder.path.mkdir()
        with pytest.raises(DataError, match=message):
            folder.check_claim()
        folder.path.rmdir()
        Path("moved").rename("mine")
        folder.check_claim()
        folder.release()
        folder.check_claim()  # nobody's any more

    def test_a_file_is_no_folder(self):
        Path("mine").touch()
        with pytest.raises(DataError, match="run_dir: expected a folder, got the file mine"):
            self.choose("mine")


def test_results_of_other_samples_have_other_names():
    folder = RunFolder("mine")
    names = [
        folder.result("predictions.csv").name,
        folder.result("predictions.csv", "all").name,
        folder.result("metrics.json", "test", "data/new take.npz", "abcdef0123").name,
        folder.result("predictions.csv", "valid", None, "abcdef0123").name,
    ]
    assert names == ["predictions.csv", "predictions_all.csv", "metrics_new-take_abcdef01.json", "predictions_events_abcdef01_valid.csv"]


def test_the_configuration_of_a_run_stands_for_its_folder():
    finish(RunFolder("moved/here"))
    assert RunFolder.choose(None, [Path("mosi.yaml"), Path("moved/here/config.yaml")], fresh=False).path == Path("moved/here")
    assert RunFolder.choose("other", [Path("moved/here/config.yaml")], fresh=True).path == Path("other")


def test_a_run_is_never_overwritten():
    finish(RunFolder("mine"))
    with pytest.raises(DataError, match="mine holds a run; resume it with --ckpt_path last"):
        RunFolder.choose("mine", [], fresh=True)


def test_processes_that_are_launched_use_the_folder_of_the_first(monkeypatch):
    chosen = RunFolder.choose(None, [], fresh=True)
    finish(chosen)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert RunFolder.choose(None, [], fresh=True).path == chosen.path


def test_checkpoints_by_name_and_by_path():
    folder = RunFolder("mine")
    finish(folder)
    assert folder.find_checkpoint("last") == folder.find_checkpoint("mine/checkpoints/last.ckpt")
    for wanted in (None, "best", "else.ckpt"):
        with pytest.raises(DataError, match="there is no checkpoint"):
            folder.find_checkpoint(wanted)
