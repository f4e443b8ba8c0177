"""The backends of cross-modal attention against the frozen reference in float64; "cpu" through every door that a model opens."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mea_graph.ops import cross_modal_attention, explain
from mea_graph.ops.cross_modal_attention import cpu, packed, padded, reference

# By case: B, K, D, D_v, the target's lengths, and each source's.
CASES = {
    "ragged": (4, 2, 5, 5, [3, 70, 1, 20], [[60, 80, 2, 0], [5, 63, 0, 90]]),
    "one length": (3, 2, 5, 5, [40] * 3, [[60] * 3]),
    "one short length": (3, 2, 5, 5, [4] * 3, [[3] * 3, [2] * 3]),
    "one length, no masks": (3, 2, 5, 5, None, [7, 60]),
    "wide heads": (2, 1, 24, 24, [5, 90], [[100, 3]]),
    "values wider": (2, 2, 3, 7, [2, 64], [[65, 1], [0, 50]]),
    "values narrower": (2, 2, 9, 1, [2, 4], [[6, 1]]),
    "empty sources": (3, 2, 4, 4, [2, 0, 5], [[0, 0, 0], [3, 4, 0]]),
    "a source without steps": (2, 2, 4, 4, [2, 3], [[0, 0], [3, 4]]),
    "no source at all": (2, 2, 4, 4, [2, 3], [[0, 0]]),
    "no target": (2, 2, 4, 4, [0, 0], [[3, 4]]),
    "no sample": (0, 2, 4, 4, [], [[], []]),
}


class Inputs(NamedTuple):
    query: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    key_masks: list[Tensor] | None
    query_mask: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        return [self.query, *self.keys, *self.values]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        return self._replace(query=change(self.query), keys=[change(k) for k in self.keys], values=[change(v) for v in self.values])

    def dirty(self, junk: float) -> "Inputs":
        def fill(x: Tensor, mask: Tensor | None) -> Tensor:
            return x if mask is None else x.masked_fill(~mask[:, None, :, None], junk)

        masks = self.key_masks or [None] * len(self.keys)
        sources = [[fill(t, m) for t, m in zip(parts, masks, strict=True)] for parts in (self.keys, self.values)]
        return self._replace(query=fill(self.query, self.query_mask), keys=sources[0], values=sources[1])


def prefix(lengths: Sequence[int], spare: int = 2) -> Tensor:
    longest = max(lengths, default=0)
    return torch.arange(longest + spare) < torch.tensor(lengths, dtype=torch.long)[:, None]


def draw(case: str, dtype: torch.dtype = torch.float64) -> Inputs:
    batch, heads, width, width_value, target, sources = CASES[case]
    if target is None:
        query_mask, key_masks, sizes = None, None, [10, *sources]
    else:
        spare = 0 if case == "a source without steps" else 2
        query_mask, key_masks = prefix(target), [prefix(n, spare) for n in sources]
        sizes = [query_mask.size(1), *(m.size(1) for m in key_masks)]
    tensor = lambda length, w: torch.randn(batch, length, heads, w, dtype=dtype).transpose(1, 2)  # noqa: E731
    keys, values = [tensor(n, width) for n in sizes[1:]], [tensor(n, width_value) for n in sizes[1:]]
    return Inputs(tensor(sizes[0], width), keys, values, key_masks, query_mask)


def holed() -> Inputs:
    """Masks with holes, a sample of nothing but padding among them."""
    inputs = draw("ragged")
    masks = [torch.rand(m.shape) < 0.6 for m in inputs.key_masks or []]
    masks[0][1] = False
    masks[1][1] = False
    query_mask = torch.rand(4, inputs.query.size(2)) < 0.6
    query_mask[2] = False
    return inputs._replace(key_masks=masks, query_mask=query_mask)


def outcome(inputs: Inputs, backend: str, grad: Tensor | None = None) -> list[Tensor]:
    """The result and every gradient."""
    inputs = inputs.map(lambda t: t.detach().requires_grad_())
    out = cross_modal_attention(*inputs, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, inputs.leaves, torch.ones_like(out) if grad is None else grad)]


def truth(inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """One sample after the other, from its real steps alone, by the reference in float64."""
    wide = inputs.map(lambda t: t.detach().double().requires_grad_())
    rows = []
    for b in range(len(wide.query)):
        own = slice(None) if wide.query_mask is None else wide.query_mask[b]
        masks = [slice(None)] * len(wide.keys) if wide.key_masks is None else [m[b] for m in wide.key_masks]
        key, value = (torch.cat([p[b][:, m] for p, m in zip(parts, masks, strict=True)], 1) for parts in (wide.keys, wide.values))
        out = torch.zeros(*wide.query.shape[1:3], value.size(-1), dtype=torch.float64)
        out[:, own] = reference.cross_modal_attention(wide.query[b : b + 1, :, own], key[None], value[None], None)[0]
        rows.append(out)
    if not rows:
        return [torch.zeros(grad.shape).double(), *(torch.zeros_like(t) for t in wide.leaves)]
    out = torch.stack(rows)
    gradients = torch.autograd.grad(out, wide.leaves, grad.double(), allow_unused=True)
    return [out.detach(), *(torch.zeros_like(t) if g is None else g for t, g in zip(wide.leaves, gradients, strict=True))]


def gradient_for(inputs: Inputs) -> Tensor:
    return torch.randn(*inputs.query.shape[:3], inputs.values[0].size(-1)).to(inputs.values[0].dtype)


@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference"])
@pytest.mark.parametrize("case", [*CASES, "holes"])
def test_equals_the_reference_on_each_sample_alone(case: str, backend: str) -> None:
    inputs = holed() if case == "holes" else draw(case)
    grad = gradient_for(inputs)
    torch.testing.assert_close(outcome(inputs, backend, grad), truth(inputs, grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference"])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("case", ["ragged", "empty sources", "holes"])
def test_padding_is_never_read(case: str, junk: float, backend: str) -> None:
    inputs = holed() if case == "holes" else draw(case)
    dirty = inputs.dirty(junk)
    grad = gradient_for(inputs)
    pad = ~inputs.query_mask[:, None, :, None]
    expected, found = outcome(inputs, backend, grad), outcome(dirty, backend, grad.masked_fill(pad, junk))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    masks = [inputs.query_mask, inputs.query_mask, *inputs.key_masks, *inputs.key_masks]
    for name, t, mask in zip(["result", "query", *["source"] * 4], found, masks, strict=False):
        assert not t.transpose(1, 2)[~mask].any(), f"{name}: not zero in the padding"


@pytest.mark.parametrize("case", ["ragged", "one length", "values wider"])
@pytest.mark.parametrize(
    ("dtype", "value_budget", "gradient_budget"),
    [(torch.float32, 2e-6, 4e-6), (torch.bfloat16, 4e-3, 8e-3), (torch.float16, 5e-4, 1e-3)],
)
def test_rounds_no_more_than_the_dtype_does(case: str, dtype: torch.dtype, value_budget: float, gradient_budget: float) -> None:
    """Half precision is read and written, but computed in float32: the error is that of rounding the result (and `out`, read again)."""
    inputs = draw(case, dtype)
    grad = gradient_for(inputs)
    found, expected = outcome(inputs, "cpu", grad), truth(inputs, grad)
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert f.dtype == dtype
        assert (f.double() - e).norm() <= (gradient_budget if i else value_budget) * e.norm()


@pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference"])
def test_dtypes_may_differ(backend: str) -> None:
    inputs = draw("ragged")
    dtypes = [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, torch.bfloat16]
    leaves = [t.to(d) for t, d in zip(inputs.leaves, dtypes, strict=True)]
    mixed = inputs._replace(query=leaves[0], keys=leaves[1:3], values=leaves[3:])
    grad = gradient_for(mixed)
    found, expected = outcome(mixed, backend, grad), truth(mixed, grad)
    assert [t.dtype for t in found] == [torch.float32, *dtypes]
    for f, e in zip(found, expected, strict=True):
        assert (f.double() - e).norm() <= 6e-3 * e.norm()


@pytest.mark.parametrize("case", ["ragged", "one length"])
def test_autocast_changes_nothing(case: str) -> None:
    inputs = draw(case, torch.float32)
    expected = outcome(inputs, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(inputs, "cpu")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def scattered(t: Tensor) -> Tensor:
    """The same numbers, on strides that no layer makes."""
    return torch.stack([t.transpose(1, 3).contiguous(), torch.zeros_like(t.transpose(1, 3))], -1)[..., 0].transpose(1, 3)


@pytest.mark.parametrize("arrange", [scattered, Tensor.contiguous], ids=["scattered", "contiguous"])
@pytest.mark.parametrize("case", ["ragged", "one length", "one length, no masks"])
def test_strides_do_not_matter(case: str, arrange: Callable[[Tensor], Tensor]) -> None:
    inputs = draw(case)
    grad = gradient_for(inputs)
    torch.testing.assert_close(outcome(inputs.map(arrange), "cpu", arrange(grad)), outcome(inputs, "cpu", grad), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_expanded_tensors_are_legal(axis: int) -> None:
    """Strides of zero, as the gradient of a sum has them."""
    inputs = draw("one length")
    flat = inputs.map(lambda t: t.select(axis, 0).unsqueeze(axis).expand_as(t))
    grad = torch.ones(()).double().expand(inputs.query.shape)
    torch.testing.assert_close(outcome(flat, "cpu", grad), truth(flat, grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["ragged", "one length"])
def test_same_bits_twice(case: str) -> None:
    inputs = draw(case, torch.float32)
    torch.testing.assert_close(outcome(inputs, "cpu"), outcome(inputs, "cpu"), rtol=0, atol=0)


@pytest.mark.parametrize("case", ["empty sources", "one short length"])
def test_gradcheck(case: str) -> None:
    inputs = draw(case)
    count = len(inputs.keys)

    def call(query: Tensor, *parts: Tensor) -> Tensor:
        return cross_modal_attention(query, parts[:count], parts[count:], inputs.key_masks, inputs.query_mask, backend="cpu")

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in inputs.leaves])


def test_a_second_derivative_is_refused() -> None:
    inputs = draw("one short length").map(Tensor.requires_grad_)
    (gradient,) = torch.autograd.grad(cross_modal_attention(*inputs).square().sum(), inputs.query, create_graph=True)
    with pytest.raises(RuntimeError, match='second derivatives are available with backend="reference" only'):
        gradient.sum().backward()


@pytest.mark.parametrize("needed", ["query", "keys", "values"])
def test_gradients_may_be_wanted_of_some_only(needed: str) -> None:
    inputs = draw("ragged")
    expected = outcome(inputs, "cpu")
    places = {"query": [1], "keys": [2, 3], "values": [4, 5]}[needed]
    leaves = [inputs.leaves[i - 1].requires_grad_() for i in places]
    found = torch.autograd.grad(cross_modal_attention(*inputs, backend="cpu").sum(), leaves)
    torch.testing.assert_close(list(found), [expected[i] for i in places], rtol=0, atol=0)


@pytest.mark.parametrize("case", ["ragged", "one length, no masks", "empty sources", "values wider"])
def test_operators_keep_the_rules_of_torch_library(case: str) -> None:
    inputs = draw(case, torch.float32).map(Tensor.requires_grad_)
    arguments = (inputs.query, inputs.keys, inputs.values, inputs.key_masks or [], inputs.query_mask)
    torch.library.opcheck(torch.ops.mea_graph.cross_modal_attention_cpu.default, arguments)
    out, sums = (t.detach() for t in torch.ops.mea_graph.cross_modal_attention_cpu(*arguments))
    backward = (torch.randn_like(out), *inputs.map(Tensor.detach)[:3], *arguments[3:], out, sums)
    torch.library.opcheck(torch.ops.mea_graph.cross_modal_attention_cpu_backward.default, backward)


@pytest.mark.parametrize("case", ["ragged", "one length, no masks"])
def test_compiles_into_one_graph(case: str) -> None:
    inputs = draw(case, torch.float32)
    grad = gradient_for(inputs)
    torch.compiler.reset()
    compiled = torch.compile(lambda *a: cross_modal_attention(*a).tanh(), fullgraph=True, backend="aot_eager")
    for arguments in (inputs, inputs.map(torch.sin)):
        leaves = arguments.map(lambda t: t.detach().requires_grad_())
        expected, found = cross_modal_attention(*leaves).tanh(), compiled(*leaves)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        pairs = (torch.autograd.grad(out, leaves.leaves, grad, retain_graph=True) for out in (found, expected))
        torch.testing.assert_close(*pairs, rtol=1e-6, atol=1e-7)


def test_exports_for_any_batch_and_lengths() -> None:
    class Module(torch.nn.Module):
        def forward(self, query: Tensor, source: Tensor, source_mask: Tensor, query_mask: Tensor) -> Tensor:
            return cross_modal_attention(query, [source], [source], [source_mask], query_mask)

    def arguments(target: list[int], source: list[int]) -> tuple[Tensor, ...]:
        query_mask, source_mask = prefix(target), prefix(source)
        return (
            torch.randn(len(target), 2, query_mask.size(1), 5),
            torch.randn(len(target), 2, source_mask.size(1), 5),
            source_mask,
            query_mask,
        )

    batch, length, steps = (torch.export.Dim(name, min=2) for name in ("batch", "length", "steps"))
    shapes = ({0: batch, 2: length}, {0: batch, 2: steps}, {0: batch, 1: steps}, {0: batch, 1: length})
    program = torch.export.export(Module(), arguments([3, 1], [4, 7]), dynamic_shapes=shapes)
    assert any("cross_modal_attention_cpu" in str(node.target) for node in program.graph.nodes)
    for target, source in (([3, 1], [4, 7]), ([5, 0, 2, 9], [1, 3, 30, 12])):
        given = arguments(target, source)
        torch.testing.assert_close(program.module()(*given), Module()(*given), rtol=0, atol=0)


def test_auto_takes_true_lengths_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, ran = draw("ragged"), []
    table = {name: getattr(module, run) for name, module, run in (("sdpa", padded, "run_sdpa"), ("reference", padded, "run_reference"))}
    assert explain(cross_modal_attention, *inputs).chosen == "cpu"
    assert set(explain("cross_modal_attention", *inputs).refused) == set(table)
    monkeypatch.setattr(cpu, "attend", lambda *a: ran.append("cpu") or packed.attend(*a))
    cross_modal_attention(*inputs)
    assert ran == ["cpu"]
    for name in table:
        cross_modal_attention(*inputs, backend=name)
        assert explain(cross_modal_attention, *inputs, backend=name).chosen == name
    assert ran == ["cpu"]


def test_other_devices_take_sdpa_and_refuse_cpu() -> None:
    inputs = draw("ragged")
    meta = inputs.map(lambda t: t.to("meta"))._replace(key_masks=[m.to("meta") for m in inputs.key_masks], query_mask=None)
    assert explain(cross_modal_attention, *meta).chosen == "sdpa"
    assert cross_modal_attention(*meta).shape == inputs.query.shape
    with pytest.raises(ValueError, match=r"cannot run on 'cpu' here: .* the tensors are on meta"):
        cross_modal_attention(*meta, backend="cpu")
    with pytest.raises(ValueError, match=r"backend: expected one of \['auto', 'cpu', 'sdpa', 'reference'\], got 'cuda'"):
        cross_modal_attention(*inputs, backend="cuda")


def maps(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> list[tuple[int, int]]:
    """How many queries and keys each map has that `run` computes, a block each."""
    seen, blocks = [], packed._blocks

    def watched(of_queries: Any, query_lengths: Any, of_keys: Any, key_lengths: Any) -> Any:
        for block in blocks(of_queries, query_lengths, of_keys, key_lengths):
            seen.append((block[0].size(2), block[-1].size(2)))
            yield block

    monkeypatch.setattr(packed, "_blocks", watched)
    run()
    return seen


def test_nothing_is_computed_on_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw("ragged", torch.float32)
    expected = [(3, 65), (70, 143), (1, 2), (20, 90)]
    assert maps(monkeypatch, lambda: outcome(inputs, "cpu")) == expected * 2  # both passes
    assert maps(monkeypatch, lambda: cross_modal_attention(*draw("empty sources"))) == [(2, 3)]


def test_a_long_map_is_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw("ragged")
    grad = gradient_for(inputs)
    monkeypatch.setattr(packed, "_BLOCK", 2 * 143 * 31)
    assert maps(monkeypatch, lambda: cross_modal_attention(*inputs)) == [(3, 65), (24, 143), (24, 143), (22, 143), (1, 2), (20, 90)]
    torch.testing.assert_close(outcome(inputs, "cpu", grad), truth(inputs, grad), rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(packed, "_BLOCK", 1)  # less than one row
    torch.testing.assert_close(outcome(inputs, "cpu", grad), truth(inputs, grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_logits_may_be_of_any_size(scale: float) -> None:
    """Powers of two need a shift where they could overflow: from thousands on, a map has zeros and ones only."""
    inputs = draw("ragged")
    steep = inputs._replace(query=inputs.query * scale)
    grad = gradient_for(inputs)
    assert packed._steep(steep.query.permute(1, 3, 0, 2).flatten(2), steep.keys[0].permute(1, 3, 0, 2).flatten(2)) == (scale > 1)
    torch.testing.assert_close(outcome(steep, "cpu", grad), truth(steep, grad), rtol=1e-8, atol=1e-8 * scale)
    narrow = outcome(steep.map(Tensor.float), "cpu", grad.float())
    assert all(t.isfinite().all() for t in narrow)
    assert (narrow[0].double() - truth(steep, grad)[0]).norm() <= 1e-6 * scale * narrow[0].norm()


def peak(run: Callable[[], Any]) -> int:
    """Bytes that `run` has allocated and not yet given back, at the worst moment."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def test_no_map_is_ever_stored() -> None:
    length, heads, width = 1500, 2, 8
    leaves = [torch.randn(1, heads, length, width, requires_grad=True) for _ in range(3)]
    mask = torch.arange(length) < torch.tensor([[length - 1]])

    def step(backend: str) -> None:
        query, key, value = leaves
        out = cross_modal_attention(query, [key], [value], [mask], mask, backend=backend)
        torch.autograd.grad(out.sum(), leaves)

    one_map, one_input = 4 * heads * length**2, 4 * heads * length * width
    assert peak(lambda: step("reference")) > one_map
    assert peak(lambda: step("cpu")) < 40 * one_input < one_map / 4
