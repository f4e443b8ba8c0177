"""What surrounds the kernels of the grouped ops: tables of addresses, what they refuse, and derivatives of parts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mea_graph.ops.grouped import addresses as tables
from mea_graph.ops.grouped import grouped_layer_norm, grouped_linear
from mea_graph.ops.grouped import triton as backend

ROWS = ([0, 5], [5, 5])


def draw(*shape: int, learns: bool = True, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(*shape).to(dtype).requires_grad_(learns) for _ in range(2)]


def negative(t: Tensor) -> Tensor:
    """-t, as a view that negates when it is read."""
    found: Tensor = torch._neg_view(t)
    assert found.is_neg()
    return found


def test_rows_far_apart_are_copied() -> None:
    """Within a tile of 32 rows the kernels count places in 32 bits."""
    storage = torch.zeros(31 * 2**17 + 8, dtype=torch.float16)
    near, far = (storage.as_strided((2, 4), (stride, 1)) for stride in (8, 2**21))
    assert backend._rows(near) is near
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_ROWS", 2**10)  # the same bound, without a tensor of 128 MiB
        assert backend._rows(far).stride(0) == 4


def test_a_second_derivative_of_rows_that_need_no_gradient() -> None:
    x, scales, shifts = torch.randn(10, 4), draw(4), draw(4)
    found = []
    for by in ("triton", "reference"):
        out = grouped_layer_norm(x, scales, shifts, *ROWS, backend=by)
        first = torch.autograd.grad(out.sin().sum(), scales, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), [*scales, *shifts]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("again", [False, True])
def test_a_residual_alone_needs_a_gradient(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    onto, (weights, biases) = torch.randn(10, 3).requires_grad_(), (draw(*n, learns=False) for n in ((3, 4), (3,)))
    out = grouped_linear(torch.randn(10, 4), weights, biases, *ROWS, backend="triton", onto=onto)
    monkeypatch.setattr(backend, "launch", None)  # nothing is to be launched
    (first,) = torch.autograd.grad(out.sin().sum(), onto, create_graph=again)
    torch.testing.assert_close(first, out.cos())
    if again:
        torch.testing.assert_close(torch.autograd.grad(first.sum(), onto)[0], -out.sin())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_second_derivatives_of_a_norm_with_parameters_in_half_precision(dtype: torch.dtype) -> None:
    """Under autocast: the result is float32, and so is what the derivatives are made of."""
    x, scales, shifts = torch.randn(10, 4, requires_grad=True), draw(4, dtype=dtype), draw(4, dtype=dtype)
    found = []
    for kind in (dtype, torch.float64):
        leaves = [t.detach().to(t.dtype if kind == dtype else kind).requires_grad_() for t in (x, *scales, *shifts)]
        with torch.autocast("cpu", dtype, enabled=kind == dtype):
            out = grouped_layer_norm(leaves[0], leaves[1:3], leaves[3:], *ROWS, backend="triton" if kind == dtype else "reference")
        first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
        assert [g.dtype for g in first] == [t.dtype for t in leaves]
        found.append((*first, *torch.autograd.grad(sum(g.double().square().sum() for g in first), leaves)))
    torch.testing.assert_close([g.double() for g in found[0]], [*found[1]], rtol=3e-2, atol=3e-2)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors that kernels are given."""
    seen: list[Tensor] = []
    launch = backend.launch

    def note(kernel: Any, grid: Any, *args: Any, **named: Any) -> None:
        seen.extend(a for a in args if isinstance(a, Tensor))
        launch(kernel, grid, *args, **named)

    monkeypatch.setattr(backend, "launch", note)
    return seen


@pytest.mark.parametrize("which", ["x", "onto", "grad"])
@pytest.mark.parametrize("width", [0, 3])
def test_a_view_that_negates_is_read_as_it_is_meant(which: str, width: int, read: list[Tensor]) -> None:
    """Its memory holds the other sign, which an operator would have changed, and a kernel does not know of."""
    if which == "onto" and not width:
        return
    given = {"x": torch.randn(10, 4), "onto": torch.randn(10, width), "grad": torch.randn(10, width or 4)}
    given[which] = negative(given[which])
    weights, biases = draw(width, 4) if width else draw(4), draw(width or 4)
    found = []
    for by in ("triton", "reference"):
        x, onto = (given[n].requires_grad_() for n in ("x", "onto"))
        if width:
            out = grouped_linear(x, weights, biases, *ROWS, backend=by, onto=onto)
        else:
            out = grouped_layer_norm(x, weights, biases, *ROWS, backend=by)
        found.append((out, *torch.autograd.grad(out, [x, *weights, *biases], given["grad"])))
    assert not any(t.is_neg() for t in read)
    torch.testing.assert_close(*found)


def whole_case(leaves: list[Tensor]) -> Tensor:
    """A normalisation, then a map with one."""
    x, *parameters = leaves
    weights, biases, scales, shifts = (parameters[i : i + 2] for i in range(0, 8, 2))
    normal = grouped_layer_norm(x, scales, shifts, *ROWS, backend="triton")
    return grouped_linear(normal, weights, biases, *ROWS, scales, shifts, backend="triton").sin().sum()


def leaves_of_whole_case() -> list[Tensor]:
    return [torch.randn(10, 4, requires_grad=True), *draw(3, 4), *draw(3), *draw(4), *draw(4)]


def test_saved_tensors_may_come_back_laid_out_in_another_way() -> None:
    leaves = leaves_of_whole_case()
    expected = torch.autograd.grad(whole_case(leaves), leaves)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda t: t.T.contiguous().T if t.dim() == 2 else t):
        out = whole_case(leaves)
    torch.testing.assert_close(torch.autograd.grad(out, leaves), expected)


@pytest.mark.parametrize("by", ["checkpoint", "inference first"])
def test_other_ways_to_the_same_gradients(by: str) -> None:
    leaves = leaves_of_whole_case()
    expected = torch.autograd.grad(whole_case(leaves), leaves)
    if by == "checkpoint":
        out = checkpoint(whole_case, leaves, use_reentrant=False)
    else:
        with torch.inference_mode():  # the table of addresses is kept from there
            whole_case(leaves)
        out = whole_case(leaves)
    torch.testing.assert_close(torch.autograd.grad(out, leaves), expected)


def test_compiled_autograd_traces_the_operators() -> None:
    from torch._dynamo import compiled_autograd

    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    leaves = leaves_of_whole_case()
    expected = torch.autograd.grad(whole_case(leaves), leaves)
    with compiled_autograd._enable(torch.compile(backend=keep)):
        whole_case(leaves).backward()
    torch.testing.assert_close([t.grad for t in leaves], list(expected))
    assert "grouped_linear_triton_backward" in "".join(graphs)
    assert "grouped_layer_norm_triton_backward" in "".join(graphs)


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_each_row_is_in_one_split(groups: int) -> None:
    for rows in (*range(1, 1400), 4097, 131_071, 1_000_003):
        splits, per_split = backend._Cut(rows, 1, groups, 40, 40).splits()
        assert splits.bit_count() == 1  # each number is a kernel of its own
        assert splits * per_split >= rows
        assert per_split % backend._ROWS == 0  # a tile that began in one split would go on in the next
        assert splits == 1 or per_split >= backend._LEAST_ROWS


class Marked(Tensor): ...


def many(count: int) -> dict[str, Any]:
    weight = torch.randn(3, 4)
    return {"x": torch.randn(1, 4), "weights": [weight] * count, "starts": [0] * count, "sizes": [1] * count}


def long_rows() -> dict[str, Any]:
    rows = 2**31 - 2**10
    return {"x": torch.zeros(1, 1).expand(rows // 2 + 1, 1), "weights": draw(1, 1), "starts": [0, 0], "sizes": [rows // 2 + 1] * 2}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (lambda: {"onto": torch.randn(10, 3).as_subclass(Marked)}, "the residual is of another type"),
        (lambda: {"weights": [negative(torch.randn(3, 4)) for _ in range(2)]}, "not in one piece of memory"),
        (lambda: many(2**16), "there are 65536 groups, and a launch counts at most 65535"),
        (long_rows, "there are 2147482626 rows, and the kernels count at most 2147482624"),
    ],
    ids=["a subclass", "negated parameters", "groups", "rows"],
)
def test_what_the_kernels_cannot_read_or_count_is_refused(given: Callable[[], dict[str, Any]], why: str) -> None:
    plain = {"x": torch.randn(10, 4), "weights": draw(3, 4), "starts": ROWS[0], "sizes": ROWS[1]}
    with pytest.raises(ValueError, match=why):
        grouped_linear(**plain | {"biases": [], "backend": "triton"} | given())


@pytest.fixture
def no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_TABLES", "_CAPTURED"):
        monkeypatch.setattr(tables, name, {})
    monkeypatch.setattr(tables, "_MOST_TABLES", 2)


@pytest.mark.usefixtures("no_tables")
def test_few_tables_are_kept_and_no_kernel_reads_one_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(tables, "_wait", lambda: waits.append(len(tables._TABLES)))
    kinds, device = [[draw(3, 4, learns=False), draw(3, learns=False)] for _ in range(3)], torch.device("cpu")
    for kind in kinds:
        found = tables.addresses([*kind, []], device)
        assert found.tolist() == [*([t.data_ptr() for t in k] for k in kind), [0, 0]]
        assert tables.addresses([*kind, []], device) is found
    assert waits == [2]
    assert len(tables._TABLES) == 1


@pytest.mark.usefixtures("no_tables")
def test_a_table_that_a_graph_captured_outlives_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replay reads it where it lay."""
    kinds, device = [[draw(3, 4, learns=False)] for _ in range(4)], torch.device("cpu")
    first = tables.addresses(kinds[0], device)
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_is_captured", lambda device: True)
        assert tables.addresses(kinds[0], device) is first
    for kind in kinds[1:]:
        tables.addresses(kind, device)
    assert not any(t is first for t in tables._TABLES.values())
    assert [t is first for t in tables._CAPTURED.values()] == [True]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of_onto", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of_x", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes_are_those_of_torchs_own(of_x: torch.dtype, of_onto: torch.dtype, autocast: torch.dtype | None) -> None:
    """Also of second derivatives; parameters are float32 under autocast, and as the rows without it."""
    given = [torch.randn(10, 4).to(of_x), *draw(3, 4), *draw(3), torch.randn(10, 3).to(of_onto)]
    found = []
    for by in ("triton", "reference"):
        x, *parameters, onto = (t.detach().requires_grad_() for t in given)
        if autocast is None:
            parameters = [t.detach().to(of_x).requires_grad_() for t in parameters]
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            out = grouped_linear(x, parameters[:2], parameters[2:], *ROWS, backend=by, onto=onto)
        leaves = [x, *parameters, onto]
        plain = torch.autograd.grad(out.float().sin().sum(), leaves, retain_graph=True)
        first = torch.autograd.grad(out.float().sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.float().square().sum() for g in first), leaves)
        found.append((out, *first, *second, *plain))
    assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]]
    assert [t.dtype for t in found[0][1:7]] == [of_x, *[torch.float32 if autocast else of_x] * 4, of_onto]
    for a, b in zip(*found, strict=True):
        assert (a - b).float().norm() < 0.1 * b.float().norm() + 1e-3  # a few roundings to bfloat16, of numbers that partly cancel


def test_a_norm_of_rows_in_half_precision_is_float32_under_autocast() -> None:
    """As `torch.nn.LayerNorm` on a GPU."""
    x, scales, shifts = torch.randn(10, 4).bfloat16().requires_grad_(), draw(4), draw(4)
    with torch.autocast("cpu", torch.bfloat16):
        out = grouped_layer_norm(x, scales, shifts, *ROWS, backend="triton")
    exact = [t.detach().double() for t in (x, *scales, *shifts)]
    expected = grouped_layer_norm(exact[0], exact[1:3], exact[3:], *ROWS, backend="reference")
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(out.sum(), x)[0].dtype == torch.bfloat16


def test_moments_are_kept_where_a_backward_pass_reads_them() -> None:
    x, weights, scales = torch.randn(10, 4), draw(3, 4, learns=False), draw(4, learns=False)
    for of_norm, learns, shape in (([], True, (0,)), (scales, True, (10, 2)), (scales, False, (0,))):
        _, moments = backend._linear(x, weights, [], of_norm, of_norm, None, 5, 1, 1e-5, torch.float32, learns)
        assert moments.shape == shape
