"""The directive `backends`: which backend each op takes, asked of the ops themselves when the site is built.

A GPU is not needed for it: the tensors on "cuda" have a device, a shape and a dtype, but no values (fake tensors), and the GPU is said to
have compute capability 9.0.
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
from torch._subclasses.fake_tensor import FakeTensorMode

from mea_graph.ops import IntervalEdges, Pointers, backends

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _rows(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, Pointers, dict[str, Any]]:
    """The heads of 100 rows, where the rows of two samples are, and the kinds of edges between rows."""
    start, begin = (torch.empty(size, device=device, dtype=torch.int64) for size in ((2,), (100, 1)))
    pointers = Pointers(start, start, 100, packed=True)
    edges = {
        "all of the sample": IntervalEdges.complete(pointers, pointers),
        "a window": IntervalEdges([pointers], pointers, begin, begin),
        "an edge_index": torch.empty(2, 400, device=device, dtype=torch.int64),
    }
    return torch.empty(100, 8, 5, device=device, dtype=dtype), pointers, edges


def _predictive(device: str, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    q, pointers, edges = _rows(device, dtype)
    prior = {"prior_query": q, "prior_key": q, "weight": torch.empty(8, 8, 3, 3, device=device, dtype=dtype)}
    call = {"query": q, "key": q, "value": q, "pointers": pointers, **prior, "bias": torch.empty(8, device=device, dtype=dtype)}
    for name, kind in edges.items():
        yield f"with a prior, {name}", call | {"edges": kind}
    yield "first layer, no prior", call | dict.fromkeys(["prior_query", "prior_key", "weight", "bias"])


def _interval(device: str, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    q, _, edges = _rows(device, dtype)
    for name, kind in edges.items():
        yield name, {"query": q, "key": q, "value": q, "edges": kind}


def _edge(device: str, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    x, score = torch.empty(6, 1, 64, device=device, dtype=dtype), torch.empty(6, 1, device=device, dtype=dtype)
    yield "any graph", {"x": x, "score_dst": score, "score_src": score, "edge_index": torch.empty(2, 30, device=device, dtype=torch.long)}


def _grouped(device: str, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    x, bias = torch.empty(100, 8, device=device, dtype=dtype), torch.empty(8, device=device, dtype=dtype)
    yield (
        "three groups",
        {
            "x": x,
            "weights": [torch.empty(8, 8, device=device, dtype=dtype)] * 3,
            "biases": [bias] * 3,
            "starts": [0, 10, 60],
            "sizes": [10, 50, 40],
        },
    )


def _grouped_norm(device: str, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, call in _grouped(device, dtype):
        yield name, call | {"weights": call["biases"]}


CASES = {
    "predictive_attention": _predictive,
    "interval_attention": _interval,
    "edge_attention": _edge,
    "grouped_linear": _grouped,
    "grouped_layer_norm": _grouped_norm,
}


def explanations(op: str, device: str) -> dict[tuple[str, torch.dtype], backends.Explanation]:
    """What `explain` says of each case and dtype, were there a GPU with all that its kernels need."""
    out = {}
    with (
        FakeTensorMode(),
        patch("torch.cuda.get_device_capability", lambda *_: (9, 0)),
        patch("mea_graph.ops.edge_attention.cuda._what_is_missing", lambda device: None),
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


def table(op: str) -> list[str]:
    """The lines of a Markdown table, one a device and case."""
    lines = ["| Device | Case | Runs on | Could run, by name | Cannot, and why |", "|---|---|---|---|---|"]
    for device in ("cpu", "cuda"):
        found = explanations(op, device)
        for case in dict.fromkeys(case for case, _ in found):
            per_dtype = {dtype: found[case, dtype] for dtype in DTYPES}
            runs = _by_dtype({dtype: f"`{e.chosen}`" for dtype, e in per_dtype.items()})
            refused = per_dtype[torch.float32].refused
            could = [name for name, reason in refused.items() if reason.startswith(("could run", "taken only when asked"))]
            cannot = "; ".join(f"`{name}`: {reason}" for name, reason in refused.items() if name not in could)
            lines.append(f"| {device} | {case} | {runs} | {', '.join(f'`{name}`' for name in could)} | {cannot} |")
    return lines


class Backends(Directive):
    """`{backends} op` shows the table of an op, on a page in Markdown."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        section = nodes.section()
        section.document = self.state.document
        nested_parse_with_titles(self.state, StringList(table(self.arguments[0]), source=__file__), section)
        return section.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("backends", Backends)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
