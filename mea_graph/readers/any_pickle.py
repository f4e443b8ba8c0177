"""Tells the pickle formats of the field apart by their structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mea_graph.data.dataset import MultimodalDataset
from mea_graph.data.errors import DataError
from mea_graph.readers.misa import misa_dataset
from mea_graph.readers.mmsa import mmsa_dataset
from mea_graph.readers.mult import mult_dataset
from mea_graph.readers.padded_splits import MODALITIES, SYNONYMS
from mea_graph.readers.unpickle import mapped_pickle

_DATASETS: dict[str, Callable[..., MultimodalDataset]] = {"mult": mult_dataset, "mmsa": mmsa_dataset, "misa": misa_dataset}


def read_any_pickle(source: Path, **options: Any) -> MultimodalDataset:
    """Reads a pickle in MulT's, MMSA's or MISA's form, whichever it is; options are those of that form's reader."""
    payload = mapped_pickle(source)
    form = _form(source, payload)
    try:
        return _DATASETS[form](source, payload, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise DataError(f"{source}: looks like format {form!r}, whose reader has another set of options ({error})") from error


def form_of(source: Path) -> str:
    """ "mult", "mmsa" or "misa", by the contents of a pickle."""
    return _form(source, mapped_pickle(source))


def _form(source: Path, payload: Any) -> str:
    if isinstance(payload, list):
        return "misa"
    if isinstance(payload, Mapping) and payload:
        parts = list(payload.values())
        if all(isinstance(part, list) for part in parts):
            return "misa"
        if all(isinstance(part, Mapping) for part in parts):
            if any("regression_labels" in part or "classification_labels" in part for part in parts):
                return "mmsa"
            if any("labels" in part for part in parts):
                return "mult"
            keys = {str(key) for part in parts for key in part}
            if keys & {"raw_text", "text_bert", "annotations"} or any(key.endswith("_lengths") for key in keys):
                return "mmsa"  # features to predict from, without labels
            if keys & {*MODALITIES, *SYNONYMS}:
                return "mult"
    seen = f"a dict with keys {list(payload)[:5]}" if isinstance(payload, Mapping) else type(payload).__name__
    raise DataError(f"{source}: expected a pickle in the form of MulT, MMSA or MISA, got {seen}; pass format= if it is one of them")
