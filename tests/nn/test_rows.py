"""Every sequence layer gives the same for rows with ptr, for rows with gaps and for a padded batch, alone and beside other layers."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import aggr

from mea_graph import nn as mea
from mea_graph.ops import IntervalEdges, Pointers, record_calls, use_backend

D, HEADS = 4, 2
LENGTHS = {"text": [3, 0, 1, 2], "audio": [5, 4, 0, 0], "vision": [2, 0, 4, 0]}  # no sample has all, the last has text alone
FULL = {"text": [3, 1, 2], "audio": [5, 4, 1], "vision": [2, 2, 3]}
EQUAL = {"text": [3, 3], "audio": [2, 2], "vision": [4, 4]}
Rows = dict[str, Tensor]
Layouts = dict[str, Any]


def ptr(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)])


def rows(lengths: dict[str, list[int]], width: int = D) -> Rows:
    return {m: torch.randn(sum(n), width, dtype=torch.float64) for m, n in lengths.items()}


def dense(x: Rows, lengths: dict[str, list[int]], spare: int = 1) -> tuple[Rows, Layouts]:
    """Padded, with NaN in the padding."""
    padded, masks = {}, {}
    for m, n in lengths.items():
        masks[m] = torch.arange(max(n) + spare) < torch.tensor(n)[:, None]
        padded[m] = torch.full((*masks[m].shape, x[m].size(1)), torch.nan, dtype=x[m].dtype)
        padded[m][masks[m]] = x[m]
    return padded, masks


def with_gaps(x: Rows, lengths: dict[str, list[int]]) -> tuple[Rows, Layouts]:
    """What a padded batch is where no number may be read: rows with gaps of zeros."""
    padded, masks = dense(x, lengths)
    return {m: v.nan_to_num(0).flatten(0, 1) for m, v in padded.items()}, {m: Pointers.from_mask(k) for m, k in masks.items()}


def self_attention(module: Any, x: Rows, layout: Layouts) -> Rows:
    out = {}
    for m in x:
        z, prior = module(x[m], layout[m])
        out[m], _ = module(z, layout[m], prior)
    return out


def unit(module: Any, x: Rows, layout: Layouts) -> Rows:
    sources, layouts = [x["audio"], x["vision"]], [layout["audio"], layout["vision"]]
    return {"text": module(x["text"], layout["text"], source=sources, source_layout=layouts)}


def each(module: Any, x: Rows, layout: Layouts) -> Rows:
    return {m: module(x[m], layout[m]) for m in x}


def pooled(module: Any, x: Rows, layout: Layouts) -> Rows:
    return {f"-{m}": module(x[m], layout[m]) for m in x}


def whole(module: Any, x: Rows, layout: Layouts) -> Rows:
    output = module(x, layout)
    return {"-prediction": output.prediction} | {f"-{m}": h for m, h in output.agnostic.items()}


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Rows, Layouts], Rows]]] = {
    "UnimodalExtractor": (lambda: mea.UnimodalExtractor(D, D), each),
    "PredictiveSelfAttention": (lambda: mea.PredictiveSelfAttention(D, HEADS), self_attention),
    "WeightedAttention": (lambda: mea.WeightedAttention(D, LENGTHS), lambda module, x, layout: module(x, layout)[0]),
    "PredictiveEncoder": (lambda: mea.PredictiveEncoder(D, LENGTHS, HEADS), lambda module, x, layout: module(x, layout).x),
    "ModalityReinforcementUnit": (lambda: mea.ModalityReinforcementUnit(D, HEADS), unit),
    "HierarchicalCrossModalAttention": (
        lambda: mea.HierarchicalCrossModalAttention(D, LENGTHS, HEADS),
        lambda module, x, layout: module(x, layout).x,
    ),
    "CrossModalEncoder": (lambda: mea.CrossModalEncoder(D, LENGTHS, HEADS), lambda module, x, layout: module(x, layout)[0]),
    "CrossModalEncoder widths": (
        lambda: mea.CrossModalEncoder(D, LENGTHS, 3, 1, head_channels=5, feed_forward_channels=7),
        lambda module, x, layout: module(x, layout)[0],
    ),
    "PredictiveEncoder widths": (
        lambda: mea.PredictiveEncoder(D, LENGTHS, 3, 2, head_channels=5, feed_forward_channels=7),
        lambda module, x, layout: module(x, layout).x,
    ),
    "ExclusiveEncoder": (lambda: mea.ExclusiveEncoder(D, 3), pooled),
    "ExclusiveEncoder segments": (lambda: mea.ExclusiveEncoder(D, 3, "segments"), pooled),
    "ExclusiveEncoder max": (lambda: mea.ExclusiveEncoder(D, 3, "max"), pooled),
    "ExclusiveEncoder gru": (lambda: mea.ExclusiveEncoder(D, 3, "gru"), pooled),
    "ExclusiveEncoder std": (lambda: mea.ExclusiveEncoder(D, 3, "std"), pooled),
    "ExclusiveEncoder softmax": (lambda: mea.ExclusiveEncoder(D, 3, aggr.SoftmaxAggregation(learn=True)), pooled),
    "ExclusiveEncoder two": (lambda: mea.ExclusiveEncoder(D, 3, aggr.MultiAggregation(["mean", "max"])), pooled),
    "AgnosticEncoder": (lambda: mea.AgnosticEncoder(D, 3), pooled),
    "MEA": (lambda: mea.MEA.published(dict.fromkeys(LENGTHS, D), 2, channels=D, hidden_channels=6, heads=HEADS), whole),
}


def gradients(module: nn.Module, out: Rows, x: Rows) -> list[Tensor]:
    leaves = [*x.values(), *module.parameters()]
    found = torch.autograd.grad(sum(o.sin().sum() for o in out.values()), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


@pytest.mark.parametrize("lengths", [LENGTHS, FULL, EQUAL], ids=["missing", "full", "equal"])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_gaps_and_padding_give_the_same(randomised: Any, name: str, lengths: dict[str, list[int]]) -> None:
    build, call = LAYERS[name]
    module = randomised(build())
    x = {m: v.requires_grad_() for m, v in rows(lengths).items()}
    expected = call(module, x, {m: ptr(n) for m, n in lengths.items()})
    wanted = gradients(module, expected, x)
    for form in (dense, with_gaps):
        given, layout = form(x, lengths)
        out = call(module, given, layout)
        for m, v in expected.items():
            actual = out[m]
            if not m.startswith("-"):
                mask = dense(x, lengths)[1][m]
                actual = actual.view(*mask.shape, -1)
                if form is dense:
                    assert not actual[~mask].any(), f"{name}: {m} is not zero in the padding"
                actual = actual[mask]
            torch.testing.assert_close(actual, v, rtol=1e-10, atol=1e-12)
        reached = {m: o.view(*dense(x, lengths)[1][m].shape, -1)[dense(x, lengths)[1][m]] for m, o in out.items() if not m.startswith("-")}
        reached |= {m: o for m, o in out.items() if m.startswith("-")}
        torch.testing.assert_close(gradients(module, reached, x), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("lengths", [LENGTHS, FULL, EQUAL], ids=["missing", "full", "equal"])
@pytest.mark.parametrize("name", ["PredictiveEncoder", "HierarchicalCrossModalAttention", "CrossModalEncoder", "WeightedAttention", "MEA"])
def test_layers_side_by_side_equal_layers_in_turn(randomised: Any, name: str, lengths: dict[str, list[int]]) -> None:
    """A hook on any layer of a kind makes the encoder call each in turn."""
    build, call = LAYERS[name]
    module = randomised(build())
    x = {m: v.requires_grad_() for m, v in rows(lengths).items()}
    layout = {m: ptr(n) for m, n in lengths.items()}
    with record_calls() as calls:
        joined = call(module, x, layout)
    wanted = gradients(module, joined, x)
    called = []
    for part in module.modules():
        if isinstance(part, mea.ModalityReinforcementUnit | mea.PredictiveSelfAttention) or type(part) is nn.Linear:
            part.register_forward_hook(lambda layer, *_: called.append(layer))
    with record_calls() as more_calls:
        in_turn = call(module, x, layout)
    assert calls["grouped_linear", "joined"] > 0
    assert more_calls["grouped_linear", "joined"] == 0
    assert len(set(called)) == sum(
        isinstance(p, mea.ModalityReinforcementUnit | mea.PredictiveSelfAttention) or type(p) is nn.Linear for p in module.modules()
    ), "a hook was passed over"
    torch.testing.assert_close(in_turn, joined, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients(module, in_turn, x), wanted, rtol=1e-9, atol=1e-11)


class LowRank(nn.Module):
    """A wrapper around a linear layer, as LoRA makes it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.a, self.b = base, nn.Linear(base.in_features, 1, bias=False), nn.Linear(1, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


@pytest.mark.parametrize("name", ["PredictiveEncoder", "CrossModalEncoder", "PredictiveSelfAttention", "ModalityReinforcementUnit"])
def test_a_wrapper_around_any_linear_layer_is_effective(name: str) -> None:
    build, call = LAYERS[name]
    module = build().double()
    for parent in list(module.modules()):
        for child, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and not isinstance(parent, LowRank):
                setattr(parent, child, LowRank(layer).double())
    out = call(module, rows(FULL), {m: ptr(n) for m, n in FULL.items()})
    sum(o.sin().sum() for o in out.values()).backward()
    wrappers = [m for m in module.modules() if isinstance(m, LowRank)]
    assert wrappers
    for wrapper in wrappers:
        assert wrapper.b.weight.grad is not None
        assert wrapper.b.weight.grad.any()


@pytest.fixture
def windows() -> dict[tuple[str, str], IntervalEdges]:
    pointers = {m: Pointers.from_ptr(ptr(n)) for m, n in FULL.items()}
    return {(s, t): IntervalEdges.window(pointers[s], pointers[t], steps=1) for s in FULL for t in FULL}


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_windows_reach_every_arrow(randomised: Any, windows: Any, backend: str) -> None:
    """With windows, a unit equals the same unit over the edges as a list."""
    layer = randomised(mea.HierarchicalCrossModalAttention(D, FULL, HEADS))
    x, layout = rows(FULL), {m: ptr(n) for m, n in FULL.items()}
    with use_backend(backend):
        out = layer(x, layout, windows).x
    sizes = {m: v.size(0) for m, v in x.items()}
    for t in FULL:
        z = x[t]
        for stage, sources in (("mixed", list(FULL)), ("coarse", [m for m in FULL if m != t])):
            edges = IntervalEdges.join([windows[s, t] for s in sources]).edge_index()
            assert edges[0].max() < sum(sizes[s] for s in sources)
            z = getattr(layer, stage)[t](
                z, layout[t], source=[x[s] for s in sources], source_layout=[layout[s] for s in sources], edges=edges
            )
        fine = [
            layer.fine[t][s](z, layout[t], source=x[s], source_layout=layout[s], edges=windows[s, t].edge_index()) for s in FULL if s != t
        ]
        torch.testing.assert_close(out[t], sum(fine), rtol=1e-10, atol=1e-12)
    assert not any(torch.allclose(out[t], layer(x, layout).x[t]) for t in FULL), "the windows changed nothing"


def test_windows_reach_predictive_attention(randomised: Any, windows: Any) -> None:
    encoder = randomised(mea.PredictiveEncoder(D, FULL, HEADS, num_layers=2))
    x, layout = rows(FULL), {m: ptr(n) for m, n in FULL.items()}
    own = {m: windows[m, m] for m in FULL}
    out = encoder(x, layout, own).x
    listed = encoder(x, layout, {m: e.edge_index() for m, e in own.items()}).x
    torch.testing.assert_close(out, listed, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(out["audio"], encoder(x, layout).x["audio"])


def test_causal_edges_hide_the_future(randomised: Any) -> None:
    layer = randomised(mea.PredictiveSelfAttention(D, HEADS, prediction=False))
    pointers = Pointers.from_ptr(ptr([6]))
    x = torch.randn(6, D, dtype=torch.float64)
    edges = IntervalEdges.window(pointers, pointers, causal=True)
    changed = torch.cat([x[:4], torch.randn(2, D, dtype=torch.float64)])
    torch.testing.assert_close(layer(x, pointers, edges=edges)[0][:4], layer(changed, pointers, edges=edges)[0][:4], rtol=1e-12, atol=0)


def test_one_sequence_needs_no_layout(randomised: Any) -> None:
    layer = randomised(mea.PredictiveSelfAttention(D, HEADS))
    x = torch.randn(5, D, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], layer(x.unsqueeze(0))[0][0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (torch.tensor([0, 3, 6]), "ptr: expected numbers that rise from 0 to 5, the number of rows, got"),
        (torch.tensor([1, 3, 5]), "ptr: expected numbers that rise from 0 to 5"),
        (torch.tensor([0, 4, 3, 5]), "ptr: expected numbers that rise from 0 to 5"),
        (torch.tensor([0, 0, 1, 1, 1]), "x: ptr: expected .*; a batch vector needs batch_size= in MEA"),
        (torch.tensor([0.0, 5.0]), r"x: expected ptr, int64 \(B \+ 1,\), beside rows \(N, d\), got torch.float32"),
        (torch.ones(1, 5, dtype=torch.bool), r"x: expected ptr, int64 \(B \+ 1,\), beside rows \(N, d\), got torch.bool"),
        (Pointers.from_ptr(torch.tensor([0, 4])), "x: expected Pointers of 5 rows, got"),
    ],
)
def test_a_wrong_layout_is_named(layout: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mea.PredictiveSelfAttention(D, HEADS)(torch.randn(5, D), layout)


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "MEA"])
def test_a_mask_the_wrong_way_round_is_refused(name: str) -> None:
    build, call = LAYERS[name]
    padded, masks = dense(rows(FULL), FULL)
    with pytest.raises(ValueError, match=r"expected a mask that is True at real steps, .*is the mask inverted"):
        call(build().double(), padded, {m: ~k for m, k in masks.items()})


def test_all_masks_false_is_told() -> None:
    model = LAYERS["MEA"][0]().double()
    padded, masks = dense(rows(FULL), FULL)
    with pytest.warns(UserWarning, match="no sample has a step in any modality"):
        model({m: v.nan_to_num(0) for m, v in padded.items()}, {m: torch.zeros_like(k) for m, k in masks.items()})


@pytest.mark.parametrize("name", [n for n in LAYERS if "lstm" not in n])
def test_second_derivatives_and_transforms(name: str) -> None:
    """Double backward, and per-sample gradients by `torch.func`, on every layer."""
    build, call = LAYERS[name]
    torch.manual_seed(3)
    module = build().double()
    x, layout = rows({m: n[:2] for m, n in FULL.items()}), {m: ptr(n[:2]) for m, n in FULL.items()}

    def loss(text: Tensor) -> Tensor:
        return sum((o.sin().sum() for o in call(module, x | {"text": text}, layout).values()), torch.zeros((), dtype=torch.float64))

    direction = torch.randn_like(x["text"])
    text = x["text"].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(text), text, create_graph=True)
    (second,) = torch.autograd.grad(first, text, direction)
    step = 1e-5
    ahead, back = (torch.autograd.grad(loss(t), t)[0] for t in ((text.detach() + s * direction).requires_grad_() for s in (step, -step)))
    torch.testing.assert_close(second, (ahead - back) / (2 * step), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.func.grad(loss)(x["text"]), first.detach(), rtol=1e-9, atol=1e-11)


def test_padded_batches_of_any_width_are_one_layout() -> None:
    """`F.pad` of the caller, and `ptr` of the loader, name the same rows."""
    lengths = [2, 0, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    pointers = Pointers.from_mask(mask)
    assert pointers.length.tolist() == Pointers.from_ptr(ptr(lengths)).length.tolist()
    assert torch.equal(pointers.mask, mask)
    assert torch.equal(F.pad(pointers.length.cumsum(0), (1, 0)), ptr(lengths))


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "ModalityReinforcementUnit"])
def test_jagged_nested_tensors_go_in_and_come_out(randomised: Any, name: str) -> None:
    build, call = LAYERS[name]
    module = randomised(build())
    x = {m: v.requires_grad_() for m, v in rows(FULL).items()}
    layout = {m: ptr(n) for m, n in FULL.items()}
    nested = {m: torch.nested.nested_tensor_from_jagged(v, layout[m]) for m, v in x.items()}
    expected = call(module, x, layout)
    actual = call(module, nested, dict.fromkeys(FULL) if name != "MEA" else None)
    flat = {m: v.values() if v.is_nested else v for m, v in actual.items()}
    torch.testing.assert_close(flat, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients(module, flat, x), gradients(module, expected, x), rtol=1e-10, atol=1e-12)
    assert all(v.is_nested for m, v in actual.items() if not m.startswith("-"))


def test_a_nested_tensor_has_no_mask() -> None:
    x = torch.nested.nested_tensor_from_jagged(torch.randn(5, D), torch.tensor([0, 2, 5]))
    with pytest.raises(ValueError, match="x: expected no mask or ptr beside a nested tensor"):
        mea.PredictiveSelfAttention(D, HEADS)(x, torch.tensor([0, 2, 5]))
    with pytest.raises(ValueError, match=r"x: expected a nested tensor of layout torch\.jagged"):
        mea.PredictiveSelfAttention(D, HEADS)(torch.nested.nested_tensor([torch.randn(2, D), torch.randn(3, D)]))


def test_edges_of_a_padded_batch_are_refused() -> None:
    """Nobody could count its rows: they are with the padding or without, as is best for the device."""
    x, mask = torch.randn(2, 3, D), torch.tensor([[True, True, True], [True, False, False]])
    edges = torch.tensor([[0, 1], [1, 0]])
    with pytest.raises(ValueError, match=r"edges: expected rows \(N, d\) with ptr beside edges, got a padded batch \(2, 3\)"):
        mea.PredictiveSelfAttention(D, HEADS)(x, mask, edges=edges)
    with pytest.raises(ValueError, match=r"edges: expected rows .*, got a padded batch"):
        mea.ModalityReinforcementUnit(D, HEADS)(x, mask, source=x, source_layout=mask, edges=edges)


def test_the_reference_takes_a_list_of_edges(randomised: Any) -> None:
    layer = randomised(mea.PredictiveSelfAttention(D, HEADS))
    x, edges = torch.randn(4, D, dtype=torch.float64), torch.tensor([[0, 1, 3, 2], [1, 1, 2, 0]])
    _, prior = layer(x)
    expected = [layer(x, None, p, edges)[0] for p in (None, prior)]
    with use_backend("reference"):
        torch.testing.assert_close([layer(x, None, p, edges)[0] for p in (None, prior)], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_half_precision_takes_no_rows_at_all(name: str, dtype: torch.dtype) -> None:
    """Of no sample, and of two samples without a step."""
    build, call = LAYERS[name]
    module = build().to(dtype)
    some = call(module, {m: v.to(dtype) for m, v in rows(FULL).items()}, {m: ptr(n) for m, n in FULL.items()})
    for samples in (0, 2):
        x = {m: torch.zeros(0, D, dtype=dtype, requires_grad=True) for m in FULL}
        out = call(module, x, dict.fromkeys(FULL, torch.zeros(samples + 1, dtype=torch.int64)))
        assert {m: v.dtype for m, v in out.items()} == {m: v.dtype for m, v in some.items()}
        assert all(v.isfinite().all() for v in [*out.values(), *gradients(module, out, x)])
