"""The numbers of a study: missing modalities, disentanglement, tables, records."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from mea_graph.data import DataError
from mea_graph.nn import MEAOutput
from mea_graph.studies import disentanglement as measures
from mea_graph.studies.evaluate import Seen, evaluate, which_missing
from mea_graph.studies.recipe import open_data
from mea_graph.studies.records import append_record, read_records
from mea_graph.studies.tables import comparison_table, holm, mean_and_sd, paired_p, scores_by_row, shown_metrics
from mea_graph.train import MEAModule
from mea_graph.train.reports import cell

MODALITIES = ["text", "audio", "vision"]


# which samples miss what


def test_who_misses_at_a_share_misses_at_every_larger_one():
    rng = np.random.default_rng(0)
    draw, has = rng.random((4000, 3)), rng.random((4000, 3)) > 0.2
    for which in (*MODALITIES, "any"):
        lost = [which_missing(draw, has, MODALITIES, which, p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert all((few <= many).all() for few, many in itertools.pairwise(lost))
        assert not lost[0].any()
        if which != "any":
            assert [part.mean() for part in lost] == pytest.approx([0, 0.25 / 3, 0.5 / 3, 0.75 / 3, 1 / 3], abs=0.01)
            assert lost[-1].sum(1).tolist() == [1] * 4000
    left = has & ~which_missing(draw, has, MODALITIES, "any", 1.0)
    assert left.sum(1).tolist() == has.any(1).astype(int).tolist()


@pytest.fixture(scope="module")
def trained():
    """An untrained MEA will do, and its data."""
    torch.manual_seed(0)
    data = open_data({"events": {"num_samples": 120, "missing_rate": 0.2}, "batch_size": 8})
    options = {"channels": 8, "hidden_channels": 8, "heads": 2, "exclusive": {"num_layers": 1}}
    return MEAModule(data.in_channels, "regression", 1, **options).eval(), data


def test_a_share_of_nothing_is_the_whole_and_one_is_a_modality_that_is_not_there(trained):
    module, data = trained
    scores = evaluate(module, data, [0.0, 0.5, 1.0], seed=0)
    assert set(scores.missing) == {*MODALITIES, "any"}
    for shares in scores.missing.values():
        assert shares["0"] == scores.whole
        assert shares["0"] != shares["0.5"] != shares["1"]
        assert all(math.isfinite(value) for found in shares.values() for value in found.values())
    # the same by hand: the audio of every test sample cut away
    part = data.parts["test"]
    store = data.dataset
    predictions, targets = [], []
    for index in part:
        sample = store[index]
        x = {m: sample[m].x if m != "audio" else sample[m].x[:0] for m in MODALITIES}
        where = {m: torch.zeros(len(value), dtype=torch.long) for m, value in x.items()}
        with torch.no_grad():
            predictions.append(module(x, where, batch_size=1).prediction[0, 0].double())
        targets.append(sample.y[0].double())
    error = (torch.stack(predictions) - torch.stack(targets)).abs().mean().item()
    assert scores.missing["audio"]["1"]["mae"] == pytest.approx(error, rel=1e-5)


def test_test_samples_are_read_once_and_missing_depends_on_the_seed(trained, monkeypatch):
    module, data = trained
    read = []
    original = type(data.dataset).__mro__[1].__getitem__
    monkeypatch.setattr(type(data.dataset).__mro__[1], "__getitem__", lambda self, i: read.append(int(self._rows[i])) or original(self, i))
    scores = [evaluate(module, data, [0.5], seed).missing["any"]["0.5"] for seed in (0, 0, 1)]
    assert sorted(read) == sorted(list(data.parts["test"]) * 3)
    assert scores[0] == scores[1] != scores[2]


# disentanglement


def test_probe_tells_what_can_be_told_and_no_more():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 200)
    apart = rng.normal(size=(600, 5)) + 10 * y[:, None]
    alike = rng.normal(size=(600, 5))
    half = rng.permutation(600) < 300
    assert measures._probe(apart[half], y[half], apart[~half], y[~half]) > 0.99
    assert measures._probe(alike[half], y[half], alike[~half], y[~half]) == pytest.approx(1 / 3, abs=0.08)


def output_of(exclusive, agnostic, present):
    return MEAOutput(None, exclusive, agnostic, present, None, None, None, {}, [], {}, [], {})


def test_dependence_is_the_papers_and_its_normalised_form():
    rng = np.random.default_rng(0)
    e, a = (torch.as_tensor(rng.normal(size=(50, 3))) for _ in range(2))
    there = torch.arange(50) < 40
    found = measures._dependence(measures._vectors([output_of({"m": e}, {"m": a}, {"m": there})]), ["m"])
    n = 40
    centre = np.eye(n) - 1 / n
    kernels = [centre @ (h[:40] @ h[:40].T).numpy() @ centre for h in (e, a)]
    assert found[0] == pytest.approx(np.trace(kernels[0] @ kernels[1]) / (n - 1) ** 2)
    assert found[1] == pytest.approx(np.sum(kernels[0] * kernels[1]) / np.linalg.norm(kernels[0]) / np.linalg.norm(kernels[1]))
    assert measures._dependence(measures._vectors([output_of({"m": e}, {"m": e}, {"m": there})]), ["m"])[1] == pytest.approx(1)


class Oracle(torch.nn.Module):
    """Its exclusive space holds the private latents, its agnostic space the shared ones."""

    device = torch.device("cpu")

    def __init__(self, data):
        super().__init__()
        self.data, self.queue = data, []

    def representations(self, samples):
        latents = self.data.dataset.latents
        present = {m: torch.as_tensor(self.data.dataset.lengths[m][samples] > 0) for m in MODALITIES}
        exclusive = {m: torch.as_tensor(latents.private[m][samples] + 10 * i).float() @ torch.eye(2, 4) for i, m in enumerate(MODALITIES)}
        agnostic = {m: torch.as_tensor(latents.shared[samples]).float() @ torch.eye(2, 4) for m in MODALITIES}
        return output_of(exclusive, agnostic, present)


def test_true_latents_are_found_where_they_are(monkeypatch, tmp_path):
    data = open_data({"events": {"num_samples": 600}, "batch_size": 32})
    oracle = Oracle(data)
    parts = {part: Seen([oracle.representations(rows)], rows.tolist()) for part, rows in data.parts.items()}
    monkeypatch.setattr(measures, "_look", lambda module, data: parts["train"])
    scores = measures.disentanglement(oracle, data, parts["test"], tmp_path / "x" / "drawing.npz")
    assert scores["modality_from_exclusive"] > 0.99
    assert scores["modality_from_agnostic"] == pytest.approx(scores["modality_by_chance"], abs=0.05)
    assert scores["shared_from_agnostic"] == pytest.approx(1, abs=1e-3)
    assert scores["private_from_exclusive"] == pytest.approx(1, abs=1e-3)
    assert abs(scores["private_from_agnostic"]) < 0.1
    assert abs(scores["shared_from_exclusive"]) < 0.1
    drawing = measures.read_drawing(tmp_path / "x" / "drawing.npz")
    torch.testing.assert_close(drawing.exclusive["audio"], parts["test"].outputs[0].exclusive["audio"])
    assert drawing.present["text"].dtype == torch.bool


# tables


def test_the_t_test_is_scipys_over_the_seeds_that_both_have():
    ours, theirs = {0: 0.9, 1: 0.8, 2: 0.85, 5: 0.1}, {2: 0.7, 1: 0.75, 0: 0.8, 7: 3.0}
    expected = stats.ttest_rel([0.9, 0.8, 0.85], [0.8, 0.75, 0.7]).pvalue
    assert paired_p(ours, theirs) == pytest.approx(expected)
    assert math.isnan(paired_p({0: 1.0}, {0: 2.0}))
    assert math.isnan(paired_p({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}))
    assert math.isnan(paired_p({0: math.nan, 1: 2.0}, {0: 1.0, 1: 3.0}))


def test_spread_is_that_of_a_sample():
    assert mean_and_sd([1.0, 2.0, 4.0]) == f"{7 / 3:.3f} ± {np.std([1, 2, 4], ddof=1):.3f}"
    assert mean_and_sd([1.0, math.nan]) == "-"


def test_scores_of_small_targets_are_no_zeros():
    """A table of 0.000 tells nothing, and looks perfect."""
    scores = {"ours": {"mae": {0: 2e-6, 1: 4e-6}}, "theirs": {"mae": {0: 3e-6, 1: 6e-6}}}
    table = comparison_table(scores, ["mae"], "ours", {})
    assert "| ours | 2 | 3.0e-06 ± 1.4e-06 |" in table
    assert "| theirs | 2 | 4.5e-06 ± 2.1e-06 | +1.5e-06 |" in table
    assert [cell(value) for value in (2e-6, -2e-6, 0.0, 0.25, math.nan)] == ["2.0e-06", "-2.0e-06", "0.000", "0.250", "-"]


def test_the_table_pairs_runs_by_seed():
    records = [
        {"name": name, "seed": seed, "test": {"r2": value, "corr": None if name == "constant" else value}}
        for name, values in {"MEA": [0.5, 0.7], "GRU": [0.4, 0.5], "constant": [0.0, 0.0]}.items()
        for seed, value in enumerate(values)
    ]
    lines = comparison_table(scores_by_row(reversed(records)), ["r2", "corr"], "MEA", {"GRU": "1,234"}).splitlines()
    cells = {line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")] for line in lines[2:]}
    p, of_constant = paired_p({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5}), paired_p({0: 0.5, 1: 0.7}, {0: 0.0, 1: 0.0})
    assert of_constant < p  # so Holm doubles the other and leaves p, unless that is less than twice the other
    p = max(p, 2 * of_constant)
    assert "p (Holm)" in lines[0]
    assert cells["GRU"] == ["GRU", "2", "0.450 ± 0.071", "0.450 ± 0.071", "-0.150", f"{p:.4f}", "1,234"]
    assert cells["constant"][2:4] == ["0.000 ± 0.000", "-"]
    assert cells["MEA"][4:6] == ["", ""]


def test_p_values_are_corrected_for_the_number_of_rows():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # Holm 1979: 3 x 0.01, 2 x 0.03, and no less for the last
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    lines = comparison_table({"MEA": {"r2": {0: 0.5, 1: 0.7}}, "GRU": {"r2": {0: 0.4, 1: 0.5}}}, ["r2"], "MEA", {}).splitlines()
    assert " p |" in lines[0]
    assert f"{paired_p({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5}):.4f}" in lines[3]


def test_the_main_metric_is_the_one_that_chose_the_epochs():
    assert shown_metrics("classification", ["accuracy", "f1_macro", "auc"], "valid/auc")[0] == "auc"
    assert shown_metrics("multilabel", ["accuracy", "f1"], "valid/task")[0] == "f1"


# records


def test_a_line_that_a_crash_cut_off_is_not_a_finished_run(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    assert read_records(path) == {}
    append_record(path, {"id": "a", "test": {"corr": math.nan, "r2": 0.5}})
    append_record(path, {"id": "b"})
    with path.open("a") as file:
        file.write('{"id": "c", "te')
    assert read_records(path) == {"a": {"id": "a", "test": {"corr": None, "r2": 0.5}}, "b": {"id": "b"}}
    append_record(path, {"id": "c"})
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"id": "a"}\nhello\n')
    with pytest.raises(DataError, match="line 2: expected the record of a run, got 'hello'"):
        read_records(path)
