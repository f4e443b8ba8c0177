import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from mea_graph.data import DataError, open_dataset


def arrays(**changes):
    rng = np.random.default_rng(0)
    out = {
        "audio": rng.normal(size=(4, 6, 3)).astype(np.float32),
        "audio_len": np.array([6, 0, 2, 4]),
        "audio_time": np.tile(np.arange(6) / 50, (4, 1)),
        "lips": rng.normal(size=(4, 5, 2)),
        "label": np.array([2, 0, 1, 2]),
        "speaker": np.array(["ann", "bob", "ann", "eve"]),
        "part": np.array(["train", "train", "valid", "test"]),
        **changes,
    }
    return {name: value for name, value in out.items() if value is not None}


def write(path, **changes):
    np.savez(path, **arrays(**changes))
    return path


def test_everything_arrives(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.npz"), split="part")
    assert dataset.channels == {"audio": 3, "lips": 2}
    assert dataset.lengths["audio"].tolist() == [6, 0, 2, 4]
    assert dataset.lengths["lips"].tolist() == [5] * 4
    np.testing.assert_array_equal(dataset[2]["audio"].x.numpy(), arrays()["audio"][2, :2])
    np.testing.assert_allclose(dataset[3]["audio"].time.numpy(), np.arange(4) / 50, rtol=1e-6)
    assert dataset.y.tolist() == [2, 0, 1, 2]
    assert dataset.ids == ["0", "1", "2", "3"]
    assert dataset.split.tolist() == ["train", "train", "valid", "test"]
    assert list(dataset.fields) == ["speaker"]


def test_names_of_the_arrays_can_be_given(tmp_path):
    path = write(tmp_path / "a.npz", label=None, score=np.array([0.5, 1, 2, -1]), key=np.array(list("wxyz")))
    dataset = open_dataset(path, label="score", id="key")
    assert dataset.y.tolist() == [0.5, 1, 2, -1]
    assert dataset.y.dtype == np.float32
    assert dataset.ids == list("wxyz")


def test_words_as_labels(tmp_path):
    path = write(tmp_path / "a.npz", label=np.array(["no", "yes", "no", "yes"]))
    assert open_dataset(path).y.tolist() == [0, 1, 0, 1]
    assert open_dataset(path).label_names == ("no", "yes")
    assert open_dataset(path, label_names=["yes", "no"]).y.tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError, match=r"y: expected labels among \['yes'\], got \['no'\]"):
        open_dataset(path, label_names=["yes"])


def test_a_matrix_of_binary_labels_and_what_is_left_out(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.npz", label=np.eye(4, 3), extra=np.ones((4, 2))))
    assert dataset.y.tolist() == np.eye(4, 3).tolist()
    assert any("'extra'" in note for note in dataset.notes)


def test_no_labels(tmp_path):
    assert open_dataset(write(tmp_path / "a.npz", label=None)).y is None


def note(dataset, start):
    """The only note that begins so."""
    (found,) = [note for note in dataset.notes if note.startswith(start)]
    return found


def test_what_is_neither_sequence_nor_field_is_told_with_the_remedy(tmp_path):
    path = write(
        tmp_path / "a.npz",
        about=np.arange(12.0).reshape(4, 3),
        channels=np.array(list("abc")),
        rate=np.array(50),
        words=np.full((4, 2), "a"),
    )
    dataset = open_dataset(path)
    assert note(dataset, "array 'about'") == (
        "array 'about' of shape (4, 3) left out: neither sequences (N, T, d) nor one value a sample (N,), N = 4; "
        "static=['about'] makes it a modality of one step"
    )
    for name, shape in (("channels", "(3,)"), ("rate", "()"), ("words", "(4, 2)")):
        assert note(dataset, f"array '{name}' of shape {shape} left out").endswith("N = 4")
    assert list(dataset.fields) == ["speaker", "part"]
    assert "note: array 'about'" in dataset.describe()


def test_a_vector_a_sample_is_a_sequence_of_one_step(tmp_path):
    about = np.arange(12.0).reshape(4, 3)
    dataset = open_dataset(write(tmp_path / "a.npz", about=about), static=["about"])
    assert dataset.channels == {"audio": 3, "lips": 2, "about": 3}
    assert dataset.lengths["about"].tolist() == [1] * 4
    assert torch.cat([sample["about"].x for sample in dataset]).tolist() == about.tolist()
    assert not any("'about'" in note for note in dataset.notes)
    alone = open_dataset(write(tmp_path / "b.npz", audio=None, lips=None, audio_len=None, audio_time=None, about=about), static=["about"])
    assert alone.channels == {"about": 3}


def test_sequences_of_one_channel_are_known_by_their_lengths(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.npz", lips=np.ones((4, 5)), lips_len=np.array([5, 1, 0, 2]), lips_time=np.zeros((4, 5))))
    assert dataset.channels["lips"] == 1
    assert dataset.lengths["lips"].tolist() == [5, 1, 0, 2]
    assert dataset.has_time("lips")
    assert "lips_len" in note(dataset, "array 'lips' of shape (4, 5) is taken as sequences of one channel")


def test_an_array_with_lengths_that_it_cannot_have_is_no_sequence(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.npz", lips=np.ones((4, 5)), lips_len=np.array([6, 1, 0, 2])))
    assert dataset.modalities == ("audio",)
    assert "left out" in note(dataset, "array 'lips' of shape (4, 5)")


def test_an_array_called_split_is_the_split(tmp_path):
    split = np.array(["Train", "val", "dev", "test"])
    dataset = open_dataset(write(tmp_path / "a.npz", split=np.array(["train", "valid", "valid", "test"])))
    assert dataset.split.tolist() == ["train", "valid", "valid", "test"]
    assert (dataset.select("val").ids, list(dataset.fields)) == (["1", "2"], ["speaker", "part"])
    assert not any("split" in note for note in dataset.notes)
    dataset = open_dataset(write(tmp_path / "b.npz", split=np.array([b"Train", b"dev", b"dev", b"test"])))
    assert dataset.split.tolist() == ["train", "valid", "valid", "test"]
    assert note(dataset, "split: ") == "split: 'Train' is 'train', 'dev' is 'valid'"
    apart = open_dataset(write(tmp_path / "c.npz", split=split))  # two parts of one meaning are not thrown together
    assert apart.split.tolist() == split.tolist()
    assert "kept apart" in note(apart, "split: ")


def test_a_misspelt_name_in_an_array_called_split_is_told(tmp_path):
    """The array became a field, and training said that there was no split."""
    path = write(tmp_path / "a.npz", split=np.array(["train", "trian", "valid", "test"]))
    with pytest.warns(UserWarning, match=r"split: 'trian' of sample '1' is taken as a name of its own \(did you mean 'train'\?\)"):
        assert open_dataset(path).split.tolist() == ["train", "trian", "valid", "test"]


def test_an_array_called_split_that_holds_something_else_is_a_field(tmp_path):
    path = write(tmp_path / "a.npz", split=np.array([0, 1, 2, 2]))
    assert open_dataset(path).split is None
    assert open_dataset(path).fields["split"].tolist() == [0, 1, 2, 2]
    assert "split='split'" in note(open_dataset(path), "array 'split' is a field")
    folds = write(tmp_path / "b.npz", split=np.array(["fold 1", "train", "test", "test"]))
    assert open_dataset(folds).split is None
    assert open_dataset(folds, split="split").split.tolist() == ["fold 1", "train", "test", "test"]
    part = open_dataset(write(tmp_path / "c.npz", split=np.array(["train", "test"] * 2)), split="part")
    assert part.split.tolist() == ["train", "train", "valid", "test"]


@pytest.mark.parametrize("name", ["y", "labels", "target", "targets"])
def test_names_of_the_labels(tmp_path, name):
    dataset = open_dataset(write(tmp_path / "a.npz", label=None, **{name: np.array([2, 0, 1, 2])}))
    assert dataset.y.tolist() == [2, 0, 1, 2]
    assert name not in dataset.fields


def test_of_two_arrays_of_labels_the_plainer_name_counts(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.npz", target=np.zeros(4)))
    assert dataset.y.tolist() == [2, 0, 1, 2]
    assert "label= takes target" in note(dataset, "labels are those of 'label'")
    with pytest.raises(DataError, match=r"label: expected one array, got \['labels', 'target'\]"):
        open_dataset(write(tmp_path / "b.npz", label=None, target=np.zeros(4), labels=np.zeros(4)))


def test_without_labels_the_names_that_labels_may_have_are_told(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.npz", label=None, mood=np.array([2, 0, 1, 2])))
    assert note(dataset, "no labels") == "no labels: none of the arrays is called label, y, labels, target, targets; label= names another"
    assert open_dataset(tmp_path / "a.npz", label="mood").y.tolist() == [2, 0, 1, 2]


def test_whole_numbers_that_are_floats_are_told(tmp_path):
    """By what can be done of a file, `labels=`; and not at all where it is said what they are."""
    path = write(tmp_path / "a.npz", label=np.array([2.0, 0, 1, 2]))
    whole = "labels: whole numbers, taken as regression; labels='classes' (on the command line data.reader.labels) takes them as classes"
    assert open_dataset(path).notes == (whole,)
    assert open_dataset(path, labels="regression").notes == open_dataset(path, labels="classes").notes == ()
    assert open_dataset(path, labels="classes").y.tolist() == [2, 0, 1, 2]
    assert open_dataset(write(tmp_path / "b.npz", label=np.array([2.0, 0, 1, 2.5]))).notes == ()


@pytest.mark.parametrize("name", ["label", "y", "target"])
def test_labels_of_three_axes_are_no_modality(tmp_path, name):
    """What is to be found out would be among what the model is given."""
    path = write(tmp_path / "a.npz", **{"label": None, name: np.array([0.5, 1, 2, -1])[:, None, None]})
    dataset = open_dataset(path)
    assert dataset.modalities == ("audio", "lips")
    assert dataset.y.tolist() == [0.5, 1, 2, -1]
    pairs = np.eye(2, dtype=int)[[[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]]]  # (no, yes), as MulT writes IEMOCAP
    assert open_dataset(write(tmp_path / "b.npz", **{"label": None, name: pairs})).y.tolist() == pairs[:, :, 1].tolist()
    message = rf"label: array '{name}' holds labels by its name: expected shape \(N,\), .* got \(4, 5, 3\); give a modality another name"
    with pytest.raises(DataError, match=message):
        open_dataset(write(tmp_path / "c.npz", **{"label": None, name: np.ones((4, 5, 3))}))
    other = open_dataset(path, label="speaker")
    assert (other.modalities, other.label_names) == (("audio", "lips"), ("ann", "bob", "eve"))
    assert f"array '{name}' of shape (4, 1, 1) left out: its name is one of labels" in note(other, "array")


def test_an_array_that_is_named_as_the_label_is_no_modality(tmp_path):
    dataset = open_dataset(write(tmp_path / "a.npz", label=None, mood=np.arange(4.0)[:, None, None]), label="mood")
    assert (dataset.modalities, dataset.y.tolist()) == (("audio", "lips"), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"audio_len": np.array([7, 0, 2, 4])}, {}, r"audio_len: expected integers in \[0, 6\]"),
        ({"audio_len": np.array([1.0, 0, 2, 4])}, {}, "audio_len: expected integers"),
        ({"audio_len": np.array([1, 2])}, {}, "audio_len"),
        ({"audio_time": np.ones((4, 5))}, {}, r"audio_time: expected shape \(4, 6\)"),
        ({"lips": np.ones((3, 5, 2))}, {}, "lips: expected 4 sequences"),
        ({"lips": np.full((4, 5, 2), np.nan)}, {}, "lips: sample '0'"),
        ({"label": np.array([1, 2])}, {}, "y: expected shape"),
        ({"y": np.arange(4)}, {}, r"label: expected one array, got \['label', 'y'\]"),
        ({}, {"label": "mood"}, "label: expected one of the arrays .*'mood'"),
        ({}, {"split": "fold"}, "split: expected one of the arrays"),
        ({}, {"label_names": ["a"]}, "label_names: expected 3 names"),
        ({}, {"static": ["lips"]}, r"static: expected 'lips' to be an array of shape \(N, d\), got shape \(4, 5, 2\)"),
        ({}, {"static": ["about"]}, "static: expected 'about' .* got no such array"),
        ({"audio": np.ones((4, 6)), "lips": None, "audio_len": None}, {}, r"of one channel: array\[:, :, None\]; .* static="),
        ({}, {"lable": "label"}, "options of format 'npz': .*'lable'"),
        ({"audio": None, "lips": None}, {}, "expected an array of shape"),
        ({"speaker": np.array([{}, 1, 2, 3], dtype=object)}, {}, "without unpickling"),
    ],
)
def test_a_wrong_file_is_refused_by_array(tmp_path, changes, options, message):
    with pytest.raises(DataError, match=message):
        open_dataset(write(tmp_path / "a.npz", **changes), **options)


def test_a_damaged_file_is_refused(tmp_path):
    path = write(tmp_path / "a.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
        open_dataset(path)
    flipped = bytearray(whole)
    flipped[200] ^= 255
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
        open_dataset(path)


def test_real_recordings(recording, tmp_path):
    letters = open_dataset(recording("avletters.npz"), cache_dir=tmp_path)
    assert letters.channels == {"audio": 26, "lips": 192}
    assert (len(letters), letters.y.max(), letters.ids[0]) == (780, 25, "A1_Anya")
    assert (letters.lengths["lips"].min(), letters.lengths["lips"].max()) == (12, 40)
    stress = open_dataset(recording("stress_predict_60s.npz"), cache_dir=tmp_path)
    assert len(stress.modalities) == 5
    assert np.mean(stress.lengths["ibi"] == 0) == pytest.approx(0.116, abs=0.001)
    scaled = stress.standardize(by="subject").where("subject", isin=[stress.fields["subject"][0]])
    steps = np.concatenate([scaled[i]["hr"].x.numpy() for i in range(len(scaled))])
    assert (steps.mean(), steps.std()) == pytest.approx((0, 1), abs=1e-4)


def header(shape, dtype="<f4"):
    """The beginning of an .npy file that says it holds this much."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((4, 2**58, 3), "<f4", "audio.npy: expected 13835058055282163712 bytes .* got 16"),
        ((4, 2**30, 3), "<f4", "audio.npy: expected 51539607552 bytes"),
        ((2**60,), "<U0", "audio.npy: expected 0 bytes for <U0"),
        ((2, 1), "|O", "without unpickling"),
    ],
)
def test_an_array_that_claims_more_than_it_holds_takes_no_memory(tmp_path, shape, dtype, message):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("audio.npy", header(shape, dtype) + bytes(16))
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"a\.npz: {message}|a\.npz: .*{message}"):
        open_dataset(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_an_archive_that_claims_more_than_deflate_can_shrink_is_refused(tmp_path):
    path = write(tmp_path / "a.npz")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")  # the directory's last entry: compressed and true size at 20 and 24
    data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz: expected at most 1032 bytes of arrays for a byte of the file, got 429"):
        open_dataset(path)


def test_samples_of_nothing_are_bounded_by_the_file(tmp_path):
    np.savez(tmp_path / "many.npz", a=np.zeros((10**7, 0, 3), np.float32))
    with pytest.raises(DataError, match=r"many\.npz: .*expected at most 65536 samples in a file of its size, got 10000000"):
        open_dataset(tmp_path / "many.npz")


def test_every_sample_has_its_own_times(tmp_path):
    times = np.arange(12.0).reshape(2, 6)
    np.savez(tmp_path / "a.npz", audio=np.ones((2, 6, 1)), audio_len=np.array([2, 3]), audio_time=times)
    dataset = open_dataset(tmp_path / "a.npz")
    assert [sample["audio"].time.tolist() for sample in dataset] == [[0, 1], [6, 7, 8]]


def test_lengths_may_have_the_name_that_mmsa_gives_them(tmp_path):
    """They became a field, and the padding steps."""
    x, lengths = np.ones((3, 5, 2)), np.array([5, 0, 2])
    np.savez(tmp_path / "x.npz", audio=x, audio_lengths=lengths, y=np.arange(3.0) / 2)
    dataset = open_dataset(tmp_path / "x.npz")
    assert dataset.lengths["audio"].tolist() == [5, 0, 2]
    assert dataset.notes == ("audio: true lengths are those of 'audio_lengths'",)
    np.savez(tmp_path / "both.npz", audio=x, audio_len=lengths[::-1].copy(), audio_lengths=lengths, y=np.arange(3.0) / 2)
    assert open_dataset(tmp_path / "both.npz").lengths["audio"].tolist() == [2, 0, 5]


def test_values_that_a_field_cannot_hold_are_left_out_and_noted(tmp_path):
    when = np.array(["2020-01-01", "2020-01-02"], "M8[D]")
    np.savez(tmp_path / "x.npz", audio=np.ones((2, 5, 2)), y=np.array([0, 1]), when=when)
    dataset = open_dataset(tmp_path / "x.npz")
    assert dataset.notes == ("array 'when' of shape (2,) left out: its values are neither numbers nor text, but datetime64[D]",)
    assert not dataset.fields


LENGTHS = np.array([3, 5])
THERE = np.arange(5) < LENGTHS[:, None]


@pytest.mark.parametrize("pad", [0.0, np.nan])
@pytest.mark.parametrize("called", ["audio_length", "len_audio", "Audio_Lens", "audio-len", "audiolens", "audio_lenghts", "adio_len"])
def test_lengths_of_another_name_are_refused_where_padding_follows(tmp_path, called, pad):
    """They became a field, and the padding became steps."""
    x = np.where(THERE[:, :, None], np.ones((2, 5, 2)), pad)
    for lengths in (LENGTHS, LENGTHS.astype(float)):
        np.savez(tmp_path / "a.npz", audio=x, **{called: lengths}, lips=np.ones((2, 4, 1)), label=np.array([0, 1]))
        why = "as 'audio' holds nothing but zeros or NaN beyond them"
        expected = rf"a\.npz: {called}: expected true lengths \(N,\) to be called 'audio_len', {why}; got '{called}'"
        with pytest.raises(DataError, match=expected):
            open_dataset(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", audio=x, audio_len=LENGTHS, lips=np.ones((2, 4, 1)), label=np.array([0, 1]), **{called: LENGTHS})
    assert open_dataset(tmp_path / "a.npz").notes == ()  # it is a field, since the lengths are there


@pytest.mark.parametrize("called", ["audio_length", "Audio_Lens", "audio_lenghts", "adio_len"])
def test_what_may_be_lengths_is_a_field_with_a_warning(tmp_path, called):
    """Padding may be anything; and a camera may have lenses."""
    np.savez(tmp_path / "a.npz", audio=np.ones((2, 5, 2)), **{called: LENGTHS}, label=np.array([0, 1]))
    said = f"audio: every sample has 5 steps, since {called!r} is a field; true lengths are called 'audio_len'"
    for _ in "converted", "from the cache":
        with pytest.warns(UserWarning, match="true lengths are called") as caught:
            dataset = open_dataset(tmp_path / "a.npz")
        assert [str(warning.message) for warning in caught] == [said]
        assert dataset.notes == (said,)
        assert dataset.fields[called].tolist() == LENGTHS.tolist()


def test_a_mask_or_times_of_another_name_are_told(tmp_path):
    """They were left out, with a note alone: the padding became steps."""
    x = np.ones((2, 5, 2)) * THERE[:, :, None]
    for mask in (THERE, ~THERE, THERE.astype(np.float32)):
        np.savez(tmp_path / "a.npz", audio=x, audio_mask=mask, label=np.array([0, 1]))
        with pytest.raises(DataError, match=r"audio_mask: expected true lengths \(N,\) in place of a mask to be called 'audio_len'"):
            open_dataset(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", audio=np.ones((2, 5, 2)), audio_mask=THERE, audio_times=np.ones((2, 5)), label=np.array([0, 1]))
    with pytest.warns(UserWarning, match="are called") as caught:
        open_dataset(tmp_path / "b.npz")
    assert [str(warning.message) for warning in caught] == [
        "audio: every sample has 5 steps, since 'audio_mask' is left out; true lengths are called 'audio_len'",
        "audio: array 'audio_times' is left out; times are called 'audio_time'",
    ]


@pytest.mark.filterwarnings("error")
def test_names_that_only_look_like_lengths_are_fields(tmp_path):
    """By their values, or by a word that is another one."""
    fields = {
        "audio_length": np.array([3.52, 4.1]),  # seconds
        "lips_length": np.array([120, 95]),  # more than there are steps
        "audio_level": np.array([1, 2]),
        "audio_line": np.array([1, 2]),
        "lips_lens": np.array([5, 5]),  # as if there were none
        "length": np.array([3, 5]),
        "masks": np.array([0, 1]),
        "audio_mask": np.array([0, 1]),
        "audio_time": np.ones((2, 5)),
    }
    np.savez(tmp_path / "a.npz", audio=np.ones((2, 5, 2)), lips=np.ones((2, 5, 1)), label=np.array([0, 1]), **fields)
    dataset = open_dataset(tmp_path / "a.npz")
    assert set(dataset.fields) == fields.keys() - {"audio_time"}
    assert dataset.notes == ()


def test_lengths_of_steps_without_channels_take_no_memory(tmp_path):
    """Nothing is stored of such steps, however many a file claims."""
    np.savez(tmp_path / "a.npz", audio=np.zeros((2, 2**40, 0), np.float32), audio_lens=LENGTHS, lips=np.ones((2, 4, 1)))
    with pytest.raises(DataError, match="audio: expected a width of at least 1, got width 0"):
        open_dataset(tmp_path / "a.npz")
