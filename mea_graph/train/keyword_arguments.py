"""Handing keyword arguments on without writing their defaults a second time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from docstring_parser import parse

Init = TypeVar("Init", bound=Callable[..., None])


def takes_arguments_of(*components: Callable[..., Any], skip: tuple[str, ...] = (), unset: tuple[str, ...] = ()) -> Callable[[Init], Init]:
    """Gives an `__init__(self, ..., **kwargs)` the visible keyword arguments of the components it hands `kwargs` to.

    So the command line, the documentation and `help()` show every option with the default and the meaning its owner wrote down.

    Args:
        components: Classes or functions, the first one wins where two have an argument of the same name.
        skip: Arguments that the `__init__` gives itself.
        unset: Arguments whose default is `None` here, for the `__init__` to replace.

    >>> def area(width: int, height: int = 2): ...
    >>> class Box:
    ...     @takes_arguments_of(area, skip=("width",))
    ...     def __init__(self, **kwargs): ...
    >>> str(inspect.signature(Box))
    '(*, height: int = 2)'
    """

    def decorate(init: Init) -> Init:
        own = [p for p in inspect.signature(init, eval_str=True).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters = {p.name: p for p in own}
        for component in components:
            for parameter in inspect.signature(component, eval_str=True).parameters.values():
                if parameter.name not in skip:
                    kind = inspect.Parameter.KEYWORD_ONLY
                    if parameter.name in unset:
                        parameter = parameter.replace(default=None, annotation=parameter.annotation | None)
                    parameters.setdefault(parameter.name, parameter.replace(kind=kind))
        init.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        taken = set(parameters) - {p.name for p in own}
        meanings = {name: text for component in reversed(components) for name, text in argument_docs(component).items() if name in taken}
        init.__doc__ = "\n".join(["Takes the options of all its parts.", "", "Args:", *(f"    {n}: {t}" for n, t in meanings.items())])
        return init

    return decorate


def argument_docs(component: Callable[..., Any]) -> dict[str, str]:
    """Returns what the docstring of a class or function says about each argument.

    Args:
        component: Class or function.

    >>> argument_docs(argument_docs)
    {'component': 'Class or function.'}
    """
    found = parse(inspect.getdoc(component) or "").params
    return {name: " ".join((p.description or "").split()) for p in found for name in p.arg_name.split(", ")}


def arguments_for(component: Callable[..., Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the arguments that the component takes.

    Args:
        component: Class or function.
        kwargs: Arguments for several components.

    >>> arguments_for(round, {"ndigits": 2, "colour": "red"})
    {'ndigits': 2}
    """
    return {name: value for name, value in kwargs.items() if name in inspect.signature(component).parameters}
