"""The rows of the tables: which models, and which variants of MEA, a study trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mea_graph.data import DataError
from mea_graph.nn.model_options import merged
from mea_graph.studies.run import UNTRAINED, whole_options
from mea_graph.train.keyword_arguments import arguments_for
from mea_graph.train.task_module import TaskModule

FULL = "MEA"
Row = tuple[str, dict[str, Any]]  # kind and options

TABLE_V: dict[str, dict[str, Any]] = {
    "w/o L_dis": {"alpha": 0.0},
    "L_sep instead": {"disparity": "orthogonality"},
    "w/o adversarial": {"beta": 0.0},
    "w/o omega": {"discriminator": {"importance": False}},
    "w/o exclusive": {"exclusive": None},
    "w/o agnostic": {"agnostic": None},
    "w/o PSA": {"exclusive": {"num_layers": 0}},
    "w/o prediction chain": {"exclusive": {"prediction_chain": False}},
    "w/o WAL": {"exclusive": {"weighted_attention": False}},
    "w/o HCA": {"agnostic": {"num_layers": 0}},
    "w/o mixed": {"agnostic": {"mixed": False}},
    "w/o coarse": {"agnostic": {"coarse": False}},
    "w/o fine": {"agnostic": {"fine": False}},
    "w/o DGF (concatenation)": {"fusion": "concatenation"},
    "addition": {"fusion": "addition"},
    "multiplication": {"fusion": "multiplication"},
}


def compared(model: Mapping[str, Any], modalities: Sequence[str]) -> dict[str, Row]:
    """Returns the rows of Tables II-IV: MEA and its baselines, each with the widths, depth and training of MEA's options.

    The GRUs are as wide as the representations in each direction, and read as one step what MEA's convolution strides over. The
    Transformers are as wide as MEA's attention, and as deep as its predictive and cross-modal layers together, with its pooling.

    Args:
        model: MEA's options.
        modalities: Names of the modalities.

    >>> list(compared({}, ["audio", "lips"]))[:5]
    ['MEA', 'constant', 'pooled linear', 'GRU audio', 'GRU lips']
    """
    given = whole_options("MEAModule", model)
    training = {name: value for name, value in arguments_for(TaskModule, given).items() if name != "label_names"}
    extractor, branch = given["extractor"], given["exclusive"] or given["agnostic"]
    narrow = {"hidden_channels": given["hidden_channels"], "dropout": given["dropout"], "stride": extractor.get("stride", 1)} | training
    attention = narrow | {
        "channels": given["channels"],
        "heads": given["heads"],
        "kernel_size": extractor.get("kernel_size", 3),
        "pooling": branch["pooling"],
        "segments": branch.get("segments", 4),
        "num_layers": max(1, sum(part["num_layers"] for part in (given["exclusive"], given["agnostic"]) if part)),
    }
    rows: dict[str, Row] = {FULL: ("MEAModule", dict(model))}
    rows |= {kind: (kind, {"sentiment": model.get("sentiment", False)}) for kind in UNTRAINED}
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

    >>> (
    ...     "w/o prediction chain" in ablated({"form": "published"}),
    ...     "w/o prediction chain" in ablated({"exclusive": {"num_layers": 1}}),
    ... )
    (True, False)
    >>> "w/o fine" in ablated(
    ...     {"agnostic": {"mixed": False, "coarse": False}}
    ... )  # is "w/o HCA"
    False
    """
    rows: dict[str, Row] = {FULL: ("MEAModule", dict(model))}
    whole = whole_options("MEAModule", model)
    for name, change in TABLE_V.items():
        if any(isinstance(value, Mapping) and not isinstance(whole[part], Mapping) for part, value in change.items()):
            continue  # the part is not there
        changed = merged(whole, change)
        if changed != whole and _is_whole(changed) and _is_different(whole, changed):
            rows[name] = ("MEAModule", merged(model, change))
    return rows


def _is_whole(options: Mapping[str, Any]) -> bool:
    """Whether a branch is left, and a stage in the agnostic one."""
    agnostic = options["agnostic"]
    return (options["exclusive"] or agnostic) is not None and (agnostic is None or any(agnostic[s] for s in ("mixed", "coarse", "fine")))


def _is_different(options: Mapping[str, Any], changed: Mapping[str, Any]) -> bool:
    """Whether a change reaches a layer that there is: the chain needs two predictive layers, the rest of a branch one."""
    if changed["exclusive"] and options["exclusive"]["prediction_chain"] != changed["exclusive"]["prediction_chain"]:
        return options["exclusive"]["num_layers"] > 1
    for part in ("exclusive", "agnostic"):
        if options[part] != changed[part]:
            return options[part]["num_layers"] > 0
    return True


def with_dropout(rows: Mapping[str, Row], probability: float) -> dict[str, Row]:
    """Returns every row twice: trained on whole samples, and with modality dropout.

    Args:
        rows: The rows of models that are trained.
        probability: The probability of the modality dropout.

    >>> list(with_dropout({"MEA": ("MEAModule", {})}, 0.3))
    ['MEA', 'MEA, modality dropout']
    """
    twice: dict[str, Row] = {}
    for name, (kind, options) in rows.items():
        others = {way: much for way, much in (options.get("augmentation") or {}).items() if way != "modality_dropout"}
        twice[name] = (kind, {**options, "augmentation": others or None})
        twice[f"{name}, modality dropout"] = (kind, {**options, "augmentation": {**others, "modality_dropout": probability}})
    return twice


def chosen(rows: Mapping[str, Row], only: Sequence[str] | None) -> dict[str, Row]:
    """Returns some of the rows, and MEA's in any case.

    Args:
        rows: The rows of a study.
        only: Their names; all if `None`.

    Raises:
        DataError: If there is no such row.

    >>> list(chosen(compared({}, ["audio", "lips"]), ["late fusion GRU"]))
    ['MEA', 'late fusion GRU']
    """
    if only is None:
        return dict(rows)
    if unknown := sorted(set(only) - set(rows)):
        raise DataError(f"only: expected some of {', '.join(map(repr, rows))}, got {', '.join(map(repr, unknown))}")
    return {name: row for name, row in rows.items() if name == FULL or name in only}
