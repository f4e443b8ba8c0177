"""The options of the model by part: what the library recommends and what the paper has."""

from collections.abc import Mapping
from typing import Any

RECOMMENDED: dict[str, Any] = {
    "dropout": 0.1,
    "extractor": {"kernel_size": 1, "skip": True},
    "exclusive": {"num_layers": 1, "residual": "input", "pooling": "gru"},
    "agnostic": {"num_layers": 1, "residual": "input", "pooling": "gru"},
    "discriminator": {},
    "fusion": {},
    "head": {"norm": True},
}
PUBLISHED: dict[str, Any] = {
    "dropout": 0.0,
    "extractor": {"kernel_size": 3, "skip": False},
    "exclusive": {"num_layers": 3, "residual": "normalized", "pooling": "mean"},
    "agnostic": {"num_layers": 2, "residual": "normalized", "pooling": "mean"},
    "discriminator": {},
    "fusion": {},
    "head": {"norm": False},
}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both sets of options, those above winning; options inside a part are merged one by one.

    >>> merged(
    ...     {"heads": 8, "head": {"norm": True}},
    ...     {"head": {"dropout": 0.5}, "agnostic": None},
    ... )
    {'heads': 8, 'head': {'norm': True, 'dropout': 0.5}, 'agnostic': None}
    """
    result = dict(below)
    for name, value in above.items():
        inner = result.get(name)
        result[name] = merged(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return result
