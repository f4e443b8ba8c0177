"""What every public layer promises beyond its equation: seeds, copies, precision, dropout, gradients, meta tensors, compilation, export."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mea_graph import nn as mea
from mea_graph.ops.native import library

D, HEADS, D_H = 8, 2, 6
NAMES = {"text": 5, "audio": 3, "vision": 4}
LENGTHS = {"text": [4, 1, 3], "audio": [6, 5, 0], "vision": [2, 7, 2]}
EDGES = torch.tensor([[0, 1, 2, 2], [1, 0, 0, 1]])


class Case(NamedTuple):
    build: Callable[..., nn.Module]  # takes dropout=, where the layer has it
    call: Callable[[Any, dict[str, Tensor], dict[str, Tensor]], list[Tensor]]  # the outputs for sequences and masks
    dropout: bool = True
    differentiable: int | None = None  # so many outputs first; the others stem from detached tensors on purpose


class Called(nn.Module):
    """A layer and how it is called, as one module from tensors to tensors."""

    def __init__(self, case: Case, module: nn.Module) -> None:
        super().__init__()
        self.call, self.module = case.call, module

    def forward(self, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
        return self.call(self.module, x, mask)


def sequence(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
    return [module(x["text"], mask["text"])]


def predictive(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
    y, prior = module(x["text"], mask["text"])
    return [y, module(y, mask["text"], prior)[0]]


def unit(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
    return [module(x["text"], mask["text"], source=[x["audio"], x["vision"]], source_layout=[mask["audio"], mask["vision"]])]


def branch(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
    return list(module(x, mask).x.values())


def combined(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
    return [module(vectors(x), {m: v.any(1) for m, v in mask.items()})]


def vectors(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {m: v[:, 0] for m, v in x.items()}


def fused(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
    graph = mea.fusion_graph(vectors(x), vectors(x), mask and {m: v.any(1) for m, v in mask.items()}, keep_absent=True)
    there = graph.collect("present", allow_empty=True)
    return list(module(graph.x_dict, graph.edge_index_dict, graph.sample_dict, graph.num_samples, there).x.values())


def whole(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
    raw = {m: v[..., : NAMES[m]] for m, v in x.items()}
    output = module(raw, mask)
    return [output.prediction, *output.exclusive.values(), *output.agnostic.values(), output.discrimination.agnostic]


def centring() -> nn.Module:
    """In evaluation: in training each call moves the means."""
    module = mea.ModalityCentering(D, NAMES)
    module.mean.normal_()
    return module.eval()


def objective(module: nn.Module, x: dict[str, Tensor], mask: dict[str, Tensor]) -> list[Tensor]:
    present, h = {m: v.any(1) for m, v in mask.items()}, vectors(x)
    ones = x["text"].new_ones(x["text"].size(0), 3)
    seen = mea.Discrimination(torch.stack([v[:, :3] for v in h.values()], 1), torch.stack([v[:, 3:6] for v in h.values()], 1), None, ones)
    output = mea.MEAOutput(x["text"][:, 0, :1], h, h, present, mea.fusion_graph(h, h), x["text"][:, 0], seen, {}, [], {}, [], {})
    return list(module(output, x["audio"][:, 0, 0]))


CASES = {
    "AgnosticEncoder": Case(lambda **o: mea.AgnosticEncoder(D, D_H, **o), sequence),
    "CrossModalEncoder": Case(
        lambda **o: mea.CrossModalEncoder(D, NAMES, HEADS, **o), lambda module, x, mask: list(module(x, mask)[0].values())
    ),
    "DecoupledGraphFusion": Case(lambda: mea.DecoupledGraphFusion(D, D_H), fused, dropout=False),
    "DoubleDiscriminator": Case(
        lambda: mea.DoubleDiscriminator(D, NAMES),
        lambda module, x, mask: list(module(vectors(x), vectors(x)))[:4],
        dropout=False,
        differentiable=2,
    ),
    "DoubleDiscriminator confusion": Case(
        lambda: mea.DoubleDiscriminator(D, NAMES, adversary="confusion"),
        lambda module, x, mask: list(module(vectors(x), vectors(x))),
        dropout=False,
        differentiable=1,
    ),
    "ExclusiveEncoder": Case(lambda **o: mea.ExclusiveEncoder(D, D_H, **o), sequence),
    "ExclusiveEncoder segments": Case(lambda **o: mea.ExclusiveEncoder(D, D_H, "segments", **o), sequence),
    "ExclusiveEncoder max": Case(lambda **o: mea.ExclusiveEncoder(D, D_H, "max", **o), sequence),
    "ExclusiveEncoder gru": Case(lambda **o: mea.ExclusiveEncoder(D, D_H, "gru", **o), sequence),
    "FeedForward": Case(lambda **o: mea.FeedForward(D, **o), lambda module, x, mask: [module(x["text"])]),
    "GradientReversal": Case(lambda: mea.GradientReversal(0.5), lambda module, x, mask: [module(x["text"])], dropout=False),
    "GraphFusionConv": Case(
        lambda **o: mea.GraphFusionConv(D, D_H, HEADS, **o), lambda module, x, mask: [module(x["text"][:, 0], mask.get("edges", EDGES))]
    ),
    "HierarchicalCrossModalAttention": Case(
        lambda **o: mea.HierarchicalCrossModalAttention(D, NAMES, HEADS, **o), lambda module, x, mask: list(module(x, mask).x.values())
    ),
    "ExclusiveBranch": Case(lambda **o: mea.ExclusiveBranch(D, D_H, NAMES, HEADS, num_layers=2, **o), branch),
    "AgnosticBranch": Case(lambda **o: mea.AgnosticBranch(D, D_H, NAMES, HEADS, num_layers=1, **o), branch),
    "Combination": Case(lambda: mea.Combination("addition", D, NAMES), combined, dropout=False),
    "PredictionHead": Case(lambda **o: mea.PredictionHead(D, D_H, 2, norm=True, **o), lambda module, x, mask: [module(x["text"][:, 0])]),
    "MEA": Case(
        lambda **o: mea.MEA.published(
            NAMES, 2, channels=D, hidden_channels=D_H, heads=HEADS, exclusive={"num_layers": 2}, agnostic={"num_layers": 1}, **o
        ),
        whole,
    ),
    "MEALoss": Case(lambda: mea.MEALoss(alpha=0.5, beta=0.5), objective, dropout=False),
    "ModalityCentering": Case(
        centring, lambda module, x, mask: list(module(vectors(x), {m: v.any(1) for m, v in mask.items()}).values()), dropout=False
    ),
    "ModalityReinforcementUnit": Case(lambda **o: mea.ModalityReinforcementUnit(D, HEADS, **o), unit),
    "PredictiveEncoder": Case(
        lambda **o: mea.PredictiveEncoder(D, NAMES, HEADS, **o), lambda module, x, mask: list(module(x, mask).x.values())
    ),
    "PredictiveSelfAttention": Case(lambda **o: mea.PredictiveSelfAttention(D, HEADS, **o), predictive),
    "UnimodalExtractor": Case(lambda **o: mea.UnimodalExtractor(D, D, **o), sequence),
    "WeightedAttention": Case(
        lambda: mea.WeightedAttention(D, NAMES), lambda module, x, mask: list(module(x, mask)[0].values()), dropout=False
    ),
}
# AOTAutograd takes half a minute and more over them.
MANY_LAYERS = ("AgnosticBranch", "CrossModalEncoder", "HierarchicalCrossModalAttention", "MEA", "PredictiveEncoder")
every_layer = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def mask() -> dict[str, Tensor]:
    return {m: torch.arange(max(n)) < torch.tensor(n)[:, None] for m, n in LENGTHS.items()}


@pytest.fixture
def x() -> dict[str, Tensor]:
    return {m: torch.randn(3, max(n), D) for m, n in LENGTHS.items()}


def drawn(module: nn.Module, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    module.reset_parameters()
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(a, e), f"output {i}"


def test_the_table_holds_every_layer() -> None:
    layers = {name for name in mea.__all__ if isinstance(getattr(mea, name), type) and issubclass(getattr(mea, name), nn.Module)}
    assert {name.split()[0] for name in CASES} == layers


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if any(True for _ in case.build().parameters())])
def test_reset_parameters_draws_all_weights_anew(name: str) -> None:
    module = CASES[name].build()
    parameters = dict(module.named_parameters())
    norms = {f"{n}.{p}" for n, m in module.named_modules() if isinstance(m, nn.LayerNorm) for p, _ in m.named_parameters()}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(7)
    one, again, other = (drawn(module, seed) for seed in (1, 1, 2))
    for n in parameters:
        assert not (one[n] == 7).any(), n
        assert torch.equal(one[n], again[n]), n
        assert torch.equal(one[n], other[n]) == (n in norms), n


@every_layer
def test_one_seed_builds_one_layer(name: str) -> None:
    layers = []
    for _ in range(2):
        torch.manual_seed(5)
        layers.append(CASES[name].build().state_dict())
    torch.testing.assert_close(*layers, rtol=0, atol=0)


@every_layer
def test_copies_compute_the_same(name: str, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    case = CASES[name]
    module = case.build()
    expected = case.call(module, x, mask)
    equal(case.call(copy.deepcopy(module), x, mask), expected)
    equal(case.call(pickle.loads(pickle.dumps(module)), x, mask), expected)
    file, fresh = io.BytesIO(), case.build()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    equal(case.call(fresh, x, mask), expected)


@every_layer
@pytest.mark.parametrize(
    "native", [False, pytest.param(True, marks=pytest.mark.skipif(library.refuse() is not None, reason="no compiler"))]
)
def test_gradients_of_two_passes_add_up(
    name: str, native: bool, x: dict[str, Tensor], mask: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are changed in place: by a second backward pass, by clipping, by a scaler. So no two of them may share memory."""
    monkeypatch.setenv("MEA_GRAPH_NATIVE", str(int(native)))
    case = CASES[name]
    module, inputs = case.build().double(), {m: v.double().requires_grad_() for m, v in x.items()}
    leaves = [*module.parameters(), *inputs.values()]

    def backward() -> None:
        torch.stack([v.square().sum() for v in case.call(module, inputs, mask)[: case.differentiable]]).sum().backward()

    backward()
    once = [None if v.grad is None else v.grad.clone() for v in leaves]
    backward()
    for v, grad in zip(leaves, once, strict=True):
        assert grad is None or torch.equal(v.grad, 2 * grad)
    memory = [v.grad.data_ptr() for v in leaves if v.grad is not None and v.grad.numel()]
    assert len(set(memory)) == len(memory)


@every_layer
def test_a_second_run_and_other_strides_give_the_same_and_leave_the_input_alone(name: str, x, mask) -> None:
    case = CASES[name]
    module, before = case.build(), {m: v.clone() for m, v in x.items()}
    expected = case.call(module, x, mask)
    equal(case.call(module, x, mask), expected)
    strided = {m: v.mT.contiguous().mT for m, v in x.items()}
    assert not any(v.is_contiguous() for v in strided.values())
    for actual, wanted in zip(case.call(module, strided, mask), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@every_layer
def test_float64_stays_float64_and_float32_is_near_it(name: str, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    case = CASES[name]
    module = case.build()
    single = case.call(module, x, mask)
    double = case.call(module.double(), {m: v.double() for m, v in x.items()}, mask)
    for s, d in zip(single, double, strict=True):
        assert (s.dtype, d.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(s.double(), d, rtol=1e-4, atol=1e-5)


@every_layer
def test_bfloat16_autocast_stays_near_float32(name: str, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    """bfloat16 holds eight bits: outputs agree to some percent of their size, gradients are finite."""
    case = CASES[name]
    module = case.build()
    inputs = {m: v.clone().requires_grad_() for m, v in x.items()}
    with torch.autocast("cpu", torch.bfloat16):
        low = case.call(module, inputs, mask)
    for actual, expected in zip(low, case.call(module, x, mask), strict=True):
        assert actual.isfinite().all()
        assert (actual.float() - expected).norm() <= 0.05 * expected.norm()
    torch.stack([v.float().sum() for v in low]).sum().backward()
    assert all(v.grad.isfinite().all() for v in inputs.values() if v.grad is not None)
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_takes_a_batch_of_no_sample(name: str, dtype: torch.dtype, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    """Weights and input of 16 bits, and autocast; what is made for an empty part may be of another type than what is computed."""
    case = CASES[name]
    no_edges = {"edges": EDGES[:, :0]} if name == "GraphFusionConv" else {}
    for module, given, autocast in ((case.build().to(dtype), dtype, False), (case.build(), torch.float32, True)):
        with torch.autocast("cpu", dtype, enabled=autocast):
            wanted = [v.dtype for v in case.call(module, {m: v.to(given) for m, v in x.items()}, mask)]
            inputs = {m: v[:0].to(given).requires_grad_() for m, v in x.items()}
            outputs = case.call(module, inputs, {**{m: v[:0] for m, v in mask.items()}, **no_edges})
        assert [v.dtype for v in outputs] == wanted
        torch.stack([v.float().sum() for v in outputs]).sum().backward()
        assert all(v.isfinite().all() for v in outputs)
        assert all(v.grad.isfinite().all() for v in [*inputs.values(), *module.parameters()] if v.grad is not None)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dropout])
def test_dropout_acts_in_training_alone(name: str, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    module = case.build(dropout=0.5)
    torch.manual_seed(1)
    plain = case.build()
    one, other = case.call(module, x, mask), case.call(module, x, mask)
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    equal(case.call(module.eval(), x, mask), case.call(plain, x, mask))


@pytest.mark.parametrize("name", [name for name in CASES if name != "GradientReversal"])  # its gradient is wrong on purpose
def test_gradcheck(name: str, monkeypatch: pytest.MonkeyPatch, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    """For the inputs, and for all parameters at once along one direction. Differences cross the kinks of ReLU, so it is replaced."""
    monkeypatch.setattr(mea.GradientReversal, "forward", lambda self, x: x)
    case = CASES[name]
    called = Called(case, case.build()).double()
    for block in called.modules():
        if isinstance(block, mea.FeedForward):
            block.activation = nn.SiLU()
    parameters = {n: (p.detach(), torch.randn_like(p)) for n, p in called.named_parameters()}

    def outputs(step: Tensor, *sequences: Tensor) -> tuple[Tensor, ...]:
        moved = {n: p + step * direction for n, (p, direction) in parameters.items()}
        found = torch.func.functional_call(called, moved, (dict(zip(x, sequences, strict=True)), mask))[: case.differentiable]
        return tuple(found)

    leaves = [torch.zeros((), dtype=torch.float64), *(v.double() for v in x.values())]
    assert torch.autograd.gradcheck(outputs, [v.requires_grad_() for v in leaves], fast_mode=True)


@every_layer
def test_meta_tensors_give_the_shapes(name: str, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    """Without a mask for the model: on meta tensors, which hold no values, it cannot count the nodes of its graph."""
    case = CASES[name]
    given = None if name == "MEA" else mask
    expected = case.call(case.build(), x, given)
    with torch.device("meta"):
        module = case.build()
    on_meta = [{m: v.to("meta") for m, v in d.items()} if d else None for d in (x, given)]
    for actual, wanted in zip(case.call(module, *on_meta), expected, strict=True):
        assert (actual.device.type, actual.shape, actual.dtype) == ("meta", wanted.shape, wanted.dtype)


@every_layer
def test_compiles_into_one_graph(name: str, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    """Values and gradients are those of the eager layer."""
    torch.compiler.reset()
    case = CASES[name]
    called = Called(case, case.build()).double()  # padding is walked when traced and skipped eagerly: float32 would differ by rounding
    results = []
    backend = "eager" if name in MANY_LAYERS else "aot_eager"
    for f in (called, torch.compile(called, fullgraph=True, backend=backend)):
        sequences = {m: v.double().requires_grad_() for m, v in x.items()}
        outputs = f(sequences, mask)
        called.zero_grad()
        torch.stack([v.square().sum() for v in outputs if v.requires_grad]).sum().backward()
        gradients = [v.grad for v in sequences.values() if v.grad is not None]
        results.append((outputs, gradients, [p.grad for p in called.parameters()]))
    torch.testing.assert_close(results[1], results[0])


@every_layer
def test_exports_for_any_batch_and_lengths(name: str, x: dict[str, Tensor], mask: dict[str, Tensor]) -> None:
    called = Called(CASES[name], CASES[name].build()).eval()
    batch = torch.export.Dim("batch")
    sizes = {m: {0: batch, 1: torch.export.Dim(f"steps_{m}")} for m in x}
    exported = torch.export.export(called, (x, mask), dynamic_shapes=(sizes, sizes)).module()
    for longest, samples in ((9, 5), (5, 4)):
        x = {m: torch.randn(samples, longest + i, D) for i, m in enumerate(x)}
        mask = {m: torch.arange(v.size(1)) < torch.randint(0, v.size(1) + 1, (samples, 1)) for m, v in x.items()}
        torch.testing.assert_close(exported(x, mask), called(x, mask))
