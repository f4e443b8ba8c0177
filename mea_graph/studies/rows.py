"""The rows of the tables: which models, and which variants of MEA, a study trains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mea_graph.data import DataError
from mea_graph.nn import MEA
from mea_graph.studies.run import CONSTANT, MODULES
from mea_graph.train.keyword_arguments import arguments_for
from mea_graph.train.task_module import TaskModule

FULL = "MEA"
Row = tuple[str, dict[str, Any]]  # kind and options

TABLE_V: dict[str, dict[str, Any]] = {
    "w/o L_dis": {"alpha": 0.0},
    "L_sep instead": {"disparity": "orthogonality"},
    "w/o adversarial": {"beta": 0.0},
    "w/o omega": {"importance": False},
    "w/o exclusive": {"exclusive": False},
    "w/o agnostic": {"agnostic": False},
    "w/o PSA": {"predictive_attention": False},
    "w/o prediction chain": {"prediction_chain": False},
    "w/o WAL": {"weighted_attention": False},
    "w/o HCA": {"cross_modal_attention": False},
    "w/o mixed": {"mixed": False},
    "w/o coarse": {"coarse": False},
    "w/o fine": {"fine": False},
    "w/o DGF (concatenation)": {"fusion": "concatenation"},
    "addition": {"fusion": "addition"},
    "multiplication": {"fusion": "multiplication"},
}


def compared(model: Mapping[str, Any], modalities: Sequence[str]) -> dict[str, Row]:
    """Returns the rows of Tables II-IV: MEA and its rivals, each with the widths, depth and training of MEA's options.

    The GRUs are as wide as the representations in each direction, and read as one step what MEA's convolution strides over. The
    Transformers are as wide as MEA's attention, and as deep as its predictive and cross-modal layers together, with its pooling.

    Args:
        model: MEA's options.
        modalities: names of the modalities.

    Example:
        >>> list(compared({}, ["audio", "lips"]))[:4]
        ['MEA', 'constant', 'GRU audio', 'GRU lips']
    """
    training = arguments_for(TaskModule, model)
    given = {name: parameter.default for name, parameter in inspect.signature(MEA).parameters.items()} | dict(model)
    narrow = {name: given[name] for name in ("hidden_channels", "dropout", "stride")} | training
    attention = {
        name: given[name] for name in ("channels", "hidden_channels", "heads", "kernel_size", "stride", "pooling", "segments", "dropout")
    }
    attention |= {"num_layers": given["num_predictive_layers"] + given["num_cross_modal_layers"]} | training
    rows: dict[str, Row] = {FULL: ("MEAModule", dict(model)), "constant": (CONSTANT, {"sentiment": model.get("sentiment", False)})}
    rows |= {f"GRU {m}": ("LateFusionGRUModule", narrow | {"modalities": [m]}) for m in modalities}
    return rows | {
        "early fusion GRU": ("EarlyFusionGRUModule", narrow),
        "late fusion GRU": ("LateFusionGRUModule", narrow),
        "Transformer": ("ConcatenationTransformerModule", attention),
        "pairwise Transformer (MulT)": ("PairwiseTransformerModule", attention),
        "shared-private (MISA)": ("SharedPrivateEncodersModule", narrow),
    }


def ablated(model: Mapping[str, Any]) -> dict[str, Row]:
    """Returns the rows of Table V; one that changes nothing with these options, or leaves no branch or no stage, is left out.

    Args:
        model: MEA's options.

    Example:
        >>> "w/o prediction chain" in ablated({}), "w/o prediction chain" in ablated({"num_predictive_layers": 1})
        (True, False)
        >>> "w/o fine" in ablated({"mixed": False, "coarse": False})  # is "w/o HCA"
        False
    """
    rows: dict[str, Row] = {FULL: ("MEAModule", dict(model))}
    defaults = {name: p.default for component in (MEA, MODULES["MEAModule"]) for name, p in inspect.signature(component).parameters.items()}
    for name, change in TABLE_V.items():
        idle = name == "w/o prediction chain" and model.get("num_predictive_layers", defaults["num_predictive_layers"]) == 1
        options = {**model, **change}
        whole = all(any((defaults | options)[part] for part in parts) for parts in (("exclusive", "agnostic"), ("mixed", "coarse", "fine")))
        if not idle and whole and any(model.get(option, defaults[option]) != value for option, value in change.items()):
            rows[name] = ("MEAModule", options)
    return rows


def with_dropout(rows: Mapping[str, Row], probability: float) -> dict[str, Row]:
    """Returns every row twice: trained on whole samples, and with modality dropout.

    Args:
        rows: of models that are trained.
        probability: of the modality dropout.

    Example:
        >>> list(with_dropout({"MEA": ("MEAModule", {})}, 0.3))
        ['MEA', 'MEA, modality dropout']
    """
    twice: dict[str, Row] = {}
    for name, (kind, options) in rows.items():
        twice[name] = (kind, {**options, "modality_dropout": 0.0})
        twice[f"{name}, modality dropout"] = (kind, {**options, "modality_dropout": probability})
    return twice


def chosen(rows: Mapping[str, Row], only: Sequence[str] | None) -> dict[str, Row]:
    """Returns some of the rows, and MEA's in any case.

    Args:
        rows: of a study.
        only: their names; all where it is ``None``.

    Raises:
        DataError: where there is no such row.

    Example:
        >>> list(chosen(compared({}, ["audio", "lips"]), ["late fusion GRU"]))
        ['MEA', 'late fusion GRU']
    """
    if only is None:
        return dict(rows)
    if unknown := sorted(set(only) - set(rows)):
        raise DataError(f"only: expected some of {', '.join(map(repr, rows))}, got {', '.join(map(repr, unknown))}")
    return {name: row for name, row in rows.items() if name == FULL or name in only}
