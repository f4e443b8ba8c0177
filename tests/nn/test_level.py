"""Modalities brought to the same number of rows, as on a device: the same values and gradients, in batched products alone."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from mea_graph.nn import MEA, AgnosticBranch, DoubleDiscriminator, ExclusiveBranch, MEALoss, UnimodalExtractor, _side_by_side
from mea_graph.nn._side_by_side import Groups, level, linear
from mea_graph.nn.unimodal_extractor import extract_level
from mea_graph.ops import IntervalEdges, Pointers, record_calls, use_backend

CHANNELS = {"text": 5, "audio": 3, "vision": 4}
LENGTHS = {
    "all there": {"text": [3, 1, 2], "audio": [6, 2, 5], "vision": [2, 7, 3]},
    "some missing": {"text": [3, 0, 2], "audio": [0, 0, 4], "vision": [5, 2, 0]},
    "one empty": {"text": [3, 1, 2], "audio": [0, 0, 0], "vision": [2, 7, 3]},
}
every_case = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)


def rows(lengths: dict[str, list[int]], widths: dict[str, int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    x = {m: torch.randn(sum(n), widths[m], dtype=torch.float64, requires_grad=True) for m, n in lengths.items()}
    return x, {m: torch.tensor([0, *n]).cumsum(0) for m, n in lengths.items()}


def on_a_device(run: Callable[[], Any]) -> Any:
    """Here, but as it would run there: with levels, in batched products, which raise where they cannot run."""
    levels = patch.object(_side_by_side, "_levels", lambda device, added: added > 0)
    copies = patch.object(_side_by_side, "_launches", lambda device: True)
    with levels, copies, use_backend("batched"), record_calls() as calls:
        result = run()
    assert calls["grouped_linear", "batched"] > 0
    assert calls["grouped_linear", "joined"] == calls["grouped_linear", "reference"] == 0
    return result


def same(run: Callable[[], list[Tensor]], leaves: list[Tensor]) -> None:
    results = []
    for outputs in (run(), on_a_device(run)):
        weight = [torch.randn(o.shape, dtype=o.dtype, generator=torch.Generator().manual_seed(i)) for i, o in enumerate(outputs)]
        total = sum((o * w).sum() for o, w in zip(outputs, weight, strict=True))
        results.append([*outputs, *torch.autograd.grad(total, leaves, materialize_grads=True)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-11)


@every_case
def test_the_model_is_the_same(lengths: dict[str, list[int]]) -> None:
    torch.manual_seed(0)
    network = MEA.published(CHANNELS, 1, channels=8, hidden_channels=6, heads=2).double().eval()
    x, ptr = rows(lengths, CHANNELS)

    def run() -> list[Tensor]:
        output = network(x, ptr)
        return [output.prediction, *output.exclusive.values(), *output.agnostic.values(), *output.modality_weights]

    same(run, [*x.values(), *(p for p in network.parameters() if p.requires_grad)])


@every_case
@pytest.mark.parametrize("stride", [1, 2])
def test_maps_and_graphs_count_the_steps_of_the_extractors_alone(lengths: dict[str, list[int]], stride: int) -> None:
    """Where rows are added for a device, somebody who looks at maps or at the graph sees none of them."""
    network = MEA(CHANNELS, 1, channels=8, hidden_channels=6, heads=2, extractor={"stride": stride, "kernel_size": 3}).double().eval()
    x, ptr = rows(lengths, CHANNELS)
    seen = []
    for levels in (False, True):
        with patch.object(_side_by_side, "_levels", lambda device, added, levels=levels: levels and added > 0), torch.no_grad():
            output, graph = network(x, ptr, return_attention_weights=True), network.embed(x, ptr)
        steps = {m: [-(-n // stride) for n in own] for m, own in lengths.items()}
        assert {m: n.tolist() for m, n in output.lengths.items()} == steps
        assert {m: graph[m].sample.bincount(minlength=3).tolist() for m in CHANNELS} == steps
        maps = [*output.predictive_attention.values(), *(list(layer.values()) for layer in output.cross_modal_attention)]
        seen.append([output.prediction, *(a for own in maps for a in own), *(graph[m].x for m in CHANNELS)])
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-9, atol=1e-11)
    for m, own in output.predictive_attention.items():
        assert all(a.shape[-2:] == (max(steps[m]),) * 2 for a in own), m
        for b, n in enumerate(steps[m]):
            for a in own:
                torch.testing.assert_close(a[b, :, :n, :n].sum(-1), a.new_ones(2, n), rtol=1e-9, atol=1e-12)
                assert not a[b, :, :n, n:].any()


@every_case
@pytest.mark.parametrize("given", [False, True], ids=["window of the model", "edges of the call"])
def test_edges_count_the_rows_that_were_given(lengths: dict[str, list[int]], given: bool) -> None:
    """No row is added where edges number them."""
    window = None if given else {"steps": 1}
    network = MEA(CHANNELS, 1, channels=8, hidden_channels=6, heads=2, dropout=0.0, window=window).double()
    x, ptr = rows(lengths, CHANNELS)
    at = {m: Pointers.from_ptr(p) for m, p in ptr.items()}
    edges = {(s, t): IntervalEdges.window(at[s], at[t], steps=1) for s in at for t in at} if given else None
    results = []
    for levels in (False, True):
        with patch.object(_side_by_side, "_levels", lambda device, added, levels=levels: levels and added > 0):
            prediction = network(x, ptr, edges=edges).prediction
        results.append([prediction, *torch.autograd.grad(prediction.sin().sum(), list(x.values()))])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("make", [ExclusiveBranch, AgnosticBranch])
@pytest.mark.parametrize(("residual", "modalities", "case"), [("input", 2, "some missing"), ("normalized", 3, "one empty")])
def test_a_branch_is_the_same(make: type, residual: str, modalities: int, case: str) -> None:
    torch.manual_seed(0)
    names, lengths = list(CHANNELS)[:modalities], LENGTHS[case]
    branch = make(8, 6, names, heads=2, residual=residual).double()
    x, ptr = rows({m: lengths[m] for m in names}, dict.fromkeys(names, 8))
    same(lambda: list(branch(x, ptr).x.values()), [*x.values(), *branch.parameters()])


def test_a_training_step_of_padded_batches_is_the_same() -> None:
    torch.manual_seed(0)
    network, objective = MEA(CHANNELS, 1, channels=8, hidden_channels=6, heads=2, dropout=0.0).double(), MEALoss()
    lengths = LENGTHS["some missing"]
    mask = {m: torch.arange(max(n)) < torch.tensor(n)[:, None] for m, n in lengths.items()}
    x = {m: torch.randn(*mask[m].shape, width, dtype=torch.float64, requires_grad=True) for m, width in CHANNELS.items()}
    same(lambda: [objective(network(x, mask), torch.ones(3, dtype=torch.float64)).total], [*x.values(), *network.parameters()])


def test_rows_behind_are_zeros_and_gaps() -> None:
    x, pointers = {"a": torch.ones(3, 2), "b": torch.ones(1, 2)}, [Pointers.from_ptr(torch.tensor(p)) for p in ([0, 3, 3], [0, 0, 1])]
    with patch.object(_side_by_side, "_levels", lambda device, added: added > 0):
        z, longer = level(x, dict(zip(x, pointers, strict=True)))
    assert z["b"].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert longer["b"].real.tolist() == [True, False, False]
    assert longer["b"].max_length == 1
    together = Pointers.join(list(longer.values()))
    assert together is Pointers.join(list(longer.values()))
    assert together.sample[together.real].tolist() == [0, 0, 0, 3]
    assert together.max_length == 3
    assert Pointers.join(list(longer.values())[::-1]).start.tolist() == [0, 0, 3, 6]


def test_nothing_is_added_on_a_cpu_or_where_modalities_differ_by_much() -> None:
    pointers = {m: Pointers.full(1, n, torch.device("cpu")) for m, n in (("a", 1), ("b", 2**17))}
    x = {m: torch.zeros(p.num_rows, 1) for m, p in pointers.items()}
    assert level(x, pointers)[1] == pointers
    assert not _side_by_side._levels(torch.device("meta"), 2**17)
    assert _side_by_side._levels(torch.device("meta"), 2**15)


@pytest.mark.parametrize("layout", ["rows", "padded"])
@pytest.mark.parametrize(("kernel_size", "skip"), [(1, False), (2, True), (3, True), (4, False)])
def test_the_extractors_are_the_same(kernel_size: int, skip: bool, layout: str) -> None:
    """All modalities in one Bi-LSTM, samples without a step among them; the rows are those of each alone, with gaps."""
    torch.manual_seed(0)
    extractors = [UnimodalExtractor(width, 6, kernel_size, skip=skip).double() for width in CHANNELS.values()]
    lengths = LENGTHS["some missing"]
    x, ptr = rows(lengths, CHANNELS)
    pointers = [Pointers.from_ptr(p) for p in ptr.values()]
    given = list(x.values())
    if layout == "padded":
        pointers = [Pointers.from_mask(torch.arange(max(n) + 1) < torch.tensor(n)[:, None]) for n in lengths.values()]
        real = [p.real.nonzero()[:, 0] for p in pointers]
        given = [x.new_zeros(p.num_rows, x.size(1)).index_copy(0, r, x) for x, p, r in zip(given, pointers, real, strict=True)]
    alone = [e(own, p)[p.real] for e, own, p in zip(extractors, given, pointers, strict=True)]
    assert extract_level(extractors, given, pointers) is None  # here rows are what takes the time
    with patch.object(_side_by_side, "_levels", lambda device, added: True), record_calls() as calls:
        level = extract_level(extractors, given, pointers)
    assert level is not None
    assert calls["bilstm", "torch"] == 1
    assert len({p.num_rows for p in level[1]}) == 1
    found = [z[p.real] for z, p in zip(*level, strict=True)]
    leaves = [*x.values(), *(p for e in extractors for p in e.parameters())]
    results = [[*out, *torch.autograd.grad(sum(z.sin().sum() for z in out), leaves, retain_graph=True)] for out in (found, alone)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)


def test_the_extractors_drop_in_training_alone() -> None:
    """Without what a Bi-LSTM of zeros adds, a result with `skip` is what its dropout left."""
    torch.manual_seed(0)
    extractors = [UnimodalExtractor(width, 40, skip=True, dropout=0.25).double() for width in CHANNELS.values()]
    for e in extractors:
        for weight in [*e.forward_lstm.parameters(), *e.backward_lstm.parameters()]:
            nn.init.zeros_(weight)
    x, ptr = rows({m: [30, 20, 30] for m in CHANNELS}, CHANNELS)
    pointers = [Pointers.from_ptr(p) for p in ptr.values()]
    whole = torch.cat([e.eval()(own, p) for e, own, p in zip(extractors, x.values(), pointers, strict=True)])
    for training in (False, True):
        with patch.object(_side_by_side, "_levels", lambda device, added: True):
            level = extract_level([e.train(training) for e in extractors], list(x.values()), pointers)
        assert level is not None
        found = torch.cat([z[p.real] for z, p in zip(*level, strict=True)])
        torch.testing.assert_close(found, whole.masked_fill(found == 0, 0) / (0.75 if training else 1), rtol=1e-9, atol=1e-11)
        assert float((found == 0).double().mean()) == pytest.approx(0.25 if training else 0, abs=0.02)


@pytest.mark.parametrize("part", ["", "conv", "forward_lstm", "backward_lstm", "dropout"])
def test_an_extractor_that_is_watched_or_replaced_runs_alone(part: str) -> None:
    pointers = [Pointers.from_ptr(torch.tensor([0, 3, 4])), Pointers.from_ptr(torch.tensor([0, 1, 6]))]
    x = [torch.randn(p.num_rows, 3) for p in pointers]
    with patch.object(_side_by_side, "_levels", lambda device, added: True):
        extractors = [UnimodalExtractor(3, 4) for _ in x]
        assert extract_level(extractors, x, pointers) is not None
        assert extract_level([extractors[0], UnimodalExtractor(3, 4, kernel_size=5)], x, pointers) is None
        hook = extractors[1].get_submodule(part).register_forward_hook(lambda *_: None)
        assert extract_level(extractors, x, pointers) is None
        hook.remove()
        if part:
            setattr(extractors[1], part, nn.Identity())
            assert extract_level(extractors, x, pointers) is None


def test_discriminators_of_both_spaces_are_the_same() -> None:
    layer = DoubleDiscriminator(6, CHANNELS).double()
    h = [{m: torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for m in CHANNELS} for _ in range(2)]
    leaves = [*(v for space in h for v in space.values()), *layer.parameters()]
    results = []
    for launches in (False, True):
        with patch.object(_side_by_side, "_launches", lambda device, launches=launches: launches):
            found = layer(*h)
            seen = [found.exclusive, found.agnostic, found.importance]
        results.append([*seen, *torch.autograd.grad(sum(s.sin().sum() for s in seen), leaves)])
    shapes: list[int] = []
    layer.hidden.register_forward_hook(lambda _, given, out: shapes.append(given[0].dim()))
    with patch.object(_side_by_side, "_launches", lambda device: True):
        layer(*h)
    assert shapes == [3, 3]  # somebody looks: one space after the other
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grad", [False, True])
def test_maps_after_norms_have_the_eps_of_the_norms(grad: bool) -> None:
    norms, layers = [nn.LayerNorm(4, eps=0.5).double() for _ in range(2)], [nn.Linear(4, 3).double() for _ in range(2)]
    x = torch.randn(5, 4, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        found = linear(layers, x, Groups([0, 2], [2, 3]), norms)
        expected = torch.cat([layer(norm(rows)) for layer, norm, rows in zip(layers, norms, x.split([2, 3]), strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
