"""The directive `backends`: a table of the backend that each op takes, and why it takes no other, made by calling `explain` when the site
is built.

The table does not depend on the machine that builds the site. The tensors on "cuda" are fake: they have a device, a shape and a dtype, but
no values. Triton and the CUDA driver count as installed, and the GPU has compute capability 9.0.
"""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.nodes import nested_parse_with_titles
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mea_graph.ops import IntervalEdges, Pointers, backends

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _rows(device: str, dtype: torch.dtype) -> tuple[Tensor, Pointers]:
    """Queries of two samples, and where their rows are."""
    start, length = torch.empty(2, device=device, dtype=torch.int64), torch.empty(2, device=device, dtype=torch.int64)
    return torch.empty(80, 8, 5, device=device, dtype=dtype), Pointers(start, length, 80, packed=True)


def _predictive(device: str, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    q, pointers = _rows(device, dtype)
    weight, bias = torch.empty(8, 8, 3, 3, device=device, dtype=dtype), torch.empty(8, device=device, dtype=dtype)
    call: dict[str, Any] = {"query": q, "key": q, "value": q, "pointers": pointers, "mu": 0.25}
    guided = call | {"prior_query": q, "prior_key": q, "weight": weight, "bias": bias}
    yield "with a prior", guided
    yield "with a prior, edges as a list", guided | {"edges": torch.empty(2, 30, device=device, dtype=torch.int64)}
    yield "first layer, no prior", call


def _interval(device: str, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    q, pointers = _rows(device, dtype)
    call: dict[str, Any] = {"query": q, "key": q, "value": q}
    run = torch.empty(80, 1, device=device, dtype=torch.int64)
    yield "all of the sample", call | {"edges": IntervalEdges.complete(pointers, pointers)}
    yield "a window of each step", call | {"edges": IntervalEdges([pointers], pointers, run, run)}
    yield "edges as a list", call | {"edges": torch.empty(2, 30, device=device, dtype=torch.int64)}


def _edge(device: str, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    x, score = torch.empty(6, 1, 64, device=device, dtype=dtype), torch.empty(6, 1, device=device, dtype=dtype)
    yield "any graph", {"x": x, "score_dst": score, "score_src": score, "edge_index": torch.empty(2, 30, device=device, dtype=torch.long)}


# The ops that a user calls; layers have others beside them that join calls on few rows.
CASES = {"predictive_attention": _predictive, "interval_attention": _interval, "edge_attention": _edge}


def explanations(op: str, device: str) -> dict[tuple[str, torch.dtype], backends.Explanation]:
    """The answers of `explain` for each case and dtype, on a machine with a GPU, a C++ compiler and all that the kernels need."""
    out = {}
    with (
        FakeTensorMode(),
        patch("torch.cuda.get_device_capability", lambda *_: (9, 0)),
        patch("mea_graph.ops.edge.cuda._what_is_missing", lambda device: None),
        patch("mea_graph.ops.interval.triton.INSTALLED", True),
        patch("mea_graph.ops.native.library._library", object),
        patch("torch.version.hip", None),
        patch.dict("os.environ", {"TRITON_INTERPRET": "0", "MEA_GRAPH_NATIVE": "1"}),
    ):
        for dtype in DTYPES:
            for case, arguments in CASES[op](device, dtype):
                out[case, dtype] = backends.explain(op, **arguments)
    return out


def _by_dtype(said: dict[torch.dtype, str]) -> str:
    """What is said, with the dtypes it is said of where they differ."""
    groups: dict[str, list[str]] = {}
    for dtype, text in said.items():
        groups.setdefault(text, []).append(str(dtype).removeprefix("torch."))
    return ", ".join(text + (f" ({', '.join(dtypes)})" if len(groups) > 1 else "") for text, dtypes in groups.items())


def _could(reason: str) -> bool:
    return reason.startswith(("could run", "taken only by name"))


def table(op: str) -> list[str]:
    """The lines of a Markdown table, one a device and case."""
    lines = ["| Device | Case | Runs on | Could run, by name | Cannot |", "|---|---|---|---|---|"]
    for device in ("cpu", "cuda"):
        found = explanations(op, device)
        for case in dict.fromkeys(case for case, _ in found):
            per_dtype = {dtype: found[case, dtype] for dtype in DTYPES}
            runs = _by_dtype({dtype: f"`{e.chosen}`" for dtype, e in per_dtype.items()})
            refused = per_dtype[torch.float32].refused
            could = ", ".join(f"`{name}`" for name, reason in refused.items() if _could(reason))
            cannot = ", ".join(f"`{name}`" for name, reason in refused.items() if not _could(reason))
            lines.append(f"| {device} | {case} | {runs} | {could} | {cannot} |")
    return lines


def reasons(op: str) -> list[str]:
    """The lines of a Markdown list: why a backend cannot run, in the words of `explain`."""
    said: dict[str, dict[str, None]] = {}
    for device in ("cpu", "cuda"):
        for (_, dtype), explanation in explanations(op, device).items():
            for name, reason in explanation.refused.items() if dtype is torch.float32 else ():
                if not _could(reason):
                    said.setdefault(name, {})[reason] = None
    return ["", "Why one cannot run, in the words of `explain`:", "", *(f"- `{name}`: {'; '.join(found)}" for name, found in said.items())]


class Backends(Directive):
    """`{backends} op` shows the table of an op and the reasons, on a page in Markdown."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        section = nodes.section()
        section.document = self.state.document
        nested_parse_with_titles(self.state, StringList(table(self.arguments[0]) + reasons(self.arguments[0]), source=__file__), section)
        return section.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("backends", Backends)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
