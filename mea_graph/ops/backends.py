"""Chooses the implementation of an op. `explain` says which one runs and why each other one does not; `use_backend` forces one."""

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mea_graph.ops.eager import is_transformed, is_unseen

__all__ = ["Backend", "Explanation", "Op", "accept", "explain", "record_calls", "use_backend"]

_OPS: dict[str, "Op"] = {}
_FORCED: ContextVar[str | None] = ContextVar("mea_graph_backend", default=None)
_RECORD: ContextVar[Counter[tuple[str, str]] | None] = ContextVar("mea_graph_calls", default=None)
_PLAIN = ("reference", "listed")  # made of torch's own operations alone, which any transform understands


class Backend(NamedTuple):
    """One implementation of an op."""

    run: Callable[..., Any]  # takes the op's arguments by keyword
    refuse: Callable[..., str | None]  # takes the same; says why it cannot run on them, or None
    prefers: str | None = None  # "auto" takes it only on this type of device; None: on any
    hold: Callable[[], str | None] = lambda: None  # says why "auto" does not take it; called before `refuse`


class Explanation(NamedTuple):
    """Which backend of an op runs, and why each other one does not.

    >>> print(
    ...     Explanation(
    ...         "edge_attention",
    ...         "cpu",
    ...         {"reference": "could run, but 'cpu' is preferred"},
    ...     )
    ... )
    edge_attention
      cpu        runs
      reference  could run, but 'cpu' is preferred
    """

    op: str
    chosen: str  # name of the backend
    refused: dict[str, str]  # the others, by name, and why

    def __str__(self) -> str:
        width = max(map(len, [self.chosen, *self.refused]))
        lines = [f"{self.op}", f"  {self.chosen:<{width}}  runs"]
        return "\n".join(lines + [f"  {name:<{width}}  {reason}" for name, reason in self.refused.items()])


class Op:
    """An op's backends, the preferred ones first. `explain` binds its arguments by `signature`, that of the public function."""

    def __init__(self, function: Callable[..., Any], backends: Mapping[str, Backend]) -> None:
        self.name, self.backends = function.__name__, dict(backends)
        self.signature = inspect.signature(function)
        _OPS[self.name] = self

    def run(self, backend: str, device: torch.device, arguments: Mapping[str, Any]) -> Any:
        """Runs the backend requested by name, or with "auto" the first that can."""
        name = self._forced(backend)
        if name == "auto":
            name = self._first(device, arguments)
        else:
            self._check(name, arguments)
        return self.run_on(name, arguments)

    def run_on(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Runs a backend that was chosen."""
        if not torch.compiler.is_compiling():
            record = _RECORD.get()
            if record is not None:
                record[self.name, name] += 1
        return self.backends[name].run(**arguments)

    def _forced(self, backend: str) -> str:
        if backend != "auto" or torch.compiler.is_compiling():
            return backend
        forced = _FORCED.get()
        return forced if forced in self.backends else "auto"

    def _check(self, backend: str, arguments: Mapping[str, Any]) -> None:
        """Refuses a backend requested by name that is none, or cannot run."""
        if backend not in self.backends:
            raise ValueError(f"backend: expected one of {['auto', *self.backends]}, got {backend!r}")
        reason = self.backends[backend].refuse(**arguments)
        if reason is not None:
            raise ValueError(f"backend: {self.name} cannot run on {backend!r} here: {reason}")

    def explain(self, backend: str, device: torch.device, arguments: Mapping[str, Any]) -> Explanation:
        backend = self._forced(backend)
        if backend == "auto":
            return Explanation(self.name, *self._automatic(device, arguments))
        self._check(backend, arguments)
        return Explanation(self.name, backend, {name: f"{backend!r} was requested" for name in self.backends if name != backend})

    def choose(self, device: torch.device, arguments: Mapping[str, Any]) -> str:
        """The backend that "auto" takes."""
        return self._first(device, arguments)

    def _first(self, device: torch.device, arguments: Mapping[str, Any]) -> str:
        """What `_automatic` chooses, without reasons that nobody reads."""
        kind = device.type
        for name, candidate in self.backends.items():
            if candidate.prefers is not None and candidate.prefers != kind:
                continue
            if candidate.hold() is None and candidate.refuse(**arguments) is None and (name in _PLAIN or _refuse_recorded() is None):
                return name
        return self._automatic(device, arguments)[0]

    def _automatic(self, device: torch.device, arguments: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        """The name of the backend that runs, and why each other one does not."""
        chosen, refused = None, {}
        for name, candidate in self.backends.items():
            reason = candidate.hold() or candidate.refuse(**arguments)
            if reason is None and name not in _PLAIN:
                reason = _refuse_recorded()
            if reason is None and candidate.prefers not in (None, device.type):
                reason = f"taken only by name, because the tensors are on {device.type}"
            if reason is None and chosen is not None:
                reason = f"could run, but {chosen!r} is preferred"
            if reason is not None:
                refused[name] = reason
            else:
                chosen = name
        if chosen is None:
            raise ValueError(f"{self.name}: no backend can run: " + "; ".join(f"{n}: {r}" for n, r in refused.items()))
        return chosen, refused


def accept(**_: Any) -> None:
    """Refuses nothing: for a backend that runs on anything."""


def is_unwatched() -> bool:
    """Whether nothing is differentiated or seen (`is_unseen`), no backend forced and no call counted.

    On little data an op may then go its shortest way, whose choice takes less time than that among all backends.
    """
    return not torch.is_grad_enabled() and is_unseen() and _FORCED.get() is None and _RECORD.get() is None


def is_forced() -> bool:
    """Whether `use_backend` forces some backend, perhaps on another op."""
    return not torch.compiler.is_compiling() and _FORCED.get() is not None


def _refuse_recorded() -> str | None:
    """Why a backend that is not made of torch's own operations cannot run now, or None."""
    if torch.compiler.is_compiling():
        return "ONNX has no such operator" if torch.onnx.is_in_onnx_export() else None
    return "a transform of torch.func is active" if is_transformed() else None


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    r"""Says which backend an op would run on, given its arguments, and why each other one would not.

    Nothing is computed. The result prints as a table; `chosen` is the backend's name and `refused` maps the others to their reasons.

    Args:
        op: The function or its name, for example "predictive_attention".
        args, kwargs: The arguments the op would be called with, `backend` included.

    Shape:
        - args, kwargs: as the op's

    Raises:
        ValueError: If the op is unknown, or a `backend` requested by name cannot run.

    >>> import torch
    >>> from mea_graph.ops import Pointers, explain, predictive_attention
    >>> q, pointers = torch.randn(3, 2, 4), Pointers.from_ptr(torch.tensor([0, 3]))
    >>> explain(
    ...     predictive_attention,
    ...     q,
    ...     q,
    ...     q,
    ...     pointers,
    ...     prior_query=q,
    ...     prior_key=q,
    ...     weight=torch.randn(2, 2, 3, 3),
    ... ).refused["plain"]
    'a prior is given, and this computes attention without one'
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in _OPS:
        raise ValueError(f"op: expected one of {sorted(_OPS)}, got {name!r}")
    bound = _OPS[name].signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    backend = arguments.pop("backend")
    return _OPS[name].explain(backend, device_of(arguments), arguments)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    r"""Makes every op inside the block run on the backend of that name, where its `backend` is "auto".

    An op that has no backend of that name is left alone; one that has it and cannot run on it raises. The choice holds for the thread (or
    the asynchronous task) that entered the block. It is not seen by `torch.compile`.

    Args:
        name: "reference" for the formulas as they stand, or another name that `explain` prints; "auto" takes a choice back.

    Shape:
        - no tensors

    Raises:
        ValueError: If no op has such a backend.

    >>> import torch
    >>> from mea_graph.ops import explain, use_backend
    >>> from mea_graph.ops import IntervalEdges, Pointers
    >>> q, pointers = torch.randn(3, 2, 4), Pointers.from_ptr(torch.tensor([0, 3]))
    >>> with use_backend("reference"):
    ...     explain(
    ...         "interval_attention",
    ...         q,
    ...         q,
    ...         q,
    ...         IntervalEdges.complete(pointers, pointers),
    ...     ).chosen
    'reference'
    """
    known = sorted({b for op in _OPS.values() for b in op.backends})
    if name != "auto" and name not in known:
        raise ValueError(f"name: expected one of {['auto', *known]}, got {name!r}")
    token = _FORCED.set(None if name == "auto" else name)
    try:
        yield
    finally:
        _FORCED.reset(token)


@contextlib.contextmanager
def record_calls() -> Iterator[Counter[tuple[str, str]]]:
    r"""Counts the calls of ops inside the block, by op and backend. A backward pass runs on the backend of its forward pass.

    Shape:
        - no tensors

    >>> import torch
    >>> from mea_graph.ops import (
    ...     IntervalEdges,
    ...     Pointers,
    ...     interval_attention,
    ...     record_calls,
    ... )
    >>> q, pointers = torch.randn(3, 2, 4), Pointers.from_ptr(torch.tensor([0, 3]))
    >>> with record_calls() as calls:
    ...     _ = interval_attention(
    ...         q, q, q, IntervalEdges.complete(pointers, pointers), backend="cpu"
    ...     )
    >>> dict(calls)
    {('interval_attention', 'cpu'): 1}
    """
    calls: Counter[tuple[str, str]] = Counter()
    token = _RECORD.set(calls)
    try:
        yield calls
    finally:
        _RECORD.reset(token)


def device_of(arguments: Mapping[str, Any]) -> torch.device:
    """The device of the first tensor, inside sequences too."""
    for value in arguments.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Tensor):
                return item.device
    return torch.device("cpu")
