"""What a study is going to run: recipes, rows, runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mea_graph.configurations import packaged_configs
from mea_graph.data import DataError
from mea_graph.studies import schedule
from mea_graph.studies.recipe import open_data, read_recipe
from mea_graph.studies.records import append_record
from mea_graph.studies.rows import FULL, TABLE_V, ablated, chosen, compared, with_dropout
from mea_graph.studies.run import MODULES, UNTRAINED, Run, build, check_runs, make_run

SMALL = {"channels": 8, "hidden_channels": 6, "heads": 2, "exclusive": {"num_layers": 2}, "agnostic": {"num_layers": 1}}
TRAINING = {"learning_rate": 3e-3, "weight_decay": 0.1, "warmup": 0.1, "cosine_decay": True, "label_smoothing": 0.2, "dropout": 0.1}


def test_configurations_compose_and_a_file_replaces_the_embedded_data():
    Path("mine.yaml").write_text("model: {init_args: {exclusive: {mu: 0.9}}}\ndata: {batch_size: 4}\n")
    recipe = read_recipe("clips.npz", ["avletters", "mine.yaml"], epochs=3)
    assert recipe.name == "avletters"
    assert (recipe.data["source"], recipe.data["batch_size"], recipe.data["standardize"]) == ("clips.npz", 4, "train")
    assert (recipe.model["exclusive"]["mu"], recipe.model["channels"], recipe.trainer["max_epochs"]) == (0.9, 64, 3)
    assert (recipe.monitor, recipe.mode, recipe.patience) == ("valid/accuracy", "max", 50)
    embedded = read_recipe("events", [], None)
    assert embedded.data["events"]["num_samples"] == 6000
    assert "events" not in read_recipe("clips.npz", ["events"], None).data


def test_a_seed_decides_folds_validation_samples_and_order():
    stress = read_recipe("x.npz", ["stress_predict"], None)
    splits = [stress.data_for(seed)["split"] for seed in range(6)]
    assert [split["fold"] for split in splits] == [0, 1, 2, 3, 4, 0]
    assert [split["seed"] for split in splits] == list(range(6))
    assert stress.data["split"]["fold"] == 0  # the recipe itself is as it was
    assert [read_recipe("events", [], None).data_for(seed)["seed"] for seed in (0, 3)] == [0, 3]


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        ("clips.npz", None, "config: expected --config with the options for clips.npz"),
        ("events", "model: [", "mine.yaml is not YAML"),
        ("events", "models: {}", "expected sections data, model, .* got models"),
        ("events", "3", "expected sections data, model, .* got int"),
        ("events", "model: {class_path: LateFusionGRUModule}", "expected model.class_path MEAModule"),
    ],
)
def test_mistakes_in_a_configuration(source, text, message):
    if text is not None:
        Path("mine.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_recipe(source, [] if text is None else ["mine.yaml"], None)


def test_mistakes_in_the_data():
    with pytest.raises(DataError, match=r"data: .*unexpected keyword argument 'colour'"):
        open_data({"events": {}, "colour": "red"})
    with pytest.raises(DataError, match=r"data: .*unexpected keyword argument 'fodl'"):
        open_data({"events": {}, "split": {"fodl": 1}})


def recipe_with(model):
    return replace(read_recipe("events", [], 1), data={"events": {"num_samples": 40}}, model=model)


def runs_of(rows, model=SMALL):
    data_hash = open_data({"events": {"num_samples": 40}}).dataset.hash
    return [make_run(name, kind, options, 0, recipe_with(model), data_hash, "best") for name, (kind, options) in rows.items()]


def test_baselines_are_as_wide_and_trained_as_mea():
    rows = compared(SMALL | TRAINING, ["text", "audio", "vision"])
    assert next(iter(rows)) == FULL
    assert sum(name.startswith("GRU ") for name in rows) == 3
    data = open_data({"events": {"num_samples": 40}})
    for run in runs_of(rows):
        if run.kind in UNTRAINED:
            continue
        module = build(run, data)
        found = {name: getattr(module, name) for name in ("learning_rate", "weight_decay", "warmup", "cosine_decay")}
        assert found == {name: TRAINING[name] for name in found}, run.name
        assert module.loss.label_smoothing == 0.2, run.name
        assert {name: run.options[name] for name in ("hidden_channels", "dropout")} == {"hidden_channels": 6, "dropout": 0.1}
    assert len(build(runs_of({"x": rows["Transformer"]})[0], data).network.blocks) == 3  # two predictive layers and a cross-modal one


def test_baselines_without_options_have_the_defaults_of_mea():
    options = compared({}, ["a", "b"])["pairwise Transformer (MulT)"][1]
    assert (options["channels"], options["hidden_channels"], options["heads"], options["num_layers"]) == (40, 64, 8, 2)


def test_table_five_is_whole_and_every_row_differs_from_mea():
    rows = ablated(SMALL)
    assert set(rows) == {FULL, *TABLE_V}
    assert len(rows) == 17
    check_runs(runs_of(rows))
    assert len({run.id for run in runs_of(rows)}) == 17


def test_rows_that_change_nothing_are_left_out():
    assert "w/o L_dis" not in ablated({"alpha": 0.0})
    assert "addition" not in ablated({"fusion": "addition"})
    assert "w/o prediction chain" not in ablated({"exclusive": {"num_layers": 1}})
    assert "w/o exclusive" not in ablated({"agnostic": None})


@pytest.mark.parametrize("config", packaged_configs())
def test_every_row_of_a_configuration_can_be_built(config):
    recipe = read_recipe("clips.npz", [config], None)
    rows = ablated(recipe.model)
    assert ("w/o fine" in rows) == (config != "events_three")
    for kind, options in rows.values():
        MODULES[kind](dict.fromkeys(recipe.data.get("modalities") or ["text", "audio"], 3), "regression", 1, **options)


def test_chosen_rows_always_hold_mea():
    rows = ablated({})
    assert list(chosen(rows, ["addition", "w/o HCA"])) == [FULL, "w/o HCA", "addition"]
    with pytest.raises(DataError, match=r"only: expected some of 'MEA', .* got 'w/o nothing'"):
        chosen(rows, ["w/o nothing"])


def test_modality_dropout_doubles_the_rows():
    rows = with_dropout({"MEA": ("MEAModule", SMALL)}, 0.4)
    found = {name: options["augmentation"] for name, (_, options) in rows.items()}
    assert found == {"MEA": None, "MEA, modality dropout": {"modality_dropout": 0.4}}


def test_the_id_follows_from_all_but_the_name():
    run = Run("a", "MEAModule", {"mu": 0.1}, 0, {"events": {}}, "hash", {"max_epochs": 1}, {"monitor": "valid/r2"})
    assert replace(run, name="b").id == run.id
    elsewhere = [replace(run, data={"source": f"{folder}/clips.npz", "batch_size": 4}).id for folder in "ab"]
    assert elsewhere[0] == elsewhere[1] != run.id
    readers = [{}, {"cache_dir": "a"}, {"label": "y"}, {"label": "y", "cache_dir": "b"}]
    read = [replace(run, data={"source": "clips.npz", "batch_size": 4, "reader": reader}).id for reader in readers]
    assert read[0] == read[1] == elsewhere[0] != read[2] == read[3]
    changes = [{"options": {"mu": 0.2}}, {"seed": 1}, {"data_hash": "other"}, {"trainer": {}}, {"missing": [0.5]}, {"embeddings": True}]
    assert len({run.id, *(replace(run, **change).id for change in changes)}) == 7


def test_options_are_written_out_so_that_a_default_that_is_named_is_no_other_run():
    named, unnamed = (
        runs_of({"MEA": ("MEAModule", options)})[0]
        for options in (SMALL, SMALL | {"exclusive": {"num_layers": 2, "mu": 0.25}, "alpha": 0.02})
    )
    assert named.id == unnamed.id
    assert {"mu": 0.25, "residual": "input", "weight_decay": 0.01}.items() <= (named.options | named.options["exclusive"]).items()
    gru = runs_of({"GRU": ("LateFusionGRUModule", {"hidden_channels": 4})})[0].options
    assert {"modalities": None, "hidden_channels": 4, "augmentation": None}.items() <= gru.items()


def test_an_option_that_a_later_version_adds_leaves_finished_runs_as_they_are():
    run = runs_of({"MEA": ("MEAModule", SMALL)})[0]
    inner = run.options["exclusive"]
    later = replace(run, options=run.options | {"exclusive": inner | {"mu": 0.25}})
    earlier = replace(run, options=run.options | {"exclusive": {name: value for name, value in inner.items() if name != "mu"}})
    assert earlier.id == later.id
    assert later.is_recorded_by({"id": earlier.id, "config": earlier.config})
    assert replace(run, options=run.options | {"exclusive": inner | {"mu": 0.5}}).id != run.id


def test_a_record_is_of_the_run_whose_options_it_would_hold_as_a_file():
    """JSON knows no tuples; and options alone make no run: data and seed are in the id."""
    run = replace(runs_of({"MEA": ("MEAModule", SMALL)})[0], options={"modalities": ("audio", "text"), "inner": {"sizes": (3, 5)}})
    record = json.loads(json.dumps({"id": run.id, "config": run.config}))
    assert run.is_recorded_by(record)
    assert not replace(run, seed=1).is_recorded_by(record)
    assert not run.is_recorded_by(record | {"id": replace(run, seed=1).id})
    for changed in ({"modalities": ["audio"]}, {"inner": {"sizes": [5, 3]}}, {"inner": None}, {"modalities": None}):
        assert not run.is_recorded_by(record | {"config": record["config"] | {"options": record["config"]["options"] | changed}})


def test_a_record_under_another_default_is_of_another_run():
    run = runs_of({"MEA": ("MEAModule", SMALL)})[0]
    record = {
        "id": run.id,
        "config": run.config | {"options": run.options | {"exclusive": {"mu": 0.1}}},
    }  # mu was 0.1 by default when it was made
    assert not run.is_recorded_by(record)
    assert run.is_recorded_by({"id": run.id, "config": run.config})


def test_a_mistake_in_an_option_is_told_before_any_training():
    for options, message in (({"muu": 1}, "MEA: MEAModule: unknown option muu"), ({"heads": 3}, "MEA: heads: expected a divisor")):
        with pytest.raises(DataError, match=message):
            check_runs(runs_of({"MEA": ("MEAModule", SMALL | options)}))


def test_finished_runs_stay_and_one_under_another_default_is_carried_out_again(monkeypatch, tmp_path):
    """Its new record follows the old one in the file, and is the one that counts."""
    runs = [replace(run, seed=seed) for run in runs_of({"MEA": ("MEAModule", SMALL)}) for seed in (0, 1, 2)]
    done = [{"id": run.id, "config": run.config, "test": {"r2": 0.5}, "seconds": 1.0, "again": False} for run in runs]
    done[1]["config"] = runs[1].config | {"options": runs[1].options | {"exclusive": {"mu": 0.1}}}
    for record in done[:2]:
        append_record(tmp_path / "runs.jsonl", record)
    begun = []

    def carry_out(run, *_):
        begun.append(run.id)
        return {**done[runs.index(run)], "config": run.config, "again": True}

    monkeypatch.setattr(schedule, "carry_out", carry_out)
    records, errors = schedule.finish([*runs, runs[2]], tmp_path, 1, "cpu", "regression")
    assert begun == [runs[1].id, runs[2].id]
    assert not errors
    assert [(id, record["again"]) for id, record in records.items()] == [(runs[0].id, False), (runs[1].id, True), (runs[2].id, True)]
    assert all(run.is_recorded_by(records[run.id]) for run in runs)
    assert schedule.finish(runs, tmp_path, 1, "cpu", "regression")[0] == records
    assert len(begun) == 2
