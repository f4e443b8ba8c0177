"""The tables of results that carry p values say what the committed runs say, corrected by Holm for the rows of the table."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mea_graph.studies.tables import Values, mean_and_sd, paired_p

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("results_*.md"))
TABLE = re.compile(r"^<!-- runs: (?P<study>[\w/]+), test (?P<metric>\w+)(?P<options>[^>]*?) -->\n\n(?P<rows>(?:\|.*\n)+)", re.MULTILINE)
OTHER_NAMES = {
    "Transformer over the concatenation": "Transformer",
    "addition instead of graph fusion": "addition",
    "w/o coarse, w/o fine": "w/o coarse",  # with two modalities the same runs
    "GRU on the best modality, audio": "GRU audio",
    "GRU on the best signal, skin and temperature": "GRU eda_temp",
}


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction: the least times their number, the next times one less, never falling."""
    corrected, least = [0.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        least = corrected[i] = max(least, min(1.0, (len(values) - place) * values[i]))
    return corrected


def shown(p: float) -> str:
    return "< 0.001" if p < 0.001 else "1" if p == 1 else f"{p:.2g}"


def scores(study: str, metric: str, options: str) -> dict[str, Values]:
    """By row: one value a seed. `options` names what the runs of the table have in common, as far as they have it, and their seeds."""
    wanted = dict(pair.split("=") for pair in options.replace(",", " ").split())
    first, _, last = wanted.pop("seeds", "0-99").partition("-")
    found: dict[str, Values] = defaultdict(dict)
    for line in (DOCS / "results" / study / "runs.jsonl").read_text().splitlines():
        run = json.loads(line)
        given = {k: str(v) for k, v in run["config"]["options"].items()}
        told_apart = {key: value for key, value in wanted.items() if key != "beta" or run["name"] == "MEA"}  # a row may be of beta 0
        if any(given.get(key, value) != value for key, value in told_apart.items()):
            continue
        if int(first) <= run["seed"] <= int(last):
            assert run["seed"] not in found[run["name"]], f"{study}: {run['name']} ran twice with seed {run['seed']}; name an option"
            value = run["test"][metric]
            found[run["name"]][run["seed"]] = math.nan if value is None else value
    return found


def tables() -> list:
    found = [(page.name, match) for page in PAGES for match in TABLE.finditer(page.read_text(encoding="utf-8"))]
    return [pytest.param(match, id=f"{name}:{match['study']}{match['options']}") for name, match in found]


def cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("table", tables())
def test_a_table_says_what_the_runs_say(table):
    head, _, *rows = (cells(line) for line in table["rows"].splitlines())
    found = scores(table["study"], table["metric"], table["options"])
    names = [OTHER_NAMES.get(row[0], row[0]) for row in rows]
    others = [name for name in names if name != "MEA"]
    corrected = dict(zip(others, holm([paired_p(found["MEA"], found[name]) for name in others]), strict=True))
    (p,), score = [i for i, title in enumerate(head) if title in ("p", "p (Holm)")], 1
    assert head[p] == ("p (Holm)" if len(others) > 1 else "p")
    for name, row in zip(names, rows, strict=True):
        said = mean_and_sd(list(found[name].values()))
        assert row[score] in (said, said.split(" ")[0]), name
        assert row[p] == ("" if name == "MEA" else shown(corrected[name])), name


def test_every_table_with_p_values_is_held_to_the_runs():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        titles = re.findall(r"^\|.*\| p(?: \(Holm\))? \|.*$", text, re.MULTILINE)
        assert len(titles) == len(TABLE.findall(text)), page.name
    assert len(tables()) >= 10


SUMMARY = {
    "letters, people not heard": ("avletters_speakers/ten_seeds", "accuracy", "", "late fusion GRU"),
    "embedded data, two": ("events/ten_seeds", "r2", "", "pairwise Transformer (MulT)"),
    "embedded data, three": ("events_three/compare", "r2", "", "pairwise Transformer (MulT)"),
    "stress": ("stress_predict/compare", "auc", "pooling=gru", "Transformer"),
    "letters, people known": ("avletters/compare", "accuracy", "pooling=gru beta=0.001", "early fusion GRU"),
}


@pytest.mark.parametrize("row", SUMMARY)
def test_the_summary_says_what_the_runs_say(row):
    study, metric, options, baseline = SUMMARY[row]
    found = scores(study, metric, options)
    ours, theirs = found["MEA"], found[baseline]
    away = np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
    half = stats.t.ppf(0.975, len(away) - 1) * away.std(ddof=1) / math.sqrt(len(away))
    verdict = "level" if abs(away.mean()) < half else "ahead" if away.mean() > 0 else "behind"
    interval = f"{away.mean():+.3f} ({away.mean() - half:+.3f} to {away.mean() + half:+.3f})"
    (line,) = [cells(line) for line in (DOCS / "results.md").read_text().splitlines() if line.startswith(f"| {row}")]
    name = baseline.removesuffix(" (MulT)")
    assert line[1:] == [f"{np.mean(list(ours.values())):.3f}", f"{np.mean(list(theirs.values())):.3f}, {name}", interval, verdict]


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])


RECOMMENDED = {
    "embedded events, two": ("events/recommended", "r2"),
    "embedded events, three": ("events_three/recommended", "r2"),
    "AVLetters, known": ("avletters/recommended", "accuracy"),
    "AVLetters, unseen": ("avletters_speakers/recommended", "accuracy"),
    "Stress-Predict": ("stress_predict/recommended", "auc"),
}


def recommended(folder: str, metric: str) -> dict[str, str]:
    """Mean and deviation by model and part."""
    runs = [json.loads(line) for line in (DOCS / "results" / folder / "runs.jsonl").read_text().splitlines()]
    return {
        f"{name}, {part}": mean_and_sd([run[part][metric] for run in runs if run["name"] == name])
        for name in ("MEA", "pooled linear")
        for part in ("valid", "test")
    }


@pytest.mark.parametrize("data", RECOMMENDED)
def test_settings_say_what_the_runs_of_the_recommended_form_say(data: str) -> None:
    (line,) = [line for line in (DOCS / "settings.md").read_text(encoding="utf-8").splitlines() if line.startswith(f"| {data}")]
    found = recommended(*RECOMMENDED[data])
    for said, part in zip(cells(line)[1:5], ("MEA, valid", "MEA, test", "pooled linear, valid", "pooled linear, test"), strict=True):
        assert said in (found[part], found[part].removesuffix(" ± 0.000")), part


@pytest.mark.parametrize(
    ("data", "folder", "metric"),
    [
        ("AVLetters", "avletters_speakers/recommended", "accuracy"),
        ("AVLetters", "avletters_speakers/recommended_window", "accuracy"),
        ("AVLetters", "avletters_speakers/recommended_positions", "accuracy"),
        ("Stress-Predict", "stress_predict/recommended", "auc"),
        ("Stress-Predict", "stress_predict/recommended_positions", "auc"),
    ],
)
def test_settings_say_what_times_bring(data: str, folder: str, metric: str) -> None:
    option = folder.partition("recommended_")[2] or "recommended"
    lines = (DOCS / "settings.md").read_text(encoding="utf-8").splitlines()
    (line,) = [one for one in lines if one.startswith("| ") and option in cells(one)[0] and cells(one)[1:2] and data in cells(one)[1]]
    found = recommended(folder, metric)
    assert cells(line)[2:4] == [found["MEA, valid"], found["MEA, test"]]
