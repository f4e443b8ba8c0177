"""Whatever somebody does to one module inside a layer has its effect: layers that run side by side call it then, or all in turn."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils import parametrize, prune
from torch_geometric.nn.aggr import MeanAggregation

from mea_graph import nn as mea
from mea_graph.nn import _side_by_side
from mea_graph.nn.graph import graph_fusion_conv
from mea_graph.nn.unimodal_extractor import extract_level
from mea_graph.ops import IntervalEdges, Pointers, record_calls

WIDTHS = {"a": 3, "b": 4, "c": 5}
PTR = torch.tensor([0, 5, 5, 7])
KINDS = {
    "forward": lambda see: hooks.register_module_forward_hook(lambda module, given, out: see(module)),
    "forward_pre": lambda see: hooks.register_module_forward_pre_hook(lambda module, given: see(module)),
    "backward": lambda see: hooks.register_module_full_backward_hook(lambda module, given, out: see(module)),
    "backward_pre": lambda see: hooks.register_module_full_backward_pre_hook(lambda module, out: see(module)),
}


@contextmanager
def watched_by_all(kind: str = "forward") -> Iterator[list[nn.Module]]:
    """Notes which modules are called, by a hook on all modules of torch."""
    called: list[nn.Module] = []
    handle = KINDS[kind](called.append)
    try:
        yield called
    finally:
        handle.remove()


@contextmanager
def on(device: str) -> Iterator[None]:
    """On a CPU, or as on a device, where more is joined, or on a CPU by C++, which then takes larger steps."""
    with (
        patch.dict("os.environ", {"MEA_GRAPH_NATIVE": str(int(device == "native"))}),
        patch.object(_side_by_side, "_levels", lambda at, added: device == "device"),
        patch.object(_side_by_side, "_launches", lambda at: device == "device"),
    ):
        yield


@pytest.fixture(scope="module")
def model() -> mea.MEA:
    options: dict[str, Any] = {"exclusive": {"num_layers": 2, "pooling": "mean"}, "agnostic": {"num_layers": 1, "coarse": False}}
    made = mea.MEA(WIDTHS, 2, channels=4, hidden_channels=4, heads=2, dropout=0.0, **options).double().eval()
    for p in made.parameters():
        nn.init.normal_(p, std=0.5)
    return made


@pytest.fixture
def x() -> dict[str, Tensor]:
    return {m: torch.randn(2, 2 + width, width).double().requires_grad_() for m, width in WIDTHS.items()}


def outputs(model: nn.Module, x: dict[str, Tensor]) -> Tensor:
    result = model(x)
    seen = result.discrimination
    parts = [result.prediction, *result.exclusive.values(), *result.agnostic.values(), seen.exclusive, seen.agnostic, seen.importance]
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("device", ["cpu", "device"])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_on_all_modules_of_torch_see_every_call(model: mea.MEA, x: dict[str, Tensor], kind: str, device: str) -> None:
    own: set[nn.Module] = set()
    handles = [part.register_forward_hook(lambda module, given, out: own.add(module)) for part in model.modules()]
    outputs(model, x)
    for handle in handles:
        handle.remove()
    wanted = own - {part for name, part in model.named_modules() if name.endswith(".predictor")}
    if kind.startswith("backward"):  # torch hooks no module whose result is no tensor with a gradient, or a container of such
        wanted = {part for part in wanted if isinstance(part, nn.Linear | nn.LayerNorm | nn.Conv1d | mea.ModalityReinforcementUnit)}
    with on(device):
        joined = outputs(model, x)
        with watched_by_all(kind) as called:
            found = outputs(model, x)
            found.sum().backward()
        assert wanted <= set(called), [name for name, part in model.named_modules() if part in wanted - set(called)]
        torch.testing.assert_close(found, joined, rtol=1e-10, atol=1e-12)
        with record_calls() as calls:
            outputs(model, x)
    assert calls["grouped_linear", "joined"] > 0


class Scaled(nn.Module):
    """A wrapper that passes on what it does not have, as those of checkpointing and of adapters do."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *given: Any, **named: Any) -> Any:
        return scaled(self.inner(*given, **named), self.factor)


def scaled(result: Any, factor: float) -> Any:
    """The result with its first tensor, or its first dict of tensors, times a factor."""
    if isinstance(result, tuple):
        first = scaled(result[0], factor)
        return result._replace(**{result._fields[0]: first}) if hasattr(result, "_fields") else (first, *result[1:])
    return {name: part * factor for name, part in result.items()} if isinstance(result, dict) else result * factor


def wrap(model: nn.Module, name: str, factor: float) -> None:
    model.set_submodule(name, Scaled(model.get_submodule(name), factor))


class Covered(nn.Module):
    """A wrapper that passes nothing on, as `AveragedModel` and `DataParallel` are."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.module, self.scale = inner, factor

    def forward(self, *given: Any, **named: Any) -> Any:
        return scaled(self.module(*given, **named), self.scale)


def cover(model: nn.Module, name: str, factor: float) -> None:
    model.set_submodule(name, Covered(model.get_submodule(name), factor))


OWN: dict[type[nn.Module], type[nn.Module]] = {}


def derive(model: nn.Module, name: str, factor: float) -> None:
    """Gives the module a class of somebody's own."""
    part = model.get_submodule(name)
    kind = type(part)
    part.factor = factor  # type: ignore[assignment]
    if kind not in OWN:
        OWN[kind] = type("Own", (kind,), {"forward": lambda self, *a, **k: scaled(kind.forward(self, *a, **k), self.factor)})
    part.__class__ = OWN[kind]


def hook(model: nn.Module, name: str, factor: float) -> None:
    model.get_submodule(name).register_forward_hook(lambda module, given, out: scaled(out, factor))


def prune_half(model: nn.Module, name: str, factor: float) -> None:
    """A mask, and other weights under it than those that it was made for."""
    part = model.get_submodule(name)
    for weight, _ in list(part.named_parameters(recurse=False)):
        prune.random_unstructured(part, weight, 0.5)
        getattr(part, f"{weight}_orig").data.mul_(factor)


def halve(model: nn.Module, name: str, factor: float) -> None:
    part = model.get_submodule(name)
    for weight, _ in list(part.named_parameters(recurse=False)):
        parametrize.register_parametrization(part, weight, Scaled(nn.Identity(), factor))


CHANGES: dict[str, Callable[[nn.Module, str, float], None]] = {"wrap": wrap, "cover": cover, "derive": derive, "hook": hook}
ON_WEIGHTS = {"prune": prune_half, "parametrize": halve}


@pytest.mark.parametrize(
    ("change", "device"), [*((change, at) for change in [*CHANGES, *ON_WEIGHTS] for at in ("cpu", "native")), ("wrap", "device")]
)
def test_a_change_of_modules_is_that_of_modules_called_in_turn(model: mea.MEA, x: dict[str, Tensor], change: str, device: str) -> None:
    with watched_by_all() as called:
        base = outputs(model, x)
    kinds: dict[str, list[str]] = {}
    for name, part in model.named_modules():
        if (
            part in called
            and name not in ("", "fusion.by_type")
            and (change in CHANGES or any(True for _ in part.parameters(recurse=False)))
        ):
            kinds.setdefault(type(part).__name__, []).append(name)
    for kind, names in kinds.items():
        changed = copy.deepcopy(model)
        torch.manual_seed(0)
        for i, name in enumerate(names):
            (CHANGES | ON_WEIGHTS)[change](changed, name, 1.2 + 0.1 * (i % 5))
        with on(device), torch.no_grad():
            found = outputs(changed, x)
            with watched_by_all():
                wanted = outputs(changed, x)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11, msg=lambda text, kind=kind: f"{kind}: {text}")
        assert not torch.allclose(wanted, base, rtol=1e-9, atol=1e-11), f"{kind}: the change is none"


LAYOUTS: dict[str, Callable[[], tuple[Tensor | Pointers, IntervalEdges | Tensor | None]]] = {
    "rows": lambda: (PTR, None),
    "gaps": lambda: (Pointers(torch.tensor([0, 3, 4]), torch.tensor([2, 1, 3]), 7), None),
    "window": lambda: (PTR, IntervalEdges.window(Pointers.from_ptr(PTR), Pointers.from_ptr(PTR), steps=1)),
    "list": lambda: (PTR, torch.tensor([[0, 1, 4, 5, 6, 2], [0, 0, 3, 6, 6, 2]])),
    "no step": lambda: (torch.tensor([0, 0, 0]), None),
}


def with_prior(layer: mea.PredictiveSelfAttention, layout: str) -> list[Tensor]:
    """The result for some rows and a prior, and its gradients."""
    given, edges = LAYOUTS[layout]()
    torch.manual_seed(1)
    rows = 0 if layout == "no step" else 7
    x, query, key = torch.randn(rows, 4).double(), *torch.randn(2, rows, 2, 3).double()
    leaves = [x.requires_grad_(), query.requires_grad_(), key.requires_grad_()]
    if isinstance(given, Pointers) and not given.packed:
        x, query, key = (leaf.masked_fill(given.gap.view(-1, *[1] * (leaf.dim() - 1)), torch.nan) for leaf in leaves)
    out, _ = layer(x, given, mea.Prior(query, key), edges)
    out = out[given.real] if isinstance(given, Pointers) else out
    return [out, *torch.autograd.grad(out.sin().sum(), leaves, materialize_grads=True, allow_unused=True)]


@pytest.fixture
def layer() -> mea.PredictiveSelfAttention:
    made = mea.PredictiveSelfAttention(4, 2, mu=0.6).double()
    assert made.predictor is not None
    made.predictor.weight.data.mul_(5)
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrapped_predictor_is_called_on_the_maps(layer: Any, layout: str) -> None:
    plain = with_prior(layer, layout)
    bare = copy.deepcopy(layer)
    layer.predictor = Scaled(layer.predictor, 2.0)
    found = with_prior(layer, layout)
    for p in bare.predictor.parameters():
        p.data.mul_(2.0)
    torch.testing.assert_close(found, with_prior(bare, layout), rtol=1e-9, atol=1e-11)
    assert layout == "no step" or not torch.allclose(found[0], plain[0])


def test_a_pruned_predictor_follows_its_weights(layer: Any) -> None:
    """The pruned weight stands in the module as it was, until somebody calls the module."""
    bare = copy.deepcopy(layer)
    mask = torch.rand_like(layer.predictor.weight) < 0.5
    prune.custom_from_mask(layer.predictor, "weight", mask)
    layer.predictor.weight_orig.data.mul_(-3)
    bare.predictor.weight.data.mul_(-3 * mask)
    torch.testing.assert_close(with_prior(layer, "rows"), with_prior(bare, "rows"), rtol=1e-9, atol=1e-11)


def test_a_convolution_of_another_kind_predicts_what_it_says(layer: Any) -> None:
    """The map by hand, for one sample."""
    conv = layer.predictor = nn.Conv2d(2, 2, 3, padding=2, dilation=2).double()
    x, prior = torch.randn(5, 4).double(), mea.Prior(*torch.randn(2, 5, 2, 2).double())
    out, own, drawn = layer(x, None, prior, return_attention_weights=True)
    logits = [q.transpose(0, 1) @ k.permute(1, 2, 0) / 2**0.5 for q, k in (prior, own)]
    wanted = (0.6 * F.gelu(conv(logits[0])) + 0.4 * logits[1].softmax(-1)).softmax(-1)
    torch.testing.assert_close(drawn[0], wanted)
    value = layer.query_key_value(layer.norm(x)).view(5, 3, 2, 2)[:, 2].transpose(0, 1)
    carried = layer.norm(x) + layer.out((wanted @ value).transpose(0, 1).flatten(1))
    torch.testing.assert_close(out, layer.feed_forward(carried))
    layer.predictor = nn.Conv2d(2, 2, 3).double()
    with pytest.raises(ValueError, match=r"predictor: expected \(1, 2, 5, 5\), as the maps that Conv2d was given, got \(1, 2, 3, 3\)"):
        layer(x, None, prior)


def test_an_attention_without_dropout_and_one_with_another(layer: Any) -> None:
    x = torch.randn(5, 4).double()
    wanted, _ = layer.train()(x)
    layer.attention_dropout = nn.Identity()
    torch.testing.assert_close(layer(x)[0], wanted)
    layer.attention_dropout = nn.AlphaDropout(0.5)
    with pytest.raises(TypeError, match=r"attention_dropout: expected nn.Dropout, .* or nn.Identity, got AlphaDropout\(p=0.5"):
        layer(x)


def test_a_convolution_of_another_reach_is_not_joined_on_a_device() -> None:
    """Between samples there are as many rows as the extractor's own kernel sees: a wider one would see the next sample."""
    pointers = [Pointers.from_ptr(torch.tensor([0, 3, 4])), Pointers.from_ptr(torch.tensor([0, 1, 6]))]
    x = [torch.randn(p.num_rows, 3) for p in pointers]
    extractors = [mea.UnimodalExtractor(3, 4) for _ in x]
    with on("device"):
        assert extract_level(extractors, x, pointers) is not None
        for extractor in extractors:
            extractor.conv = nn.Conv1d(3, 4, 5, padding=1)
        assert extract_level(extractors, x, pointers) is None


@pytest.mark.parametrize("change", ["hook", "mean"])
def test_an_aggregation_that_is_replaced_or_watched_is_called_on_a_large_graph(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    conv, x, edges = mea.GraphFusionConv(4, 4), torch.randn(3, 4), torch.tensor([[0, 1, 2, 1], [1, 1, 0, 0]])
    wanted = conv(x, edges)
    monkeypatch.setattr(graph_fusion_conv, "_LARGE", 0)
    with record_calls() as calls:
        torch.testing.assert_close(conv(x, edges), wanted)
    assert sum(calls[op] for op in calls if op[0] == "edge_attention") == 1
    called: list[nn.Module] = []
    if change == "mean":
        conv.aggr_module = MeanAggregation()
        assert not torch.allclose(conv(x, edges), wanted)
    else:
        conv.aggr_module.register_forward_hook(lambda module, given, out: called.append(module))
        torch.testing.assert_close(conv(x, edges), wanted)
        assert called == [conv.aggr_module]


def test_confusion_refuses_replicas_whose_weights_it_cannot_hold() -> None:
    """A replica of `nn.DataParallel` has tensors where a module has parameters."""
    layer = mea.DoubleDiscriminator(4, WIDTHS, adversary="confusion")
    h = {m: torch.randn(2, 4) for m in WIDTHS}
    layer.hidden = layer.hidden._replicate_for_data_parallel()
    layer.hidden.weight, layer.hidden.bias = torch.randn(4, 4), torch.zeros(4)
    with pytest.raises(RuntimeError, match="got a replica of DataParallel; use DistributedDataParallel"):
        layer(h, h)
