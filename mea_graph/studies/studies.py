"""The five studies: what each one runs, and how it reports the results."""

from __future__ import annotations

import itertools
import math
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mea_graph.nn.model_options import merged
from mea_graph.studies.disentanglement import read_drawing
from mea_graph.studies.evaluate import ANY
from mea_graph.studies.report import Results
from mea_graph.studies.rows import FULL, Row, ablated, chosen, compared, with_dropout
from mea_graph.studies.run import UNTRAINED, whole_options
from mea_graph.studies.tables import markdown, mean_and_sd
from mea_graph.train.reports import cell
from mea_graph.viz import embedding_scatter, score_bars, score_curves, score_map

Report = tuple[str, dict[str, Figure]]
LAYERS = {"exclusive": "predictive layers", "agnostic": "cross-modal layers"}  # by branch, as tables and figures call them
T_TEST = "n runs each, mean ± standard deviation; p: two-sided paired t-test over the runs, corrected by Holm for the rows."


@dataclass(frozen=True)
class Study:
    """One subcommand.

    Args:
        title: Heading of its table.
        rows: MEA's options, the modalities and the words of the command -> the rows to train.
        report: The results, the folder and the words of the command -> text and figures.
        measured: The words of the command -> what runs measure beside their metrics.
    """

    title: str
    rows: Callable[[Mapping[str, Any], Sequence[str], Namespace], dict[str, Row]]
    report: Callable[[Results, Path, Namespace], Report]
    measured: Callable[[Namespace], dict[str, Any]] = lambda words: {}


# compare and ablate: one row a model, each tested against MEA


def _compare_rows(model: Mapping[str, Any], modalities: Sequence[str], words: Namespace) -> dict[str, Row]:
    return chosen(compared(model, modalities), words.only)


def _ablate_rows(model: Mapping[str, Any], modalities: Sequence[str], words: Namespace) -> dict[str, Row]:
    return chosen(ablated(model), words.only)


def _table_report(results: Results, folder: Path, words: Namespace) -> Report:
    text = f"{results.table(FULL)}\n\n{T_TEST}\n\n{results.validation_line()}"
    return text, {"scores": score_bars(results.main_scores(), results.main, FULL)}


# sensitivity: one option at a time, and alpha with beta


def _points(model: Mapping[str, Any], words: Namespace) -> dict[str, dict[str, Any]]:
    points: dict[str, dict[str, Any]] = {}
    # a single predictive layer has no map to predict from: mu means something from the second one on
    layers = (whole_options("MEAModule", model)["exclusive"] or {}).get("num_layers", 0)
    for mu in words.mu:
        points[f"mu = {mu:g}"] = {"exclusive": {"mu": mu, "num_layers": max(2, layers)}}
    for alpha, beta in itertools.product(words.alpha, words.beta):
        points[f"alpha = {alpha:g}, beta = {beta:g}"] = {"alpha": alpha, "beta": beta}
    for part, values in (("exclusive", words.predictive_layers), ("agnostic", words.cross_modal_layers)):
        for value in values:
            points[f"{LAYERS[part]} = {value}"] = {part: {"num_layers": value}}
    return points


def _sensitivity_rows(model: Mapping[str, Any], modalities: Sequence[str], words: Namespace) -> dict[str, Row]:
    rows: dict[str, Row] = {FULL: ("MEAModule", dict(model))}
    return rows | {name: ("MEAModule", merged(model, change)) for name, change in _points(model, words).items()}


def _sensitivity_report(results: Results, folder: Path, words: Namespace) -> Report:
    parts = {"validation": results.main_scores("valid"), "test": results.main_scores("test")}
    lines = {
        "mu": ("mu", words.mu),
        **{LAYERS[part]: (LAYERS[part], getattr(words, LAYERS[part].replace("-", "_").replace(" ", "_"))) for part in LAYERS},
    }
    figures: dict[str, Figure] = {}
    for label, (option, values) in lines.items():
        names = {value: f"{option} = {value:g}" for value in values}
        curves = {part: {v: scores[name] for v, name in names.items() if name in scores} for part, scores in parts.items()}
        if curves["test"]:
            figures[option.replace("-", "_").replace(" ", "_")] = score_curves({label: curves}, results.main)
    names = {(a, b): f"alpha = {a:g}, beta = {b:g}" for a, b in itertools.product(words.alpha, words.beta)}
    for part, scores in parts.items():
        found = {pair: scores[name] for pair, name in names.items() if name in scores}
        if found:
            figures[f"alpha_beta_{part}"] = score_map(found, ("alpha", "beta"), f"{results.main}, {part}", results.lower_is_better)
    rows = [[name, *(mean_and_sd(scores.get(name, [])) for scores in parts.values())] for name in parts["test"]]
    text = markdown(["options", f"{results.main}, validation", f"{results.main}, test"], rows)
    return f"{text}\n\nOptions are chosen by the validation column alone.", figures


# missing: the test samples lose modalities


def _missing_rows(model: Mapping[str, Any], modalities: Sequence[str], words: Namespace) -> dict[str, Row]:
    rows = {name: row for name, row in compared(model, modalities).items() if row[0] not in UNTRAINED and not name.startswith("GRU ")}
    return with_dropout(chosen(rows, words.only), words.modality_dropout)


def _missing_report(results: Results, folder: Path, words: Namespace) -> Report:
    main, names = results.main, list(dict.fromkeys(record["name"] for record in results.records))
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for record in results.records:
        for modality, by_share in record["missing"].items():
            label = "share of modalities missing" if modality == ANY else f"share of samples without {modality}"
            curve = panels.setdefault(label, {}).setdefault(record["name"], {})
            for share, scores in by_share.items():
                if scores[main] is not None:
                    curve.setdefault(float(share), []).append(scores[main])
    texts = []
    for label, curves in panels.items():
        shares = sorted({share for curve in curves.values() for share in curve})
        rows = []
        for name in names:
            values = [mean_and_sd(curves[name].get(share, [])) for share in shares]
            rows.append([name, *values, _loss(curves[name], shares, results.lower_is_better)])
        texts.append(f"## {label[0].upper()}{label[1:]}\n\n" + markdown(["model", *(f"{share:g}" for share in shares), "lost"], rows))
    remark = f"{main}, mean ± standard deviation over runs. Lost: how much worse it is at the largest share than at the smallest."
    figures = {}
    for ending, label in (("", "trained on whole samples"), (", modality dropout", "trained with modality dropout")):
        mine = [name for name in names if name.endswith(", modality dropout") == bool(ending)]
        shown = {panel: {name.removesuffix(ending): curves[name] for name in mine if curves.get(name)} for panel, curves in panels.items()}
        if mine and all(shown.values()):
            figures["whole" if not ending else "modality_dropout"] = score_curves(shown, main, label)
    return "\n\n".join([*texts, remark]), figures


def _loss(curve: Mapping[float, Sequence[float]], shares: Sequence[float], lower_is_better: bool) -> str:
    ends = [curve.get(share, []) for share in (shares[0], shares[-1])]
    if not all(ends):
        return "-"
    first, last = (math.fsum(values) / len(values) for values in ends)
    return cell((last - first) if lower_is_better else (first - last))


# disentangle: with and without what drives the two spaces apart, and with the modality's mean taken away


def _disentangle_rows(model: Mapping[str, Any], modalities: Sequence[str], words: Namespace) -> dict[str, Row]:
    changes: dict[str, dict[str, Any]] = {
        "with constraints": {},
        "without": {"alpha": 0.0, "beta": 0.0},
        "centred": {"agnostic": {"center": True}},  # left out where the configuration has it anyway: it is the first row then
    }
    if whole_options("MEAModule", model)["agnostic"]["center"]:
        del changes["centred"]
    return {name: ("MEAModule", merged(model, change)) for name, change in changes.items()}


def _disentangle_report(results: Results, folder: Path, words: Namespace) -> Report:
    names = list(dict.fromkeys(record["name"] for record in results.records))
    measures = list(results.records[0]["disentanglement"])
    found = {
        name: {measure: [r["disentanglement"][measure] for r in results.records if r["name"] == name] for measure in measures}
        for name in names
    }
    rows = [[measure, *(mean_and_sd(found[name][measure]) for name in names)] for measure in measures]
    rows += [[f"test {results.main}", *(mean_and_sd(results.main_scores().get(name, [])) for name in names)]]
    first = {name: next(r for r in results.records if r["name"] == name) for name in names}
    panels = {name: read_drawing(folder / "embeddings" / f"{record['id']}.npz") for name, record in first.items()}
    figures = {f"scatter_{method}": embedding_scatter(panels, method) for method in ("pca", "tsne")}
    remark = (
        "modality_from_x: accuracy of a linear classifier that tells the modality from a representation; hsic: the paper's dependence of "
        "the two representations; alignment: the same, normalised to [0, 1]; shared_from_x, private_from_x: R2 of the true latents."
    )
    return f"{markdown(['measure, on test samples', *names], rows)}\n\n{remark}", figures


STUDIES: dict[str, Study] = {
    "compare": Study("MEA and its baselines", _compare_rows, _table_report),
    "ablate": Study("MEA without its parts", _ablate_rows, _table_report),
    "sensitivity": Study("Sensitivity to mu, alpha, beta and the numbers of layers", _sensitivity_rows, _sensitivity_report),
    "missing": Study("Missing modalities", _missing_rows, _missing_report, lambda words: {"missing": sorted(words.shares)}),
    "disentangle": Study(
        "Exclusive and agnostic representations", _disentangle_rows, _disentangle_report, lambda words: {"embeddings": True}
    ),
}
