"""A file is converted in little memory, in one piece of work that is shown where it takes long."""

import io
import os
import pickle
import sys
import tracemalloc

import numpy as np
import pytest

from mea_graph.data import DataError, MultimodalDataset, load_pickle, open_dataset, progress, ragged
from mea_graph.data import open as open_module
from mea_graph.readers.padded_splits import _span
from mea_graph.readers.unpickle import mapped_pickle

MEBIBYTE = 1 << 20


def mult(path, samples, steps, dtype="f4", protocol=4, infinite=False):
    """A MulT pickle of one modality that makes up nearly all of it, padded in front."""
    rng = np.random.default_rng(0)
    audio = rng.normal(size=(samples, steps, 74)).astype(dtype)
    for i, length in enumerate(rng.integers(steps // 2, steps + 1, samples)):
        audio[i, : steps - length] = 0
    if infinite:
        audio[:, -1, 3] = -np.inf
    path.write_bytes(pickle.dumps({"train": {"audio": audio, "labels": np.zeros((samples, 1, 1))}}, protocol))
    return audio


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("options", [{}, {"non_finite": "zero"}, {"non_finite": "drop"}], ids=str)
def test_a_conversion_takes_a_fraction_of_the_file_in_memory(tmp_path, dtype, options):
    """Also where every sample is mended; the arrays stay in the file, which the system can take from memory at any time."""
    audio = mult(tmp_path / "a.pkl", 32 if dtype == "f8" else 64, 1500, dtype, infinite=True)
    size = (tmp_path / "a.pkl").stat().st_size
    assert size > 25 * MEBIBYTE
    tracemalloc.start()
    try:
        dataset = open_dataset(tmp_path / "a.pkl", **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 5
    expected = np.where(np.isneginf(audio[-1]), 0, audio[-1]).astype(np.float32)
    if options.get("non_finite") == "drop":
        expected = expected[:-1]
    np.testing.assert_array_equal(dataset[len(audio) - 1]["audio"].x.numpy(), expected[(expected != 0).any(axis=1)])


@pytest.mark.parametrize("protocol", range(6))
def test_a_converted_file_is_what_it_is_in_memory(tmp_path, protocol, monkeypatch):
    """In pieces of a few samples, of one larger than a piece, and from arrays at any place in the file."""
    audio = mult(tmp_path / "a.pkl", 9, 300, protocol=protocol)
    audio[4] = 0
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"train": {"audio": audio, "labels": np.zeros((9, 1, 1))}}, protocol))
    for piece in (1, 1 << 18, 1 << 26):
        monkeypatch.setattr(ragged, "_PIECE", piece)
        dataset = open_dataset(tmp_path / "a.pkl", cache_dir=tmp_path / f"{piece}")
        assert dataset.lengths["audio"].tolist() == [int((x != 0).any(axis=1).sum()) for x in audio]
        for i, x in enumerate(audio):
            np.testing.assert_array_equal(dataset[i]["audio"].x.numpy(), x[(x != 0).any(axis=1)])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", ">f4", "?"])
def test_the_rows_that_hold_something(dtype):
    """A sign is not something; the smallest number is, in whichever of its bytes."""
    x = np.zeros((40, 3), dtype)
    assert _span(x) == (0, 0)
    assert _span(x[:0]) == (0, 0)
    if x.dtype.kind == "f":
        x[3, 1] = x[37, 2] = -0.0
        assert _span(x) == (0, 0)
        x[8, 2], x[30, 0] = np.nextafter(x[8, 2], x.dtype.type(1)), np.nan
    else:
        x[8, 2], x[30, 0] = -128 if dtype == "i1" else True, 1
    assert _span(x) == (8, 31)
    assert _span(x[:31]) == (8, 31)
    assert _span(x[8:]) == (0, 23)
    assert _span(np.asfortranarray(x)) == (8, 31)
    x[0, 0] = x[39, 2] = 1
    assert _span(x) == (0, 40)


def test_only_readers_leave_arrays_in_the_file(tmp_path):
    """What a user loads must not change with the file."""
    value = {"x": np.arange(1 << 15), "raw": bytes(1 << 17), "both": [bytearray(1 << 17)] * 2}
    for protocol in (4, 5):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
        ours, mapped = load_pickle(tmp_path / "a.pkl"), mapped_pickle(tmp_path / "a.pkl")
        for loaded in (ours, mapped):
            assert loaded["raw"] == value["raw"]
            assert type(loaded["raw"]) is bytes
            assert loaded["both"][0] == value["both"][0]
            assert type(loaded["both"][0]) is bytearray
            assert loaded["both"][0] is loaded["both"][1]
            np.testing.assert_array_equal(loaded["x"], value["x"])
        with open(tmp_path / "a.pkl", "r+b") as file:
            file.write(bytes((tmp_path / "a.pkl").stat().st_size))
        np.testing.assert_array_equal(ours["x"], value["x"])
        assert not mapped["x"].any()


def test_a_cut_file_is_refused_where_it_is_mapped(tmp_path):
    mult(tmp_path / "a.pkl", 4, 300)
    whole = (tmp_path / "a.pkl").read_bytes()
    (tmp_path / "a.pkl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="it ends early"):
        open_dataset(tmp_path / "a.pkl", format="mult")


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """Its hash, which is made beside the reading, would be that of other contents."""
    np.savez(tmp_path / "a.npz", audio=np.ones((2, 3, 1)))
    original = open_module._READERS["npz"]

    def read(source):
        dataset = original(source)
        os.utime(source, ns=(5, 5))
        return dataset

    with monkeypatch.context() as patch:
        patch.setitem(open_module._READERS, "npz", read)
        with pytest.raises(DataError, match=r"a\.npz: has changed while it was read"):
            open_dataset(tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert len(open_dataset(tmp_path / "a.npz")) == 2


class TestOverflow:
    """What float32 cannot hold is refused with its place, and numpy has nothing to add."""

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("outside", ["warn", "raise", "ignore"])
    @pytest.mark.parametrize("value", [1e300, -1e39, np.longdouble("1e400"), np.inf, np.nan])
    def test_in_values_and_times(self, value, outside):
        x = np.ones((3, 2), np.asarray(value).dtype)
        x[1, 1] = value
        with np.errstate(all=outside):
            with pytest.raises(DataError, match=r"a: sample '1': expected finite numbers, got .* in step 1, channel 1"):
                MultimodalDataset.from_arrays({"a": [np.ones((2, 2)), x]})
            with pytest.raises(DataError, match=r"a: sample '0': expected finite numbers, got .* in time of step 1"):
                MultimodalDataset.from_arrays({"a": [np.ones((3, 2))]}, time={"a": [x[:, 1]]})
            with pytest.raises(DataError, match="y: sample '1': expected finite numbers"):
                MultimodalDataset.from_arrays({"a": [np.ones((2, 2))] * 3}, y=x[:, 1])

    @pytest.mark.filterwarnings("error")
    def test_what_it_can_hold_is_kept(self):
        """Also where the sum of squares, by which broken values are looked for, overflows; and what becomes 0 is no fault."""
        large = np.array([[3e38, -3e38, 1e-300]])
        with np.errstate(all="raise"):
            dataset = MultimodalDataset.from_arrays({"a": [large]})
        assert dataset[0]["a"].x.tolist() == large.astype(np.float32).tolist()

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("statistics", [(1e39, 1.0), (0.0, 1e39), (0.0, 1e-60), (0.0, -1.0), (np.nan, 1.0)])
    def test_in_statistics(self, statistics):
        dataset = MultimodalDataset.from_arrays({"a": [np.ones((2, 1))]})
        with pytest.raises(DataError, match="statistics: a: expected finite means and standard deviations above 0"):
            dataset.standardize(statistics={"a": tuple([value] for value in statistics)})

    @pytest.mark.filterwarnings("error")
    def test_a_spread_that_float32_cannot_hold(self):
        """Such a channel was divided by 0 without a word, or overflowed."""
        tiny = np.array([[0.0], [1e-45]], np.float32)
        scaled = MultimodalDataset.from_arrays({"a": [tiny] * 40}).standardize()
        assert np.isfinite(scaled[0]["a"].x.numpy()).all()
        huge = np.array([[3e38], [3e38], [-3e38]], np.float32)
        dataset = MultimodalDataset.from_arrays({"a": [huge]})
        scaled = dataset.standardize()[0]["a"].x.numpy()
        np.testing.assert_allclose(scaled, np.array([[1], [1], [-2]]) / np.sqrt(2), rtol=1e-6)
        with pytest.raises(DataError, match=r"standardize: a: .* beyond float32"):
            dataset.standardize(statistics={"a": ([0.0], [0.01])})[0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def long_work(monkeypatch):
    """Everything takes long enough to be shown."""
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)


class TestProgress:
    def test_nothing_is_said_of_what_is_quick(self, tmp_path, capfd):
        mult(tmp_path / "a.pkl", 3, 20)
        open_dataset(tmp_path / "a.pkl")
        assert capfd.readouterr() == ("", "")

    def test_lines_say_what_is_done(self, tmp_path, long_work, capsys):
        mult(tmp_path / "a.pkl", 3, 20)
        open_dataset(tmp_path / "a.pkl")
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.splitlines() == ["a.pkl: reading train/audio, 0% (0 s)", "a.pkl: packing audio, 0% (0 s)"]
        open_dataset(tmp_path / "a.pkl")  # from the cache
        assert capsys.readouterr().err == ""

    def test_a_terminal_gets_a_bar(self, tmp_path, long_work, monkeypatch):
        pytest.importorskip("rich")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        mult(tmp_path / "a.pkl", 3, 20)
        open_dataset(tmp_path / "a.pkl")
        assert "a.pkl: packing audio" in terminal.getvalue()
        assert "━" in terminal.getvalue()
        assert progress._CURRENT.get() is None

    def test_a_terminal_without_rich_gets_lines(self, tmp_path, long_work, monkeypatch):
        monkeypatch.setitem(sys.modules, "rich.progress", None)
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        mult(tmp_path / "a.pkl", 3, 20)
        open_dataset(tmp_path / "a.pkl")
        assert "a.pkl: packing audio, 0% (0 s)" in terminal.getvalue().splitlines()

    def test_a_bar_ends_with_an_error(self, tmp_path, long_work, monkeypatch):
        rich = pytest.importorskip("rich.progress")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", Terminal())
        stopped = []
        monkeypatch.setattr(rich.Progress, "stop", lambda self: stopped.append(self))
        audio = mult(tmp_path / "a.pkl", 3, 20)
        audio[1, -1, 0] = np.nan
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"train": {"audio": audio, "labels": np.zeros((3, 1, 1))}}))
        with pytest.raises(DataError, match="expected finite numbers"):
            open_dataset(tmp_path / "a.pkl")
        assert stopped
