"""Features and weights have one dtype, or autocast brings them together: what does not fit is told by its name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch_geometric.data import Batch, HeteroData

from mea_graph import nn as mea

NAMES = ["audio", "text"]
WIDTHS = {"audio": 3, "text": 4}
EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def steps(dtype: torch.dtype) -> Tensor:
    return torch.ones(2, 5, 4, dtype=dtype)


def all_steps(dtype: torch.dtype) -> dict[str, Tensor]:
    return {m: steps(dtype) for m in NAMES}


def nodes(dtype: torch.dtype) -> Tensor:
    return torch.ones(5, 4, dtype=dtype)


def by_type(dtype: torch.dtype) -> dict[str, Tensor]:
    return {f"{m}_{space}": nodes(dtype) for m in "ab" for space in ("exclusive", "agnostic")}


def representations(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {m: nodes(dtype) for m in NAMES}, {m: nodes(dtype) for m in NAMES}


def batch(dtype: torch.dtype) -> Batch:
    return Batch.from_data_list([HeteroData({m: {"x": torch.ones(5, width, dtype=dtype)} for m, width in WIDTHS.items()}) for _ in "ab"])


MAKERS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.dtype], Any], str]] = {
    "UnimodalExtractor": (lambda: mea.UnimodalExtractor(4, 4), steps, "x"),
    "PredictiveSelfAttention": (lambda: mea.PredictiveSelfAttention(4, 2), steps, "x"),
    "ModalityReinforcementUnit": (lambda: mea.ModalityReinforcementUnit(4, 2), steps, "target"),
    "ExclusiveEncoder": (lambda: mea.ExclusiveEncoder(4, 2), steps, "x"),
    "AgnosticEncoder": (lambda: mea.AgnosticEncoder(4, 2, "gru"), steps, "x"),
    "WeightedAttention": (lambda: mea.WeightedAttention(4, NAMES), all_steps, "audio"),
    "PredictiveEncoder": (lambda: mea.PredictiveEncoder(4, NAMES, 2), all_steps, "audio"),
    "CrossModalEncoder": (lambda: mea.CrossModalEncoder(4, NAMES, 2), all_steps, "audio"),
    "fine": (lambda: mea.HierarchicalCrossModalAttention(4, NAMES, 2, mixed=False, coarse=False), all_steps, "audio"),
    "ExclusiveBranch": (lambda: mea.ExclusiveBranch(4, 4, NAMES, 2), all_steps, "audio"),
    "AgnosticBranch": (lambda: mea.AgnosticBranch(4, 4, NAMES, 2), all_steps, "audio"),
    "exclusive, no attention": (lambda: mea.ExclusiveBranch(4, 4, NAMES, num_layers=0), all_steps, "audio"),
    "agnostic, no attention": (lambda: mea.AgnosticBranch(4, 4, NAMES, num_layers=0), all_steps, "audio"),
    "GraphFusionConv": (lambda: mea.GraphFusionConv(4, 3, heads=2), nodes, "x"),
    "GraphFusionConv, a pair": (lambda: mea.GraphFusionConv((4, 4), 3), lambda dtype: (nodes(dtype), nodes(dtype)), r"x\[0\]"),
    "GraphFusionConv, lazy": (lambda: mea.GraphFusionConv(-1, 3), nodes, "x"),
    "DecoupledGraphFusion": (lambda: mea.DecoupledGraphFusion(4, 3), by_type, r"x_dict\['a_exclusive'\]"),
    "PredictionHead": (lambda: mea.PredictionHead(4, 3, 2), nodes, "input"),
    "PredictionHead, norm": (lambda: mea.PredictionHead(4, 3, 2, norm=True), nodes, "input"),
    "DoubleDiscriminator": (lambda: mea.DoubleDiscriminator(4, NAMES), representations, r"exclusive\['audio'\]"),
    "DoubleDiscriminator, confusion": (
        lambda: mea.DoubleDiscriminator(4, NAMES, adversary="confusion"),
        lambda dtype: (None, representations(dtype)[1]),
        r"agnostic\['audio'\]",
    ),
    "MEA": (lambda: mea.MEA(WIDTHS, 1, channels=4, heads=2), batch, "audio"),
}


def run(layer: nn.Module, x: Any) -> Any:
    if isinstance(layer, mea.ModalityReinforcementUnit):
        return layer(x, source=x)
    if isinstance(layer, mea.GraphFusionConv):
        return layer(x, EDGES)
    if isinstance(layer, mea.DecoupledGraphFusion):
        types = [(f"a_{space}", "to", f"b_{space}") for space in ("exclusive", "agnostic")]
        of_sample = {name: torch.arange(5) for name in x}
        return layer(x, dict.fromkeys(types, EDGES), of_sample, num_samples=5)
    return layer(*x) if isinstance(layer, mea.DoubleDiscriminator) else layer(x)


@pytest.mark.parametrize("name", MAKERS)
def test_another_dtype_is_refused_by_name_and_the_same_taken(name: str) -> None:
    make, given, called = MAKERS[name]
    layer = make().eval()
    for of_weights in (torch.float32, torch.float64):
        layer.to(of_weights)
        run(layer, given(of_weights))
        for dtype in DTYPES:
            if dtype != of_weights:
                message = f"^{called}: expected {of_weights}, the dtype of the weights, got {dtype}; {called}.to"
                with torch.no_grad(), pytest.raises(TypeError, match=message):
                    run(layer, given(dtype))


@pytest.mark.parametrize("name", MAKERS)
def test_autocast_takes_what_it_brings_together(name: str) -> None:
    make, given, called = MAKERS[name]
    layer = make().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            run(layer, given(dtype))
        with pytest.raises(TypeError, match=rf"^{called}: expected torch.float32, the dtype of the weights, got torch.float64"):
            run(layer, given(torch.float64))


@pytest.mark.parametrize("form", ["rows", "padded", "one sample"])
def test_the_modality_that_differs_is_named_in_every_form(form: str) -> None:
    model = mea.MEA(WIDTHS, 1, channels=4, heads=2).eval()
    x: dict[str, Tensor] = {m: torch.ones(2, 5, width) for m, width in WIDTHS.items()}
    x["text"] = x["text"].double()
    rows = {m: v.flatten(0, 1) for m, v in x.items()}, {m: torch.tensor([0, 5, 10]) for m in x}
    padded = x, {m: torch.ones(2, 5, dtype=torch.bool) for m in x}
    given: Any = {"rows": rows, "padded": padded, "one sample": ({m: v[0] for m, v in x.items()},)}[form]
    with pytest.raises(TypeError, match=r"^text: expected torch.float32, the dtype of the weights, got torch.float64"):
        model(*given)
    with pytest.raises(TypeError, match=r"^source\[1\]: expected torch.float32"):
        mea.ModalityReinforcementUnit(4, 2)(steps(torch.float32), source=[steps(torch.float32), steps(torch.float64)])


def test_weights_that_say_nothing_of_features_are_not_asked() -> None:
    """A weight that is computed would be computed, and drawn, once more; one of integers stands for floats."""
    extractor = mea.UnimodalExtractor(4, 4)
    asked = []

    class Asked(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            asked.append(weight)
            return weight

    parametrize.register_parametrization(extractor.conv, "weight", Asked())
    asked.clear()
    extractor(steps(torch.float32))
    assert len(asked) == 1

    encoder = mea.ExclusiveEncoder(4, 2)
    encoder.hidden.weight = nn.Parameter(torch.zeros(2, 4, dtype=torch.int8), requires_grad=False)
    encoder.hidden.forward = lambda x: torch.zeros(x.size(0), 2)  # type: ignore[method-assign,assignment]
    encoder(steps(torch.float64))


def test_a_module_for_training_converts_features_itself() -> None:
    train = pytest.importorskip("mea_graph.train")
    module = train.MEAModule(WIDTHS, "regression", 1, channels=4, heads=2).eval()
    with torch.no_grad():
        expected = module.run(batch(torch.float32)).prediction
        for dtype in DTYPES:  # ones are the same in all of them
            assert torch.equal(module.run(batch(dtype)).prediction, expected)


def test_compiled_and_exported_it_is_refused_too() -> None:
    layer = mea.UnimodalExtractor(4, 4).eval()
    x = steps(torch.float32)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))
    with pytest.raises(Exception, match=r"expected torch.float32, the dtype of the weights"):
        torch.export.export(layer, (x.double(),))
