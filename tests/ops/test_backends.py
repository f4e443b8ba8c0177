"""Which backend runs: what is said of it, how it is chosen, and the reference where a transform must see the formula."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mea_graph.ops import IntervalEdges, explain, interval_attention, predictive_attention, record_calls, use_backend
from mea_graph.ops.backends import _OPS, Backend, Op
from mea_graph.ops.grouped import grouped_layer_norm, grouped_linear

from .layouts import Layout

AT = Layout([4, 0, 3], "packed")
P = AT.pointers
K, D = 2, 3
EDGES = IntervalEdges.complete(P, P)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def x() -> Tensor:
    return random(AT.steps, K, D)


def chosen(x: Tensor) -> str:
    return explain(interval_attention, x, x, x, EDGES).chosen


def guide(x: Tensor) -> dict[str, Tensor]:
    weight = torch.linspace(-1, 1, K * K * 9, dtype=torch.float64).view(K, K, 3, 3)
    return {"prior_query": x.flip(2), "prior_key": x.roll(1, 2), "weight": weight, "bias": weight[:, 0, 0, 0]}


# Of one tensor (7, K, D) each; the backend that a call on a CPU takes.
CALLS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "interval_attention": (lambda x: interval_attention(x, x.cos(), x.sin(), EDGES), "cpu"),
    "interval_attention in windows": (lambda x: interval_attention(x, x.cos(), x.sin(), IntervalEdges.window(P, P, steps=1)), "cpu"),
    "interval_attention on a list": (lambda x: interval_attention(x, x.cos(), x.sin(), EDGES.edge_index()), "listed"),
    "predictive_attention": (lambda x: predictive_attention(x, x.cos(), x.sin(), P, **guide(x)), "cpu"),
    "predictive_attention in windows": (
        lambda x: predictive_attention(x, x.cos(), x.sin(), P, **guide(x), edges=IntervalEdges.window(P, P, steps=1)),
        "cpu",
    ),
    "predictive_attention on a list": (
        lambda x: predictive_attention(x, x.cos(), x.sin(), P, **guide(x), edges=EDGES.edge_index()),
        "listed",
    ),
    "grouped_linear": (lambda x: grouped_linear(x[:, 0], [x[1], x[2]], [x[1, :, 0], x[2, :, 0]], [0, 2], [3, 5]), "joined"),
    "grouped_layer_norm": (lambda x: grouped_layer_norm(x[:, 0], [x[1, 0], x[2, 0]], [x[1, 1], x[2, 1]], [0, 2], [3, 5]), "joined"),
}
every_call = pytest.mark.parametrize("name", CALLS)


def op_of(name: str) -> str:
    return name.split(" ")[0]


def test_an_explanation_names_the_one_that_runs_and_why_no_other(x: Tensor) -> None:
    found = explain(interval_attention, x, x, x, EDGES)
    assert (found.op, found.chosen) == ("interval_attention", "cpu")
    assert found.refused == {
        "native": "MEA_GRAPH_NATIVE=0 keeps 'auto' from it",  # in the tests; tests/ops/test_native.py takes that away
        "listed": "the edges are intervals",
        "triton": found.refused["triton"],  # whether it could run depends on what is installed
        "sdpa": "could run, but 'cpu' is preferred",
        "reference": "could run, but 'cpu' is preferred",
    }
    lines = str(found).splitlines()
    assert lines[0] == "interval_attention"
    assert {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:]} == {"cpu": "runs", **found.refused}
    assert explain("interval_attention", query=x, key=x, value=x, edges=EDGES) == found


def test_an_explanation_of_what_was_asked_for_by_name(x: Tensor) -> None:
    found = explain(interval_attention, x, x, x, EDGES, backend="sdpa")
    assert found.chosen == "sdpa"
    assert found.refused == dict.fromkeys(("native", "listed", "cpu", "triton", "reference"), "'sdpa' was requested")
    with pytest.raises(ValueError, match="backend: interval_attention cannot run on 'listed' here: the edges are intervals"):
        explain(interval_attention, x, x, x, EDGES, backend="listed")
    with pytest.raises(ValueError, match=r"op: expected one of \[.*'interval_attention'.*\], got 'attention'"):
        explain("attention", x)


def test_nothing_is_computed_by_an_explanation(x: Tensor) -> None:
    with record_calls() as calls:
        explain(interval_attention, x, x, x, EDGES)
    assert not calls


def test_a_device_that_no_backend_prefers_is_said(x: Tensor) -> None:
    refused = explain(predictive_attention, x, x, x, P, **guide(x)).refused
    assert refused["plain"] == "a prior is given, and this computes attention without one"
    op = Op(lambda x: x, {"far": Backend(lambda x: x, lambda x: None, prefers="cuda"), "near": Backend(lambda x: -x, lambda x: None)})
    found = op.explain("auto", x.device, {"x": x})
    assert (found.chosen, found.refused) == ("near", {"far": "taken only by name, because the tensors are on cpu"})
    assert torch.equal(op.run("far", x.device, {"x": x}), x)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize(
    ("edges", "taken"), [(None, "reference"), (IntervalEdges.window(P, P, steps=1), "listed")], ids=["complete", "windows"]
)
def test_another_device_does_not_wait_for_blocks_of_the_cpu(x: Tensor, kind: str, edges: Any, taken: str) -> None:
    """Tensors in float64, which the kernels refuse, as a device would be given them."""
    arguments = {"query": x, "key": x, "value": x, "pointers": P, "mu": 0.25, "edges": edges} | guide(x)
    found = _OPS["predictive_attention"].explain("auto", torch.device(kind), arguments)
    assert found.chosen == taken
    assert found.refused["cpu"] == f"taken only by name, because the tensors are on {kind}"
    assert _OPS["predictive_attention"].explain("auto", x.device, arguments).chosen == "cpu"


def test_where_nothing_can_run_each_reason_is_said(x: Tensor) -> None:
    op = Op(lambda x: x, {"one": Backend(lambda x: x, lambda x: "too old"), "two": Backend(lambda x: x, lambda x: "too new")})
    with pytest.raises(ValueError, match="no backend can run: one: too old; two: too new"):
        op.run("auto", x.device, {"x": x})


@pytest.fixture(autouse=True)
def _known_ops() -> Any:
    """Ops that a test makes are forgotten."""
    from mea_graph.ops import backends

    before = dict(backends._OPS)
    yield
    backends._OPS.clear()
    backends._OPS.update(before)


def test_use_backend_nests_and_ends(x: Tensor) -> None:
    assert chosen(x) == "cpu"
    with use_backend("reference"):
        assert chosen(x) == "reference"
        with use_backend("sdpa"):
            assert chosen(x) == "sdpa"
            with use_backend("auto"):
                assert chosen(x) == "cpu"
            assert chosen(x) == "sdpa"
        assert chosen(x) == "reference"
    assert chosen(x) == "cpu"
    with pytest.raises(KeyError, match="out"), use_backend("reference"):
        raise KeyError("out")
    assert chosen(x) == "cpu"


def test_use_backend_gives_way_to_a_name_and_leaves_other_ops_alone(x: Tensor) -> None:
    with use_backend("sdpa"), record_calls() as calls:
        interval_attention(x, x, x, EDGES)
        interval_attention(x, x, x, EDGES, backend="reference")
        predictive_attention(x, x, x, P, **guide(x))
    assert calls == {("interval_attention", "sdpa"): 1, ("interval_attention", "reference"): 1, ("predictive_attention", "cpu"): 1}


def test_use_backend_of_one_that_cannot_run_raises(x: Tensor) -> None:
    with use_backend("listed"), pytest.raises(ValueError, match="cannot run on 'listed' here: the edges are intervals"):
        interval_attention(x, x, x, EDGES)
    with pytest.raises(ValueError, match=r"name: expected one of \['auto', .*'reference'.*\], got 'gpu'"), use_backend("gpu"):
        pass


def test_use_backend_holds_for_its_own_thread(x: Tensor) -> None:
    """Two threads inside blocks of their own at the same time, and this one outside of both."""
    inside, seen = threading.Barrier(3, timeout=60), {}

    def work(name: str) -> None:
        with use_backend(name), record_calls() as calls:
            inside.wait()
            interval_attention(x, x, x, EDGES)
            seen[name] = dict(calls)
            inside.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("reference", "sdpa")]
    for thread in threads:
        thread.start()
    inside.wait()
    assert chosen(x) == "cpu"
    inside.wait()
    for thread in threads:
        thread.join()
    assert seen == {name: {("interval_attention", name): 1} for name in ("reference", "sdpa")}


def test_use_backend_holds_for_its_own_task(x: Tensor) -> None:
    async def work(name: str) -> str:
        with use_backend(name):
            await asyncio.sleep(0)
            return chosen(x)

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(work(name) for name in ("reference", "sdpa", "auto")))

    assert asyncio.run(all_of_them()) == ["reference", "sdpa", "cpu"]


def test_record_calls_counts_inside_its_block_only(x: Tensor) -> None:
    interval_attention(x, x, x, EDGES)
    with record_calls() as outer:
        interval_attention(x, x, x, EDGES)
        with record_calls() as inner:
            interval_attention(x, x, x, EDGES)
            interval_attention(x, x, x, EDGES, backend="reference")
    interval_attention(x, x, x, EDGES)
    assert outer == {("interval_attention", "cpu"): 1}
    assert inner == {("interval_attention", "cpu"): 1, ("interval_attention", "reference"): 1}


@every_call
def test_what_runs_without_a_transform(name: str, x: Tensor) -> None:
    call, backend = CALLS[name]
    with record_calls() as calls:
        call(x)
    assert calls == {(op_of(name), backend): 1}


def formula(name: str, x: Tensor) -> Tensor:
    """The same by the reference; what is listed has no other form."""
    call, backend = CALLS[name]
    with use_backend("auto" if backend == "listed" else "reference"):
        return call(x)


def loss(name: str, x: Tensor) -> Tensor:
    return formula(name, x).sin().sum()


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, x: torch.func.grad(lambda t: f(t).sin().sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),)),
    "vjp": lambda f, x: (lambda out, pull: pull(out.cos())[0])(*torch.func.vjp(f, x)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x.cos()])),
    "grad of each sample": lambda f, x: torch.func.vmap(torch.func.grad(lambda t: f(t).sin().sum()))(torch.stack([x, x.cos()])),
}


@every_call
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_takes_the_reference_by_itself(name: str, transform: str, x: Tensor) -> None:
    call, backend = CALLS[name]
    calls = []

    def watched(t: Tensor) -> Tensor:
        with record_calls() as record:
            out = call(t)
        calls.extend(record)
        return out

    found = TRANSFORMS[transform](watched, x)
    assert set(calls) == {(op_of(name), backend if backend == "listed" else "reference")}
    torch.testing.assert_close(found, expected(transform, name, x), rtol=1e-9, atol=1e-11)
    with record_calls() as calls_after:  # pointers and edges that a transform has seen serve on
        after = call(x)
    assert calls_after == {(op_of(name), backend): 1}
    torch.testing.assert_close(after, formula(name, x), rtol=1e-9, atol=1e-11)


def expected(transform: str, name: str, x: Tensor) -> Any:
    """By plain autograd, one sample and one output after the other."""
    if transform == "vmap":
        return torch.stack([formula(name, t) for t in (x, x.cos())])
    leaf = x.clone().requires_grad_()
    if transform == "grad":
        return torch.autograd.grad(loss(name, leaf), leaf)[0]
    if transform == "grad of each sample":
        leaves = [t.clone().requires_grad_() for t in (x, x.cos())]
        return torch.stack([torch.autograd.grad(loss(name, t), t)[0] for t in leaves])
    out = formula(name, leaf)
    if transform == "vjp":
        return torch.autograd.grad(out, leaf, out.detach().cos())[0]
    rows = [torch.autograd.grad(o, leaf, retain_graph=True)[0] for o in out.flatten()]
    jacobian = torch.stack(rows).view(*out.shape, *x.shape)
    if transform == "jacrev":
        return jacobian
    return out.detach(), (jacobian * x.cos()).flatten(out.dim()).sum(-1)


@every_call
def test_a_hessian(name: str, x: Tensor) -> None:
    call, _ = CALLS[name]
    direction = random(*x.shape)
    along = lambda s: call(x + s * direction).sin().sum()  # noqa: E731
    found = torch.func.hessian(along)(torch.zeros((), dtype=torch.float64))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(name, leaf), leaf, create_graph=True)
    (twice,) = torch.autograd.grad((grad * direction).sum(), leaf)
    torch.testing.assert_close(found, (twice * direction).sum(), rtol=1e-8, atol=1e-10)


def test_a_backend_asked_for_by_name_is_not_exchanged_under_a_transform(x: Tensor) -> None:
    found = torch.func.grad(lambda t: interval_attention(t, x, x, EDGES, backend="sdpa").sum())(x)
    assert found.shape == x.shape
    reasons = []
    torch.func.grad(lambda t: reasons.append(explain(interval_attention, t, x, x, EDGES).refused) or t.sum())(x)
    assert reasons[0]["cpu"] == reasons[0]["sdpa"] == "a transform of torch.func is active"
