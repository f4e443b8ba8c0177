"""Whether a value has the type that a signature asks for, and how to say so."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np

_PLAIN = {bool: "bool", int: "int", str: "str", type(None): "None"}


def mismatch(value: object, annotation: Any) -> str | None:
    """Returns what a type asks for, where a value is none of it; else None.

    A `bool` is no number, and a number is finite. What a type says beyond plain values is left to whoever takes the value.

    Args:
        value: What came.
        annotation: The type, as a signature has it.

    >>> mismatch("8", int), mismatch(float("nan"), float), mismatch(8, float)
    ('int', 'a finite number', None)
    >>> mismatch("men", Literal["mean", "max"] | None)
    "'mean', 'max' or None"
    """
    wanted = _alternatives(annotation)
    return None if any(_fits(value, kind) for kind in wanted) else _listed([_name(kind, value) for kind in wanted])


def check_types(given: Mapping[str, Any], *owners: Callable[..., Any], prefix: str = "", error: type[Exception] = TypeError) -> None:
    """Refuses values that have none of the types that a class or function says; names that it does not have are passed over.

    Args:
        given: Arguments by name.
        owners: Classes or functions; the first one wins where two have an argument of the same name.
        prefix: What stands before the name of an argument in the message.
        error: The exception.

    Raises:
        error: If the type is another; the message names the argument, the type and the value.
        ValueError: If a word is none of those that the argument may be.

    >>> def mean(window: int = 3, robust: bool = False): ...
    >>> check_types({"window": 5, "robust": "yes"}, mean, prefix="data.")
    Traceback (most recent call last):
    TypeError: data.robust: expected bool, got 'yes'
    """
    parameters = parameters_of(*owners)
    for name, value in given.items():
        parameter = parameters.get(name)
        if parameter is None or value is parameter.default:
            continue
        annotation = type(parameter.default) if parameter.annotation is inspect.Parameter.empty else parameter.annotation
        if (expected := mismatch(value, annotation)) is not None:
            is_word = isinstance(value, str) and any(isinstance(kind, str) for kind in _alternatives(annotation))
            kind = ValueError if is_word and error is TypeError else error
            raise kind(f"{prefix}{name}: expected {expected}, got {value!r}"[:300])


def parameters_of(*owners: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the arguments of classes or functions by name.

    Args:
        owners: The first one wins where two have an argument of the same name.

    >>> list(parameters_of(round))
    ['number', 'ndigits']
    """
    return {name: p for owner in reversed(owners) for name, p in inspect.signature(owner, eval_str=True).parameters.items()}


def plain_value(value: Any) -> Any:
    """Returns a value that a checkpoint can hold: numbers, arrays and `Enum` members as Python's own, in lists and mappings too.

    Args:
        value: Anything.

    >>> import numpy as np
    >>> plain_value(
    ...     {
    ...         "learning_rate": np.float32(0.5),
    ...         "strides": (np.int64(2), 1),
    ...         "class_weights": np.array([1.0, 4.0]),
    ...     }
    ... )
    {'learning_rate': 0.5, 'strides': (2, 1), 'class_weights': [1.0, 4.0]}
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return plain_value(value.tolist())
    if isinstance(value, Enum):
        return plain_value(value.value)
    if type(value) in (list, tuple):
        return type(value)(plain_value(entry) for entry in value)
    return {plain_value(name): plain_value(entry) for name, entry in value.items()} if type(value) is dict else value


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else [annotation]


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any or kind is inspect.Parameter.empty:
        return True
    if kind is None:
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is tuple:  # a configuration has lists only
        if not isinstance(value, list | tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1:] == (Ellipsis,) else parts
        return len(kinds) == len(value) and all(mismatch(v, k) is None for v, k in zip(value, kinds, strict=True))
    if origin is list:
        return isinstance(value, list | tuple) and all(mismatch(v, parts[0]) is None for v in value)
    if isinstance(origin, type):  # a mapping, a function: by what it is, not by what is in it
        return isinstance(value, origin)
    if isinstance(kind, type):
        return getattr(kind, "_is_protocol", False) or isinstance(value, kind)  # what a protocol asks for is no class
    if not isinstance(kind, str | bytes | int | Enum):  # a TypeVar or what else stands for types
        return True
    return type(value) is type(kind) and value == kind  # one of a Literal


def _name(kind: Any, value: object) -> str:
    if kind is float:
        return "a finite number" if isinstance(value, float) else "float"
    if kind is None:
        return "None"
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (tuple, list):
        inner = _listed([_name(k, None) for part in parts if part is not Ellipsis for k in _alternatives(part)])
        several = origin is tuple and len(parts) > 1 and set(parts) <= {int, float}
        return f"a list of {len(parts)} numbers" if several else f"a list of {inner}"
    if isinstance(origin, type):
        return origin.__name__
    return kind.__name__ if isinstance(kind, type) else repr(kind)


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
