"""Each study end to end on data of seconds."""

import contextlib
import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from mea_graph.__main__ import main
from mea_graph.studies import run as studies_run
from mea_graph.studies import schedule
from mea_graph.studies.evaluate import evaluate
from mea_graph.train import TaskModule
from mea_graph.train.run_folder import claimed

from ..commands import error_of, run

SMALL = """
data: {events: {num_samples: 60, num_modalities: 2}, batch_size: 16}
model: {init_args: {channels: 8, hidden_channels: 8, heads: 2, exclusive: {num_layers: 2}}}
"""
VOLATILE = ("seconds", "fit_seconds", "finished")  # what may differ between two equal runs


@pytest.fixture(autouse=True)
def _small():
    Path("small.yaml").write_text(SMALL)


def study(name, *words, expect=0):
    common = ["--config", "events", "--config", "small.yaml", "--epochs", 2, "--seeds", 1, "--out", "out", "--accelerator", "cpu"]
    run("study", name, *common, *words, expect=expect)


def records():
    return [json.loads(line) for line in Path("out/runs.jsonl").read_text().splitlines()]


def lasting(record):
    return {key: value for key, value in record.items() if key not in VOLATILE}


def figures():
    return {path.stem for path in Path("out").glob("*.png") if path.stat().st_size > 5000}


def test_compare(capsys):
    study("compare", "--seeds", 2)
    names = ["MEA", "constant", "pooled linear", "GRU text", "GRU audio", "early fusion GRU", "late fusion GRU", "Transformer"]
    names += ["pairwise Transformer (MulT)", "shared-private (MISA)"]
    found = records()
    assert [(r["name"], r["seed"]) for r in found] == [(name, seed) for seed in (0, 1) for name in names]
    for record in found:
        assert set(record["test"]) == {"mae", "rmse", "corr", "r2"}
        assert record["config"]["seed"] == record["seed"]
        assert len(record["data_hash"]) == 64
        assert record["versions"]["torch"]
        assert record["seconds"] > 0
        assert record["valid"]["r2"] is not None
        if record["name"] not in ("constant", "pooled linear"):
            assert 1 <= record["chosen_epoch"] <= record["epochs"] == 2
    table = Path("out/table.md").read_text()
    assert all(f"| {name} | 2 |" in table for name in names)
    assert "mea-graph study compare --config events" in table
    assert figures() == {"scores"}
    printed = capsys.readouterr().out
    assert "[20/20] shared-private (MISA), seed 1: test r2" in printed
    study("compare", "--seeds", 2)
    assert "20 of 20 runs are finished already" in capsys.readouterr().out
    assert records() == found  # nothing was run again


@pytest.mark.parametrize(
    ("epochs", "trainer", "select"),
    [(2, "check_val_every_n_epoch: 2", "best"), (3, "check_val_every_n_epoch: 2", "last"), (1, "val_check_interval: 1", "last")],
)
def test_validation_scores_are_those_of_the_weights_that_were_tested(epochs, trainer, select, monkeypatch, capsys):
    """Not every epoch validates, and an epoch may validate several times: scores by number of epoch were another one's, or not there."""
    Path("often.yaml").write_text(f"trainer: {{{trainer}}}\nearly_stopping: {{monitor: valid/task, mode: min}}")
    expected = []

    def measured(module, data, *rest):
        with torch.inference_mode():
            pairs = [(module.run(batch).prediction.double(), batch.y) for batch in data.part_dataloader("valid")]
        expected.append(module.test_metrics.scores(*map(torch.cat, zip(*pairs, strict=True))))
        return evaluate(module, data, *rest)

    monkeypatch.setattr(studies_run, "evaluate", measured)
    study("compare", "--config", "often.yaml", "--epochs", epochs, "--only", "constant", "--select", select)
    (record,) = (record for record in records() if record["name"] == "MEA")
    assert record["chosen_epoch"] == epochs
    assert [record["valid"][name] for name in expected[0]] == [pytest.approx(float(value), rel=1e-6) for value in expected[0].values()]
    assert f"MEA, seed 0: test mae {record['test']['mae']:.3f}" in capsys.readouterr().out


def test_a_study_that_was_interrupted_goes_on_where_it_was(monkeypatch, capsys):
    only = ["--only", "late fusion GRU", "Transformer"]
    study("compare", *only)
    whole = records()
    Path("out/runs.jsonl").unlink()
    original, begun = schedule.carry_out, []

    def stop_at_the_third(run, *rest):
        begun.append(run.id)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return original(run, *rest)

    monkeypatch.setattr(schedule, "carry_out", stop_at_the_third)
    study("compare", *only, expect=130)
    assert "go on with: mea-graph study compare --config events --config small.yaml" in capsys.readouterr().err
    assert len(records()) == 2
    study("compare", *only)
    assert begun == [r["id"] for r in whole[:3]] + [r["id"] for r in whole[2:]]
    assert [lasting(r) for r in records()] == [lasting(r) for r in whole]


def test_a_run_that_fails_does_not_end_the_others_and_is_tried_again(monkeypatch, capsys):
    original = schedule.carry_out

    def fail_once(run, *rest):
        if (run.name, run.seed) == ("late fusion GRU", 0):
            raise ArithmeticError("no such luck")
        return original(run, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(schedule, "carry_out", fail_once)
        study("compare", "--only", "late fusion GRU", expect=1)
    assert "mea-graph: error: late fusion GRU, seed 0: ArithmeticError: no such luck" in capsys.readouterr().err
    assert "1 of 2 runs" in Path("out/table.md").read_text()
    study("compare", "--only", "late fusion GRU")
    assert [r["name"] for r in records()] == ["MEA", "late fusion GRU"]
    assert "2 of 2 runs" in Path("out/table.md").read_text()


def test_ablate():
    study("ablate", "--only", "w/o L_dis", "w/o exclusive", "w/o prediction chain", "addition")
    found = records()
    assert len(found) == 5
    by_name = {r["name"]: r for r in found}
    assert by_name["w/o L_dis"]["config"]["options"]["alpha"] == 0
    assert by_name["w/o exclusive"]["parameters"] < by_name["MEA"]["parameters"]
    assert by_name["w/o prediction chain"]["test"] != by_name["MEA"]["test"]
    assert "| w/o exclusive | 1 |" in Path("out/table.md").read_text()
    assert figures() == {"scores"}


def test_sensitivity():
    options = ["--mu", 0.25, 0.5, "--alpha", 0.02, "--beta", 0.001, 0.3, "--predictive-layers", 2, "--cross-modal-layers", 1]
    study("sensitivity", *options)
    points = {r["name"]: r["config"]["options"] for r in records()}
    # mu, alpha, beta and the layers as the configuration has them are the same run as MEA itself
    varied = {(p["exclusive"]["mu"], p["alpha"], p["beta"]) for p in points.values()}
    assert varied == {
        (0.25, 0.02, 0.001),
        (0.5, 0.02, 0.001),
        (0.25, 0.02, 0.3),
    }
    assert list(points) == ["MEA", "mu = 0.5", "alpha = 0.02, beta = 0.3"]
    minutes = sum(r["seconds"] for r in records()) / 60  # each run once, though MEA itself stands in five rows
    assert f"; {minutes:.1f} minutes of computing in all" in Path("out/table.md").read_text()
    assert figures() == {"mu", "predictive_layers", "cross_modal_layers", "alpha_beta_validation", "alpha_beta_test"}
    table = Path("out/table.md").read_text()
    assert all(f"| {name} |" in table for name in ("MEA", "mu = 0.25", "mu = 0.5", "alpha = 0.02, beta = 0.3", "predictive layers = 2"))


def test_missing_is_never_undefined():
    study("missing", "--only", "late fusion GRU", "--shares", 0, 0.5, 1, "--modality-dropout", 0.4)
    found = records()
    names = ["MEA", "MEA, modality dropout", "late fusion GRU", "late fusion GRU, modality dropout"]
    assert [r["name"] for r in found] == names
    for record in found:
        assert set(record["missing"]) == {"text", "audio", "any"}
        for shares in record["missing"].values():
            assert set(shares) == {"0", "0.5", "1"}
            assert shares["0"] == record["test"]
            assert all(value is not None for scores in shares.values() for value in scores.values())
    noise = {"feature_noise": 0.15}  # of the configuration
    assert [r["config"]["options"]["augmentation"] for r in found[:2]] == [noise, noise | {"modality_dropout": 0.4}]
    assert found[0]["test"] != found[1]["test"]
    assert figures() == {"whole", "modality_dropout"}
    assert "## Share of samples without text" in Path("out/table.md").read_text()


def test_disentangle():
    study("disentangle", "--seeds", 2)
    found = records()
    assert [r["name"] for r in found] == ["with constraints", "without", "centred"] * 2
    assert [r["config"]["options"]["alpha"] for r in found[:3]] == [0.02, 0.0, 0.02]
    assert [r["config"]["options"]["agnostic"].get("center", False) for r in found[:3]] == [False, False, True]
    assert found[2]["disentanglement"] != found[0]["disentanglement"]
    for record in found:
        assert {"modality_from_agnostic", "modality_from_exclusive", "hsic", "alignment", "shared_from_agnostic"} <= set(
            record["disentanglement"]
        )
        assert all(value is not None for value in record["disentanglement"].values())
    assert figures() == {"scatter_pca", "scatter_tsne"}
    assert "| modality_from_agnostic |" in Path("out/table.md").read_text()


def test_disentangle_has_no_row_twice_where_the_configuration_is_centred():
    Path("centred.yaml").write_text("model: {init_args: {agnostic: {center: true}}}")
    study("disentangle", "--config", "centred.yaml")
    assert [r["name"] for r in records()] == ["with constraints", "without"]


def test_data_from_a_file_with_folds(classes_source):
    Path("mine.yaml").write_text(
        "data: {split: {by: subject, folds: 5, valid_fraction: 0.3, valid_by: subject}, standardize: train}\n"
        "model: {init_args: {channels: 8, hidden_channels: 8, heads: 2}}\n"
        "early_stopping: {monitor: valid/auc, mode: max}\n"
    )
    words = ["study", "compare", "--data", classes_source["source"], "--config", "mine.yaml", "--epochs", "1", "--seeds", "2"]
    assert main([*words, "--only", "late fusion GRU", "GRU lips", "--select", "last"]) == 0
    found = [json.loads(line) for line in Path("studies/mine/compare/runs.jsonl").read_text().splitlines()]
    assert [r["config"]["data"]["split"]["fold"] for r in found] == [0, 0, 0, 1, 1, 1]
    assert all(0 <= r["test"]["auc"] <= 1 for r in found)
    assert "| model | n | auc |" in Path("studies/mine/compare/table.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="nothing claims a folder there")
def test_a_folder_is_one_study_s(capsys):
    """Two at once would train every run twice, and write two records of it and two tables."""
    with claimed(Path("out")):
        study("ablate", "--only", "w/o L_dis", expect=2)
        assert capsys.readouterr().err == "mea-graph: error: out: another process is at work in out; wait for it, or give another --out\n"
    assert not Path("out").exists()  # who is refused leaves nothing behind, and neither does who wrote nothing
    study("ablate", "--only", "w/o L_dis")
    study("ablate", "--only", "w/o L_dis")  # it is free again
    assert len(records()) == 2


def test_a_file_is_no_folder_of_a_study(capsys):
    Path("out").touch()
    study("ablate", "--only", "w/o L_dis", expect=2)
    assert capsys.readouterr().err == "mea-graph: error: out: expected a folder, got the file out\n"


def test_processes_find_what_one_finds():
    only = ["--only", "late fusion GRU"]
    study("compare", *only)
    alone = {r["id"]: lasting(r) for r in records()}
    Path("out/runs.jsonl").unlink()
    study("compare", *only, "--workers", 2)
    assert {r["id"]: lasting(r) for r in records()} == alone


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])  # one that Python turns into an error, and one that it never sees
def test_processes_end_with_a_study_that_is_killed(child, command, sign):
    words = ["study", "compare", "--config", "events", "--config", "small.yaml", "--epochs", "1000", "--out", "out", "--workers", "2"]
    parent = child(command, *words, "--accelerator", "cpu")
    number = parent.process.pid
    children = Path(f"/proc/{number}/task/{number}/children")

    def workers():
        return [int(child) for child in children.read_text().split() if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def at_work(process):
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def wait_until(true):
        end = time.monotonic() + 120
        while not true():
            assert time.monotonic() < end, parent.text()
            time.sleep(0.2)

    def begun():
        assert at_work(number), parent.text()
        return len(workers()) == 2 and Path("out/runs.jsonl").exists()

    try:
        wait_until(begun)  # the first record is a constant's, by when both have begun their work
        started = workers()
    finally:
        with contextlib.suppress(ProcessLookupError):
            # Ctrl+C reaches every process of the terminal
            os.killpg(number, sign) if sign == signal.SIGINT else os.kill(number, sign)
        code = parent.wait(timeout=60)
    error = parent.text()
    assert "Traceback" not in error
    if sign == signal.SIGINT:
        assert code == 130
        assert "go on with: mea-graph study compare --config events" in error
    wait_until(lambda: not any(at_work(worker) for worker in started))


def test_progress_is_shown_while_a_model_trains(monkeypatch, capsys):
    monkeypatch.setattr(schedule, "LINE_EVERY", 0)
    study("compare", "--only", "constant")
    lines = capsys.readouterr().out.splitlines()
    assert "MEA, seed 0: epoch 1 of 2" in lines
    assert any(line.startswith("MEA, seed 0: epoch 2 of 2, valid/r2 ") for line in lines)


def test_ctrl_c_while_a_model_trains_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(TaskModule, "training_step", interrupt)
    try:
        study("compare", "--only", "constant", expect=130)
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    error = capsys.readouterr().err
    assert error.strip().startswith("mea-graph: stopped by Ctrl+C; go on with: mea-graph study compare --config events --config small")
    assert error.strip().count("\n") == 0


def test_a_closed_pipe_is_no_mistake_of_the_user(monkeypatch, capsys):
    class Head(io.StringIO):
        """`head -1`: takes one line."""

        def write(self, text):
            if "\n" in self.getvalue():
                raise BrokenPipeError(32, "Broken pipe")
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Head())
    study("compare", "--only", "constant", expect=141)
    assert "mea-graph: error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--data", "nix.npz"], "config: expected --config with the options for nix.npz"),
        (["compare", "--data", "nix.npz", "--config", "avletters"], "nix.npz: no such file"),
        (["ablate", "--only", "w/o love", "--config", "small.yaml"], "only: expected some of 'MEA'"),
        (
            ["missing", "--config", "small.yaml", "--modality-dropout", "1"],
            "augmentation.modality_dropout: expected a number in [0, 1), got 1.0",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(words, message, capsys):
    assert message in error_of(capsys, "study", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compair"], "invalid choice: 'compair'"),
        (["compair"], "(did you mean 'compare'?)"),
        (["compare", "--seeds", "0"], "expected at least 1, got 0"),
        (["ablate", "--sedes", "2"], "there is no option --sedes (did you mean '--seeds'?); see mea-graph study ablate --help"),
        (["missing", "--selct=last"], "there is no option --selct (did you mean '--select'?)"),
        (["compare", "--select", "bst"], "(did you mean 'best'?)"),
    ],
)
def test_words_that_do_not_exist(words, message, capsys):
    error = error_of(capsys, "study", *words)
    assert error.startswith("mea-graph: error: study: ")
    assert message in error
