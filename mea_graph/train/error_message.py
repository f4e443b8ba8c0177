"""One line for a user's mistake."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from mea_graph.suggestions import did_you_mean

# jsonargparse reports every alternative of a type that it tried; these lines say nothing about the mistake
NOISE = re.compile(
    r"^(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value( type)?: .*|Expected a <class 'NoneType'>"
    r"|Expected a path but .* either not accessible or invalid)$"
)
ALTERNATIVE = re.compile(r"^Expected a (?:<class '(?:[\w.]+\.)?(\w+)'>|typing\.Literal\[(.*)\])(?:\. Got value: (.*))?$")
KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a string", "list": "a list"}
KINDS |= {"dict": "options by name", "Mapping": "options by name"}

LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket", re.IGNORECASE)


def is_lost_process(error: BaseException) -> bool:
    """Whether an error of several processes that train together says that one of them cannot be reached any more.

    Args:
        error: What was raised.

    >>> is_lost_process(
    ...     RuntimeError("Connection closed by peer")
    ... )  # this process is alone
    False
    """
    import torch.distributed as processes

    return processes.is_available() and processes.is_initialized() and processes.get_world_size() > 1 and bool(LOST.search(str(error)))


LACK = re.compile(r"allocate memory|not enough memory|out of memory|unable to allocate|storage size calculation overflowed", re.IGNORECASE)


def lack_of_memory(error: BaseException, options: Any) -> str | None:
    """Returns one line on a model that does not fit in memory, naming its largest sizes; None where an error says something else.

    Args:
        error: What was raised.
        options: The options of the model, parts as dicts.

    >>> lack_of_memory(
    ...     MemoryError(),
    ...     {"channels": 10**9, "heads": 8, "extractor": {"kernel_size": 3}},
    ... )
    'model: expected sizes that fit in memory, got channels=1000000000'
    """
    if not isinstance(error, MemoryError) and not LACK.search(str(error)):
        return None
    sizes: dict[str, int] = {}
    for name, value in options.items():
        inner = {f"{name}.{n}": v for n, v in value.items()} if isinstance(value, Mapping) else {name: value}
        sizes |= {n: v for n, v in inner.items() if isinstance(v, int) and v > 1}
    largest = sorted(sizes, key=lambda name: -sizes[name])
    named = [name for name in largest if sizes[name] * 100 >= sizes[largest[0]]]
    return f"model: expected sizes that fit in memory, got {', '.join(f'{name}={sizes[name]}' for name in named) or one_line(error)}"


def one_line(error: BaseException) -> str:
    """Returns the message of an error as one line that names the field, what was expected and what came.

    Args:
        error: What was raised.

    >>> one_line(
    ...     ValueError(
    ...         "Errors:\\n  - heads: expected a divisor of 40, got 7\\n  - Expected a <class 'NoneType'>"
    ...     )
    ... )
    'heads: expected a divisor of 40, got 7'
    """
    if (text := _of_the_parser(str(error))) is not None:
        return text
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    lines = [re.sub(r'^Parser key "(.*?)":', r"\1:", line) for line in lines if line and not NOISE.match(line)]
    text = ""
    for line in lines:
        text += line if not text else f" {line}" if text.endswith(":") else f"; {line}"
    return text or type(error).__name__


def _of_the_parser(message: str) -> str | None:
    """What jsonargparse says of a value of the wrong type or word, which it spreads over many lines; None of anything else."""
    if found := re.match(r'Parser key "(.*?)":\nUnable to load config (.*)\n', message):
        why = [line.strip() for line in message.splitlines() if line.strip() and not line.strip().startswith(("in ", "- "))]
        return f"{found[1]}: expected YAML, got {found[2]}: {why[-1]}"
    keys = re.findall(r'Parser key "(.*?)":', message)
    expected: list[str] = []
    choices: list[str] = []
    got = None
    for line in message.rpartition('Parser key "')[2].splitlines()[1:]:
        line = line.strip().removeprefix("- ")
        if found := ALTERNATIVE.match(line):
            kind, words, value = found.groups()
            choices += (said := re.findall(r"[^\s,']+", words or ""))
            if kind != "NoneType":
                expected.append(f"one of {', '.join(said)}" if said else KINDS.get(kind, kind))
            got = got or value
        elif line.startswith("Given value: "):
            got = got or line.removeprefix("Given value: ")
            break  # what follows is of the section around it
        elif line and not NOISE.match(line):
            return None
    if not keys or not expected or got is None:
        return None
    try:
        ast.literal_eval(got)
        shown = got
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        shown = repr(got)
        expected = [f"{kind}, such as [{got}]" if kind == KINDS["list"] and got.isprintable() else kind for kind in expected]
    return f"{'.'.join(keys)}: expected {' or '.join(expected)}, got {shown}{did_you_mean(got, choices)}"
