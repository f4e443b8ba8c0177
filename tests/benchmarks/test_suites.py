"""The suites' cases: what they time is right, what is missing is said, and a wrong result is not timed."""

import itertools
import json
import math
import re
import shlex
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from benchmarks import baselines, compare, layers, measure, models, op_cases, samples, windows
from benchmarks.catalogue import LITTLE, SUITES
from mea_graph.ops import record_calls

ROOT = Path(__file__).parents[2]
PROGRAM = f"""
import os, sys, torch
os.environ.pop("PYTEST_XDIST_WORKER", None)  # in a worker pytest-benchmark writes no file
os.chdir({str(ROOT)!r})
sys.path.insert(0, {str(ROOT)!r})
from benchmarks import catalogue, op_cases
wrong = op_cases.predictive([3, 2], 3)
wrong = wrong._replace(contenders={{**wrong.contenders, "mea_graph": lambda: [2 * t for t in wrong.contenders["eager formula"]()]}})
catalogue.SUITES["ops"] = {{"wrong": catalogue.Entry(lambda: wrong, lambda: wrong)}}
import pytest
sys.exit(pytest.main(["benchmarks/bench_ops.py", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("kind", ["full padding", "true lengths", "one long clip"])
def test_samples_have_the_lengths_they_claim(kind):
    shape = samples.SHAPES["MOSI"]
    batch = samples.draw(shape, 16, kind)
    for m, longest in shape.longest.items():
        lengths = batch.lengths[m]
        assert batch.mask[m].sum(1).tolist() == lengths
        assert torch.equal(batch.padded[m][batch.mask[m]], batch.x_dict[m])
        assert not batch.padded[m][~batch.mask[m]].any()
        assert batch.batch_dict[m].bincount(minlength=16).tolist() == lengths
        assert batch.ptr_dict[m].diff().tolist() == lengths
        assert batch.ptr_dict[m][0] == 0
        assert (max(lengths) == longest) == (kind != "true lengths")
        if kind != "full padding":
            assert sum(lengths) / 16 == pytest.approx(shape.mean[m], rel=0.05)
    assert (batch.padding_share == 0) == (kind == "full padding")


def test_trimming_leaves_the_samples_as_they_are():
    batch = samples.draw(samples.SHAPES["MOSI"], 4, "true lengths")
    trimmed = batch.trimmed()
    for m, lengths in batch.lengths.items():
        assert trimmed.padded[m].shape[1] == max(lengths) < batch.padded[m].shape[1]
        assert torch.equal(trimmed.padded[m][trimmed.mask[m]], batch.x_dict[m])


def test_shapes_without_known_means_have_no_true_lengths():
    with pytest.raises(ValueError, match="full padding"):
        samples.draw(samples.SHAPES["MOSEI"], 2, "true lengths")


def test_the_truth_of_the_models_and_layers_is_computed_by_the_references():
    for case in (models.tiny("train"), layers.layer("PredictiveEncoder", LITTLE, "little", 2, "true lengths")):
        with record_calls() as calls:
            case.truth()
        assert ("predictive_attention", "reference") in calls
        assert {backend for _, backend in calls} == {"reference"}
        with record_calls() as calls:
            case.contenders["mea_graph"]()
        assert ("predictive_attention", "cpu") in calls
        assert "reference" not in {backend for _, backend in calls}


def test_a_training_step_changes_no_weight_and_computes_every_gradient():
    network = models.mea()
    batch = samples.of_lengths({m: [3, 2] for m in samples.CHANNELS}, dict.fromkeys(samples.CHANNELS, 3))
    before = [p.clone() for p in network.parameters()]
    loss = models.passes_of_mea(network, batch, "train")()
    assert math.isfinite(loss[0].item())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(p.grad is not None for p in network.parameters())


def test_a_compiled_step_computes_the_same_and_one_that_cannot_be_compiled_is_named():
    network = models.MEA(samples.CHANNELS, 1, agnostic=None, fusion="addition")  # little for the compiler to do
    batch = samples.of_lengths({m: [3, 2] for m in samples.CHANNELS}, dict.fromkeys(samples.CHANNELS, 3))
    wrong = lambda graph, inputs: lambda *args: tuple(2 * t if t.is_floating_point() else t for t in graph(*args))  # noqa: E731
    options = {"eager": {"backend": "eager"}, "none": {"backend": "no such backend"}, "wrong": {"backend": wrong}}
    passes, refused = models.compiled(network, batch, "predict", options)
    assert list(passes) == ["eager"]
    assert list(refused) == ["none", "wrong"]
    assert "no such backend" in refused["none"]
    assert "against the eager step" in refused["wrong"]
    torch.testing.assert_close(passes["eager"](), models.passes_of_mea(network, batch, "predict")())


def test_every_backend_that_takes_the_input_is_timed():
    case = op_cases.predictive([4, 2], 4)
    assert case.about["auto"] == "cpu"
    assert {"mea_graph", "eager formula"} <= set(case.contenders)
    assert "eager formula" not in op_cases.predictive([4], 4, eager=False).contenders
    assert max(case.errors().values()) < 1e-5


def test_a_baseline_that_is_not_there_is_named_with_the_reason(monkeypatch):
    def refuse(name, *_):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(baselines.importlib, "import_module", refuse)
    found = baselines.absent()
    assert set(baselines.NOTES) <= set(found)
    assert "make baselines" in found["MulT"]
    assert baselines.available() == []
    assert list(models.case(samples.Shape({"text": 3, "audio": 3, "vision": 3}), "", 2, "full padding", "train", ("MulT",)).contenders) == [
        "mea_graph"
    ]


def test_a_model_of_one_module_is_loaded_without_what_the_packages_around_it_import(monkeypatch, tmp_path):
    files = {
        "MMSA/__init__.py": "import no_such_package",
        "MMSA/config.py": "from pathlib import Path\nfound = (Path(__file__).parent / 'config' / 'settings.txt').read_text()",
        "MMSA/config/settings.txt": "d 30",
        "MMSA/models/__init__.py": "import no_such_package",
        "MMSA/models/singleTask/__init__.py": "import no_such_package",
        "MMSA/models/singleTask/MULT.py": "from ..subNets import BertTextEncoder\nfrom ..subNets.transformers_encoder.one import one",
        "MMSA/models/subNets/__init__.py": "import no_such_package",
        "MMSA/models/subNets/transformers_encoder/__init__.py": "",
        "MMSA/models/subNets/transformers_encoder/one.py": "one = 1",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with patch.dict(sys.modules):
        for name in [n for n in sys.modules if n.split(".")[0] in ("MMSA", baselines.ALONE)]:
            del sys.modules[name]
        loaded = baselines.mmsa_module("models.singleTask.MULT")
        assert (loaded.one, loaded.BertTextEncoder) == (1, baselines.StoredText)
        assert baselines.mmsa_module("config").found == "d 30"
        assert "MMSA" not in sys.modules
        assert baselines.available(("MulT", "MMSA MULT", "MMSA MISA")) == ["MulT", "MMSA MULT"]
        assert "no_such_package" in baselines.absent(["MMSA MISA"])["MMSA MISA"]


def test_no_package_is_imported_for_baselines_that_were_not_asked_for(monkeypatch):
    imported = []
    monkeypatch.setattr(baselines.importlib, "import_module", imported.append)
    assert baselines.available(("Transformer over the concatenation", "LinMulT")) == ["LinMulT", "Transformer over the concatenation"]
    assert set(imported) == {"linmult", "torch"}


def test_keys_are_told_apart_and_the_ten_minutes_cover_every_suite():
    for suite in SUITES.values():
        assert any(entry.quick for entry in suite.values())
    assert {(suite, key) for suite, key in compare.SELECTION} <= {(s, k) for s, suite in SUITES.items() for k in suite}


@pytest.mark.parametrize("options", [["--benchmark-disable"], ["--benchmark-json={folder}/out.json"]])
def test_a_suite_times_nothing_that_is_wrong(child, tmp_path, options):
    (tmp_path / "program.py").write_text(PROGRAM)
    run = child("program.py", *(o.format(folder=tmp_path) for o in options))
    assert run.wait() == 1, run.text()
    assert "so nothing is timed" in run.text()
    assert not (tmp_path / "out.json").exists() or '"benchmarks": []' in (tmp_path / "out.json").read_text()


def test_a_timed_case_is_filed_under_its_suite_with_its_command(child, tmp_path):
    arguments = ["-k", "wrong", f"--benchmark-json={tmp_path / 'out.json'}"]
    (tmp_path / "program.py").write_text(PROGRAM.replace("2 * t", "1 * t"))
    run = child("program.py", *arguments)
    assert run.wait() == 0, run.text()
    found = json.loads((tmp_path / "out.json").read_text())
    assert [one["group"] for one in found["benchmarks"]] == ["ops"]
    assert found["command"].endswith(shlex.join(arguments))


def test_compare_names_a_ref_that_does_not_exist(tmp_path):
    with pytest.raises(SystemExit, match="no-such-ref"):
        compare.trees("no-such-ref", tmp_path)


@pytest.mark.parametrize("name", windows.SETUPS)
def test_windows_in_steps_and_in_seconds_and_the_complete_form_are_compared_with_float64(name):
    case = windows.case(name, 90)
    assert list(case.contenders) == ["mea_graph", "a window of 1.28 s", "complete"]
    truth = case.truth()
    found = [run() for run in case.contenders.values()]
    assert measure.error([t for one in found for t in one], truth) < 1e-5  # each of the three is checked, not the first alone
    assert all(measure.error(a, b) > 1e-3 for a, b in itertools.combinations(found, 2))  # and they are not the same
    assert list(windows.case(name, 90, whole=False).contenders) == ["mea_graph", "a window of 1.28 s"]


def test_windows_reach_32_steps_to_both_sides_or_as_many_seconds():
    at = windows.Sequences(400, 200, "cpu")
    in_steps, in_seconds = at.in_steps(), at.in_seconds()
    widths = [(edges.end - edges.begin).squeeze(1) for edges in (in_steps, in_seconds)]
    assert set(widths[0][20:-20].tolist()) == {65}
    assert widths[1][40:-40].float().mean().item() == pytest.approx(64, abs=4)
    assert len(set(widths[1][40:-40].tolist())) > 5  # steps come unevenly
    heard = at.source_time[in_seconds.begin[100, 0] : in_seconds.end[100, 0]]
    assert (heard - at.target_time[100]).abs().max() <= windows.SECONDS


def test_growth_over_windows_ends_at_a_hundred_thousand_steps_and_only_small_ones_are_quick():
    for suite, name in (("ops", "interval attention"), ("layers", "ModalityReinforcementUnit"), ("layers", list(windows.SETUPS)[1])):
        entries = [e for e in SUITES[suite].values() if e.curve and e.curve[0].startswith(f"{name} over a window")]
        steps = [e.curve[2] for e in entries]
        assert (min(steps), max(steps)) == (1000, 100_000)
        assert all(e.memory and e.quick == (e.curve[2] <= 4000) for e in entries)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout of git")
def test_compare_gives_each_tree_its_own_library_and_cases_and_one_clock(tmp_path):
    places = compare.trees("HEAD", tmp_path)
    for name in ("mea_graph", "benchmarks"):
        assert (places["tree"] / name).resolve() == ROOT / name
        assert (places["ref"] / name).resolve() == places["ref"] / name  # what stands in the commit, whatever the working tree has
    assert (places["ref"] / "benchmarks" / "catalogue.py").is_file()
    for name in compare.OURS:
        assert (places["ref"] / "benchmarks" / name).read_text() == (ROOT / "benchmarks" / name).read_text()


def test_compare_tells_a_case_that_a_tree_lacks_and_counts_the_calls_of_one_that_it_has():
    with pytest.raises(SystemExit, match="no case 'no such case' among its ops"):
        compare.measure_here("ops", "no such case", 0, True)
    found = compare.measure_here("ops", "predictive attention, short, float32, backward", 0, True)
    assert found["seconds"] > 0
    assert re.fullmatch(r"\d+/\d+/\d+", found["calls"])


def test_compare_shows_ratios_and_the_calls_of_both_trees():
    pairs = [{"ref": {"seconds": s, "calls": "9/8/-"}, "tree": {"seconds": 2.0, "calls": "5/4/0"}} for s in (2.0, 4.0, 6.0)]
    assert compare.line("a case", pairs).split() == ["a", "case", "2.00", "1.00-3.00", "2000.00", "5/4/0", "9/8/-"]
