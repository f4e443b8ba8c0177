"""Predictions by fewer, larger calls of C++: where nobody differentiates or watches, with the numbers of the layers one by one."""

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mea_graph.nn import MEA, CrossModalEncoder, GraphFusionConv, PredictiveEncoder
from mea_graph.nn._side_by_side import Groups, weights_of
from mea_graph.nn.attention.feed_forward import FeedForward, end_of_attention
from mea_graph.nn.graph._at_once import pass_side_by_side
from mea_graph.ops import Pointers, record_calls, use_backend
from mea_graph.ops.grouped import Blocks, blocks_at_once, grouped_layer_norm, grouped_linear, norm_and_linear
from mea_graph.ops.native import library

pytestmark = [
    pytest.mark.skipif(library.refuse() is not None, reason=f"native kernels: {library.refuse()}"),
    pytest.mark.usefixtures("native"),
]
WIDTHS = {"a": 3, "b": 4, "c": 5}
LENGTHS = {"one sample": [[5], [40], [33]], "several": [[5, 1, 7], [40, 3, 2], [2, 2, 9]], "missing": [[5, 0], [0, 3], [2, 4]]}


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEA_GRAPH_NATIVE")


@contextmanager
def calls_of_blocks() -> Iterator[list[str]]:
    """Notes the calls of C++ by name."""
    called: list[str] = []
    call = library.call_addresses
    with patch.object(library, "call_addresses", lambda name, *rest: (called.append(name), call(name, *rest))):
        yield called


def rows(widths: dict[str, int], lengths: list[list[int]], dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    x = {m: torch.randn(sum(own), width).to(dtype) for (m, width), own in zip(widths.items(), lengths, strict=True)}
    return x, {m: nn.functional.pad(torch.tensor(own).cumsum(0), (1, 0)) for m, own in zip(widths, lengths, strict=True)}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "published": lambda: MEA.published(WIDTHS, 2, channels=24, hidden_channels=16, heads=4),
    "recommended": lambda: MEA(WIDTHS, 2, channels=24, hidden_channels=16, heads=4),
    "predictive": lambda: PredictiveEncoder(20, list("abc"), heads=4, feed_forward_channels=7, head_channels=3, residual="input"),
    "cross-modal": lambda: CrossModalEncoder(20, list("abc"), heads=4, feed_forward_channels=7, head_channels=3),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prediction_has_the_bits_of_its_layers_one_by_one(name: str, lengths: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    x, ptr = rows(WIDTHS if isinstance(model, MEA) else dict.fromkeys("abc", 20), LENGTHS[lengths], dtype)
    with torch.no_grad():
        with calls_of_blocks() as called:
            found = values(model(x, ptr))
        with record_calls(), calls_of_blocks() as in_turn:  # counted calls are those of the single ops
            wanted = values(model(x, ptr))
        with use_backend("reference"):
            reference = values(model.double()({m: rows.double() for m, rows in x.items()}, ptr))
    assert called.count("grouped_blocks_forward") > 0
    assert "grouped_blocks_forward" not in in_turn
    assert all(map(torch.equal, found, wanted))
    bound = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close([out.double() for out in found], reference, rtol=bound, atol=bound)


def values(result: Any) -> list[Tensor]:
    if hasattr(result, "prediction"):
        return [result.prediction, result.fused, *result.exclusive.values(), *result.agnostic.values()]
    return [*result[0].values()]


def test_a_gradient_is_that_of_the_layers() -> None:
    model = MODELS["predictive"]().double()
    x, ptr = rows(dict.fromkeys("abc", 20), LENGTHS["several"], torch.float64)
    with calls_of_blocks() as called:
        sum(out.square().sum() for out in values(model(x, ptr))).backward()
    assert "grouped_blocks_forward" not in called
    assert all(p.grad is not None for p in model.parameters())


def test_dropout_of_a_training_step_without_gradients_is_drawn() -> None:
    model = PredictiveEncoder(20, list("abc"), heads=4, dropout=0.5).train()
    x, ptr = rows(dict.fromkeys("abc", 20), LENGTHS["several"], torch.float32)
    with torch.no_grad(), calls_of_blocks() as called:
        first, second = (values(model(x, ptr)) for _ in range(2))
    assert "grouped_blocks_forward" not in called
    assert not torch.equal(first[0], second[0])


def test_modes_that_look_at_operators_see_them() -> None:
    model = MODELS["published"]().eval()
    x, ptr = rows(WIDTHS, LENGTHS["several"], torch.float32)
    counts = []
    for setting in ("0", "1"):
        with torch.no_grad(), patch.dict("os.environ", {"MEA_GRAPH_NATIVE": setting}), FlopCounterMode(display=False) as counter:
            model(x, ptr)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


class Own(Tensor):
    """A tensor whose operations somebody else defines."""


def blocks(groups: int = 2, inner: int = 6, width: int = 4, wide: int = 8, dtype: torch.dtype = torch.float32) -> Blocks:
    shapes = [(width, inner), (width,), (wide, width), (width, wide)]
    return Blocks(
        *(([torch.randn(*s, dtype=dtype) for _ in range(groups)], [torch.randn(s[0], dtype=dtype) for _ in range(groups)]) for s in shapes)
    )


def given(rows: int = 7, **sizes: Any) -> dict[str, Any]:
    made = blocks(**sizes)
    width, inner = made.out[0][0].shape
    dtype = made.out[0][0].dtype
    return {
        "carried": torch.randn(rows, width, dtype=dtype),
        "attended": torch.randn(rows, inner, dtype=dtype),
        "blocks": made,
        "sizes": [3, 4],
    }


def test_blocks_of_any_strides_equal_the_formula() -> None:
    for place in (
        lambda t: t,
        lambda t: t.t().contiguous().t(),
        lambda t: t.repeat_interleave(2, 0)[::2],
        lambda t: t.repeat_interleave(2, 1)[:, ::2],
    ):
        of = given(70, dtype=torch.float64, inner=17, width=19, wide=33) | {"sizes": [0, 70]}
        made = of["blocks"]
        z = of["carried"] + nn.functional.linear(of["attended"], made.out[0][1], made.out[1][1])
        normal = nn.functional.layer_norm(z, (19,), made.norm[0][1], made.norm[1][1], 1e-3)
        wanted = z + nn.functional.linear(
            nn.functional.linear(normal, made.expand[0][1], made.expand[1][1]).relu(), made.contract[0][1], made.contract[1][1]
        )
        with torch.no_grad():
            found = blocks_at_once(**of | {name: place(of[name]) for name in ("carried", "attended")}, eps=1e-3)
            no_bias = blocks_at_once(**of | {"blocks": made._replace(out=(made.out[0], []))}, eps=1e-3)
        assert found is not None
        assert no_bias is not None
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_nan_of_a_row_stays_in_it() -> None:
    of = given()
    of["attended"][2, 0] = torch.nan
    with torch.no_grad():
        found = blocks_at_once(**of, eps=1e-5)
    assert found is not None
    assert found.isnan().any(1).tolist() == [row == 2 for row in range(7)]
    assert found.isnan().all(1)[2]


@pytest.mark.parametrize("place", ["expand", "contract"])
def test_nan_of_a_bias_is_not_taken_for_zero(place: str) -> None:
    """A ReLU gives NaN for NaN: weights that are lost must be seen in every row that reads them."""
    of = given()
    layers = getattr(of["blocks"], place)
    layers[1][1][0] = torch.nan
    with torch.no_grad():
        found = blocks_at_once(**of, eps=1e-5)
    assert found is not None
    assert found.isnan().any(1).tolist() == [row >= 3 for row in range(7)]


@pytest.mark.parametrize("steps_last", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_a_norm_and_a_map_in_one_call_equal_the_formula(eps: float, steps_last: bool) -> None:
    """Groups share rows, in another order than they stand in the result."""
    starts, sizes = [4, 0, 2], [5, 3, 7]
    x = torch.randn(9, 11, dtype=torch.float64)
    weights, biases = ([torch.randn(*shape, dtype=torch.float64) for _ in starts] for shape in ((6, 11), (6,)))
    scales, shifts = ([torch.randn(11, dtype=torch.float64) for _ in starts] for _ in range(2))
    with torch.no_grad():
        both = norm_and_linear(x, (weights, biases), (starts, sizes), (scales, shifts), eps, steps_last)
    assert both is not None
    parts = [x[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    normal = [nn.functional.layer_norm(p, (11,), *of, eps) for p, *of in zip(parts, scales, shifts, strict=True)]
    mapped = [nn.functional.linear(n, *of) for n, *of in zip(normal, weights, biases, strict=True)]
    torch.testing.assert_close(both, (torch.cat(normal), torch.cat(mapped)), rtol=1e-11, atol=1e-11)
    assert both[1].stride() == ((1, 15) if steps_last else (6, 1))


def negative(x: Tensor) -> Tensor:
    """The same numbers, as a view of the negative of others, whose memory holds these."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg()
    return view


LAYER_BY_LAYER: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "half precision": lambda of: of | {"carried": of["carried"].bfloat16(), "attended": of["attended"].bfloat16()},
    "two dtypes": lambda of: of | {"attended": of["attended"].double()},
    "a class of one's own": lambda of: of | {"attended": of["attended"].as_subclass(Own)},
    "carried of one's own": lambda of: of | {"carried": of["carried"].as_subclass(Own)},
    "a negative view": lambda of: of | {"attended": negative(of["attended"])},
    "a negative view, carried": lambda of: of | {"carried": negative(of["carried"])},
    "other rows": lambda of: of | {"carried": of["carried"][:6]},
    "sizes of other rows": lambda of: of | {"sizes": [3, 5]},
    "negative sizes": lambda of: of | {"sizes": [-1, 8]},
    "too wide": lambda of: given(wide=257),
    "a weight of another shape": lambda of: of | {"blocks": of["blocks"]._replace(expand=blocks(wide=9).expand)},
    "a bias of another shape": lambda of: of | {"blocks": of["blocks"]._replace(contract=(of["blocks"].contract[0], [torch.zeros(3)] * 2))},
    "a weight that is no block of memory": lambda of: (
        of | {"blocks": of["blocks"]._replace(contract=([torch.randn(8, 4).t()] * 2, of["blocks"].contract[1]))}
    ),
    "fewer norms": lambda of: of | {"blocks": of["blocks"]._replace(norm=blocks(groups=1).norm)},
}


@pytest.mark.parametrize("case", LAYER_BY_LAYER)
def test_blocks_refuse_what_the_loops_cannot_read(case: str) -> None:
    with torch.no_grad():
        assert blocks_at_once(**given(), eps=1e-5) is not None
        assert blocks_at_once(**LAYER_BY_LAYER[case](given()), eps=1e-5) is None


def test_blocks_go_layer_by_layer_where_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    of = given()
    assert blocks_at_once(**of, eps=1e-5) is None  # gradients
    with torch.no_grad():
        with torch.autocast("cpu"):
            assert blocks_at_once(**of, eps=1e-5) is None
        with use_backend("reference"):
            assert blocks_at_once(**of, eps=1e-5) is None
        with torch.autograd.forward_ad.dual_level():
            assert blocks_at_once(**of, eps=1e-5) is None
        seen = []
        torch.func.vmap(lambda t: (seen.append(blocks_at_once(**of | {"carried": t}, eps=1e-5)), t)[1])(torch.randn(2, 7, 4))
        assert seen == [None]
        monkeypatch.setenv("MEA_GRAPH_NATIVE", "0")
        assert blocks_at_once(**of, eps=1e-5) is None


SQUARE, ROW = torch.randn(4, 4), torch.randn(4)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "rows": (lambda: grouped_linear(torch.randn(3), [SQUARE], [], [0], [3]), r"x: expected \(N, C\)"),
    "no group": (lambda: grouped_linear(torch.randn(3, 4), [], [], [], []), "expected one of each for every group"),
    "width": (lambda: grouped_linear(torch.randn(3, 5), [SQUARE], [], [0], [3]), r"weights\[0\]: expected \(4, 5\)"),
    "bias": (lambda: grouped_linear(torch.randn(3, 4), [SQUARE], [torch.randn(3)], [0], [3]), r"biases\[0\]: expected \(4,\)"),
    "scales": (lambda: grouped_linear(torch.randn(3, 4), [SQUARE], [], [0], [3], [ROW], []), "scales, shifts: expected none or 1"),
    "scale": (lambda: grouped_linear(torch.randn(3, 4), [SQUARE], [], [0], [3], [ROW[:2]], [ROW]), r"scales\[0\]: expected \(4,\)"),
    "end": (lambda: grouped_linear(torch.randn(3, 4), [SQUARE], [], [1], [3]), "expected rows of the 3 of x"),
    "start": (lambda: grouped_linear(torch.randn(3, 4), [SQUARE], [], [-1], [2]), "expected rows of the 3 of x"),
    "onto": (lambda: grouped_linear(torch.randn(3, 4), [SQUARE], [], [0], [3], onto=torch.randn(2, 4)), "onto: expected"),
    "norm": (lambda: grouped_layer_norm(torch.randn(3, 4), [ROW], [ROW[:3]], [0], [3]), r"biases\[0\]: expected \(4,\)"),
    "no biases": (lambda: grouped_layer_norm(torch.randn(3, 4), [ROW], [], [0], [3]), "biases: expected 1"),
    "norm of rows": (lambda: grouped_layer_norm(torch.randn(3, 4), [ROW], [ROW], [2], [2]), "expected rows of the 3 of x"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named_on_the_short_way_too(case: str) -> None:
    call, message = WRONG[case]
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("place", [lambda t: t, lambda t: t.t().contiguous().t(), lambda t: t[:, :1].expand(-1, 4)])
def test_linear_maps_of_rows_of_any_strides(place: Callable[[Tensor], Tensor]) -> None:
    x = place(torch.randn(5, 4))
    other = torch.randn(8, 5).t()
    for onto, steps_last in itertools.product((None, torch.randn(5, 8), other), (False, True)):
        with torch.no_grad():
            weight = torch.randn(8, 4)
            found = grouped_linear(x, [weight] * 2, [], [0, 2], [2, 3], onto=onto, steps_last=steps_last)
        wanted = x @ weight.t() if onto is None else x @ weight.t() + onto
        torch.testing.assert_close(found, wanted)


def test_results_are_on_the_cpu_whatever_the_default_device_is() -> None:
    model = PredictiveEncoder(8, list("ab"), heads=2).eval()
    x, ptr = rows(dict.fromkeys("ab", 8), [[3, 2], [4, 1]], torch.float32)
    with torch.no_grad():
        wanted = values(model(x, ptr))
        with torch.device("meta"), calls_of_blocks() as called:
            found = values(model(x, ptr))
    assert "grouped_blocks_forward" in called
    assert all(map(torch.equal, found, wanted))


def test_a_view_of_negative_rows_is_negative() -> None:
    z = torch.randn(5, 4, dtype=torch.complex64)
    x, weight = z.conj().imag, torch.randn(4, 4)
    assert x.is_neg()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found = grouped_linear(x, [weight] * 2, [], [0, 2], [2, 3])
            normal = grouped_layer_norm(x, [weight[0]] * 2, [weight[1]] * 2, [0, 2], [2, 3])
        torch.testing.assert_close(found, -z.imag @ weight.t())
        torch.testing.assert_close(normal, nn.functional.layer_norm(-z.imag, (4,), weight[0], weight[1]))


@pytest.mark.parametrize("setting", ["0", "1"])
@pytest.mark.parametrize("grad", [False, True])
def test_layers_with_sparse_weights_are_called(setting: str, grad: bool) -> None:
    model = PredictiveEncoder(8, list("ab"), heads=2).eval()
    x, ptr = rows(dict.fromkeys("ab", 8), [[3, 2], [4, 1]], torch.float32)
    wanted = values(model(x, ptr))
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.weight = nn.Parameter(part.weight.detach().to_sparse_csr(), requires_grad=False)
    with patch.dict("os.environ", {"MEA_GRAPH_NATIVE": setting}), torch.set_grad_enabled(grad):
        torch.testing.assert_close(values(model(x, ptr)), wanted)


def test_one_sample_calls_few_functions() -> None:
    """A prediction for one sample is Python: its calls are counted, since times depend on the machine."""
    import sys

    model = MEA.published({"text": 300, "audio": 5, "vision": 20}, 1).eval()
    x = {m: torch.randn(n, w) for m, n, w in (("text", 12, 300), ("audio", 50, 5), ("vision", 60, 20))}
    ptr = {m: torch.tensor([0, len(own)]) for m, own in x.items()}
    count = 0

    def note(frame: Any, event: str, what: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    with torch.no_grad(), warnings.catch_warnings():
        for _ in range(2):
            model(x, ptr)
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            model(x, ptr)
        finally:
            sys.setprofile(before)
    assert count < 16_000, count


def test_pointers_with_gaps_go_at_once() -> None:
    model = PredictiveEncoder(8, list("ab"), heads=2).eval()
    gaps = Pointers(torch.tensor([0, 4]), torch.tensor([2, 3]), 8)
    x = {m: torch.randn(8, 8) for m in "ab"}
    with torch.no_grad():
        with calls_of_blocks() as called:
            found = model(x, dict.fromkeys("ab", gaps)).x
        with record_calls():
            wanted = model(x, dict.fromkeys("ab", gaps)).x
    assert "grouped_blocks_forward" in called
    assert all(torch.equal(found[m][gaps.real], wanted[m][gaps.real]) for m in "ab")


@pytest.mark.parametrize("change", ["nothing", "hook", "subclass", "dropout", "inner dropout"])
def test_the_end_of_attention_goes_layer_by_layer_where_a_layer_does_more(change: str) -> None:
    class Twice(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    outs, each = [nn.Linear(6, 8) for _ in "ab"], [FeedForward(8) for _ in "ab"]
    dropout = nn.Dropout(0.5 if change == "dropout" else 0.0)
    for block in each:
        if change == "hook":
            block.activation.register_forward_hook(lambda module, given, out: 2 * out)
        elif change == "subclass":
            block.activation = Twice()
        elif change == "inner dropout":
            block.dropout = nn.Dropout(0.5)
    with torch.no_grad(), calls_of_blocks() as called:
        end_of_attention(torch.randn(5, 8), dropout, outs, each, torch.randn(5, 6), Groups([0, 2], [2, 3]))
    assert ("grouped_blocks_forward" in called) == (change == "nothing")


def test_convolutions_with_a_bias_of_their_own_are_not_joined() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    for bias in (False, True):
        convs = [GraphFusionConv(4, 4, bias=bias).eval() for _ in "ab"]
        with torch.no_grad():
            assert (pass_side_by_side(convs, [torch.randn(3, 4)] * 2, edges) is None) == bias


def test_layers_that_differ_in_more_than_weights_are_not_joined() -> None:
    assert weights_of([nn.LayerNorm(4), nn.LayerNorm(4)], nn.LayerNorm) is not None
    assert weights_of([nn.LayerNorm(4), nn.LayerNorm(4, eps=1e-3)], nn.LayerNorm) is None
    convs = [GraphFusionConv(4, 4, activation=name).eval() for name in ("relu", "none")]
    with torch.no_grad():
        assert pass_side_by_side(convs, [torch.randn(3, 4)] * 2, torch.tensor([[0, 1], [1, 2]])) is None
